"""What a report places where, and whether one of its sentences plainly asserts it.

A *unit* is a sentence or a part of one up to a semicolon; a *segment* is a part of a unit that
stands on its own ("lungs clear, <small left effusion>, <no pneumothorax>"). The place or the side
of something may be reworded only in a segment that asserts something abnormal or a device there,
see `asserted`, and only if the report does not say the new thing elsewhere, see `on_side` and
`in_zone`. All of it rests on the `marks` of a unit: its words that mean something here.
"""

import functools
import itertools
import re
from typing import NamedTuple

from mmrl.data.perturb.edits import Span
from mmrl.data.perturb.report import ParsedReport
from mmrl.data.perturb.statements import analyse

SIDES = frozenset(("left", "right"))
ZONES = frozenset(("upper", "mid", "lower"))
_CACHED = 1 << 16

# Things by group: within a group one can be taken for another, so that "left opacity" next to
# "right atelectasis" is not safely false when it becomes "right opacity".
_GROUPS = {
    "lung": r"opaci\w+|densit\w+|consolidat\w+|infiltrat\w+|pneumonias?|airspace|atelecta\w+|"
    r"scar(?:s|ring)?|fibro\w+|haz\w+|collapsed?|loss|edema|markings|interstitial|bronchiectasis|"
    r"emphysem\w+|bull(?:ae?|ous)|blebs?|\w*lucen\w+|contusions?|infarct\w*|streak\w*|granulom\w+|"
    r"irregularit\w+|nodul\w+|mass(?:es|like)?|calcifi\w+|lesions?|cavit\w+|cysts?",
    "pleura": r"effusions?|pleural|blunt\w+|plaques?|capping|thickening|loculated",
    "pneumothorax": r"\w*pneumothora\w+",
    "diaphragm": r"elevat\w+|eventration|raised|tenting|hernia",
    "bone": r"fractur\w+|deformit\w+|degenerative|arthrit\w+|arthrosis|osteo\w+|dislocat\w+|"
    r"separation|sclero(?:tic|sis)|callus|wedg\w+|spurring|convex|curvature|\w*scolio\w+|"
    r"(?:dextro|levo)\w*",
    "hilum": r"\w*adenopathy|lymph(?: XXXX)?|fullness|prominen\w+|enlarge\w+|dilat\w+|retract\w+|"
    r"tortuous",
    "shift": r"deviat\w+|shift\w*|rotat\w+|displace\w+",
    "clips": r"clips?|sutures?|staples?|(?:post-?)?(?:surgical|operative)",
    "surgery": r"mastectomy|lobectomy|thoracotomy|pneumonectomy|resection|arthroplasty",
    "catheter": r"catheters?|lines?|picc?s?|ports?|port-a-cath|portacath|mediport|chest XXXX|"
    r"XXXX-a-XXXX|tunneled",
    "generator": r"pacemakers?|pacer|generator|a?icd|defibrillator|device|stimulator|leads?",
    "tube": r"tubes?|tips?|ett|tracheostomy|pigtail|drain\w*|tubing|shunt",
    "device": r"(?:midline )?sternotomy|wires|valves?|cabg|bypass|replacement|prosthe\w+|"
    r"implants?|hardware|screws?|plates?|rods?|stents?|bullets?|shrapnel|foreign|fragments?|"
    r"anchors?|fixation|pellets?",
}
_PLACES = {
    "left": r"left(?:-sided|wards?)?",
    "right": r"right(?:-sided|wards?)?",
    "both": r"bilateral(?:ly)?|both|biapical|bibasilar|bibasal|bihilar|symmetric\w*",
    "upper": r"upper|apical|apex|apices",
    "mid": r"mid|middle|mid-?lungs?|lingular?|perihilar",
    "lower": r"lower|basilar|basal|bases?|retrocardiac",
    "spread": r"diffuse\w*|scattered|multi\w+|numerous|several|throughout|few|some|all|lungs",
}
_DOUBTS = {
    # Calls things normal or gone, or asks: keeps the whole segment out.
    "normal": r"normal\w*|unremarkable|clear\w*|limits|negative|sharp|preserved|expanded|aerat\w+|"
    r"midline|remov\w+|resol\w+|previously|absen\w+|question\w*|exclud\w*|suspected|can(?:no)?t|"
    r"possible|probable|extubat\w+|history|contralateral|respect|longer|shadows?|artifacts?",
    # Guesses: keeps out what follows.
    "hedge": r"may|might|could|possibly|probably|likely|suspicio\w+|concern\w*|suggest\w*|versus|"
    r"vs|if|recommend\w*|consider\w*|evaluat\w*|differential|favor\w*|presum\w*|compatible|due|"
    r"consistent|represent\w*|perhaps|secondary|related|keeping",
}
_WORD = re.compile(r"(?:chest|lymph) XXXX|midline sternotomy|[a-z]+(?:-[a-z]+)*", re.IGNORECASE)
_ALSO = {
    "biapical": "upper", "bibasilar": "lower", "bibasal": "lower", "bases": "spread",
    "apices": "spread", "opacities": "spread", "nodules": "spread", "effusions": "spread",
    "granulomas": "spread", "granulomata": "spread",
}  # fmt: skip
_MEANING = re.compile(
    "|".join(f"(?P<{name}>{words})" for name, words in (_DOUBTS | _PLACES | _GROUPS).items()), re.I
)
_SEGMENT = re.compile(
    r",|:|\b(?:but|however|although|though|while|whereas|aside from|except(?: for)?|without|"
    r"with(?=\s+(?:no|normal|clear|otherwise)\b)|and(?=\s+(?:the|there|no|heart|lungs?|both)\b))",
    re.IGNORECASE,
)
_LEADING_PLACE = re.compile(r"[\s,]*(?:in|within|at|on|over|overlying|along|near)\b", re.IGNORECASE)
_COMPARES = re.compile(
    r"compared (?:to|with) the (?:left|right)|relative to|rather than|than the|rule out", re.I
)

