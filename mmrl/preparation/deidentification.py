"""De-identification marks: the replacements of removed names, dates and places in reports."""

import re

from mmrl.preparation.holdings import Holdings
from mmrl.preparation.survey import Numbers

# The marks of Open-i, of MIMIC-CXR and of MIMIC-III, and the tags of common tools.
MARKS = {
    "XXXX": re.compile(r"X{3,}"),
    "___": re.compile(r"_{2,}"),
    "[** **]": re.compile(r"\[\*\*.*?\*\*\]", re.DOTALL),
    "tag": re.compile(
        r"[<\[](?:NAME|PATIENT|PERSON|DOCTOR|PHYSICIAN|DATE|TIME|AGE|ID|MRN|PHONE|LOCATION|"
        r"HOSPITAL|INSTITUTION|ADDRESS|EMAIL|REDACTED|REMOVED|DEIDENTIFIED|PHI)"
        r"(?:[-_: ]?\d*)[>\]]",
        re.IGNORECASE,
    ),
}
_SIGNS = ("XXX", "__", "[", "<")  # a text without any of them has no mark, which is quicker to see


def count_marks(held: Holdings) -> dict[str, Numbers]:
    """Section -> share of texts with a mark, marks per word, and how often each kind occurs.

    The composed text is the entry "text". Records that lack the text are left out.
    """
    found: dict[str, Numbers] = {}
    for name in ("text", *held.known):
        raw = held.composed if name == "text" else held.texts(name)
        texts = [text for text in raw if text]
        counts = dict.fromkeys(MARKS, 0)
        marked = words = 0
        for text in texts:
            words += len(text.split())
            if not any(sign in text for sign in _SIGNS):
                continue
            here = {kind: len(pattern.findall(text)) for kind, pattern in MARKS.items()}
            for kind, number in here.items():
                counts[kind] += number
            marked += any(here.values())
        total = sum(counts.values())
        found[name] = {
            "texts": len(texts),
            "records_share": marked / len(texts) if texts else 0.0,
            "words_share": total / words if words else 0.0,
            "forms": {kind: number for kind, number in counts.items() if number},
        }
    return found
