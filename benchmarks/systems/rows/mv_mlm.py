"""MV-MLM: a second contrast between the views of a study, beside images and reports."""

from benchmarks.systems.check import UNTRAINED, Claim, Runs, chance, value

NUMBERS = (28,)
EXPRESSED = "image-text and view-view contrast in one run; template reports (variant `metadata`)"
DIFFERS = (
    "radiographs in place of mammograms; templates in place of a language model; the frontal view "
    "alone gains nothing, the lateral one does"
)
RUNS = {
    "both": ("mv_mlm",),
    "single": ("mv_mlm:dedicated",),
    "untrained": ("mv_mlm", *UNTRAINED),
}

RECALL, AUROC = "image_to_text/R@1", "findings/auroc"


def values(runs: Runs) -> dict[str, float]:
    """R@1 between the views over chance, and zero-shot AUROC of each view."""
    found = {name: value(runs[name], "views", RECALL) for name in RUNS}
    frontal = {name: value(runs[name], "zero_shot", AUROC) for name in RUNS}
    lateral = {name: value(runs[name], "lateral", AUROC) for name in RUNS}
    return {
        "times chance": found["both"] / chance(runs["both"], "views", RECALL),
        "R@1": found["both"],
        "permuted R@1": value(runs["both"], "views", f"{RECALL}_images_permuted"),
        "single R@1": found["single"],
        "untrained R@1": found["untrained"],
        "mean AUROC": (frontal["both"] + lateral["both"]) / 2,
        "single mean AUROC": (frontal["single"] + lateral["single"]) / 2,
        "lateral AUROC": lateral["both"],
        "single lateral AUROC": lateral["single"],
        "untrained lateral AUROC": lateral["untrained"],
        "permuted lateral AUROC": value(runs["both"], "lateral", f"{AUROC}_images_permuted"),
        "frontal AUROC": frontal["both"],
        "single frontal AUROC": frontal["single"],
    }


CLAIMS = (
    Claim("R@1 of the other view, times chance", "times chance", least=5),
    Claim("R@1 of the other view", "R@1", ("permuted R@1", "single R@1", "untrained R@1")),
    Claim("zero-shot AUROC, mean of both views", "mean AUROC", ("single mean AUROC",)),
    Claim(
        "zero-shot AUROC of the lateral view",
        "lateral AUROC",
        ("single lateral AUROC", "untrained lateral AUROC", "permuted lateral AUROC"),
    ),
)
