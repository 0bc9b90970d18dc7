"""How similar reports are by the diseases that they name (Ozturk et al. 2025, MedTrim)."""

import numpy as np

from mmrl.types import InputError


def pair_score(
    labels: np.ndarray,
    described: np.ndarray,
    adjectives: np.ndarray,
    directions: np.ndarray,
    *,
    weights: tuple[float, float, float] = (0.85, 0.10, 0.05),
) -> np.ndarray:
    """The score of record j as a partner of the anchor i.

    The first weight times the Jaccard index of their labels, plus the second times the mean over
    the diseases that the anchor describes of the Jaccard index of their adjectives, plus the third
    times the same of their directions. A disease that j does not describe counts 0, and so do both
    means if the anchor describes none: the score is not symmetric. The index of two empty sets
    is 1.

    Args:
      labels: bool[N, E], diseases by the labels of the record.
      described: bool[N, E], diseases found in the text, with their attributes.
      adjectives: bool[N, E, A]. directions: bool[N, E, Z]. Those of diseases that are not described
        are not used.
      weights: of the three parts.

    Returns:
      f32[N, N], anchors in rows.

    Raises:
      InputError: shapes that do not fit.
    """
    labels, described, *attributes = (
        np.asarray(x, bool) for x in (labels, described, adjectives, directions)
    )
    if not (
        labels.ndim == described.ndim == 2
        and len(labels) == len(described)
        and all(x.ndim == 3 and x.shape[:2] == described.shape for x in attributes)
    ):
        raise InputError(
            f"labels {labels.shape}, described {described.shape}, adjectives and directions "
            f"{attributes[0].shape}, {attributes[1].shape}; expected [N, E], [N, E], [N, E, A], "
            "[N, E, Z]"
        )
    of_labels, *of_attributes = weights
    score = of_labels * _jaccard(labels)
    count = np.maximum(described.sum(axis=1, keepdims=True), 1)
    for weight, sets in zip(of_attributes, attributes, strict=True):
        total = np.zeros_like(score)
        for disease in range(described.shape[1]):  # one at a time, to hold N x N alone
            common = np.logical_and.outer(described[:, disease], described[:, disease])
            total += np.where(common, _jaccard(sets[:, disease]), 0.0)
        score += weight * total / count
    return score.astype(np.float32)


def _jaccard(sets: np.ndarray) -> np.ndarray:
    """Jaccard index of all pairs of rows bool[N, M], f64[N, N]; 1 for two empty sets."""
    counted = sets.astype(np.float64)
    shared = counted @ counted.T
    sizes = counted.sum(axis=1)
    union = sizes[:, None] + sizes[None, :] - shared
    return np.where(union > 0, shared / np.maximum(union, 1.0), 1.0)
