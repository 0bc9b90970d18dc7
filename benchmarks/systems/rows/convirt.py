"""ConVIRT: reports find their images, and images their reports, far above chance."""

import math

import jax.numpy as jnp
import numpy as np

from benchmarks.systems.check import UNTRAINED, Claim, Runs, recall
from mmrl.objectives.global_contrastive import contrastive_loss

NUMBERS = (65,)
EXPRESSED = "the contrast in both directions over the batch, MLP heads, a temperature from 0.1"
DIFFERS = (
    "both directions weigh the same, not 0.75 and 0.25; the temperature is learned; whole reports "
    "are read instead of one sentence"
)
RUNS = {"trained": ("convirt",), "untrained": ("convirt", *UNTRAINED)}


def values(runs: Runs) -> dict[str, float]:
    """Of one seed."""
    found = recall(runs, "image_to_text/R@1")
    drawn = np.random.default_rng(runs.seed).normal(size=(1, 16))
    constant = jnp.asarray(np.repeat(drawn / np.linalg.norm(drawn), 48, axis=0), jnp.float32)
    return {
        **found,
        "times chance": found["R@1"] / found["chance"],
        "constant": float(contrastive_loss(constant, constant, jnp.float32(2.3))) - math.log(48),
    }


CLAIMS = (
    Claim("image to report, R@1 in multiples of chance", "times chance", least=10),
    Claim("image to report, R@1", "R@1", beside=("permuted", "untrained", "chance")),
    Claim("loss of constant embeddings minus log B", "constant", least=-1e-5, most=1e-5),
)
