"""Parses noun phrases: a finding or device with its article, attributes and place.

Every word of a phrase must be in the lists below. A phrase with any other word ("possible", "no
longer", a comparison, a verb) is not parsed, and callers leave it unchanged.
"""

import dataclasses
import functools
import re

from mmrl.data.perturb.terms import MASS, TERM, TERMS, Term, word_set

DEGREES = word_set(
    """mild moderate severe small large tiny minimal trace slight marked minor massive extensive
    advanced subtle prominent mildly moderately severely moderate-sized large-volume small-volume
    sized significant minimally slightly diffuse low-grade mild-to-moderate moderate-to-severe
    sizable considerable profound"""
)
"""Words for the degree of a finding."""
EXTRAS = word_set(
    """stable unchanged chronic chronic-appearing old remote prior previous persistent residual
    known again appearing multiple multilevel scattered few several numerous some two three
    bilateral any diffusely visualized visible definite definitive identifiable convincing
    demonstrable appreciable evident discrete obvious apparent"""
)
"""Words for course, number and certainty, which a denial leaves out."""
_DESCRIPTIVE = word_set(
    """focal lobar confluent alveolar airspace pulmonary lung parenchymal interstitial pleural
    cardiopulmonary intrathoracic thoracic bony osseous bone skeletal mediastinal hilar perihilar
    rib displaced nondisplaced acute subacute active new suspicious calcified noncalcified
    non-calcified dense patchy streaky hazy linear bandlike band-like plate-like platelike discoid
    subsegmental segmental basilar bibasilar basal bibasal apical biapical left right left-sided
    right-sided upper lower mid middle lateral medial anterior posterior lobe base apex zone
    retrocardiac lingular rounded round nodular irregular ill-defined well-defined coarse coarsened
    reticular increased loculated layering dependent dorsal tension free overt pneumonic
    consolidative infectious inflammatory neoplastic metastatic destructive lytic blastic sclerotic
    fatal compression wedge vertebral degenerative thoracolumbar lumbar cervical t-spine spine
    aortic vascular healed healing hiatal diaphragmatic dominant solitary central peripheral
    subpleural cavitary spiculated infrahilar suprahilar peribronchial coronary airway abnormal
    vague curvilinear endplate marginal atherosclerotic granulomatous exaggerated midlung
    radiopaque radiodense single large-bore dual-lumen dual-chamber single-chamber central-venous
    tunneled subclavian jugular internal upper-lobe lower-lobe chest wall pathologic
    superimposed parahilar air space"""
)
_WRAPPER = re.compile(
    r"\b(?:area|focus|band|amount|degree|(?P<areas>areas|foci|bands))\s+of\b", re.IGNORECASE
)
_PLACES = word_set(
    """in of at within over on under beneath below above along involving throughout near overlying
    projecting layering the both and bilaterally left right left-sided right-sided upper lower mid
    middle lateral medial anterior posterior superior inferior lobe lobes base bases apex apices
    zone zones lung lungs side sides chest thorax hemithorax thoracic lumbar thoracolumbar cervical
    spine t-spine rib ribs vertebral body bodies midthoracic midlung midlungs lingula hilum hila
    hilar perihilar region regions space spaces pleural mediastinum mediastinal aorta aortic arch
    knob costophrenic angle angles sulcus sulci hemidiaphragm hemidiaphragms diaphragm diaphragms
    shoulder shoulders clavicle humerus heart retrocardiac infrahilar abdomen quadrant aspect
    aspects segment segments wall level levels view projection frontal bone bones bony structures
    osseous visualized joint joints convex to place xxxx t-xxxx acromioclavicular skeletal
    descending ascending lung's field fields areas area basilar apical paratracheal node nodes
    visible cavity cavities system interval axilla breast 1st 2nd 3rd 4th 5th 6th 7th 8th 9th 10th
    11th 12th t1 t2 t3 t4 t5 t6 t7 t8 t9 t10 t11 t12 l1 l2"""
)
_TAIL_START = re.compile(
    r"(?:in|of|at|within|over|on|under|beneath|below|above|along|involving|throughout|near|"
    r"overlying|projecting over|layering|convex|bilaterally|to the|thoracic spine|right|left)\b",
    re.IGNORECASE,
)
_SIZE = re.compile(r"\d+(?:\.\d+)?-?(?:mm|cm)?|mm|cm|(?:sub)?centimeter", re.IGNORECASE)
_WORDS = re.compile(r"[^\s,]+")


