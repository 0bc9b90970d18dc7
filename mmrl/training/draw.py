"""The part of the training split that a run trains on: config.data.train_fraction."""

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from mmrl.data.corpus import Corpus
from mmrl.data.draws import draw_by_patient
from mmrl.data.inputs.base import Input
from mmrl.data.inputs.labels import Labels
from mmrl.data.labels import BLANK


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A draw.

    Attributes:
      rows: i64[n], ascending, the examples of the training split that are drawn.
      facts: what results state of it.
    """

    rows: np.ndarray
    facts: Mapping[str, Any]


def training_rows(
    corpus: Corpus, inputs: Mapping[str, Input], data: Mapping[str, Any]
) -> Drawn | None:
    """Draws the examples of training; None if it uses all of them.

    The seed of a run does not matter, so runs with other seeds learn from the same patients.

    Args:
      corpus: the training split. inputs: of the run; the labels among them are the truth of
        `draw_by_patient`, read by the label policy. data: config.data.

    Raises:
      InputError: no example has a known label.
    """
    fraction, draw = float(data["train_fraction"]), int(data["train_draw"])
    if fraction == 1:
        return None
    tables = [one.table(corpus) for one in inputs.values() if isinstance(one, Labels)]
    truth = None
    if tables:
        truth = np.concatenate([np.where(mask, values, BLANK) for values, mask in tables], axis=1)
    patients = np.asarray(corpus.patients)
    rows = draw_by_patient(patients, truth, fraction, draw=draw)
    known = patients[draw_by_patient(patients, truth, 1.0)]
    plain = known[draw_by_patient(known, None, fraction, draw=draw)]
    ids = "\n".join(corpus.ids[row] for row in rows.tolist())
    facts = {
        "fraction": fraction,
        "draw": draw,
        "patients": len(np.unique(patients[rows])),
        "patients_to_draw_from": len(np.unique(known)),
        "taken_for_a_class": len(np.setdiff1d(patients[rows], plain)),
        "examples": len(rows),
        "sha256": hashlib.sha256(ids.encode()).hexdigest()[:16],
    }
    return Drawn(rows, facts)
