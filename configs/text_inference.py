"""Judges a text tower by inference on sentence pairs, or fine-tunes it on them (MedNLI, RadNLI).

    python -m mmrl.main --config=configs/text_inference.py --config.data.path=mednli \
        --config.towers.text.init=runs/pretrain \
        --config.towers.text.tokenizer=runs/pretrain/tokenizer.model --workdir=runs/mednli

Premise and hypothesis are one text with a mark between them, and a head of three classes is trained
with the tower. The text tower is that of `configs/pretrain.py`; that of another preset needs its
options. `VARIANTS` are given after a colon, separated by commas.
"""

import ml_collections
from ml_collections.config_dict import placeholder

from configs import finetune, pretrain
from mmrl import config as defaults
from mmrl.data.reading.sentence_pairs import LABELS

VARIANTS = {
    "frozen": "data and evaluator for a head on frozen features; for mmrl.evaluate",
    "radnli": "RadNLI, whose split val fits the frozen head; it has no train",
    "scratch": "starts from random values, with one learning rate, for comparison",
    "smoke": "20 steps of a tiny model, for tests",
}
SECTIONS = ("premise", "hypothesis")
MARK = " | "  # between premise and hypothesis, which need not end with a full stop


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The preset with the variants named after the colon."""
    chosen = defaults.variants(variant, VARIANTS)
    config = pretrain.get_config("table,smoke" if "smoke" in chosen else "table")
    data = {key: config.data[key] for key in config.data if key in defaults.settings.KEYS}
    config.data = ml_collections.ConfigDict(data)
    config.data.source = "radnli" if "radnli" in chosen else "mednli"
    config.data.path = placeholder(str)
    config.data.sections = SECTIONS
    config.data.label_names = LABELS
    if "frozen" in chosen:
        config.evaluators = {"text_inference": {"fit": "val" if "radnli" in chosen else "train"}}
        return config
    _finetune(config, pretrained="scratch" not in chosen, short="smoke" in chosen)
    return config


def _finetune(config: ml_collections.ConfigDict, *, pretrained: bool, short: bool) -> None:
    """As `configs/finetune.py` does for images."""
    text = config.towers.text
    text.heads = {"labels": {"width": len(LABELS), "kind": "normed"}}
    config.towers = {"text": text}
    config.inputs = {"text": {"separator": MARK}}
    logits = {"reads": {"logits": "text.labels"}}
    config.objectives = {"class_classification": {"weight": 1.0, **logits}}
    config.evaluators = {"classification": {"kind": "classes", "bootstrap": 0, **logits}}
    finetune.stop_early(config, "classification/accuracy", patience=2 if short else 10)
    if short:
        config.eval_every = 10
    else:
        config.total_steps, config.eval_every = 2000, 100
        config.optimizer.warmup_steps, config.optimizer.clip_norm = 50, 1.0
    if pretrained:
        text.init = text.tokenizer = placeholder(str)  # required
        finetune.slow_encoder(config, "text")
