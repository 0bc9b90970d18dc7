"""The config and the batches that all forms of the step use."""

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
    """A config and batches.

    Attributes:
      corpus: name of the corpus of the reports.
      vocab_size: of the tokenizer trained on them.
      batches: types.Batch with B pairs each, all of the same shapes.
    """

    config: ml_collections.ConfigDict
    corpus: str
    vocab_size: int
    batches: list[dict[str, np.ndarray]]


def make(args: argparse.Namespace, count: int) -> Workload:
    """The workload of the given options, with `count` batches.

    Raises:
      InputError: unknown encoder or text size, or an invalid config.
    """
    corpus, reports = texts(real=not args.phantom)
    tokenizer = Tokenizer.train(reports, vocab_size=2000)
    config = make_config(args)
    size = config.data.image_size
    rng = np.random.default_rng(0)
    batches = [draw(reports, tokenizer, args, size, rng) for _ in range(count)]
    if args.packing < 0:
        args.packing = packing_budget(batches)
    return Workload(config, corpus, tokenizer.vocab_size, batches)


def make_config(args: argparse.Namespace) -> ml_collections.ConfigDict:
    """A config with the three losses of the paper and the chosen encoders.

    Dropout is off, because forms that divide their passes differently would have different masks
    and could not be compared. Gradient clipping is off as well.
    """
    config = defaults.base()
    config.batch_size = args.batch
    config.log_every = 1  # the metrics are then those of the last step
    config.data.text_length = args.length
    config.data.num_perturbed = args.copies
    depth, width = _text_size(args.text)
    shared = {"attention": args.attention, "scan_layers": args.scan_layers, "remat": args.remat}
    image, config.data.image_size = _image(args.encoder)
    config.model.image = image if image["name"] == "resnet" else {**image, **shared}
    heads = max(1, width // 64)
    config.model.text = {
        "name": "transformer", "width": width, "depth": depth, "num_heads": heads, **shared
    }  # fmt: skip
    config.model.embed_dim = config.model.local_dim = args.dim
    config.model.dtype = args.dtype
    config.optimizer.name = args.optimizer
    config.optimizer.weight_decay = 5e-4 if args.optimizer == "sgd" else 0.05
    config.optimizer.warmup_steps = 0
    config.optimizer.learning_rate = 1e-4
    config.optimizer.clip_norm = 0.0
    defaults.validate(config)
    return config


def packed(config: ml_collections.ConfigDict, budget: float) -> ml_collections.ConfigDict:
    """The same config with text packing: `budget` rows per text, and the batch as one group."""
    changed = ml_collections.ConfigDict(config.to_dict())
    changed.model.text.packing = budget
    changed.model.text.packing_group = config.batch_size
    return changed


def draw(
    reports: list[str],
    tokenizer: Tokenizer,
    args: argparse.Namespace,
    image_size: int,
    rng: np.random.Generator,
) -> dict[str, np.ndarray]:
    """A types.Batch of random reports, perturbed as in training, and images of noise."""
    chosen = rng.choice(len(reports), args.batch, replace=args.batch > len(reports))
    rows = TextRows(tokenizer, args.length, perturb.PAPER_KINDS, args.copies)
    batch = rows([reports[index] for index in chosen], int(rng.integers(2**31)))
    _, group = np.unique([reports[index] for index in chosen], return_inverse=True)
    shape = (args.batch, image_size, image_size, 1)
    return {
        **batch,
        "image": rng.integers(0, 256, shape, np.uint8),
        "group": group.astype(np.int32),
        "index": chosen.astype(np.int32),
    }


def filled(batches: list[dict[str, np.ndarray]]) -> float:
    """Share of the token positions of reports and copies that hold tokens."""
    return float(np.mean([_candidates(batch).mean() for batch in batches]))


def packing_budget(batches: list[dict[str, np.ndarray]]) -> float:
    """The smallest budget, rounded up to whole per cent, that no batch exceeds."""
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
        # As in GLoRIA, regions come from the third stage.
        return {"name": "resnet", "depth": int(found[1]), "region_stage": 3}, int(found[2])
    raise InputError(f"--encoder={name}; expected one of: {ENCODERS}")


def _text_size(name: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)x(\d+)", name)
    if not found:
        raise InputError(f"--text={name}; expected <layers>x<width>, such as 4x384")
    return int(found[1]), int(found[2])
