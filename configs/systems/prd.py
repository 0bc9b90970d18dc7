"""Perturbed Report Discrimination: the report is told from copies of it with reordered words.

    python -m mmrl.main --config=configs/systems/prd.py --workdir=runs/prd

Zhong, Batmanghelich and Sun 2025: a global contrast, the choice of the true report among itself and
perturbed copies given its image, and GLoRIA's contrast of regions and words. The towers are small
and images have 32 pixels; configs/recipes/paper.py has the published size. A step sees three of the
nine kinds of copies, and the choice has the weight 0.5 in place of 0.1, which leaves this loss at
its start for as long as a short run lasts.
"""

import ml_collections

from configs import pretrain
from mmrl import config as defaults

VARIANTS = {"smoke": "20 steps of a tiny model, for tests."}


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The preset with the variants named after the colon."""
    smoke = "smoke" in defaults.variants(variant, VARIANTS)
    config = pretrain.of_300_steps(smoke=smoke)
    if not smoke:
        config.data.update({"length": 4000, "render_size": 32})
        config.towers.image.update({"size": 32, "depth": 2})
        config.towers.text.update({"length": 64, "depth": 1})
    # Words that know their neighbours learn order in a short run.
    config.towers.text.update({"pool": "mean", "convolution": 5})
    config.evaluators = {
        "retrieval": {"max_pairs": 32 if smoke else 256},
        "structure": {"protocols": ("order-10way@1",), "max_reports": 300},
    }
    return config
