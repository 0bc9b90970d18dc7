"""Identities in place of pairs: all images and texts of one identity are positives.

    python -m mmrl.main --config=configs/systems/plip_person.py --workdir=runs/plip_person

Zuo et al. 2023 (PLIP, of persons) contrast identities, of which several images and texts exist. The
identity of a phantom is the set of findings that it shows of three kinds, so a batch holds several
pairs of each. Colourisation and the prediction of attributes are left out. With `pairs` only the
text of the image itself is a positive, for comparison.
"""

import ml_collections

from configs.systems import prd
from mmrl import config as defaults

VARIANTS = {
    "pairs": "a pair is an identity of its own, for comparison",
    "smoke": "20 steps of a tiny model, for tests",
}


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The preset with the variants named after the colon."""
    chosen = defaults.variants(variant, VARIANTS)
    config = prd.get_config("smoke" if "smoke" in chosen else "")
    image, text = config.towers.image, config.towers.text
    image.heads = text.heads = {"embedding": image.heads.embedding}
    config.data.label_names = ("cardiomegaly", "pleural effusion", "pneumothorax")
    identity = "group" if "pairs" in chosen else "labels.values"
    config.objectives = {"identity_contrastive": {"weight": 1.0, "reads": {"identity": identity}}}
    config.evaluators = {"retrieval": config.evaluators.retrieval}
    return config
