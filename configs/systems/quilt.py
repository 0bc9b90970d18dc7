"""Image and caption of histopathology, as in Quilt-1M: stained tiles, judged by prompts alone.

    python -m mmrl.main --config=configs/systems/quilt.py --workdir=runs/quilt

Ikezogwo et al. 2023: captions from the speech of videos, and CLIP trained on them. The corpus
itself is read by the source `quilt1m`, and `python -m mmrl.prepare audit` reports its duplicates
and leaks. By default this preset trains on stained tiles, a phantom corpus in colour:

    python -m mmrl.prepare quilt1m --input=FOLDER --output=corpora/quilt
    python -m mmrl.main --config=configs/systems/quilt.py --config.data.source=prepared \
        --config.data.path=corpora/quilt --config.data.sections=caption --workdir=runs/quilt
"""

import ml_collections

from configs import pretrain
from mmrl import config as defaults

VARIANTS = {"smoke": "20 steps of a tiny model, for tests."}
PAIRS = {"stain": ("purple", "pink"), "pattern": ("sparse", "crowded")}
"""What prompts tell apart: each is stated by every report, so that "no ..." would mislead."""


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The preset with the variants named after the colon."""
    chosen = defaults.variants(variant, VARIANTS)
    config = pretrain.of_300_steps(smoke=bool(chosen))
    config.data.update({"source": "stained_tiles", "length": 2400, "text": "sentences"})
    if not chosen:
        pretrain.narrow(config)
    config.data.render_size = config.towers.image.size
    config.towers.image.channels = 3
    config.towers.text.length = 48
    config.objectives = {"global_contrastive": {"weight": 1.0, "temperature": 0.07}}
    config.evaluators = {
        "retrieval": {"max_pairs": 128, "bootstrap": 0},
        "zero_shot": {"tasks": {kind: _task(kind, *two) for kind, two in PAIRS.items()}},
    }
    config.evaluators.zero_shot.bootstrap = 0
    return config


def _task(kind: str, one: str, two: str) -> dict[str, object]:
    """Which of two values of a kind does the tile have?"""
    positive, negative = ((f"{name.capitalize()} {kind} is present.",) for name in (one, two))
    return {"positive": positive, "negative": negative, "present": (f"{one} {kind}", "")}
