"""Reorders the words of many reports at once: the draws of training batches.

A rule that shuffles assigns each word to a group whose words change places among themselves. One
sort by (group, random number) then draws the new order of all reports. Frozen questions are drawn
by `order_questions`.
"""

from typing import NamedTuple

import numpy as np

from mmrl.data.perturb.order_rules import RULES, TRIGRAM, Rule, without_randomness
from mmrl.data.perturb.tagger import TAGS

# Sort keys are u64: 19 bits of the group, 29 random bits, 16 bits of the place.
_GROUP_SHIFT, _RANDOM_SHIFT, _PLACE_BITS = np.uint64(45), np.uint64(16), np.uint64(0xFFFF)
_DROPPED_BITS = np.uint64(64 - 29)

MAX_WORDS = 1 << 16
"""The largest number of words at a time, so that a place fits its 16 bits of the sort key."""

_MAX_CLASSES = 4


class Words(NamedTuple):
    """T words of several reports, one report after the other; i32[T] unless noted.

    A place is an index into these arrays. Every report ends with an entry for the text after its
    last word. Such an entry, and a word outside all sentences, is a sentence of its own.

    Attributes:
      tag: index into `TAGS`.
      low, high: the words of the same sentence have places low to high - 1.
      first, last: the words of the same report have places first to last - 1, and the entry for
        the text after them has place last.
      bits: u64[T], random.
    """

    tag: np.ndarray
    low: np.ndarray
    high: np.ndarray
    first: np.ndarray
    last: np.ndarray
    bits: np.ndarray

    def slice(self, start: int, stop: int) -> "Words":
        """The words at places start to stop - 1; places keep their numbers."""
        return Words(*(column[start:stop] for column in self))

    def as_one_sentence(self, place: np.ndarray) -> "Words":
        """The same words with each report as one sentence."""
        after = place >= self.last
        low, high = np.where(after, place, self.first), np.where(after, place + 1, self.last)
        return self._replace(low=low, high=high)


def orders(words: Words, kinds: list[tuple[str, int]]) -> np.ndarray:
    """One draw of a new order of each report.

    Args:
      words: at most `MAX_WORDS` of them.
      kinds: pairs (kind, place where its words end), ascending by place, for reports sorted by
        kind. A pair's words begin where those of the pair before it end, at 0 for the first.

    Returns:
      i32[T]: the place of the word that moves to each place. A draw may change nothing, by chance
      or because no order could.
    """
    found = np.empty(len(words.tag), np.int32)
    start = 0
    for kind, stop in kinds:
        rule = RULES[kind]
        place = np.arange(start, stop, dtype=np.int32)
        chosen = words.slice(start, stop)
        if rule.scope == "report":
            chosen = chosen.as_one_sentence(place)
        found[start:stop] = _drawn(rule, chosen, place)
        start = stop
    return found


def _drawn(rule: Rule, words: Words, place: np.ndarray) -> np.ndarray:
    """The place of the word that moves to each of `place`, consecutive places of whole reports."""
    if rule.move != "shuffle":
        return without_randomness(rule, place, words.low, words.high)
    if rule.classes:
        return _within_classes(rule, words, place)
    trigram = place - (place - words.low) % TRIGRAM  # place of its first word
    if rule.unit == "trigram":  # its words share a random number, so that they stay together
        return _sorted(words.low, place, words.bits[trigram - place[0]])
    return _sorted(trigram if rule.within == "trigram" else words.low, place, words.bits)


def _within_classes(rule: Rule, words: Words, place: np.ndarray) -> np.ndarray:
    class_of_tag = np.full(len(TAGS), -1, np.int32)
    for number, tags in enumerate(rule.classes):
        class_of_tag[[TAGS.index(tag) for tag in tags]] = number
    own = class_of_tag[words.tag]
    moves = (own >= 0) & (words.high - words.low > 1)
    fixed = _MAX_CLASSES * MAX_WORDS + place  # a group of its own
    group = np.where(moves, _MAX_CLASSES * words.low + own, fixed)
    result = np.empty_like(place)
    result[_sorted(group, place) - place[0]] = _sorted(group, place, words.bits)
    return result


def _sorted(group: np.ndarray, place: np.ndarray, bits: np.ndarray | None = None) -> np.ndarray:
    """Places in the order of (group, random bits, place), i32[T].

    Two random numbers of 29 bits are equal once in 5e8 pairs; their words are then not in random
    order.
    """
    keys = (group.astype(np.uint64) << _GROUP_SHIFT) | place.astype(np.uint64)
    if bits is not None:
        keys |= (bits >> _DROPPED_BITS) << _RANDOM_SHIFT
    keys.sort()
    return (keys & _PLACE_BITS).astype(np.int32)
