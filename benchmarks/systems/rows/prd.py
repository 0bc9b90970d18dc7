"""PRD: the image tells the report from nine copies with reordered words."""

from benchmarks.systems.check import UNTRAINED, Claim, Runs, value

NUMBERS = (1,)
EXPRESSED = (
    "the global contrast, the choice among perturbed reports, and the contrast of regions and words"
)
DIFFERS = (
    "small towers; three of nine kinds of copies a step, weight 0.5. Most of the accuracy needs no "
    "image: a model of word order alone, which sees none, answers every question, so only the "
    "grounded gain shows what the image adds"
)
RUNS = {
    "trained": ("prd",),
    "untrained": ("prd", *UNTRAINED),
    "convirt": ("convirt",),
}


def values(runs: Runs) -> dict[str, float]:
    """Of one seed."""
    found = {
        (label, row): value(runs[label], "structure", f"order-10way@1/{row}")
        for label in RUNS
        for row in ("accuracy", "accuracy_images_permuted", "grounded_gain")
    }
    return {
        "accuracy": found["trained", "accuracy"],
        "above convirt": found["trained", "accuracy"] - found["convirt", "accuracy"],
        "grounded gain": found["trained", "grounded_gain"],
        "zero": 0.0,
        "grounded gain of convirt": found["convirt", "grounded_gain"],
        "grounded gain untrained": found["untrained", "grounded_gain"],
        "permuted": found["trained", "accuracy_images_permuted"],
    }


CLAIMS = (
    Claim("true report among ten (chance .1)", "accuracy", least=0.5),
    Claim("the same minus that of the global contrast alone", "above convirt", least=0.15),
    Claim(
        "the same minus that with permuted images, the grounded gain",
        "grounded gain",
        beside=("zero", "grounded gain of convirt", "grounded gain untrained"),
    ),
)
