"""RadNLI: sentence pairs from reports of MIMIC-CXR with inference labels.

`path` holds `radnli_dev_v1.jsonl` and `radnli_test_v1.jsonl` with 480 pairs each; there is no
training set. Licence: PhysioNet Credentialed Health Data License 1.5.0; access is credentialed and
redistribution is not permitted. Paper: Miura et al., NAACL 2021, arXiv:2010.10042.

  * dev is split val.
  * Each pair occurs a second time with the sentences swapped; both have the same leakage unit.
  * The sentences come from MIMIC-CXR (`facts.within`); the patients are not known.
    `leakage_unit_known` refers to the pair.
"""

from collections.abc import Mapping
from typing import ClassVar

from mmrl.data.reading.drafts import Facts
from mmrl.data.reading.sentence_pairs import SentencePairs


class Radnli(SentencePairs):
    """Records of RadNLI; a Source. See `Listing` for options and `SentencePairs` for records."""

    facts = Facts(
        title="RadNLI: a natural language inference dataset for the radiology domain",
        url="https://physionet.org/content/radnli-report-inference/",
        license="PhysioNet Credentialed Health Data License 1.5.0",
        access="credentialed",
        version="1.0.0",
        expected={"records/val": 480, "records/test": 480},
        within=("mimic_cxr",),
    )
    files: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "val": ("radnli_dev_v1.jsonl",),
        "test": ("radnli_test_v1.jsonl",),
    }
