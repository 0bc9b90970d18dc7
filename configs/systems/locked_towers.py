"""Two locked towers teach a new one: a text tower and a ResNet with batch norm do not change.

    python -m mmrl.main --config=configs/systems/locked_towers.py --workdir=runs/locked

As in locked-image tuning (Zhai et al. 2022, LiT), but here both teachers start at random; real runs
give them `init`.
"""

import ml_collections

from configs import pretrain
from mmrl import config as defaults

VARIANTS = {"smoke": "20 steps of a tiny model, for tests."}


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The preset with the variants named after the colon."""
    chosen = defaults.variants(variant, VARIANTS)
    config = pretrain.get_config("paper,smoke" if chosen else "paper")
    if not chosen:
        pretrain.narrow(config)
        config.update({"total_steps": 300, "eval_every": 0, "checkpoint": {"every": 50, "keep": 6}})
    config.data.render_size = config.towers.image.size
    embedding = config.towers.image.heads.embedding
    config.towers.text.update({"frozen": True, "dropout": 0.1})
    config.towers.cnn = {
        "name": "resnet",
        "size": config.towers.image.size,
        "depth": 18,
        "width": 8,
        "small_stem": True,
        "frozen": True,
        "heads": {"embedding": embedding},
    }
    config.objectives = {
        "global_contrastive": {"weight": 1.0},
        "teacher": {"name": "global_contrastive", "reads": {"text": "cnn.embedding"}},
    }
    config.evaluators = {"retrieval": {"max_pairs": 256}}
    return config
