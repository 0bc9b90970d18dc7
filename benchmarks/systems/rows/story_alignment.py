"""Semantic alignment of stories: texts find the images that they describe."""

from benchmarks.systems.check import UNTRAINED, Claim, Runs, recall

NUMBERS = (7,)
EXPRESSED = "out of scope: a GAN that draws stories. The contrast of texts and images serves it"
DIFFERS = "no images are drawn, and no levels of meaning are matched but that of whole texts"
RUNS = {"trained": ("convirt",), "untrained": ("convirt", *UNTRAINED)}


def values(runs: Runs) -> dict[str, float]:
    """Of one seed."""
    return recall(runs, "text_to_image/R@5")


CLAIMS = (Claim("text to image, R@5", "R@5", beside=("permuted", "untrained", "chance")),)
