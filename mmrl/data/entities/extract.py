"""Finds the entities of a report: findings, devices and anatomy with their attributes.

Rules of English alone, no learned weights: the same text always gives the same entities, in time
that grows linearly with its length. A sentence is cut into clauses (`perturb.claims.segments`).
Within a clause a finding takes its attributes from the words before it that can only belong to it
("small left | effusion"), then from what follows it up to the next finding ("| on the left"), then
from what begins the clause ("the left lung shows | ..."), then from a finding that it is joined to
("left effusion and | atelectasis"). Denials are those of NegEx (Chapman et al. 2001), as
`perturb.statements` reads them.
"""

import dataclasses
import functools
import itertools
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from mmrl.data.entities.lexicon import ADJECTIVES, NAMED, NAMES
from mmrl.data.perturb import claims, degrees, phrases, statements
from mmrl.data.perturb.edits import Span
from mmrl.data.perturb.terms import word_set
from mmrl.data.text.reports import sentence_spans

KINDS = (
    "finding",
    "device",
    "anatomy",
    "side",
    "severity",
    "change",
    "negation",
    "uncertainty",
)
CHANGES = ("new", "worse", "better", "stable", "resolved")

_LONGEST = 1000  # characters of a sentence that are read together; bounds the work per character
_CACHED = 1 << 16


@dataclasses.dataclass(frozen=True, slots=True)
class Entity:
    """A part of a report that names something.

    Findings and devices have the attributes; anatomy has a side. The words for side, severity,
    change, negation and uncertainty are entities themselves, without attributes. A finding with two
    sides and a severity for each ("small left and large right effusions") is two entities of one
    span.

    Attributes:
      kind: one of KINDS.
      name: of findings, devices and anatomy a name of `lexicon.CHOICES`; of a side left, right or
        bilateral; of a change one of CHANGES; else the words in lower case.
      start, end: characters of the report.
      sentence: number of the sentence, from 0.
      clause: number of the clause within the report, from 0.
      side: left, right, bilateral, or "" where none is stated.
      zone: upper, mid, lower, or "" where none or several are stated.
      severity: the words of degree or size in lower case, "small" or "12 mm"; "" for none.
      change: one of CHANGES, or "".
      negated: whether the report denies it.
      uncertain: whether the report guesses it. Nothing is both negated and uncertain.
    """

    kind: str
    name: str
    start: int
    end: int
    sentence: int = 0
    clause: int = 0
    side: str = ""
    zone: str = ""
    severity: str = ""
    change: str = ""
    negated: bool = False
    uncertain: bool = False

    @property
    def degree(self) -> int | None:
        """0 weak, 1 moderate, 2 strong; None for a size in millimetres, or without a severity."""
        return degrees.LEVEL.get(re.sub(r"[ -]sized$", "", self.severity).replace(" ", "-"))


def extract(report: str) -> tuple[Entity, ...]:
    """The entities of an English report, in the order of their first characters.

    Which reports are English is for the caller to know, see `text.language`.
    """
    found: list[Entity] = []
    clause = 0
    for number, (low, high) in enumerate(sentence_spans(report)):
        for start, end in _pieces(report, low, high):
            entities, clauses = _of_sentence(report[start:end])
            found += (
                dataclasses.replace(
                    one,
                    start=one.start + start,
                    end=one.end + start,
                    sentence=number,
                    clause=one.clause + clause,
                )
                for one in entities
            )
            clause += clauses
    return tuple(found)


def _pieces(text: str, low: int, high: int) -> Iterable[Span]:
    """A sentence, cut at white space where it is longer than any that is written."""
    while high - low > _LONGEST:
        cut = text.rfind(" ", low, low + _LONGEST)
        cut = low + _LONGEST if cut <= low else cut
        yield low, cut
        low = cut
    yield low, high


# --- words ---------------------------------------------------------------------------------------


def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"\b(?:{pattern})\b", re.IGNORECASE)


