"""Queries of an image and a text together find another image, as in MLLM4PUE.

    python -m mmrl.main --config=configs/systems/mllm4pue.py --workdir=runs/mllm4pue

Zhang et al. 2025 embed an image, a text or both with one language model, by InfoNCE, and judge it
by retrieval with composed queries. Here a fusion of two towers embeds both. The query is a frontal
phantom and its findings, the target the lateral image of the study, which shows them without sides.
`composed` adds the embeddings of image and text, beside each alone; `fused` reads the fusion.
"""

import ml_collections

from configs import pretrain
from mmrl import config as defaults

VARIANTS = {"smoke": "20 steps of a tiny model, for tests."}


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The preset with the variants named after the colon."""
    chosen = defaults.variants(variant, VARIANTS)
    config = pretrain.of_300_steps(smoke=bool(chosen))
    config.data.update({"lateral": True, "views": "frontal", "sections": ("findings",)})
    image, text = config.towers.image, config.towers.text
    if not chosen:
        config.batch_size, config.optimizer.learning_rate = 64, 3e-3
        config.data.render_size, text.length = 32, 56
        pretrain.narrow(config, patch_size=8)
    image.heads, text.heads = {"embedding": 64}, {"embedding": 64}
    embeds = {"pool": "both", "heads": {"embedding": 64}}
    joint = {"name": "co_attention", "depth": 1, "num_heads": image.num_heads}
    config.fusions = {"fused": {**joint, **embeds}}
    target = {"text": "image@second.embedding"}
    queries = {"fused": "fused.embedding", "image": "image.embedding", "text": "text.embedding"}
    config.objectives = {
        name: {"name": "global_contrastive", "reads": {"image": query, **target}}
        for name, query in queries.items()
    }
    pairs = {"max_pairs": 32 if chosen else None, "bootstrap": 0}
    fused = {"name": "retrieval", "reads": {"image": "fused.embedding", **target}}
    config.evaluators = {
        "composed": {"name": "composed_retrieval", **pairs},
        "fused": {**fused, **pairs},
    }
    return config
