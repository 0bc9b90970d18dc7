"""Exchanges two findings: "small left effusion. No pneumothorax." becomes "small left pneumothorax.
No pleural effusion."

The findings are exchanged throughout the report. Either one is affirmed and the other denied
without restriction, or both are affirmed, on different sides. Both statements are then false.

Only findings of lung, pleura and heart are exchanged, and only if the new name fits what the report
says of the old one: findings of the lung can have a zone, those of the pleura only a side, diffuse
findings neither. Degrees are translated ("small" effusion, "mild" edema), articles adapted, and
attributes that the new finding cannot have ("calcified", "layering", a size in mm) left out. Not
changed: hedged statements, restricted denials ("no large effusion", "no acute infiltrate", "no
effusion on the left"), and clauses with a de-identified word.
"""

import dataclasses
import functools
import itertools
import re

from mmrl.data.perturb.edits import Edit, Edits, shifted, word_edits
from mmrl.data.perturb.finding_traits import FINDINGS, ROUND, VAGUE
from mmrl.data.perturb.phrases import is_attribute
from mmrl.data.perturb.report import ParsedReport
from mmrl.data.perturb.statements import Statement, analyse, statements
from mmrl.data.perturb.terms import TERMS, word_set

_COURSE = word_set(
    "stable unchanged persistent residual new recurrent definite visible any obvious"
)
_SIDES = word_set("left right left-sided right-sided")
_BOTH = word_set("bilateral both bilaterally")
_ZONES = word_set(
    """upper lower mid middle lobe lobes zone zones midlung lingula lingular apex apices lung lungs
    perihilar retrocardiac hilum hilar infrahilar suprahilar"""
)
_TO_SIZE = {"mild": "small", "severe": "large", "slight": "small", "marked": "large",
            "minimal": "small", "extensive": "large"}  # fmt: skip
_TO_GRADE = {"small": "mild", "large": "severe", "tiny": "minimal", "trace": "minimal"}
_GRADES = word_set("mild moderate severe small large tiny slight marked minimal extensive trace")
_APPEARANCE = word_set(
    """focal patchy dense hazy streaky linear calcified noncalcified rounded loculated subsegmental
    discoid plate-like diffuse interstitial increased airspace alveolar layering lobar old chronic
    acute scattered multiple basilar bibasilar apical biapical"""
)
_ZONED = word_set("basilar bibasilar apical biapical")
_LIMITING = word_set(
    """large small acute new other further additional left right bilateral significant suspicious
    calcified noncalcified displaced upper lower change changes lobar mild moderate severe"""
)
_SURE = word_set("focal definite visible visualized obvious evident any discrete convincing")
_TOKEN = re.compile(r"[\w/.-]*\w|[,;:()]")
_BEFORE = word_set(
    "no of with is are or and , ; for without shows show contains demonstrates has there nor any"
)
_AFTER = word_set(
    """, ; in at on is are or and with without seen noted present identified layering projects
    within over nor but bilaterally visualized demonstrated evident of"""
)
_STRANGE = re.compile(r"\b(?:keeping|indistinct\w*|by|due|XXXX)\b|\?", re.IGNORECASE)
_MEASURE = re.compile(r"\s+of\s+\d+(?:\.\d+)?\s*(?:mm|cm)\b")
_SIZE = re.compile(r"\d+(?:\.\d+)?|(?:\d+(?:\.\d+)?-?)?(?:mm|cm)")
_OVER = re.compile(r"[\w\s]*?\b(?:overl\w+|project\w*|measur\w*)\b", re.IGNORECASE)
_MARK = re.compile(r"\d{1,2}[.)]\s+")  # of a numbered list
_OF = re.compile(
    r"\b(?:evidence|signs?|findings?|areas?|bands?|focus|foci|amount|degree|free|clear)\s+of\s+"
    r"(?:an?\s+)?\Z",
    re.IGNORECASE,
)
_PART = re.compile(r"\b(?:areas?|bands?|focus|foci|amount|degree)\s+of\s+\Z", re.IGNORECASE)
_LUNGS = re.compile(r"\blungs?\b", re.IGNORECASE)
_LAYERING = re.compile(r"\s+layering\b")
_VERB = re.compile(r"\b(?:is|are|was|were|has|have|shows?|contains?|demonstrates?)\b")


