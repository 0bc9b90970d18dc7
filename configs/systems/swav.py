"""Crops of an image predict each other's prototypes, as in SwAV; no text is read.

    python -m mmrl.main --config=configs/systems/swav.py --workdir=runs/swav

Caron et al. 2020, with fewer prototypes and without a queue, as batches of 64 have enough. A
transformer with a stem of convolutions stands for the residual network.
"""

import ml_collections

from configs.systems import crops, tiles
from mmrl import config as defaults

VARIANTS = {"smoke": "20 steps of a tiny model, for tests."}


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The preset with the variants named after the colon."""
    config = tiles(smoke="smoke" in defaults.variants(variant, VARIANTS))
    crops(config)
    config.towers.image.update({"pool": "mean", "stem": "convolution"})
    config.towers.image.heads = {"embedding": {"kind": "mlp", "width": 64, "hidden": 128}}
    config.objectives = {"swapped_prediction": {"prototypes": 64, "epsilon": 0.02}}
    return config
