"""Image-text and view-view contrast in one run, as in MV-MLM: phantoms with a lateral image.

    python -m mmrl.main --config=configs/systems/mv_mlm.py --workdir=runs/mv_mlm

The same objective runs twice: on frontal images and reports, and on the two images of a study. Both
images pass through the image tower.
"""

import ml_collections

from configs import pretrain
from mmrl import config as defaults

VARIANTS = {
    "dedicated": "The image-text objective alone, to compare with.",
    "smoke": "20 steps of a tiny model, for tests.",
}


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The preset with the variants named after the colon."""
    chosen = defaults.variants(variant, VARIANTS)
    config = pretrain.of_300_steps(smoke="smoke" in chosen)
    config.data.lateral = True
    config.objectives = {"global_contrastive": {"weight": 1.0, "temperature": 0.07}}
    config.evaluators = {"retrieval": {"max_pairs": 256}}
    if "dedicated" not in chosen:
        # With weight 0.5 the two images of a study find each other three times as often, but
        # images and reports less often than without this objective (R@1 0.08 against 0.09 to 0.12).
        to_second = {"text": "image@second.embedding"}
        config.objectives.views = {"name": "global_contrastive", "weight": 0.1, "reads": to_second}
        config.evaluators.views = {"name": "retrieval", "max_pairs": 256, "reads": to_second}
    return config
