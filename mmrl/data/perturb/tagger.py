"""Part of speech of a word of a report: noun, adjective, verb or other.

A word is looked up in `tagger_lexicon`, which holds the words that radiology reports use most, then
in a general English lexicon. A word in neither is classified by its ending. The neighbours of a
word are not considered.

The general lexicon (Brill 1992, "A simple rule-based part of speech tagger") is a data file of the
textblob package. Endings and tags are those of `textblob.en.tag`. The package itself is not
imported, because importing it loads nltk and scipy, which takes up to two seconds.
"""

import functools
import importlib.metadata
import re
from pathlib import Path

from mmrl.data.perturb.tagger_lexicon import LEXICON

TAGS = ("noun", "adjective", "verb", "other")

_CACHED_WORDS = 1 << 16
_LETTERS = re.compile(r"[^\W\d_]+")
# First two letters of a tag of the Penn Treebank -> class; all other tags are "other".
_CLASSES = {"NN": "noun", "JJ": "adjective", "VB": "verb"}
_ADJECTIVE_ENDINGS = (
    "able", "al", "ful", "ible", "ient", "ish", "ive", "less", "tic", "ous",
)  # fmt: skip


@functools.cache
def _general_lexicon() -> dict[str, str]:
    """Word -> class; about 94,000 words, read at the first word that `LEXICON` lacks."""
    package = importlib.metadata.distribution("textblob")
    file = Path(str(package.locate_file("textblob/en/en-lexicon.txt")))
    lexicon = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith(";;;"):
            word, tag = line.split()[:2]
            lexicon[word] = _CLASSES.get(tag[:2], "other")
    return lexicon


def _by_ending(word: str) -> str:
    """The class of an unknown word in lower case."""
    if word.endswith(("ate", "ify", "ise", "ize", "ed")):
        return "verb"
    if word.endswith(_ADJECTIVE_ENDINGS):
        return "adjective"
    if word.endswith("s") and not word.endswith(("is", "ss")):
        return "noun"
    if word.endswith("ly"):
        return "other"
    return "verb" if word.endswith("ing") else "noun"


@functools.lru_cache(_CACHED_WORDS)
def tag(word: str) -> str:
    """The class of one word, one of `TAGS`.

    Of a word with hyphens, slashes or digits, the last run of letters decides: "well-expanded" is
    tagged like "expanded". Numbers are "other".

    Args:
      word: as `reports.WORD` finds it.
    """
    word = word.lower()
    if word in LEXICON:
        return LEXICON[word]
    letters = word if word.isalpha() else (_LETTERS.findall(word) or [""])[-1]
    if not letters:
        return "other"
    return _general_lexicon().get(letters) or _by_ending(letters)
