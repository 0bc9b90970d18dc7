"""Token ids of reordered reports, put together from those of their words.

A report is cut into words and what stands between them. Where no piece of the vocabulary reaches
across a cut, the ids of the whole are those of its parts in a row, so that a report whose words
change places needs no new encoding: its ids change places with them. Each part is encoded once and
then known by a number. A cut that a piece might cross is found out, and such a text is encoded as
ever; `Segments.rows` says which.
"""

import itertools
import threading

import numpy as np

from mmrl.data.text.tokenizer import BOS, EOS, PAD, Tokenizer

_BLANK, _UNKNOWN = 128, 129  # classes of a segment's first and last character beside ASCII's own
_BEFORE = "ab(,.-/"  # what a segment without a blank before it may be encoded behind


def plain(text: str) -> bool:
    """Whether a text consists of what the parts' encodings are known to add up for."""
    return text.isascii() and text.replace("\n", " ").replace("\t", " ").isprintable()


class Segments:
    """Numbers for parts of texts, and the rows of token ids that sequences of such numbers make.

    A part that begins with a blank starts a word for the tokenizer; one without continues what
    stands before it. Part 0 is empty. Threads may share one.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._crossed = _crossed(tokenizer)
        self._numbers: dict[str, int] = {"": 0}
        self._adding = threading.Lock()
        # Per part: where its ids begin in `_ids`, how many, class of its first and last character.
        self._table = np.zeros((4, 1024), np.int32)
        self._table[2:, 0] = _BLANK
        self._ids = np.zeros(4096, np.int32)
        self._used = 0

    def number(self, part: str) -> int:
        """The number of a `plain` part; it may begin with one blank, and ends with none."""
        found = self._numbers.get(part)
        return self._add(part) if found is None else found

    def __len__(self) -> int:
        return len(self._numbers)

    def rows(
        self, parts: np.ndarray, counts: np.ndarray, length: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """What `Tokenizer.encode_batch` would make of the texts that runs of parts spell.

        Args:
          parts: i32[P], numbers of the parts of N texts, one text after the other.
          counts: i64[N], positive: how many parts each has.

        Returns:
          Tokens i32[N, length], and bool[N]: whether the row is that encoding. Where False, a piece
          of the vocabulary might reach from one part into the next.
        """
        starts, sizes, first, last = np.take(self._table, parts, axis=1)
        begins = np.cumsum(counts) - counts
        crossed = np.zeros(len(parts), bool)
        crossed[1:] = self._crossed[last[:-1], first[1:]]
        crossed[begins] = False  # the end of one text and the beginning of the next
        exact = ~np.logical_or.reduceat(crossed, begins)
        totals = np.add.reduceat(sizes, begins)
        kept = np.minimum(totals, length - 2)
        # Of all ids in a row, number i is i - before, of its part, and goes to column i - earlier.
        before, earlier = np.cumsum(sizes) - sizes, np.cumsum(totals) - totals
        number = np.arange(int(totals.sum()))
        ids = self._ids[np.repeat(starts - before, sizes) + number]
        column = number - np.repeat(earlier, totals)
        tokens = np.full((len(counts), length), PAD, np.int32)
        tokens[:, 0] = BOS
        columns = np.arange(length)
        tokens[(columns > 0) & (columns <= kept[:, None])] = ids[column < length - 2]
        tokens[np.arange(len(counts)), kept + 1] = EOS
        return tokens, exact

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
            self._numbers[part] = number  # at last: others read what it points to without waiting
            return number

    def _reserve(self, parts: int, ids: int) -> None:
        """Makes room; who still reads the arrays of before finds there all that it knows of."""
        if parts > self._table.shape[1]:
            self._table = np.concatenate([self._table, np.zeros_like(self._table)], axis=1)
        while ids > len(self._ids):
            self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])

    def _encoded(self, part: str) -> tuple[list[int], int, int]:
        """Ids of a part and the classes of its first and last character."""
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


def _crossed(tokenizer: Tokenizer) -> np.ndarray:
    """bool[130, 130]: whether a piece may reach from a character into the one after it.

    A character that is no piece of its own is spelled in bytes, which is left to the tokenizer.
    """
    table = np.zeros((130, 130), bool)
    table[_UNKNOWN] = table[:, _UNKNOWN] = True
    if not tokenizer.within_words:
        table[:] = True
    pieces = tokenizer.spelled
    for piece in pieces:
        for one, two in itertools.pairwise(piece):
            if one.isascii() and two.isascii():
                table[ord(one), ord(two)] = True
    for code in range(128):
        folded = ord(chr(code).lower())
        if chr(folded) not in pieces:
            table[code, :128] = table[:128, code] = True
    for upper in range(ord("A"), ord("Z") + 1):
        lower = upper + 32
        table[upper] |= table[lower]
        table[:, upper] |= table[:, lower]
    return table
