"""The Python interface: images of all kinds, words and where they look, scales, devices."""

import concurrent.futures
import dataclasses
import io
import sys
from pathlib import Path

import jax
import numpy as np
import PIL.Image
import pytest
from huggingface_hub import errors

import mmrl
from mmrl import hub
from mmrl.data.batches.pipeline import Examples
from mmrl.data.image import arrays, readers
from mmrl.data.text import spans
from mmrl.data.text.grounding import Selected
from mmrl.devices import choice
from mmrl.encoder import Encoder
from mmrl.evaluators import pointing
from mmrl.exports import weights
from mmrl.training import learner, run
from mmrl.training.predict import Predict
from mmrl.types import InputError
from tests import dicoms, toys
from tests.toys import noise

TEXT = "Small LEFT  effusion, no nodule."


def made(config, **changes):
    """Encoders with initial weights, as if a run of this config were restored."""
    tokenizers = toys.tokenizers(config)
    resolved = run.resolved(config, tokenizers)
    layout = learner.layout(resolved, toys.one_device())
    _, params, variables = learner.split(learner.make(resolved, jax.random.key(0)))
    state = {"step": np.zeros(()), "params": params, "variables": variables}
    predict = Predict(layout, toys.one_device(), **changes)
    return run.Trained(Path("run"), config, {}, tokenizers, predict, state, 0)


@pytest.fixture(scope="module")
def trained():
    return made(toys.config())


@pytest.fixture(scope="module")
def encoder(trained):
    return Encoder(trained)


@pytest.fixture(scope="module")
def folder(trained, tmp_path_factory):
    """The same encoders without their run."""
    path = tmp_path_factory.mktemp("encoder")
    weights.write(trained, path)
    return path


# --- images ---------------------------------------------------------------------------------------


