"""A report taken apart once: words and frame, sentences, part-of-speech tags.

A report is a frame with slots. Words sit in the slots; white space, punctuation and the marks of
numbered lists are the frame. Kinds that reorder words decide which word goes into which slot, so
that words and punctuation are kept exactly. Kinds that reword edit spans of the text.
"""

import functools
import itertools
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from mmrl.data.perturb import tagger
from mmrl.data.text.reports import WORD, sentence_spans

_SLOT = re.compile(f"({WORD.pattern})")  # split: frame, word, frame, ..., word, frame

Span = tuple[int, int]
Edit = tuple[int, int, str]
"""(start, end, replacement), in characters of the text edited."""
Edits = tuple[Edit, ...]
"""Edits that together make one perturbation: ascending, without overlap."""


class Draft(NamedTuple):
    """A perturbed text, whether it differs, and its changed spans, worked out when asked for."""

    text: str
    changed: bool
    spans: Callable[[], tuple[Span, ...]]


Kind = Callable[["ParsedReport", np.random.Generator], Draft | None]
"""One way to perturb; None when no draw could ever change this report.

A random kind may change nothing by bad luck; it is then drawn again.
"""


def word_key(word: str) -> str:
    """A word as it is compared: NFKC, case-folded."""
    if word.isascii():
        return word.lower()
    return unicodedata.normalize("NFKC", word).casefold()


class ParsedReport:
    """A report with what the kinds ask of it; every part is worked out when first needed.

    Attributes:
      text: the report.
      pieces: frame, word, frame, ..., word, frame; joined they are the report.
      words: the words, in order.
      keys: the words as they are compared, see `word_key`.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.pieces = _SLOT.split(text)
        self.words = self.pieces[1::2]
        self.keys = [word_key(word) for word in self.words]
        self.candidates: dict[str, list[Edits]] = {}  # of fluent kinds, filled by `clinical`

    @functools.cached_property
    def sentences(self) -> list[Span]:
        """Character spans of the sentences, see `reports.sentence_spans`."""
        return sentence_spans(self.text)

    @functools.cached_property
    def sentence_slots(self) -> list[Span]:
        """For every sentence with words, the range of its slots."""
        starts = []
        position = 0
        for frame, word in zip(self.pieces[0::2], self.pieces[1::2], strict=False):
            position += len(frame)
            starts.append(position)
            position += len(word)
        ranges = []
        slot = 0
        for _, high in self.sentences:
            first = slot
            while slot < len(starts) and starts[slot] < high:
                slot += 1
            if slot > first:
                ranges.append((first, slot))
        return ranges

    @functools.cached_property
    def tags(self) -> list[str]:
        """Part of speech of each word, see `tagger.tag`."""
        return [tagger.tag(word) for word in self.words]

    def reordered(self, order: Sequence[int]) -> Draft:
        """Slot i receives word `order[i]`; words keep their case when they move."""
        words, keys = self.words, self.keys
        pieces = list(self.pieces)
        pieces[1::2] = [words[source] for source in order]
        changed = [slot for slot, source in enumerate(order) if keys[source] != keys[slot]]

        def spans() -> tuple[Span, ...]:
            ends = list(itertools.accumulate(map(len, pieces)))
            return tuple((ends[2 * slot], ends[2 * slot + 1]) for slot in changed)

        return Draft("".join(pieces), bool(changed), spans)


def edited(text: str, edits: Iterable[Edit]) -> Draft:
    """Applies edits that ascend without overlap.

    The span of an edit that removes text is the character that follows.
    """
    parts: list[str] = []
    changed: list[Span] = []
    taken = length = 0
    for start, end, new in edits:
        parts += [text[taken:start], new]
        length += start - taken
        changed.append((length, length + max(len(new), 1)))
        length += len(new)
        taken = end
    parts.append(text[taken:])
    return Draft("".join(parts), bool(changed), lambda: tuple(changed))
