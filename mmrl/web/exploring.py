"""The pages of `python -m mmrl.explore`: search, where words look, neighbours, changed reports."""

import asyncio
import functools
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import cv2
import jinja2
import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from mmrl.data.image import images
from mmrl.encoder import Encoder
from mmrl.web.guard import Guard, raised
from mmrl.web.limits import Admission, Limits, Refusal, check_text
from mmrl.web.records import Neighbours, Records

T = TypeVar("T")

LIMITS = Limits(body=2**20, held=2**24, waiting=64)
HITS = {"image": 12, "text": 6}
PAGE = 24  # images that the page loads at a time
_THUMBNAIL, _IMAGE = 128, 1024  # pixels of the long side
_KEPT = 512  # thumbnails in memory
_EXAMPLE = "Small left pleural effusion."
_WORD = re.compile(r"\w+(?:['\u2019-]\w+)*")
_FOLDER = Path(__file__).parent
_STATIC = {"explore.js": "text/javascript", "explore.css": "text/css"}
_POINTING = {
    "words": "Click a word to see where it looks.",
    "sentences": (
        "Click a word to see where its sentence looks: this encoder points with whole sentences."
    ),
    "": "This encoder has no heads for regions and words or sentences, so nothing points.",
}


class Explorer:
    """Answers the page about the records of a run.

    Args:
      encoder: of the run.
      records: that the page shows.
      neighbours: of their embeddings.
      title: of the page. shown: a line about what it shows.
    """

    def __init__(
        self, encoder: Encoder, records: Records, neighbours: Neighbours, *, title: str, shown: str
    ) -> None:
        self._encoder = encoder.with_batch_size(1)
        self._records, self._neighbours = records, neighbours
        self._title, self._shown = title, shown
        self._worker = ThreadPoolExecutor(1, "explore")  # one question after the other
        self._admission = Admission(LIMITS)
        self._thumbnail = functools.lru_cache(_KEPT)(functools.partial(self._png, _THUMBNAIL))
        self.points = pointing(encoder)

    def app(self, token: str, *, hosts: set[str], cookie: str) -> Starlette:
        """The application, see `Guard` for the arguments."""
        posts: dict[str, tuple[Callable[..., Any], dict[str, type]]] = {
            "/search": (self.search, {"text": str}),
            "/neighbours": (self.neighbours, {"row": int}),
            "/looks": (self.looks, {"row": int}),
            "/choice": (self.choice, {"row": int, "text": str}),
        }
        gets: dict[str, Callable[[int], Any]] = {
            "/records/{row:int}": self.listed,
            "/record/{row:int}": self.record,
            "/image/{row:int}": functools.partial(self._png, _IMAGE),
            "/thumbnail/{row:int}": self._thumbnail,
        }
        return Starlette(
            routes=[
                Route("/", self._page, methods=["GET"]),
                Route("/static/{name}", _static, methods=["GET"]),
                *(Route(path, self._get(work), methods=["GET"]) for path, work in gets.items()),
                *(Route(path, self._post(*one), methods=["POST"]) for path, one in posts.items()),
            ],
            middleware=[Middleware(Guard, token=token, hosts=hosts, cookie=cookie)],
            exception_handlers={HTTPException: raised},
        )

    def compile(self) -> None:
        """Asks what the page will ask, so that its first answers are quick, too."""
        # In the thread that works later, as JAX compiles for the settings of a thread.
        self._worker.submit(self.search, _EXAMPLE).result()
        self._worker.submit(self.choice, 0, _EXAMPLE).result()
        self._worker.submit(self.looks, 0).result()

    # --- what the page asks ----------------------------------------------------------------------

    def listed(self, row: int) -> dict[str, Any]:
        """Up to `PAGE` records from a row on."""
        rows = range(row, min(row + PAGE, len(self._records)))
        return {"records": [self._short(one) for one in rows]}

    def record(self, row: int) -> dict[str, Any]:
        """A record: its report, and its boxes in parts of the width and height of the image."""
        examples, position = self._place(row)
        height, width = examples.corpus.image(position).shape[:2]
        size = np.array([width, height, width, height])
        boxes = [
            {"label": box.label.replace("_", " "), "xyxy": (np.array(box.xyxy) / size).tolist()}
            for box in examples.record(position).boxes
            if box.image == 0
        ]
        return {"id": examples.ids[position], "text": examples.texts[position], "boxes": boxes}

    def search(self, text: str) -> dict[str, Any]:
        """The images that are nearest to a text."""
        check_text(text, LIMITS.characters, "the text")
        return self._hits(self._encoder.embed_texts([text]), "image")

    def neighbours(self, row: int) -> dict[str, Any]:
        """The reports that are nearest to an image, with their texts."""
        return self._hits(self._embedding(row), "text")

    def looks(self, row: int) -> dict[str, Any]:
        """Where the words of the report of a record look.

        Returns:
          words: (word, start, end) in the report. maps: the map of each word. labels, weights: of
          each map what it belongs to, and its weights, row by row of `grid`. square: corners of
          what the encoder sees, in parts of the width and height of the image.
        """
        examples, position = self._place(row)
        text = examples.texts[position]
        if not self.points:
            return {"words": [], "maps": [], "labels": [], "weights": []}
        image = examples.corpus.image(position)
        if self.points == "words":
            heat = self._encoder.word_heatmap(image, text)
            words, maps = heat.words, list(range(len(heat.words)))
        else:
            heat = self._encoder.sentence_heatmap(image, text)
            words, maps = [], []
            for number, (_, start, end) in enumerate(heat.words):
                for found in _WORD.finditer(text, start, end):
                    words.append((found.group(), *found.span()))
                    maps.append(number)
        x0, y0, x1, y1 = _square(heat)
        return {
            "words": words,
            "maps": maps,
            "labels": [label for label, *_ in heat.words],
            "weights": np.round(heat.weights.reshape(len(heat.words), -1), 6).tolist(),
            "grid": heat.weights.shape[1:],
            "square": [x0 / heat.width, y0 / heat.height, x1 / heat.width, y1 / heat.height],
        }

    def choice(self, row: int, text: str) -> dict[str, Any]:
        """The cosines of an image with its report and another; how far each would be chosen.

        The shares are the softmax of the cosines times `logit_scale`, None without one.
        """
        check_text(text, LIMITS.characters, "the text")
        examples, position = self._place(row)
        # One by one: the batch of the encoder has one row.
        texts = self._encoder.embed_texts([examples.texts[position], text])
        cosines = (self._embedding(row) @ texts.T)[0].astype(float)
        scale = self._encoder.logit_scale
        shares: list[float | None] = [None, None]
        if scale is not None:
            powers = np.exp(scale * (cosines - cosines.max()))
            shares = (powers / powers.sum()).tolist()
        return {"cosines": cosines.tolist(), "shares": shares}

    # --- parts -----------------------------------------------------------------------------------

    def _place(self, row: int) -> Any:
        try:
            return self._records.place(row)
        except IndexError:
            most = len(self._records) - 1
            raise Refusal(404, f"there is no record {row}; expected 0 to {most}") from None

    def _short(self, row: int) -> dict[str, Any]:
        examples, position = self._place(row)
        return {"row": row, "id": examples.ids[position]}

    def _hits(self, queries: np.ndarray, which: str) -> dict[str, Any]:
        scores, rows = self._neighbours.nearest(queries, HITS[which], which)
        hits = []
        for score, row in zip(scores[0].tolist(), rows[0].tolist(), strict=True):
            if row >= 0:
                examples, position = self._place(row)
                hits.append({**self._short(row), "score": score, "text": examples.texts[position]})
        return {"hits": hits}

    def _embedding(self, row: int) -> np.ndarray:
        examples, position = self._place(row)
        return self._encoder.embed_images([examples.corpus.image(position)])

    def _png(self, most: int, row: int) -> bytes:
        """The image of a row with a long side of at most `most` pixels."""
        examples, position = self._place(row)
        image = images.to_uint8(examples.corpus.image(position), examples.preprocess.max_value)
        scale = most / max(image.shape[:2])
        if scale < 1:
            size = tuple(max(1, round(side * scale)) for side in image.shape[1::-1])
            image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        pixels = image if image.ndim == 2 else np.ascontiguousarray(image[..., ::-1])  # blue first
        return cv2.imencode(".png", pixels)[1].tobytes()

    # --- HTTP ------------------------------------------------------------------------------------

    def _get(self, work: Callable[[int], Any]) -> Callable[..., Any]:
        async def answer(request: Request) -> Response:
            with self._admission.admit():
                return _response(await self._run(work, row=request.path_params["row"]))

        return answer

    def _post(self, work: Callable[..., Any], expected: dict[str, type]) -> Callable[..., Any]:
        async def answer(request: Request) -> Response:
            with self._admission.admit() as admitted:
                return _response(await self._run(work, **await admitted.json(request, expected)))

        return answer

    async def _run(self, work: Callable[..., T], **given: Any) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._worker, functools.partial(work, **given))

    async def _page(self, request: Request) -> Response:
        page = _templates().get_template("explore.html")
        scale = self._encoder.logit_scale
        return HTMLResponse(
            page.render(
                title=self._title,
                shown=self._shown,
                count=len(self._records),
                characters=LIMITS.characters,
                example=_EXAMPLE,
                pointing=_POINTING[self.points],
                choice=""
                if scale is None
                else f"Chosen is the softmax of the cosines times {scale:.3g}, the scale of its "
                "contrast of images and reports.",
            )
        )


def pointing(encoder: Encoder) -> str:
    """Whether words or sentences point at regions: "words", "sentences" or ""."""
    if "image.regions" not in encoder.names:
        return ""
    for what, name in (("words", "text.words"), ("sentences", "text.sentence")):
        if name in encoder.names:
            return what
    return ""


def _square(heat: Any) -> tuple[float, float, float, float]:
    """Corners of the square that the encoder sees, in pixels of the original image."""
    own = heat.geometry
    return (
        -own.offset_x / own.scale_x,
        -own.offset_y / own.scale_y,
        (heat.size - own.offset_x) / own.scale_x,
        (heat.size - own.offset_y) / own.scale_y,
    )


def _response(found: Any) -> Response:
    if isinstance(found, bytes):
        return Response(found, media_type="image/png")
    return JSONResponse(found)


async def _static(request: Request) -> Response:
    name = request.path_params["name"]
    if name not in _STATIC:
        raise Refusal(404, "there is no such file")
    content = (_FOLDER / "static" / name).read_bytes()
    return Response(content, media_type=_STATIC[name])


@functools.cache
def _templates() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
