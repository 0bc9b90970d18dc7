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

VARIANTS = vit_b16.VARIANTS


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
    vit_b16.source(config, chosen)
    if "smoke" in chosen:
        vit_b16.smoke(config)
        config.mesh.data, config.mesh.fsdp = 1, -1
    return config