@dataclasses.dataclass(frozen=True)
class _Slot:
    """A phrase that names a finding, with its attributes.

    Attributes:
      start, end: character span in the sentence, with its article.
      concept: the finding.
      plural: whether it is plural.
      denied: whether the sentence denies it.
      limited: whether it cannot be exchanged: it is hedged or not understood, or its denial is
        restricted.
      article: the article in lower case, "" for none.
      words: the attributes.
      headline: whether the clause has no verb, so that no article is needed.
      opens: whether the sentence begins with it.
      sides, zones: words for its place, in the phrase and after it.
    """

    start: int
    end: int
    concept: str
    plural: bool
    denied: bool
    limited: bool
    article: str
    words: tuple[str, ...]
    headline: bool
    opens: bool
    sides: frozenset[str]
    zones: frozenset[str]


@functools.lru_cache(1 << 16)
def _slots(sentence: str) -> tuple[_Slot, ...]:
    """The findings of a sentence; one that is `limited` prevents the exchange of its concept."""
    said = analyse(sentence)
    return tuple(
        _slot(said, mention.start, mention.end, mention.negated)
        for mention in said.mentions
        if mention.concept in FINDINGS
    )


def _slot(said: Statement, start: int, end: int, denied: bool) -> _Slot:
    text = said.text
    term = TERMS[" ".join(text[start:end].lower().split())]
    mark = _MARK.match(text)
    clause_low = max(text.rfind(";", 0, start) + 1, mark.end() if mark else 0)
    high = text.find(";", end)
    clause_high = len(text) if high < 0 else high
    clause = text[clause_low:clause_high]
    before = list(_TOKEN.finditer(text, clause_low, start))
    words: list[str] = []
    while before and (is_attribute(before[-1][0].lower()) or before[-1][0].lower() == "both"):
        start = before[-1].start()
        words.insert(0, before.pop()[0])
    article = ""
    if before and before[-1][0].lower() in ("a", "an"):
        start = before[-1].start()
        article = before.pop()[0].lower()
    previous = before[-1][0].lower() if before else ""
    earlier = [match[0].lower() for match in before if match[0].lower() not in ("and", "or", ",")]
    joined = previous in ("and", "or", ",") and bool(earlier) and is_attribute(earlier[-1])
    part = previous == "of" and not _OF.search(text, 0, start)
    after = [match[0].lower() for match in _TOKEN.finditer(text, end, clause_high)]
    strange = (
        joined
        or part
        or (previous and previous not in _BEFORE)
        or (after and after[0] not in _AFTER)
        or _STRANGE.search(clause) is not None
    )
    measure = _MEASURE.match(text, end)
    if measure:
        end = measure.end()
    elif after[:1] == ["of"]:
        strange = True
    tail = frozenset(itertools.takewhile(lambda word: word not in (",", ";"), after))
    lowered = {word.lower() for word in words}
    if denied:
        cue = max(low for low, high in said.negated if low <= start)
        shared = {match[0].lower() for match in _TOKEN.finditer(text, cue, start)}
        limited = bool(
            strange
            or lowered - _SURE
            or shared & _LIMITING
            or frozenset(after) & (_SIDES | _BOTH | _ZONES)
        )
    else:
        limited = bool(strange or said.hedged or said.normal)
    if not term.plural and after[:1] == ["are"] and previous not in ("and", "or", ","):
        limited = True
    named = lowered | tail
    return _Slot(
        start, end, term.concept, term.plural, denied, limited, article, tuple(words),
        not before and not _VERB.search(clause),
        start == (mark.end() if mark else 0),
        frozenset("left" if "left" in side else "right" for side in named & _SIDES)
        | (named & _BOTH),
        frozenset(named & (_ZONES | {"basilar", "apical", "bibasilar", "base", "bases"})),
    )  # fmt: skip


