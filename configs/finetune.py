"""Fine-tunes a pretrained image tower on labels, as BenchX does (Zhou et al. 2024).

    python -m mmrl.main --config=configs/finetune.py --config.towers.image.init=runs/pretrain \
        --workdir=runs/finetune

Labels, seed and splits of the phantoms are those of `configs/pretrain.py`, and so is the image
tower; that of another preset needs its options. `VARIANTS` are given after a colon, separated by
commas: configs/finetune.py:sides,layers.
"""

import ml_collections
from ml_collections.config_dict import placeholder

from configs import pretrain
from mmrl import config as defaults
from mmrl.data.phantom import study as phantom
from mmrl.types import InputError

VARIANTS = {
    "labels": "trains on the ten findings of phantoms (the default)",
    "sides": "trains on the ten findings, and the two sides of each",
    "table": "trains on the columns label_columns of your own table",
    "scratch": "starts from random values, with one learning rate, for comparison",
    "layers": "the learning rate falls from block to block, as in BEiT and MAE",
    "smoke": "20 steps of a tiny model, for tests",
}
TARGETS = ("labels", "sides", "table")


def get_config(variant: str = "labels") -> ml_collections.ConfigDict:
    """The preset with the variants named after the colon."""
    chosen = defaults.variants(variant, VARIANTS)
    targets = [one for one in TARGETS if one in chosen]
    if len(targets) > 1 or {"scratch", "layers"} <= chosen:
        raise InputError(
            f"config variants given: {variant!r}; expected at most one of {TARGETS}, and one of "
            "('scratch', 'layers')"
        )
    base = [name for name in ("table", "smoke") if name in chosen]
    config = pretrain.get_config(",".join(base))
    if "table" in chosen:
        _table(config)
    else:
        config.data.sided_labels = "sides" in chosen
        config.data.label_names = phantom.LABELS + (
            phantom.SIDED_LABELS if "sides" in chosen else ()
        )
    image = config.towers.image
    # Layer norm, then a linear layer.
    image.heads = {"labels": {"width": len(config.data.label_names) or 1, "kind": "normed"}}
    config.towers = {"image": image}
    config.inputs = {}
    config.objectives = {"label_classification": {"weight": 1.0}}
    config.evaluators = {"classification": {"bootstrap": 0}}
    _schedule(config, short="smoke" in chosen)
    if "scratch" not in chosen:
        config.towers.image.init = placeholder(str)  # required
        _rates(config, layers="layers" in chosen)
    return config


def _table(config: ml_collections.ConfigDict) -> None:
    """No report is read; the user states label_columns, label_names and the width of the head."""
    config.data.report_columns = ()


def _schedule(config: ml_collections.ConfigDict, *, short: bool) -> None:
    """Warm-up over 50 steps; stops when ten evaluations in a row bring no better AUROC."""
    stop_early(config, "classification/macro_auroc", patience=2 if short else 10)
    if short:
        config.eval_every = 5
        return
    config.total_steps = 600
    config.eval_every = 30
    config.optimizer.warmup_steps = 50
    config.optimizer.clip_norm = 1.0


def stop_early(config: ml_collections.ConfigDict, metric: str, *, patience: int) -> None:
    """Keeps the checkpoint with the best `metric`, and the last one; logs the validation loss."""
    config.validation_loss = True
    config.best.metric, config.best.patience = metric, patience
    config.checkpoint.keep = 1
    config.tensorboard = False


def _rates(config: ml_collections.ConfigDict, *, layers: bool) -> None:
    """What is pretrained learns slower than the head."""
    if layers:
        config.optimizer.layer_decay = 0.75
    else:
        slow_encoder(config, "image")


def slow_encoder(config: ml_collections.ConfigDict, tower: str) -> None:
    """A tenth of the learning rate for the encoder of a tower."""
    slow = [
        {**rule, "learning_rate": 0.1, "match": rf"(?=towers/{tower}/encoder/){rule['match']}"}
        for rule in config.optimizer.rules
    ]
    config.optimizer.rules = (*slow, *config.optimizer.rules)
