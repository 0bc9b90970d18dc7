"""RudolfV: balanced groups of tiles, and features that no stain changes."""

import numpy as np

from benchmarks.systems.check import UNTRAINED, Claim, Runs
from benchmarks.systems.rows.rad_dino import neighbours
from mmrl.data.batches import sequence
from mmrl.training import draw, run

NUMBERS = (64,)
EXPRESSED = (
    "DINO, iBOT and KoLeo on stained tiles, with jitter of the stains in each crop, drawn equally "
    "often from groups"
)
DIFFERS = (
    "groups are classes of the tiles, not those of pathologists; the stains alone are jittered"
)
RUNS = {"trained": ("rudolf_v",), "untrained": ("rudolf_v", *UNTRAINED)}


def values(runs: Runs) -> dict[str, float]:
    """See `Row`."""
    settings = run.read_config(runs["trained"])
    assert settings is not None
    corpus = run.load_corpus(settings, "train")
    drawn = draw.training_rows(corpus, {}, settings["data"])
    assert drawn is not None and drawn.groups is not None
    groups, size = drawn.groups, settings["batch_size"]
    order = sequence.order(corpus, runs.seed, size, drawn.rows, groups)
    seen = groups.of[[order(position) for position in range(settings["total_steps"] * size)]]
    return {
        **neighbours(runs),
        "balanced": _deviation(seen, len(groups.names)),
        "shuffled": _deviation(groups.of, len(groups.names)),
    }


def _deviation(of: np.ndarray, count: int) -> float:
    """Greatest deviation of the frequency of a group from 1 / count, as a share of it."""
    frequencies = np.bincount(of, minlength=count) / len(of)
    return float(np.abs(frequencies * count - 1).max())


CLAIMS = (
    Claim(
        "greatest deviation of a group's frequency from the mean",
        "balanced",
        beside=("shuffled",),
        less=True,
        most=0.05,
    ),
    Claim(
        "nearest neighbours, AUROC of the shape in points",
        "trained",
        beside=("untrained", "raw pixels", "permuted"),
    ),
)
