"""What a run trains on: the subset, the draw and the groups of config.data."""

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from mmrl.data import sampling
from mmrl.data.corpus import Corpus
from mmrl.data.draws import draw_by_patient
from mmrl.data.inputs.base import Input
from mmrl.data.inputs.labels import Labels
from mmrl.data.labels import BLANK, Policy
from mmrl.data.sampling import Groups
from mmrl.types import InputError


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A draw.

    Attributes:
      rows: i64[n], ascending, the examples of the training split that are drawn.
      facts: what results state of it.
      groups: of the examples, which are drawn equally often; None: examples are.
    """

    rows: np.ndarray
    facts: Mapping[str, Any]
    groups: Groups | None = None


def training_rows(
    corpus: Corpus, inputs: Mapping[str, Input], data: Mapping[str, Any]
) -> Drawn | None:
    """Draws the examples of training; None if it uses all of them equally often.

    The seed of a run does not matter, so runs with other seeds learn from the same patients.

    Args:
      corpus: the training split. inputs: of the run; the labels among them are the truth of
        `draw_by_patient`, read by the label policy. data: config.data.

    Raises:
      InputError: no example has a known label; ids, labels or attributes that the corpus does not
        have.
    """
    facts: dict[str, Any] = {}
    rows = np.arange(len(corpus))
    if data["subset"]:
        ids = sampling.read_ids(data["subset"])
        rows = sampling.subset(ids, corpus.ids, corpus.patients, data["subset_by"])
        facts["subset"] = f"{len(ids)} ids by {data['subset_by']}"
    if float(data["train_fraction"]) != 1:
        rows, stated = _fraction(corpus, inputs, data, rows)
        facts |= stated
    groups = _groups(corpus, data)
    if groups is not None:
        groups = groups.within(rows)
        kept = rows[groups.of[rows] >= 0]
        facts["groups"] = f"{len(groups.names)} of {groups.members} examples in turn"
        facts["left_out_of_groups"] = len(rows) - len(kept)
        rows = kept
    if not facts:
        return None
    facts |= {"examples": len(rows), "sha256": _digest(corpus.ids[row] for row in rows.tolist())}
    if groups is not None:
        facts["groups_sha256"] = _digest(map(str, groups.of.tolist()))
    return Drawn(rows, facts, groups)


def kept(drawn: Drawn | None, corpus: Corpus, rows: np.ndarray, after: int) -> Drawn:
    """The part of a draw that an objective has kept.

    Args:
      drawn: what training drew before; None: all examples.
      corpus: the training split. rows: i64[n], ascending, what is kept. after: updates before.
    """
    before = len(corpus) if drawn is None else len(drawn.rows)
    groups = None if drawn is None or drawn.groups is None else drawn.groups.within(rows)
    facts = {} if drawn is None else dict(drawn.facts)
    facts |= {
        "kept_after_step": after,
        "kept": len(rows),
        "kept_of": before,
        "kept_sha256": _digest(corpus.ids[row] for row in rows.tolist()),
    }
    return Drawn(rows, facts, groups)


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _fraction(
    corpus: Corpus, inputs: Mapping[str, Input], data: Mapping[str, Any], rows: np.ndarray
) -> tuple[np.ndarray, dict[str, Any]]:
    """The rows that config.data.train_fraction draws of `rows`, and what to state of them."""
    fraction, draw = float(data["train_fraction"]), int(data["train_draw"])
    tables = [one.table(corpus) for one in inputs.values() if isinstance(one, Labels)]
    truth = None
    if tables:
        truth = np.concatenate([np.where(mask, values, BLANK) for values, mask in tables], axis=1)
        truth = truth[rows]
    patients = np.asarray(corpus.patients)[rows]
    chosen = draw_by_patient(patients, truth, fraction, draw=draw)
    known = patients[draw_by_patient(patients, truth, 1.0)]
    plain = known[draw_by_patient(known, None, fraction, draw=draw)]
    return rows[chosen], {
        "fraction": fraction,
        "draw": draw,
        "patients": len(np.unique(patients[chosen])),
        "patients_to_draw_from": len(np.unique(known)),
        "taken_for_a_class": len(np.setdiff1d(patients[chosen], plain)),
    }


def _groups(corpus: Corpus, data: Mapping[str, Any]) -> Groups | None:
    """The groups of config.data.sampler; None if it shuffles examples."""
    name, members = data["sampler"]["name"], int(data["sampler"]["members"])
    if name == "shuffle":
        return None
    if name == "classes":
        names = tuple(data["sampler"]["labels"]) or corpus.label_names
        if not names:
            raise InputError(f"config.data.sampler.name=classes, but {corpus.name} has no labels")
        what = "label in config.data.sampler.labels"
        policy = Policy.from_config(data["label_policy"])
        values, mask = policy.table(names, corpus.label_names, corpus.labels, what=what)
        return sampling.of_classes(names, (values == 1) & mask, members)
    by = data["sampler"]["by"]
    if by == sampling.PATIENT:
        return sampling.of_keys(corpus.patients, members)
    if by == sampling.DUPLICATES:
        return sampling.of_keys([str(group) for group in corpus.groups.tolist()], members)
    attributes = [corpus.record(index).attributes for index in range(len(corpus))]
    found = sampling.of_keys([one.get(by, "") for one in attributes], members)
    if not found.names:
        choices = sorted({sampling.PATIENT, sampling.DUPLICATES}.union(*attributes))
        raise InputError(
            f"no record of {corpus.name} has the attribute config.data.sampler.by={by}; choices: "
            f"{', '.join(choices)}"
        )
    return found
