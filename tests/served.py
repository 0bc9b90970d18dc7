"""A server in a thread of the test, with an encoder that needs no JAX."""

import contextlib
import dataclasses
import http.client
import json
import re
import threading
import time

import cv2
import numpy as np
import uvicorn

from mmrl.data.image import readers
from mmrl.data.image.images import Preprocess
from mmrl.data.text import reports
from mmrl.encoder import Heatmap
from mmrl.web import listening
from mmrl.web.address import LOOPBACK, Place, bind
from mmrl.web.embedding import Embedding
from mmrl.web.limits import Limits
from mmrl.web.service import Service
from tests.fakes import code

TOKEN = "a-token-of-the-tests"


@dataclasses.dataclass
class FakeEncoder:
    """Embeds images by a random projection, and texts by their letters.

    Attributes:
      seconds: that a batch takes.
      counts: numbers of items of the batches.
    """

    batch_size: int = 64
    logit_scale: float | None = 10.0
    seconds: float = 0.0
    counts: list = dataclasses.field(default_factory=list)
    names: tuple = ("image.embedding", "text.embedding")

    def with_batch_size(self, batch_size):
        return dataclasses.replace(self, batch_size=batch_size)

    def preprocess(self, items):
        made = Preprocess(16)
        return np.stack([made(readers.pixels(item)) for item in items])[..., None]

    def embed_images(self, items):
        pixels = self.preprocess(items).reshape(len(items), -1).astype(np.float32)
        projection = np.random.default_rng(0).normal(size=(pixels.shape[1], 32))
        return self._unit((pixels + 1) @ projection)

    def embed_texts(self, texts):
        return self._unit(np.stack([code(text) for text in texts]))

    def sentence_heatmap(self, image, text):
        places = reports.sentence_spans(text)
        return self._heatmap(image, [(text[a:b], a, b) for a, b in places])

    def word_heatmap(self, image, text):
        return self._heatmap(image, [(m.group(), *m.span()) for m in re.finditer(r"\w+", text)])

    def _heatmap(self, image, words):
        """Each looks at the region whose number is its own."""
        weights = np.full((len(words), 16), 0.01, np.float32)
        weights[range(len(words)), np.arange(len(words)) % 16] = 0.85
        geometry = Preprocess(16).geometry(*image.shape)
        return Heatmap(words, weights.reshape(-1, 4, 4), geometry, *image.shape, 16)

    def _unit(self, rows):
        self.counts.append(len(rows))
        time.sleep(self.seconds)
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


class SmallBatches(FakeEncoder):
    """Refuses more items than its batch has room for, since these would take several batches."""

    def _unit(self, rows):
        assert len(rows) <= self.batch_size
        return super()._unit(rows)


def service(encoder=None, **limits):
    return Service(Embedding(encoder or FakeEncoder()), Limits(**limits))


@contextlib.contextmanager
def serving(app, *, connections=64, seconds=5.0):
    """Serves an application at a free port of the loopback device; yields HOST:PORT."""
    bound = bind(LOOPBACK, 0)
    server = uvicorn.Server(listening.config(app, connections=connections, seconds=seconds))
    thread = threading.Thread(target=server.run, args=([bound],))
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield Place(bound, TOKEN, True).name
    finally:
        server.should_exit = True
        thread.join()
        bound.close()


def ask(address, path, body, *, token=TOKEN, kind="application/json", **headers):
    """A POST in a connection of its own: (status, JSON of the answer)."""
    content = json.dumps(body).encode() if isinstance(body, dict | list) else body
    given = {"content-type": kind, "authorization": f"Bearer {token}", **headers}
    status, text = _request(address, "POST", path, content, given)
    return status, json.loads(text)


def get(address, path, **headers):
    """A GET: (status, text of the answer)."""
    return _request(address, "GET", path, None, headers)


def _request(address, method, path, content, headers):
    connection = http.client.HTTPConnection(address, timeout=20)
    try:
        connection.request(method, path, content, headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def png(pixels):
    return cv2.imencode(".png", pixels)[1].tobytes()
