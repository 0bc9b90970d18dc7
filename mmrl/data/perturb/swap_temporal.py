"""Changes the course: "stable effusion" -> "new effusion", "has resolved" -> "has worsened".

Course words are the temporal descriptors of RadLex. Stable findings become new, worse or larger;
stable structures and devices become changed; what improved becomes worse; old fractures and
granulomatous disease become acute or active; "no interval change" becomes "interval change". An
edit includes the words that must change with the course ("is stable" -> "has changed").

Not changed: what is denied or hedged, "stable normal heart" ("new normal heart" is not English),
comparisons of two sides ("left worse than right"), "increased" as a degree, and sentences that
would contradict themselves ("new chronic changes").
"""

import functools
import re

from mmrl.data.perturb.course import (
    ADJECTIVE,
    BY_WORD,
    HEDGED,
    IS_DEVICE,
    IS_FINDING,
    IS_GROWING,
    IS_LESION,
    IS_STRUCTURE,
    IS_WORSENING,
    TRIGGERS,
    WORD,
    by_rules,
    compiled,
)
from mmrl.data.perturb.edits import Edit, Edits, like, with_article
from mmrl.data.perturb.report import ParsedReport
from mmrl.data.perturb.statements import Statement, analyse

_CACHED_SENTENCES = 1 << 16


_STEADY = compiled(
    r"(?:(?P<be>is|are|remains?|appears?)\s+)?(?:(?:grossly|relatively|essentially|largely|"
    r"overall|otherwise|radiographically|fairly|generally)\s+)?(?P<word>stable|unchanged)"
)
_TAIL = re.compile(
    r"\s*(?:[.;,]?\s*$|;|,(?!\s*(?:mild|moderate|small|minimal|chronic)\b)|"
    r"(?:from|since|(?:as\s+)?compared|in|with|when|over|given|on|at|for)\b)",
    re.IGNORECASE,
)
_PHRASE_END = re.compile(
    r"[.;:,()]|\b(?:of|in|at|on|with|is|are|was|were|which|that|without|but|noted|seen|present|"
    r"within|from|to|overlying|throughout|since|compared|consistent|compatible|and)\b",
    re.IGNORECASE,
)
_IN_RESPECT = r"\s+in\s+(?!(?:the\s+)?(?:size|caliber|number|interval|comparison)\b)"
_VERB = compiled("(?:is|are|was|were|has|have|appears?)")
_HAVE = {"is": "has", "are": "have", "remains": "has", "remain": "have"}
_AND_NORMAL = re.compile(r"(,?\s+and)\s+(?:grossly\s+)?(?:normal|within|unremarkable)\b", re.I)
_NORMAL_AND = re.compile(
    r"\b(?P<be>is|are)\s+(?:(?:at|the)\s+)*(?:normal|within|unremarkable|upper)\b"
    r"(?:(?!\b(?:is|are|with)\b)[^;.,])*(?P<x>,?\s+(?:and|but)\s+)$",
    re.IGNORECASE,
)
_DEGREE = compiled("(?:mild|minimal|moderate|severe|small|large|tiny|borderline|slight|marked)")
_OLD = compiled(
    "(?:old|healed|remote|prior|previous|sequelae?|residual|chronic|chronically|known|dating)"
)
_NORMAL = compiled("(?:normal|unremarkable|limits|clear|intact|within)")


def _verb(subject: str, after: str) -> str:
    """The verb for a change of `subject`, which is called stable before the text `after`."""
    if IS_DEVICE.search(subject) or re.match(_IN_RESPECT, after):
        return "changed"
    if IS_LESION.search(subject) and not re.match(r"\s+in\b", after):
        return "increased in size"
    if IS_GROWING.search(subject):
        return "increased"
    return "worsened" if IS_WORSENING.search(subject) else "changed"


def _predicate(match: re.Match[str], before: str, after: str) -> Edit:
    """ "is stable" -> "has changed"."""
    be = match["be"].lower()
    verb = _verb(before, after)
    has = "have" if be in ("are", "remain", "appear") else "has"
    new = f"{be} to have {verb}" if be.startswith("appear") else f"{has} {verb}"
    return match.start(), match.end(), like(match[0], new)


def _postposed(match: re.Match[str], before: str, after: str) -> Edit | None:
    """ ", unchanged." -> ", worsened."; "enlarged but stable" -> "enlarged and has increased"."""
    if _NORMAL.search(before) or re.search(r"granulomatous|\b(?:old|healed)\b", before, re.I):
        return None  # healed findings do not worsen
    enlarged = re.search(r"\benlarged(?:\s+in\s+size)?(,?\s+(?:(?:but|and)\s+)?)$", before, re.I)
    if enlarged:
        has = re.search(r"\b(is|are|remains?|appears?)\b", before, re.IGNORECASE)
        if has is None:
            return None
        word = "have" if has[1].lower() in ("are", "remain", "appear") else "has"
        return enlarged.start(1), match.end(), f" and {word} increased in size"
    last = before.rstrip().split()[-1:]
    if not last or re.fullmatch(r"and|but|or|to", last[0].rstrip(","), re.IGNORECASE):
        return None
    if not last[0].endswith(",") and not (
        IS_FINDING.fullmatch(last[0])
        or IS_DEVICE.fullmatch(last[0])
        or IS_STRUCTURE.fullmatch(last[0])
    ):
        return None
    known = IS_FINDING.search(before) or IS_STRUCTURE.search(before) or IS_DEVICE.search(before)
    return (match.start(), match.end(), _verb(before, after)) if known else None


