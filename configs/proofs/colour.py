"""Colour reaches the tower: questions about the stain of a tile, which only colour answers.

    python -m mmrl.main --config=configs/proofs/colour.py --workdir=runs/colour
    python -m mmrl.main --config=configs/proofs/colour.py:grey --workdir=runs/grey

Both stains have the same luma, pixel by pixel. With three channels, colour questions are answered
at .9 or better after 300 steps; with one, at chance. Questions about the pattern of the nuclei,
which grey shows as well, are answered by both.
"""

import ml_collections

from configs import pretrain
from mmrl import config as defaults

VARIANTS = {
    "grey": "the same corpus read as grey, by a tower of one channel",
    "smoke": "20 steps of a tiny model, for tests.",
}


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The preset with the variants named after the colon."""
    chosen = defaults.variants(variant, VARIANTS)
    config = pretrain.of_300_steps(smoke="smoke" in chosen)
    config.data.update({"source": "stained_tiles", "length": 2400, "text": "sentences"})
    image, text = config.towers.image, config.towers.text
    image.size = config.data.render_size = 32
    image.update({"patch_size": 4, "channels": 1 if "grey" in chosen else 3})
    if "grey" in chosen:
        config.data.colour = "grey"
    text.length = 48
    image.heads = {"embedding": image.heads.embedding}
    text.heads = {"embedding": image.heads.embedding}
    config.objectives = {"global_contrastive": {"weight": 1.0, "temperature": 0.07}}
    config.evaluators = {
        "colours": _question("purple stain", "pink stain"),
        "patterns": _question("sparse pattern", "crowded pattern"),
    }
    return config


def _question(*names: str) -> dict[str, object]:
    """Which of two captions fits the image?"""
    return {
        "name": "multiple_choice",
        "findings": names,
        "options": 2,
        "template": "{option}",
        "permutations": 1,
    }
