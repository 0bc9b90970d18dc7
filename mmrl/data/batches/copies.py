"""Perturbed copies of a batch's reports, as token ids.

Kinds that reorder words are drawn for the whole batch (`perturb.batched`) and their ids put
together from those of the words (`segments`); the others edit the text of one report after the
other (`perturb.perturb`). What a copy holds depends on its report, its kind and its seed alone.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from mmrl.data import counter, perturb
from mmrl.data.perturb import batched
from mmrl.data.perturb.report import ParsedReport
from mmrl.data.text.segments import Segments, plain
from mmrl.data.text.tokenizer import PAD, Tokenizer

_IS_ORDER = np.array(
    [k in perturb.ORDER_KINDS + perturb.SENTENCE_ORDER_KINDS for k in perturb.KINDS]
)
_NEEDS_TAGS = _IS_ORDER & np.array(["nouns" in kind for kind in perturb.KINDS])
_TAG = {tag: number for number, tag in enumerate(batched.TAGS)}
_FURTHER = 2**32
"""Numbers from here on of a stream seed further streams; those below are drawn from."""

_CACHED_BYTES = 64 * 2**20
_CACHED_PARTS = 1 << 18

# Rows of a layout; the last four are fields of `batched.Words`.
_FRAME, _INITIAL, _INNER, _STARTS, _KEY, _TAGS, _LOW, _HIGH = range(8)


class _Layout(NamedTuple):
    """A report as numbers.

    Attributes:
      columns: i32[8, W + 1], one column per word and one for what follows the last: the part (see
        `Segments`) before the word; the word's part at the start of a chunk and within one;
        whether it starts a chunk; then the fields of `batched.Words`.
      plain: whether its parts' ids add up to those of the text.
      tagged: whether the tags are there.
    """

    columns: np.ndarray
    plain: bool
    tagged: bool


class _Memory:
    """Reports taken apart before, and the parts they share."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.segments = Segments(tokenizer)
        self._layouts: dict[str, _Layout] = {}
        self._bytes = 0

    @property
    def full(self) -> bool:
        """Whether there are more parts than should be kept."""
        return len(self.segments) > _CACHED_PARTS

    def layout(self, text: str, tagged: bool) -> _Layout:
        """The report as numbers; kept until the memory is full, and none given up for another."""
        found = self._layouts.get(text)
        if found is None or (tagged and not found.tagged):
            made = self._take_apart(perturb.parse(text), tagged)
            if found is None:
                self._bytes += made.columns.nbytes
            if found is not None or self._bytes <= _CACHED_BYTES:
                self._layouts[text] = made
            return made
        return found

    def _take_apart(self, report: ParsedReport, tagged: bool) -> _Layout:
        count = len(report.words)
        columns = np.zeros((8, count + 1), np.int32)
        keys: dict[str, int] = {}
        columns[_KEY, :count] = [keys.setdefault(key, len(keys)) for key in report.keys]
        if tagged:
            columns[_TAGS, :count] = list(map(_TAG.__getitem__, report.tags))
        columns[_LOW] = place = np.arange(count + 1)
        columns[_HIGH] = place + 1
        for low, high in report.sentence_words:
            columns[_LOW, low:high], columns[_HIGH, low:high] = low, high
        if is_plain := plain(report.text):
            self._number_parts(report, columns)
        return _Layout(columns, is_plain, tagged)

    def _number_parts(self, report: ParsedReport, columns: np.ndarray) -> None:
        number, frames, words = self.segments.number, report.pieces[0::2], report.words
        starts = [frame[-1:].isspace() for frame in frames]
        starts[0] |= not frames[0]  # a text begins a chunk
        for slot, frame in enumerate(frames):
            if frame != " " and (body := frame.strip()):
                begins = slot == 0 or frame[0].isspace()
                columns[_FRAME, slot] = number(" " + body if begins else body)
        columns[_STARTS] = starts
        columns[_INITIAL, :-1] = [number(" " + word) for word in words]
        if not all(starts[:-1]):
            columns[_INNER, :-1] = list(map(number, words))


