"""The contrast of images and reports over the batch, and nothing else, as in ConVIRT.

    python -m mmrl.main --config=configs/systems/convirt.py --workdir=runs/convirt

Zhang et al. 2020: both towers end in an MLP. Both directions have equal weights, where ConVIRT
weighs image to report by 0.75, and the whole report is read, where ConVIRT draws one sentence
(config.data.text=sentence). The temperature is learned from the published 0.1. The images and the
evaluators are those of prd.py, so that both compare at equal seeds.
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
    width = image.heads.embedding
    image.heads, text.heads = ({"embedding": {"width": width, "kind": "mlp"}} for _ in range(2))
    config.objectives = {"global_contrastive": {"weight": 1.0, "temperature": 0.1}}
    return config
