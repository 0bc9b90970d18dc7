"""RAD-DINO: self-distilled features know shapes that pixels and first weights do not."""

from benchmarks.systems.check import UNTRAINED, Claim, Runs, loss, value

NUMBERS = (21,)
EXPRESSED = (
    "DINO, iBOT on hidden blocks of patches and KoLeo, with wide and local crops, the averaged "
    "teacher, Sinkhorn codes, and schedules of momentum and decay"
)
DIFFERS = "grey tiles instead of radiographs; a sharper and faster teacher, as runs are short"
RUNS = {"trained": ("rad_dino",), "untrained": ("rad_dino", *UNTRAINED)}

_KNN = "knn_100%/macro_auroc"


def neighbours(runs: Runs) -> dict[str, float]:
    """AUROC in points of the nearest neighbours by several features."""
    points = {name: 100 * value(runs[name], "probe", _KNN) for name in ("trained", "untrained")}
    raw = 100 * value(runs["trained"], "probe", f"{_KNN}_raw_pixels")
    permuted = 100 * value(runs["trained"], "probe", f"{_KNN}_images_permuted")
    return {**points, "raw pixels": raw, "permuted": permuted}


def values(runs: Runs) -> dict[str, float]:
    """See `Row`."""
    found = neighbours(runs)
    return {
        **found,
        "gain": found["trained"] - found["untrained"],
        "entropy": loss(runs["trained"], "self_distillation/code_entropy"),
    }


CLAIMS = (
    Claim(
        "nearest neighbours, AUROC of the shape in points",
        "trained",
        beside=("untrained", "raw pixels", "permuted"),
    ),
    Claim("the same, less that of the first weights", "gain", least=10),
    Claim("entropy of the teacher's codes, share of log K", "entropy", least=0.1, most=0.9),
)
