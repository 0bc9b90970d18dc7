"""Changes left to right, both sides to one, or one side to both.

Only segments that assert an abnormality or a device are changed (`claims.asserted`):

* the side: "left base opacity" -> "right base opacity", for all mentions in the unit;
* the worse side: "left greater than right" -> "right greater than left";
* one side or both, with nouns, articles and verbs adapted: "There are small bilateral effusions"
  <-> "There is a small left effusion". A report that names one side is taken to mean only that one.

Not changed: what is denied, normal, gone, questioned or guessed; units that name both sides in
another way; chambers of the heart; organs, fissures and lobes that exist on one side only; a side
that the report elsewhere gives to a thing of the same kind. The right middle lobe and the lingula
are exchanged for each other.
"""

import functools
import re
from collections.abc import Iterator

from mmrl.data.perturb.claims import BOTH_OF, ONE_OF, UNCOUNTED, asserted, on_side, units
from mmrl.data.perturb.edits import Edit, Edits, Span, like
from mmrl.data.perturb.report import ParsedReport
from mmrl.data.perturb.statements import analyse

_OTHER = {"left": "right", "right": "left", "dextro": "levo", "levo": "dextro"}
_SIDE = re.compile(r"(?<![\w-])(?:left|right)(?:-sided|wards?)?(?![\w-])", re.IGNORECASE)
_BOTH = re.compile(
    r"\b(?:bilateral(?:ly)?|both|biapical|bibasilar|bibasal|bihilar|symmetric\w*)\b", re.IGNORECASE
)
_SIDES = (("left", "right"), ("right", "left"))
_ANY = ("left", "right", "bilat", "both", "bibas", "biapic", "lingul", "dextro", "levo")

# Sides that cannot be changed: heart chambers, projections, and "left" as a verb.
_FIXED = re.compile(
    r"\b(?:left|right)(?:-sided)?\s+(?:atri\w+|ventric\w+|heart(?!\s+border)|in (?:place|situ|XXXX)"
    r"|as\b|behind|lateral (?:view|projection|radiograph|decubitus)|(?:anterior|posterior) oblique|"
    r"coronary|main(?:stem)?\b)",
    re.IGNORECASE,
)
_ONE_SIDED = re.compile(
    r"\b(?:fissure|azygos|aortic (?:kno\w+|arch|contour)|liver|hepatic|spleen|splenic|stomach|"
    r"gastric|colon|gallbladder|gallstones?|cholecyst\w+|biliary|apex of the heart|cardiac apex|"
    r"minor|decubitus|segment|lobectomy)\b|(?<!right )\bmiddle|\bmiddle\b(?! lobe\b)",
    re.IGNORECASE,
)
_CURVE = re.compile(r"\b(?:dextro|levo)(?=-?(?:scolio|curv|convex|rot))", re.IGNORECASE)
_MIDDLE = re.compile(
    r"\b(?P<right>right\s+middle\s+lobe)\b|\b(?:left\s+)?(?P<left>lingula)(?P<adjective>r)?\b",
    re.IGNORECASE,
)
_MIDDLE_ALONE = re.compile(
    r"\s*(?:[.,]|$|(?:is|are|was|may|which|with|has|on|in|that|consistent|compatible)\b)"
)
_WORSE = re.compile(
    r"\b(left|right)(?:[- ]sided)?(?: side)? (?:greater|worse|more|larger|>)(?: \w+)? "
    r"(?:than )?(?:on )?(?:the )?(left|right)\b",
    re.IGNORECASE,
)
_GRADE = r"(trace|tiny|small|mild|minimal|moderate|large|severe)"
_UNEQUAL = re.compile(
    rf"\b{_GRADE} (?:on the )?(left|right) and {_GRADE} (?:on the )?(left|right)\b", re.IGNORECASE
)

