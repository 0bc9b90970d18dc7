"""A third modality: images and vectors of a study find each other, without any report."""

from benchmarks.systems.check import UNTRAINED, Claim, Runs, value

NUMBERS = ()
EXPRESSED = "a global contrast of images with vectors, in place of expression profiles"
DIFFERS = "vectors are noisy codes of the findings of phantoms; a tenth of the studies has none"
RUNS = {"trained": ("image_vector",), "untrained": ("image_vector", *UNTRAINED)}

BOTH = ("image_to_text", "text_to_image")  # the vector stands in the place of the text


def values(runs: Runs) -> dict[str, float]:
    """R@1 of one seed, the mean of both directions."""

    def recall(label: str, suffix: str = "") -> float:
        found = (value(runs[label], "retrieval", f"{one}/R@1{suffix}") for one in BOTH)
        return sum(found) / len(BOTH)

    return {
        "R@1": recall("trained"),
        "images permuted": recall("trained", "_images_permuted"),
        "untrained": recall("untrained"),
    }


CLAIMS = (Claim("image and vector, R@1", "R@1", beside=("images permuted", "untrained")),)
