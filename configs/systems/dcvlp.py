"""Hidden patches are told from those of all images, given the report, as in DCVLP.

    python -m mmrl.main --config=configs/systems/dcvlp.py --workdir=runs/dcvlp

Shi et al. 2021 contrast hidden regions instead of regressing them, beside masked words and matching
of pairs. Regions are patches here, the targets are their encodings of the whole image, and one step
of the adversary (`epsilon`) changes predictions. The log shows val/regions/accuracy and its control
with other reports.
"""

import ml_collections

from configs import pretrain
from mmrl import config as defaults

VARIANTS = {"smoke": "20 steps of a tiny model, for tests."}


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The preset with the variants named after the colon."""
    chosen = defaults.variants(variant, VARIANTS)
    config = pretrain.of_300_steps(smoke=bool(chosen))
    image, text = config.towers.image, config.towers.text
    if not chosen:
        config.total_steps, config.optimizer.learning_rate = 300, 3e-3
        config.data.render_size = 32
        config.data.sections, text.length = ("findings",), 40
        pretrain.narrow(config, patch_size=8)
        text.convolution = 5  # words know their neighbours at once
    image.heads, text.heads = {"embedding": 64}, {"embedding": 64}
    image.mask_token = True
    hidden = {"name": "hidden_patches", "probability": 1.0, "shares": (0.3, 0.5)}
    others = {"name": "hard_negatives", "draw": "uniform"}
    config.derived = {
        "hidden": hidden,
        "masked": {"name": "masked_tokens"},
        "negative_text": {**others, "of": "text", "side": "text"},
        "negative_image": {**others, "of": "image", "side": "image"},
    }
    joint = {"name": "co_attention", "depth": 1, "num_heads": image.num_heads, "mlp_dim": 128}
    # `seen` of what is hidden: its texts can be replaced by those of others.
    config.fusions = {
        "fused": {**joint, "pool": "mean", "heads": {"match": 2}},
        "seen": {**joint, "direction": "both", "reads": {"image": "image@hidden.local"}},
    }
    regions = {"prediction": "seen.regions", "control": "seen@negative_text.regions"}
    config.objectives = {
        "global_contrastive": {"weight": 1.0},
        "regions": {"name": "masked_regions", "reads": regions, "control": True, "epsilon": 0.1},
        "masked_text": {"weight": 1.0},
        "matching": {"weight": 1.0},
    }
    config.validation_loss = True
    config.evaluators = {"retrieval": {"max_pairs": 32 if chosen else 256}}
    return config