_AT = r"\b(?:in|within|at|of|throughout|over|overlying|involving|on) "
_PART = r"(?:upper |lower |mid |mid-)?(?:lung )?"
_WORDS = r"(?:(?!(?:and|or|with|of|in|the|is|are)\b)[A-Za-z/-]+ ){0,4}?"
_PLACES = re.compile(
    rf"{_AT}(?P<both>(?:both|(?:the )?bilateral) (?P<noun>sides|(?!lobes){_PART}"
    rf"(?:{'|'.join(ONE_OF)})))\b",
    re.I,
)
_PLACE = re.compile(
    rf"{UNCOUNTED}[\w ]*{_AT}(?P<one>(?:the )?(?:left|right) (?P<noun>{_PART}(?:{'|'.join(BOTH_OF)}"
    r")))\b(?! (?:XXXX|zone))",
    re.I,
)
_BILATERAL = re.compile(
    r"\b(?P<both>bilateral |bi)(?=(?:(?P<near>basilar|basal|apical|lower|upper|lung|hilar|rib|"
    rf"pleural|perihilar|costophrenic|acromio\w+)\b )?{_WORDS}{UNCOUNTED})|{UNCOUNTED} "
    r"(?P<after>bilaterally)\b",
    re.I,
)
_ALONE = re.compile(
    r"(?<!\ba )(?<!\ban )(?<!\bthe )\b(?P<one>(?:left|right)(?:-sided)? )(?!middle|lingul)"
    rf"(?P<near>(?=basilar |basal |apical )|(?:lung )?base )?(?={_WORDS}{UNCOUNTED})",
    re.I,
)
_AFTER_NOUN = re.compile(
    rf"(?:{UNCOUNTED}|\b(?:opacity|density|granuloma|infiltrate|nodule|scar)) \Z", re.I
)
_COUNTED = re.compile(
    r"\b(?:an?|single|focal|solitary|one|two|three|both|areas?|bands?|rounded|\d+(?![\d.)]))\b",
    re.I,
)
_ELSEWHERE = re.compile(r"\b(?:lungs|apices|bases|hila|lobes)\b", re.I)
_DEGREE = (
    r"(?:(?:very|trace|tiny|small|minimal|mild|moderate|moderately|large|severe|stable|chronic|"
    r"persistent|layering|new|slight|unchanged|sized|loculated|to|or) )*"
)
_EFFUSION = re.compile(
    r"(?P<there>\bthere (?:is|are) )?(?P<a>\ban? )?\b"
    rf"(?P<degree>{_DEGREE})(?P<side>(?:left |right |left-sided |right-sided |bilateral )?)"
    rf"(?P<more>{_DEGREE}(?:pleural )?)(?P<noun>effusions?)\b(?!/)(?P<verb> (?:is|are)\b)?"
    r"(?P<on> on (?:the (?:left|right)|both sides)\b)?(?! (?:which|that|measur))",
    re.I,
)
_OPENS = re.compile(r"(?:\A[\W\d]*|\b(?:with|and|of|has|shows?|plus) |, )\Z", re.I)


def _flipped(start: int, word: str) -> Edit:
    """The edit that reverses the side with which a word begins."""
    side = next(side for side in _OTHER if word.lower().startswith(side))
    return start, start + len(side), like(word[: len(side)], _OTHER[side])


def _middle(text: str, match: re.Match[str]) -> str | None:
    """The lingula for the right middle lobe, and the reverse; None if the wording is unclear."""
    article = text[: match.start()].lower().endswith("the ")
    alone = _MIDDLE_ALONE.match(text, match.end()) is not None
    if match["right"]:
        if article != alone:
            return None
        return like(match["right"], "lingula" if article else "lingular")
    if match["adjective"]:
        return None if alone else like(match[0], "right middle lobe")
    return like(match[0], "right middle lobe") if article and alone else None


def _one_for_other(text: str) -> tuple[str, list[Edit]] | None:
    """(new side, edits) that reverse the only side of a unit; None if that is impossible."""
    fixed = [match.span() for match in _FIXED.finditer(text)]
    middle = list(_MIDDLE.finditer(text))
    fixed += [match.span() for match in middle]
    edits, old_sides = [], set()
    for match in (*_SIDE.finditer(text), *_CURVE.finditer(text)):
        if not any(low <= match.start() < high for low, high in fixed):
            old_sides.add("left" if match[0][:1] in "lL" else "right")
            edits.append(_flipped(match.start(), match[0]))
    for match in middle:
        new = _middle(text, match)
        if new is None:
            return None
        old_sides.add("right" if match["right"] else "left")
        edits.append((match.start(), match.end(), new))
    if len(old_sides) != 1 or _BOTH.search(text) or _ONE_SIDED.search(text):
        return None
    return _OTHER[old_sides.pop()], sorted(edits)


def _exchanged(text: str) -> list[Edit]:
    """Edits that reverse "left greater than right" or "mild left and severe right"."""
    edits: list[Edit] = []
    for match in _WORSE.finditer(text):
        if match[1].lower() != match[2].lower():
            edits += [_flipped(match.start(n), match[n]) for n in (1, 2)]
    for match in _UNEQUAL.finditer(text):
        if match[2].lower() != match[4].lower() and match[1].lower() != match[3].lower():
            edits += [_flipped(match.start(n), match[n]) for n in (2, 4)]
    return edits


def _effusions(match: re.Match[str], side: str) -> str | None:
    """The phrase with its effusions on `side` (left, right, both); None if that is impossible."""
    place, plural = match["side"] + (match["on"] or ""), match["noun"][-1] in "sS"
    both = "b" in place.lower()
    if not place or both != plural or both == (side == "both") or (match["side"] and match["on"]):
        return None
    if not match["there"] and not match["a"] and not _OPENS.search(match.string, 0, match.start()):
        return None
    article = match["a"] or (plural and (match["there"] or match["verb"] or match.start()))
    words = match["degree"] + (
        "" if match["on"] else "bilateral " if side == "both" else side + " "
    )
    words += match["more"] + "effusion"
    if side == "both":
        words += "s"
        there, verb, on = "there are ", " are", " on both sides"
    else:
        there, verb, on = "there is ", " is", f" on the {side}"
        if article:
            words = f"{'an' if words[0] in 'aeiouAEIOU' else 'a'} {words[0].lower()}{words[1:]}"
    words = there * bool(match["there"]) + words + verb * bool(match["verb"])
    return like(match[0].strip(), words) + on * bool(match["on"])


