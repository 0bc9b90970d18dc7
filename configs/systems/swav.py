"""Crops of an image predict each other's prototypes, as in SwAV; no text is read.

    python -m mmrl.main --config=configs/systems/swav.py --workdir=runs/swav

Caron et al. 2020, with fewer prototypes and without a queue, as batches of 32 have enough.
"""

import ml_collections

from configs.systems import rad_dino
from mmrl import config as defaults

VARIANTS = {"smoke": "20 steps of a tiny model, for tests."}


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The preset with the variants named after the colon."""
    chosen = defaults.variants(variant, VARIANTS)
    config = rad_dino.get_config(",".join(sorted(chosen)))
    config.towers.image.mask_token = False
    config.towers.image.heads = {"embedding": 64}
    config.derived = {}
    config.objectives = {"swapped_prediction": {"prototypes": 64}}
    return config
