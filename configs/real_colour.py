"""Real images in colour or in grey, whose classes a small tower learns.

    python -m mmrl.main --config=configs/real_colour.py:ham10000 --workdir=runs/ham10000
    python -m mmrl.main --config=configs/real_colour.py:ham10000,grey --workdir=runs/grey

The tower learns the classes of `VARIANTS` from random values. The sets lie in the folder that
MMRL_REAL_DATA names, see configs/judge.py. `python -m benchmarks.colour` trains all variants and
probes their features.
"""

import ml_collections

from configs import judge, real
from mmrl import config as defaults

VARIANTS = {
    "ham10000": "dermoscopic images: 7 classes (the default)",
    "roco": "the colour figures of ROCO: 4 modalities, as captions tell them",
    "grey": "the same images read as grey, by a tower of one channel",
}
SETS = ("ham10000", "roco")
CLASSES = {
    "ham10000": (
        *("actinic keratosis / intraepithelial carcinoma", "basal cell carcinoma"),
        *("benign keratosis", "dermatofibroma", "melanocytic nevus", "melanoma"),
        "vascular lesion",
    ),
    "roco": tuple(real.MODALITIES),
}


def get_config(variant: str = "ham10000") -> ml_collections.ConfigDict:
    """The preset of one set, in colour or in grey."""
    given = defaults.variants(variant, VARIANTS)
    chosen = real.one_of(given, SETS, "ham10000")
    config = judge.get_config(chosen)
    config.update({"total_steps": 150, "batch_size": 64, "eval_every": 0, "tensorboard": False})
    config.log_every = config.checkpoint.every = 150
    config.data.update({"channels": 3, "notes": (), "report_columns": ()})
    config.data.update({"fractions": (0.7, 0.3, 0.0), "cache_images": True})
    if chosen == "roco":
        config.data.update({"report_columns": ("report",), "leave_out": {"mode": ("L",)}})
    config.data.label_names = CLASSES[chosen]
    image = config.towers.image
    image.update({"size": 64, "patch_size": 8, "width": 64, "depth": 3, "num_heads": 2})
    image.update({"channels": 1 if "grey" in given else 3, "stem": "convolution"})
    image.heads = {"labels": len(config.data.label_names)}
    config.data.colour = "grey" if "grey" in given else "as_stored"
    config.towers, config.inputs = {"image": image}, {}
    config.objectives = {"class_classification": {"weight": 1.0}}
    config.evaluators = {"classes": {"name": "classification", "kind": "classes", "bootstrap": 0}}
    return config
