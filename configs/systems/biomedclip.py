"""The contrast of images with long texts, as in BiomedCLIP: a ViT, and texts of 256 tokens.

    python -m mmrl.main --config=configs/systems/biomedclip.py --workdir=runs/biomedclip

Zhang et al. 2023 lengthen the context of CLIP from 77 to 256 tokens, because captions of figures
are longer. Several reports share a row of 256 tokens, which changes no result. The published
weights are read by python -m mmrl.convert (docs/weights.md); here all weights start at random.
"""

import ml_collections

from configs.systems import prd
from mmrl import config as defaults

VARIANTS = {"smoke": "20 steps of a tiny model, for tests."}


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The preset with the variants named after the colon."""
    defaults.variants(variant, VARIANTS)
    config = prd.get_config(variant)
    image, text = config.towers.image, config.towers.text
    image.pool = text.pool = "cls"
    text.update({"length": 256, "packing": 0.35, "convolution": 0})
    image.heads = text.heads = {"embedding": image.heads.embedding}
    config.data.sections = ("indication", "findings", "impression")
    config.objectives = {"global_contrastive": {"weight": 1.0, "temperature": 0.07}}
    config.evaluators = {"retrieval": config.evaluators.retrieval}
    return config
