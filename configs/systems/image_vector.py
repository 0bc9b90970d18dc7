"""A third modality: images with a vector of each study, in place of an expression profile.

    python -m mmrl.main --config=configs/systems/image_vector.py --workdir=runs/vector

The vector of a phantom is a noisy linear code of its findings, and a tenth of the studies has none.
Reports are neither read nor tokenised.
"""

import ml_collections

from configs import pretrain
from mmrl import config as defaults

VARIANTS = {"smoke": "20 steps of a tiny model, for tests."}


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The preset with the variants named after the colon."""
    chosen = defaults.variants(variant, VARIANTS)
    config = pretrain.of_300_steps(smoke=bool(chosen))
    if not chosen:
        pretrain.narrow(config)
    config.data.render_size = config.towers.image.size
    config.data.update({"vector": 32, "vector_noise": 0.5, "vector_missing": 0.1})
    image = config.towers.image
    image.heads = {"embedding": image.heads.embedding}
    vector = {"name": "mlp", "size": 32, "heads": {"embedding": image.heads.embedding}}
    config.towers = {"image": image, "vector": vector}
    reads = {"text": "vector.embedding"}
    config.objectives = {"image_vector": {"name": "global_contrastive", "reads": reads}}
    config.evaluators = {"retrieval": {"max_pairs": 256, "reads": reads}}
    return config
