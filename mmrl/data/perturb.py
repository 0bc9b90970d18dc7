"""Perturbed reports: the same words in another order, the hard negatives of the method.

A report is a frame with slots. Words sit in the slots; white space, punctuation and the marks of
numbered lists are the frame and stay where they are. A perturbation only decides which word goes
into which slot. So words and punctuation are kept exactly, sentences keep their lengths, and
neither a stray full stop nor a comma tells a perturbed report from a true one: only the order of
the words does. Words keep their case when they move, because the tokenizer folds it. The
published code strips full stops before it perturbs, to the same effect.

A kind is one function `(slots, rng) -> words`, in the registry at the end. Their forms are those
of Yuksekgonul et al. 2023 ("When and why vision-language models behave like bags-of-words, and
what to do about it?", order test) and of the public code of perturbed report discrimination:
pairs and trigrams are counted from the first word of the report, across sentences, an incomplete
last trigram takes part, and the last word of an odd number is not swapped.
"""

import dataclasses
import re
import unicodedata
from collections.abc import Callable, Sequence

import numpy as np

from mmrl.data.reports import WORD
from mmrl.types import InputError

DRAWS = 64
"""How often a random kind is drawn until it differs; each draw fails with at most 1/2."""

_SLOT = re.compile(f"({WORD.pattern})")  # split: frame, word, frame, ..., word, frame


@dataclasses.dataclass(frozen=True)
class Perturbation:
    """A perturbed copy of a report.

    Attributes:
      text: the perturbed report.
      kind: one of `KINDS`.
      changed_spans: (start, end) characters of `text`, one span for each slot that holds another
        word than before (case aside), in order; never empty.
    """

    text: str
    kind: str
    changed_spans: tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True)
class Slots:
    """A report cut into words and frame.

    Attributes:
      pieces: frame, word, frame, ..., word, frame; joined they are the report.
      words: the words, in order.
      keys: the words as they are compared: NFKC, case-folded.
    """

    pieces: list[str]
    words: list[str]
    keys: list[str]

    @classmethod
    def of(cls, report: str) -> "Slots":
        """Cuts a report; see `mmrl.data.reports.WORD` for what a word is."""
        pieces = _SLOT.split(report)
        words = pieces[1::2]
        return cls(pieces, words, [_key(word) for word in words])


Kind = Callable[[Slots, np.random.Generator], list[str] | None]
"""New words, one per slot; None when no draw could ever change this report.

A random kind may return the words unchanged by bad luck; it is then drawn again.
"""


def _key(word: str) -> str:
    if word.isascii():
        return word.lower()
    return unicodedata.normalize("NFKC", word).casefold()


def _reorder(slots: Slots, order: Sequence[int]) -> list[str]:
    words = slots.words
    return [words[source] for source in order]


def _shuffle_all_words(slots: Slots, rng: np.random.Generator) -> list[str] | None:
    """A uniform permutation of all words."""
    if len(set(slots.keys)) < 2:
        return None
    return _reorder(slots, rng.permutation(len(slots.words)).tolist())


def _swap_adjacent_words(slots: Slots, rng: np.random.Generator) -> list[str] | None:
    """Words 1 and 2 trade places, 3 and 4, and so on: every pair, no randomness."""
    even, odd = slots.keys[0::2], slots.keys[1::2]
    if even[: len(odd)] == odd:
        return None
    words = list(slots.words)
    paired = 2 * len(odd)
    words[0:paired:2], words[1:paired:2] = words[1:paired:2], words[0:paired:2]
    return words


def _reverse_words(slots: Slots, rng: np.random.Generator) -> list[str] | None:
    """The last word first; no randomness."""
    return None if slots.keys == slots.keys[::-1] else slots.words[::-1]


def _trigrams(items: Sequence[str]) -> list[Sequence[str]]:
    return [items[start : start + 3] for start in range(0, len(items), 3)]


