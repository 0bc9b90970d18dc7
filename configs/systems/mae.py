"""Masked autoencoding of images without text: the block that several recipes share.

    python -m mmrl.main --config=configs/systems/mae.py --workdir=runs/mae

He et al. 2022 (MAE): the encoder sees a part of the patches, and a light decoder reconstructs the
others. The log shows val/reconstruction/explained, which is 0 for the mean patch; a probe reads the
findings from the features of whole images. `fourier` adds the loss of the spectrum (PLUTO).
"""

import ml_collections

from configs import pretrain
from mmrl import config as defaults
from mmrl.data.phantom import findings

VARIANTS = {
    "fourier": "Adds the loss of the spectrum.",
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
    image.update({"pool": "mean", "posemb": "sincos2d"})
    image.heads = {}
    config.towers = {"image": image}
    config.derived.patches = {"name": "random_patches", "share": 0.75}
    patch = {"patch_size": image.patch_size}
    decoder = {"name": "patch_decoder", "width": 64, "depth": 1, "num_heads": 2, **patch}
    config.fusions.decoder = decoder
    # Phantoms are smooth, so that normalised patches are mostly their noise.
    loss = {"name": "masked_image", "normalise": False, **patch}
    loss |= {"fourier": 0.5} if "fourier" in chosen else {}
    config.objectives = {"reconstruction": loss}
    config.validation_loss = True
    config.evaluators = {"probe": {"methods": ("knn",), "bootstrap": 200}}
    return config
