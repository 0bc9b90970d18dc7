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


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The preset with the variants named after the colon."""
    chosen = defaults.variants(variant, VARIANTS)
    config = pretrain.of_300_steps(smoke=bool(chosen))
    config.data.update({"source": "stained_tiles", "length": 2400, "text": "sentences"})
    image, text = config.towers.image, config.towers.text
    image.size = config.data.render_size = 32
    image.update({"patch_size": 4, "channels": 3})
    text.length = 48
    for tower, depth in ((image, 2), (text, 1)):
        tower.update({} if chosen else {"width": 64, "num_heads": 2, "depth": depth})
    config.objectives = {"global_contrastive": {"weight": 1.0, "temperature": 0.07}}
    config.evaluators = {
        "retrieval": {"max_pairs": 128, "bootstrap": 0},
        "zero_shot": {"tasks": "findings", "bootstrap": 0},
    }
    return config
