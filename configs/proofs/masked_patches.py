"""The image tower encodes a quarter of the patches of each image, chosen anew at every step.

    python -m mmrl.main --config=configs/proofs/masked_patches.py --workdir=runs/masked_patches

Evaluation encodes whole images. `whole` trains on whole images too, to compare with.
"""

import ml_collections

from configs import pretrain
from mmrl import config as defaults

VARIANTS = {
    "whole": "Trains on all patches.",
    "smoke": "20 steps of a tiny model, for tests.",
}


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The preset with the variants named after the colon."""
    chosen = defaults.variants(variant, VARIANTS)
    config = pretrain.of_300_steps(smoke="smoke" in chosen)
    for tower in (config.towers.image, config.towers.text):
        tower.heads = {"embedding": tower.heads.embedding}
    config.towers.image.pool = "mean"
    config.objectives = {"global_contrastive": {"weight": 1.0}}
    if "whole" not in chosen:
        config.derived = {"masked": {"name": "random_patches", "share": 0.75}}
        config.objectives.global_contrastive.reads = {"image": "image@masked.embedding"}
    config.evaluators = {"retrieval": {"max_pairs": 32 if "smoke" in chosen else 256}}
    return config
