"""Changes the degree or size of a finding: "mild cardiomegaly" -> "severe cardiomegaly".

A degree is changed only if it qualifies a finding that the sentence asserts. The noun is looked up
in a table, which also gives the fitting opposite ("marked blunting", "large effusion", "extensive
scarring"). Degrees are the severity and size descriptors of RadLex; "moderate" changes to either
end. Measured sizes of nodules and the like change by a factor of at least 1.6. If several sentences
state the same degree of a finding, all of them are changed.

Not changed: what is denied or hedged, degrees of change ("slightly improved"), comparisons of two
sides, distances of tubes, two-dimensional sizes, and words without a known finding ("large body
habitus", "small bowel").
"""

import dataclasses
import functools
import re

from mmrl.data.perturb import degrees
from mmrl.data.perturb.edits import Edits, like, with_article
from mmrl.data.perturb.report import ParsedReport
from mmrl.data.perturb.statements import Statement, analyse

_CACHED_SENTENCES = 1 << 16

_WORD = re.compile(r"[a-z]+(?:-[a-z]+)*")


@dataclasses.dataclass(frozen=True)
class _Degree:
    """A degree in a sentence.

    Attributes:
      start, end: character span in the sentence.
      level: 0 weak, 1 moderate, 2 strong; of a size, `degrees.SIZE` plus millimetres.
      words: level -> the text that replaces the degree to give it that level.
      concept, side: of the finding that it qualifies, "" if unknown.
    """

    start: int
    end: int
    level: int
    words: dict[int, str]
    concept: str
    side: str


_Placed = tuple[int, _Degree]  # offset of the sentence in the report, degree


def _adverb_style(sentence: str, end: int) -> tuple[str, str] | None:
    """(style, adjective) after an adverb that ends at `end`; None if it qualifies no finding."""
    adjective = degrees.ADJECTIVE.match(sentence, end)
    if adjective is None:
        return None
    head = adjective[1].lower()
    if head in ("increased", "decreased", "diminished"):
        if degrees.RELATIVE.search(sentence):
            return None  # a degree of change
        if "heart" in sentence.lower():
            return "severely", head
    return next(
        style for style in degrees.ADVERBIAL if degrees.STYLE_OF[style].fullmatch(head)
    ), head


def _style(word: str, sentence: str, start: int, end: int) -> tuple[str, str] | None:
    """(style, noun) of the degree at [start, end); None if it qualifies no known finding."""
    if word.endswith("ly") or (word == "borderline" and degrees.ADJECTIVE.match(sentence, end)):
        return _adverb_style(sentence, end)
    stop = degrees.END.search(sentence, end)
    phrase = sentence[end : stop.start() if stop else len(sentence)]
    if word in degrees.DENSITY_WORDS:
        dense = degrees.DENSE.search(phrase)
        return ("density", dense[0]) if dense else None
    noun = degrees.NOUN.search(phrase)
    other = degrees.DEGREE.search(degrees.AND.split(phrase[: noun.start()])[0]) if noun else None
    if other and other[0].lower() not in degrees.DENSITY_WORDS:
        return None  # "moderate severe scoliosis"
    if word == "borderline" and "size" in phrase:
        return None
    if noun and phrase.lower().lstrip().startswith("increased"):
        return "shape", noun[0]
    if noun is None and degrees.ALONE.match(sentence, end):
        *_, noun = (None, *degrees.NOUN.finditer(sentence, 0, start))
        if noun and word in ("severe", "marked") and degrees.STYLE_OF["size"].fullmatch(noun[0]):
            return None
    if noun is None:
        return None
    if word in degrees.SIZE_WORDS:
        return "size", noun[0]
    return next(
        style for style in degrees.NOUNS if degrees.STYLE_OF[style].fullmatch(noun[0])
    ), noun[0]


def _concept(head: str, sentence: str, start: int, end: int) -> str:
    for text in (head, sentence[end:].split(";")[0], sentence[:start]):
        for pattern, concept in degrees.CONCEPTS:
            if pattern.search(text):
                return concept
    return ""


def _side(sentence: str, start: int, end: int) -> str:
    after = degrees.SIDE.search(sentence[end:].split(";")[0])
    *_, before = (None, *degrees.SIDE.finditer(sentence[:start].split(";")[-1]))
    found = after or before
    return found[1].lower() if found else ""


