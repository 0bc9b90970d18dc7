"""The frozen questions of perturbed-report choice: a report and perturbed copies of it.

A protocol is a constant in this file. Its name has a version, which changes whenever a question
may change: with the kinds of perturbation, their code, the random draws or the exclusions.
"""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from mmrl.data import perturb
from mmrl.evaluators import statistics
from mmrl.evaluators.base import HeldOut
from mmrl.evaluators.ngrams import LanguageModel

SEED = 0  # of all draws of all protocols

Copy = tuple[int, str, str]
"""(position of the report, kind of perturbation, text of the copy)."""


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How questions are made.

    Attributes:
      name: with its version; results use "structure/{name}".
      kinds: of perturbation.
      form: "choice": the report and one copy of every kind. "pairs": the report and one copy, one
        question per kind that applies. "balanced": pairs in which, for each kind, the copy is more
        likely than the report in half of the questions, under a language model of reports.
      about: one line for the summary page.
      lower_case, max_words: applied to reports before they are perturbed; None keeps all words.
    """

    name: str
    kinds: tuple[str, ...]
    form: Literal["choice", "pairs", "balanced"]
    about: str
    lower_case: bool = False
    max_words: int | None = None

    @property
    def options(self) -> int:
        """Options per question."""
        return 1 + len(self.kinds) if self.form == "choice" else 2


PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "authors-5way@1",
            (
                "shuffle_nouns_and_adjectives",
                "shuffle_all_but_nouns_and_adjectives",
                "shuffle_within_trigrams",
                "shuffle_trigrams",
            ),
            "choice",
            "the published test: lower case, the first 50 words, four shuffles",
            lower_case=True,
            max_words=50,
        ),
        Protocol(
            "order-10way@1",
            (*perturb.ORDER_KINDS, "shuffle_all_words_in_sentences"),
            "choice",
            "nine kinds that only reorder words, so a bag of words cannot choose",
        ),
        Protocol(
            "clinical@1",
            perturb.CLINICAL_KINDS,
            "pairs",
            "report against a fluent copy in which one fact is changed",
        ),
        Protocol(
            "balanced@1",
            perturb.CLINICAL_KINDS,
            "balanced",
            "clinical pairs in which the copy is the more likely text in half of the questions",
        ),
        Protocol(
            "control@1",
            perturb.CONTROL_KINDS,
            "pairs",
            "copies with reordered sentences and the same meaning, where no preference is correct",
        ),
    )
}


@dataclasses.dataclass(frozen=True)
class Questions:
    """The Q questions of one protocol over one held-out set, each with K copies.

    Attributes:
      protocol: how they were made.
      rows: i64[Q], positions in the held-out data.
      originals: str[Q], the true reports as encoded.
      copies: str[Q, K]. kinds: str[Q, K].
      excluded: reason -> number of excluded reports (choice, pairs) or questions (balanced).
      counts: kind -> outcome -> number of reports.
      sha256: digest over ids, originals and copies; equal digests mean the same questions.
    """

    protocol: Protocol
    rows: np.ndarray
    originals: np.ndarray
    copies: np.ndarray
    kinds: np.ndarray
    excluded: Mapping[str, int]
    counts: Mapping[str, Mapping[str, int]]
    sha256: str

    def __len__(self) -> int:
        return len(self.rows)


def draw(protocol: Protocol, data: HeldOut, half_models: Sequence[LanguageModel]) -> Questions:
    """Makes the questions. They depend only on the protocol, the record ids and the texts.

    A copy is valid if its tokens, after truncation, differ from those of the original and, in a
    choice, from those of the report's other copies.

    Args:
      protocol: what to make.
      data: the held-out examples.
      half_models: language models of two halves of the training texts, for "balanced"; they must
        agree on whether a copy is more likely. () if there are no training texts: there are then
        no such questions.
    """
    texts = [_shown(text, protocol) for text in data.texts]
    originals = _seen_by_encoder(data, texts)
    if protocol.form == "balanced":
        if not half_models:
            reason = {"no training texts to fit a language model on": len(data)}
            return _questions(protocol, data, texts, [], reason, {})
        return _balanced(protocol, data, texts, originals, half_models)
    counts = {kind: Counter[str]() for kind in protocol.kinds}
    drawn: list[Copy] = []
    for row, (name, text) in enumerate(zip(data.ids, texts, strict=True)):
        for kind in protocol.kinds:
            made = perturb.perturb(text, kind, statistics.generator(SEED, name, kind))
            if made is None:
                counts[kind]["cannot change the report"] += 1
            else:
                drawn.append((row, kind, made))
    groups: dict[int, list[Copy]] = {}
    seen = [{original} for original in originals]
    for copy, tokens in zip(drawn, _seen_by_encoder(data, [c[2] for c in drawn]), strict=True):
        row, kind, _ = copy
        if tokens == originals[row]:
            counts[kind]["equal to the original"] += 1
        elif protocol.form == "choice" and tokens in seen[row]:
            counts[kind]["equal to another copy"] += 1
        else:
            seen[row].add(tokens)
            counts[kind]["valid"] += 1
            groups.setdefault(row, []).append(copy)
    if protocol.form == "pairs":
        pairs = [[copy] for row in sorted(groups) for copy in groups[row]]
        without = {"no kind applies": len(data) - len(groups)}
        return _questions(protocol, data, texts, pairs, without, counts)
    whole = [copies for _, copies in sorted(groups.items()) if len(copies) == len(protocol.kinds)]
    fewer = {f"fewer than {len(protocol.kinds)} valid copies": len(data) - len(whole)}
    return _questions(protocol, data, texts, whole, fewer, counts)


def _questions(
    protocol: Protocol,
    data: HeldOut,
    texts: Sequence[str],
    groups: Sequence[Sequence[Copy]],
    excluded: Mapping[str, int],
    counts: Mapping[str, Mapping[str, int]],
) -> Questions:
    rows = [copies[0][0] for copies in groups]
    named = [part for row in rows for part in (data.ids[row], texts[row])]
    named += [part for copies in groups for _, kind, text in copies for part in (kind, text)]
    shape = (len(rows), protocol.options - 1)
    return Questions(
        protocol,
        np.array(rows, np.int64),
        np.array([texts[row] for row in rows], object),
        np.array([text for copies in groups for _, _, text in copies], object).reshape(shape),
        np.array([kind for copies in groups for _, kind, _ in copies], object).reshape(shape),
        {reason: count for reason, count in excluded.items() if count},
        {kind: dict(counter) for kind, counter in counts.items()},
        hashlib.sha256("\x00".join(named).encode("utf-8", "surrogatepass")).hexdigest(),
    )


def _shown(text: str, protocol: Protocol) -> str:
    if protocol.lower_case:
        text = text.lower()
    if protocol.max_words is not None:
        pieces = perturb.parse(text).pieces
        text = "".join(pieces[: 2 * protocol.max_words + 1]).rstrip()
    return text


def _seen_by_encoder(data: HeldOut, texts: Sequence[str]) -> list[bytes]:
    """The valid tokens of each text, as hashable bytes."""
    if not texts:
        return []
    tokens, mask = data.tokenize(texts)
    return [row[kept].tobytes() for row, kept in zip(tokens, mask, strict=True)]


# --- balanced --------------------------------------------------------------------------------


@dataclasses.dataclass
class _Sides:
    """For one report and kind: the nearest more likely copy and the nearest less likely copy."""

    row: int
    likelier: str | None = None
    unlikelier: str | None = None


def _balanced(
    protocol: Protocol,
    data: HeldOut,
    texts: Sequence[str],
    originals: Sequence[bytes],
    models: Sequence[LanguageModel],
) -> Questions:
    """Pairs whose copy is more likely than the report in exactly half of the questions per kind.

    A copy is more (or less) likely if all models agree; other copies are not used. Of all copies
    that a kind can make of a report, the nearest more likely one and the nearest less likely one
    are kept, by mean log-probability. One of the two is chosen so that both directions are equally
    frequent within the kind. Reports with a copy in one direction only are assigned first. Reports
    without a counterpart in the other direction are excluded.
    """
    chosen: list[Copy] = []
    excluded: Counter[str] = Counter()
    counts: dict[str, dict[str, int]] = {}
    base = np.stack([model.score(texts) for model in models])
    for kind in protocol.kinds:
        possible: list[Copy] = [
            (row, kind, copy)
            for row, text in enumerate(texts)
            for copy in perturb.candidates(text, kind)
        ]
        seen = _seen_by_encoder(data, [text for _, _, text in possible])
        valid = [c for c, s in zip(possible, seen, strict=True) if s != originals[c[0]]]
        sides = _split(valid, base, models)
        picked, surplus = _halves(sides, statistics.generator(SEED, "balanced", kind))
        chosen += [(row, kind, text) for row, text in picked]
        if surplus:
            excluded["no counterpart of the other likelihood"] += surplus
        counts[kind] = {
            "reports with a copy": len(sides),
            "with likelier and less likely ones": sum(
                side.likelier is not None and side.unlikelier is not None for side in sides
            ),
            "asked": len(picked),
        }
    order = {kind: position for position, kind in enumerate(protocol.kinds)}
    chosen.sort(key=lambda copy: (copy[0], order[copy[1]]))
    return _questions(protocol, data, texts, [[copy] for copy in chosen], excluded, counts)


def _split(
    copies: Sequence[Copy], base: np.ndarray, models: Sequence[LanguageModel]
) -> list[_Sides]:
    """The nearest more and less likely copy of each report; base: f64[models, N], of reports."""
    sides: dict[int, _Sides] = {}
    gaps: dict[tuple[int, bool], float] = {}
    scores = np.stack([model.score(text for _, _, text in copies) for model in models])
    for (row, _, text), of_models in zip(copies, scores.T, strict=True):
        margins = of_models - base[:, row]
        if not ((margins > 0).all() or (margins < 0).all()):
            continue
        gap = float(margins.mean())
        side = sides.setdefault(row, _Sides(row))
        if abs(gap) < gaps.get((row, gap > 0), np.inf):
            gaps[row, gap > 0] = abs(gap)
            setattr(side, "likelier" if gap > 0 else "unlikelier", text)
    return [sides[row] for row in sorted(sides)]


def _halves(sides: Sequence[_Sides], rng: np.random.Generator) -> tuple[list[tuple[int, str]], int]:
    """Equally many questions of both directions, and the number of excluded reports."""
    up = [side for side in sides if side.unlikelier is None]
    down = [side for side in sides if side.likelier is None]
    both = [side for side in sides if side.likelier is not None and side.unlikelier is not None]
    both = [both[place] for place in rng.permutation(len(both))]
    for side in both:  # to the less frequent direction
        (up if len(up) <= len(down) else down).append(side)
    half = min(len(up), len(down))
    picked = [(up[place].row, str(up[place].likelier)) for place in rng.permutation(len(up))[:half]]
    picked += [
        (down[place].row, str(down[place].unlikelier))
        for place in rng.permutation(len(down))[:half]
    ]
    return picked, len(sides) - len(picked)
