"""What an image tower can learn of findings and their sides, for each way of pooling.

    python -m mmrl.main --config=configs/ceiling.py:sides,zones --workdir=runs/sides-zones

The image tower, steps, batch and optimizer are those of `configs/pretrain.py`. Variants are
separated by commas: a target (sides by default), a pool, and what else is listed. `python -m
benchmarks.ceiling` trains all of them with several seeds and writes the page.
"""

import ml_collections

from configs import pretrain
from mmrl import config as defaults
from mmrl.data.phantom import study as phantom
from mmrl.types import InputError

VARIANTS = {
    "findings": "trains on labels: the ten findings",
    "sides": "trains on labels: the ten findings, and the two sides of each",
    "contrast": "trains on the contrast of images and reports alone",
    "mean": "pools the mean over all regions (the default)",
    "zones": "pools the means of 4 x 4 zones",
    "attention": "pools by the attention of a learned query",
    "resnet": "a narrow ResNet-18 in place of the vision transformer",
    "large": "images of 224 px; a small vision transformer with patches of 16 px",
}
TARGETS = ("findings", "sides", "contrast")
POOLS = ("mean", "zones", "attention")


def get_config(variant: str = "sides,zones") -> ml_collections.ConfigDict:
    """The preset with the variants named after the colon."""
    chosen = defaults.variants(variant, VARIANTS)
    targets, pools = ([one for one in of if one in chosen] for of in (TARGETS, POOLS))
    if len(targets) > 1 or len(pools) > 1:
        raise InputError(
            f"config variants given: {variant!r}; expected at most one of {TARGETS} and of {POOLS}"
        )
    target = targets[0] if targets else "sides"
    config = pretrain.get_config()
    config.eval_every = 0
    config.checkpoint.every = config.total_steps
    config.tensorboard = False
    if "large" in chosen:
        config.towers.image.size = config.data.render_size = 224
        config.towers.image.update({"patch_size": 16, "width": 64, "depth": 3, "num_heads": 2})
    if "resnet" in chosen:
        _resnet(config)
    config.towers.image.pool = pools[0] if pools else "mean"
    if target == "contrast":
        _contrast(config)
    else:
        _labels(config, sides=target == "sides")
    return config


def _resnet(config: ml_collections.ConfigDict) -> None:
    """Narrow, so that a run takes minutes; group norm, because batches are small."""
    size, heads = config.towers.image.size, config.towers.image.heads
    config.towers.image = {
        "name": "resnet",
        "size": size,
        "heads": heads,
        **{"depth": 18, "width": 16, "norm": "group", "small_stem": size < 100},
    }


def _contrast(config: ml_collections.ConfigDict) -> None:
    for name in list(config.objectives):
        if name != "global_contrastive":
            del config.objectives[name]
    config.evaluators = {"retrieval": {"max_pairs": 256}, "zero_shot": {}}


def _labels(config: ml_collections.ConfigDict, *, sides: bool) -> None:
    """No report is read."""
    config.data.sided_labels = sides
    config.data.label_names = phantom.LABELS + (phantom.SIDED_LABELS if sides else ())
    image = config.towers.image
    image.heads = {"labels": len(config.data.label_names)}
    config.towers = {"image": image}
    config.objectives = {"label_classification": {"weight": 1.0}}
    config.evaluators = {"classification": {"bootstrap": 0}}
