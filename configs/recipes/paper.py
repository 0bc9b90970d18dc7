"""The method as published (Zhong, Batmanghelich and Sun 2025): ResNet-50 and BERT-base.

    python -m mmrl.prepare openi --input=downloads/openi --output=corpora/openi
    python -m mmrl.main --config=configs/recipes/paper.py:prepared \
        --config.data.path=corpora/openi \
        --config.data.waive_leaks="report 0.4 normal findings repeat" --workdir=runs/paper
    python -m mmrl.plan --config=configs/recipes/paper.py --topology=cpu:1

Without a variant it trains on your own table, as configs/pretrain.py:table does. `VARIANTS` are
given after a colon. "The script" in the comments is the authors' training script, scripts/our.py of
github.com/ygritte723/perturbed_vlm at ce3ffb7; "GLoRIA" is github.com/marshuang80/gloria at
1a89c15. docs/training.md lists where this recipe differs from the script.
"""

import ml_collections

from configs import pretrain
from configs.recipes import vit_b16
from mmrl import config as defaults

VARIANTS = vit_b16.VARIANTS


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The preset with the variants named after the colon."""
    chosen = defaults.variants(variant, VARIANTS)
    config = defaults.base()
    recipe(config)
    pretrain.table(config.data)
    vit_b16.source(config, chosen)
    _data(config.data)
    if "smoke" in chosen:
        smoke(config)
    return config


def recipe(config: ml_collections.ConfigDict) -> None:
    """Everything but the data."""
    config.batch_size = 12  # also the images of a batch norm; devices must divide it
    config.total_steps = 75_000  # 150 epochs of 6,000 pairs
    config.log_every = 50
    config.eval_every = 2500
    config.checkpoint.every = 500
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 1.5e-3
    config.optimizer.warmup_steps = 0
    config.optimizer.end_fraction = 0.0  # of a cosine
    config.optimizer.momentum = 0.9
    # torch.optim.SGD adds the decay to the gradient, before the momentum, for all parameters, also
    # biases, normalisations and temperatures; nothing is clipped.
    config.optimizer.weight_decay = 5e-4
    config.optimizer.rules = ({"match": ".*"},)
    config.optimizer.clip_norm = 0.0
    config.objectives = {
        "global_contrastive": {"weight": 1.0, "temperature": 0.07},
        "local_contrastive": {"weight": 0.1, "temperatures": (4.0, 5.0, 10.0)},
        "perturbed_discrimination": {"weight": 0.1, "temperature": 0.07},
    }
    config.towers = {"image": _image(), "text": _text()}


def _image() -> dict[str, object]:
    return {
        "name": "resnet",
        "depth": 50,
        "size": 224,
        # Grey levels from 0 to 1; the script copies them to three channels.
        "pixel_mean": 0.0,
        "pixel_std": 1.0,
        "norm": "batch",
        "pool": "mean",
        # GLoRIA and the script: the feature map after layer3, projected by a 1x1 convolution
        # without bias to the width of the words.
        "region_stage": 3,
        "heads": {"embedding": {"width": 128, "kind": "mlp"}, "regions": 768},
    }


def _text() -> dict[str, object]:
    return {
        "name": "transformer",
        "variant": "B",  # BERT-base: 12 layers, width 768, 12 heads
        "vocab_size": 30_522,  # that of BERT
        # The script cuts reports after 50 words and then after 50 tokens, begin and end included. A
        # word has at least one token, so the second cut alone decides. Both follow the
        # perturbation: a copy is made of the whole report.
        "length": 50,
        "pool": "cls",
        "dropout": 0.1,  # that of BERT
        "word_layers": 4,  # GLoRIA and the script sum the last four
        "heads": {"embedding": {"width": 128, "kind": "mlp"}, "words": 768},
        "scan_layers": True,  # changes no result; compiles one layer instead of twelve
    }


def _data(data: ml_collections.ConfigDict) -> None:
    """What the script does whatever the source: findings, every image, no augmentation."""
    if data.source != "table":
        data.sections = ("findings",)
    data.views = "each"
    data.num_perturbed = 9  # one copy of each of the nine kinds
    data.crop_scale = (1.0, 1.0)
    data.load_size = 0
    data.brightness = data.contrast = 0.0
    if data.source == "table":
        data.fractions = (0.93, 0.035, 0.035)  # 6,000 of the 6,469 images of Open-i train
    data.num_threads = 8


def smoke(config: ml_collections.ConfigDict) -> None:
    """A model of the same make in which everything is small."""
    vit_b16.shrink(config)
    config.batch_size = 16
    config.towers.image.update({"depth": 18, "width": 8, "small_stem": True})
    config.towers.text.update({"variant": None, "width": 32, "depth": 4, "num_heads": 2})
    embedding = {"width": 32, "kind": "mlp"}
    config.towers.image.heads = {"embedding": embedding, "regions": 32}
    config.towers.text.heads = {"embedding": embedding, "words": 32}
