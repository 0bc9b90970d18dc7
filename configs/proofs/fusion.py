"""A fusion learns whether an image and a report belong together, on phantoms.

    python -m mmrl.main --config=configs/proofs/fusion.py --workdir=runs/fusion

Words attend to regions. For every pair, two further ones are judged: the image with another report
and the report with another image. The log shows val/matching/accuracy, of which "no" to every pair
has 2/3, and val/matching/balanced_accuracy, of which any constant answer has 1/2.
"""

import ml_collections

from configs import pretrain
from mmrl import config as defaults

VARIANTS = {
    "hard": "Draws negatives by the similarity of embeddings instead of all alike.",
    "gate": "Starts with gates at 0, so that the fusion first returns what it reads.",
    "smoke": "20 steps of a tiny model, for tests.",
}


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The preset with the variants named after the colon."""
    chosen = defaults.variants(variant, VARIANTS)
    config = pretrain.of_300_steps(smoke="smoke" in chosen)
    config.validation_loss = True
    if "smoke" not in chosen:
        config.batch_size = 64
        for tower, depth in ((config.towers.image, 2), (config.towers.text, 1)):
            tower.update({"width": 64, "num_heads": 2, "depth": depth})
    for tower in (config.towers.image, config.towers.text):
        tower.heads = {"embedding": tower.heads.embedding}
    config.objectives = {"global_contrastive": {"weight": 1.0}, "matching": {"weight": 1.0}}
    config.fusions = {
        "fused": {
            "name": "co_attention",
            "depth": 2,
            "num_heads": config.towers.text.num_heads,
            "gate": "gate" in chosen,
            "pool": "mean",
            "heads": {"match": 2},
        }
    }
    draw = "sampled" if "hard" in chosen else "uniform"
    config.derived = {
        f"negative_{side}": {"name": "hard_negatives", "of": side, "side": side, "draw": draw}
        for side in ("text", "image")
    }
    config.evaluators = {"retrieval": {"max_pairs": 32 if "smoke" in chosen else 256}}
    return config
