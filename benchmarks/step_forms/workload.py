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

VOCABULARY = 2000
ENCODERS = "tiny, vit_<ti|s|b|l><patch>@<pixels>, resnet<18|34|50>@<pixels>"


@dataclasses.dataclass(frozen=True)
class Workload:
    """A config and batches.

    Attributes:
      config: with the size of the vocabulary of the tokenizer trained on the reports.
      corpus: name of the corpus of the reports.
      batches: types.Batch with B pairs each, all of the same shapes.
    """

    config: ml_collections.ConfigDict
    corpus: str
    batches: list[dict[str, np.ndarray]]


def make(args: argparse.Namespace, count: int) -> Workload:
    """The workload of the given options, with `count` batches.

    Raises:
      InputError: unknown encoder or text size, or an invalid config.
    """
    corpus, reports = texts(real=not args.phantom)
    tokenizer = Tokenizer.train(reports, vocab_size=VOCABULARY)
    config = make_config(args)
    config.towers.text.vocab_size = tokenizer.vocab_size
    size = config.towers.image.size
    rng = np.random.default_rng(0)
    batches = [draw(reports, tokenizer, args, size, rng) for _ in range(count)]
    if args.packing < 0:
        args.packing = packing_budget(batches)
    return Workload(config, corpus, batches)


def make_config(args: argparse.Namespace) -> ml_collections.ConfigDict:
    """A config with the three losses of the paper and the chosen encoders.

    Dropout is off, because forms that divide their passes differently would have different masks
    and could not be compared. Gradient clipping is off as well.
    """
    config = defaults.base()
    config.batch_size = args.batch
    config.log_every = 1  # the metrics are then those of the last step
    config.data.num_perturbed = args.copies
    depth, width = _text_size(args.text)
    shared = {"attention": args.attention, "scan_layers": args.scan_layers, "remat": args.remat}
    image = _image(args.encoder)
    image["heads"] = {"embedding": args.dim, "regions": args.dim}
    config.towers.image = image if image["name"] == "resnet" else {**image, **shared}
    text = {"name": "transformer", "length": args.length, "vocab_size": VOCABULARY, "width": width}
    text |= {"depth": depth, "num_heads": max(1, width // 64), **shared}
    config.towers.text = {**text, "heads": {"embedding": args.dim, "words": args.dim}}
    config.dtype = args.dtype
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
    changed.towers.text.packing = budget
    changed.towers.text.packing_group = config.batch_size
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
        "image.pixels": rng.integers(0, 256, shape, np.uint8),
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
    return np.concatenate([batch["text.mask"][:, None], batch["perturbed.mask"]], axis=1)


def _image(name: str) -> dict[str, Any]:
    """config.towers.image of an encoder's name, without its heads."""
    if name == "tiny":
        options = {"patch_size": 8, "width": 64, "depth": 2, "num_heads": 1}
        return {"name": "vit", "size": 32, **options}
    if found := re.fullmatch(r"vit_(ti|s|b|l)(\d+)@(\d+)", name):
        variant, patch, size = found.groups()
        chosen = {"variant": variant.capitalize(), "patch_size": int(patch)}
        return {"name": "vit", "size": int(size), **chosen}
    if found := re.fullmatch(r"resnet(18|34|50)@(\d+)", name):
        # As in GLoRIA, regions come from the third stage.
        options = {"depth": int(found[1]), "region_stage": 3}
        return {"name": "resnet", "size": int(found[2]), **options}
    raise InputError(f"--encoder={name}; expected one of: {ENCODERS}")


def _text_size(name: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)x(\d+)", name)
    if not found:
        raise InputError(f"--text={name}; expected <layers>x<width>, such as 4x384")
    return int(found[1]), int(found[2])
