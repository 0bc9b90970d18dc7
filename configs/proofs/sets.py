"""Proof of sets: studies of eight slices, each lesion in some of them only, and their labels.

    python -m mmrl.main --config=configs/proofs/sets.py:gated --workdir=runs/sets

The labels say what any slice shows. `single` sees the first slice alone, for comparison.
"""

import ml_collections

from configs import pretrain, proofs
from mmrl import config as defaults
from mmrl.data.phantom import findings
from mmrl.types import InputError

SLICES = 8
POOLERS = {"mean": "mean", "attention": "attention", "gated": "gated_attention"}
VARIANTS = {
    "mean": "pools the slices by their mean",
    "attention": "pools them by attention with a learned query",
    "gated": "pools them by gated attention (the default)",
    "single": "sees the first slice alone",
    "smoke": "20 steps of a tiny model, for tests",
}


def get_config(variant: str = "gated") -> ml_collections.ConfigDict:
    """The preset with the variants named after the colon."""
    chosen = defaults.variants(variant, VARIANTS)
    forms = sorted(chosen - {"smoke"})
    if len(forms) > 1:
        raise InputError(f"config variants {', '.join(forms)}; expected one of them")
    form = forms[0] if forms else "gated"
    config = pretrain.of_300_steps(smoke="smoke" in chosen)
    config.data.slices = SLICES
    config.data.label_names = findings.KINDS
    if "smoke" not in chosen:
        proofs.small(config, batch_size=64, length=6000)
    image = config.towers.image
    image.heads = {"labels": len(findings.KINDS)}
    if form != "single":
        image.input, image.set_pool = "images", {"name": POOLERS[form]}
        config.inputs.images = {"max_images": SLICES}
    config.towers = {"image": image}
    config.objectives = {"label_classification": {"weight": 1.0}}
    config.evaluators = {"classification": {}}
    return config
