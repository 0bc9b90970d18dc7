"""Changes the zone, lobe or end of the same lung: "left lower lobe" -> "left upper lobe".

Upper, middle and lower are exchanged for each other, likewise base and apex, basilar and apical,
bibasilar and biapical, in the lungs and (for fractures and curves) in the thoracic spine. Lobes
become lobes that exist: only the right lung has a middle lobe, and the lingula, which is part of
the left upper lobe, becomes the left lower lobe (Netter, Atlas of Human Anatomy: the lungs in
situ).

Not changed: what is denied, normal, gone, questioned or guessed (`claims.asserted`); units with
more than one zone ("upper and lower lobes"); units with another landmark of height, such as a rib,
the hilum or the diaphragm; a zone that the report elsewhere gives to a thing of the same kind;
"upper limits", "lower lung volumes", "apical lordotic view", segments of lobes.
"""

import functools
import re

from mmrl.data.perturb.claims import ZONES, asserted, in_zone, marks, units
from mmrl.data.perturb.edits import Edit, Edits, Span, like, with_article
from mmrl.data.perturb.report import ParsedReport

_ANY = ("upper", "lower", "mid", "bas", "apic", "apex", "lingul")
_LANDMARK = re.compile(
    r"\b(?:\d+(?:st|nd|rd|th)|ribs?|hil(?:um|ar|a)|suprahilar|infrahilar|perihilar|costophrenic|"
    r"\w*diaphragm\w*|retrocardiac|fissures?|segments?|segmental|cardiac|heart|cap|capping|"
    r"clavic\w+|azygos|lordotic|superior|inferior|cardiophrenic|epicardial|thoracic apex|aort\w+|"
    r"infracarinal|lobectomy|overlap|obscure)\b",
    re.IGNORECASE,
)
_FINDING = (
    r"(?=\s+(?:(?!(?:and|or|with|of|in|the|is|are|may|represent\w*|consistent|compatible|"
    r"concerning|suspicious|suggest\w*|"
    r"noted|seen|which|likely|due|to|has|have|from|without|secondary|XXXX)\b)[a-z/-]+\s+){0,3}?"
    r"(?:opacit\w+|densit\w+|consolidation|infiltrat\w+|air\s?space|"
    r"atelecta\w+|scar\w*|nodul\w+|granulom\w+|mass|effusions?|disease|pneumoni\w+|interstitial|"
    r"markings|changes|thickening|pneumothorax|calcifi\w+|bull\w+))"
)
_LUNG = re.compile(
    r"(?<![\w-])(?P<zone>upper|lower|middle|mid)(?= (?:lung\b|lungs\b|zones?\b|hemithorax\b|"
    r"thoracic (?:spine|vert\w+)))(?! lung (?:volumes?|markings))|"
    r"(?<![\w-])(?P<midlung>mid-?lungs?)(?![\w-])|"
    rf"(?<=left )(?P<left>upper|lower|mid)(?! lobe){_FINDING}|"
    rf"(?<=right )(?P<right>upper|lower|mid)(?! lobe){_FINDING}",
    re.IGNORECASE,
)
_LOBE = re.compile(r"\b(?P<side>right )?(?P<zone>upper|middle|lower)(?= lobes?\b)", re.IGNORECASE)
_LINGULA = re.compile(
    r"\b(?:(?P<the>the )?(?:left )?(?P<noun>lingula)(?=\s*(?:[.,]|$|is|are|which|with|may))|"
    r"(?:left )?(?P<adjective>lingular)(?= (?!lobe|segment|region)\w))",
    re.IGNORECASE,
)
_ENDS = {
    "base": "apex", "bases": "apices", "apex": "base", "apices": "bases", "basilar": "apical",
    "basal": "apical", "bibasilar": "biapical", "bibasal": "biapical", "biapical": "bibasilar",
    "apical": "basilar",
}  # fmt: skip
_BEFORE_END = re.compile(
    r"\b(?:lungs?|left|right|both|bilateral|medial|lateral|posterior|(?:in|at|within) the|"
    r"in|at)\s+\Z",
    re.IGNORECASE,
)
_END = re.compile(
    rf"\b(?:(?:lung (?=\w+{_FINDING}))?(?P<noun>bases?|apex|apices)(?P<before>{_FINDING})?|"
    r"(?P<adjective>(?:bi)?(?:basilar|basal|apical)))\b(?!\s+(?:segment|lordotic|artery|of))",
    re.IGNORECASE,
)
_SPINE = re.compile(r"\bthoracic\b", re.IGNORECASE)
_IN_SPINE = re.compile(r"\b(?:fracture|wedg\w+|compression|deformity|scoli\w+|curv\w+)", re.I)
_HEIGHT = {"apex": "upper", "apices": "upper", "apical": "upper", "biapical": "upper"}
_LEVELS = ("upper", "mid", "lower")


