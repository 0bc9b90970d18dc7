"""The service of `python -m mmrl.serve`: embeddings of images and texts over HTTP."""

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Awaitable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mmrl.web import embedding
from mmrl.web.batching import Batcher
from mmrl.web.guard import Gone, Guard, raised
from mmrl.web.limits import JSON, Admission, Admitted, Limits, Refusal, check_text, media_type

T = TypeVar("T")

DECODERS = 2  # images that are decoded at a time; each may take some hundred MiB
RAW = ("image/", "application/dicom", "application/octet-stream")
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """What /metrics states; it names routes, and nothing that was asked.

    Attributes:
      answered: number of requests that have ended.
    """

    def __init__(self, admission: Admission, batchers: Sequence[tuple[str, Batcher]]) -> None:
        self.registry, self.answered = CollectorRegistry(), 0
        own: dict[str, Any] = {"registry": self.registry}
        self._requests = Counter(
            "mmrl_requests", "Requests that have ended.", ["route", "status"], **own
        )
        self._seconds = Histogram(
            "mmrl_request_seconds", "Time of a request.", ["route"], buckets=_SECONDS, **own
        )
        self._batches = Histogram(
            "mmrl_batch_items",
            "Items of a batch.",
            ["kind"],
            buckets=embedding.SIZES,
            **own,
        )
        waiting = Gauge("mmrl_waiting_requests", "Requests that are worked on or wait.", **own)
        waiting.set_function(lambda: admission.requests)
        held = Gauge("mmrl_held_bytes", "Bytes of bodies that are held.", **own)
        held.set_function(lambda: admission.held)
        queued = Gauge("mmrl_queued_items", "Items that wait for a batch.", ["kind"], **own)
        for kind, batcher in batchers:
            queued.labels(kind).set_function(batcher.__len__)
            batcher.seen = self._batches.labels(kind).observe

    def seen(self, route: str, status: int, seconds: float) -> None:
        """Counts a request that has ended."""
        self.answered += 1
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        """All metrics in the text format of Prometheus."""
        return generate_latest(self.registry)