def _beside_normal(match: re.Match[str], before: str, sentence: str) -> Edit | None:
    """ "is stable and normal" -> "has changed but is normal", likewise "is normal and stable"."""
    after = _AND_NORMAL.match(sentence, match.end())
    if match["be"] and match["be"].lower() in ("is", "are") and after:
        be = match["be"].lower()
        return match.start(), after.end(1), f"{_HAVE[be]} changed but {be}"
    first = _NORMAL_AND.search(before)
    if first and not match["be"]:
        return first.start("x"), match.end(), f" but {_HAVE[first['be'].lower()]} changed"
    return None


def _attributive(match: re.Match[str], before: str, sentence: str) -> Edit | None:
    """ "stable cardiomegaly" -> "new cardiomegaly"; of a structure, "interval change in ..."."""
    start = match.start() if match["be"] is None else match.end("be") + 1
    comma = re.match(r",?\s+(?=\w)", sentence[match.end() :])
    if comma is None:
        return None
    stop = _PHRASE_END.search(sentence, match.end() + comma.end())
    phrase = sentence[match.end() + comma.end() : stop.start() if stop else len(sentence)]
    if _NORMAL.search(phrase) or re.search(r"\bnormal(?:\W+|\s+(?:and|but)\s+)$", before, re.I):
        return None
    old = _OLD.search(sentence)
    if old and not re.search(r"\bchronic", phrase, re.IGNORECASE):
        return None
    new = ""
    if re.match(rf"(?:mildly\s+|moderately\s+)?{ADJECTIVE}\b", phrase, re.IGNORECASE):
        new = "newly"
    elif old:
        new = "worsening"
    elif IS_DEVICE.search(phrase) or IS_GROWING.search(phrase):
        new = "new"
    elif IS_WORSENING.search(phrase):
        new = "new" if _DEGREE.search(phrase) else "worsening"
    if new and stop and stop[0].lower() == "and" and IS_STRUCTURE.search(sentence, stop.end()):
        return None  # "stable cardiomegaly and mediastinal contours"
    if new:
        return with_article(
            sentence, (start, match.end(), like(sentence[start : match.end()], new))
        )
    clause = re.split(r"[.;,]", sentence[match.end() :])[0]
    if not IS_STRUCTURE.search(phrase) or _VERB.search(clause):
        return None
    if re.search(r"\bin\s+$", sentence[:start], re.IGNORECASE):
        return start, match.end(), "changed"
    article = re.search(r"\b(?:an?|the)\s+$", sentence[:start], re.IGNORECASE)
    new = "interval change in" + (" the" if article else "")
    start = article.start() if article else start
    if match["be"] and match["be"].lower() == "are":
        start, new = match.start("be"), "is " + new
    return start, match.end(), like(sentence[start : start + 1], new)


def _steady(statement: Statement) -> list[Edit]:
    """Edits of "stable" and "unchanged"."""
    sentence = statement.text
    found = []
    for match in _STEADY.finditer(sentence):
        before, after = sentence[: match.start()], sentence[match.end() :]
        if statement.is_negated(match.start("word")) or HEDGED.search(before):
            continue
        edit = _beside_normal(match, before, sentence)
        if edit is None and not _TAIL.match(after):
            edit = _attributive(match, before, sentence)
        elif edit is None and match["be"]:
            edit = _predicate(match, before, after)
        elif edit is None:
            edit = _postposed(match, before, after)
        if edit:
            found.append(edit)
    return found


@functools.lru_cache(_CACHED_SENTENCES)
def _of_sentence(sentence: str) -> tuple[Edit, ...]:
    words = set(WORD.findall(sentence.lower()))
    if words.isdisjoint(TRIGGERS):
        return ()
    statement = analyse(sentence)
    found = set(_steady(statement)) if words & {"stable", "unchanged"} else set()
    for word in words & BY_WORD.keys():
        found.update(by_rules(statement, BY_WORD[word]))
    return tuple(sorted(found))


def candidates(report: ParsedReport) -> list[Edits]:
    """Every change of a course word."""
    if TRIGGERS.isdisjoint(report.keys):
        return []
    return [
        ((low + start, low + end, new),)
        for low, high in report.sentences
        for start, end, new in _of_sentence(report.text[low:high])
    ]