_WORD = re.compile(r"[^\s,;:()]+")
_SIZE = re.compile(rf"(?:{degrees.DEGREE.pattern})|(?:{degrees.MEASURE.pattern})", re.IGNORECASE)
_SIDES = {"left": "left", "right": "right", "both": "bilateral"}
_PAIRED = frozenset(("bases", "apices", "hila", "hemidiaphragms", "axillae", "midlungs"))
_NO_ZONE = re.compile(
    r"upper\s+(?:limits?|abdom|quadrant)|base\w*\s+of\s+the\s+neck", re.IGNORECASE
)
_NO_SIDE = re.compile(r"[\w-]+\s+(?:atri|ventric|heart|main\b|aort)", re.IGNORECASE)
_INNER = word_set(
    """area areas focus foci band bands amount degree volume sized of both bilaterally likely
    possible probable questionable interval similar increased decreased worsening improving improved
    enlarging new resolving greater larger worse"""
)
_LINK = frozenset(("and", "to", "or", "and/or", "than"))
_PLACES = word_set(
    """left right upper mid middle lower greater larger worse midlung basilar basal bibasilar apical
    lobe lobes zone base lung perihilar hilar"""
)
_JOINED = re.compile(
    r"\s*(?:,\s*)?(?:and/or|and|or|with|versus|vs\.?|/|plus)?\s*"
    r"(?:(?:associated|adjacent|underlying|accompanying|some|overlying|subjacent|a|an)\s+)*",
    re.IGNORECASE,
)
_JOIN = re.compile(r",|\b(?:and|or|with|without|versus|vs|as well as|plus)\b", re.IGNORECASE)
_OF_ADJECTIVE = re.compile(
    r"\s+(?:displaced|angulated|comminuted|depressed|impacted|calcified)", re.I
)
_LISTED = re.compile(r"\s*(?:,|,?\s*and|/|or)\s*(?:the\s+)?(?:left\s+|right\s+)?", re.IGNORECASE)
_STOP = _compiled(
    r"is|are|was|were|of|in|on|at|with|to|by|from|over|and|or|shows?|contains?|which|has|have|the"
)
_EXPLAINS = re.compile(
    r"\s*,?\s*(?:(?:most\s+)?(?:likely|probably|possibly)\s+)?(?:consistent|compatible|in keeping|"
    r"represent\w*|suggest\w*|suspicious|concern\w+|reflect\w*|due|may|could|likely|probably|"
    r"possibly|X{4})\b",
    re.IGNORECASE,
)
_EXPLAINED = _compiled(
    r"consistent\s+with|compatible\s+with|in\s+keeping\s+with|represent\w*|suggest\w*|reflect\w*|"
    r"(?:suspicious|concern\w*|worrisome)\s+for|due\s+to|related\s+to|(?:may|could|might)\s+be"
)
# Names that have no side, so that a side is never handed on to them.
_UNSIDED = frozenset(
    (
        "cardiomegaly", "heart failure", "hernia", "pneumoperitoneum", "pneumomediastinum",
        "mediastinal widening", "scoliosis", "kyphosis", "curvature", "osteopenia",
        "hyperinflation", "low lung volumes", "tortuosity", "ectasia", "pulmonary hypertension",
        "abnormality", "disease", "process", "findings", "degenerative change",
    )
)  # fmt: skip
_NOT_EXCLUDED = (
    r"(?:can\s?not|can't|could\s+not|not)\s+(?:be\s+)?(?:entirely\s+|completely\s+|definitely\s+)?"
    r"(?:exclud\w+|ruled?\s+out)|(?:not|does\s+not)\s+exclude"
)
_GUESS = _compiled(
    rf"{_NOT_EXCLUDED}|appears?\s+to\s+represent|may|might|could|possibl[ey]|possibility|probabl[ey]|likely|suspicious|suspected|"
    r"suspicion|questionable|question\s+of|questioned|concern\w*|worrisome|suggest\w*|versus|vs|"
    r"consider\w*|(?:to|please)\s+exclude|rule\s+out|differential|favor\w*|presum\w+|perhaps|"
    r"potential\w*|equivocal|if"
)
_GUESSED = _compiled(
    rf"{_NOT_EXCLUDED}|(?:is|are|was|were|also|remains?)\s+(?:also\s+)?(?:possible|likely|probable|suspected|"
    r"questioned|questionable|considered|favored)|(?:may|might|could)\s+be\s+(?:present|seen|there)|"
    r"versus|vs|should\s+be\s+considered"
)
_GUESS_END = re.compile(
    r";|:|\.(?=\s)|\b(?:but|however|although|though|without|there\s+(?:is|are))\b|,\s+(?:and|no)\b",
    re.I,
)
_OR = re.compile(r"\s*(?:,\s*)?(?:or|and/or|versus|vs\.?|/)\s+", re.IGNORECASE)
_CHANGES = {
    name: _compiled(words)
    for name, words in {
        "stable": r"stable|unchanged|no\s+(?:\w+\s+){0,2}change|not\s+(?:\w+\s+)?changed|"
        r"persist\w+|similar|again\s+(?:seen|noted|identified|demonstrated)|without\s+(?:\w+\s+){0,2}change",
        "new": r"new|newly|(?:interval\s+)?develop(?:ed|ing|ment)",
        "worse": r"worsen\w*|worse|progress(?:ed|ing|ion)|enlarging|"
        r"larger(?!\s+than\s+(?:the\s+)?(?:left|right))|interval(?:ly)?\s+increase[d]?|(?:has|have)\s+increased|increas(?:ed|ing)\s+(?:in\s+size|"
        r"since|from|compared)",
        "better": r"improv\w+|decreas\w+|resolving|smaller|clearing|regress\w+",
        "resolved": r"resolved|cleared|resolution",
    }.items()
}


