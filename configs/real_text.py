"""Real pairs from a pretrained text encoder, to see where its knowledge helps.

    python -m mmrl.main --config=configs/real_text.py:roco --config.data.path=runs/text/roco.csv \
        --config.data.root=roco_pairs --config.towers.text.name=weights/minilm --workdir=runs/text/1

`python -m benchmarks.pretrained_text` writes the tables, trains and compares all starts. At most
one corpus of `VARIANTS` is given after the colon; the default is roco. The global loss alone is
trained, so that the starts differ in nothing else.
"""

import ml_collections

from configs import finetune, real
from mmrl import config as defaults

VARIANTS = {
    "roco": "radiology figures with captions (Pelka et al. 2018)",
    "covid": "chest radiographs with notes (Cohen et al. 2020)",
    "openi": "findings with the impression of a report (Demner-Fushman et al. 2016)",
    "slow": "a tenth of the learning rate for the text encoder",
}
CORPORA = ("roco", "covid", "openi")
SECTIONS = ("findings", "impression")


def get_config(variant: str = "roco") -> ml_collections.ConfigDict:
    """The preset of one corpus."""
    given = defaults.variants(variant, VARIANTS)
    corpus = real.one_of(given, CORPORA, "roco")
    config = _sections() if corpus == "openi" else _images(corpus)
    if "slow" in given:
        finetune.slow_encoder(config, "text")
    return config


def _images(corpus: str) -> ml_collections.ConfigDict:
    """The images and poolers of configs/real.py."""
    config = real.get_config(corpus)
    config.inputs = {}
    config.objectives = {"global_contrastive": {"weight": 1.0, "temperature": 0.07}}
    del config.evaluators.sentence_pointing
    config.towers.image.heads = {"embedding": 128}
    _text(config, length=48 if corpus == "roco" else 96)
    config.total_steps = 50 if corpus == "roco" else 20
    _schedule(config)
    return config


def _sections() -> ml_collections.ConfigDict:
    """One text tower reads both parts of a report."""
    config = real.get_config("roco")
    config.data.update({"name": "openi", "sections": SECTIONS, "report_columns": SECTIONS})
    config.data.update({"image_column": "", "patient_column": "uid", "label_columns": ()})
    config.inputs = {
        "findings": {"name": "text", "sections": SECTIONS[:1], "max_tokens": 64},
        "impression": {"name": "text", "sections": SECTIONS[1:], "max_tokens": 32},
    }
    config.towers = {"text": config.towers.text}
    config.towers.text.input = "findings"
    reads = {"image": "text@findings.embedding", "text": "text@impression.embedding"}
    config.objectives = {"global_contrastive": {"weight": 1.0, "temperature": 0.07, "reads": reads}}
    config.evaluators = {"retrieval": {"reads": reads}}
    _text(config, length=64)
    config.total_steps = 40
    _schedule(config)
    return config


def _text(config: ml_collections.ConfigDict, *, length: int) -> None:
    config.towers.text.length = length
    config.towers.text.heads = {"embedding": 128}


def _schedule(config: ml_collections.ConfigDict) -> None:
    config.optimizer.warmup_steps = config.total_steps // 10
    config.checkpoint.every = config.total_steps
