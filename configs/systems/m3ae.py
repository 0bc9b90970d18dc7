"""Masked patches and masked words, each from what is left and from the other modality, as in M3AE.

    python -m mmrl.main --config=configs/systems/m3ae.py --workdir=runs/m3ae

Chen et al. 2022: 75 % of the patches are removed, and a transformer decodes them from what the
third of six blocks of co-attention makes of the others; 15 % of the words are hidden, whole, and
predicted from the last block; a head tells pairs from others. Each task has its own pass, as in the
public code. Here are two blocks, pixels from the first, small towers, and stained tiles with
impressions such as "Pink, crowded.", half of whose words only the image tells. The log shows
val/words/accuracy beside most_frequent_accuracy and control_accuracy, the same with other images,
and val/matching/accuracy, of which "no" to all has 2/3.
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
        config.total_steps, config.optimizer.learning_rate = 240, 3e-3
        config.data.sections, text.length = ("impression",), 16
        config.data.render_size = 32
        pretrain.narrow(config, patch_size=8)
        text.convolution = 5  # words know their neighbours at once
    config.data.source, image.channels = "stained_tiles", 3
    image.heads = text.heads = {"embedding": 64}
    config.inputs.text = {"name": "whole_words"}
    others = {"name": "hard_negatives", "draw": "uniform"}
    config.derived = {
        "patches": {"name": "random_patches", "share": 0.75},
        "masked": {"name": "masked_tokens", "words": "starts", "share": 0.15},
        "other": {**others, "of": "masked", "side": "text"},
        "negative_text": {**others, "of": "text", "side": "text"},
        "negative_image": {**others, "of": "image", "side": "image"},
    }
    patch = {"patch_size": image.patch_size}
    depth = 1 if chosen else 2
    fused = {"name": "co_attention", "direction": "both", "depth": depth, "region_block": 1}
    fused |= {"num_heads": image.num_heads, "mlp_dim": 2 * image.width, "pool": "both"}
    decoder = {"name": "patch_decoder", "width": 64, "depth": 1, "channels": image.channels}
    decoder |= {"reads": {"kept_patches": "fused@patches.regions"}, **patch}
    config.fusions = {"fused": {**fused, "heads": {"match": 2}}, "decoder": decoder}
    control = {"control": "fused@other.words", "control_targets": "other.target"}
    config.objectives = {
        "global_contrastive": {"weight": 1.0},  # in place of the weights of CLIP
        "words": {"name": "masked_text", "weight": 2.0, "control": True, "reads": control},
        "patches": {"name": "masked_image", **patch},
        "matching": {"weight": 1.0},
    }
    config.validation_loss = True
    config.evaluators = {"retrieval": {"max_pairs": 32 if chosen else 256}}
    return config