BOTH_OF = {
    "base": "bases", "apex": "apices", "lobe": "lobes", "lung": "lungs", "zone": "zones",
    "midlung": "midlungs", "hilum": "hila", "shoulder": "shoulders", "axilla": "axillae",
    "hemidiaphragm": "hemidiaphragms",
}  # fmt: skip
"""Paired regions, singular -> plural."""
ONE_OF = {plural: singular for singular, plural in BOTH_OF.items()}
UNCOUNTED = (
    r"(?:opacities|densities|consolidation|infiltrates|air\s?space disease|atelectasis|scarring|"
    r"edema|nodules|granulomas|granulomata|blunting|thickening|fibrosis|emphysema|bullae|capping|"
    r"(?:atelectatic|degenerative|emphysematous|fibrotic|interstitial) changes|calcifications|"
    r"adenopathy|fullness|fractures|markings|haziness|haze)\b"
)
"""What can be on one side as well as on both without another number: mass nouns and plurals."""


class Unit(NamedTuple):
    """A sentence, or a part of one up to a semicolon: where it starts in the report, its text."""

    start: int
    text: str


class Mark(NamedTuple):
    """A word of a unit and what it means: a key of `_GROUPS`, `_PLACES` or `_DOUBTS`."""

    start: int
    meaning: str


class Claim(NamedTuple):
    """Something said to be present.

    Attributes:
      group: what kind of thing, a key of `_GROUPS`.
      sides: of `SIDES`; both for "bilateral" and for what is spread, none when unsaid.
      zones: of `ZONES`; none when unsaid.
    """

    group: str
    sides: frozenset[str]
    zones: frozenset[str]


@functools.lru_cache(1 << 12)
def units(report: ParsedReport) -> tuple[Unit, ...]:
    """The units of a report, in order."""
    found = []
    for low, high in report.sentences:
        start = low
        for part in report.text[low:high].split(";"):
            found.append(Unit(start, part))
            start += len(part) + 1
    return tuple(found)


@functools.lru_cache(_CACHED)
def _meanings(word: str) -> tuple[str, ...]:
    """What a word means here; "bibasilar" is "both" and "lower"."""
    match = _MEANING.fullmatch(word)
    if match is None or match.lastgroup is None:
        return ()
    also = _ALSO.get(word.lower())
    return (match.lastgroup, also) if also else (match.lastgroup,)


