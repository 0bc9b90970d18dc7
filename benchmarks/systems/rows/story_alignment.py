"""Semantic alignment of stories: texts find the images that they describe."""

from benchmarks.systems.check import UNTRAINED, Claim, Runs, last, value

NUMBERS = (7,)
EXPRESSED = "out of scope: a GAN that draws stories. The contrast of texts and images serves it"
DIFFERS = "no images are drawn, and no levels of meaning are matched but that of whole texts"
RUNS = {"trained": ("convirt",), "untrained": ("convirt", *UNTRAINED)}


def values(runs: Runs) -> dict[str, float]:
    """Of one seed."""
    measure = "text_to_image/R@5"
    return {
        "R@5": value(runs["trained"], "retrieval", measure),
        "permuted": value(runs["trained"], "retrieval", f"{measure}_images_permuted"),
        "untrained": value(runs["untrained"], "retrieval", measure),
        "chance": last(runs["trained"])["results"]["retrieval"]["values"][measure]["chance"],
    }


CLAIMS = (Claim("text to image, R@5", "R@5", beside=("permuted", "untrained", "chance")),)
