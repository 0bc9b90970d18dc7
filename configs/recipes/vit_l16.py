"""ViT-L/16 at 224 pixels with a 12-layer text encoder, global batch 8192, for a TPU pod.

    python -m mmrl.main --config=configs/recipes/vit_l16.py --config.data.path=pairs.csv \
        --workdir=runs/vit_l16
    python -m mmrl.plan --config=configs/recipes/vit_l16.py --topology=v5e:16x16

The image encoder and the batch are larger than in configs/recipes/vit_b16.py, and parameters,
optimizer state and gradients are divided over the devices (FSDP).
"""

import ml_collections

from configs.recipes import vit_b16
from mmrl import config as defaults

VARIANTS = vit_b16.VARIANTS | {
    "crops": "2 wide and 8 local crops of each image, and a teacher",
}


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The preset with the variants named after the colon."""
    chosen = defaults.variants(variant, VARIANTS)
    config = vit_b16.get_config()
    config.batch_size = 8192
    config.towers.image.variant = "L"
    config.towers.image.heads.embedding = config.towers.text.heads.embedding = 768
    config.optimizer.learning_rate = 4e-4
    # Parameters, optimizer state and gradients divided by 16, and gathered layer by layer; 16
    # devices are one side of the torus.
    config.mesh.fsdp = 16
    if "crops" in chosen:
        crops(config)
    vit_b16.source(config, chosen)
    if "smoke" in chosen:
        vit_b16.smoke(config)
        config.mesh.data, config.mesh.fsdp = 1, -1
        if "crops" in chosen:
            config.inputs.local.crop_size = 32
    return config


def crops(config: ml_collections.ConfigDict) -> None:
    """Self-distillation on crops beside the losses of pairs (Oquab et al. 2024, table 16)."""
    config.inputs.wide = {"name": "crops", "num_crops": 2, "crop_scale": (0.32, 1.0)}
    config.inputs.local = {
        "name": "crops",
        "num_crops": 8,
        "crop_size": 96,
        "crop_scale": (0.05, 0.32),
    }
    image = config.towers.image
    image.heads.prototypes = {"width": 65_536, "kind": "mlp", "hidden": 2048}
    image.chunk = 1  # one crop of all images at a time
    image.block = {"drop_path": 0.3}
    config.objectives.self_distillation = {"weight": 1.0}
    config.average.decay = {"kind": "cosine", "start": 0.994, "end": 1.0, "steps": 20_000}
