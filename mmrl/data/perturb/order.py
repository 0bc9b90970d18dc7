"""Kinds that only change the order of words: the same multiset of words and punctuation.

Their forms are those of Yuksekgonul et al. 2023 ("When and why vision-language models behave
like bags-of-words, and what to do about it?", order test) and of the public code of perturbed
report discrimination: pairs and trigrams are counted from the first word, across sentences, an
incomplete last trigram takes part, and the last word of an odd number is not swapped. White space
and punctuation stay where they are; the published code strips full stops before it perturbs, to
the same effect.

Every kind reorders a run of consecutive words, so that it serves the whole report and, with the
suffix `_in_sentences`, each sentence by itself.
"""

from collections.abc import Callable, Sequence

import numpy as np

from mmrl.data.perturb.report import Kind, ParsedReport

IN_SENTENCES = "_in_sentences"


class _Run:
    """Consecutive words of a report: their keys, and their tags when asked for."""

    def __init__(self, report: ParsedReport, low: int, high: int) -> None:
        self._report, self._low, self._high = report, low, high
        self.keys = report.keys[low:high]

    def __len__(self) -> int:
        return len(self.keys)

    def places(self, *tags: str) -> list[int]:
        """Positions, in the run, of the words with one of these tags."""
        own = self._report.tags[self._low : self._high]
        return [place for place, tag in enumerate(own) if tag in tags]

    def differ(self, places: Sequence[int]) -> bool:
        """Whether the words at these places are not all the same."""
        return len({self.keys[place] for place in places}) > 1


_Order = Callable[[_Run, np.random.Generator], list[int] | None]
"""New order of the run's words, by position; None when no draw could ever change it."""


def _permute(size: int, groups: Sequence[Sequence[int]], rng: np.random.Generator) -> list[int]:
    """Each group's words are permuted among the group's places; the others stay."""
    order = list(range(size))
    for group in groups:
        for place, source in zip(group, rng.permutation(len(group)).tolist(), strict=True):
            order[place] = group[source]
    return order


def _groups(run: _Run, groups: list[list[int]], rng: np.random.Generator) -> list[int] | None:
    groups = [group for group in groups if run.differ(group)]
    return _permute(len(run), groups, rng) if groups else None


def _all_words(run: _Run, rng: np.random.Generator) -> list[int] | None:
    """A uniform permutation of all words."""
    return _groups(run, [list(range(len(run)))], rng)


def _adjacent_words(run: _Run, rng: np.random.Generator) -> list[int] | None:
    """Words 1 and 2 trade places, 3 and 4, and so on: every pair, no randomness."""
    even, odd = run.keys[0::2], run.keys[1::2]
    if even[: len(odd)] == odd:
        return None
    paired = 2 * len(odd)
    return [place ^ 1 if place < paired else place for place in range(len(run))]


def _reverse(run: _Run, rng: np.random.Generator) -> list[int] | None:
    """The last word first; no randomness."""
    return None if run.keys == run.keys[::-1] else list(range(len(run)))[::-1]


def _trigrams(size: int) -> list[list[int]]:
    return [list(range(start, min(start + 3, size))) for start in range(0, size, 3)]


def _within_trigrams(run: _Run, rng: np.random.Generator) -> list[int] | None:
    """A uniform permutation inside each trigram, the incomplete last one included."""
    size = len(run)
    if not any(run.differ(trigram) for trigram in _trigrams(size)):
        return None
    # Sorting by trigram number plus a fraction in [0, 1) never moves a word out of its trigram.
    return np.argsort(np.arange(size) // 3 + rng.random(size)).tolist()


def _order_of_trigrams(run: _Run, rng: np.random.Generator) -> list[int] | None:
    """A uniform permutation of the trigrams, the incomplete last one included."""
    blocks = _trigrams(len(run))
    if len(blocks) < 2:
        return None
    words = [[run.keys[place] for place in block] for block in blocks]
    first, last = words[0], words[-1]
    # Equal full trigrams and a tail that commutes with them (a a a, a) read the same any way.
    if first + last == last + first and all(block == first for block in words[:-1]):
        return None
    return [place for block in rng.permutation(len(blocks)).tolist() for place in blocks[block]]


def _nouns_and_adjectives(run: _Run, rng: np.random.Generator) -> list[int] | None:
    """Nouns are permuted among nouns, adjectives among adjectives."""
    return _groups(run, [run.places("noun"), run.places("adjective")], rng)


def _all_but_nouns_and_adjectives(run: _Run, rng: np.random.Generator) -> list[int] | None:
    """All other words are permuted among their places."""
    return _groups(run, [run.places("verb", "other")], rng)


def _nouns_verbs_adjectives(run: _Run, rng: np.random.Generator) -> list[int] | None:
    """Each of the three classes is permuted among its own places."""
    return _groups(run, [run.places(tag) for tag in ("noun", "verb", "adjective")], rng)


_ORDERS: dict[str, _Order] = {
    "shuffle_all_words": _all_words,
    "swap_adjacent_words": _adjacent_words,
    "reverse_words": _reverse,
    "shuffle_within_trigrams": _within_trigrams,
    "shuffle_trigrams": _order_of_trigrams,
    "shuffle_nouns_and_adjectives": _nouns_and_adjectives,
    "shuffle_all_but_nouns_and_adjectives": _all_but_nouns_and_adjectives,
    "shuffle_nouns_verbs_adjectives": _nouns_verbs_adjectives,
}


def _on_report(order: _Order) -> Kind:
    def kind(report: ParsedReport, rng: np.random.Generator) -> str | None:
        new = order(_Run(report, 0, len(report.words)), rng)
        return None if new is None else report.reordered(new)

    return kind


def _on_sentences(order: _Order) -> Kind:
    def kind(report: ParsedReport, rng: np.random.Generator) -> str | None:
        whole = list(range(len(report.words)))
        possible = False
        for low, high in report.sentence_words:
            new = order(_Run(report, low, high), rng)
            if new is not None:
                possible = True
                whole[low:high] = [low + place for place in new]
        return report.reordered(whole) if possible else None

    return kind


REPORT_KINDS: dict[str, Kind] = {name: _on_report(order) for name, order in _ORDERS.items()}
SENTENCE_KINDS: dict[str, Kind] = {
    name + IN_SENTENCES: _on_sentences(order) for name, order in _ORDERS.items()
}
