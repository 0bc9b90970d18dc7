"""A second stage: the image tower comes from another run and learns beside a new text tower.

    python -m mmrl.main --config=configs/systems/second_stage.py --config.towers.image.init=RUN \
        --workdir=runs/stage2

RUN is a run of this repository with an image tower of the same make, such as
configs/systems/mv_mlm.py.
"""

import ml_collections

from configs.systems import mv_mlm
from mmrl import config as defaults

VARIANTS = {"smoke": "20 steps of a tiny model, for tests."}


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The preset with the variants named after the colon."""
    chosen = defaults.variants(variant, VARIANTS)
    config = mv_mlm.get_config(",".join(["dedicated", *chosen]))
    config.towers.image.init = "runs/mv_mlm"
    rules = config.optimizer.rules
    slower = {"match": "towers/image/.*", "learning_rate": 0.1}
    config.optimizer.rules = (rules[0], slower, *rules[1:])
    return config