@dataclasses.dataclass(frozen=True)
class Phrase:
    """A finding or device with its attributes: "a | small left | pleural effusion | at the base".

    Attributes:
      article: "a", "an", "the" or "".
      before: the words between article and term.
      term: the finding or device.
      head: the name of the term in the text.
      tail: the place after the term, "" for none.
      plural: whether the phrase as a whole is plural.
      mass: whether it takes no article.
    """

    article: str
    before: tuple[str, ...]
    term: Term
    head: str
    tail: str
    plural: bool
    mass: bool

    def without(self, words: frozenset[str]) -> "Phrase":
        """The phrase without sizes and without those words."""
        kept = [w for w in self.before if w.lower() not in words and not _SIZE.fullmatch(w)]
        if [w.lower() for w in kept[:1]] == ["and"]:
            kept = kept[1:]
        return dataclasses.replace(self, before=tuple(kept))

    def render(self, article: str = "") -> str:
        """The phrase as text with the given article; "a" stands for the fitting one of a and an."""
        words = " ".join((*self.before, self.head))
        if article in ("a", "an"):
            article = "an" if words[0].lower() in "aeio" or words[:2].lower() == "ul" else "a"
        return " ".join(filter(None, (article, words, self.tail)))


@functools.lru_cache(1 << 16)
def noun_phrase(text: str) -> Phrase | None:
    """Parses a finding with its attributes; None unless every word is known."""
    matches = list(TERM.finditer(text))
    if len(matches) != 1:
        return None
    match = matches[0]
    tail = text[match.end() :].strip()
    if tail and not (
        _TAIL_START.match(tail)
        and all(word.lower() in _PLACES or word.isdigit() for word in _WORDS.findall(tail))
        and "," not in tail
    ):
        return None
    front = text[: match.start()].strip()
    words = _WORDS.findall(front)
    article = words.pop(0) if words and words[0].lower() in ("a", "an", "the") else ""
    wrapper = _WRAPPER.search(front)
    checked = _WORDS.findall(_WRAPPER.sub("", " ".join(words), count=1))
    if not all(is_attribute(word.lower()) for word in checked):
        return None
    term = TERMS[" ".join(match[0].lower().split())]
    mass = not term.plural and match[0].lower().split()[-1] in MASS
    plural = term.plural
    if wrapper:
        plural, mass = bool(wrapper["areas"]), False
    return Phrase(article, tuple(words), term, match[0], tail, plural, mass)


def is_attribute(word: str) -> bool:
    """Whether a word, lower case, may qualify a finding or device."""
    return (
        word in _DESCRIPTIVE
        or word in DEGREES
        or word in EXTRAS
        or _SIZE.fullmatch(word) is not None
    )


_SEPARATOR = re.compile(
    r",?\s+(?:and/or|and|or|nor)\s+(?:no\s+|any\s+)?|,\s+(?:and\s+|or\s+)?(?:no\s+)?", re.IGNORECASE
)


def listed(text: str) -> tuple[Phrase, ...]:
    """The phrases of "A, B, and C"; empty unless all of them are parsed."""
    whole = noun_phrase(text)
    if whole:
        return (whole,)
    parts = [noun_phrase(part) for part in _SEPARATOR.split(text)]
    return () if None in parts else tuple(part for part in parts if part)


def join(parts: list[str], word: str) -> str:
    """ "A", "A and B", "A, B, and C"."""
    if len(parts) < 3:
        return f" {word} ".join(parts)
    return f"{', '.join(parts[:-1])}, {word} {parts[-1]}"
