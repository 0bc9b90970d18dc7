"""A parsed report: its words, sentences and part-of-speech tags.

The text is split into words and the pieces between them: white space, punctuation and the marks of
numbered lists. Kinds that reorder words put them into other positions and leave the pieces between
them where they are, so that both are kept exactly. Kinds that reword edit spans of the text.
"""

import functools
import re
import unicodedata
from collections.abc import Callable, Sequence

import numpy as np

from mmrl.data.perturb import tagger
from mmrl.data.perturb.edits import Edits, Span
from mmrl.data.text.reports import WORD, sentence_spans

_WORDS = re.compile(f"({WORD.pattern})")

Kind = Callable[["ParsedReport", np.random.Generator], str | None]
"""One way to perturb a report: the perturbed text, or None when no draw could change the report.

A random kind whose draw happens to change nothing returns the text of the report. It is then drawn
again.
"""


def word_key(word: str) -> str:
    """The form in which words are compared: NFKC, case-folded."""
    if word.isascii():
        return word.lower()
    return unicodedata.normalize("NFKC", word).casefold()


class ParsedReport:
    """A report and what the kinds need of it; each part is computed at its first use.

    Attributes:
      text: the report.
      pieces: alternately what stands between words, and words, beginning and ending with the
        former (which may be empty); joined they are the report.
      words: the words, in order.
      keys: `word_key` of each word.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.pieces = _WORDS.split(text)
        self.words = self.pieces[1::2]
        self.keys = [word_key(word) for word in self.words]
        self.candidates: dict[str, list[Edits]] = {}  # of clinical kinds, filled by `clinical`

    @functools.cached_property
    def sentences(self) -> list[Span]:
        """Character spans of the sentences, see `reports.sentence_spans`."""
        return sentence_spans(self.text)

    @functools.cached_property
    def sentence_words(self) -> list[Span]:
        """(first, end) word indices of every sentence that has words."""
        starts = []
        position = 0
        for between, word in zip(self.pieces[0::2], self.pieces[1::2], strict=False):
            position += len(between)
            starts.append(position)
            position += len(word)
        ranges = []
        index = 0
        for _, end in self.sentences:
            first = index
            while index < len(starts) and starts[index] < end:
                index += 1
            if index > first:
                ranges.append((first, index))
        return ranges

    @functools.cached_property
    def tags(self) -> list[str]:
        """Part of speech of each word, see `tagger.tag`."""
        return [tagger.tag(word) for word in self.words]

    def reordered(self, order: Sequence[int]) -> str:
        """The text with word `order[i]` at position i; words keep their case when they move.

        The text of the report where all words are equal, by their keys, to those they replace.
        """
        if [self.keys[source] for source in order] == self.keys:
            return self.text
        pieces = list(self.pieces)
        pieces[1::2] = [self.words[source] for source in order]
        return "".join(pieces)
