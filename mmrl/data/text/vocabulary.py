"""What a tokenizer needs of the model that cuts its texts into pieces."""

import itertools
from collections.abc import Sequence
from typing import Protocol

import numpy as np


class Vocabulary(Protocol):
    """Pieces with their ids, and the rule that cuts texts into them.

    A *mark* is an id that a text carries besides its pieces, at its begin or its end. A *chunk* is
    a run of characters without white space.

    Attributes:
      content: the file it was read from. suffix: of the name of such a file.
      size: number of ids; they are below it.
      begin, end: marks of every text; None: texts have none.
      pad: id where a row has no token; may be that of a mark.
      unknown, mask: id of what has no piece, and of a hidden piece; None: there is none.
      symbols: names of ids that are words of their own, such as "<mask>".
    """

    content: bytes
    suffix: str
    size: int
    begin: int | None
    end: int | None
    pad: int
    unknown: int | None
    mask: int | None
    symbols: tuple[str, ...]

    @property
    def by_chunk(self) -> bool:
        """Whether the ids of a text are those of its chunks, one after the other."""

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without marks."""

    def decode(self, ids: list[int]) -> str:
        """The text of ids below `size`."""

    def surfaces(self) -> Sequence[bytes]:
        """The UTF-8 bytes of each id, with the blank that separates it from another word."""

    def spans(self) -> np.ndarray | None:
        """bool[128, 128]: whether the ids of two neighbouring characters may depend on each other.

        Rows are codes of ASCII characters, columns of those after them. Where False, the ids of a
        text that is cut between the two are those of its parts. None: not known.
        """


def pairs(text: str) -> np.ndarray:
    """bool[128, 128], True for neighbouring ASCII characters of a text, in either case."""
    table = np.zeros((128, 128), bool)
    for one, two in itertools.pairwise(text):
        if one.isascii() and two.isascii():
            for first in (one.lower(), one.upper()):
                table[ord(first), [ord(two.lower()), ord(two.upper())]] = True
    return table
