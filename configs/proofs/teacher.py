"""Proof of a teacher: crops of images find what the averaged weights make of the whole images.

    python -m mmrl.main --config=configs/proofs/teacher.py --workdir=runs/teacher
    python -m mmrl.main --config=configs/proofs/teacher.py:first --workdir=runs/first

The weights of the teacher are the moving average of those of the student (Tarvainen and Valpola
2017), and it gets no gradient. With `first` the decay is 1, so the teacher keeps the first weights.
"""

import ml_collections

from configs import pretrain
from mmrl import config as defaults

VARIANTS = {
    "first": "the teacher keeps the first weights, for comparison",
    "smoke": "20 steps of a tiny model, for tests",
}


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The preset with the variants named after the colon."""
    chosen = defaults.variants(variant, VARIANTS)
    config = pretrain.of_300_steps(smoke="smoke" in chosen)
    config.towers = {"image": config.towers.image}
    config.towers.image.heads = {"embedding": 96}
    config.inputs.crop = {"name": "image", "crop_scale": (0.4, 0.8)}
    reads = {"image": "image@crop.embedding", "text": "average/image.embedding"}
    config.objectives = {"agreement": {"name": "global_contrastive", "reads": reads}}
    if "first" in chosen:
        config.average.decay = 1.0
    else:
        config.average.decay = {"kind": "cosine", "start": 0.9, "end": 0.99, "steps": 300}
    config.validation_loss = True
    config.evaluators = {"agreement": {"name": "retrieval", "max_pairs": 256, "reads": reads}}
    return config