class _Attribute(NamedTuple):
    """A word or phrase of a sentence that qualifies something: its place, kind and normal form."""

    start: int
    end: int
    kind: str
    name: str


def _attributes(text: str) -> list[_Attribute]:
    """Sides, zones, severities and changes of a sentence, in order."""
    found = []
    for mark in claims.marks(text):
        word = _WORD.match(text, mark.start)
        assert word is not None
        if mark.meaning in _SIDES and not _NO_SIDE.match(text, mark.start):
            found.append(_Attribute(*word.span(), "side", _SIDES[mark.meaning]))
        elif mark.meaning == "spread" and word[0].lower().rstrip(".") in _PAIRED:
            found.append(_Attribute(*word.span(), "pair", "bilateral"))
        elif mark.meaning in claims.ZONES and not _NO_ZONE.match(text, mark.start):
            found.append(_Attribute(*word.span(), "zone", mark.meaning))
    found += (_Attribute(*m.span(), "severity", _plain(m[0])) for m in _SIZE.finditer(text))
    for name, pattern in _CHANGES.items():
        found += (_Attribute(*match.span(), "change", name) for match in pattern.finditer(text))
    return sorted(found)


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


# --- one sentence --------------------------------------------------------------------------------


@functools.lru_cache(_CACHED)
def _of_sentence(text: str) -> tuple[tuple[Entity, ...], int]:
    """(entities with places in the sentence, number of clauses)."""
    attributes = _attributes(text)
    negated, guessed = statements.analyse(text), _guessed(text)
    found: list[Entity] = []
    before: Entity | None = None
    spans = _clauses(text)
    for number, (low, high) in enumerate(spans):
        names = _names(text, low, high)
        own = [one for one in attributes if low <= one.start < high]
        things = _qualified(text, low, high, names, own)
        if before and _EXPLAINS.match(text, low) and things and things[0].kind == "finding":
            of = {key: getattr(things[0], key) or getattr(before, key) for key in _OF_SHADOW}
            things[0] = dataclasses.replace(things[0], **of)
        doubtful = _alternatives(text, things)
        for position, one in enumerate(things):
            cut = any(a <= one.start < b for a, b in guessed) or position in doubtful
            certain_no = one.negated or negated.is_negated(one.start)
            unsure = any(a <= one.start < b for a, b in guessed if _excluded(text, a, b))
            found.append(
                dataclasses.replace(
                    one,
                    clause=number,
                    negated=certain_no and not unsure,
                    uncertain=(cut and not certain_no) or unsure,
                )
            )
        found += (one for one in _anatomy(names, own, number))
        before = things[-1] if things else before
    found += (
        Entity(one.kind, one.name, one.start, one.end, clause=_at(spans, one.start))
        for one in attributes
        if one.kind in KINDS
    )
    for kind, patterns in _CUES.items():
        found += (
            Entity(kind, _plain(cue[0]), *cue.span(), clause=_at(spans, cue.start()))
            for cue in _distinct(text, patterns)
        )
    return tuple(sorted(found, key=lambda one: (one.start, one.end))), len(spans)


