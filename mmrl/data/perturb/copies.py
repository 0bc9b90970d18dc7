"""Perturbed copies of a batch's reports, as token ids.

Kinds that reorder words are drawn for the whole batch at once (`perturb.order_batches`), and the
ids of a copy are put together from those of its words (`text.segments`). All other kinds edit the
text of one report at a time (`perturb.perturb`), which is then tokenised. A copy depends only on
its report, its kind and its seed.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from mmrl.data import counter, perturb
from mmrl.data.perturb import order_batches, order_rules
from mmrl.data.perturb.report import ParsedReport
from mmrl.data.perturb.tagger import TAGS
from mmrl.data.text.segments import Segments, plain
from mmrl.data.text.tokenizer import BatchEncoding, Tokenizer

# For every kind: whether it reorders words, and whether it needs their parts of speech.
_REORDERS = np.array([kind in order_rules.RULES for kind in perturb.KINDS])
_NEEDS_TAGS = np.array(
    [kind in order_rules.RULES and bool(order_rules.RULES[kind].classes) for kind in perturb.KINDS]
)
_TAG_NUMBER = {tag: number for number, tag in enumerate(TAGS)}

_SUBSTREAMS = 2**32
"""Outputs of a random stream (see `counter`) below this number are used as random numbers; those
from it on are seeds of further streams: of each copy of a report, and of each new attempt at a
copy. A seed therefore never equals a random number that was used."""

_CACHED_BYTES = 64 * 2**20
_CACHED_PARTS = 1 << 18

# Rows of `_Layout.columns`; the last four are fields of `order_batches.Words`.
_BETWEEN, _INITIAL, _INNER, _STARTS, _KEY, _TAG, _LOW, _HIGH = range(8)


class _Layout(NamedTuple):
    """A report as numbers.

    A *chunk* is a run of characters without white space, which the tokenizer encodes by itself. A
    *part* is a piece of a chunk, numbered by `Segments`: a word, or what stands between two words.

    Attributes:
      columns: i32[8, W + 1], a column for each of W words and one for the text after the last. Its
        rows: the part before the word (0 for none but a blank); the part that the word is at the
        start of a chunk; the part that it is within a chunk; whether this position starts a chunk;
        a number that is equal for equal words; then tag, low and high of `order_batches.Words`.
      plain: whether the ids of the text are those of its parts in a row, see `segments.plain`.
      tagged: whether the tags are filled in.
    """

    columns: np.ndarray
    plain: bool
    tagged: bool


class _Cache:
    """The layouts of reports seen before, and the parts that they share."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.segments = Segments(tokenizer)
        self._layouts: dict[str, _Layout] = {}
        self._bytes = 0

    @property
    def full(self) -> bool:
        """Whether it holds more parts than it should."""
        return len(self.segments) > _CACHED_PARTS

    def layout(self, text: str, tagged: bool) -> _Layout:
        """The layout of a report, with tags if asked for.

        Layouts are kept until `_CACHED_BYTES` are used; none is evicted.
        """
        found = self._layouts.get(text)
        if found is None or (tagged and not found.tagged):
            made = self._make(perturb.parse(text), tagged)
            if found is None:
                self._bytes += made.columns.nbytes
            if found is not None or self._bytes <= _CACHED_BYTES:
                self._layouts[text] = made
            return made
        return found

    def _make(self, report: ParsedReport, tagged: bool) -> _Layout:
        count = len(report.words)
        columns = np.zeros((8, count + 1), np.int32)
        keys: dict[str, int] = {}
        columns[_KEY, :count] = [keys.setdefault(key, len(keys)) for key in report.keys]
        if tagged:
            columns[_TAG, :count] = list(map(_TAG_NUMBER.__getitem__, report.tags))
        columns[_LOW] = place = np.arange(count + 1)
        columns[_HIGH] = place + 1
        for low, high in report.sentence_words:
            columns[_LOW, low:high], columns[_HIGH, low:high] = low, high
        if is_plain := self.segments.usable and plain(report.text):
            self._fill_parts(report, columns)
        return _Layout(columns, is_plain, tagged)

    def _fill_parts(self, report: ParsedReport, columns: np.ndarray) -> None:
        number, words, between = self.segments.number, report.words, report.pieces[0::2]
        starts = [text[-1:].isspace() for text in between]
        starts[0] |= not between[0]  # the text begins with a word
        for place, text in enumerate(between):
            if text != " " and (body := text.strip()):
                begins_chunk = place == 0 or text[0].isspace()
                columns[_BETWEEN, place] = number(" " + body if begins_chunk else body)
        columns[_STARTS] = starts
        columns[_INITIAL, :-1] = [number(" " + word) for word in words]
        if not all(starts[:-1]):
            columns[_INNER, :-1] = list(map(number, words))


