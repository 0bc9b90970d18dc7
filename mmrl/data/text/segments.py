"""Token ids of reordered reports, concatenated from the ids of their words.

A report is cut into parts: its words, and what is between them. Where no piece of the vocabulary
can span two neighbouring parts, the ids of the text are the ids of its parts, one after the other.
When words are reordered, their ids are reordered with them, and the new text need not be tokenised.
Each part is tokenised once and then referred to by a number. `Segments.rows` reports the texts in
which a piece might span two parts; these have to be tokenised as a whole. So has every text of a
tokenizer whose vocabulary does not state what its pieces may span (`Vocabulary.spans`).
"""

import threading

import numpy as np

from mmrl.data.text.tokenizer import BatchEncoding, Tokenizer

# Classes of the first and last character of a part: an ASCII code, or one of these.
_BLANK, _UNKNOWN = 128, 129
_BEFORE = "ab(,.-/"  # characters after which a part without a leading blank can be tokenised


def plain(text: str) -> bool:
    """Whether a text consists of characters for which `Segments` is exact: printable ASCII."""
    return text.isascii() and text.replace("\n", " ").replace("\t", " ").isprintable()


class Segments:
    """Numbers the parts of texts, and turns sequences of these numbers into rows of token ids.

    A part with a leading blank begins a word of the tokenizer; one without continues the text
    before it. Part 0 is empty. Threads may share one.

    Attributes:
      usable: whether the tokenizer states what its pieces may span; if not, no row is exact.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        spans = tokenizer.vocabulary.spans()
        self.usable = spans is not None
        self._crossed = np.ones((130, 130), bool)  # by class: whether a piece may span both
        if spans is not None:
            self._crossed[:_UNKNOWN, :_UNKNOWN] = False
            self._crossed[:128, :128] = spans
        self._numbers: dict[str, int] = {"": 0}
        self._adding = threading.Lock()
        # Of each part: where its ids begin in `_ids`, their number, and the classes of its first
        # and last character.
        self._table = np.zeros((4, 1024), np.int32)
        self._table[2:, 0] = _BLANK
        self._ids = np.zeros(4096, np.int32)
        self._used = 0

    def number(self, part: str) -> int:
        """The number of a `plain` part; it may begin with one blank, but not end with one."""
        found = self._numbers.get(part)
        return self._add(part) if found is None else found

    def __len__(self) -> int:
        return len(self._numbers)

    def rows(
        self, parts: np.ndarray, counts: np.ndarray, length: int
    ) -> tuple[BatchEncoding, np.ndarray]:
        """The tokens of texts that are given by their parts.

        Args:
          parts: i32[P], numbers of the parts of N texts, one text after the other.
          counts: i64[N], positive, the number of parts of each text.

        Returns:
          What `Tokenizer.encode_batch` returns; and bool[N], whether it is that of the text. Where
          False, a piece of the vocabulary might span two parts.
        """
        starts, sizes, first, last = np.take(self._table, parts, axis=1)
        begins = np.cumsum(counts) - counts
        crossed = np.zeros(len(parts), bool)
        crossed[1:] = self._crossed[last[:-1], first[1:]]
        crossed[begins] = False  # between two texts
        exact = ~np.logical_or.reduceat(crossed, begins)
        totals = np.add.reduceat(sizes, begins)
        # Id i of all texts is number i - before of its part and number i - earlier of its text.
        before, earlier = np.cumsum(sizes) - sizes, np.cumsum(totals) - totals
        number = np.arange(int(totals.sum()))
        ids = self._ids[np.repeat(starts - before, sizes) + number]
        fits = number - np.repeat(earlier, totals) < self._tokenizer.room(length)
        return self._tokenizer.framed(ids[fits], totals, length), exact

    def _add(self, part: str) -> int:
        with self._adding:
            if part in self._numbers:
                return self._numbers[part]
            number = len(self._numbers)
            ids, first, last = self._encoded(part)
            self._reserve(number + 1, self._used + len(ids))
            self._ids[self._used : self._used + len(ids)] = ids
            self._table[:, number] = self._used, len(ids), first, last
            self._used += len(ids)
            self._numbers[part] = number  # last, because other threads read without the lock
            return number

    def _reserve(self, parts: int, ids: int) -> None:
        """Enlarges the arrays; threads that still read the old ones know only parts in these."""
        if parts > self._table.shape[1]:
            self._table = np.concatenate([self._table, np.zeros_like(self._table)], axis=1)
        while ids > len(self._ids):
            self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])

    def _encoded(self, part: str) -> tuple[list[int], int, int]:
        """Ids of a part, and the classes of its first and last character."""
        last = ord(part[-1])
        if part.startswith(" "):
            return self._tokenizer.pieces_of(part[1:]), _BLANK, last
        for before in _BEFORE:
            if not self._crossed[ord(before), ord(part[0])]:
                lead = self._tokenizer.pieces_of(before)
                both = self._tokenizer.pieces_of(before + part)
                if both[: len(lead)] == lead:
                    return both[len(lead) :], ord(part[0]), last
        return [], _UNKNOWN, _UNKNOWN