class Copies:
    """Makes K perturbed copies of each of n reports; see `__call__`. Threads may share one.

    Args:
      length: of the token rows.
    """

    def __init__(self, tokenizer: Tokenizer, length: int) -> None:
        self._tokenizer, self._length = tokenizer, length
        self._memory = _Memory(tokenizer)

    def __getstate__(self) -> dict[str, Any]:
        # A worker process learns the reports that it reads.
        return {"tokenizer": self._tokenizer, "length": self._length}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def __call__(
        self,
        texts: Sequence[str],
        tokens: np.ndarray,
        kinds: np.ndarray,
        seeds: np.ndarray,
        mark: Callable[[int], None] = lambda row: None,
    ) -> dict[str, np.ndarray]:
        """Copies of reports.

        Args:
          texts, tokens: n reports and what they are tokenised to, i32[n, L].
          kinds: i64[n, K], indices into perturb.KINDS.
          seeds: u64[n].
          mark: is told the row whose report is looked at next.

        Returns:
          perturbed_tokens i32[n, K, L], perturbed_mask bool[n, K, L], perturbed_valid bool[n, K]
          (False where the kind cannot change the report, or changes only what truncation cut off;
          the copy is then the report) and perturbation i8[n, K], the kinds.
        """
        memory = self._remembered()
        copies = np.repeat(tokens[:, None], kinds.shape[1], axis=1)
        own = counter.bits(seeds[:, None], _FURTHER + np.arange(kinds.shape[1]))  # n K
        written: list[tuple[int, int, str]] = []
        by_order = _IS_ORDER[kinds]
        tagged = _NEEDS_TAGS[kinds].any(axis=1).tolist()
        layouts: list[_Layout | None] = [None] * len(texts)
        for row in np.flatnonzero(by_order.any(axis=1)).tolist():
            mark(row)
            layouts[row] = made = memory.layout(texts[row], tagged[row])
            by_order[row] &= made.columns.shape[1] <= batched.MAX_WORDS  # longer: like the others
        for rows, numbers in _blocks(layouts, kinds, by_order):
            batch = _Reordered(texts, layouts, rows, kinds[rows, numbers], own[rows, numbers])
            ids, exact = batch.tokens(memory.segments, self._length)
            whole = batch.changed & exact
            copies[rows[whole], numbers[whole]] = ids[whole]
            for copy in np.flatnonzero(batch.changed & ~exact).tolist():
                written.append((rows[copy], numbers[copy], batch.text(copy)))
        for row, copy in np.argwhere(~by_order).tolist():
            mark(row)
            rng = np.random.default_rng(int(own[row, copy]))
            copy_text = perturb.perturb(texts[row], perturb.KINDS[kinds[row, copy]], rng)
            if copy_text is not None:
                written.append((row, copy, copy_text))
        if written:
            of_rows, of_copies, new = zip(*written, strict=True)
            copies[of_rows, of_copies] = self._tokenizer.encode_batch(new, self._length).tokens
        return {
            "perturbed_tokens": copies,
            "perturbed_mask": copies != PAD,
            "perturbed_valid": (copies != tokens[:, None]).any(axis=2),
            "perturbation": kinds.astype(np.int8),
        }

    def _remembered(self) -> _Memory:
        memory = self._memory
        if memory.full:
            memory = self._memory = _Memory(self._tokenizer)
        return memory


