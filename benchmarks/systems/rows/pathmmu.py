"""PathMMU: accuracy in multiple choice falls along a curve of corrupted images."""

from benchmarks.systems.check import UNTRAINED, Claim, Runs
from benchmarks.systems.command import evaluated

NUMBERS = (63,)
EXPRESSED = "multiple choice by similarity of image and option, with curves of corrupted images"
DIFFERS = "questions about findings of phantoms; no answers are generated"
RUNS = {"trained": ("convirt",), "untrained": ("convirt", *UNTRAINED)}

_STRENGTHS = (0.1, 0.3, 0.9)


def values(runs: Runs) -> dict[str, float]:
    """Of one seed."""
    trained, untrained = (
        evaluated(
            runs[label],
            runs.scratch / label,
            "--split=val",
            "--config.evaluators.retrieval=none",
            "--config.evaluators.structure=none",
            "--config.evaluators.multiple_choice.template={option}",
            "--config.evaluators.multiple_choice.bootstrap=200",
            f"--config.evaluators.multiple_choice.corruptions={{'noise': {_STRENGTHS}}}",
        )["multiple_choice"]
        for label in RUNS
    )
    return {
        "accuracy": trained["accuracy"],
        "permuted": trained["accuracy_images_permuted"],
        "text only": trained["accuracy_text_only"],
        "most frequent": trained["accuracy_most_frequent"],
        "untrained": untrained["accuracy"],
        "clean": trained["accuracy"],
        **{
            f"noise {strength}": trained[f"corruption/noise={strength:g}/accuracy"]
            for strength in _STRENGTHS
        },
    }


CLAIMS = (
    Claim(
        "right option of four",
        "accuracy",
        beside=("permuted", "text only", "most frequent", "untrained"),
    ),
    Claim("the same against noise of 0.9 of the grey levels", "clean", beside=("noise 0.9",)),
)
