"""M3AE: hidden words need the image, and a fused head knows pairs."""

from benchmarks.systems.check import UNTRAINED, Claim, Runs, loss

NUMBERS = (57,)
EXPRESSED = (
    "75 % of the patches, decoded from an earlier block of co-attention; 15 % of words, "
    "whole, predicted from the last block; matching of pairs"
)
DIFFERS = (
    "two blocks of co-attention instead of six; a global contrast instead of trained towers; short "
    "impressions of stained tiles, as on reports of radiographs the fusion learns grammar first: "
    "after 500 steps it told .406 of the hidden words, and .398 with other images"
)
RUNS = {"trained": ("m3ae",), "untrained": ("m3ae", *UNTRAINED)}


def values(runs: Runs) -> dict[str, float]:
    """Accuracies on the validation split; "no" has 2/3 of the three pairs of a row."""
    trained, untrained = runs["trained"], runs["untrained"]
    return {
        "words": loss(trained, "words/accuracy"),
        "other image": loss(trained, "words/control_accuracy"),
        "most frequent": loss(trained, "words/most_frequent_accuracy"),
        "words untrained": loss(untrained, "words/accuracy"),
        "matching": loss(trained, "matching/accuracy"),
        "always no": 2 / 3,
        "matching untrained": loss(untrained, "matching/accuracy"),
    }


CLAIMS = (
    Claim(
        "hidden words, accuracy",
        "words",
        beside=("other image", "most frequent", "words untrained"),
    ),
    Claim(
        "pairs that are told right",
        "matching",
        beside=("always no", "matching untrained"),
        least=0.8,
    ),
)