class _Reordered:
    """C copies whose words change places.

    Args:
      texts, layouts: of the batch. rows: i64[C], which report each copy is of.
      kinds: i64[C], ascending indices into perturb.KINDS. seeds: u64[C].

    Attributes:
      order: i32[T]: the place of the word that comes to each place; places count the columns of the
        copies' layouts, one copy after the other.
      changed: bool[C], whether the copy differs from its report.
    """

    def __init__(
        self,
        texts: Sequence[str],
        layouts: Sequence[_Layout | None],
        rows: np.ndarray,
        kinds: np.ndarray,
        seeds: np.ndarray,
    ) -> None:
        self._texts, self._rows, self._kinds, self._seeds = texts, rows, kinds, seeds
        chosen, number = np.unique(rows, return_inverse=True)
        self._layouts = [layout for row in chosen.tolist() if (layout := layouts[row])]
        self._of = number  # which of those layouts
        self._width = np.array([layout.columns.shape[1] for layout in self._layouts])
        self._columns = np.concatenate([layout.columns for layout in self._layouts], axis=1)
        self._begin = np.cumsum(self._width) - self._width
        every = np.arange(len(rows))
        self._taken, self._first = self._take(every)
        self.order = self._drawn(self._taken, self._first, every, seeds)
        self.changed = self._changes(self._taken, self._first, self.order)
        self._draw_again()

    def _take(self, copies: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Columns i32[8, t] of some copies, and where each begins."""
        width = self._width[self._of[copies]]
        first = np.cumsum(width) - width
        shift = np.repeat(self._begin[self._of[copies]] - first, width)
        return np.take(self._columns, np.arange(len(shift)) + shift, axis=1), first

    def _drawn(
        self, taken: np.ndarray, first: np.ndarray, copies: np.ndarray, seeds: np.ndarray
    ) -> np.ndarray:
        """A new order of some copies, whose kinds ascend."""
        width = self._width[self._of[copies]]
        start = np.repeat(first.astype(np.int32), width)
        place = np.arange(len(start), dtype=np.int32)
        words = batched.Words(
            tag=taken[_TAGS],
            low=taken[_LOW] + start,
            high=taken[_HIGH] + start,
            first=start,
            last=np.repeat((first + width - 1).astype(np.int32), width),
            bits=counter.bits(np.repeat(seeds, width), place - start),
        )
        kinds = self._kinds[copies]
        ends = [*(np.flatnonzero(kinds[1:] != kinds[:-1]) + 1).tolist(), len(copies)]
        stops = [*first.tolist(), len(start)]
        return batched.orders(words, [(perturb.KINDS[kinds[end - 1]], stops[end]) for end in ends])

    @staticmethod
    def _changes(taken: np.ndarray, first: np.ndarray, order: np.ndarray) -> np.ndarray:
        keys = taken[_KEY]
        return np.logical_or.reduceat(keys[order] != keys, first)

    def _draw_again(self) -> None:
        """Until the copy differs, as `perturb.perturb` does, where that is possible at all."""
        again = np.array(
            [
                copy
                for copy in np.flatnonzero(~self.changed).tolist()
                if perturb.possible(self._texts[self._rows[copy]], perturb.KINDS[self._kinds[copy]])
            ],
            np.int64,
        )
        for attempt in range(1, perturb.DRAWS):
            if not len(again):
                break
            taken, first = self._take(again)
            order = self._drawn(
                taken, first, again, counter.bits(self._seeds[again], _FURTHER + attempt)
            )
            changed = self._changes(taken, first, order)
            for number in np.flatnonzero(changed).tolist():
                copy, start = again[number], first[number]
                width = self._width[self._of[copy]]
                own = slice(self._first[copy], self._first[copy] + width)
                self.order[own] = order[start : start + width] - start + self._first[copy]
            self.changed[again] = changed
            again = again[~changed]

    def tokens(self, segments: Segments, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens i32[C, L], and where they are those of the copy's text, bool[C]."""
        taken, order = self._taken, self.order
        word = np.where(taken[_STARTS], taken[_INITIAL][order], taken[_INNER][order])
        parts = np.stack([taken[_FRAME], word], axis=1).ravel()
        tokens, exact = segments.rows(parts, 2 * self._width[self._of], length)
        return tokens, exact & np.array([layout.plain for layout in self._layouts])[self._of]

    def text(self, copy: int) -> str:
        """One copy as text."""
        report, first = perturb.parse(self._texts[self._rows[copy]]), self._first[copy]
        order = self.order[first : first + len(report.words)] - first
        return report.reordered(order.tolist())


def _blocks(
    layouts: Sequence[_Layout | None], kinds: np.ndarray, by_order: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(rows, numbers) of the copies that reorder words, ascending by kind, in blocks.

    A block has at most `batched.MAX_WORDS` words, which also bounds its memory.
    """
    rows, numbers = np.nonzero(by_order)
    ascending = np.argsort(kinds[rows, numbers], kind="stable")
    rows, numbers = rows[ascending], numbers[ascending]
    widths = [0 if layout is None else layout.columns.shape[1] for layout in layouts]
    start = words = 0
    for copy, row in enumerate(rows.tolist()):
        words += widths[row]
        if words > batched.MAX_WORDS:
            yield rows[start:copy], numbers[start:copy]
            start, words = copy, widths[row]
    if len(rows):
        yield rows[start:], numbers[start:]
