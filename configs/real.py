"""Real figures and radiographs with their captions and notes, trained from scratch.

    python -m benchmarks.real_pairs --workdir=runs/real --out=docs/results

writes the tables that this preset reads, trains its variants and compares them. At most one corpus
and one pool of `VARIANTS` are given after the colon; the default is roco,zones. The table is at
config.data.path, its images are below config.data.root.
"""

import ml_collections

from configs import pretrain
from mmrl import config as defaults
from mmrl.types import InputError

VARIANTS = {
    "roco": "radiology figures with captions (Pelka et al. 2018), divided by article",
    "covid": "chest radiographs with notes (Cohen et al. 2020), divided by patient",
    "mean": "the image feature is the mean over the patches",
    "zones": "the means of 4 x 4 zones, concatenated",
    "attention": "attention of a learned query over the patches",
}
CORPORA = ("roco", "covid")
POOLS = ("mean", "zones", "attention")

# All prompts were written before the first run, none was changed after.
MODALITIES = {
    "CT": ("CT scan", "computed tomography"),
    "MRI": ("MRI", "magnetic resonance imaging"),
    "X-ray": ("X-ray", "radiograph"),
    "ultrasound": ("ultrasound", "sonography"),
}
"""Label column -> its names in prompts."""

_PROMPTS = ("{name}.", "{name} image.", "{name} of the patient.", "{name} showing a lesion.")
_VIEWS = ("chest radiograph.", "chest X-ray.", "view of the chest.")


def get_config(variant: str = "roco,zones") -> ml_collections.ConfigDict:
    """The preset of one corpus with one pool."""
    given = defaults.variants(variant, VARIANTS)
    corpus, pool = one_of(given, CORPORA, "roco"), one_of(given, POOLS, "zones")
    config = pretrain.get_config("table")
    config.batch_size = 32
    config.log_every = 50
    config.eval_every = 0
    config.tensorboard = False
    image, text = config.towers.image, config.towers.text
    image.update({"size": 96, "patch_size": 8, "pool": pool})
    del config.objectives.sentence_image
    config.inputs.sentences = {"num_sentences": 4, "max_tokens": 40}
    config.data.name = corpus
    config.data.fractions = (0.8, 0.2, 0.0)
    config.evaluators = {
        "retrieval": {},
        "zero_shot": {"tasks": modality_tasks() if corpus == "roco" else view_tasks()},
        "sentence_pointing": {"optional": True},
    }
    if corpus == "roco":
        config.data.patient_column = "article_id"
        config.data.label_columns = tuple(MODALITIES)
        # Captions seldom deny anything, and "normal coronary arteries" is what a figure shows.
        config.objectives.sentence_contrastive.reads = {"valid": "sentences.valid"}
        config.total_steps = 350
        text.update({"length": 80, "packing": 0.6})
    else:
        config.data.projection_column = "view"
        config.data.label_columns = ("lateral",)
        config.total_steps = 150
        text.update({"length": 128, "packing": 0.7})
    config.checkpoint.every = config.total_steps
    return config


def one_of(given: set[str], choices: tuple[str, ...], default: str) -> str:
    """The one of `choices` that is among the variants given, else the default."""
    chosen = [choice for choice in choices if choice in given]
    if len(chosen) > 1:
        raise InputError(f"config variants {', '.join(chosen)}; expected at most one of them")
    return chosen[0] if chosen else default


def modality_tasks() -> dict[str, dict[str, object]]:
    """One task per modality: its own prompts against those of all others."""
    worded = {
        label: tuple(_capital(prompt.format(name=name)) for name in names for prompt in _PROMPTS)
        for label, names in MODALITIES.items()
    }
    return {
        label: {
            "positive": own,
            "negative": tuple(p for other in worded for p in worded[other] if other != label),
            "present": (label, ""),
        }
        for label, own in worded.items()
    }


def view_tasks() -> dict[str, dict[str, object]]:
    """Lateral against frontal radiographs."""
    frontal = ("Frontal", "PA", "AP")
    return {
        "lateral": {
            "positive": tuple(f"Lateral {what}" for what in _VIEWS),
            "negative": tuple(f"{view} {what}" for view in frontal for what in _VIEWS),
            "present": ("lateral", ""),
        }
    }


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