def _shuffle_within_trigrams(slots: Slots, rng: np.random.Generator) -> list[str] | None:
    """A uniform permutation inside each trigram, the incomplete last one included."""
    if all(len(set(trigram)) < 2 for trigram in _trigrams(slots.keys)):
        return None
    count = len(slots.words)
    # Sorting by trigram number plus a fraction in [0, 1) never moves a word out of its trigram.
    return _reorder(slots, np.argsort(np.arange(count) // 3 + rng.random(count)).tolist())


def _shuffle_trigrams(slots: Slots, rng: np.random.Generator) -> list[str] | None:
    """A uniform permutation of the trigrams, the incomplete last one included."""
    blocks = _trigrams(slots.keys)
    if len(blocks) < 2:
        return None
    first, last = blocks[0], blocks[-1]
    # Equal full trigrams and a tail that commutes with them (a a a, a) read the same any way.
    if [*first, *last] == [*last, *first] and all(block == first for block in blocks[:-1]):
        return None
    chosen = _trigrams(slots.words)
    return [word for block in rng.permutation(len(chosen)).tolist() for word in chosen[block]]


_REGISTRY: dict[str, Kind] = {
    "shuffle_all_words": _shuffle_all_words,
    "swap_adjacent_words": _swap_adjacent_words,
    "reverse_words": _reverse_words,
    "shuffle_within_trigrams": _shuffle_within_trigrams,
    "shuffle_trigrams": _shuffle_trigrams,
}

KINDS: tuple[str, ...] = tuple(_REGISTRY)
"""Names of all kinds; a batch stores the index into this tuple, so new kinds go to the end."""


def _fill(slots: Slots, words: Sequence[str], kind: str) -> Perturbation | None:
    """Puts `words` into the slots; None when every slot holds the word it held before."""
    pieces = list(slots.pieces)
    pieces[1::2] = words
    spans = []
    position = len(pieces[0])
    for frame, word, key in zip(pieces[2::2], words, slots.keys, strict=True):
        end = position + len(word)
        if _key(word) != key:
            spans.append((position, end))
        position = end + len(frame)
    return Perturbation("".join(pieces), kind, tuple(spans)) if spans else None


def _check(kinds: Sequence[str]) -> None:
    for kind in kinds:
        if kind not in _REGISTRY:
            raise InputError(
                f"perturbation {kind!r} is not known; expected one of {', '.join(KINDS)}"
            )


def _apply(slots: Slots, kind: str, rng: np.random.Generator) -> Perturbation | None:
    function = _REGISTRY[kind]
    for _ in range(DRAWS):
        words = function(slots, rng)
        if words is None:
            return None
        result = _fill(slots, words, kind)
        if result is not None:
            return result
    return None


def perturb(report: str, kind: str, rng: np.random.Generator) -> Perturbation | None:
    """One perturbed copy of `report`, or None when `kind` cannot change it.

    The word sequence of the copy, case-folded, always differs from that of the report. None means
    that no draw could change it: fewer than two words, equal words, a palindrome to reverse, one
    trigram to permute. Deterministic in (report, kind, state of rng).

    Raises:
      InputError: `kind` is not in `KINDS`.
    """
    _check((kind,))
    return _apply(Slots.of(report), kind, rng)


def draw_kinds(kinds: Sequence[str], count: int, rng: np.random.Generator) -> tuple[str, ...]:
    """`count` kinds in random order, each as often as any other, up to one.

    Every kind comes floor(count / len(kinds)) times; the remainder is drawn without replacement.

    Raises:
      InputError: a kind is unknown or given twice, there is none, or count is negative.
    """
    _check(kinds)
    if not kinds or len(set(kinds)) < len(kinds):
        given = ", ".join(kinds) or "none"
        raise InputError(f"perturbations given: {given}; expected distinct ones of {KINDS}")
    if count < 0:
        raise InputError(f"number of perturbed copies is {count}; expected 0 or more")
    full, rest = divmod(count, len(kinds))
    picks = list(range(len(kinds))) * full
    picks += rng.choice(len(kinds), size=rest, replace=False).tolist()
    return tuple(kinds[pick] for pick in rng.permutation(picks).tolist())


def draw(
    report: str, kinds: Sequence[str], count: int, rng: np.random.Generator
) -> list[Perturbation | None]:
    """`count` perturbed copies of one report, of the kinds that `draw_kinds` picks.

    None stands where the kind cannot change the report. The same random numbers in the same order
    as `draw_kinds` followed by `perturb` for each kind, so a caller that must know the kind of a
    None calls those two.

    Raises:
      InputError: as `draw_kinds`.
    """
    picked = draw_kinds(kinds, count, rng)
    slots = Slots.of(report)
    return [_apply(slots, kind, rng) for kind in picked]
