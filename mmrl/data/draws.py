"""Parts of the training records, drawn by patient: the 1, 10 and 100 % of labels of a protocol.

A draw is the first part of a random order of the patients, so of two draws with the same number
the smaller one lies within the larger one. Probes and fine-tuning draw with this function, so with
the same fraction and number they learn from the same patients.
"""

import fractions
import math
from collections.abc import Sequence

import numpy as np

from mmrl import streams
from mmrl.data import labels
from mmrl.types import InputError


def draw_by_patient(
    patients: Sequence[str] | np.ndarray,
    truth: np.ndarray | None,
    fraction: float,
    *,
    draw: int = 0,
    seed: int = 0,
) -> np.ndarray:
    """Draws a fraction of the patients, with all of their rows.

    The draw has ceil(fraction * P) of the P patients with a known truth, namely the first ones of a
    random order. Where these lack a class that the truth has, the first patient of the order with
    that class takes the place of the last patients of the draw. A draw so has every class, which
    over-represents rare classes where it is small. It has more patients than the fraction says only
    if fewer cannot have all classes in this way.

    Args:
      patients: of the N rows.
      truth: i[N], classes; or i[N, C], 1 present, 0 absent, and any other number neither, such as
        the uncertain (-1) and unstated (-2) labels of `mmrl.data.labels`. Classes below 0 are
        unknown. The classes of a label are absent and present. None: the rows have no truth, and
        all patients count.
      fraction: above 0, at most 1.
      draw: number of the draw, from 0. seed: of the order of the patients.

    Returns:
      i64[n], ascending: the rows of the patients drawn whose truth is known; with i[N, C] those in
      which any label is.

    Raises:
      InputError: a fraction, draw or seed out of range, sizes that differ, or no known truth.
    """
    check(fraction, draw)
    if seed < 0:
        raise InputError(f"seed={seed}; expected at least 0")
    known, classes = _classes(truth, len(patients))
    if not known.any():
        raise InputError(f"none of {len(patients)} rows has a known truth; nothing can be drawn")
    names, members = np.unique(np.asarray(patients)[known], return_inverse=True)
    rows = np.flatnonzero(known)
    # Of the names, not of the rows, so that neither their order nor further rows matter.
    rng = np.random.default_rng(streams.host_seed(seed, f"draws/{draw}"))
    order = rng.permutation(len(names))
    place = np.empty(len(names), np.int64)
    place[order] = np.arange(len(names))
    at = place[members]  # of the patient of each row, in the order
    firsts = {int(at[column[known]].min()) for column in classes if column.any()}
    count = max(math.ceil(fractions.Fraction(repr(float(fraction))) * len(names)), len(firsts))
    others = [number for number in range(len(names)) if number not in firsts]
    taken = [*firsts, *others[: count - len(firsts)]]
    return rows[np.isin(at, taken)]


def check(fraction: float, draw: int, *, names: Sequence[str] = ("fraction", "draw")) -> None:
    """Refuses a fraction or a number out of range; `names` are those of the two in the message.

    Raises:
      InputError: names it.
    """
    if not 0 < fraction <= 1:
        raise InputError(f"{names[0]}={fraction}; expected above 0 and at most 1")
    if draw < 0:
        raise InputError(f"{names[1]}={draw}; expected at least 0")


def _classes(truth: np.ndarray | None, count: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """(bool[N], whether the truth of a row is known; for every class bool[N], who has it)."""
    if truth is None:
        return np.ones(count, bool), []
    truth = np.asarray(truth)
    if truth.ndim not in (1, 2) or len(truth) != count:
        raise InputError(
            f"truth {list(truth.shape)} of {count} rows; expected [{count}] or [{count}, C]"
        )
    if truth.ndim == 1:
        known = np.asarray(truth >= 0)
        return known, [truth == value for value in np.unique(truth[known])]
    stated = np.isin(truth, (labels.ABSENT, labels.PRESENT))
    both = (labels.ABSENT, labels.PRESENT)
    return np.asarray(stated.any(axis=1)), [column == value for column in truth.T for value in both]