class Copies:
    """Makes K perturbed copies of each of n reports; see `__call__`. Threads may share one.

    Args:
      length: L, of the token rows.
    """

    def __init__(self, tokenizer: Tokenizer, length: int) -> None:
        self._tokenizer, self._length = tokenizer, length
        self._cache = _Cache(tokenizer)

    def __getstate__(self) -> dict[str, Any]:
        # Without the cache: a worker process fills its own with the reports that it reads.
        return {"tokenizer": self._tokenizer, "length": self._length}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def __call__(
        self,
        texts: Sequence[str],
        tokens: np.ndarray,
        mask: np.ndarray,
        kinds: np.ndarray,
        seeds: np.ndarray,
        mark: Callable[[int], None] = lambda row: None,
    ) -> dict[str, np.ndarray]:
        """Makes the copies.

        Args:
          texts: n reports.
          tokens, mask: i32[n, L] and bool[n, L], as `Tokenizer.encode_batch` returns them.
          kinds: i64[n, K], indices into perturb.KINDS.
          seeds: u64[n], of a random stream for each report.
          mark: called with the row of each report before it is worked on.

        Returns:
          tokens i32[n, K, L]; mask bool[n, K, L], True where there is a token;
          valid bool[n, K], False where the copy equals the report, because the kind
          cannot change it or changes only what truncation removes; kind i8[n, K], the
          kinds.
        """
        cache = self._current_cache()
        copies = np.repeat(tokens[:, None], kinds.shape[1], axis=1)  # n K L
        masks = np.repeat(mask[:, None], kinds.shape[1], axis=1)
        own_seeds = counter.bits(seeds[:, None], _SUBSTREAMS + np.arange(kinds.shape[1]))  # n K
        to_encode: list[tuple[int, int, str]] = []  # row, number of the copy, its text
        by_batch = _REORDERS[kinds]
        tagged = _NEEDS_TAGS[kinds].any(axis=1).tolist()
        layouts: list[_Layout | None] = [None] * len(texts)
        for row in np.flatnonzero(by_batch.any(axis=1)).tolist():
            mark(row)
            layouts[row] = made = cache.layout(texts[row], tagged[row])
            by_batch[row] &= made.columns.shape[1] <= order_batches.MAX_WORDS
        for rows, numbers in _blocks(layouts, kinds, by_batch):
            block = _Reordered(texts, layouts, rows, kinds[rows, numbers], own_seeds[rows, numbers])
            encoded, exact = block.encoded(cache.segments, self._length)
            done = block.changed & exact
            copies[rows[done], numbers[done]] = encoded.tokens[done]
            masks[rows[done], numbers[done]] = encoded.mask[done]
            for copy in np.flatnonzero(block.changed & ~exact).tolist():
                to_encode.append((rows[copy], numbers[copy], block.text(copy)))
        for row, number in np.argwhere(~by_batch).tolist():
            mark(row)
            rng = np.random.default_rng(int(own_seeds[row, number]))
            text = perturb.perturb(texts[row], perturb.KINDS[kinds[row, number]], rng)
            if text is not None:
                to_encode.append((row, number, text))
        if to_encode:
            of_rows, of_numbers, new = zip(*to_encode, strict=True)
            encoded = self._tokenizer.encode_batch(new, self._length)
            copies[of_rows, of_numbers], masks[of_rows, of_numbers] = encoded.tokens, encoded.mask
        return {
            "tokens": copies,
            "mask": masks,
            "valid": ((copies != tokens[:, None]) | (masks != mask[:, None])).any(axis=2),
            "kind": kinds.astype(np.int8),
        }

    def _current_cache(self) -> _Cache:
        """The cache, replaced by an empty one when it is full."""
        cache = self._cache
        if cache.full:
            cache = self._cache = _Cache(self._tokenizer)
        return cache