@functools.lru_cache(1 << 16)
def _renamed(text: str, slot: _Slot, concept: str) -> str | None:
    """The phrase of `slot` with another finding; None if that does not fit."""
    new = FINDINGS[concept]
    placed = slot.sides or slot.zones
    if (
        (slot.plural and not new.plural)
        or (placed and not new.where)
        or (slot.zones & _ZONES and new.where != "lung")
        or (slot.sides & _BOTH and not slot.plural and not new.mass)
        or (concept in ROUND and not slot.denied and not slot.zones)
        or (_PART.search(text, 0, slot.start) and (not new.mass or new.where != "lung"))
        or (not new.where and _LUNGS.search(text))
        or (new.where != "lung" and _OVER.match(text, slot.end))
        or (slot.plural and new.where == "side" and len(slot.sides - _BOTH) == 1)
    ):
        return None
    words = []
    for word in slot.words:
        lower = word.lower()
        if lower in _GRADES:
            if concept in ROUND and lower in ("moderate", "mild", "severe", "moderate-sized"):
                continue
            table = _TO_SIZE if new.sized else _TO_GRADE
            words.append(table.get(lower, lower))
        elif _SIZE.fullmatch(lower) or (lower in _APPEARANCE and lower not in new.attributes):
            if lower in _ZONED:
                return None
        elif lower in _COURSE | _SIDES | _BOTH | _ZONES or lower in new.attributes:
            words.append(lower)
        else:
            return None
    name = " ".join((*words, new.plural if slot.plural else new.singular))
    wanted = not slot.denied and not slot.headline and not slot.plural
    if (wanted or slot.article) and not new.mass:
        name = f"{'an' if name[0] in 'aeio' else 'a'} {name}"
    old = text[slot.start : slot.end]
    starts = slot.opens and not old[0].islower()  # "12 mm nodule"
    return name[0].upper() + name[1:] if old[0].isupper() or starts else name


def _apart(first: list[_Slot], second: list[_Slot]) -> bool:
    """Whether two affirmed findings are on different sides."""
    sides = [frozenset().union(*(slot.sides for slot in slots)) for slots in (first, second)]
    one_sided = all(len(side) == 1 and side <= {"left", "right"} for side in sides)
    every = all(slot.sides for slot in (*first, *second))
    return one_sided and every and sides[0] != sides[1]


def candidates(report: ParsedReport) -> list[Edits]:
    """Every exchange of two findings, see the module."""
    places: dict[str, list[tuple[int, str, _Slot]]] = {}
    for offset, said in statements(report):
        for slot in _slots(said.text):
            places.setdefault(slot.concept, []).append((offset, said.text, slot))
    usable = {
        concept: found
        for concept, found in places.items()
        if not any(slot.limited for _, _, slot in found)
    }
    found = []
    for name, other in itertools.combinations(usable, 2):
        ours, theirs = usable[name], usable[other]
        if _both_wrong([slot for *_, slot in ours], [slot for *_, slot in theirs]):
            there, here = _exchange(ours, other), _exchange(theirs, name)
            if there and here:
                found.append(tuple(sorted(there + here)))
    return found


def _both_wrong(first: list[_Slot], second: list[_Slot]) -> bool:
    """Whether exchanging two findings makes the statements on both of them false."""
    denied = [all(slot.denied for slot in slots) for slots in (first, second)]
    affirmed = [not any(slot.denied for slot in slots) for slots in (first, second)]
    if all(affirmed):
        vague = first[0].concept in VAGUE or second[0].concept in VAGUE
        return not vague and _apart(first, second)
    return (denied[0] and affirmed[1]) or (denied[1] and affirmed[0])


def _exchange(places: list[tuple[int, str, _Slot]], concept: str) -> list[Edit]:
    """The edits that put `concept` in all these places; [] if it does not fit in one of them."""
    edits: list[Edit] = []
    for offset, text, slot in places:
        new = _renamed(text, slot, concept)
        if new is None:
            return []
        edits += shifted(word_edits(text[slot.start : slot.end], new), offset + slot.start)
        drop = _LAYERING.match(text, slot.end)
        if drop and concept != "effusion":
            edits.append((offset + drop.start(), offset + drop.end(), ""))
    return edits
