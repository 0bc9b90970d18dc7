"""Affirms what a clause denies: "no A or B is seen" -> "A and B are seen", "A is seen, but no B".

Used by `flip_negation`. A clause is changed only if it is parsed completely: a form of denial
("there is no ...", "no evidence of ...", "without ...", "free of ...", "negative for ...", "show no
...", "... is not seen") with a list of findings.
"""

import dataclasses
import re
from collections.abc import Iterator

from mmrl.data.perturb.phrases import DEGREES, Phrase, join, listed
from mmrl.data.perturb.statements import analyse
from mmrl.data.perturb.terms import word_set

_UNSURE = word_set(
    """any definite definitive visualized visible identifiable convincing demonstrable appreciable
    evident discrete obvious apparent"""
)
"""Words for the certainty of a denial; an affirmation leaves them out."""

_SEEN = (
    r"(?:clearly\s+|definitely\s+)*(?:seen|identified|present|noted|visuali[sz]ed|demonstrated|"
    r"appreciated|evident|detected|observed|apparent|visible|found|shown)"
)
_EVIDENCE = (
    r"(?:(?:(?:radiographic|definite|convincing|obvious|typical)\s+)*"
    r"(?P<evidence>evidence|signs?|findings?)\s+(?:of|for)\s+(?:an?\s+|any\s+)?)?"
)
_ENDING = (
    rf"(?:,?\s+(?P<verb>(?:(?:is|are|was|were)\s+)?{_SEEN}))?"
    r"(?P<where>\s+(?:in|on|at|within|over|throughout)\s+the\s+[\w\s-]+?)?"
    r"(?P<why>\s+(?:to\s+suggest|suggestive\s+of|suggesting|to\s+indicate)\s+[\w\s-]+)?"
)
_LEAD = r"(?P<lead>(?:specifically|however|overall|additionally|also|in addition),?\s+)?"
_NO = re.compile(
    rf"{_LEAD}(?:there\s+(?:is|are|was|were)\s+)?no\s+{_EVIDENCE}(?P<list>.+?){_ENDING}",
    re.IGNORECASE,
)
_NOT_SEEN = re.compile(
    rf"(?P<list>.+?)\s+(?P<copula>is|are)\s+not\s+(?P<verb>{_SEEN})(?P<where>\s+(?:in|on|at)\s.+)?",
    re.IGNORECASE,
)
_FREE = re.compile(
    r"(?P<subject>(?:(?:the|both|left|right|remaining|visualized)\s+)*lungs?(?:\s+fields)?)\s+"
    r"(?:is|are|appears?|remains?)\s+(?:grossly\s+)?(?:clear|free)\s+of\s+(?:any\s+)?"
    rf"{_EVIDENCE}(?P<list>.+)",
    re.IGNORECASE,
)
_SHOW = re.compile(
    r"(?P<subject>[^,]+?)\s+(?:(?P<show>shows?|demonstrates?|reveals?|displays?|contains?|has|have|"
    rf"exhibits?)\s+no|(?P<lack>is|are)\s+without)\s+{_EVIDENCE}(?P<list>.+)",
    re.IGNORECASE,
)
_NEGATIVE = re.compile(
    rf"(?P<subject>(?:[^,]+\s)?)negative\s+for\s+(?:any\s+)?{_EVIDENCE}(?P<list>.+)",
    re.IGNORECASE,
)
_SUFFIX = re.compile(
    r"(?P<head>.+?)(?P<link>,?\s+(?:and\s+)?without|,?\s+(?:and\s+|but\s+)?(?:with\s+)?no|,\s*no)\s+(?:any\s+)?"
    rf"{_EVIDENCE}(?P<list>.+?){_ENDING}",
    re.IGNORECASE,
)
_CLEAR_HEAD = re.compile(
    r"(?:(?:the|both)\s+)*(?:lungs?|lung\s+fields)\s+(?:are|appear|remain)\s+(?:grossly\s+)?clear"
    r"(?:\s+bilaterally)?",
    re.IGNORECASE,
)
_NORMAL = re.compile(r"\b(?:normal|unremarkable|clear|negative|intact|otherwise|free)\b", re.I)
_CHEST = re.compile(r"\b(?:lungs?|pulmonary|chest|pleural|spaces?)\b", re.IGNORECASE)
_WITH = re.compile(r"\bwith\b", re.IGNORECASE)
_VERB = re.compile(r"\b(?:is|are|was|were|has|have|no|not|without|which)\b", re.IGNORECASE)

Affirmed = tuple[str, frozenset[str]]
"""The new clause, and the concepts of the findings that it newly asserts."""


