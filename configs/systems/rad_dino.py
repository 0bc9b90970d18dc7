"""Self-distillation of images without text, as in RAD-DINO: DINO, iBOT and KoLeo on crops.

    python -m mmrl.main --config=configs/systems/rad_dino.py --workdir=runs/rad_dino

Perez-Garcia et al. 2025, with the losses of DINOv2 (Oquab et al. 2024). The student sees wide crops
with hidden blocks of patches, and local crops; the teacher, the average of its weights, sees whole
wide ones. Images are grey tiles, and a probe reads the shape of their nuclei: these lie at no fixed
place, so that pixels hardly tell it. The teacher is sharper than the published one and follows
faster, because a few hundred steps from first weights, whose codes hardly differ, are short.
"""

import ml_collections

from configs.systems import crops, tiles
from mmrl import config as defaults

VARIANTS = {
    "smoke": "20 steps of a tiny model, for tests.",
}
STEPS = 340


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The preset with the variants named after the colon."""
    smoke = "smoke" in defaults.variants(variant, VARIANTS)
    config = tiles(smoke=smoke)
    if not smoke:
        config.total_steps = config.checkpoint.every = STEPS
    head = {"kind": "prototypes", "width": 64, "hidden": 128, "bottleneck": 32}
    config.towers.image.update({"pool": "cls", "mask_token": True})
    config.towers.image.heads = {"prototypes": head, "regions": head}
    crops(config)
    config.derived.hidden_wide = {"name": "hidden_patches", "of": "wide", "shape": "blocks"}
    config.objectives = {
        "self_distillation": {
            "method": "sinkhorn",
            "teacher_temperature": 0.01,
            "reads": {"wide": "image@hidden_wide.prototypes"},
        },
        "masked_patches": {"method": "sinkhorn", "teacher_temperature": 0.02},
        "koleo": {"weight": 0.1, "reads": {"features": "image@hidden_wide.pooled"}},
    }
    config.average.decay = {"kind": "cosine", "start": 0.9, "end": 0.99, "steps": STEPS}
    config.optimizer.weight_decay = {"kind": "cosine", "start": 0.04, "end": 0.4, "steps": STEPS}
    return config