_OF_SHADOW = ("side", "zone", "severity")  # what a shadow hands on to its explanation
_CUES = {"negation": (statements.CUE, statements.POST_CUE), "uncertainty": (_GUESS,)}


def _distinct(text: str, patterns: Sequence[re.Pattern[str]]) -> list[re.Match[str]]:
    """The matches of several patterns, without those that begin within another."""
    found = sorted(
        itertools.chain.from_iterable(one.finditer(text) for one in patterns),
        key=lambda match: match.span(),
    )
    kept: list[re.Match[str]] = []
    for match in found:
        if not kept or match.start() >= kept[-1].end():
            kept.append(match)
    return kept


def _at(spans: Sequence[Span], position: int) -> int:
    """The number of the clause at a place; that before it where it lies between two."""
    return max((n for n, (low, _) in enumerate(spans) if low <= position), default=0)


def _clauses(text: str) -> list[Span]:
    """The clauses of a sentence; one without a name joins the one before it."""
    found: list[Span] = []
    start = 0
    for part in text.split(";"):
        for low, high in claims.segments(part):
            span = (low + start, high + start)
            if (
                found
                and not NAMED.search(text, *span)
                and text[found[-1][1] : span[0]].strip() != ";"
            ):
                found[-1] = (found[-1][0], span[1])
            else:
                found.append(span)
        start += len(part) + 1
    return found


def _names(text: str, low: int, high: int) -> list[_Attribute]:
    """The names in a clause, longest first at each place."""
    found: list[_Attribute] = []
    for match in NAMED.finditer(text, low, high):
        kind, name = NAMES[_plain(match[0])]
        last = found[-1] if found else None
        if last and last.kind == kind != "anatomy" and not text[last.end : match.start()].strip():
            found[-1] = last._replace(end=match.end())  # "fracture deformity" is one thing
        else:
            found.append(_Attribute(*match.span(), kind, name))
    return found


def _qualified(
    text: str, low: int, high: int, names: list[_Attribute], attributes: list[_Attribute]
) -> list[Entity]:
    """Findings and devices of a clause with side, zone, severity and change."""
    organs = [one for one in names if one.kind == "anatomy"]
    things = [one for one in names if one.kind != "anatomy"]
    starts = _starts(text, low, things, organs)
    stated = _by_adjective(text, low, high, organs, list(zip(starts, things, strict=True)))
    denied = {one.start for one in stated if one.kind == "denied"}
    things = sorted([*things, *stated])
    starts = _starts(text, low, things, organs)
    found: list[Entity] = []
    handed: list[tuple[str, str]] = []
    for i, thing in enumerate(things):
        after = starts[i + 1] if i + 1 < len(things) else high
        joins = list(_JOIN.finditer(text, thing.end, after)) if i + 1 < len(things) else []
        pre = _within(attributes, starts[i], thing.start)
        post = _within(attributes, thing.end, joins[-1].start() if joins else after)
        if i:
            joins = list(_JOIN.finditer(text, things[i - 1].end, starts[i]))
            lead = _within(attributes, joins[-1].end(), starts[i]) if joins else []
        else:
            lead = _within(attributes, low, starts[i])
        near = [one for one in lead if not _STOP.search(text, one.end, thing.start)]
        first = lead or _within(attributes, low, starts[0])
        side = _side(pre) or _side(post) or _side(first)
        zone = _zone(pre) or _zone(post) or _zone(first)
        finding = thing.kind != "device"
        pairs = _pairs(text, pre, finding) or _pairs(text, post, finding)
        size = _severity(text, pre, near, post) if finding else ""
        change = _change(pre, post, first)
        kind = "finding" if thing.kind == "denied" else thing.kind
        handed.append((side, zone))
        for own_side, own_size in pairs or [(side, size)]:
            found.append(
                Entity(
                    kind, thing.name, thing.start, thing.end, side=own_side, zone=zone,
                    severity=own_size, change=change, negated=thing.start in denied,
                )
            )  # fmt: skip
    return _shared(text, found, starts, things, attributes)


