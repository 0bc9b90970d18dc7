"""MedNLI: sentence pairs from the clinical notes of MIMIC-III with inference labels.

`path` holds `mli_{train,dev,test}_v1.jsonl` with 11,232, 1,395 and 1,422 pairs. Licence: PhysioNet
Credentialed Health Data License 1.5.0; access is credentialed and redistribution is not permitted.
Paper: Romanov and Shivade, EMNLP 2018, arXiv:1808.06752.

  * The id of a pair has the key pairID here and pair_id in RadNLI; both are read.
  * Clinicians wrote three hypotheses for each premise, so the leakage unit is the premise. Where
    two pairs have the same sentences, swapped, all pairs of both premises are one unit.
  * Premises come from MIMIC-III (`facts.within`); the patients are not known.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import ClassVar

from mmrl.data.overlap.joins import connected_components
from mmrl.data.reading.drafts import Draft, Facts
from mmrl.data.reading.sentence_pairs import SentencePairs, text_digest
from mmrl.data.text.reports import canonical
from mmrl.types import Reject


class Mednli(SentencePairs):
    """Records of MedNLI; a Source. See `Listing` for options and `SentencePairs` for records."""

    facts = Facts(
        title="MedNLI: a natural language inference dataset for the clinical domain",
        url="https://physionet.org/content/mednli/",
        license="PhysioNet Credentialed Health Data License 1.5.0",
        access="credentialed",
        version="1.0.0",
        expected={"records/train": 11_232, "records/val": 1_395, "records/test": 1_422},
        within=("mimic_iii",),
    )
    files: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "train": ("mli_train_v1.jsonl",),
        "val": ("mli_dev_v1.jsonl",),
        "test": ("mli_test_v1.jsonl",),
    }

    def scan(self) -> Iterator[Draft | Reject]:
        """Yields the pairs in the order of their files; leakage units span all files."""
        items = list(super().scan())
        pairs = {
            item.id: (canonical(item.sections["premise"]), canonical(item.sections["hypothesis"]))
            for item in items
            if isinstance(item, Draft)
        }
        known = set(pairs.values())
        premises = sorted({premise for premise, _ in known})
        number = {premise: index for index, premise in enumerate(premises)}
        swapped = ((number[p], number[h]) for p, h in known if (h, p) in known)
        unit_of = connected_components(len(premises), swapped).tolist()
        for item in items:
            if isinstance(item, Draft):
                first = premises[unit_of[number[pairs[item.id][0]]]]
                item = dataclasses.replace(item, leakage_unit=text_digest(first))
            yield item
