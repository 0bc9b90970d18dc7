"""Texts: the report of each record, or a part of it."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from mmrl.data import stall
from mmrl.data.inputs.base import Input, Place, Reader, Rows, Shapes
from mmrl.data.text.excerpts import Excerpts
from mmrl.types import InputError


def text_length(name: str, tower: Mapping[str, Any], data: Mapping[str, Any]) -> int:
    """The length L of the texts of an input: its own option `max_tokens`, or that of the tower.

    Raises:
      InputError: fewer than three tokens, or more than the tower reads.
    """
    most = int(tower["length"])
    length = int(data.get("max_tokens", 0)) or most
    if not 3 <= length <= most:
        raise InputError(
            f"config.inputs.{name}.max_tokens={length}; expected 3 to the {most} tokens that its "
            "tower reads, or 0 for all of them"
        )
    return length


class Text(Input):
    """tokens i32[n, L] and mask bool[n, L]; L is `max_tokens`, by default that of the tower.

    Args: as of Input. `sections` are those of the report, `text` the part of it that training
      reads; evaluation reads all. `separator` stands between the sections. Unless `required`,
      records without such a text have `present` False and the tokens of an empty one.
    """

    kind: ClassVar[str] = "text"
    tower_options: ClassVar[tuple[str, ...]] = ("tokenizer", "tokenizer_model", "vocab_size")
    options: ClassVar[tuple[str, ...]] = (
        "sections",
        "text",
        "max_tokens",
        "separator",
        "required",
    )
    required: ClassVar[bool] = True

    def __init__(self, name: str, tower: Mapping[str, Any], data: Mapping[str, Any]) -> None:
        super().__init__(name, tower, data)
        self.length, self.sections = text_length(name, tower, data), tuple(data["sections"])
        self.optional = not data.get("required", True)
        self.separator = str(data.get("separator", " "))
        if self.separator != " " and data["text"] != "report":
            raise InputError(
                f"config.inputs.{name}.separator={self.separator!r} with text={data['text']}; "
                "parts of a report have no separator: expected text=report"
            )

    def shapes(self) -> Shapes:
        """See Input."""
        shapes: dict[str, Any] = {
            "tokens": ((self.length,), np.int32),
            "mask": ((self.length,), np.bool_),
        }
        return shapes | ({"present": ((), np.bool_)} if self.optional else {})

    def open(self, place: Place) -> Reader:
        """See Input."""
        return Texts(self, place)


def _separated(text: str, cuts: Sequence[int], separator: str) -> str:
    """A text with `separator` in place of the blanks between its sections."""
    starts, ends = [0, *(cut + 1 for cut in cuts)], [*cuts, len(text)]
    return separator.join(text[a:b] for a, b in zip(starts, ends, strict=True))


class Texts:
    """Reads and tokenises texts."""

    def __init__(self, own: Text, place: Place) -> None:
        self._own, self._place = own, place
        choice = own.data["text"] if place.train else "report"
        texts, cuts = place.corpus.texts_of(own.sections)
        if own.separator != " ":
            each = zip(texts, cuts, strict=True)
            texts, cuts = [_separated(*one, own.separator) for one in each], [()] * len(texts)
        self._excerpts = Excerpts(texts, place.corpus.groups, cuts, choice, place.seed)

    def read(self, rows: Rows) -> tuple[list[str], list[int]]:
        """The text of each row, and its duplicate group."""
        texts, groups = zip(*(self._excerpts(i, rows.step) for i in rows.indices), strict=True)
        return list(texts), list(groups)

    def __call__(self, rows: Rows, made: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Tokens, mask and duplicate groups of the rows."""
        texts, groups = self.read(rows)
        assert self._place.tokenizer is not None
        self._place.mark(stall.TOKENISE, rows.indices[0])
        tokens, mask, _ = self._place.tokenizer.encode_batch(texts, self._own.length)
        arrays = {"tokens": tokens, "mask": mask, "group": np.asarray(groups, np.int32)}
        if self._own.optional:
            arrays["present"] = np.array([bool(text) for text in texts])
        return arrays