def _starts(text: str, low: int, things: list[_Attribute], organs: list[_Attribute]) -> list[int]:
    """Where the noun phrase of each thing begins: before the words that can only qualify it."""
    found = []
    for thing, floor in zip(things, [low, *(one.end for one in things)], strict=False):
        words = list(_WORD.finditer(text, floor, thing.start))
        start = thing.start
        while words:
            word = words.pop()
            plain = word[0].lower()
            organ = any(one.start <= word.start() < one.end for one in organs)
            if organ or phrases.is_attribute(plain) or plain in degrees.LEVEL or plain in _INNER:
                start = word.start()
            elif not (
                plain in _LINK and start < thing.start and words and _is_place(words[-1][0].lower())
            ):
                break
        found.append(start)
    return found


def _is_place(word: str) -> bool:
    return word in degrees.LEVEL or word in _PLACES


def _by_adjective(
    text: str, low: int, high: int, organs: list[_Attribute], nouns: list[tuple[int, _Attribute]]
) -> list[_Attribute]:
    """Findings that adjectives of an organ state; kind "denied" where they deny one."""
    found: list[_Attribute] = []
    names = {one.name for one in organs}
    for rule in ADJECTIVES:
        if not rule.organs & names:
            continue
        if rule.denies and any(one.name == rule.finding for _, one in nouns):
            continue
        for match in rule.words.finditer(text, low, high):
            inside = any(start <= match.start() < one.end for start, one in nouns)
            taken = any(one.start <= match.start() < one.end for one in (*organs, *found))
            if not inside and not taken and rule.organs & _described(text, organs, match):
                kind = "denied" if rule.denies else "finding"
                found.append(_Attribute(*match.span(), kind, rule.finding))
    return found


def _described(text: str, organs: list[_Attribute], adjective: re.Match[str]) -> set[str]:
    """The organs that an adjective is of: the last one before it, with those joined to it."""
    before = [one for one in organs if one.end <= adjective.start()]
    if not before:
        return {organs[0].name}
    names = {before[-1].name}
    for one, later in zip(before[-2::-1], before[:0:-1], strict=True):
        if not _LISTED.fullmatch(text, one.end, later.start):
            break
        names.add(one.name)
    return names


def _within(attributes: list[_Attribute], low: int, high: int) -> list[_Attribute]:
    return [one for one in attributes if low <= one.start < high]


def _side(attributes: list[_Attribute]) -> str:
    sides = {one.name for one in attributes if one.kind == "side"}
    if not sides:
        return "bilateral" if any(one.kind == "pair" for one in attributes) else ""
    return sides.pop() if len(sides) == 1 else "bilateral"


def _zone(attributes: list[_Attribute]) -> str:
    zones = {one.name for one in attributes if one.kind == "zone"}
    return zones.pop() if len(zones) == 1 else ""


def _change(*places: list[_Attribute]) -> str:
    """The change in the first place that states one."""
    return next((one.name for place in places for one in place if one.kind == "change"), "")


def _severity(text: str, *places: list[_Attribute]) -> str:
    """The severity in the first place that states one: a degree, else a size, else a density."""
    for attributes in places:
        words = [
            one.name
            for one in attributes
            if one.kind == "severity"
            and not (one.name.endswith("ly") and _OF_ADJECTIVE.match(text, one.end))
        ]
        if words:
            return min(words, key=lambda word: (word[0].isdigit(), word in degrees.DENSITY_WORDS))
    return ""


