"""The default preset: the paper's three losses on the phantom corpus, sized for two CPU cores.

    python -m mmrl.main --config=configs/pretrain.py --workdir=runs/pretrain

`VARIANTS` are given after a colon, separated by commas: configs/pretrain.py:table,smoke.
"""

from typing import Any

import ml_collections
from ml_collections.config_dict import placeholder

from mmrl import config as defaults
from mmrl.types import InputError

VARIANTS = {
    "table": "images and reports of your own table, at config.data.path",
    "prepared": "a corpus that python -m mmrl.prepare wrote, at config.data.path",
    "smoke": "20 steps of a tiny model, for tests",
}


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The preset with the variants named after the colon."""
    chosen = defaults.variants(variant, VARIANTS)
    config = defaults.base()
    _phantom(config)
    if {"table", "prepared"} <= chosen:
        raise InputError("config variants table and prepared name two sources; expected one")
    if "table" in chosen:
        _table(config)
    if "prepared" in chosen:
        _prepared(config)
    if "smoke" in chosen:
        _smoke(config)
    return config


def _phantom(config: ml_collections.ConfigDict) -> None:
    """A size that installs, trains and evaluates in less than ten minutes on two cores."""
    config.total_steps = 320
    config.batch_size = 32
    config.eval_every = 160
    # The paper's 0.1 leaves this loss near log(1+K), where it starts, for the first 180 of these
    # few steps; 0.5 leaves that plateau within 40 and costs the global loss nothing.
    config.objectives.perturbed_discrimination.weight = 0.5
    config.data.length = 6000
    config.data.seed = 0
    config.data.render_size = 64
    config.data.fractions = (0.8, 0.1, 0.1)
    config.data.cache_images = True
    config.data.num_perturbed = 3
    image, text = config.towers.image, config.towers.text
    image.update({"patch_size": 8, "width": 96, "depth": 4, "num_heads": 3})
    text.update({"length": 72, "width": 96, "depth": 2, "num_heads": 3})
    image.heads.regions = text.heads.words = 64


def _table(config: ml_collections.ConfigDict) -> None:
    _real(config)
    table(config.data)


def _prepared(config: ml_collections.ConfigDict) -> None:
    _real(config)
    del config.data.fractions
    prepared(config.data)


def _real(config: ml_collections.ConfigDict) -> None:
    """What suits radiographs better than phantoms, without options of the phantom source."""
    for key in ("length", "seed", "render_size"):
        del config.data[key]
    config.towers.image.size = 128
    config.towers.image.patch_size = 16
    config.total_steps = 200


def table(data: ml_collections.ConfigDict) -> None:
    """Sets the options of the data for a table of image paths and reports."""
    data.source = "table"
    data.update(table_options())
    data.sections = ("report",)
    data.fractions = (0.7, 0.15, 0.15)
    _jitter(data)


def prepared(data: ml_collections.ConfigDict) -> None:
    """Sets the options of the data for a corpus made by python -m mmrl.prepare."""
    data.source = "prepared"
    data.path = placeholder(str)  # required
    data.sections = ("findings", "impression")
    _jitter(data)


def _jitter(data: ml_collections.ConfigDict) -> None:
    data.crop_scale = (0.8, 1.0)
    data.brightness = 0.1
    data.contrast = 0.1


def table_options() -> dict[str, Any]:
    """Options that the source `mmrl.data.sources.table` alone has, the user's to fill in."""
    optional = ("study", "projection", "id", "split", "license")
    return {
        "path": placeholder(str),  # required
        "root": placeholder(str),  # default: the folder of the table
        "image_column": "image",
        "report_columns": ("report",),
        "patient_column": "patient_id",  # "": every row is a patient of its own
        **{f"{column}_column": placeholder(str) for column in optional},
        "label_columns": (),
    }


def _smoke(config: ml_collections.ConfigDict) -> None:
    short(config)
    config.batch_size = 16
    config.data.num_perturbed = 2
    size = {"width": 32, "depth": 1, "num_heads": 2}
    config.towers.image.update({"patch_size": 8, **size})
    config.towers.text.update(size)


def short(config: ml_collections.ConfigDict) -> None:
    """20 steps on small inputs: what all variants "smoke" share; encoders are left to them."""
    config.total_steps = 20
    config.log_every = 5
    config.eval_every = 10
    config.checkpoint.every = 5
    config.optimizer.warmup_steps = 5
    config.towers.image.size = 32
    config.towers.text.length = 48
    if config.data.source == "phantom":
        config.data.length = 400
        config.data.render_size = 32
    config.towers.image.heads = {"embedding": 32, "regions": 32}
    config.towers.text.heads = {"embedding": 32, "words": 32}
    config.evaluators.retrieval.max_pairs = 32
