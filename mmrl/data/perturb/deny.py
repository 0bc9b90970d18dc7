"""Denies what a clause affirms: "a small left effusion is seen" -> "no left effusion is seen".

Used by `flip_negation`. Degree, number and course are left out of the denial, because "no small
effusion" could be true of a large one.
"""

import re
from collections.abc import Iterator

from mmrl.data.perturb.phrases import DEGREES, EXTRAS, Phrase, join, listed, noun_phrase
from mmrl.data.perturb.statements import Statement

_DROPPED = DEGREES | EXTRAS | {"new", "patchy", "dense", "hazy", "streaky", "superimposed"}
_THERE = re.compile(
    r"(?P<lead>(?:specifically|however|overall|additionally|also|in addition),?\s+)?"
    r"(?:(?P<there>there\s+(?:is|are))\s+)?(?:again\s+)?",
    re.IGNORECASE,
)
_COMMENT = re.compile(
    r",?\s+(?:(?:consistent|compatible|in keeping)\s+with|suggesting|representing|suggestive\s+of|"
    r"compared)\s.*\Z|,\s+(?:stable|unchanged|(?:right|left) greater than (?:right|left))\Z|"
    r",\s+\w+\s+on\s+the\s+(?:left|right)\s+and\s+\w+\s+on\s+the\s+(?:left|right)\Z|"
    r"\s+with\s+indistinct\s+vessels\Z|\s+of\s+\d+(?:\.\d+)?\s*(?:mm|cm)\b",
    re.IGNORECASE,
)
_TWO_SIDES = re.compile(
    r"\A(?:\w+\s+)?(?:left|right)\s+and\s+(?:\w+\s+)?(?:left|right)\s+", re.IGNORECASE
)
_SEEN = re.compile(
    r"(?P<list>.+?)\s+(?P<verb>(?:projects?|lies|lie)\s+over|overlies|overlie|(?:is|are)\s+(?:again\s+|"
    r"also\s+)?(?:seen|noted|present|identified|visualized|demonstrated)|"
    r"(?:seen|noted|present|identified))(?P<where>\s+[\w\s-]+)?",
    re.IGNORECASE,
)
_SHOWS = re.compile(
    r"(?P<subject>the\s[\w\s-]+?)\s+(?P<verb>shows?|demonstrates?|contains?|reveals?)\s+(?P<list>.+)",
    re.IGNORECASE,
)
_DEVICE_REST = re.compile(
    r"(?:generator|leads?|tip|position|is|are|ends?|lies|terminates?|with|in|projects?|overlies|"
    r"overlie|overlying|remains?|extends?|seen|noted|present|over|again|from|on)\b|$",
    re.IGNORECASE,
)
_DEVICE_GONE = re.compile(r"\b(?:remov|withdraw|replac|exchang|retract|discontinu)", re.I)
_INTUBATED = re.compile(r"(?P<patient>the\s+patient\s+is)\s+intubated\b.*", re.IGNORECASE)
_EITHER = (
    (re.compile(r"\s+bilaterally\b", re.I), ""),
    (re.compile(r"\bboth\s+(?:the\s+)?apices\b", re.I), "either apex"),
    (re.compile(r"\bboth\s+(?:the\s+)?([\w\s]+?)s\b", re.I), r"either \1"),
    (re.compile(r"\band\b", re.I), "or"),
)
_OR = re.compile(r"\bor\b", re.IGNORECASE)
_OVER = re.compile(r"over|lie", re.IGNORECASE)


def _either(text: str) -> str:
    """The text with words for "both" and "and" in the form that a denial needs."""
    for pattern, new in _EITHER:
        text = pattern.sub(new, text)
    return text


def _bare(item: Phrase) -> str:
    kept = {"prominent"} if "marking" in item.head.lower() else set()
    return _either(item.without(_DROPPED - kept).render())


def _denials(text: str) -> Iterator[tuple[str, bool]]:
    """(denial, whether its verb is plural): of all findings of a list, then of each single one.

    A list with "or" is only denied as a whole: either finding may be true.
    """
    items = listed(text)
    if not items:
        return
    yield f"no {join([_bare(item) for item in items], 'or')}", items[0].plural
    for one in items if len(items) > 1 and not _OR.search(text) else ():
        rest = [item for item in items if item is not one]
        kept = join([item.render(item.article) for item in rest], "and")
        yield f"{kept}, but no {_bare(one)}", rest[0].plural


def _is_place(text: str) -> bool:
    return noun_phrase(f"opacity {text}") is not None


def denied(clause: str, statement: Statement) -> Iterator[str]:
    """All denials of a clause that affirms; none if it is not understood.

    Args:
      clause: with its first letter in lower case, unless it is an abbreviation.
    """
    if match := _INTUBATED.fullmatch(clause):
        yield f"{match['patient']} not intubated"
        return
    start = _THERE.match(clause)
    if start is None or not statement.mentions:
        return
    lead, rest = start["lead"] or "", clause[start.end() :]
    first = statement.mentions[0]
    if (
        first.family == "device"
        and len(statement.mentions) == 1
        and not _DEVICE_GONE.search(clause)
    ):
        end = first.end - start.end()
        device = noun_phrase(rest[:end])
        if device and _DEVICE_REST.match(rest[end:].strip()):
            be = "are" if device.plural else "is"
            yield f"{lead}there {be} no {_bare(device)}"
            return
    rest = _TWO_SIDES.sub("", _COMMENT.sub("", rest))
    if listed(rest):
        for text, plural in _denials(rest):
            be = f"there {'are' if plural else 'is'} " if start["there"] else ""
            yield f"{lead}{be}{text}"
    elif match := _SEEN.fullmatch(rest):
        if new := _not_seen(match):
            yield lead + new
    elif (match := _SHOWS.fullmatch(rest)) and _is_place(f"in {match['subject']}"):
        for text, _ in _denials(match["list"]):
            yield f"{lead}{match['subject']} {match['verb']} {text}"


def _not_seen(match: re.Match[str]) -> str:
    """ "A is seen in ..." -> "no A is seen in ..."; "" unless all of it is understood."""
    items, where = listed(match["list"]), match["where"] or ""
    preposition = "in " if _OVER.search(match["verb"]) else ""
    if not items or (where and not _is_place(preposition + where.strip())):
        return ""
    verb = [word for word in match["verb"].split() if word.lower() not in ("again", "also")]
    if verb[0].lower() in ("is", "are"):
        verb[0] = "are" if items[-1].plural else "is"
    return f"no {join([_bare(item) for item in items], 'or')} {' '.join(verb)}{_either(where)}"
