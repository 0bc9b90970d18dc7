"""Masked autoencoding of images without text: the block that several recipes share.

    python -m mmrl.main --config=configs/systems/mae.py --workdir=runs/mae

He et al. 2022 (MAE): the encoder sees a part of the patches, and a light decoder reconstructs the
others. The log shows val/reconstruction/explained, which is 0 for the mean patch; a probe reads the
features of whole images. Images are stained tiles: visible patches tell the stain of hidden ones,
which neither the mean patch nor the mean image knows. `fourier` adds the loss of the spectrum
(PLUTO).
"""

import ml_collections

from configs.systems import tiles
from mmrl import config as defaults

VARIANTS = {
    "fourier": "Adds the loss of the spectrum.",
    "smoke": "20 steps of a tiny model, for tests.",
}


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The preset with the variants named after the colon."""
    chosen = defaults.variants(variant, VARIANTS)
    smoke = "smoke" in chosen
    config = tiles(smoke=smoke)
    config.data.colour = "as_stored"
    config.data.label_names = ("pink stain", "crowded pattern", "elongated shape")
    image = config.towers.image
    image.update({"channels": 3, "pool": "mean", "posemb": "sincos2d", "heads": {}})
    if not smoke:
        config.update({"total_steps": 500, "log_every": 100})
        config.checkpoint.every = 500
        config.data.render_size = image.size = 32
        image.patch_size = 4
    config.derived.patches = {"name": "random_patches", "share": 0.75}
    patch = {"patch_size": image.patch_size}
    decoder = {"name": "patch_decoder", "width": 64, "depth": 1, "num_heads": 2, "channels": 3}
    config.fusions.decoder = decoder | patch
    # Tiles are smooth, so that normalised patches are mostly their noise.
    loss = {"name": "masked_image", "normalise": False, **patch}
    loss |= {"fourier": 0.5} if "fourier" in chosen else {}
    config.objectives = {"reconstruction": loss}
    return config
