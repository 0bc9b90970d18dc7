"""Finds which findings a sentence names, and which of them it denies.

Negation follows NegEx (Chapman et al. 2001): a cue ("no", "without", "negative for") negates the
text after it up to the next boundary ("but", "with", a semicolon, the end). A post-cue ("is not
seen", "has been removed", "are absent") negates the text before it.
"""

import dataclasses
import functools
import re

from mmrl.data.perturb.edits import Span
from mmrl.data.perturb.report import ParsedReport
from mmrl.data.perturb.terms import TERM, TERMS

_CACHED_SENTENCES = 1 << 16

# "No change in the effusion" affirms the effusion.
_CHANGE = (
    r"(?:(?:an?|any|significant|significantly|substantial|substantially|interval|appreciable|"
    r"definite|definitely|major|obvious|really)\s+)*(?:change|changed|progression|difference|"
    r"comparison)\b"
)
CUE = re.compile(
    rf"\b(?:no\s+longer|(?:no|not|without)(?!\s+{_CHANGE}|\s+only\b)|absence\s+of|free\s+of|"
    r"negative\s+for|clear\s+of|devoid\s+of|nor|neither|denies|rather\s+than|fails?\s+to|"
    r"(?:resolution|clearing|removal)\s+of|(?:been|interval)\s+removal|resolved(?=\s+\w)|"
    r"(?<!cannot be )(?<!not be )ruled\s+out|"
    r"(?<!cannot )(?<!not )(?<!to )excludes?|never)\b",
    re.IGNORECASE,
)
_BOUNDARY = re.compile(
    r";|:|\.(?=\s)|,\s+(?:and\s+)?(?=the\b|heart\b|cardi\w+)|"
    r"\b(?:but|however|although|though|except|aside\s+from|other\s+than|apart\s+from|besides|which|"
    r"unchanged|stable|there\s+(?:is|are)|with(?!\s+evidence)(?=\s+(?:mild|moderate|small|stable|"
    r"unchanged|minimal|persistent|chronic|increased|left|right|a\b|an\b|new\b)))\b",
    re.IGNORECASE,
)
POST_CUE = re.compile(
    r"\b(?:(?:is|are|was|were)\s+(?:not(?!\s+(?:significantly\s+)?chang|\s+excluded)|absent|excluded|"
    r"gone|negative)|(?:has|have)\s+(?:been\s+)?(?:resolved|removed|cleared)|"
    r"(?<!cannot be )(?<!not be )ruled\s+out|not\s+(?:seen|identified|visualized|demonstrated))\b",
    re.IGNORECASE,
)
_HEDGE = re.compile(
    r"\b(?:may|might|could|possibl[ey]|probabl[ey]|likely|suspicious|suspected|questionable|"
    r"question|concern(?:ing)?|suggest\w*|versus|vs|or|cannot|can't|if|recommend\w*|consider\w*|"
    r"exclude\w*|evaluat\w*|rule|differential|compatible|consistent|represent\w*|favor\w*|"
    r"appear\w*|presumably|please|correlat\w*|clinical\w*|history|prior|previous\w*|follow\w*)\b",
    re.IGNORECASE,
)
_NORMAL = re.compile(
    r"\b(?:normal|normally|unremarkable|clear|intact|within|limits|negative|sharp|preserved|"
    r"well-expanded|expanded|midline)\b",
    re.IGNORECASE,
)

_SIDE = re.compile(r"\b(?:left|right|both|bilateral(?:ly)?|either)\b", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Mention:
    """A finding or device named in a sentence.

    Attributes:
      start, end: character span of the term in the sentence, without side or degree.
      concept, family, plural: of the term, see `terms.Term`.
      negated: whether the sentence denies it.
    """

    start: int
    end: int
    concept: str
    family: str
    plural: bool
    negated: bool


@dataclasses.dataclass(frozen=True)
class Statement:
    """A parsed sentence.

    Attributes:
      text: the sentence.
      mentions: findings and devices, in order.
      negated: negated spans of the sentence, with their cues.
      hedged: whether the sentence qualifies, compares or recommends anything.
      normal: whether it calls anything normal.
    """

    text: str
    mentions: tuple[Mention, ...]
    negated: tuple[Span, ...]
    hedged: bool
    normal: bool

    def is_negated(self, position: int) -> bool:
        """Whether the character at `position` is in a negated span."""
        return any(low <= position < high for low, high in self.negated)


def _negated(sentence: str) -> tuple[Span, ...]:
    spans: list[Span] = []
    for cue in CUE.finditer(sentence):
        if spans and cue.start() < spans[-1][1]:
            continue
        boundary = _BOUNDARY.search(sentence, cue.end())
        spans.append((cue.start(), boundary.start() if boundary else len(sentence)))
    for cue in POST_CUE.finditer(sentence):
        low = max((m.end() for m in _BOUNDARY.finditer(sentence, 0, cue.start())), default=0)
        spans.append((low, cue.end()))
    return tuple(sorted(spans))


@functools.lru_cache(_CACHED_SENTENCES)
def analyse(sentence: str) -> Statement:
    """Parses one sentence."""
    negated = _negated(sentence)
    mentions = []
    for match in TERM.finditer(sentence):
        term = TERMS[" ".join(match[0].lower().split())]
        denied = any(low <= match.start() < high for low, high in negated)
        mentions.append(
            Mention(match.start(), match.end(), term.concept, term.family, term.plural, denied)
        )
    return Statement(
        sentence,
        tuple(mentions),
        negated,
        hedged=_HEDGE.search(sentence) is not None,
        normal=_NORMAL.search(sentence) is not None,
    )


def affirms(sentence: str) -> bool:
    """Whether a sentence states something that an image shows.

    It names a finding or device that it does not deny, or it neither denies anything nor calls
    anything normal.
    """
    found = analyse(sentence)
    if any(not mention.negated for mention in found.mentions):
        return True
    # "within the right lobe" says where something is, "within normal limits" has other words, too.
    normal = any(word.lower() != "within" for word in _NORMAL.findall(sentence))
    return not (found.negated or normal)


@functools.lru_cache(_CACHED_SENTENCES)
def entailed(sentence: str) -> tuple[str, ...]:
    """Short phrases that follow from a sentence: the findings it names, without their attributes.

    "Small left pleural effusion." entails "pleural effusion" and, as it names one side only, "left
    pleural effusion"; "There is no pneumothorax." entails "no pneumothorax". A denial with a side
    entails nothing, because the finding may be on the other one, and neither does a sentence that
    qualifies or compares anything.
    """
    found = analyse(sentence)
    if found.hedged:
        return ()
    sides = {side.lower() for side in _SIDE.findall(sentence)}
    phrases = []
    for mention in found.mentions:
        term = sentence[mention.start : mention.end].lower()
        if mention.negated:
            phrases += [] if sides else [f"no {term}"]
            continue
        phrases.append(term)
        if len(sides) == 1 and len(found.mentions) == 1 and sides <= {"left", "right"}:
            phrases.append(f"{next(iter(sides))} {term}")
    return tuple(phrases)


def statements(report: ParsedReport) -> list[tuple[int, Statement]]:
    """(start in the report, parsed sentence) of each sentence."""
    return [(low, analyse(report.text[low:high])) for low, high in report.sentences]