@functools.lru_cache(_CACHED)
def marks(text: str) -> tuple[Mark, ...]:
    """The words of a unit that mean something, in order."""
    return tuple(
        Mark(word.start(), meaning)
        for word in _WORD.finditer(text)
        for meaning in _meanings(word[0])
    )


def named(text: str, low: int, high: int) -> frozenset[str]:
    """What is meant by the words between two characters of a unit."""
    return frozenset(mark.meaning for mark in marks(text) if low <= mark.start < high)


@functools.lru_cache(_CACHED)
def segments(text: str) -> tuple[Span, ...]:
    """Character spans of a unit's segments; "in the left lung, ..." goes with what follows."""
    cuts = [0, *(match.start() for match in _SEGMENT.finditer(text)), len(text)]
    spans: list[Span] = []
    for low, high in itertools.pairwise(cuts):
        if (
            spans
            and _LEADING_PLACE.match(text, *spans[-1])
            and not _GROUPS.keys() & named(text, *spans[-1])
        ):
            spans[-1] = (spans[-1][0], high)
        elif text[low:high].strip(" ,.:"):
            spans.append((low, high))
    return tuple(spans)


@functools.lru_cache(_CACHED)
def asserted(text: str, position: int) -> Span | None:
    """The segment around `position` if it plainly asserts something there, else None."""
    low, high = next((span for span in segments(text) if span[0] <= position < span[1]), (0, 0))
    here = [mark for mark in marks(text) if low <= mark.start < high]
    doubtful = any(
        mark.meaning == "normal" or (mark.meaning == "hedge" and mark.start < position)
        for mark in here
    )
    if doubtful or "?" in text or "n't" in text or _COMPARES.search(text, low, high):
        return None
    denied = analyse(text).is_negated
    things = (mark.start for mark in here if mark.meaning in _GROUPS)
    return (low, high) if not denied(position) and not all(map(denied, things)) else None


@functools.lru_cache(_CACHED)
def claims(text: str) -> tuple[Claim, ...]:
    """What a unit claims to be present, in the widest sense: guesses count."""
    denied = analyse(text).is_negated
    found = []
    for low, high in segments(text):
        words = named(text, low, high)
        sides = words & SIDES
        if "both" in words or ("spread" in words and not sides):
            sides = SIDES
        affirmed = {
            mark.meaning
            for mark in marks(text)
            if low <= mark.start < high and mark.meaning in _GROUPS and not denied(mark.start)
        }
        found += [Claim(group, sides, words & ZONES) for group in affirmed]
    return tuple(found)


@functools.lru_cache(1 << 12)
def _elsewhere(report: ParsedReport, unit: Unit, low: int, high: int) -> tuple[Claim, ...]:
    """What the report says outside `unit` of the kinds of things that a segment of it names."""
    wanted = named(unit.text, low, high) & _GROUPS.keys()
    found: list[Claim] = []
    for other in units(report):
        if other.start != unit.start and any(mark.meaning in wanted for mark in marks(other.text)):
            found += (claim for claim in claims(other.text) if claim.group in wanted)
    return tuple(found)


def on_side(report: ParsedReport, unit: Unit, segment: Span, side: str) -> bool:
    """Whether the report may give `side`, outside `unit`, to what the segment names.

    A claim without zone may be in any zone; one without side is taken for the thing reworded.
    """
    claimed = [claim for claim in _elsewhere(report, unit, *segment) if side in claim.sides]
    zones = named(unit.text, *segment) & ZONES if claimed else ZONES
    return any(len(zones) != 1 or not claim.zones or zones & claim.zones for claim in claimed)


def in_zone(report: ParsedReport, unit: Unit, segment: Span, zone: str) -> bool:
    """Whether the report may give `zone`, outside `unit`, to what the segment names.

    A claim without zone is taken for the thing reworded, unless it is of both sides.
    """
    sides = named(unit.text, *segment) & SIDES
    return any(
        zone in claim.zones and (not sides or not claim.sides or bool(sides & claim.sides))
        if claim.zones
        else len(claim.sides) == 2
        for claim in _elsewhere(report, unit, *segment)
    )
