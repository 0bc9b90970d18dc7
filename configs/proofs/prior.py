"""Proof of priors: what is new since the study before, which no image alone tells.

    python -m mmrl.main --config=configs/proofs/prior.py --workdir=runs/prior
    python -m mmrl.main --config=configs/proofs/prior.py:without --workdir=runs/without

A finding of the second study of a patient is new or unchanged with equal chances, see
`mmrl/data/phantom/course.py`. With the prior the course is learned; without, it stays at chance.
"""

import ml_collections

from configs import pretrain, proofs
from mmrl import config as defaults
from mmrl.data.phantom import course, findings

VARIANTS = {
    "without": "sees the current image alone, for comparison",
    "smoke": "20 steps of a tiny model, for tests",
}


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The preset with the variants named after the colon."""
    chosen = defaults.variants(variant, VARIANTS)
    config = pretrain.of_300_steps(smoke="smoke" in chosen)
    config.data.priors = True
    if "smoke" not in chosen:
        proofs.small(config, batch_size=256, length=12000)
    image = config.towers.image
    image.heads = {"findings": len(findings.KINDS)}
    config.towers = {"image": image}
    config.inputs = {
        "findings": {"name": "labels", "label_names": findings.KINDS},
        "course": {"name": "labels", "label_names": course.LABELS},
    }
    if "without" in chosen:
        image.heads.course = len(course.LABELS)
    else:
        config.fusions.temporal = {
            "name": "temporal",
            "width": image.width,
            "num_heads": image.num_heads,
            "depth": 1,
            "heads": {"course": len(course.LABELS)},
        }
    reader = "image" if "without" in chosen else "temporal"
    of = {"findings": "image.findings", "course": f"{reader}.course"}
    config.objectives = {
        name: {
            "name": "label_classification",
            "reads": {"logits": logits, "values": f"{name}.values", "mask": f"{name}.mask"},
        }
        for name, logits in of.items()
    }
    config.evaluators = {
        name: {"name": "classification", "input": name, "reads": {"logits": logits}}
        for name, logits in of.items()
    }
    return config