def _to_one(match: re.Match[str], group: str, pattern: str) -> Iterator[tuple[str, Edit]]:
    for side, other in _SIDES:
        new = like(match[group], pattern.replace("*", side))
        yield other, (match.start(group), match.end(group), new)


def _one_side(text: str) -> Iterator[tuple[str, Edit]]:
    """(side that is dropped, edit) for every "bilateral", "both" and "bilaterally"."""
    for match in _PLACES.finditer(text):
        *part, noun = match["noun"].split(" ")
        if noun != "sides":
            yield from _to_one(match, "both", " ".join(("the *", *part, ONE_OF[noun.lower()])))
        elif "effusions" not in text[: match.start()]:
            yield from _to_one(match, "both", "the *")
    for match in () if _ELSEWHERE.search(text) else _BILATERAL.finditer(text):
        if match["after"]:
            yield from _to_one(match, "after", "on the *")
        else:
            yield from _to_one(match, "both", "* " if match["near"] else "*-sided ")


def _both_sides(text: str) -> Iterator[tuple[str, Edit]]:
    """(side that is added, edit) for what is on one side, in any number."""
    for match in (*_PLACE.finditer(text), *_ALONE.finditer(text)):
        start = match.start("one")
        if _COUNTED.search(text, 0, start):
            continue
        if match.re is _ALONE:
            if _AFTER_NOUN.search(text, 0, start):
                continue
            near = match["near"]
            new = "bilateral " if near is None else "bibasilar " if near else "bi"
        else:
            *part, noun = match["noun"].split(" ")
            new = " ".join(("both", *part, BOTH_OF[noun.lower()]))
        gained = "right" if "left" in match["one"].lower() else "left"
        end = match.end("near" if new == "bibasilar " else "one")
        yield gained, (start, end, like(match["one"], new))


def _numbered(text: str) -> list[tuple[str, Edit]]:
    """(side that must not be asserted elsewhere, edit) of changes between one side and both."""
    found = [*_one_side(text), *_both_sides(text)]
    for match in _EFFUSION.finditer(text) if "ffusion" in text else ():
        for side, other in (*_SIDES, ("both", "left" if "right" in match[0].lower() else "right")):
            new = _effusions(match, side)
            if new is not None:
                found.append((other, (*match.span(), new)))
    return found


def _may_be_numbered(text: str) -> bool:
    """Whether a unit names one side, or both, only once."""
    both, one = [word.lower() for word in _BOTH.findall(text)], _SIDE.findall(text)
    if both and not one:  # "bilateral effusions and bibasilar opacities" are two things
        ends = {"bibasilar", "bibasal", "biapical"} & set(both)
        return len(both) == 1 or (len(both) == 2 and bool(ends) and "ffusion" in text)
    return len(one) == 1 and not both and not _ONE_SIDED.search(text)


@functools.lru_cache(1 << 16)
def _reworded(text: str) -> tuple[tuple[str, tuple[Span, ...], list[Edit]], ...]:
    """(side, segments, edits) of changes, to be made unless `on_side` holds for a segment."""
    exchanged = _exchanged(text)
    if exchanged:
        more = len(_SIDE.findall(text)) > len(exchanged)
        denied = analyse(text).is_negated(exchanged[0][0])
        return () if more or denied or "?" in text else (("", (), exchanged),)
    found: list[tuple[str, list[Edit]]] = []
    turned = _one_for_other(text)
    if turned is not None:
        found.append(turned)
    if _may_be_numbered(text):
        found += [(side, [edit]) for side, edit in _numbered(text)]
    kept = []
    for side, edits in found:
        spans = [asserted(text, end - 1) for _, end, _ in edits]
        segments = tuple(span for span in spans if span is not None)
        if len(segments) == len(spans):
            kept.append((side, segments, edits))
    return tuple(kept)


def candidates(report: ParsedReport) -> list[Edits]:
    """Every change of sides, see the module."""
    found: list[Edits] = []
    whole = report.text.lower()
    words = [word for word in _ANY if word in whole]
    for unit in units(report) if words else ():
        lowered = unit.text.lower()
        if not any(word in lowered for word in words):
            continue
        for side, segments, edits in _reworded(unit.text):
            if not any(on_side(report, unit, segment, side) for segment in segments):
                start = unit.start
                found.append(tuple((start + low, start + high, new) for low, high, new in edits))
    return found
