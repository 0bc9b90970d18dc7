"""Sentence pairs of natural language inference, as the clinical corpora of them are distributed.

JSONL files, one for each split, one object a line: `gold_label`, `sentence1` (the premise),
`sentence2` (the hypothesis), and `pair_id` or `pairID`; parses may follow and are not read.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping
from typing import ClassVar

from mmrl.data.reading.drafts import Draft
from mmrl.data.reading.listing import Listing
from mmrl.data.text.reports import canonical
from mmrl.types import Entailment, Reject

LABELS = ("entailment", "neutral", "contradiction")
_REQUIRED, _OPTIONAL = ("gold_label", "sentence1", "sentence2"), ("pair_id", "pairID")


class SentencePairs(Listing):
    """Records of sentence pairs, without images; the base of such Sources.

    A subclass sets `files`, split -> names that its file may have, and may override
    `leakage_unit_of`.
    Ids are "{split}/{pair id}", or the row where a pair has none. Premise and hypothesis are
    sections, and the pair with its label is `entailment`.

    Attributes:
      rejects: beside those of `Listing`: bad_row, bad_label and empty_text.
    """

    files: ClassVar[Mapping[str, tuple[str, ...]]]

    def scan(self) -> Iterator[Draft | Reject]:
        """Yields the pairs in the order of their files: train, val, test."""
        found = False
        for split, names in self.files.items():
            candidates = [*names, *(f"{name}.gz" for name in names)]
            there = [n for n in candidates if os.path.isfile(os.path.join(self.path, n))]
            if there:
                found = True
                yield from self._read(split, there[0])
        if not found:
            self.find(*(name for names in self.files.values() for name in names))  # raises

    def leakage_unit_of(self, premise: str, hypothesis: str) -> str:
        """The leakage unit of a pair; the same where the two are swapped."""
        return unit(*sorted((canonical(premise), canonical(hypothesis))))

    def _read(self, split: str, table: str) -> Iterator[Draft | Reject]:
        for row in self.rows(table, _REQUIRED, _OPTIONAL):
            if isinstance(row, Reject):
                yield row
                continue
            number, cell = row
            native = f"{split}/{cell['pair_id'] or cell['pairID'] or f'row {number}'}"
            premise, hypothesis, label = cell["sentence1"], cell["sentence2"], cell["gold_label"]
            if label not in LABELS:
                detail = f"row {number}: {label!r}, expected one of: {', '.join(LABELS)}"
                yield Reject(f"{self.name()}:{native}", "bad_label", detail)
            elif not (premise and hypothesis):
                detail = f"row {number}: no {'hypothesis' if premise else 'premise'}"
                yield Reject(f"{self.name()}:{native}", "empty_text", detail)
            else:
                yield Draft(
                    native,
                    leakage_unit=self.leakage_unit_of(premise, hypothesis),
                    split=split,
                    sections={"premise": premise, "hypothesis": hypothesis},
                    entailment=Entailment(premise, hypothesis, label),
                )


def unit(*texts: str) -> str:
    """A short name of texts (BLAKE2b, 64 bits), for corpora that do not tell whose they are."""
    return hashlib.blake2b("\0".join(texts).encode(), digest_size=8).hexdigest()
