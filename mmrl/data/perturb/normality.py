"""Turns "the heart is normal" into "the heart is not normal", likewise "the aorta is tortuous".

Used by `flip_negation`. Every word of the subject must be in `_SUBJECT`, so that "upper limits of
normal", "otherwise clear" and de-identified subjects do not match.
"""

import re
from collections.abc import Iterator

from mmrl.data.perturb.terms import word_set

_SUBJECT = word_set(
    """the heart cardiac cardio mediastinal cardiomediastinal cardiopulmonary mediastinum
    silhouette silhouettes size contour contours shadow configuration lungs lung
    fields bilateral left right upper lower both pleural space spaces surfaces osseous bony skeletal
    structures thorax thoracic trachea aorta aortic arch knob hila hilar hilum pulmonary vascularity
    vasculature vascular vessels markings pattern costophrenic angle angles sulcus sulci diaphragm
    diaphragms hemidiaphragm hemidiaphragms bones bone ribs rib soft tissues tissue spine vertebral
    bodies visualized chest radiograph airway airways central of and volumes volume interstitium
    engorgement wall descending ascending great superior xxxx skeleton bowel upper abdomen gas"""
)
_FAMILY = {
    "heart": "heart", "cardiac": "heart", "cardiomediastinal": "heart", "silhouette": "heart",
    "lungs": "lung", "lung": "lung", "chest": "lung", "pleural": "pleura",
    "vascularity": "lung", "vasculature": "lung", "vessels": "lung", "vascular": "lung",
    "costophrenic": "pleura", "osseous": "bone", "bony": "bone", "skeletal": "bone",
    "bones": "bone", "spine": "bone", "ribs": "bone", "vertebral": "bone", "thorax": "bone",
    "skeleton": "bone", "trachea": "vessel", "aorta": "vessel", "aortic": "vessel",
    "mediastinum": "vessel", "mediastinal": "vessel", "hila": "vessel", "hilar": "vessel",
    "airway": "vessel", "airways": "vessel", "diaphragm": "abdomen", "diaphragms": "abdomen",
    "hemidiaphragm": "abdomen", "hemidiaphragms": "abdomen", "soft": "other", "upper abdomen":
    "abdomen", "volumes": "volume",
}  # fmt: skip
"""Structure -> the family of findings that would make it abnormal."""

_GOOD = (
    r"(?:normal|within\s+normal\s+limits|within\s+limits\s+of\s+normal|unremarkable|clear|intact|"
    r"midline|sharp|(?:well[- ])?expanded|well[- ](?:aerated|inflated)|normally\s+inflated|"
    r"preserved|patent)"
)
_BAD = (
    r"(?:enlarged|hyperinflated|hyperexpanded|hypoinflated|tortuous|ectatic|calcified|elevated|"
    r"blunted|raised|increased|prominent|low|widened|dilated|flattened|osteopenic|demineralized|"
    r"kyphotic|congested|collapsed|decreased|diminished)"
)
_HOW = (
    r"(?:(?:grossly|mildly|moderately|severely|slightly|markedly|minimally|significantly|again|"
    r"partly|somewhat|diffusely|also|mild|moderate|severe)\s+)*"
)
_IN = (
    r"(?P<where>\s+(?:(?:in|for)\s+)?(?:size|contour|appearance|configuration|shape|age|patient\s+age|"
    r"caliber)(?:\s+and\s+(?:size|contour|configuration|shape|appearance))?)?"
)
_BE = r"(?P<be>is|are|appears?|remains?)"
_COPULA = re.compile(
    rf"(?P<subject>[a-z][\w\s,-]*?)\s+(?:{_BE}\s+)?{_HOW}"
    rf"(?:(?P<good>{_GOOD}(?:\s+and\s+{_GOOD})?)|(?P<bad>{_BAD}(?:\s+and\s+{_BAD})?))"
    rf"(?:\s+bilaterally)?{_IN}(?P<by>\s+by\s+.*)?",
    re.IGNORECASE,
)
_NOT = re.compile(
    rf"(?P<subject>[a-z][\w\s,-]*?)\s+{_BE}\s+not\s+(?P<how>{_HOW})(?P<what>{_GOOD}|{_BAD}){_IN}",
    re.IGNORECASE,
)
_HEADLINE = re.compile(
    rf"(?:there\s+(?:is|are)\s+)?(?:an?\s+)?{_HOW}(?P<what>normal|clear|intact|sharp|shallow|{_BAD})\s+"
    r"(?P<subject>[a-z][\w\s,-]*?)(?:\s+bilaterally)?(?:\s+are\s+present)?",
    re.IGNORECASE,
)
_OF_NORMAL = re.compile(
    r"(?P<front>(?P<subject>[a-z][\w\s,-]*?)\s+of|(?:frontal\s+and\s+lateral\s+views\s+of\s+the\s+"
    r"(?P<chest>chest)\s+show))\s+normal\s+(?P<rest>(?:size|contour)\b.*)",
    re.IGNORECASE,
)
_ARTICLE = re.compile(r"the\s+", re.IGNORECASE)
_BOTH = re.compile(r"\bboth\s+", re.IGNORECASE)
_AND = re.compile(r"\s+and\s+", re.IGNORECASE)
_COUNTED = frozenset(("thorax", "aorta", "trachea", "heart", "mediastinum"))

