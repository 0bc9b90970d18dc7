"""Reports are classified while embeddings of words follow a graph, as in Alawad et al. 2021.

    python -m mmrl.main --config=configs/systems/kg_words.py --workdir=runs/kg_words
    python -m mmrl.main --config=configs/systems/kg_words.py:plain --workdir=runs/kg_plain

The paper pulls words together that UMLS connects, beside tasks on reports of pathology. Here the
findings of a report are the task, and the graph is that of mmrl; config.inputs.relations.relations
names another one. Names that are not linked are kept apart, which the paper does not state.
"""

import ml_collections

from configs import pretrain
from mmrl import config as defaults
from mmrl.data.phantom import findings

VARIANTS = {
    "plain": "without the graph, for comparison",
    "smoke": "20 steps of a tiny model, for tests",
}


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The preset with the variants named after the colon."""
    chosen = defaults.variants(variant, VARIANTS)
    config = pretrain.of_300_steps(smoke="smoke" in chosen)
    text = config.towers.text
    text.update({} if "smoke" in chosen else {"width": 64, "depth": 1, "num_heads": 2})
    config.data.label_names = tuple(findings.KINDS)
    text.heads = {"labels": len(findings.KINDS)}
    text.pool = "mean"
    config.towers = {"text": text}
    config.inputs.relations = {"max_tokens": 16}
    read = {"name": "label_classification", "reads": {"logits": "text.labels"}}
    config.objectives = {"findings": read, "graph_regulariser": {"margin": 1.0}}
    if "plain" in chosen:
        config.objectives = {"findings": read}
    config.evaluators = {"classification": {"reads": {"logits": "text.labels"}, "bootstrap": 0}}
    return config
