"""Sentence pairs of natural language inference, as the clinical corpora distribute them.

There is one JSONL file for each split, with one object per line: `gold_label`, `sentence1` (the
premise), `sentence2` (the hypothesis), and `pair_id` or `pairID`. Other keys are not read.
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
    """Records of sentence pairs, without images; the base class of such Sources.

    A subclass sets `files`: split -> the names that its file may have. The id of a record is
    "{split}/{pair id}", with the number of the row where a pair has no id. Premise and hypothesis
    are sections; the pair with its label is `entailment`, and the three labels are 1 or 0.

    Attributes:
      rejects: reasons are those of `Listing`, bad_row, bad_label and empty_text.
    """

    files: ClassVar[Mapping[str, tuple[str, ...]]]
    label_names = LABELS

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
        """The leakage unit of a pair, which is the same when the two sentences are swapped."""
        return text_digest(*sorted((canonical(premise), canonical(hypothesis))))

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
                    labels=tuple(int(label == name) for name in LABELS),
                    entailment=Entailment(premise, hypothesis, label),
                )


def text_digest(*texts: str) -> str:
    """A digest of texts (BLAKE2b, 64 bits), the leakage unit where a corpus has no patients."""
    return hashlib.blake2b("\0".join(texts).encode(), digest_size=8).hexdigest()
