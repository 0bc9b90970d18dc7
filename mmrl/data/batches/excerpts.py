"""What training reads of a report: all of it, or a part drawn for each step. config.data.text."""

import functools
import hashlib
from collections.abc import Sequence

import numpy as np

from mmrl import build
from mmrl.data.corpus import Corpus
from mmrl.data.text import reports
from mmrl.types import InputError

CHOICES = ("report", "section", "sentence", "sentences")
"""report: all wanted sections. section: one of those that are present. sentence: one sentence, as
ConVIRT samples them (Zhang et al. 2022, "Contrastive learning of medical visual representations",
section 3). sentences: a run of neighbouring sentences, its length drawn uniformly from one to all,
then its start. Evaluation always reads all."""


def check(choice: str) -> None:
    """Raises InputError unless `choice` is one of `CHOICES`."""
    if choice not in CHOICES:
        raise InputError(build.unknown("config.data.text", choice, CHOICES))


class Excerpts:
    """(index, step) -> what is read of a report at a step, and the group it then belongs to.

    The draw depends on (seed, step, group of the record in its corpus), so that examples of the
    same study, and of equal reports, read the same part wherever they stand in a batch. The group
    of a whole report is that of the corpus. That of a part is the hash of its canonical text (32
    bits: two different texts meet once in 4e9 pairs): in one batch two examples are no negatives of
    each other when they are of one study, when their reports are equal, or when their parts are.
    Only where a group of the corpus joins reports that differ (two reports of one study), its
    examples keep a number of the group instead: they stay no negatives of each other, and are not
    marked as equal to parts of other studies.

    Args:
      choice: one of `CHOICES`. seed: of the draws.
    """

    def __init__(self, corpus: Corpus, choice: str, seed: int) -> None:
        check(choice)
        self._texts, self._groups, self._cuts = corpus.texts, corpus.groups, corpus.cuts
        self._choice, self._seed = choice, seed
        self._mixed = frozenset() if choice == "report" else self._find_mixed()

    def __call__(self, index: int, step: int) -> tuple[str, int]:
        """The text, and its group as i32."""
        group = int(self._groups[index])
        if self._choice == "report":
            return self._texts[index], group
        parts = self._parts(index)
        drawn = _hash(f"{self._seed}/{step}/{group}")
        if self._choice == "sentences":
            low, high = drawn & 0xFFFFFFFF, drawn >> 32
            length = 1 + low % len(parts)
            start = high % (len(parts) - length + 1)
            text = " ".join(parts[start : start + length])
        else:
            text = parts[drawn % len(parts)]
        name = f"group {group}" if group in self._mixed else f"text {reports.canonical(text)}"
        return text, int(np.int64(_hash(name) & 0xFFFFFFFF).astype(np.int32))

    def _parts(self, index: int) -> Sequence[str]:
        """What is drawn from; never empty."""
        text = self._texts[index]
        return _sections(text, self._cuts[index]) if self._choice == "section" else _sentences(text)

    def _find_mixed(self) -> frozenset[int]:
        """The groups whose examples would not read the same part at the same draw."""
        first: dict[int, int] = {}
        mixed: set[int] = set()
        for index, group in enumerate(self._groups.tolist()):
            other = first.setdefault(group, index)
            same = (self._texts[other], self._cuts[other]) == (
                self._texts[index],
                self._cuts[index],
            )
            if not same and group not in mixed and self._keys(other) != self._keys(index):
                mixed.add(group)
        return frozenset(mixed)

    def _keys(self, index: int) -> list[str]:
        return [reports.canonical(part) for part in self._parts(index)]


def _sections(text: str, cuts: Sequence[int]) -> tuple[str, ...]:
    """The sections of a text that end at `cuts`, the last at its end."""
    starts, ends = [0, *(cut + 1 for cut in cuts)], [*cuts, len(text)]
    return tuple(text[start:end] for start, end in zip(starts, ends, strict=True))


@functools.lru_cache(1 << 14)
def _sentences(text: str) -> tuple[str, ...]:
    return tuple(reports.split_sentences(text))


def _hash(text: str) -> int:
    """64 bits."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