class Service:
    """Embeds the images and texts of concurrent requests in common batches.

    Args:
      limits: of requests.
      seconds: how long the first item of a batch waits for others.
      facts: what /health states.
    """

    def __init__(
        self,
        embedder: embedding.Embedding,
        limits: Limits,
        *,
        seconds: float = 0.003,
        facts: dict[str, Any] | None = None,
    ) -> None:
        self._embedder, self.limits, self._facts = embedder, limits, facts or {}
        self._device = ThreadPoolExecutor(1, "device")
        self._decoders = ThreadPoolExecutor(DECODERS, "decoder")
        options: dict[str, Any] = {"most": embedder.most, "seconds": seconds}
        self._images = Batcher(embedder.images, self._device, **options)
        self._texts = Batcher(embedder.texts, self._device, **options)
        self.admission = Admission(limits)
        self.metrics = Metrics(self.admission, (("images", self._images), ("texts", self._texts)))

    def compile(self) -> int:
        """Compiles for all sizes of batches; returns D."""
        # In the thread that works later, as JAX compiles for the settings of a thread.
        return self._device.submit(self._embedder.compile).result()

    def app(self, token: str) -> Starlette:
        """The application; `token` is asked for everywhere but at /health."""
        posts = {
            "/embed/image": (self._embed_image, {"image"}),
            "/embed/text": (self._embed_text, {"text"}),
            "/similarity": (self._similarity, {"image", "text"}),
        }
        return Starlette(
            routes=[
                Route("/health", self._health, methods=["GET"]),
                Route("/metrics", self._metrics, methods=["GET"]),
                *(
                    Route(path, answer, methods=["POST"])
                    for path, (answer, kinds) in posts.items()
                    if kinds <= set(self._embedder.kinds)
                ),
            ],
            middleware=[
                Middleware(Guard, token=token, open_paths=("/health",), seen=self.metrics.seen)
            ],
            exception_handlers={HTTPException: raised},
            lifespan=self._lifespan,
        )

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        batchers = (self._images, self._texts)
        for batcher in batchers:
            batcher.start()
        yield
        for batcher in batchers:
            await batcher.stop()
        for pool in (self._decoders, self._device):
            pool.shutdown(cancel_futures=True)

    async def _health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok", **self._facts})

    async def _metrics(self, request: Request) -> Response:
        return Response(self.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    async def _embed_image(self, request: Request) -> Response:
        with self.admission.admit() as admitted:
            kind = media_type(request)
            if kind.startswith(RAW):
                images: list[Any] = [await admitted.body(request)]
            elif kind == JSON:
                images = (await self._lists(request, admitted, "images"))["images"]
            else:
                raise Refusal(415, f"Content-Type is neither {JSON} nor that of an image")
            rows = await self._answer(request, self._embed_images(images))
            return _embeddings(rows)

    async def _embed_text(self, request: Request) -> Response:
        with self.admission.admit() as admitted:
            texts = (await self._lists(request, admitted, "texts"))["texts"]
            rows = await self._answer(request, self._embed_texts(texts))
            return _embeddings(rows)

    async def _similarity(self, request: Request) -> Response:
        with self.admission.admit() as admitted:
            given = await self._lists(request, admitted, "images", "texts")
            cosine = await self._answer(request, self._cosine(given["images"], given["texts"]))
            scale = self._embedder.encoder.logit_scale
            return JSONResponse({"cosine": cosine.tolist(), "logit_scale": scale})

    async def _lists(
        self, request: Request, admitted: Admitted, *expected: str
    ) -> dict[str, list[Any]]:
        """The values of a JSON body, lists of at most `items` texts."""
        given = await admitted.json(request, dict.fromkeys(expected, list))
        for key, values in given.items():
            if not 1 <= len(values) <= self.limits.items:
                raise Refusal(
                    413 if values else 400,
                    f"{len(values)} {key}; expected 1 to {self.limits.items}",
                )
            if not all(isinstance(value, str) for value in values):
                raise Refusal(400, f"{key} holds something else than texts")
        return given

    async def _embed_images(self, images: list[Any]) -> np.ndarray:
        loop = asyncio.get_running_loop()
        prepare = functools.partial(embedding.prepare, self._embedder.encoder, self.limits)
        prepared = []
        for number in range(len(images)):  # what has been decoded is not kept as bytes, too
            image, images[number] = images[number], None
            prepared.append(await loop.run_in_executor(self._decoders, prepare, image, number))
            del image
        return await self._images.submit(prepared)

    async def _cosine(self, images: list[Any], texts: list[str]) -> np.ndarray:
        of_texts = await self._embed_texts(texts)
        return (await self._embed_images(images)) @ of_texts.T

    async def _embed_texts(self, texts: list[str]) -> np.ndarray:
        for number, text in enumerate(texts):
            check_text(text, self.limits.characters, f"text {number}")
        return await self._texts.submit(texts)

    async def _answer(self, request: Request, work: Awaitable[T]) -> T:
        """The result of `work`, unless it takes too long or the sender leaves.

        Raises:
          Refusal: 503, it takes too long. Gone: the sender has left.
        """
        working = asyncio.ensure_future(work)
        gone = asyncio.ensure_future(_disconnected(request))
        try:
            done, _ = await asyncio.wait(
                (working, gone), timeout=self.limits.seconds, return_when=asyncio.FIRST_COMPLETED
            )
            if working in done:
                return working.result()
            if gone in done:
                raise Gone
            raise Refusal(503, f"the answer took longer than {self.limits.seconds:g} seconds")
        finally:
            working.cancel()
            gone.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _embeddings(rows: np.ndarray) -> Response:
    return JSONResponse({"embeddings": rows.tolist()})