def _of_lung(text: str) -> list[tuple[str, Edit]]:
    """(zone, edit) for "upper lung", "mid zone", "midlung", "left lower atelectasis"."""
    found = []
    for match in _LUNG.finditer(text):
        old = match[0].lower()
        if _SPINE.match(text, match.end() + 1) and not _IN_SPINE.search(text):
            continue
        for level in _LEVELS:
            if not old.startswith(level):
                new = f"{level} {old[old.index('l') :]}" if match["midlung"] else level
                found.append((level, (match.start(), match.end(), like(match[0], new))))
    return found


def _of_lobe(text: str) -> list[tuple[str, Edit]]:
    """(zone, edit) for lobes and the lingula."""
    found = []
    for match in _LOBE.finditer(text):
        old = match["zone"].lower()
        levels = ("upper", "middle", "lower") if match["side"] else ("upper", "lower")
        if old in levels:
            for level in levels:
                if level != old:
                    edit = match.start("zone"), match.end("zone"), like(match["zone"], level)
                    found.append((level[:3] if level == "middle" else level, edit))
    for match in _LINGULA.finditer(text):
        old = match[0][len(match["the"] or "") :]
        start = match.end() - len(old)
        found.append(("lower", (start, match.end(), like(old, "left lower lobe"))))
    return found


def _of_end(text: str) -> list[tuple[str, Edit]]:
    """(zone, edit) for base and apex."""
    found = []
    for match in _END.finditer(text):
        new = _ENDS[(match["noun"] or match["adjective"]).lower()]
        if match["noun"]:
            if not _BEFORE_END.search(text, 0, match.start()):
                continue
            if match["before"] is not None:
                new = "basilar" if new.startswith("base") else "apical"
        found.append((_HEIGHT.get(new, "lower"), (*match.span(), like(match[0], new))))
    return found


@functools.lru_cache(1 << 16)
def _reworded(text: str) -> tuple[tuple[str, Span, Edit], ...]:
    """(zone, segment, edit) of changes, to be made unless `in_zone` holds for (segment, zone)."""
    if sum(mark.meaning in ZONES for mark in marks(text)) != 1 or _LANDMARK.search(text):
        return ()
    found = []
    for zone, edit in (*_of_lung(text), *_of_lobe(text), *_of_end(text)):
        segment = asserted(text, edit[1] - 1)
        if segment is not None:
            found.append((zone, segment, with_article(text, edit)))
    return tuple(found)


def candidates(report: ParsedReport) -> list[Edits]:
    """Every change of a zone, see the module."""
    found: list[Edits] = []
    whole = report.text.lower()
    words = [word for word in _ANY if word in whole]
    for unit in units(report) if words else ():
        lowered = unit.text.lower()
        if not any(word in lowered for word in words):
            continue
        for zone, segment, (low, high, new) in _reworded(unit.text):
            if not in_zone(report, unit, segment, zone):
                found.append(((unit.start + low, unit.start + high, new),))
    return found
