"""A global contrast that curates: after one epoch only the kept samples are drawn, as CheXficient.

    python -m mmrl.main --config=configs/systems/chexficient.py --workdir=runs/chexficient
    python -m mmrl.main --config=configs/systems/chexficient.py:all --workdir=runs/chexficient_all

Wang et al. 2026, by the rule of the released code, with 6 prototypes after 10 steps of warm-up. It
keeps 5 central samples of a cluster instead of 10, for batches of 128. The corpus is tiles of
nuclei that differ in stain and pattern; RARE holds the shares of a rare stain and a rare pattern.
"""

from typing import Any

import ml_collections

from configs import pretrain
from mmrl import config as defaults

VARIANTS = {
    "all": "no curation: all samples are drawn, for comparison",
    "paper": "the rule of the paper, by deviations of the distances",
    "smoke": "20 steps of a tiny model, for tests",
}
RARE = {"pink stain": 0.04, "crowded pattern": 0.04}


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The preset with the variants named after the colon."""
    chosen = defaults.variants(variant, VARIANTS)
    config = pretrain.of_300_steps(smoke="smoke" in chosen)
    shares = {**RARE, "elongated shape": 0.0, "gland": 0.0}
    config.data.update({"source": "stained_tiles", "length": 400, "prevalence": shares})
    image, text = config.towers.image, config.towers.text
    image.channels = 3
    image.heads, text.heads = {"embedding": 64}, {"embedding": 64}
    curated: dict[str, Any] = {"examples": 64, "warm_up": 4, "prototypes": 2, "most": 2}
    config.evaluators = {"retrieval": {"max_pairs": 32}}
    if "smoke" not in chosen:
        config.batch_size, config.total_steps = 128, 240
        config.data.update({"length": 9000, "render_size": 32, "fractions": (0.75, 0.2, 0.05)})
        image.update({"size": 32, "width": 64, "depth": 2, "num_heads": 2, "pool": "mean"})
        text.update({"length": 40, "width": 64, "depth": 1, "num_heads": 2, "pool": "mean"})
        curated = {"examples": 6750, "warm_up": 10, "prototypes": 6, "most": 5}
        config.evaluators = {"retrieval": {"max_pairs": 256, "bootstrap": 0}}
    if "paper" in chosen:
        curated |= {"rule": "deviations"}
    config.objectives = {"curated_contrastive": curated}
    if "all" in chosen:
        config.objectives = {"global_contrastive": {}}
    return config