@dataclasses.dataclass(frozen=True)
class _Way:
    """One way to affirm a denied list.

    Attributes:
      text: what is affirmed, with "evidence of" where the denial has it.
      but: ", but no ..." with what remains denied, or "".
      plural: whether a verb before the text ("there are") is plural.
      many: whether a verb after the text ("are seen") is plural.
      concepts: of the affirmed findings.
    """

    text: str
    but: str
    plural: bool
    many: bool
    concepts: frozenset[str]


def _choices(items: tuple[Phrase, ...]) -> Iterator[tuple[tuple[Phrase, ...], list[Phrase]]]:
    """(affirmed, still denied): all findings, then each single one.

    "No large effusion or pneumothorax" may mean "no large pneumothorax". If the list begins with a
    degree, only its first finding is therefore affirmed alone.
    """
    yield items, []
    shared = any(word.lower() in DEGREES for word in items[0].before)
    for one in items[: 1 if shared else None] if len(items) > 1 else ():
        yield (one,), [other for other in items if other is not one]


def _ways(match: re.Match[str], articles: bool = True) -> Iterator[_Way]:
    items = listed(match["list"])
    evidence = match["evidence"]
    for chosen, rest in _choices(items) if items else ():
        texts = []
        for item in chosen:
            sure = item.without(_UNSURE)
            bare = item.plural or item.mass or evidence or not articles
            texts.append(sure.render("" if bare else item.article or "a"))
        text = join(texts, "and")
        denied = join([item.render() for item in rest], "or")
        plural = evidence.lower().endswith("s") if evidence else chosen[0].plural
        yield _Way(
            f"{evidence} of {text}" if evidence else text,
            f", but {'not of' if evidence else 'no'} {denied}" if rest else "",
            plural,
            plural or (len(chosen) > 1 and not evidence),
            frozenset(item.term.concept for item in chosen),
        )


def affirmed(clause: str) -> Iterator[Affirmed]:
    """All affirmations of a clause that denies; none if it is not understood."""
    if match := _NO.fullmatch(clause):
        yield from _no(match)
    elif match := _NOT_SEEN.fullmatch(clause):
        items = listed(match["list"])
        if len(items) == 1 and not _VERB.search(match["list"]):
            where = match["where"] or ""
            new = f"{match['list']} {match['copula']} {match['verb']}{where}"
            yield new, frozenset((items[0].term.concept,))
    elif match := _FREE.fullmatch(clause):
        show = "shows" if match["subject"].lower().endswith("lung") else "show"
        for way in _ways(match):
            yield f"{match['subject']} {show} {way.text}{way.but}", way.concepts
    elif match := _SHOW.fullmatch(clause):
        if not _VERB.search(match["subject"]):
            show = match["show"] or ("shows" if match["lack"].lower() == "is" else "show")
            for way in _ways(match):
                yield f"{match['subject']} {show} {way.text}{way.but}", way.concepts
    elif match := _NEGATIVE.fullmatch(clause):
        for way in _ways(match, articles=False):
            but = way.but.replace(", but no ", ", but negative for ")
            yield f"{match['subject']}positive for {way.text}{but}", way.concepts
    elif match := _SUFFIX.fullmatch(clause):
        yield from _with(match)


def _no(match: re.Match[str]) -> Iterator[Affirmed]:
    lead, verb = match["lead"] or "", match["verb"]
    where, why = match["where"] or "", match["why"] or ""
    for way in _ways(match):
        if way.but and why:
            continue
        if verb:
            new = f"{way.text} {_seen(verb, way.many)}{where}{way.but}{why}"
        else:
            new = f"there {'are' if way.plural else 'is'} {way.text}{where}{way.but}{why}"
        yield lead + new, way.concepts
        if not (verb or way.but or why or match["evidence"]):
            yield f"{lead}{way.text} {_seen('present', way.many)}{where}", way.concepts


def _seen(verb: str, many: bool) -> str:
    """The verb "is seen" in the required number; "seen" alone gets an auxiliary."""
    words = [word for word in verb.split() if word.lower() not in ("is", "are", "was", "were")]
    return f"{'are' if many else 'is'} {' '.join(words)}"


def _with(match: re.Match[str]) -> Iterator[Affirmed]:
    """Affirmations of a clause that ends in "without A or B": "with A and B"."""
    head, items = match["head"], listed(match["list"])
    if not items or match["where"] or match["why"] or analyse(head).negated:
        return
    families = {item.term.family for item in items}
    if _CLEAR_HEAD.fullmatch(head):
        if not families <= {"lung", "pleura", "other"}:
            return
        head = "the lungs are not clear"
    elif _NORMAL.search(head) and (_CHEST.search(head) or not families <= {"lung", "pleura"}):
        return
    comma = "," if "," in match["link"] or head != match["head"] else ""
    link = "and" if _WITH.search(head) else "with"
    for way in _ways(match):
        yield f"{head}{comma} {link} {way.text}{way.but}", way.concepts
