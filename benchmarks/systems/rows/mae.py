"""MAE: visible patches tell the stain of hidden ones, which the mean of all images does not."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from benchmarks.systems.check import UNTRAINED, Claim, Runs, loss
from benchmarks.systems.rows.rad_dino import neighbours
from mmrl import build, config
from mmrl.objectives.masked_image import patchify
from mmrl.training import run

NUMBERS = ()
EXPRESSED = "a quarter of the patches encoded, the others reconstructed by a light decoder"
DIFFERS = (
    "pixels are not normalised by patch, as tiles are smooth; reconstruction needs the stain and "
    "the number of nuclei, which first weights tell as well, and not their shape; so features gain "
    "nothing; nor do they on radiographs of phantoms (nearest neighbours .656, first weights .680) "
    "and on grey tiles with nuclei of twice the size, half of their patches hidden (shape .569, "
    "first weights .696; with patches normalised .614 and .657)"
)
RUNS = {"trained": ("mae",), "untrained": ("mae", *UNTRAINED)}


def values(runs: Runs) -> dict[str, float]:
    """See `Row`."""
    settings = run.read_config(runs["trained"])
    assert settings is not None
    return {
        **neighbours(runs),
        "explained": loss(runs["trained"], "reconstruction/explained"),
        "untrained explained": loss(runs["untrained"], "reconstruction/explained"),
        "mean patch": 0.0,
        "mean image": _of_mean_image(settings),
    }


def _of_mean_image(settings: dict[str, Any]) -> float:
    """Variance that the mean image explains, about the mean patch, as `explained` measures it."""
    data, options = config.split_data(settings["data"])
    side = settings["towers"]["image"]["patch_size"]
    patches = []
    for split in ("train", "val"):
        source = build.find("source", data["source"])(split=split, **options)
        images = np.stack([source.image(one) for one in range(len(source))]) / 255
        patches.append(np.asarray(patchify(jnp.asarray(images), side)))
    train, val = patches
    error = ((val - train.mean(axis=0)) ** 2).mean()
    return float(1 - error / ((val - val.mean(axis=(0, 1))) ** 2).mean())


CLAIMS = (
    Claim(
        "variance of hidden patches that is explained",
        "explained",
        beside=("mean patch", "mean image", "untrained explained"),
    ),
    Claim(
        "nearest neighbours, macro AUROC of stain, pattern and shape in points",
        "trained",
        beside=("untrained", "raw pixels", "permuted"),
    ),
)
