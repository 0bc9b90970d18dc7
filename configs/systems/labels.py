"""Supervised training on labels alone: no report is read.

    python -m mmrl.main --config=configs/systems/labels.py --config.data.path=FOLDER \
        --config.data.source=nih14 --workdir=runs/labels

By default the labels are the findings of phantoms.
"""

import ml_collections

from configs import pretrain
from mmrl import config as defaults
from mmrl.data.phantom import findings

VARIANTS = {"smoke": "20 steps of a tiny model, for tests."}


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The preset with the variants named after the colon."""
    chosen = defaults.variants(variant, VARIANTS)
    config = pretrain.get_config("paper,smoke" if chosen else "paper")
    config.update({} if chosen else {"total_steps": 300, "eval_every": 0})
    config.data.label_names = tuple(findings.KINDS)
    image = config.towers.image
    image.heads = {"labels": len(config.data.label_names)}
    config.towers = {"image": image}
    config.objectives = {"label_classification": {"weight": 1.0}}
    config.evaluators = {"classification": {}}
    return config
