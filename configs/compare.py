"""The comparison of docs/results: one pair of towers, several sets of objectives, on phantoms.

    python -m mmrl.main --config=configs/compare.py:paper --config.seed=1 --workdir=runs/paper-1

Exactly one of `VARIANTS` is given after the colon. `python -m benchmarks.ablation` trains those of
`OBJECTIVES` with several seeds and writes the table; `python -m benchmarks.curves` adds the parts
of our recipe, one at a time.
"""

import ml_collections

from configs import pretrain
from mmrl import config as defaults
from mmrl.types import InputError

OBJECTIVES = {
    "global": ("global_contrastive",),
    "local": ("global_contrastive", "local_contrastive"),
    "discrimination": ("global_contrastive", "perturbed_discrimination"),
    "paper": ("global_contrastive", "local_contrastive", "perturbed_discrimination"),
    "clinical": ("global_contrastive", "local_contrastive", "perturbed_discrimination"),
    "recommended": (
        "global_contrastive",
        "perturbed_discrimination",
        "sentence_contrastive",
        "sentence_image",
    ),
}
VARIANTS = {
    "global": "image-report contrast alone (ConVIRT, CLIP)",
    "local": "global and local contrast (GLoRIA)",
    "discrimination": "global contrast and discrimination of the paper's nine perturbations",
    "paper": "all three: the losses of the paper",
    "clinical": "all three, with half of the perturbed copies of clinical kinds",
    "recommended": "our recipe: configs/pretrain.py",
    "mean_pool": "our recipe, with the mean over all patches as pooled feature",
    "no_convolution": "our recipe, without the convolution over tokens",
    "no_local": "our recipe, without the contrast of sentences with regions",
    "gloria": "our recipe, with GLoRIA's local loss instead of that contrast",
}
CURVES = ("recommended", "mean_pool", "no_convolution", "gloria")
"""Variants that are evaluated on the way, for `benchmarks.curves`."""


def get_config(variant: str = "paper") -> ml_collections.ConfigDict:
    """The preset of one variant."""
    given = defaults.variants(variant, VARIANTS)
    if len(given) != 1:
        raise InputError(f"config variants given: {variant!r}; expected one of {tuple(VARIANTS)}")
    (chosen,) = given
    config = pretrain.get_config()
    config.total_steps = 400
    config.eval_every = 100 if chosen in CURVES else 0
    config.checkpoint.every = config.total_steps
    config.tensorboard = False
    if chosen in OBJECTIVES and chosen != "recommended":
        _parts_of_the_paper(config, chosen)
    if chosen == "mean_pool":
        config.towers.image.pool = "mean"
    if chosen == "no_convolution":
        config.towers.text.convolution = 0
    if chosen in ("no_local", "gloria"):
        del config.objectives.sentence_contrastive
        del config.evaluators.sentence_pointing
    if chosen == "gloria":
        _add_local(config)
    return config


def _parts_of_the_paper(config: ml_collections.ConfigDict, chosen: str) -> None:
    """The paper's objectives, or some of them, with the towers of our recipe."""
    for name in ("sentence_contrastive", "sentence_image"):
        del config.objectives[name]
    del config.inputs.sentences, config.towers.text.heads.sentence
    del config.evaluators.sentence_pointing
    config.towers.text.packing = 0.62  # long texts alone: 0.55 rows for each on average
    if "perturbed_discrimination" not in OBJECTIVES[chosen]:
        del config.objectives.perturbed_discrimination
    else:
        # The paper's scores, with a weight that soon leaves the plateau at log(1+K).
        config.objectives.perturbed_discrimination.update({"relative": False, "weight": 0.5})
    if "local_contrastive" in OBJECTIVES[chosen]:
        _add_local(config)
    if chosen != "clinical":
        del config.data.perturbations  # names with weights give way to names
        config.data.perturbations = defaults.base().data.perturbations


def _add_local(config: ml_collections.ConfigDict) -> None:
    config.objectives.local_contrastive = defaults.base().objectives.local_contrastive
    config.towers.text.heads.words = config.towers.image.heads.regions
    config.towers.image.region_layer = None  # as published: the last features
    config.evaluators.pointing = {}
