"""Serving and exploring with encoders as they are: batches of several sizes, words that look."""

import concurrent.futures
import functools

import numpy as np
import pytest

from mmrl.encoder import Encoder
from mmrl.web.embedding import Embedding
from mmrl.web.exploring import Explorer, pointing
from mmrl.web.limits import Limits
from mmrl.web.records import Memory, Records
from mmrl.web.service import Service
from tests import toys
from tests.served import TOKEN, ask, png, serving
from tests.test_encoder import made


@pytest.fixture(scope="module")
def trained():
    return made(toys.config())


@pytest.fixture(scope="module")
def encoder(trained):
    return Encoder(trained)


def test_served_embeddings_equal_single_calls(encoder):
    embedder = Embedding(encoder, (1, 4))
    service = Service(embedder, Limits())
    assert service.compile() == encoder.dim
    compiled = {size: one.trained.predict._encode for size, one in embedder._sized.items()}
    counts = {size: jitted._cache_size() for size, jitted in compiled.items()}
    images = [png(toys.noise(n)) for n in range(24)]
    texts = toys.corpus().texts[:24]
    with serving(service.app(TOKEN)) as address, concurrent.futures.ThreadPoolExecutor(8) as pool:
        for path, kind, expected, asked in (
            ("/embed/image", "image/png", encoder.embed_images(images), images),
            (
                "/embed/text",
                "application/json",
                encoder.embed_texts(texts),
                [{"texts": [text]} for text in texts],
            ),
        ):
            send = functools.partial(ask, address, path, kind=kind)
            for row, (status, answer) in zip(expected, pool.map(send, asked), strict=True):
                assert status == 200
                assert np.abs(np.float32(answer["embeddings"][0]) - row).max() <= 1e-6
    # Nothing was compiled for another size.
    assert counts == {size: jitted._cache_size() for size, jitted in compiled.items()}


def test_an_encoder_shares_its_weights_with_other_batch_sizes(encoder):
    small = encoder.with_batch_size(8)  # there are eight devices
    assert small.trained.predict.batch_size == 8 and small.trained.state is encoder.trained.state
    images = [toys.noise(n) for n in range(9)]
    assert np.abs(small.embed_images(images) - encoder.embed_images(images)).max() <= 1e-6


def test_a_page_of_real_encoders(trained, encoder):
    assert pointing(encoder) == "words"
    examples = trained.examples(toys.corpus())
    records = Records.first(examples, 12)
    memory = Memory.embed(trained, records)
    explorer = Explorer(encoder, records, memory, title="", shown="")
    explorer.compile()
    text = examples.texts[3]
    found = explorer.looks(3)
    heat = encoder.word_heatmap(examples.corpus.image(3), text)
    assert found["words"] == heat.words
    assert np.allclose(found["weights"], heat.weights.reshape(len(heat.words), -1), atol=2e-6)
    # Of 40 x 32 pixels, the columns are 26 of the 32 of the square, and 3 on either side are black.
    assert np.allclose(found["square"], [-3 / 26, 0, 29 / 26, 1])
    hits = explorer.neighbours(3)["hits"]
    images = encoder.embed_images([examples.corpus.image(n) for n in range(12)])
    scores = images[3] @ encoder.embed_texts(examples.texts[:12]).T
    assert [hit["row"] for hit in hits] == np.argsort(-scores, kind="stable")[:6].tolist()
    choice = explorer.choice(3, "Another report.")
    assert choice["cosines"][0] == pytest.approx(scores[3], abs=1e-5)
    assert sum(choice["shares"]) == pytest.approx(1)
