"""SwAV: prototypes that crops predict of each other are used, and features know shapes."""

from benchmarks.systems.check import UNTRAINED, Claim, Runs, loss
from benchmarks.systems.rows.rad_dino import neighbours

NUMBERS = ()
EXPRESSED = "swapped prediction of the Sinkhorn codes of wide crops by all others"
DIFFERS = "64 prototypes and no queue; a small transformer with a stem of convolutions"
RUNS = {"trained": ("swav",), "untrained": ("swav", *UNTRAINED)}


def values(runs: Runs) -> dict[str, float]:
    """See `Row`."""
    used = loss(runs["trained"], "swapped_prediction/prototypes_used")
    return {**neighbours(runs), "used": used / 64}


CLAIMS = (
    Claim(
        "nearest neighbours, AUROC of the shape in points",
        "trained",
        beside=("untrained", "raw pixels", "permuted"),
    ),
    Claim("share of prototypes that a batch uses", "used", least=0.5),
)
