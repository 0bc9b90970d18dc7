"""DCVLP: hidden patches are identified among those of all images, and the report helps."""

import json

from benchmarks.systems.check import UNTRAINED, Claim, Runs, loss

NUMBERS = (10,)
EXPRESSED = (
    "hidden patches told from all others by a contrast, with one step of an adversary; masked "
    "words; matching of pairs"
)
DIFFERS = (
    "patches instead of detected regions; the adversary moves predictions by the sign of the "
    "gradient, not the inputs of the fusion"
)
RUNS = {"trained": ("dcvlp",), "untrained": ("dcvlp", *UNTRAINED)}


def values(runs: Runs) -> dict[str, float]:
    """Shares of hidden patches that are most like their own target among all of a batch."""
    trained, untrained = runs["trained"], runs["untrained"]
    config = json.loads((trained / "config.json").read_text(encoding="utf-8"))
    image = config["towers"]["image"]
    chance = 1 / (config["batch_size"] * (image["size"] // image["patch_size"]) ** 2)
    found = loss(trained, "regions/accuracy")
    return {
        "regions": found,
        "other report": loss(trained, "regions/control_accuracy"),
        "chance": chance,
        "times chance": found / chance,
        "regions untrained": loss(untrained, "regions/accuracy"),
    }


CLAIMS = (
    Claim("identification of hidden patches, in multiples of chance", "times chance", least=5.0),
    Claim(
        "hidden patches that are identified",
        "regions",
        beside=("other report", "chance", "regions untrained"),
    ),
)
