"""Masked reconstruction across modalities beside a global contrast, as in MMCLIP.

    python -m mmrl.main --config=configs/systems/mmclip.py --workdir=runs/mmclip

Wu et al. 2024: the patches that respond to the report are hidden and reconstructed from the others
and the report (AttMIM), and named entities are hidden and predicted from the other words and the
image (EntMLM). Weights and shares are not published; unpaired images are left out. The log shows
val/entities/accuracy, and control_accuracy, the same with the images of other studies.
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
    for tower, depth in ((image, 2), (text, 1)):
        tower.update({} if chosen else {"width": 64, "num_heads": 2, "depth": depth})
    image.pool = "mean"
    image.heads, text.heads = {"embedding": 64, "regions": 64}, {"embedding": 64, "sentence": 64}
    config.inputs.text = {"name": "concepts", "num_entities": 12}
    config.inputs.sentences = {"num_sentences": 4, "max_tokens": 20}
    config.derived = {
        "described": {"name": "described_patches", "reads": {"text": "text.sentence"}},
        "masked": {"name": "masked_tokens", "spans": "spans", "share": 0.5},
        "other": {"name": "hard_negatives", "of": "image", "side": "image", "draw": "uniform"},
    }
    joint = {"name": "co_attention", "depth": 1, "num_heads": image.num_heads}
    masked = {"text": "text@masked.local", "text_mask": "text@masked.mask"}
    decoded = {"kept_patches": "seen.regions", "kept": "described.kept", "mask": "described.mask"}
    patch = {"patch_size": image.patch_size}
    config.fusions = {
        "fused": {**joint, "reads": masked},
        "seen": {**joint, "direction": "both", "reads": {"image": "image@described.local"}},
        "decoder": {"name": "patch_decoder", "reads": decoded, "width": 64, "depth": 1, **patch},
    }
    entities = {"reads": {"words": "fused.words", "control": "fused@other.words"}, "control": True}
    patches = {"normalise": False, "reads": {"mask": "described.mask"}, **patch}
    config.objectives = {
        "global_contrastive": {"weight": 1.0},
        "sentence_contrastive": {"weight": 0.5},  # regions that respond to what a sentence states
        "entities": {"name": "masked_text", **entities},
        "patches": {"name": "masked_image", **patches},
    }
    config.validation_loss = True
    config.evaluators = {"retrieval": {"max_pairs": 32 if chosen else 256}}
    return config
