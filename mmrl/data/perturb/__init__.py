"""Perturbed reports: hard negatives that keep the words and break the meaning, or reword one fact.

Kinds, each one function with one line in the registry:

* *order* (`ORDER_KINDS` on the whole report, `SENTENCE_ORDER_KINDS` on each sentence): the same
  words and punctuation in another order;
* *lexical*: `replace_adjectives_with_antonyms`, the ninth of the paper (`PAPER_KINDS`);
* *clinical* (`CLINICAL_KINDS`): fluent sentences that contradict the image: another side, zone,
  degree, course, device, or finding, or its negation;
* *control*: `shuffle_sentences` keeps the meaning and must not serve as a negative.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np

from mmrl import build
from mmrl.data.perturb import antonyms, clinical, order
from mmrl.data.perturb.report import Kind, ParsedReport, Span, edited
from mmrl.types import InputError

DRAWS = 64
"""How often a random kind is drawn until it differs; each draw fails with at most 1/2."""

_CACHED_REPORTS = 1 << 12


@dataclasses.dataclass(frozen=True)
class Perturbation:
    """A perturbed copy of a report.

    Attributes:
      text: the perturbed report.
      kind: one of `KINDS`.
    """

    text: str
    kind: str
    _spans: Callable[[], tuple[Span, ...]] = dataclasses.field(compare=False, repr=False)

    @functools.cached_property
    def changed_spans(self) -> tuple[Span, ...]:
        """(start, end) characters of `text` that differ from before, in order; never empty."""
        return self._spans()


ORDER_KINDS = tuple(order.REPORT_KINDS)
SENTENCE_ORDER_KINDS = tuple(order.SENTENCE_KINDS)
LEXICAL_KINDS = ("replace_adjectives_with_antonyms",)
CLINICAL_KINDS = tuple(clinical.KINDS)
CONTROL_KINDS = tuple(order.CONTROL_KINDS)
PAPER_KINDS = (*ORDER_KINDS, *LEXICAL_KINDS)
"""The nine of the method (Zhong, Batmanghelich, Sun 2025)."""
FLUENT_KINDS = (*LEXICAL_KINDS, *CLINICAL_KINDS)
"""Kinds whose result reads like a report; `candidates` lists all they could make of one."""

_REGISTRY: dict[str, Kind] = {
    **order.REPORT_KINDS,
    **order.SENTENCE_KINDS,
    "replace_adjectives_with_antonyms": antonyms.replace,
    **clinical.KINDS,
    **order.CONTROL_KINDS,
}

KINDS: tuple[str, ...] = tuple(_REGISTRY)
"""Names of all kinds. A batch stores the index into this tuple."""

NEGATIVE_KINDS = tuple(kind for kind in KINDS if kind not in CONTROL_KINDS)
"""Kinds whose result is wrong for the image, fit to train against."""


def check_kinds(kinds: Sequence[str], *, among: Sequence[str] = KINDS) -> None:
    """Refuses names that are not in `among`.

    Raises:
      InputError: names the kind and lists the choices.
    """
    for kind in kinds:
        if kind in CONTROL_KINDS and kind not in among:
            raise InputError(
                f"perturbation {kind!r} keeps the meaning, so it cannot be a negative; choices: "
                f"{', '.join(among)}"
            )
        if kind not in among:
            raise InputError(build.unknown("perturbation", kind, among))


@functools.lru_cache(_CACHED_REPORTS)
def parse(report: str) -> ParsedReport:
    """The report taken apart; remembered, because one report is perturbed in many ways."""
    return ParsedReport(report)


def perturb(report: str, kind: str, rng: np.random.Generator) -> Perturbation | None:
    """One perturbed copy of `report`, or None when `kind` cannot change it.

    The copy always differs from the report beyond case and white space. Deterministic in (report,
    kind, state of rng).

    Raises:
      InputError: `kind` is not in `KINDS`.
    """
    check_kinds((kind,))
    parsed, function = parse(report), _REGISTRY[kind]
    for _ in range(DRAWS):
        draft = function(parsed, rng)
        if draft is None:
            return None
        if draft.changed:
            return Perturbation(draft.text, kind, draft.spans)
    return None


def possible(report: str, kind: str) -> bool:
    """Whether some draw of `kind` could change `report`.

    Raises:
      InputError: `kind` is not in `KINDS`.
    """
    check_kinds((kind,))
    return _REGISTRY[kind](parse(report), np.random.default_rng(0)) is not None


def candidates(report: str, kind: str) -> list[Perturbation]:
    """Every copy that a fluent kind could make, in the order of the text; often none.

    `perturb` with that kind draws one of them.

    Raises:
      InputError: `kind` is not in `CLINICAL_KINDS`.
    """
    check_kinds((kind,), among=CLINICAL_KINDS)
    found = (edited(report, edits) for edits in clinical.candidates(parse(report), kind))
    return [Perturbation(draft.text, kind, draft.spans) for draft in found]
