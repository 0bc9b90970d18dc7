"""Rules that read the class of a record in its text, by versioned names.

A rule that changes what it finds gets a new version, because figures depend on it.
"""

import re
from collections.abc import Callable, Mapping

MODALITIES: Mapping[str, str] = {
    "CT": r"\b(?:CT|CTA|HRCT|MDCT|CBCT)\b|\bcompute(?:d|ri[sz]ed)\b[\w -]{0,20}tomogra",
    "MRI": r"\b(?:f?MRI|MRA|MRCP)\b|\bMR[- ](?:imag|scan|angio|chol|arthro|uro|entero|veno)|"
    r"\bmagnetic[- ]resonance\b",
    "X-ray": r"\bx[- ]?rays?\b|\bradiographs?\b|\broentgenogra|\bplain films?\b",
    "ultrasound": r"ultraso|sonogra|echocardiogra|\bdoppler\b",
}
_NUCLEAR = r"\b(?:PET|SPECT|positron)\b|scintigra"


def modality(caption: str) -> str:
    """The one modality that a caption names, a key of `MODALITIES`; "" otherwise.

    Captions that name several, or nuclear imaging beside one, state none.
    """
    named = [name for name, words in MODALITIES.items() if re.search(words, caption, re.I)]
    return named[0] if len(named) == 1 and not re.search(_NUCLEAR, caption, re.I) else ""


RULES: Mapping[str, Callable[[str], str]] = {"modality@1": modality}
"""Name and version -> what reads the class in a text; "" where the text states none."""
