"""GPT-4V on medical cases: questions answered by the text, by the image, or by both."""

from benchmarks.systems.check import UNTRAINED, Claim, Runs, value

NUMBERS = (36,)
EXPRESSED = "multiple choice with the option `case`: three accuracies with 95 % intervals"
DIFFERS = (
    "similarity with the options instead of generated answers; the case is what the report says "
    "of changes since the study before"
)
_CASES = (
    "--config.data.priors=True",
    "--config.data.sections=('comparison', 'findings', 'impression')",
    "--config.evaluators.multiple_choice.case=comparison",
    "--config.evaluators.multiple_choice.template={option}",
)
RUNS = {"trained": ("convirt", *_CASES), "untrained": ("convirt", *_CASES, *UNTRAINED)}


def values(runs: Runs) -> dict[str, float]:
    """Of one seed."""
    measures = {
        "both": "modality/both/accuracy",
        "image": "modality/image/accuracy",
        "text": "modality/text/accuracy",
        "images permuted": "modality/both/accuracy_images_permuted",
        "most frequent": "accuracy_most_frequent",
    }
    found = {
        name: value(runs["trained"], "multiple_choice", measure)
        for name, measure in measures.items()
    }
    untrained = value(runs["untrained"], "multiple_choice", measures["both"])
    return {**found, "untrained": untrained}


CLAIMS = (
    Claim(
        "accuracy by image and text",
        "both",
        beside=("image", "text", "images permuted", "most frequent", "untrained"),
    ),
    Claim("accuracy by the image", "image", beside=("most frequent", "untrained")),
)