Flipped = tuple[str, frozenset[str]]
"""The new clause, and the families of findings that it newly asserts."""


def _families(subject: str) -> frozenset[str]:
    """Families of the structures of a subject; empty unless every word is known."""
    words = subject.lower().replace(",", " ").split()
    if not set(words) <= _SUBJECT or "of" in (words[0], words[-1]):
        return frozenset()
    return frozenset(_FAMILY[word] for word in words if word in _FAMILY)


def _plural(subject: str) -> bool:
    words = subject.lower().split()
    return "and" in words or (words[-1].endswith("s") and words[-1] not in ("thorax", "pelvis"))


def normality(clause: str) -> Iterator[Flipped]:
    """All reversals of a clause that calls a structure normal or abnormal."""
    if match := _NOT.fullmatch(clause):
        families = _families(match["subject"])
        if families:
            how = match["how"].lower().replace("grossly ", "")
            where = match["where"] or ""
            new = f"{match['subject']} {match['be']} {how}{match['what']}{where}"
            yield new, families
    elif match := _OF_NORMAL.fullmatch(clause):
        families = _families(match["subject"] or match["rest"])
        if families:
            yield f"{match['front']} abnormal {match['rest']}", families
    elif match := _COPULA.fullmatch(clause):
        yield from _copula(match)
    elif match := _HEADLINE.fullmatch(clause):
        yield from _headline(match)


def _copula(match: re.Match[str]) -> Iterator[Flipped]:
    subject, where = match["subject"], match["where"] or ""
    families = _families(subject)
    good, bad = match["good"], match["bad"]
    if not families or (good and match["by"]) or (not match["be"] and bad):
        return
    what = _AND.sub(" or ", good or bad)
    if where.strip() and where.split()[0].lower() not in ("in", "for"):
        where = f" in{where}"
    subject = _BOTH.sub("the ", subject)
    be = (match["be"] or "").lower()
    if not be.startswith("appear"):
        be = "are" if be in ("are", "remain") or (not be and _plural(subject)) else "is"
    newly = families if good else frozenset()
    if what.lower() != "unremarkable":
        does = {"appear": "do not appear", "appears": "does not appear"}.get(be, f"{be} not")
        yield f"{subject} {does} {what}{_AND.sub(' or ', where)}", newly
    if what.lower() in ("normal", "unremarkable"):
        yield f"{subject} {be} abnormal{where}", newly


def _headline(match: re.Match[str]) -> Iterator[Flipped]:
    subject, what = match["subject"], match["what"].lower()
    families = _families(subject)
    if not families or "," in subject:
        return
    if what == "normal":
        yield f"abnormal {subject}", families
        return
    newly = frozenset() if re.fullmatch(_BAD, what) else families
    the = "" if _ARTICLE.match(subject) or subject.lower().startswith("lung v") else "the "
    yield f"{the}{subject} {'are' if _plural(subject) else 'is'} not {what}", newly