def _pairs(text: str, attributes: list[_Attribute], finding: bool) -> list[tuple[str, str]]:
    """(side, severity) of each side, where both sides have a severity of their own."""
    sides = [one.name for one in attributes if one.kind == "side"]
    sizes = [one.name for one in attributes if one.kind == "severity"]
    if finding and sorted(sides) == ["left", "right"] and len(sizes) == 2:
        return list(zip(sides, sizes, strict=True))
    return []


def _shared(
    text: str,
    found: list[Entity],
    starts: list[int],
    things: list[_Attribute],
    attributes: list[_Attribute],
) -> list[Entity]:
    """Hands side and zone on between things that are joined: "left effusion and atelectasis"."""
    place = dict(zip((one.start for one in things), starts, strict=True))
    result = list(found)

    def give(to: int, of: Entity, same: bool) -> None:
        one = result[to]
        if not one.side and one.name not in _UNSIDED and one.kind == "finding":
            result[to] = dataclasses.replace(one, side=of.side, zone=one.zone or of.zone)
        if same and not one.severity and one.kind == of.kind == "finding":
            result[to] = dataclasses.replace(result[to], severity=of.severity)

    for i in range(len(result) - 2, -1, -1):
        later = result[i + 1]
        gap = text[result[i].end : place[later.start]]
        own = _side(_within(attributes, place[later.start], later.start))
        if not own and _JOINED.fullmatch(gap):
            give(i, later, gap.strip() == "/")
    for i in range(1, len(result)):
        gap = text[result[i - 1].end : place[result[i].start]]
        if _JOINED.fullmatch(gap) or _EXPLAINED.search(gap):
            give(i, result[i - 1], gap.strip() == "/")
    return result


def _anatomy(
    names: list[_Attribute], attributes: list[_Attribute], clause: int
) -> Iterable[Entity]:
    """The organs of a clause; a side belongs to the next organ, and to one that holds it."""
    last = 0
    for one in names:
        if one.kind == "anatomy":
            side = _side(_within(attributes, last, one.end))
            yield Entity("anatomy", one.name, one.start, one.end, clause=clause, side=side)
        last = one.end


# --- guesses -------------------------------------------------------------------------------------


def _guessed(text: str) -> list[Span]:
    """The parts of a sentence that it only guesses; each begins or ends with its cue."""
    found = []
    for cue in _GUESS.finditer(text):
        end = _GUESS_END.search(text, cue.end())
        found.append((cue.start(), end.start() if end else len(text)))
    for cue in _GUESSED.finditer(text):
        low = max((m.end() for m in _GUESS_END.finditer(text, 0, cue.start())), default=0)
        found.append((low, cue.end()))
    if "?" in text:
        found += ((match.end(), len(text)) for match in re.finditer(r"\?\s*(?=\w)", text))
    return found


def _excluded(text: str, low: int, high: int) -> bool:
    """Whether the cue of a guess is that something cannot be excluded, which is no denial."""
    return _CANNOT.search(text, low, high) is not None


_CANNOT = _compiled(_NOT_EXCLUDED)


def _alternatives(text: str, things: Sequence[Entity]) -> set[int]:
    """Positions of the findings that are alternatives of each other: "atelectasis or scarring"."""
    found: set[int] = set()
    for i, (one, other) in enumerate(itertools.pairwise(things)):
        if _OR.match(text, one.end, other.start) and one.kind == other.kind == "finding":
            found |= {i, i + 1}
    return found


def adjacency(entities: Sequence[Entity]) -> tuple[tuple[int, int], ...]:
    """Pairs (finding or device, anatomy) that one clause names, as indices of `entities`."""
    found = []
    for _, group in itertools.groupby(
        sorted(enumerate(entities), key=lambda pair: pair[1].clause), lambda pair: pair[1].clause
    ):
        members = list(group)
        organs = [i for i, one in members if one.kind == "anatomy"]
        found += [
            (i, organ)
            for i, one in members
            if one.kind in ("finding", "device")
            for organ in organs
        ]
    return tuple(found)
