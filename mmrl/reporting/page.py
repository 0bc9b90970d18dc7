"""Self-contained pages: one HTML file of sections, made of parts, with embedded pictures.

Jinja2 templates escape every text. A page runs no script and reads nothing but itself, and its
policy forbids both, even if text from the data asked for it.
"""

import base64
import functools
import json
import math
import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import jinja2

from mmrl import files

LIMIT = 8 * 2**20
"""Bytes of pictures that one page holds at most, as base64."""
MOST_ROWS, MOST_TEXT = 1000, 50_000
"""Rows of a table and characters of a text that one page shows at most."""


@dataclass(frozen=True)
class Part:
    """What a section is made of; `template` draws it."""

    template: ClassVar[str]


@dataclass(frozen=True)
class Heading(Part):
    """A title within a section."""

    template: ClassVar[str] = "parts/heading.html"
    text: str


@dataclass(frozen=True)
class Note(Part):
    """A paragraph; `look` is "", "quiet" or "missing"."""

    template: ClassVar[str] = "parts/note.html"
    text: str
    look: str = "quiet"


@dataclass(frozen=True)
class Points(Part):
    """A list of lines."""

    template: ClassVar[str] = "parts/points.html"
    lines: Sequence[str]


@dataclass(frozen=True)
class Code(Part):
    """JSON, indented; a long one is cut, and says so."""

    template: ClassVar[str] = "parts/code.html"
    value: Any

    @property
    def text(self) -> str:
        """The JSON text."""
        whole = _json(self.value)
        if len(whole) <= MOST_TEXT:
            return whole
        return f"{whole[:MOST_TEXT]}\n[... {len(whole) - MOST_TEXT:,} more characters]"


@dataclass(frozen=True)
class Cell:
    """A text of a table with a mark: a coloured square before it, or bold type."""

    text: Any
    colour: str = ""
    strong: bool = False


@dataclass(frozen=True)
class Table(Part):
    """A table that scrolls sideways on small screens; columns `numbers` align right.

    Names of columns and cells are texts, numbers or `Cell`s.
    """

    template: ClassVar[str] = "parts/table.html"
    header: Sequence[Any]
    rows: Sequence[Sequence[Any]]
    numbers: Sequence[int] = ()

    @property
    def named(self) -> bool:
        """Whether any column has a name."""
        return any(self.header)


@dataclass(frozen=True)
class Folded(Part):
    """Parts that are hidden until the title is clicked."""

    template: ClassVar[str] = "parts/folded.html"
    title: str
    parts: Sequence[Part]


@dataclass(frozen=True)
class Picture(Part):
    """An embedded picture; `data` is its address, see `embedded`."""

    template: ClassVar[str] = "parts/picture.html"
    title: str
    data: str
    caption: str


@dataclass(frozen=True)
class Card:
    """A record: its picture ("" if it has none) and (name, text) rows."""

    title: str
    note: str
    data: str
    rows: Sequence[tuple[str, str]]

    @property
    def alt(self) -> str:
        """What the picture is, for readers who do not see it."""
        return f"image of {self.title}"


@dataclass(frozen=True)
class Cards(Part):
    """Records in a grid."""

    template: ClassVar[str] = "parts/cards.html"
    cards: Sequence[Card]


@dataclass(frozen=True)
class Shown:
    """An item of a `Gallery`: an embedded picture or a text, or both.

    Attributes:
      score: cosine with the query; None for the query itself.
      matches: whether it belongs to the query.
    """

    title: str
    data: str = ""
    text: str = ""
    score: float | None = None
    matches: bool = False


@dataclass(frozen=True)
class Query:
    """An item with what was found for it, best first."""

    item: Shown
    found: Sequence[Shown]

    @property
    def pictured(self) -> bool:
        """Whether pictures were found, which stand side by side."""
        return any(one.data for one in self.found)


@dataclass(frozen=True)
class Gallery(Part):
    """Queries with their nearest items."""

    template: ClassVar[str] = "parts/gallery.html"
    title: str
    caption: str
    queries: Sequence[Query]


@dataclass(frozen=True)
class Section:
    """A titled section; "None." stands where no parts are."""

    title: str
    parts: Sequence[Part] = field(default=())

    @property
    def anchor(self) -> str:
        """The id by which links find it."""
        return re.sub(r"\W+", "-", self.title.lower()).strip("-")


def write_page(path: str | os.PathLike[str], *, title: str, sections: Sequence[Section]) -> None:
    """Writes a page atomically."""
    files.write(path, _templates().get_template("page.html").render(title=title, sections=sections))


@functools.cache
def _templates() -> jinja2.Environment:
    found = jinja2.Environment(
        loader=jinja2.PackageLoader("mmrl.reporting"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters["number"] = number
    return found


def embedded(data: bytes, kind: str) -> str:
    """A picture as an address that holds it; `kind` is "png" or "jpeg"."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def number(value: Any) -> str:
    """Formats floats with three decimals, or one from 10 up; None and NaN as a dash."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "\N{EN DASH}"
    if not isinstance(value, float) or math.isinf(value):
        return str(value)
    if 0 < abs(value) < 0.001:
        return f"{value:.1e}"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def brief(value: Any) -> str:
    """A value of a config on one line; a dash where a config does not have it."""
    return "\N{EN DASH}" if value is None else str(value)


def table(
    header: Sequence[Any], rows: Iterable[Sequence[Any]], *, numbers: Sequence[int] = ()
) -> list[Part]:
    """A `Table`; nothing without rows. A long one is cut, and a note says so."""
    every = list(rows)
    parts: list[Part] = [Table(header, every[:MOST_ROWS], numbers)] if every else []
    if len(every) > MOST_ROWS:
        parts.append(Note(f"{len(every) - MOST_ROWS:,} more rows are left out of this page."))
    return parts


def flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Flattens nested mappings to rows such as ("packages.jax", "0.8")."""
    rows: list[tuple[str, Any]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            rows += flat(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", value))
    return rows


class Pictures:
    """Embeds PNG files until a page holds `limit` bytes of them; names the others."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._left = limit

    def part(
        self, title: str, path: str | os.PathLike[str] | None, caption: str
    ) -> tuple[Part, ...]:
        """A picture with its caption, or a notice if there is none.

        Args:
          path: of the PNG file; None: the caption is the reason why there is none.
        """
        if path is None:
            return Heading(title), _missing(caption or "no reason was given")
        file = pathlib.Path(path)
        if not file.is_file():
            return Heading(title), _missing(f"no file {file.name}. {caption}")
        data = embedded(file.read_bytes(), "png")
        if not self.take(len(data)):
            where = f"{file.parent.name}/{file.name}"
            return Heading(title), Note(
                f"{where} is not embedded, because this page would become too large. {caption}",
                "missing",
            )
        return (Picture(title, data, caption),)

    def take(self, size: int) -> bool:
        """Whether a picture of `size` bytes still fits; if so, it counts."""
        fits = size <= self._left
        self._left -= size if fits else 0
        return fits


def _missing(reason: str) -> Note:
    return Note(f"Missing figure: {reason}", "missing")


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)
