"""MMCLIP: hidden entities need the image."""

from benchmarks.systems.check import UNTRAINED, Claim, Runs, loss

NUMBERS = (24,)
EXPRESSED = (
    "global contrast; patches that respond to the report, hidden and reconstructed with it; "
    "entities, hidden and predicted with the image"
)
DIFFERS = (
    "weights and shares are not published; small towers without earlier training; impressions in "
    "place of whole reports, whose words tell most entities"
)
RUNS = {"trained": ("mmclip",), "untrained": ("mmclip", *UNTRAINED)}


def values(runs: Runs) -> dict[str, float]:
    """Accuracies of tokens of hidden entities."""
    trained, untrained = runs["trained"], runs["untrained"]
    return {
        "entities": loss(trained, "entities/accuracy"),
        "other image": loss(trained, "entities/control_accuracy"),
        "most frequent": loss(trained, "entities/most_frequent_accuracy"),
        "entities untrained": loss(untrained, "entities/accuracy"),
    }


CLAIMS = (
    Claim(
        "tokens of hidden entities, accuracy",
        "entities",
        beside=("other image", "most frequent", "entities untrained"),
    ),
)
