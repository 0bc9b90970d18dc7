"""What is known to be present and absent in held-out studies: the truth of questions about them."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mmrl import build
from mmrl.data.labels import Policy
from mmrl.evaluators.base import HeldOut
from mmrl.types import InputError, Record

SIDES = ("left", "right")
OPEN = Policy()  # uncertain and unstated labels leave the finding unknown
ENGLISH = "en"

# (finding name, side); side "" means any side.
Selector = tuple[str, str]


class Facts(NamedTuple):
    """The known findings of one study.

    Attributes:
      sides: finding present -> its sides; "" stands for a side that is not stated.
      absent: findings known to be absent; None: all that are not present.
    """

    sides: Mapping[str, frozenset[str]]
    absent: frozenset[str] | None

    def has(self, selector: Selector) -> bool | None:
        """Whether the study has the finding on that side; None if unknown."""
        name, side = selector
        if name not in self.sides:
            return False if self.absent is None or name in self.absent else None
        if not side or side in self.sides[name]:
            return True
        return None if "" in self.sides[name] else False

    def answer(self, present: Selector, absent: Selector | None = None) -> bool | None:
        """Whether the study has `present` rather than `absent`; None if it is excluded.

        Args:
          absent: None: a study without `present` has the other answer. Else studies with both or
            neither are excluded.
        """
        yes = self.has(present)
        if absent is None:
            return yes
        no = self.has(absent)
        return None if yes is None or no is None or yes == no else yes


def read_facts(records: Sequence[Record], policy: Policy = OPEN) -> list[Facts]:
    """The ground truth of each record: findings if the corpus has any, else labels.

    Findings are assumed to be complete; "bilateral" means both sides. Labels have no side. A
    finding is unknown if `policy` masks its label or maps it to neither 1 nor 0.

    Returns:
      One entry per record; empty if no record has a finding or a label of 1 or 0.
    """
    if any(record.findings for record in records):
        facts = []
        for record in records:
            sides: dict[str, frozenset[str]] = {}
            for finding in record.findings:
                on = SIDES if finding.side == "bilateral" else (finding.side,)
                sides[finding.name] = sides.get(finding.name, frozenset()) | set(on)
            facts.append(Facts(sides, None))
        return facts
    facts = []
    for record in records:
        stated = policy.of(record)
        present = {name: frozenset({""}) for name, label in stated.items() if label == 1}
        facts.append(Facts(present, frozenset(name for name, v in stated.items() if v == 0)))
    return facts if any(fact.sides or fact.absent for fact in facts) else []


class Known(NamedTuple):
    """The facts of N held-out studies.

    Attributes:
      facts: one entry per study.
      asked: bool[N], False for studies in another language than the prompts.
      excluded: reason -> number of studies that are not asked.
    """

    facts: list[Facts]
    asked: np.ndarray
    excluded: dict[str, int]

    @property
    def names(self) -> list[str]:
        """All findings that some study is known to have or to lack, sorted."""
        return sorted({n for fact in self.facts for n in {*fact.sides, *(fact.absent or ())}})


def know(
    data: HeldOut, *, purpose: str, policy: Policy | None = None, language: str | None = ENGLISH
) -> Known:
    """Reads the facts of held-out studies.

    Nothing is known of studies in another language than `language`: prompts in one language say
    nothing about an encoder of another.

    Args:
      purpose: the evaluator, for messages.
      policy: of labels; by default that of the data.
      language: of the prompts, ISO 639-1; None: there are none, and all studies count.

    Raises:
      InputError: no study has findings or labels, or none is in the language.
    """
    records = [data.record(index) for index in range(len(data))]
    found = read_facts(records, getattr(data, "label_policy", OPEN) if policy is None else policy)
    if not found:
        raise InputError(
            f"no record of {data.name} has findings or labels ({len(data)} examples); "
            f"{purpose} needs them as ground truth"
        )
    asked = np.array([language in (None, record.language) for record in records])
    if not asked.any():
        others = ", ".join(sorted({record.language for record in records}))
        raise InputError(
            f"the records of {data.name} are in the languages {others}, the prompts of {purpose} "
            f"in {language}; expected records in {language}"
        )
    nothing = Facts({}, frozenset())
    facts = [fact if own else nothing for fact, own in zip(found, asked, strict=True)]
    foreign = int((~asked).sum())
    return Known(facts, asked, {f"language is not {language}": foreign} if foreign else {})


class Classed(NamedTuple):
    """The studies that belong to exactly one of C classes.

    Attributes:
      rows: i64[n], in the held-out data. truth: i64[n], their classes.
      excluded: reason -> number of studies that are left out.
    """

    rows: np.ndarray
    truth: np.ndarray
    excluded: dict[str, int]


def exclusive(known: Known, classes: Sequence[str], *, where: str) -> Classed:
    """The studies for which one of the classes is present and all others are absent.

    Args:
      classes: names of findings or labels.
      where: the evaluator or option that names the classes, for messages.

    Raises:
      InputError: an unknown class, or studies of fewer than two classes.
    """
    names = known.names
    for name in classes:
        if name not in names:
            raise InputError(build.unknown(f"finding or label in {where}", name, names))
    build.check_distinct(where, classes)
    excluded = dict(known.excluded)
    rows, truth = [], []
    for row in np.flatnonzero(known.asked).tolist():
        states = [known.facts[row].has((name, "")) for name in classes]
        present = states.count(True)
        if present == 1 and None not in states:
            rows.append(row)
            truth.append(states.index(True))
            continue
        reason = "a class is unknown"
        if present > 1:
            reason = "several of the classes"
        elif None not in states:
            reason = "none of the classes"
        excluded[reason] = excluded.get(reason, 0) + 1
    if len(set(truth)) < 2:
        told = ", ".join(f"{count} {reason}" for reason, count in excluded.items()) or "none left"
        raise InputError(
            f"{where}: {len(rows)} studies belong to exactly one of {', '.join(classes)} "
            f"(left out: {told}); expected studies of two classes at least. "
            "config.data.label_policy says what blank and uncertain labels are"
        )
    return Classed(np.array(rows, np.int64), np.array(truth, np.int64), excluded)
