"""config.data.text: whether training reads whole reports, or a part drawn anew at each step."""

import functools
import hashlib
from collections.abc import Sequence

import numpy as np

from mmrl import build
from mmrl.data.text import reports
from mmrl.types import InputError

CHOICES = ("report", "section", "sentence", "sentences")
"""report: all wanted sections. section: one of the wanted sections. sentence: one sentence, as in
ConVIRT (Zhang et al. 2022, "Contrastive learning of medical visual representations", section 3).
sentences: consecutive sentences; first their number is drawn uniformly, from one to all, then the
first of them. Evaluation always reads whole reports."""


def check(choice: str) -> None:
    """Raises InputError unless `choice` is one of `CHOICES`."""
    if choice not in CHOICES:
        raise InputError(build.unknown("config.data.text", choice, CHOICES))


class Excerpts:
    """(index, step) -> the text of an example at a step, and its duplicate group at that step.

    Examples of one duplicate group are not negatives of each other. A whole report keeps its
    group of the corpus. The group of a part is a hash of its canonical text, so that equal parts of
    different reports share a group; two different texts share one with probability 2**-32. An empty
    text equals no other.

    The draw depends on (seed, step, group in the corpus). All examples of a group therefore read
    the same part, and stay one group, if their reports are equal. A group can also join different
    reports of one study. Its examples then get a hash of the group instead of the text, so that
    they stay one group; equal parts of other reports do not join it.

    Args:
      texts, groups, cuts: of all examples, see `Corpus`.
      choice: one of `CHOICES`.
      seed: of the draws.
    """

    def __init__(
        self,
        texts: Sequence[str],
        groups: np.ndarray,
        cuts: Sequence[tuple[int, ...]],
        choice: str,
        seed: int,
    ) -> None:
        check(choice)
        self._texts, self._groups, self._cuts = texts, groups, cuts
        self._choice, self._seed = choice, seed
        self._mixed = frozenset() if choice == "report" else self._find_mixed()

    def __call__(self, index: int, step: int) -> tuple[str, int]:
        """(text, duplicate group in the range of i32) of the example `index`."""
        group = int(self._groups[index])
        if self._choice == "report":
            return self._texts[index], group
        text = self._draw(self._parts(index), _hash(f"{self._seed}/{step}/{group}"))
        by_text = text and group not in self._mixed
        return text, text_group(text) if by_text else _number(f"group {group}")

    def _draw(self, parts: Sequence[str], drawn: int) -> str:
        """The part that a random number of 64 bits stands for; "" of none."""
        if not parts:
            return ""
        if self._choice == "sentences":
            low, high = drawn & 0xFFFFFFFF, drawn >> 32
            length = 1 + low % len(parts)
            start = high % (len(parts) - length + 1)
            return " ".join(parts[start : start + length])
        return parts[drawn % len(parts)]

    def _parts(self, index: int) -> Sequence[str]:
        """The sections or sentences to draw from; none where the text is empty."""
        text = self._texts[index]
        return _sections(text, self._cuts[index]) if self._choice == "section" else _sentences(text)

    def _find_mixed(self) -> frozenset[int]:
        """The groups whose examples could read different parts at one draw."""
        first: dict[int, int] = {}
        mixed: set[int] = set()
        for index, group in enumerate(self._groups.tolist()):
            other = first.setdefault(group, index)
            same_text = self._texts[other] == self._texts[index]
            same = same_text and self._cuts[other] == self._cuts[index]
            if not same and group not in mixed and self._keys(other) != self._keys(index):
                mixed.add(group)
        return frozenset(mixed)

    def _keys(self, index: int) -> list[str]:
        return [reports.canonical(part) for part in self._parts(index)]


def _sections(text: str, cuts: Sequence[int]) -> tuple[str, ...]:
    """The sections of a text; all but the last end at `cuts`, see `Corpus.cuts`."""
    starts, ends = [0, *(cut + 1 for cut in cuts)], [*cuts, len(text)]
    return tuple(text[start:end] for start, end in zip(starts, ends, strict=True))


@functools.lru_cache(1 << 14)
def _sentences(text: str) -> tuple[str, ...]:
    return tuple(reports.split_sentences(text))


@functools.lru_cache(1 << 16)
def text_group(text: str) -> int:
    """A number in the range of i32 that is equal for texts with equal canonical forms."""
    return _number(f"text {reports.canonical(text)}")


def _number(name: str) -> int:
    return int(np.int64(_hash(name) & 0xFFFFFFFF).astype(np.int32))


def _hash(text: str) -> int:
    """A 64-bit hash."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
