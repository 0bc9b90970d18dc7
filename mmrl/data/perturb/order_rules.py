"""Kinds that only change the order of words: one table of their rules.

The forms are those of Yuksekgonul et al. 2023 ("When and why vision-language models behave like
bags-of-words, and what to do about it?", order test) and of the public code of perturbed report
discrimination. White space and punctuation keep their positions. The published code strips full
stops before it perturbs, to the same effect.

Two modules draw new orders by these rules, each with random numbers of its own:

* `order_questions`: for one report at a time, from a NumPy generator; frozen evaluation questions
  depend on every draw;
* `order_batches`: for all reports of a training batch at once.
"""

import dataclasses
from typing import Literal

import numpy as np

from mmrl.data.perturb.tagger import TAGS

TRIGRAM = 3


@dataclasses.dataclass(frozen=True)
class Rule:
    """How words change places.

    Positions, pairs and trigrams are counted within the scope, from its first word. The last
    trigram may be incomplete, and counts as one.

    Attributes:
      move: "shuffle", a uniform permutation; "swap", words 1 and 2 trade places, 3 and 4, and so
        on, and the last of an odd number stays; "reverse", the last word comes first. Only
        "shuffle" is random.
      unit: what a shuffle moves, single words or whole trigrams.
      within: what a shuffled unit does not leave, the scope or its trigram.
      classes: parts of speech, of `tagger.TAGS`. If given, only words of a class move, and only to
        places of words of the same class; each class is shuffled by itself.
      scope: the report as a whole, or each sentence by itself.
    """

    move: Literal["shuffle", "swap", "reverse"]
    unit: Literal["word", "trigram"] = "word"
    within: Literal["scope", "trigram"] = "scope"
    classes: tuple[tuple[str, ...], ...] = ()
    scope: Literal["report", "sentence"] = "report"

    def __post_init__(self) -> None:
        assert all(tag in TAGS for tags in self.classes for tag in tags)


REPORT_RULES: dict[str, Rule] = {
    "shuffle_all_words": Rule("shuffle"),
    "swap_adjacent_words": Rule("swap"),
    "reverse_words": Rule("reverse"),
    "shuffle_within_trigrams": Rule("shuffle", within="trigram"),
    "shuffle_trigrams": Rule("shuffle", unit="trigram"),
    "shuffle_nouns_and_adjectives": Rule("shuffle", classes=(("noun",), ("adjective",))),
    "shuffle_all_but_nouns_and_adjectives": Rule("shuffle", classes=(("verb", "other"),)),
    "shuffle_nouns_verbs_adjectives": Rule(
        "shuffle", classes=(("noun",), ("verb",), ("adjective",))
    ),
}
SENTENCE_RULES: dict[str, Rule] = {
    f"{kind}_in_sentences": dataclasses.replace(rule, scope="sentence")
    for kind, rule in REPORT_RULES.items()
}
RULES: dict[str, Rule] = {**REPORT_RULES, **SENTENCE_RULES}
"""Kind -> its rule."""


def without_randomness(
    rule: Rule, place: np.ndarray, low: np.ndarray | int, high: np.ndarray | int
) -> np.ndarray:
    """The order of a rule that swaps or reverses.

    Args:
      place: int[T], positions of words.
      low, high: int[T] or one number; the scope of each word has positions low to high - 1.

    Returns:
      int[T]: the position of the word that moves to each place.
    """
    if rule.move == "reverse":
        return low + high - 1 - place
    offset = place - low
    paired = offset < (high - low) // 2 * 2
    return np.where(paired, low + (offset ^ 1), place)
