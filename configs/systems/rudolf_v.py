"""Self-distillation of stained tiles in balanced groups, with other stains in every crop.

    python -m mmrl.main --config=configs/systems/rudolf_v.py --workdir=runs/rudolf_v

Dippel et al. 2024 (RudolfV): DINOv2 on tiles that are drawn equally often from groups which
pathologists made, and with augmentations of the stain. Here a group is the rarest of two classes
that a tile has, or none, so that without balance pink tiles are a fifth as frequent as others.
"""

import ml_collections

from configs.systems import rad_dino
from mmrl import config as defaults

VARIANTS = {"smoke": "20 steps of a tiny model, for tests."}
GROUPS = ("pink stain", "elongated shape")


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The preset with the variants named after the colon."""
    config = rad_dino.get_config(",".join(sorted(defaults.variants(variant, VARIANTS))))
    config.data.colour = "as_stored"
    config.data.prevalence["pink stain"] = 0.1
    config.towers.image.channels = 3
    config.data.sampler.update({"name": "classes", "labels": GROUPS})
    config.derived = {
        f"stained_{of}": {"name": "stain_jitter", "of": of, "strength": 0.3}
        for of in ("wide", "local")
    }
    hidden = {"name": "hidden_patches", "of": "stained_wide", "shape": "blocks"}
    config.derived.hidden_wide = hidden
    config.objectives.self_distillation.reads = {
        "wide": "image@hidden_wide.prototypes",
        "local": "image@stained_local.prototypes",
        "teacher": "average/image@stained_wide.prototypes",
    }
    config.objectives.masked_patches.reads = {"teacher": "average/image@stained_wide.regions"}
    return config
