"""The kinds that reorder words, drawn for many reports at once; the rules are those of `order`.

A random kind says for each word to which group it belongs: the words of a group change places
among themselves. One sort by (group, random number) then draws the new order of every report.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from mmrl.data.perturb.order import IN_SENTENCES

TAGS = ("noun", "adjective", "verb", "other")
MAX_WORDS = 1 << 16
"""How many words fit, at a time, into the numbers that are sorted."""


class Words(NamedTuple):
    """T words of several reports, one report after the other: i32[T] each.

    A place is an index into these. What stands behind the words of a report, like a word outside
    all sentences, is a sentence of its own.

    Attributes:
      tag: index into `TAGS`.
      low, high: the words of the same sentence have places low to high - 1.
      first, last: the words of the same report likewise; what stands behind them comes after.
      bits: u64[T], random.
    """

    tag: np.ndarray
    low: np.ndarray
    high: np.ndarray
    first: np.ndarray
    last: np.ndarray
    bits: np.ndarray

    def run(self, start: int, stop: int) -> "Words":
        """Those at places start to stop - 1, which keep their places."""
        return Words(*(column[start:stop] for column in self))

    def whole(self, place: np.ndarray) -> "Words":
        """The same as if each report were one sentence."""
        behind = place >= self.last
        low, high = np.where(behind, place, self.first), np.where(behind, place + 1, self.last)
        return self._replace(low=low, high=high)


_Draw = Callable[[Words, np.ndarray], np.ndarray]
"""From words and their places: the place of the word that comes to each."""


def _sorted(group: np.ndarray, place: np.ndarray, bits: np.ndarray | None = None) -> np.ndarray:
    """Places in the order of (group, random number, place): 19, 29 and 16 bits of what is sorted.

    Two numbers of 29 bits are equal, and their words then not in random order, once in 5e8 pairs.
    """
    keys = (group.astype(np.uint64) << np.uint64(45)) | place.astype(np.uint64)
    if bits is not None:
        keys |= (bits >> np.uint64(35)) << np.uint64(16)
    keys.sort()
    return (keys & np.uint64(MAX_WORDS - 1)).astype(np.int32)


def _all_words(words: Words, place: np.ndarray) -> np.ndarray:
    return _sorted(words.low, place, words.bits)


def _adjacent_words(words: Words, place: np.ndarray) -> np.ndarray:
    offset = place - words.low
    paired = offset < (words.high - words.low) // 2 * 2
    return np.where(paired, words.low + (offset ^ 1), place)


def _reverse(words: Words, place: np.ndarray) -> np.ndarray:
    return words.low + words.high - 1 - place


def _within_trigrams(words: Words, place: np.ndarray) -> np.ndarray:
    return _sorted(place - (place - words.low) % 3, place, words.bits)


def _order_of_trigrams(words: Words, place: np.ndarray) -> np.ndarray:
    shared = words.bits[place - (place - words.low) % 3 - place[0]]  # that of the first of three
    return _sorted(words.low, place, shared)


def _classes(*groups: str) -> _Draw:
    """The words of a sentence with any tag of a group ("verb other") change places; others stay."""
    of_tag = np.full(len(TAGS), -1, np.int32)
    for number, tags in enumerate(groups):
        for tag in tags.split():
            of_tag[TAGS.index(tag)] = number

    def draw(words: Words, place: np.ndarray) -> np.ndarray:
        own = of_tag[words.tag]
        moves = (own >= 0) & (words.high - words.low > 1)
        group = np.where(moves, 4 * words.low + own, 4 * MAX_WORDS + place)
        result = np.empty_like(place)
        result[_sorted(group, place) - place[0]] = _sorted(group, place, words.bits)
        return result

    return draw


_DRAWS: dict[str, _Draw] = {
    "shuffle_all_words": _all_words,
    "swap_adjacent_words": _adjacent_words,
    "reverse_words": _reverse,
    "shuffle_within_trigrams": _within_trigrams,
    "shuffle_trigrams": _order_of_trigrams,
    "shuffle_nouns_and_adjectives": _classes("noun", "adjective"),
    "shuffle_all_but_nouns_and_adjectives": _classes("verb other"),
    "shuffle_nouns_verbs_adjectives": _classes("noun", "verb", "adjective"),
}


def orders(words: Words, kinds: list[tuple[str, int]]) -> np.ndarray:
    """One draw of a new order for each report, of at most MAX_WORDS words in all.

    Args:
      kinds: (name of a kind that reorders words, place where its reports end), ascending; the first
        kind's reports begin at 0, each other's where those of the kind before it end.

    Returns:
      i32[T]: the place of the word that comes to each place; it may change nothing, by bad luck or
      because no order could.
    """
    found = np.empty(len(words.tag), np.int32)
    start = 0
    for name, stop in kinds:
        place = np.arange(start, stop, dtype=np.int32)
        chosen = words.run(start, stop)
        if not name.endswith(IN_SENTENCES):
            chosen = chosen.whole(place)
        found[start:stop] = _DRAWS[name.removesuffix(IN_SENTENCES)](chosen, place)
        start = stop
    return found
