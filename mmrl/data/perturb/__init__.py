"""Perturbed reports: hard negatives that keep the words and break the meaning, or reword one fact.

Every kind is one entry of a registry. There are four groups:

* *order* (`ORDER_KINDS` on the whole report, `SENTENCE_ORDER_KINDS` on each sentence): the same
  words and punctuation in another order, see `order_rules`;
* *lexical*: `replace_adjectives_with_antonyms`, the ninth kind of the paper (`PAPER_KINDS`);
* *clinical* (`CLINICAL_KINDS`): fluent sentences that contradict the image: another side, zone,
  degree, course, device or finding, or the negation of a statement;
* *control*: `shuffle_sentences` keeps the meaning, so it must not serve as a negative.
"""

import functools
from collections.abc import Sequence

import numpy as np

from mmrl import build, sequences
from mmrl.data.perturb import antonyms, clinical, order_questions, order_rules, shuffle_sentences
from mmrl.data.perturb.edits import edited
from mmrl.data.perturb.report import Kind, ParsedReport
from mmrl.types import InputError

MAX_DRAWS = 64
"""How often a random kind is drawn until the copy differs; each draw succeeds in half of the cases
or more."""

_CACHED_REPORTS = 1 << 12
_CACHED_ANSWERS = 1 << 16

ORDER_KINDS = tuple(order_rules.REPORT_RULES)
SENTENCE_ORDER_KINDS = tuple(order_rules.SENTENCE_RULES)
LEXICAL_KINDS = ("replace_adjectives_with_antonyms",)
CLINICAL_KINDS = tuple(clinical.KINDS)
CONTROL_KINDS = ("shuffle_sentences",)
PAPER_KINDS = (*ORDER_KINDS, *LEXICAL_KINDS)
"""The nine kinds of the method (Zhong, Batmanghelich, Sun 2025)."""

_REGISTRY: dict[str, Kind] = {
    **order_questions.KINDS,
    "replace_adjectives_with_antonyms": antonyms.replace,
    **clinical.KINDS,
    "shuffle_sentences": shuffle_sentences.shuffle,
}

KINDS: tuple[str, ...] = tuple(_REGISTRY)
"""Names of all kinds. A batch stores the index into this tuple."""

ENGLISH_KINDS = tuple(
    kind
    for kind in KINDS
    if kind not in CONTROL_KINDS
    and (kind not in order_rules.RULES or order_rules.RULES[kind].classes)
)
"""Kinds that rely on English words or their parts of speech; the others hold in any language."""

NEGATIVE_KINDS = tuple(kind for kind in KINDS if kind not in CONTROL_KINDS)
"""Kinds whose copies are wrong for the image, so that they can serve as negatives."""


def check_kinds(kinds: Sequence[str], *, among: Sequence[str] = KINDS) -> None:
    """Refuses kinds that are not in `among`.

    Raises:
      InputError: names the kind and lists the choices.
    """
    for kind in sequences.of(kinds, "perturbations"):
        if kind in CONTROL_KINDS and kind not in among:
            raise InputError(
                f"perturbation {kind!r} keeps the meaning, so it cannot be a negative; choices: "
                f"{', '.join(among)}"
            )
        if kind not in among:
            raise InputError(build.unknown("perturbation", kind, among))


@functools.lru_cache(_CACHED_REPORTS)
def parse(report: str) -> ParsedReport:
    """The parsed report; cached, because one report is perturbed in many ways."""
    return ParsedReport(report)


def perturb(report: str, kind: str, rng: np.random.Generator) -> str | None:
    """One perturbed copy of `report`, or None when `kind` cannot change it.

    The copy always differs from the report beyond case and white space. It is a function of
    (report, kind, state of rng).

    Raises:
      InputError: `kind` is not in `KINDS`.
    """
    check_kinds((kind,))
    parsed, draw = parse(report), _REGISTRY[kind]
    for _ in range(MAX_DRAWS):
        copy = draw(parsed, rng)
        if copy != report:
            return copy
    return None


@functools.lru_cache(_CACHED_ANSWERS)
def possible(report: str, kind: str) -> bool:
    """Whether some draw of `kind` could change `report`.

    Raises:
      InputError: `kind` is not in `KINDS`.
    """
    check_kinds((kind,))
    return _REGISTRY[kind](parse(report), np.random.default_rng(0)) is not None


def candidates(report: str, kind: str) -> list[str]:
    """Every copy that a clinical kind could make, in the order of the text; often none.

    `perturb` with that kind draws one of them.

    Raises:
      InputError: `kind` is not in `CLINICAL_KINDS`.
    """
    check_kinds((kind,), among=CLINICAL_KINDS)
    return [edited(report, edits) for edits in clinical.candidates(parse(report), kind)]
