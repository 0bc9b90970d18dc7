"""What all forms of the step compute: one config, and batches with the padding of real reports."""

import argparse
import dataclasses
import math
import re
from typing import Any

import ml_collections
import numpy as np

from benchmarks.corpora import TextRows, texts
from benchmarks.packing import rows_taken
from mmrl import config as defaults
from mmrl.data import perturb
from mmrl.data.text.tokenizer import Tokenizer
from mmrl.types import InputError

ENCODERS = "tiny, vit_<ti|s|b|l><patch>@<pixels>, resnet<18|34|50>@<pixels>"


@dataclasses.dataclass(frozen=True)
class Workload:
    """A config and the batches that every form works through.

    Attributes:
      corpus: name of the reports that the batches are made of.
      vocab_size: of the tokenizer trained on them.
      batches: types.Batch with B pairs each, all of one shape.
    """

    config: ml_collections.ConfigDict
    corpus: str
    vocab_size: int
    batches: list[dict[str, np.ndarray]]


def make(given: argparse.Namespace, count: int) -> Workload:
    """The workload that the command line asks for, with `count` batches.

    Raises:
      InputError: an encoder or a text size that is not known, options that no config accepts.
    """
    corpus, reports = texts(real=not given.phantom)
    tokenizer = Tokenizer.train(reports, vocab_size=2000)
    config = make_config(given)
    size = config.data.image_size
    rng = np.random.default_rng(0)
    batches = [draw(reports, tokenizer, given, size, rng) for _ in range(count)]
    if given.packing < 0:
        given.packing = packing_budget(batches)
    return Workload(config, corpus, tokenizer.vocab_size, batches)


def make_config(given: argparse.Namespace) -> ml_collections.ConfigDict:
    """The three losses of the paper over the encoders that were asked for; no dropout, no clipping.

    Dropout and clipping are off because forms that split their passes differently would draw
    different masks, and could then not be held against each other.
    """
    config = defaults.base()
    config.batch_size = given.batch
    config.log_every = 1  # so that the metrics are those of the last step
    config.data.text_length = given.length
    config.data.num_perturbed = given.copies
    depth, width = _text_size(given.text)
    shared = {"attention": given.attention, "scan_layers": given.scan_layers, "remat": given.remat}
    image, config.data.image_size = _image(given.encoder)
    config.model.image = image if image["name"] == "resnet" else {**image, **shared}
    heads = max(1, width // 64)
    config.model.text = {
        "name": "transformer", "width": width, "depth": depth, "num_heads": heads, **shared
    }  # fmt: skip
    config.model.embed_dim = config.model.local_dim = given.dim
    config.model.dtype = given.dtype
    config.optimizer.name = given.optimizer
    config.optimizer.weight_decay = 5e-4 if given.optimizer == "sgd" else 0.05
    config.optimizer.warmup_steps = 0
    config.optimizer.learning_rate = 1e-4
    config.optimizer.clip_norm = 0.0
    defaults.validate(config)
    return config


def packed(config: ml_collections.ConfigDict, budget: float) -> ml_collections.ConfigDict:
    """The same config with texts packed into `budget` rows per text, the batch being one group."""
    changed = ml_collections.ConfigDict(config.to_dict())
    changed.model.text.packing = budget
    changed.model.text.packing_group = config.batch_size
    return changed


def draw(
    reports: list[str],
    tokenizer: Tokenizer,
    given: argparse.Namespace,
    image_size: int,
    rng: np.random.Generator,
) -> dict[str, np.ndarray]:
    """One types.Batch: random reports, perturbed as in training, beside images of noise."""
    chosen = rng.choice(len(reports), given.batch, replace=given.batch > len(reports))
    rows = TextRows(tokenizer, given.length, perturb.PAPER_KINDS, given.copies)
    batch = rows([reports[index] for index in chosen], int(rng.integers(2**31)))
    _, group = np.unique([reports[index] for index in chosen], return_inverse=True)
    shape = (given.batch, image_size, image_size, 1)
    return {
        **batch,
        "image": rng.integers(0, 256, shape, np.uint8),
        "group": group.astype(np.int32),
        "index": chosen.astype(np.int32),
    }


def filled(batches: list[dict[str, np.ndarray]]) -> float:
    """Share of all token positions, of reports and copies, that hold tokens."""
    return float(np.mean([_candidates(batch).mean() for batch in batches]))


def packing_budget(batches: list[dict[str, np.ndarray]]) -> float:
    """The smallest budget, in whole per cent, into which every one of these batches fits."""
    taken = [rows_taken(mask, len(mask), 8, 0, 1) for mask in map(_candidates, batches)]
    return min(1.0, math.ceil(100 * float(np.max(taken))) / 100)


def _candidates(batch: dict[str, np.ndarray]) -> np.ndarray:
    """The masks of a batch, bool[B, 1+K, L]."""
    return np.concatenate([batch["token_mask"][:, None], batch["perturbed_mask"]], axis=1)


def _image(name: str) -> tuple[dict[str, Any], int]:
    """(config.model.image, image size) of an encoder's name."""
    if name == "tiny":
        return {"name": "vit", "patch_size": 8, "width": 64, "depth": 2, "num_heads": 1}, 32
    if found := re.fullmatch(r"vit_(ti|s|b|l)(\d+)@(\d+)", name):
        variant, patch, size = found.groups()
        options = {"name": "vit", "variant": variant.capitalize(), "patch_size": int(patch)}
        return options, int(size)
    if found := re.fullmatch(r"resnet(18|34|50)@(\d+)", name):
        # GLoRIA takes its regions from the third stage.
        return {"name": "resnet", "depth": int(found[1]), "region_stage": 3}, int(found[2])
    raise InputError(f"--encoder={name}; expected one of: {ENCODERS}")


def _text_size(name: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)x(\d+)", name)
    if not found:
        raise InputError(f"--text={name}; expected <layers>x<width>, such as 4x384")
    return int(found[1]), int(found[2])
