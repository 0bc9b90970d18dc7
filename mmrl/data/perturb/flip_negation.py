"""Denies what a report affirms, and affirms what it denies or calls normal.

Only clauses (sentences, or parts between semicolons) that are parsed completely are changed:

* a list of denied findings is affirmed, all of it or one finding, see `affirm`;
* an affirmed finding, list or device is denied, see `deny`;
* a structure called normal is called abnormal, and the reverse, see `normality`.

Not changed: hedged clauses; comparisons ("no change", "no longer"); "otherwise", "other"; findings
that the report asserts elsewhere by a related name ("no consolidation" if there is an opacity,
"lungs are clear" if there is a granuloma), because the new clause might then be true.
"""

import functools
import re

from mmrl.data.perturb.affirm import affirmed
from mmrl.data.perturb.deny import denied
from mmrl.data.perturb.edits import Edits, shifted, word_edits
from mmrl.data.perturb.normality import normality
from mmrl.data.perturb.report import ParsedReport
from mmrl.data.perturb.statements import analyse, statements

_RELATED = tuple(
    frozenset(name.strip() for name in names.split(","))
    for names in (
        "consolidation, opacity, airspace disease, infiltrate, pneumonia, density, atelectasis,"
        " collapse, mass, lesion, scarring, volume loss, cavity",
        "nodule, mass, granuloma, lesion, density, cavity, granulomatous disease, calcification,"
        " opacity",
        "edema, congestion",
        "effusion, hydropneumothorax, blunting",
        "pneumothorax, hydropneumothorax",
        "pleural thickening, pleural scarring, pleural plaque, blunting",
        "fracture, dislocation, deformity, bone abnormality, bone destruction",
        "degenerative change, osteophyte, arthritic change, bone abnormality",
        "scoliosis, kyphosis, curvature",
        "emphysema, hyperinflation",
        "atherosclerosis, calcification",
    )
)
"""Sets of concepts that may name the same shadow."""
_ANYTHING = frozenset(("abnormality", "disease", "process", "findings"))
_DENIAL = re.compile(r"\b(?:no|not|without|negative|free|clear)\b", re.IGNORECASE)
_CLAUSE = re.compile(r"[^;]+")
_MARK = re.compile(r"\d{1,2}[.)]\s+")  # of a numbered list
_END = re.compile(r"[\s.]*\Z")
_COMMON_FIRST = re.compile(r"[A-Z][a-z]|A\b")

_Flip = tuple[Edits, frozenset[str], frozenset[str]]
"""Edits of a sentence, and the concepts and families of findings that they newly assert."""


@functools.lru_cache(1 << 16)
def _flips(sentence: str) -> tuple[_Flip, ...]:
    """All changes of a sentence."""
    found: list[_Flip] = []
    none: frozenset[str] = frozenset()
    mark = _MARK.match(sentence)
    for part in _CLAUSE.finditer(sentence, mark.end() if mark else 0):
        text = part[0].lstrip()
        low = part.end() - len(text)
        clause = _END.sub("", text)
        if not clause or clause.isupper():
            continue
        common = _COMMON_FIRST.match(clause)
        lowered = clause[0].lower() + clause[1:] if common else clause
        said = analyse(clause if low or ";" in sentence else sentence)
        options = [(new, none, families) for new, families in normality(lowered)]
        if _DENIAL.search(clause):
            options += [(new, concepts, none) for new, concepts in affirmed(lowered)]
        elif not said.negated:
            options += [(new, none, none) for new in denied(lowered, said)]
        for new, concepts, families in options:
            if new != lowered:
                opens = low == (mark.end() if mark else 0) and not clause[0].islower()
                new = new[0].upper() + new[1:] if opens else new
                found.append((shifted(word_edits(clause, new), low), concepts, families))
    return tuple(found)


_BLOCKED: dict[str, frozenset[str]] = {
    concept: frozenset().union(*(group for group in _RELATED if concept in group))
    for group in _RELATED
    for concept in group
}


def candidates(report: ParsedReport) -> list[Edits]:
    """Every statement of the report that can be turned into its opposite, see the module."""
    known = statements(report)
    concepts: set[str] = set()
    families: set[str] = set()
    for _, said in known:
        for mention in said.mentions:
            if not mention.negated and mention.family != "device":
                families.add(mention.family)
                concepts.add(mention.concept)
                concepts |= _BLOCKED.get(mention.concept, frozenset())
    if not families.isdisjoint(("lung", "pleura", "heart", "other")):
        concepts |= _ANYTHING
    return [
        shifted(edits, offset)
        for offset, said in known
        for edits, claimed, amiss in _flips(said.text)
        if claimed.isdisjoint(concepts) and amiss.isdisjoint(families)
    ]