class _Reordered:
    """C copies whose words are reordered.

    The layouts of the copies are put side by side. A *place* is a column of that arrangement: T
    places, one copy after the other.

    Args:
      texts, layouts: of all reports of the batch.
      rows: i64[C], the report of each copy.
      kinds: i64[C], ascending indices into perturb.KINDS.
      seeds: u64[C], of the random stream of each copy.

    Attributes:
      order: i32[T], the place of the word that moves to each place.
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
        used, self._layout_of = np.unique(rows, return_inverse=True)
        self._layouts = [layout for row in used.tolist() if (layout := layouts[row])]
        widths = np.array([layout.columns.shape[1] for layout in self._layouts])
        self._width = widths[self._layout_of]  # of each copy
        self._begin = (np.cumsum(widths) - widths)[self._layout_of]  # of its layout, in `_all`
        self._all = np.concatenate([layout.columns for layout in self._layouts], axis=1)
        every = np.arange(len(rows))
        self._columns, self._first = self._columns_of(every)
        self.order = self._drawn(self._columns, self._first, every, seeds)
        self.changed = self._changes(self._columns, self._first, self.order)
        self._draw_again()

    def _columns_of(self, copies: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The layouts of some copies side by side, i32[8, t], and where each begins, i64[c]."""
        width = self._width[copies]
        first = np.cumsum(width) - width
        shift = np.repeat(self._begin[copies] - first, width)
        return np.take(self._all, np.arange(len(shift)) + shift, axis=1), first

    def _drawn(
        self, columns: np.ndarray, first: np.ndarray, copies: np.ndarray, seeds: np.ndarray
    ) -> np.ndarray:
        """i32[t], a new order of some copies, given what `_columns_of` returns for them."""
        width = self._width[copies]
        start = np.repeat(first.astype(np.int32), width)
        place = np.arange(len(start), dtype=np.int32)
        words = order_batches.Words(
            tag=columns[_TAG],
            low=columns[_LOW] + start,
            high=columns[_HIGH] + start,
            first=start,
            last=np.repeat((first + width - 1).astype(np.int32), width),
            bits=counter.bits(np.repeat(seeds, width), place - start),
        )
        kinds = self._kinds[copies]
        ends = [*(np.flatnonzero(kinds[1:] != kinds[:-1]) + 1).tolist(), len(copies)]
        stops = [*first.tolist(), len(start)]
        return order_batches.orders(
            words, [(perturb.KINDS[kinds[end - 1]], stops[end]) for end in ends]
        )

    @staticmethod
    def _changes(columns: np.ndarray, first: np.ndarray, order: np.ndarray) -> np.ndarray:
        """bool[c], whether any word of a copy differs from the one that it replaces."""
        keys = columns[_KEY]
        return np.logical_or.reduceat(keys[order] != keys, first)

    def _draw_again(self) -> None:
        """Draws copies that equal their report again, as `perturb.perturb` does."""
        unchanged = np.flatnonzero(~self.changed).tolist()
        again = np.array([copy for copy in unchanged if self._possible(copy)], np.int64)
        for attempt in range(1, perturb.MAX_DRAWS):
            if not len(again):
                break
            columns, first = self._columns_of(again)
            seeds = counter.bits(self._seeds[again], _SUBSTREAMS + attempt)
            order = self._drawn(columns, first, again, seeds)
            changed = self._changes(columns, first, order)
            for number in np.flatnonzero(changed).tolist():
                copy, start = again[number], first[number]
                own = slice(self._first[copy], self._first[copy] + self._width[copy])
                drawn = order[start : start + self._width[copy]]
                self.order[own] = drawn - start + self._first[copy]
            self.changed[again] = changed
            again = again[~changed]

    def _possible(self, copy: int) -> bool:
        return perturb.possible(self._texts[self._rows[copy]], perturb.KINDS[self._kinds[copy]])

    def encoded(self, segments: Segments, length: int) -> tuple[BatchEncoding, np.ndarray]:
        """The tokens of C copies; and bool[C], whether they are those of the copy's text."""
        columns, order = self._columns, self.order
        word = np.where(columns[_STARTS], columns[_INITIAL][order], columns[_INNER][order])
        parts = np.stack([columns[_BETWEEN], word], axis=1).ravel()
        rows, exact = segments.rows(parts, 2 * self._width, length)
        is_plain = np.array([layout.plain for layout in self._layouts])
        return rows, exact & is_plain[self._layout_of]

    def text(self, copy: int) -> str:
        """One copy as text."""
        report, first = perturb.parse(self._texts[self._rows[copy]]), self._first[copy]
        order = self.order[first : first + len(report.words)] - first
        return report.reordered(order.tolist())


def _blocks(
    layouts: Sequence[_Layout | None], kinds: np.ndarray, by_batch: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The copies to reorder in blocks of at most `order_batches.MAX_WORDS` words.

    Yields:
      rows i64[C] and numbers i64[C] of copies, by ascending kind.
    """
    rows, numbers = np.nonzero(by_batch)
    ascending = np.argsort(kinds[rows, numbers], kind="stable")
    rows, numbers = rows[ascending], numbers[ascending]
    widths = [0 if layout is None else layout.columns.shape[1] for layout in layouts]
    start = words = 0
    for copy, row in enumerate(rows.tolist()):
        words += widths[row]
        if words > order_batches.MAX_WORDS:
            yield rows[start:copy], numbers[start:copy]
            start, words = copy, widths[row]
    if len(rows):
        yield rows[start:], numbers[start:]
