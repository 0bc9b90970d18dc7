"""Boxes of images from a table beside the corpus, with one box per row."""

import contextlib
import itertools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mmrl import build
from mmrl.data.reading import tabular
from mmrl.data.reading.paths import OutsideError
from mmrl.data.reading.rows import lacks
from mmrl.types import Box, InputError, Reject

COLUMNS = {"image": "image", "label": "label", "x": "x", "y": "y", "w": "w", "h": "h"}
"""Field -> column. x and y are the upper left corner, w and h the size, in pixels."""

_ROUNDING = 1.0  # pixels by which a box may leave its image


class Row(NamedTuple):
    """A box as a table has it.

    Attributes:
      place: table and row, for messages.
      label: name of the finding.
      xyxy: in pixels; () if the numbers make up no box.
      problem: why the row is refused, or "".
    """

    place: str
    label: str
    xyxy: tuple[float, ...]
    problem: str


class Boxes:
    """The boxes of N images, a few dozen bytes each.

    Args:
      paths: the tables. A row whose numbers are all blank is no box.
      columns: field -> column, where a name differs from that in `COLUMNS`.
      images: N paths, as the tables have them.
      ids: of the N records, for rejects.
      known: paths of all images of the corpus, also of other splits and of refused records.
      find: image as a table has it -> its path, as in `images`.
      size: path of an image -> (height, width) in pixels; InputError when it cannot be read.
      source: name of the corpus, the prefix of ids.
      blank: whether a cell is blank.

    Attributes:
      rejects: the refused boxes; their records are kept. Reasons are bad_box (not four numbers, no
        area, no label, or more than one pixel outside of the image) and unknown_image.
      notes: what was decided for the user of the tables, one line each.

    Raises:
      InputError: a table cannot be used, or `columns` has an unknown field.
    """

    def __init__(
        self,
        paths: Sequence[str],
        columns: Mapping[str, str],
        *,
        images: Sequence[str],
        ids: Sequence[str],
        known: set[str],
        find: Callable[[str], str],
        size: Callable[[str], tuple[int, int]],
        source: str,
        blank: Callable[[str], bool],
    ) -> None:
        self._blank = blank
        found: dict[str, list[Row]] = {}
        self.rejects: list[Reject] = []
        self.notes: list[str] = []
        for given, row in itertools.chain.from_iterable(
            self._read(path, {**COLUMNS, **columns}) for path in paths
        ):
            image = os.path.normpath(given)
            if given and image not in known:
                with contextlib.suppress(OutsideError):  # no record has such an image
                    image = os.path.normpath(find(given))
            if image in known:
                found.setdefault(image, []).append(row)
            else:
                detail = f"{row.place}: {row.problem or f'no record has the image {given!r}'}"
                reason = "bad_box" if row.problem else "unknown_image"
                self.rejects.append(Reject(f"{source}:boxes#{row.place}", reason, detail))
        self._clipped = 0
        corners: list[tuple[float, ...]] = []
        labels: list[str] = []
        counts: list[int] = []
        for image, record in zip(images, ids, strict=True):
            before = len(labels)
            for row in found.get(os.path.normpath(image), ()):
                placed = row.problem or self._placed(row.xyxy, image, size)
                if isinstance(placed, str):
                    detail = f"{row.place}: {placed}"
                    self.rejects.append(Reject(f"{record}#{row.place}", "bad_box", detail))
                else:
                    corners.append(placed)
                    labels.append(row.label)
            counts.append(len(labels) - before)
        if self._clipped:
            self.notes.append(
                f"{self._clipped:,} boxes leave their image by at most a pixel and are cut off"
                " there"
            )
        self._ends = np.cumsum([0, *counts])
        self._xyxy = np.array(corners, np.float64).reshape(len(corners), 4)
        self._names = tuple(sorted(set(labels)))
        at = {name: number for number, name in enumerate(self._names)}
        self._labels = np.array([at[name] for name in labels], np.int32)

    def __getitem__(self, index: int) -> tuple[Box, ...]:
        """The boxes of image `index`."""
        chosen = slice(self._ends[index], self._ends[index + 1])
        pairs = zip(self._xyxy[chosen].tolist(), self._labels[chosen], strict=True)
        return tuple(Box((x0, y0, x1, y1), self._names[at]) for (x0, y0, x1, y1), at in pairs)

    def _placed(
        self, xyxy: tuple[float, ...], image: str, size: Callable[[str], tuple[int, int]]
    ) -> tuple[float, ...] | str:
        """The corners of a box within its image, or its problem."""
        try:
            height, width = size(image)
        except InputError as error:
            return str(error)
        x0, y0, x1, y1 = xyxy
        inside = max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height))
        if max(abs(a - b) for a, b in zip(xyxy, inside, strict=True)) > _ROUNDING:
            return (
                f"corners {x0:g}, {y0:g}, {x1:g}, {y1:g} in an image of {width} x {height} pixels"
            )
        self._clipped += inside != xyxy
        return inside

    def _read(self, path: str, columns: Mapping[str, str]) -> list[tuple[str, Row]]:
        """(image, box) of every row of a table that has one."""
        sheet = tabular.open_table(path)
        self.notes += sheet.notes
        missing = [name for name in columns.values() if name not in sheet.columns]
        if missing:
            message = lacks(path, missing, sheet.columns)
            raise InputError(f"{message}; box_columns renames columns{sheet.hint}")
        found = []
        for number, cells, problem in sheet.rows(list(columns.values())):
            place = f"{os.path.basename(path)} row {number}"
            image, label, *texts = (
                "" if self._blank(cell) else cell
                for cell in (cells.get(column, "").strip() for column in columns.values())
            )
            if problem or any(texts):
                xyxy = () if problem else _corners(texts)
                if not problem and not xyxy:
                    problem = f"x, y, w, h {texts}; expected four numbers and an area"
                elif not problem and not label:
                    problem = "blank label"
                found.append((image, Row(place, label, xyxy, problem)))
        return found


def check_columns(columns: Mapping[str, str]) -> None:
    """Raises InputError for a field that no box has."""
    for field in columns:
        if field not in COLUMNS:
            raise InputError(build.unknown("field in box_columns", field, COLUMNS))


def _corners(texts: Sequence[str]) -> tuple[float, ...]:
    """x0, y0, x1, y1 of x, y, w, h; () if they are no finite numbers, or without area."""
    try:
        x, y, width, height = map(float, texts)
    except ValueError:
        return ()
    corners = x, y, x + width, y + height
    return corners if all(map(math.isfinite, corners)) and width > 0 and height > 0 else ()
