"""Self-distillation of images without text, as in RAD-DINO: DINO, iBOT and KoLeo on crops.

    python -m mmrl.main --config=configs/systems/rad_dino.py --workdir=runs/rad_dino

Perez-Garcia et al. 2025, with the losses of DINOv2 (Oquab et al. 2024). The student sees wide crops
with hidden patches, and local crops; the teacher, the average of its weights, sees whole wide ones.
"""

import ml_collections

from configs import pretrain
from mmrl import config as defaults
from mmrl.data.phantom import findings

VARIANTS = {
    "smoke": "20 steps of a tiny model, for tests.",
}


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The preset with the variants named after the colon."""
    chosen = defaults.variants(variant, VARIANTS)
    smoke = "smoke" in chosen
    config = pretrain.of_300_steps(smoke=smoke)
    config.data.label_names = tuple(findings.KINDS)
    image = config.towers.image
    image.update({} if smoke else {"width": 64, "depth": 3, "num_heads": 2})
    head = {"kind": "prototypes", "width": 64, "hidden": 128, "bottleneck": 32}
    image.update({"pool": "cls", "mask_token": True})
    image.heads = {"prototypes": head, "regions": head}
    config.towers = {"image": image}
    config.inputs.wide = {"name": "crops", "num_crops": 2, "crop_scale": (0.5, 1.0)}
    side = image.size // 2
    config.inputs.local = {"name": "crops", "num_crops": 2, "crop_size": side}
    config.inputs.local.crop_scale = (0.2, 0.5)
    config.derived.hidden_wide = {"name": "hidden_patches", "of": "wide"}
    codes = {"method": "sinkhorn", "teacher_temperature": 0.04}
    config.objectives = {
        "self_distillation": {**codes, "reads": {"wide": "image@hidden_wide.prototypes"}},
        "masked_patches": codes,
        "koleo": {"weight": 0.1, "reads": {"features": "image@hidden_wide.pooled"}},
    }
    config.average.decay = {"kind": "cosine", "start": 0.96, "end": 1.0, "steps": 300}
    config.validation_loss = True
    config.evaluators = {"probe": {"methods": ("knn",), "bootstrap": 200}}
    return config
