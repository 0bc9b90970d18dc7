"""Text-text contrast: the findings of a report with its impression; no image is read.

python -m mmrl.main --config=configs/systems/text_text.py --workdir=runs/text_text
"""

import ml_collections

from configs import pretrain
from mmrl import config as defaults

VARIANTS = {"smoke": "20 steps of a tiny model, for tests."}


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The preset with the variants named after the colon."""
    chosen = defaults.variants(variant, VARIANTS)
    config = pretrain.get_config("paper,smoke" if chosen else "paper")
    config.update({} if chosen else {"total_steps": 300, "eval_every": 0})
    config.inputs = {
        "findings": {"name": "text", "sections": ("findings",)},
        "impression": {"name": "text", "sections": ("impression",)},
    }
    text = config.towers.text
    text.update({"input": "findings", "heads": {"embedding": text.heads.embedding}})
    config.towers = {"text": text}
    reads = {"image": "text@findings.embedding", "text": "text@impression.embedding"}
    config.objectives = {"sections": {"name": "global_contrastive", "reads": reads}}
    config.evaluators = {"retrieval": {"max_pairs": 256, "reads": reads}}
    return config
