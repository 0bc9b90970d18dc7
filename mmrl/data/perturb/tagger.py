"""Parts of speech of report words: a general tagger, overruled by a lexicon of radiology.

The general tagger is TextBlob's PatternTagger (a Brill tagger; lexicon and rules lie inside its
wheel, nothing is fetched). Trained on newspapers, it takes "basilar" for a noun and "effusions"
for a verb now and then; the words that decide what a report means are therefore looked up in
`tagger_lexicon` first. Tags are remembered: two thirds of the sentences of a report corpus recur
in it word by word.
"""

import functools
import re
import warnings
from collections.abc import Callable

from mmrl.data.perturb.tagger_lexicon import TAGS

_CACHED_SENTENCES = 1 << 16
_LETTERS = re.compile(r"[^\W\d_]+")
_CLASSES = {"NN": "noun", "JJ": "adjective", "VB": "verb"}


@functools.cache
def _pattern_tagger() -> Callable[..., list[tuple[str, str]]]:
    """TextBlob's tagging function; importing it takes more than a second, so only on demand."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves its lexicon file to the gc
        from textblob import en

        en.tag("warm", tokenize=False)  # reads the lexicon now
    return en.tag


def _simple(word: str) -> str:
    """A plain word for one with hyphens or slashes, whose last part decides: "well-expanded"."""
    if word.isalpha():
        return word
    letters = _LETTERS.findall(word)
    return letters[-1] if letters else "2"


@functools.lru_cache(_CACHED_SENTENCES)
def tag(words: tuple[str, ...]) -> tuple[str, ...]:
    """The class of each word of one clause or sentence: noun, adjective, verb or other.

    Args:
      words: as `reports.WORD` finds them, in order.
    """
    folded = [word.lower() for word in words]
    if all(word in TAGS for word in folded):
        return tuple(TAGS[word] for word in folded)
    tagged = _pattern_tagger()(" ".join(map(_simple, folded)), tokenize=False)
    if len(tagged) != len(words):
        raise AssertionError(f"{len(words)} words, {len(tagged)} tags: {words}")
    return tuple(
        TAGS.get(word) or _CLASSES.get(given[:2], "other")
        for word, (_, given) in zip(folded, tagged, strict=True)
    )
