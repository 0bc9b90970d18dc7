"""MLLM4PUE: an image and a text together find what neither finds alone."""

from benchmarks.systems.check import UNTRAINED, Claim, Runs, value

NUMBERS = (26,)
EXPRESSED = (
    "a fused embedding of image and text trained by InfoNCE, and retrieval with composed queries "
    "over any two encoders"
)
DIFFERS = "a small fusion instead of a language model with a prompt; phantoms instead of pathology"
RUNS = {"trained": ("mllm4pue",), "untrained": ("mllm4pue", *UNTRAINED)}


def values(runs: Runs) -> dict[str, float]:
    """R@5 of frontal image and findings, together and alone, for the lateral image."""
    trained, untrained = runs["trained"], runs["untrained"]
    recall = "query_to_target/R@5"
    return {
        "added": value(trained, "composed", recall),
        "image alone": value(trained, "composed", f"{recall}_image_only"),
        "text alone": value(trained, "composed", f"{recall}_text_only"),
        "other image": value(trained, "composed", f"{recall}_images_permuted"),
        "added untrained": value(untrained, "composed", recall),
        "fused": value(trained, "fused", "image_to_text/R@5"),
        "fused untrained": value(untrained, "fused", "image_to_text/R@5"),
    }


CLAIMS = (
    Claim(
        "R@5 of the sum of both embeddings",
        "added",
        beside=("image alone", "text alone", "other image", "added untrained"),
    ),
    Claim(
        "R@5 of the fused embedding",
        "fused",
        beside=("image alone", "text alone", "fused untrained"),
    ),
)
