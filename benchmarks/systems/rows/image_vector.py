"""A third modality: images and vectors of a study find each other, without any report."""

from benchmarks.systems.check import UNTRAINED, Claim, Runs, both_ways

NUMBERS = ()
EXPRESSED = "a global contrast of images with vectors, in place of expression profiles"
DIFFERS = "vectors are noisy codes of the findings of phantoms; a tenth of the studies has none"
RUNS = {"trained": ("image_vector",), "untrained": ("image_vector", *UNTRAINED)}


def values(runs: Runs) -> dict[str, float]:
    """R@1 of one seed, the mean of both directions."""
    return {
        "R@1": both_ways(runs["trained"], "R@1"),
        "images permuted": both_ways(runs["trained"], "R@1_images_permuted"),
        "untrained": both_ways(runs["untrained"], "R@1"),
    }


CLAIMS = (Claim("image and vector, R@1", "R@1", beside=("images permuted", "untrained")),)
