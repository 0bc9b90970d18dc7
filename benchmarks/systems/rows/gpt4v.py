"""GPT-4V on medical cases: questions answered by the text, by the image, or by both."""

from benchmarks.systems.check import UNTRAINED, Claim, Runs, last, value

NUMBERS = (36,)
EXPRESSED = "multiple choice with the option `case`: three accuracies with 95 % intervals"
DIFFERS = (
    "similarity with the options instead of generated answers; the case is what the report says "
    "of changes since the study before; that both beat the image alone is not claimed"
)
_CASES = (
    "--config.data.priors=True",
    # A third of the studies follow another, so that the validation split has to be large.
    "--config.data.length=6000",
    "--config.data.fractions=(0.6, 0.3, 0.1)",
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
    stored = last(runs["trained"])["results"]["multiple_choice"]["values"]
    three = [stored[measures[name]] for name in ("both", "image", "text")]
    return {
        **found,
        "untrained": value(runs["untrained"], "multiple_choice", measures["both"]),
        "intervals": sum(one["low"] < one["value"] < one["high"] for one in three),
    }


CLAIMS = (
    Claim(
        "accuracy by image and text",
        "both",
        beside=("text", "images permuted", "most frequent", "untrained"),
    ),
    Claim("accuracy by the image", "image", beside=("most frequent", "untrained")),
    Claim("accuracies by image, text and both that have an interval", "intervals", least=3),
)
