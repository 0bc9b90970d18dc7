"""The default preset: what we recommend, on the phantom corpus, sized for two CPU cores.

    python -m mmrl.main --config=configs/pretrain.py --workdir=runs/pretrain

`VARIANTS` are given after a colon, separated by commas: configs/pretrain.py:table,smoke.
"""

from typing import Any

import ml_collections
from ml_collections.config_dict import placeholder

from mmrl import config as defaults
from mmrl.data import perturb
from mmrl.types import InputError

VARIANTS = {
    "paper": "the paper's three losses and pooling instead of what we recommend",
    "table": "images and reports of your own table, at config.data.path",
    "prepared": "a corpus that python -m mmrl.prepare wrote, at config.data.path",
    "smoke": "20 steps of a tiny model, for tests",
}


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The preset with the variants named after the colon."""
    chosen = defaults.variants(variant, VARIANTS)
    config = defaults.base()
    _phantom(config)
    if "paper" not in chosen:
        _recommended(config)
    if {"table", "prepared"} <= chosen:
        raise InputError("config variants table and prepared name two sources; expected one")
    if "table" in chosen:
        _table(config)
    if "prepared" in chosen:
        _prepared(config)
    if "smoke" in chosen:
        _smoke(config)
    return config


def of_300_steps(*, smoke: bool) -> ml_collections.ConfigDict:
    """The variant `paper` for 300 steps, or for 20 of a tiny model: a start for short presets."""
    if smoke:
        return get_config("paper,smoke")
    config = get_config("paper")
    config.update({"total_steps": 300, "eval_every": 0, "checkpoint": {"every": 300, "keep": 1}})
    return config


def narrow(config: ml_collections.ConfigDict, *, patch_size: int = 4) -> None:
    """Towers of a fifth of the cost, for images of 32 pixels."""
    small = {"width": 64, "num_heads": 2}
    config.towers.image.update({"size": 32, "patch_size": patch_size, "depth": 2, **small})
    if "text" in config.towers:
        config.towers.text.update({"depth": 1, **small})


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


def _recommended(config: ml_collections.ConfigDict) -> None:
    """Our recipe at the size of `_phantom`; its text tower can be shallower and trains longer."""
    recommend(config)
    config.total_steps = 1200
    config.eval_every = 300
    config.towers.text.depth = 1
    # The texts of 16 reports fill 0.29 rows for each text on average, and hardly ever above 0.33.
    config.towers.text.packing = 0.33
    config.inputs.sentences.max_tokens = 20  # the longest sentence of a phantom has 17
    config.evaluators.zero_shot = {}


def recommend(config: ml_collections.ConfigDict) -> None:
    """What we recommend in place of the paper's recipe; docs/results/README.md says why.

    Poolers that keep place, words that know their neighbours, contrasts of single sentences, and
    copies of clinical kinds beside the paper's. `configs/recipes/paper.py` is the paper's recipe.
    """
    image, text = config.towers.image, config.towers.text
    # The mean over all patches forgets where things are; 4 x 4 means do not.
    image.pool = "zones"
    # After one block a feature still belongs to its patch; those of the last one may not.
    image.region_layer = 1
    text.pool = "mean"
    text.convolution = 5
    text.heads = {"embedding": text.heads.embedding, "sentence": image.heads.regions}
    # Half of the sentences become the finding they name, because prompts are no sentences.
    config.inputs.sentences = {"num_sentences": 6, "sentence_terms": 0.5}
    perturbations = dict.fromkeys(config.data.perturbations, 1.0)
    share = len(perturbations) / len(perturb.CLINICAL_KINDS)
    del config.data.perturbations  # names give way to names with weights
    config.data.perturbations = perturbations | dict.fromkeys(perturb.CLINICAL_KINDS, share)
    config.objectives = {
        "global_contrastive": config.objectives.global_contrastive,
        # Without `relative`, much of what it learns is which wordings are those of copies. With it,
        # the paper's weight suffices; 0.5 gains order of words and loses left against right.
        "perturbed_discrimination": {"weight": 0.1, "temperature": 0.07, "relative": True},
        # Of sentences that state something, with the regions: where is it?
        "sentence_contrastive": {"weight": 0.5},
        # Of all sentences and phrases, with the whole image: short texts, as prompts are.
        "sentence_image": {
            "name": "sentence_contrastive",
            "weight": 0.5,
            "reads": {
                "regions": "image.embedding",
                "sentences": "text@sentences.embedding",
                "valid": "sentences.valid",
            },
        },
    }
    config.evaluators = {
        "retrieval": {"max_pairs": 256},
        "structure": {},
        "sentence_pointing": {"optional": True},
    }


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
    if "zero_shot" in config.evaluators:
        del config.evaluators.zero_shot  # it needs findings or labels
    if "sentences" in config.inputs:
        del config.inputs.sentences.max_tokens


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
    if "region_layer" in config.towers.image:
        config.towers.image.region_layer = 1
    if "sentences" in config.inputs:
        config.inputs.sentences.num_sentences = 3


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
    for tower in (config.towers.image, config.towers.text):
        tower.heads = dict.fromkeys(tower.heads, 32)
    config.evaluators.retrieval.max_pairs = 32
