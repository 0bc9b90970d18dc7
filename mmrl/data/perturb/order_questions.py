"""Reorders the words of one report: the draws of frozen evaluation questions.

Every draw is part of the published protocols (`evaluators.protocols`): another use of the
generator would change their questions. Training batches are drawn by `order_batches`.
"""

from collections.abc import Sequence

import numpy as np

from mmrl.data.perturb.order_rules import RULES, TRIGRAM, Rule, without_randomness
from mmrl.data.perturb.report import Kind, ParsedReport

_Order = list[int]
"""The position, within its scope, of the word that moves to each place."""


def _kind(rule: Rule) -> Kind:
    def reorder(report: ParsedReport, rng: np.random.Generator) -> str | None:
        whole = [(0, len(report.words))]
        order = list(range(len(report.words)))
        possible = False
        for low, high in whole if rule.scope == "report" else report.sentence_words:
            new = _drawn(rule, report, low, high, rng)
            if new is not None:
                possible = True
                order[low:high] = [low + place for place in new]
        return report.reordered(order) if possible else None

    return reorder


def _drawn(
    rule: Rule, report: ParsedReport, low: int, high: int, rng: np.random.Generator
) -> _Order | None:
    """A new order of the words low to high - 1; None when no draw could change them."""
    keys, size = report.keys[low:high], high - low
    if rule.move != "shuffle":
        order = without_randomness(rule, np.arange(size), 0, size).tolist()
        return None if [keys[place] for place in order] == keys else order
    if rule.unit == "trigram":
        return _trigrams(keys, rng)
    if rule.within == "trigram":
        return _within_trigrams(keys, rng)
    groups = [list(range(size))]
    if rule.classes:
        tags = report.tags[low:high]
        groups = [[p for p, tag in enumerate(tags) if tag in tags_of] for tags_of in rule.classes]
    return _within_groups(keys, groups, rng)


def _differ(keys: Sequence[str]) -> bool:
    return len(set(keys)) > 1


def _within_groups(
    keys: Sequence[str], groups: Sequence[Sequence[int]], rng: np.random.Generator
) -> _Order | None:
    """The words of each group are permuted among the places of the group; the others stay."""
    order = list(range(len(keys)))
    possible = False
    for group in groups:
        if _differ([keys[place] for place in group]):
            possible = True
            for place, source in zip(group, rng.permutation(len(group)).tolist(), strict=True):
                order[place] = group[source]
    return order if possible else None


def _within_trigrams(keys: Sequence[str], rng: np.random.Generator) -> _Order | None:
    if not any(_differ(keys[start : start + TRIGRAM]) for start in range(0, len(keys), TRIGRAM)):
        return None
    # Sorting by trigram number plus a fraction in [0, 1) never moves a word out of its trigram.
    return np.argsort(np.arange(len(keys)) // TRIGRAM + rng.random(len(keys))).tolist()


def _trigrams(keys: Sequence[str], rng: np.random.Generator) -> _Order | None:
    size = len(keys)
    places = [range(start, min(start + TRIGRAM, size)) for start in range(0, size, TRIGRAM)]
    if len(places) < 2:
        return None
    words = [[keys[place] for place in trigram] for trigram in places]
    first, last = words[0], words[-1]
    # Equal full trigrams and a tail that commutes with them (a a a, a) read the same any way.
    if first + last == last + first and all(trigram == first for trigram in words[:-1]):
        return None
    return [place for n in rng.permutation(len(places)).tolist() for place in places[n]]


KINDS: dict[str, Kind] = {kind: _kind(rule) for kind, rule in RULES.items()}
