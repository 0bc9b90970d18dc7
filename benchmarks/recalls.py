"""Retrieval with the true and with permuted images, pair by pair, of a trained run."""

import dataclasses

import numpy as np

from mmrl.data.batches.pipeline import Examples
from mmrl.evaluators import statistics
from mmrl.evaluators.retrieval import best_match_ranks, recall_chance
from mmrl.training import run


@dataclasses.dataclass(frozen=True)
class Recalls:
    """Which of N pairs are retrieved first; the arrays are bool[N].

    Attributes:
      forth, back: the second encoding by the first one, and the first by the second.
      forth_permuted, back_permuted: the same with the first encoding permuted between patients.
      patients: of the pairs. chance: of a random order.
    """

    forth: np.ndarray
    back: np.ndarray
    forth_permuted: np.ndarray
    back_permuted: np.ndarray
    patients: np.ndarray
    chance: float


def held_out(trained: run.Trained) -> Examples:
    """The validation split of a run."""
    return trained.examples(run.load_corpus(trained.config, "val"))


def recalls(
    trained: run.Trained, data: Examples, one: str, two: str, limit: int | None = None
) -> Recalls:
    """R@1 between two encodings, pair by pair.

    Args:
      data: held-out examples. limit: ranks a fixed subset of as many; None: all.
    """
    subset = statistics.fixed_subset(data, limit, 0)
    encoded = trained.predict.encode(trained.state, subset, [one, two])
    present = encoded["present"]
    groups = np.asarray(subset.groups)[present]
    patients = np.asarray(subset.patients)[present]
    first, second = encoded[one][present], encoded[two][present]
    order = statistics.permutation_between_patients(patients, np.random.default_rng(0))
    return Recalls(
        best_match_ranks(first, second, groups) == 1,
        best_match_ranks(second, first, groups) == 1,
        best_match_ranks(first[order], second, groups) == 1,
        best_match_ranks(second, first[order], groups) == 1,
        patients,
        recall_chance(groups, 1),
    )
