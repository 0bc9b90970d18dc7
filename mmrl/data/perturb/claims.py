"""Finds what a report asserts at which place, and whether it asserts it without qualification.

A *unit* is a sentence, or a part of one between semicolons. A *segment* is an independent part of a
unit ("lungs clear, <small left effusion>, <no pneumothorax>"). The place or side of something is
changed only in a segment that asserts an abnormality or a device there, see `asserted`, and only if
the report does not assert the new place elsewhere, see `on_side` and `in_zone`. All of this uses
the `marks` of a unit: its words for things, places and doubts.
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

# Words for things, by kind. Things of one kind can be mistaken for each other: in a report with
# "right atelectasis", the change of "left opacity" into "right opacity" might be true.
_THINGS = {
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
    # Normal, gone or questioned: nothing in the segment is asserted.
    "normal": r"normal\w*|unremarkable|clear\w*|limits|negative|sharp|preserved|expanded|aerat\w+|"
    r"midline|remov\w+|resol\w+|previously|absen\w+|question\w*|exclud\w*|suspected|can(?:no)?t|"
    r"possible|probable|extubat\w+|history|contralateral|respect|longer|shadows?|artifacts?",
    # Guessed: nothing after the word is asserted.
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
    "|".join(f"(?P<{name}>{words})" for name, words in (_DOUBTS | _PLACES | _THINGS).items()), re.I
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
"""Mass nouns and plurals, which need no other number for one side than for both."""


class Unit(NamedTuple):
    """A sentence, or a part of one between semicolons: its start in the report, and its text."""

    start: int
    text: str


class Mark(NamedTuple):
    """Start and meaning of a word of a unit: a key of `_THINGS`, `_PLACES` or `_DOUBTS`."""

    start: int
    meaning: str


class Claim(NamedTuple):
    """Something that a unit says to be present.

    Attributes:
      thing: its kind, a key of `_THINGS`.
      sides: of `SIDES`; both for "bilateral" and for spread things, none if not stated.
      zones: of `ZONES`; none if not stated.
    """

    thing: str
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
    """The meanings of a word, often none; "bibasilar" means "both" and "lower"."""
    match = _MEANING.fullmatch(word)
    if match is None or match.lastgroup is None:
        return ()
    also = _ALSO.get(word.lower())
    return (match.lastgroup, also) if also else (match.lastgroup,)


@functools.lru_cache(_CACHED)
def marks(text: str) -> tuple[Mark, ...]:
    """The words of a unit that have a meaning here, in order."""
    return tuple(
        Mark(word.start(), meaning)
        for word in _WORD.finditer(text)
        for meaning in _meanings(word[0])
    )


def named(text: str, low: int, high: int) -> frozenset[str]:
    """The meanings of the words that start at characters low to high - 1 of a unit."""
    return frozenset(mark.meaning for mark in marks(text) if low <= mark.start < high)


@functools.lru_cache(_CACHED)
def segments(text: str) -> tuple[Span, ...]:
    """Character spans of a unit's segments; "in the left lung," joins the segment after it."""
    cuts = [0, *(match.start() for match in _SEGMENT.finditer(text)), len(text)]
    spans: list[Span] = []
    for low, high in itertools.pairwise(cuts):
        if (
            spans
            and _LEADING_PLACE.match(text, *spans[-1])
            and not _THINGS.keys() & named(text, *spans[-1])
        ):
            spans[-1] = (spans[-1][0], high)
        elif text[low:high].strip(" ,.:"):
            spans.append((low, high))
    return tuple(spans)


@functools.lru_cache(_CACHED)
def asserted(text: str, position: int) -> Span | None:
    """The segment that contains `position`, if it asserts something without qualification."""
    low, high = next((span for span in segments(text) if span[0] <= position < span[1]), (0, 0))
    here = [mark for mark in marks(text) if low <= mark.start < high]
    doubtful = any(
        mark.meaning == "normal" or (mark.meaning == "hedge" and mark.start < position)
        for mark in here
    )
    if doubtful or "?" in text or "n't" in text or _COMPARES.search(text, low, high):
        return None
    denied = analyse(text).is_negated
    things = (mark.start for mark in here if mark.meaning in _THINGS)
    return (low, high) if not denied(position) and not all(map(denied, things)) else None


@functools.lru_cache(_CACHED)
def claims(text: str) -> tuple[Claim, ...]:
    """Everything that a unit says to be present, guesses included."""
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
            if low <= mark.start < high and mark.meaning in _THINGS and not denied(mark.start)
        }
        found += [Claim(thing, sides, words & ZONES) for thing in affirmed]
    return tuple(found)


@functools.lru_cache(1 << 12)
def _elsewhere(report: ParsedReport, unit: Unit, low: int, high: int) -> tuple[Claim, ...]:
    """Claims outside `unit` about the kinds of things that a segment of the unit names."""
    wanted = named(unit.text, low, high) & _THINGS.keys()
    found: list[Claim] = []
    for other in units(report):
        if other.start != unit.start and any(mark.meaning in wanted for mark in marks(other.text)):
            found += (claim for claim in claims(other.text) if claim.thing in wanted)
    return tuple(found)


def on_side(report: ParsedReport, unit: Unit, segment: Span, side: str) -> bool:
    """Whether the report may say, outside `unit`, that a thing of the segment is on `side`.

    A claim without a zone may be about any zone. A claim without a side is taken to be about the
    thing of the segment itself.
    """
    claimed = [claim for claim in _elsewhere(report, unit, *segment) if side in claim.sides]
    zones = named(unit.text, *segment) & ZONES if claimed else ZONES
    return any(len(zones) != 1 or not claim.zones or zones & claim.zones for claim in claimed)


def in_zone(report: ParsedReport, unit: Unit, segment: Span, zone: str) -> bool:
    """Whether the report may say, outside `unit`, that a thing of the segment is in `zone`.

    A claim without a zone is taken to be about the thing of the segment itself, unless it is about
    both sides.
    """
    sides = named(unit.text, *segment) & SIDES
    return any(
        zone in claim.zones and (not sides or not claim.sides or bool(sides & claim.sides))
        if claim.zones
        else len(claim.sides) == 2
        for claim in _elsewhere(report, unit, *segment)
    )
