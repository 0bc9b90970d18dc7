"""BiomedCLIP: long texts find their images, and words behind the 77th token count."""

import numpy as np

import mmrl
from benchmarks.recalls import held_out
from benchmarks.systems.check import UNTRAINED, Claim, Runs, recall

NUMBERS = (39,)
EXPRESSED = "the contrast of a ViT with texts of 256 tokens"
DIFFERS = "small towers that start at random, reports of about 50 tokens instead of long captions"
RUNS = {
    "trained": ("biomedclip",),
    "untrained": ("biomedclip", *UNTRAINED),
    "short": ("convirt",),
}


def values(runs: Runs) -> dict[str, float]:
    """Of one seed."""
    found = recall(runs, "image_to_text/R@1")
    return {
        **found,
        "times chance": found["R@1"] / found["chance"],
        "late words": _late(runs, "trained"),
        "late words, 64 tokens": _late(runs, "short"),
    }


def _late(runs: Runs, label: str) -> float:
    """Mean of 1 minus the cosine of texts that differ behind the 77th token alone."""
    encoder = mmrl.load(str(runs[label]))
    reports = held_out(encoder.trained).texts[:64]
    start = " ".join(reports[:4])[:600] + " "  # about 150 tokens
    embedded = encoder.embed_texts([start + one for one in reports])
    return float(np.mean(1 - embedded[:-1] @ embedded[-1]))


CLAIMS = (
    Claim("image to report, R@1 in multiples of chance", "times chance", least=10),
    Claim("image to report, R@1", "R@1", beside=("permuted", "untrained", "chance")),
    Claim("change by words behind token 77", "late words", beside=("late words, 64 tokens",)),
)