def _degrees(statement: Statement) -> list[_Degree]:
    sentence = statement.text
    found = []
    borderline = degrees.BORDERLINE.search(sentence)
    if borderline and _asserted(statement, borderline.start(1)):
        words = {2: "severely enlarged"}
        found.append(_Degree(*borderline.span(1), 0, words, "heart", ""))
    last = -1
    for match in degrees.DEGREE.finditer(sentence):
        start, end = match.span()
        doubled = sentence[last:start].isspace()  # "mild patchy": only the first can change
        last = end
        word = match[0].lower().replace(" ", "-").removesuffix("-sized")
        if doubled or degrees.JOINED.match(sentence, end) or not _asserted(statement, start):
            continue
        style = _style(word, sentence, start, end)
        if style is None:
            continue
        level = degrees.LEVEL[word]
        words = dict(enumerate(degrees.STYLES[style[0]]))
        if style[1] == "large":  # "slightly large" has no fluent "severely large"
            end = sentence.lower().index("large", end) + len("large")
            words = {key: f"{value} enlarged" for key, value in words.items()}
        found.append(
            _Degree(
                start,
                end,
                level,
                {key: like(match[0], value) for key, value in words.items() if value},
                _concept(style[1], sentence, start, end),
                _side(sentence, start, end),
            )
        )
    return found


def _asserted(statement: Statement, start: int) -> bool:
    return not statement.is_negated(start) and not degrees.HEDGED.search(statement.text, 0, start)


def _written(number: float, sample: str) -> str:
    return f"{number:.1f}" if "." in sample else f"{number:g}"


def _measures(statement: Statement) -> list[_Degree]:
    """The measured sizes of findings."""
    sentence = statement.text
    if not degrees.MEASURED.search(sentence) or degrees.NOT_MEASURED.search(sentence):
        return []
    found = []
    mass = "mass" in sentence.lower()
    for match in degrees.MEASURE.finditer(sentence):
        if not _asserted(statement, match.start()):
            continue
        scale = 1 if match[3].lower() == "mm" else 10
        size = float(match[1]) * scale
        words = {
            other: _written(other / scale, sample=match[1]) + match[2] + match[3]
            for other in degrees.MILLIMETRES
            if abs(other - size) >= 8 and 1.6 <= max(other / size, size / other) <= 4
            if mass or other < degrees.LARGEST_NODULE
        }
        concept = _concept("", sentence, match.start(), match.end())
        side = _side(sentence, match.start(), match.end())
        found.append(_Degree(*match.span(), degrees.SIZE + round(size), words, concept, side))
    return found


@functools.lru_cache(_CACHED_SENTENCES)
def _of_sentence(sentence: str) -> tuple[_Degree, ...]:
    lower = sentence.lower()
    if (
        degrees.TRIGGERS.isdisjoint(_WORD.findall(lower))
        and "mm" not in lower
        and "cm" not in lower
    ):
        return ()
    statement = analyse(sentence)
    measured = _measures(statement) if degrees.MEASURE.search(sentence) else []
    return tuple(_degrees(statement) + measured)


def _groups(placed: list[_Placed]) -> list[list[_Placed]]:
    """Groups the degrees that state one fact: equal concept, level and side.

    If any of them has no side or both sides, the side is ignored.
    """
    groups: dict[object, list[_Placed]] = {}
    whole = {(d.concept, d.level) for _, d in placed if d.side not in ("left", "right")}
    for offset, degree in placed:
        key: object = (offset, degree.start)
        if degree.concept:
            sided = (degree.concept, degree.level) not in whole
            key = (degree.concept, degree.level, degree.side if sided else "")
        groups.setdefault(key, []).append((offset, degree))
    return list(groups.values())


def _targets(group: list[_Placed], placed: list[_Placed]) -> list[int]:
    """Levels that all degrees of a group can take and that no other degree in its sentences has."""
    offsets, first = {offset for offset, _ in group}, group[0][1]
    taken = {
        d.level
        for at, d in placed
        if at in offsets and first.concept and d.concept == first.concept
    }
    shared = set(first.words).intersection(*(degree.words for _, degree in group)) - taken
    wanted = degrees.TARGETS.get(first.level, tuple(first.words))
    return [level for level in wanted if level in shared] or [
        level for level in (1,) if level in shared
    ]


def candidates(report: ParsedReport) -> list[Edits]:
    """Every change of a degree or size, in all sentences that state it."""
    text = report.text
    if degrees.TRIGGERS.isdisjoint(report.keys) and "mm" not in text and "cm" not in text:
        return []
    placed = [(low, d) for low, high in report.sentences for d in _of_sentence(text[low:high])]
    return [
        tuple(with_article(text, (at + d.start, at + d.end, d.words[level])) for at, d in group)
        for group in _groups(placed)
        for level in _targets(group, placed)
    ]