def stored(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def test_one_image_in_any_form_is_one_image(tmp_path):
    grey = noise(1)
    pillow = PIL.Image.fromarray(grey)
    colours = np.repeat(grey[..., None], 3, axis=2)
    opaque = np.full(grey.shape, 255, np.uint8)
    (tmp_path / "a.dat").write_bytes(stored(pillow, "PNG"))
    forms = {
        "path": tmp_path / "a.dat",
        "text path": str(tmp_path / "a.dat"),
        "png": stored(pillow, "PNG"),
        "tiff": stored(pillow, "TIFF"),
        "webp": stored(pillow, "WEBP", lossless=True),
        "one channel": grey[..., None],
        "u16": grey.astype(np.uint16) * 257,
        "float32": (grey / 255).astype(np.float32),
        "float64": grey / 255,
        "jax": jax.numpy.asarray(grey),
        "red, green, blue": colours,
        "floats in colour": (colours / 255).astype(np.float32),
        "opacity": np.dstack([colours, opaque]),
        "pillow": pillow,
        "pillow in colour": pillow.convert("RGB"),
        "pillow with opacity": pillow.convert("LA"),
        "pillow with palette": pillow.convert("P"),
        "pillow of 16 bits": PIL.Image.fromarray(grey.astype(np.uint16) * 257),
        "pillow of floats": PIL.Image.fromarray((grey / 255).astype(np.float32)),
    }
    for name, form in forms.items():
        found = readers.pixels(form)
        scaled = found if found.dtype == np.uint8 else found // 257
        np.testing.assert_array_equal(scaled, grey, err_msg=name)


def test_a_stated_range_makes_black_and_white():
    twelve = np.array([[0, 4095, 2048]], np.uint16)
    np.testing.assert_array_equal(arrays.grey(twelve, (0, 4095)), [[0, 65535, 32776]])
    hounsfield = np.array([[-1000, 400]], np.int16)
    np.testing.assert_array_equal(arrays.grey(hounsfield, (-1000, 400)), [[0, 65535]])
    bytes_as_floats = np.array([[0.0, 255.0]])
    np.testing.assert_array_equal(arrays.grey(bytes_as_floats, (0, 255)), [[0, 65535]])
    transparent = np.array([[[255, 255, 255, 0], [255, 255, 255, 255]]], np.uint8)
    np.testing.assert_array_equal(arrays.grey(transparent), [[0, 255]])
    pure = np.eye(3, dtype=np.uint8)[None] * 255
    np.testing.assert_array_equal(arrays.grey(pure), [[76, 150, 29]])  # red, green, blue


@pytest.mark.parametrize(
    ("image", "value_range", "message"),
    [
        (np.array([[0.0, 255.0]]), None, r"values from 0 to 255; expected 0 to 1, or state value_"),
        (np.array([[-1e-3, 0.5]]), None, r"values from -0\.001 to 0\.5; expected 0 to 1"),
        (np.array([[0, np.nan]]), None, "from nan to nan"),
        (np.array([[0, np.inf]]), (0, 1), "to inf; expected 0 to 1$"),
        (np.zeros((4, 5), np.int32), None, "black and white are not known; state value_range"),
        (np.full((4, 5), 9, np.int64), (0, 8), "from 9 to 9; expected 0 to 8$"),
        (np.full((4, 5), 4096, np.uint16), (0, 4095), "from 4096 to 4096"),
        (np.zeros((4, 5)), (1, 1), r"value_range=\(1, 1\); expected \(lowest, highest\)"),
        (np.zeros((4, 5), bool), None, "an array of bool"),
        (np.zeros((4, 5), complex), (0, 1), "an array of complex128"),
        (np.zeros((3, 40, 32), np.uint8), None, r"uint8\[3, 40, 32\]; expected \[H, W\], or"),
        (np.zeros((40, 32, 2), np.uint8), None, r"\[40, 32, 2\]"),
        (np.zeros((0, 32), np.uint8), None, "without pixels"),
        (np.zeros(8, np.uint8), None, r"uint8\[8\]"),
        (PIL.Image.new("I", (4, 4)), None, "int32, whose black and white are not known"),
    ],
)
def test_images_that_could_mean_several_things_are_refused(encoder, image, value_range, message):
    with pytest.raises(InputError, match=f"image 0: .*{message}"):
        encoder.preprocess([image, noise(0)], value_range=value_range)


@pytest.mark.parametrize(
    "single",
    [
        np.zeros((40, 32), np.uint8),
        np.zeros((40, 32, 1), np.uint8),
        np.zeros((40, 32, 3), np.uint8),
        np.zeros((40, 32, 4), np.uint8),
        PIL.Image.new("L", (8, 8)),
        "a.png",
        b"\x89PNG",
        Path("a.png"),
    ],
    ids=lambda single: type(single).__name__,
)
def test_a_single_image_is_no_list(encoder, single):
    for method in (encoder.embed_images, encoder.preprocess, encoder.regions):
        with pytest.raises(InputError, match="items: given a single"):
            method(single)


def test_towers_of_three_channels_may_see_colour(tmp_path):
    config = toys.config()
    config.towers.image.channels = 3
    del config.towers.text
    config.objectives, config.evaluators = {}, {}
    own = made(config)
    grey, seen = Encoder(own, colour=False), Encoder(own)
    levels = [noise(n) for n in range(3)]
    image = np.dstack(levels)
    pillow = PIL.Image.fromarray(image)
    (tmp_path / "a").write_bytes(stored(pillow, "PNG"))
    opaque = pillow.convert("RGBA")
    forms = (
        *(image, image / 255, image.astype(np.uint16) * 257, pillow, opaque, tmp_path / "a"),
        *(stored(pillow, "TIFF"), stored(opaque, "WEBP", lossless=True), stored(opaque, "PNG")),
    )
    squares = seen.preprocess(forms)
    assert squares.shape == (9, 32, 32, 3)
    apart = np.stack([grey.preprocess([one])[..., 0] for one in levels], axis=3)
    for square in squares:
        np.testing.assert_array_equal(square, apart[0])
    shown = grey.preprocess(forms)
    assert shown.shape == (9, 32, 32, 3) and (shown == shown[..., :1]).all()
    own.config.data.colour = "grey"
    np.testing.assert_array_equal(Encoder(own).preprocess(forms), shown)
    own.config.data.colour = "as_stored"
    # The centre of a JPEG of one colour, whose chroma is coarser than its pixels.
    red = np.zeros((32, 32, 3), np.uint8) + np.array([250, 10, 20], np.uint8)
    found = seen.preprocess([stored(PIL.Image.fromarray(red), "JPEG", quality=100)])[0, 16, 16]
    np.testing.assert_allclose(found.astype(int), [250, 10, 20], atol=3)
    clear = np.dstack([red, np.zeros((32, 32), np.uint8)])
    assert not seen.preprocess([stored(PIL.Image.fromarray(clear), "PNG"), clear]).any()
    plain = levels[:1]
    file = dicoms.image(levels[0], 8)
    for one in (plain, [file]):
        np.testing.assert_array_equal(seen.preprocess(one), grey.preprocess(one))
    np.testing.assert_allclose(seen.embed_images(plain), grey.embed_images(plain), atol=1e-6)
    assert np.abs(seen.embed_images([image]) - grey.embed_images([image])).max() > 1e-3


def test_dicom_is_read_and_burned_in_text_refused(encoder, tmp_path):
    file = tmp_path / "a.dcm"
    file.write_bytes(dicoms.image(noise(2), 8, BurnedInAnnotation="YES"))
    with pytest.raises(InputError, match=r"image 0: .*[Bb]urned"):
        encoder.preprocess([file])
    read = encoder.preprocess([file.read_bytes()], allow_burned_in=True)
    assert read.shape == (1, 32, 32, 1)


def test_preprocessed_images_have_the_embeddings_of_the_images(encoder):
    images = [noise(0), noise(1)[:30]]
    squares = encoder.preprocess(images)
    assert squares.shape == (2, 32, 32, 1) and squares.dtype == np.uint8
    np.testing.assert_array_equal(encoder.embed_images(squares), encoder.embed_images(images))


# --- equality -------------------------------------------------------------------------------------


def test_embeddings_are_those_of_evaluation_whatever_the_batch(trained, encoder, folder):
    corpus = toys.corpus()
    examples = Examples(trained.config, corpus, trained.tokenizers)
    names = ["image.embedding", "text.embedding"]
    judged = trained.predict.encode(trained.state, examples, names)
    images = [corpus.record(i).images[0].load() for i in range(len(corpus))]
    texts = list(corpus.texts)
    np.testing.assert_array_equal(encoder.embed_images(images), judged["image.embedding"])
    np.testing.assert_array_equal(encoder.embed_texts(texts), judged["text.embedding"])
    small = Encoder.load(folder, batch_size=5, device="cpu:3")
    assert small.trained.predict.batch_size == 5
    np.testing.assert_allclose(small.embed_images(images), judged["image.embedding"], atol=1e-6)
    np.testing.assert_allclose(small.embed_texts(texts), judged["text.embedding"], atol=1e-6)
    on_device = small.embed_texts(texts[:2], as_jax=True)
    assert on_device.devices() == {jax.devices()[3]}
    np.testing.assert_array_equal(on_device, small.embed_texts(texts[:2]))
    tokens, mask = encoder.tokenize(texts)
    read = examples.arrays(["text"], range(len(corpus)), "text")
    np.testing.assert_array_equal(tokens, read["text.tokens"])
    np.testing.assert_array_equal(mask, read["text.mask"])


def test_nothing_given_is_nothing_found(encoder):
    assert encoder.embed_images([]).shape == (0, encoder.dim)
    assert encoder.embed_texts([], name="text.pooled").shape == (0, 32)
    assert encoder.regions([]).shape == (0, 16, 32)
    words, vectors = encoder.words("")
    assert words == [] and vectors.shape == (0, 32)
    assert encoder.word_heatmap(noise(0), " ").weights.shape == (0, 4, 4)


def test_threads_share_an_encoder(encoder):
    texts = [[f"{word} effusion." for word in toys.WORDS[i : i + 5]] for i in range(12)]
    alone = [encoder.embed_texts(one) for one in texts]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        together = list(pool.map(encoder.embed_texts, texts * 3))
    for number, one in enumerate(together):
        np.testing.assert_array_equal(one, alone[number % 12])


@pytest.mark.parametrize("size", [0, -1, 2.0, True, "8"])
def test_a_batch_size_is_a_positive_integer(folder, size):
    with pytest.raises(InputError, match=r"batch_size=.*; expected an integer from 1"):
        mmrl.load(folder, batch_size=size)


def test_towers_of_one_channel_see_no_colour(folder):
    with pytest.raises(InputError, match=r"colour=True, but tower image of .* reads one channel"):
        mmrl.load(folder, colour=True)


def test_devices_have_names():
    assert choice.find("cpu") == jax.devices()[0]
    assert choice.find("cpu:5") == choice.find(jax.devices()[5]) == jax.devices()[5]
    for wrong in ("gpu", "cpu:8", "cpu:x", "", "cuda:0"):
        with pytest.raises(InputError, match=f"device='{wrong}'; there are cpu:0, .*cpu:7$"):
            choice.find(wrong)


# --- words and where they look --------------------------------------------------------------------


def test_a_heatmap_of_words_is_the_attention_of_the_local_contrast(trained, encoder):
    corpus = toys.corpus()
    image, text = corpus.record(1).images[0].load(), corpus.texts[1]
    found = encoder.word_heatmap(image, text)
    examples = Examples(trained.config, corpus, trained.tokenizers)
    tokens = examples.tokenize([text])[0][0]
    words = trained.tokenizers["text"].words(tokens)
    selected = [Selected(1, "", tuple((word, tuple(at)) for word, at in words), ())]
    (judged,) = pointing.word_maps(
        trained.predict,
        trained.state,
        examples,
        selected,
        attention=pointing.word_region_attention,
        grid=encoder.grid,
    )
    np.testing.assert_array_equal(found.weights, judged)
    np.testing.assert_allclose(found.weights.sum((1, 2)), 1, atol=1e-5)
    assert [text[start:end].casefold() for _, start, end in found.words] == [w for w, _ in words]


def test_the_attention_has_the_temperature_of_the_run(trained, encoder):
    config = trained.config.copy_and_resolve_references()
    config.objectives.local_contrastive = {"weight": 1.0, "temperatures": (50.0, 5.0, 10.0)}
    image = noise(3)
    found = Encoder(dataclasses.replace(trained, config=config)).word_heatmap(image, "effusion")
    words, mask = (
        encoder.embed_texts(["effusion"], name=f"text.{one}")[0] for one in ("words", "word_mask")
    )
    regions = encoder.embed_images([image], name="image.regions")[0]
    expected = pointing.word_region_attention(words, mask > 0, regions, temperature=50.0)
    np.testing.assert_allclose(
        found.weights.reshape(1, -1), expected[mask > 0].mean(0, keepdims=True), atol=1e-6
    )


def test_a_heatmap_lies_on_the_original_image(encoder):
    wide = np.zeros((20, 80), np.uint8)
    found = encoder.word_heatmap(wide, TEXT)
    over = found.over(0)
    assert over.shape == (20, 80) and (found.height, found.width, found.size) == (20, 80, 32)
    # The image fills rows 12 to 20 of the square: the second row of regions, and half of the third.
    np.testing.assert_allclose(over[:10, ::20], np.tile(found.weights[0, 1], (10, 1)), atol=1e-7)
    np.testing.assert_allclose(over[10:, ::20], np.tile(found.weights[0, 2], (10, 1)), atol=1e-7)


def test_words_are_found_in_the_text_as_given(encoder):
    words, vectors = encoder.words(TEXT)
    shown = ["Small", "LEFT", "effusion", ",", "no", "nodule", "."]
    assert [TEXT[start:end] for _, start, end in words] == shown
    assert vectors.shape == (7, 32)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    cut, _ = encoder.words("effusion " * 40)
    assert 0 < len(cut) < 40 and cut[-1][2] <= len("effusion " * 40)
    with pytest.raises(InputError, match="text is list"):
        encoder.words([TEXT])


@pytest.mark.parametrize(
    ("text", "words", "shown"),
    [
        ("No  Effusion.", ["no", "effusion", "."], ["No", "Effusion", "."]),
        ("Épanchement à gauche", ["epanchement", "a", "gauche"], ["Épanchement", "à", "gauche"]),
        ("E\u0301panchement", ["epanchement"], ["E\u0301panchement"]),
        ("größer, ﬁne", ["grösser", ",", "fine"], ["größer", ",", "ﬁne"]),
        ("a \N{SNOWMAN} b", ["a", "[UNK]", "b"], ["a", "\N{SNOWMAN}", "b"]),
        ("\N{SNOWMAN} \N{COMET} b c", ["[UNK]", "[UNK]", "b"], ["\N{SNOWMAN}", "\N{COMET}", "b"]),
        ("a \N{SNOWMAN}\N{COMET}", ["a", "?", "?"], ["a"] + ["\N{SNOWMAN}\N{COMET}"] * 2),
        ("the heart, the lung", ["the", "heart", ",", "the"], ["the", "heart", ",", "the"]),
        ("a", ["a", "b"], ["a", ""]),
        ("", [], []),
    ],
)
def test_spans_of_words(text, words, shown):
    found = spans.locate(text, words)
    assert [text[start:end] for start, end in found] == shown
    assert found == sorted(found)


def test_regions_have_length_one(encoder):
    found = encoder.regions([noise(0), noise(1)])
    assert found.shape == (2, 16, 32) and encoder.grid == (4, 4)
    np.testing.assert_allclose(np.linalg.norm(found, axis=2), 1, atol=1e-5)
    raw = encoder.embed_images([noise(0)], name="image.regions")[0]
    np.testing.assert_allclose(found[0], raw / np.linalg.norm(raw, axis=1)[:, None], atol=1e-6)


def test_an_encoder_says_in_one_line_what_it_lacks(encoder):
    with pytest.raises(InputError, match=r"^step 0 of run lacks text\.sentence for a heatmap of"):
        encoder.sentence_heatmap(noise(0), TEXT)
    config = toys.config()
    del config.towers.text, config.towers.image.heads.regions
    config.objectives, config.evaluators = {}, {}
    alone = Encoder(made(config))
    for call in (
        lambda: alone.regions([noise(0)]),
        lambda: alone.words(TEXT),
        lambda: alone.word_heatmap(noise(0), TEXT),
    ):
        with pytest.raises(InputError, match=r"lacks .*; it provides image\.pooled, image\.emb"):
            call()
    with pytest.raises(InputError, match=r"unknown text tower .*'text'; choices: none"):
        alone.tokenize([TEXT])
    assert alone.logit_scale is None


def test_sentences_look_where_their_contrast_looks():
    config = toys.config()
    config.towers.text.heads = {"embedding": 32, "sentence": 32}
    config.objectives = {
        "sentence_contrastive": {"sharpness": 3.0, "reads": {"valid": "sentences.valid"}}
    }
    config.inputs = {"sentences": {"num_sentences": 3}}
    config.evaluators = {}
    own = Encoder(made(config))
    text = "Small effusion.  No nodule seen."
    found = own.sentence_heatmap(noise(0), text)
    assert found.words == [("Small effusion.", 0, 15), ("No nodule seen.", 17, 32)]
    vectors = own.embed_texts(["Small effusion.", "No nodule seen."], name="text.sentence")
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = vectors @ own.regions([noise(0)])[0].T
    expected = np.exp(3 * cosines) / np.exp(3 * cosines).sum(1, keepdims=True)
    np.testing.assert_allclose(found.weights.reshape(2, -1), expected, atol=1e-5)
    assert own.logit_scale is None


# --- scales and places ----------------------------------------------------------------------------


def test_the_scale_of_the_contrast_goes_with_the_encoder(encoder, folder):
    assert encoder.logit_scale == pytest.approx(1 / 0.07, rel=1e-5)
    assert encoder.logit_bias is None
    moved = Encoder.load(folder)
    assert moved.logit_scale == encoder.logit_scale and moved.logit_bias is None
    assert moved.weights_sha256 == moved.trained.weights_sha256()


def test_the_scale_and_bias_of_siglip(tmp_path):
    config = toys.config()
    config.objectives = {"contrast": {"name": "siglip", "temperature": 0.1, "bias": -7.0}}
    own = Encoder(made(config))
    assert own.logit_scale == pytest.approx(10) and own.logit_bias == -7
    config.objectives = {
        "siglip": {"reads": {"text": "image.embedding"}},  # of images with images
        "global_contrastive": {"temperature": 0.5},
    }
    assert Encoder(made(config)).logit_scale == pytest.approx(2)


def test_encoders_come_from_the_hub_and_first_from_its_cache(folder, monkeypatch):
    asked = []

    def download(name, *, revision, ignore_patterns, local_files_only=False):
        asked.append((name, revision, local_files_only))
        if local_files_only and name == "a/new":
            raise errors.LocalEntryNotFoundError("not there")
        if name == "a/none":
            raise OSError("no connection\nat all")
        assert "*.bin" in ignore_patterns
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert mmrl.load("hf://a/b").step is None
    assert asked == [("a/b", None, True)]
    hub.fetch("hf://a/new@v1")
    assert asked[1:] == [("a/new", "v1", True), ("a/new", "v1", False)]
    with pytest.raises(InputError, match=r"hf://a/none is neither .* to be had: no connection$"):
        mmrl.load("hf://a/none")
    with pytest.raises(InputError, match="without steps; given: step=3"):
        mmrl.load("hf://a/b", step=3)
    for wrong in ("hf://", "hf://a", "hf://a/b/c", "hf://a/b@", "hf://a/..\\b"):
        with pytest.raises(InputError, match="expected hf://OWNER/NAME"):
            mmrl.load(wrong)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match=r"needs huggingface_hub: pip install huggingface_hub$"):
        mmrl.load("hf://a/b")
