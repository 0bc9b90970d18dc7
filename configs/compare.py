"""The comparison of docs/results: one architecture, five sets of objectives, on phantoms.

    python -m mmrl.main --config=configs/compare.py:paper --config.seed=1 --workdir=runs/paper-1

Exactly one of `VARIANTS` is given after the colon. `python -m benchmarks.compare` trains all of
them with several seeds and writes the table.
"""

import ml_collections

from configs import pretrain
from mmrl import config as defaults
from mmrl.types import InputError

VARIANTS = {
    "global": "image-report contrast alone (ConVIRT, CLIP)",
    "local": "global and local contrast (GLoRIA)",
    "discrimination": "global contrast and discrimination of the paper's nine perturbations",
    "paper": "all three: the method of the paper",
    "clinical": "all three, with half of the perturbed copies of clinical kinds",
}
OBJECTIVES = {
    "global": ("global_contrastive",),
    "local": ("global_contrastive", "local_contrastive"),
    "discrimination": ("global_contrastive", "perturbed_discrimination"),
    "paper": ("global_contrastive", "local_contrastive", "perturbed_discrimination"),
    "clinical": ("global_contrastive", "local_contrastive", "perturbed_discrimination"),
}
CLINICAL_KINDS = (
    "swap_laterality",
    "flip_negation",
    "swap_severity",
    "swap_zone",
    "swap_finding",
    "swap_temporal",
    "swap_device",
)


def get_config(variant: str = "paper") -> ml_collections.ConfigDict:
    """The preset of one variant."""
    given = defaults.variants(variant, VARIANTS)
    if len(given) != 1:
        raise InputError(f"config variants given: {variant!r}; expected one of {tuple(VARIANTS)}")
    (chosen,) = given
    config = pretrain.get_config()
    # Findings alone: a fact reworded there is not given away by an impression that repeats it.
    config.data.sections = ("findings",)
    config.towers.text.length = 56
    config.towers.image.size = config.data.render_size = 48
    config.total_steps = 360
    config.eval_every = 0
    config.checkpoint.every = 360
    config.tensorboard = False
    config.evaluators.zero_shot = {}
    del config.evaluators.pointing
    if "local_contrastive" in OBJECTIVES[chosen]:
        config.evaluators.pointing = {}
    for name in list(config.objectives):
        if name not in OBJECTIVES[chosen]:
            del config.objectives[name]
    if chosen == "clinical":
        paper = config.data.perturbations
        weights = dict.fromkeys(paper, 1.0)
        weights |= dict.fromkeys(CLINICAL_KINDS, len(paper) / len(CLINICAL_KINDS))
        del config.data.perturbations  # names give way to names with weights
        config.data.perturbations = weights
    return config
