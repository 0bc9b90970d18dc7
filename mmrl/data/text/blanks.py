"""The rule of blank cells: which texts stand for "there is nothing", in every column alike."""

from collections.abc import Sequence

BLANK = (
    "nan", "-nan", "na", "#na", "n/a", "#n/a", "#n/a n/a", "<na>", "none", "null",
    "1.#ind", "-1.#ind", "1.#qnan", "-1.#qnan", "not given", "not available",
)  # fmt: skip
"""What pandas reads as missing, and two more; compared in lower case.

The empty text and white space are always blank.
"""


class Blanks:
    """Decides whether a cell is blank.

    Args:
      words: the texts that are blank, besides the empty one.
    """

    def __init__(self, words: Sequence[str] | str = BLANK) -> None:
        given = (words,) if isinstance(words, str) else words
        self._words = frozenset(word.strip().casefold() for word in given) | {""}
        self._longest = 2 * max(map(len, self._words))  # folding may shorten a text

    def __call__(self, cell: str) -> bool:
        """Whether a cell is blank."""
        text = cell.strip()
        return len(text) <= self._longest and text.casefold() in self._words


is_blank = Blanks()
