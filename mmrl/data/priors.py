"""The prior of each study: the latest study of the same patient before it."""

import bisect
import collections
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Seen(NamedTuple):
    """What decides about the priors of an example.

    Attributes:
      part: of a mixture, to which patients, ids and times belong; 0 without a mixture.
      id, patient, study, prior, time: `id`, `patient_id`, `study_id`, `prior_id` and `time` of the
        record.
      projection: of the image of the example.
    """

    part: int
    id: str
    patient: str
    study: str
    prior: str
    time: int | None
    projection: str


def find(examples: Sequence[Seen]) -> np.ndarray:
    """The prior of each example of a split, i64[N]; -1 where there is none.

    The prior is the study that the corpus states, if it is of the same patient and part and its
    time is not known to be the same or later. Otherwise it is the latest of the patient with an
    earlier time. Images of the study itself are no prior of it, and a study without a time has
    none but the stated one. Where several examples show the prior, that of the same projection is
    chosen, or else the first.
    """
    records: dict[tuple[int, str], list[int]] = collections.defaultdict(list)
    timed: dict[tuple[int, str], list[tuple[int, int]]] = collections.defaultdict(list)
    for index, one in enumerate(examples):
        records[one.part, one.id].append(index)
        if one.time is not None and one.patient:
            timed[one.part, one.patient].append((one.time, index))
    for studies in timed.values():
        studies.sort()
    found = np.full(len(examples), -1, np.int64)
    for index, one in enumerate(examples):
        stated = records.get((one.part, one.prior), []) if one.prior else []
        candidates = [other for other in stated if _may_precede(examples[other], one)]
        if not candidates and one.time is not None:
            candidates = _latest(timed.get((one.part, one.patient), []), one, examples)
        if candidates:
            same = (i for i in candidates if examples[i].projection == one.projection)
            found[index] = next(same, candidates[0])
    return found


def _may_precede(other: Seen, one: Seen) -> bool:
    known = other.time is not None and one.time is not None
    return (
        other.patient == one.patient
        and other.study != one.study
        and not (known and other.time >= one.time)  # type: ignore[operator]
    )


def _latest(studies: Sequence[tuple[int, int]], one: Seen, examples: Sequence[Seen]) -> list[int]:
    """The examples of the latest study before `one`; `studies` are (time, example), ascending."""
    before = bisect.bisect_left(studies, (one.time, -1))
    others = [pair for pair in studies[:before] if examples[pair[1]].study != one.study]
    if not others:
        return []
    first = next(index for time, index in others if time == others[-1][0])
    study = examples[first].study
    return [i for time, i in others if time == others[-1][0] and examples[i].study == study]
