"""Masked reconstruction across modalities beside a global contrast, as in MMCLIP.

    python -m mmrl.main --config=configs/systems/mmclip.py --workdir=runs/mmclip

Wu et al. 2024: the patches that respond to the report are hidden and reconstructed from the others
and the report (AttMIM), and named entities are hidden and predicted from the other words and the
image (EntMLM). Prompts name the diseases of all images, of which three of ten have no report. Texts
are impressions, which a few hundred steps learn to complete. The log shows val/entities/accuracy
beside control_accuracy, the same with the images of other studies.
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
        config.total_steps, config.optimizer.learning_rate, text.convolution = 300, 3e-3, 5
        config.data.render_size, config.data.length = 32, 3000
        config.data.sections, text.length = ("impression",), 24
        pretrain.narrow(config, patch_size=8)
    image.heads, text.heads = {"embedding": 64, "regions": 64}, {"embedding": 64, "sentence": 64}
    image.pool, config.data.unreported = "mean", 0.3
    config.inputs.text = {"name": "concepts", "num_entities": 12, "required": False}
    config.inputs.sentences = {"num_sentences": 2, "max_tokens": 20, "required": False}
    config.inputs.label_prompts = {"templates": ("a radiograph with {labels}",)}
    config.derived = {
        "patches": {"name": "described_patches", "reads": {"text": "text.sentence"}},
        "masked": {"name": "masked_tokens", "spans": "spans", "share": 0.75},
        "other": {"name": "hard_negatives", "of": "image", "side": "image", "draw": "uniform"},
    }
    joint = {"name": "co_attention", "depth": 1, "num_heads": image.num_heads}
    masked = {"text": "text@masked.local", "text_mask": "text@masked.mask"}
    patch, seen = {"patch_size": image.patch_size}, {"kept_patches": "seen.regions"}
    config.fusions = {
        "fused": {**joint, "depth": 2, "reads": masked},
        "seen": {**joint, "direction": "both", "reads": {"image": "image@patches.local"}},
        "decoder": {"name": "patch_decoder", "width": 64, "depth": 1, "reads": seen, **patch},
    }
    words = {"words": "fused.words", "control": "fused@other.words"}
    prompts = {"text": "text@label_prompts.embedding", "group": "label_prompts.key"}
    config.objectives = {
        "global_contrastive": {"weight": 1.0},
        "prompts": {"name": "global_contrastive", "weight": 0.5, "reads": prompts},
        "sentence_contrastive": {"weight": 0.5},  # regions that respond to what a sentence states
        "entities": {"name": "masked_text", "weight": 2.0, "control": True, "reads": words},
        "patches": {"name": "masked_image", "normalise": False, **patch},
    }
    config.validation_loss = True
    config.evaluators = {"retrieval": {"max_pairs": 32 if chosen else 256}}
    return config
