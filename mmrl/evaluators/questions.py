"""Questions about images with a closed list of options: read from a file, or made from records.

A file is a table or JSONL (see `data.reading.tabular`) with the columns

  id        of the record
  question  its text
  options   a JSON list of texts, or texts separated by "|"
  answer    one of the options
  type      optional: rows of its own, such as "modality"
"""

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mmrl import build, files, sequences
from mmrl.data.reading import tabular
from mmrl.data.reading.rows import lacks
from mmrl.evaluators import statistics
from mmrl.evaluators.base import HeldOut
from mmrl.evaluators.prompt_sets import SIDED, STATED, worded
from mmrl.evaluators.truth import SIDES, Facts, know
from mmrl.types import InputError

_COLUMNS = ("id", "question", "options", "answer")
_ALIKE = "options that are equal or fewer than two"


@dataclasses.dataclass(frozen=True)
class Question:
    """A question about one image.

    Attributes:
      row: of the image in the held-out data.
      text: of the question. options: at least two different texts. answer: which of them is right.
      type: for rows of its own; "" for none.
    """

    row: int
    text: str
    options: tuple[str, ...]
    answer: int
    type: str = ""


class Asked(NamedTuple):
    """Questions about held-out data.

    Attributes:
      questions: in a fixed order, at least one.
      excluded: reason -> number of questions or records that are left out.
      source: name and sha256 of what they come from.
    """

    questions: list[Question]
    excluded: dict[str, int]
    source: dict[str, str]


def read(path: str, data: HeldOut) -> Asked:
    """The questions of a file about the records of `data`.

    Questions about other records, and rows that cannot be used, are excluded and counted.

    Raises:
      InputError: a missing column, a file that cannot be read, or no usable question.
    """
    header = tabular.columns(path)
    missing = [name for name in _COLUMNS if name not in header]
    if missing:
        raise InputError(
            f"{lacks(path, missing, header)}; expected {', '.join(_COLUMNS)} and optionally type"
        )
    wanted = (*_COLUMNS, *(("type",) if "type" in header else ()))
    place = {name: row for row, name in enumerate(data.ids)}
    found: list[Question] = []
    excluded: Counter[str] = Counter()
    for _, cells, problem in tabular.rows(path, wanted):
        if problem:
            excluded["a row that does not fit the header"] += 1
            continue
        options = _options(cells["options"])
        right = [n for n, option in enumerate(options) if option == cells["answer"].strip()]
        if cells["id"] not in place:
            excluded["about a record that is not evaluated"] += 1
        elif len(set(options)) < 2 or len(set(options)) < len(options):
            excluded[_ALIKE] += 1
        elif not right:
            excluded["the answer is none of the options"] += 1
        else:
            row, kind = place[cells["id"]], cells.get("type", "")
            found.append(Question(row, cells["question"].strip(), options, right[0], kind))
    if not found:
        told = ", ".join(f"{count} {reason}" for reason, count in excluded.items()) or "no rows"
        raise InputError(f"{path} has no question about {data.name} ({told})")
    digest = files.sha256(path)
    return Asked(found, dict(excluded), {"name": path, "sha256": digest})


def _options(cell: str) -> tuple[str, ...]:
    """The options of a cell; empty if it is a list of anything but texts."""
    if not cell.lstrip().startswith("["):
        return tuple(part.strip() for part in cell.split("|"))
    try:
        given = json.loads(cell)
    except ValueError:
        return ()
    return tuple(given) if all(isinstance(one, str) for one in given) else ()


def make(
    name: str, data: HeldOut, *, options: int = 4, seed: int = 0, findings: Sequence[str] = ()
) -> Asked:
    """Questions of one of `SETS`, made from the findings or labels of the records.

    They depend on the seed and the ids and findings of the records, so they are equal for every
    checkpoint. Records in another language than English are excluded and counted.

    Args:
      options: of a question with drawn options. seed: of the draws.
      findings: names of those that questions are about; empty: all.

    Raises:
      InputError: an unknown set or finding; records without findings and labels, or that give no
        question.
    """
    if name not in SETS:
        raise InputError(f"{build.unknown('questions', name, SETS)}, or a file of questions")
    known = know(data, purpose=f"questions={name}")
    excluded, names = dict(known.excluded), known.names
    for one in sequences.each(findings, "findings"):
        if one not in names:
            raise InputError(build.unknown(f"finding of {data.name}", one, names))
    names = [one for one in names if one in findings] if findings else names
    found: list[Question] = []
    without = alike = 0
    for row, facts in enumerate(known.facts):
        if known.asked[row]:
            rng = statistics.generator(seed, "questions", name, data.ids[row])
            of_record = SETS[name](row, facts, names, options, rng)
            # Names such as Pleural_Effusion and "pleural effusion" have the same words.
            askable = [one for one in of_record if len(set(one.options)) == len(one.options)]
            found += askable
            without += not of_record
            alike += len(of_record) - len(askable)
    if without:
        excluded["records that give no question"] = without
    if alike:
        excluded[_ALIKE] = alike
    if not found:
        raise InputError(f"no record of {data.name} gives a question of {name}")
    told = json.dumps([dataclasses.astuple(one) for one in found])
    digest = hashlib.sha256(told.encode()).hexdigest()
    return Asked(found, excluded, {"name": f"{name}@1", "sha256": digest})


def _split(facts: Facts, names: Sequence[str]) -> tuple[list[str], list[str]]:
    """The findings known to be present and those known to be absent."""
    states = {name: facts.has((name, "")) for name in names if not name.lower().startswith("no ")}
    return [n for n, on in states.items() if on], [n for n, on in states.items() if on is False]


def _which_finding(
    row: int, facts: Facts, names: Sequence[str], options: int, rng: np.random.Generator
) -> list[Question]:
    """Which of several findings is present; all others are known to be absent."""
    present, absent = _split(facts, names)
    if not present or len(absent) < options - 1:
        return []
    right = present[int(rng.integers(len(present)))]
    wrong = [absent[n] for n in rng.choice(len(absent), options - 1, replace=False)]
    listed = [(right, *wrong)[n] for n in rng.permutation(options)]
    texts = tuple(worded(STATED[1:2], name)[0] for name in listed)
    return [Question(row, "Which finding is present?", texts, listed.index(right), right)]


def _which_side(
    row: int, facts: Facts, names: Sequence[str], options: int, rng: np.random.Generator
) -> list[Question]:
    """Left or right, for every finding on exactly one side."""
    found = []
    for name in names:
        on = [facts.has((name, side)) for side in SIDES]
        if None not in on and sum(map(bool, on)) == 1:
            (asked,) = worded(("On which side is the {finding}?",), name)
            texts = tuple(worded(SIDED[:1], name, side)[0] for side in SIDES)
            found.append(Question(row, asked, texts, on.index(True), name))
    return found


def _presence(
    row: int, facts: Facts, names: Sequence[str], options: int, rng: np.random.Generator
) -> list[Question]:
    """Yes or no, about one finding that is present and one that is absent."""
    found = []
    for answer, listed in enumerate(_split(facts, names)):
        if listed:
            name = listed[int(rng.integers(len(listed)))]
            (asked,) = worded(("Is there {finding}?",), name)
            found.append(Question(row, asked, ("Yes.", "No."), answer, name))
    return found


# (row, facts of the record, all findings, options, random numbers) -> its questions
_Make = Callable[[int, Facts, Sequence[str], int, np.random.Generator], list[Question]]
SETS: Mapping[str, _Make] = {
    "findings": _which_finding,
    "laterality": _which_side,
    "presence": _presence,
}
