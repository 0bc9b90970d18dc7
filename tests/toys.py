"""Small inputs shared by tests: a corpus without files and a config that compiles in seconds."""

import functools
import re
import runpy

import jax
import ml_collections
import numpy as np

from mmrl import sharding
from mmrl.data.corpus import Corpus, read_corpus
from mmrl.data.pipeline import Options, training_batches
from mmrl.data.tokenizer import Tokenizer
from mmrl.types import ImageRef, Record
from tests.conftest import ROOT

WORDS = re.findall(
    r"\w+",
    "small large left right effusion nodule opacity upper lower lung clear normal heart size "
    "enlarged mild severe no acute stable tube in place bases",
)


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (40, 32), np.uint8)


class ToySource:
    """Two studies per patient; every seventh report is the same; texts of 4 to 20 words."""

    def __init__(self, length: int) -> None:
        self.rejects: list = []
        self.total = length

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, index: int) -> Record:
        rng = np.random.default_rng(index)
        words = rng.choice(WORDS, rng.integers(4, 21))
        text = "Normal chest." if index % 7 == 0 else " ".join(words).capitalize() + "."
        return Record(
            id=f"toy:{index}",
            source="toy",
            patient_id=f"p{index // 2}",
            study_id=f"s{index}",
            group_key=f"p{index // 2}",
            split="train",
            images=(ImageRef(str(index), functools.partial(noise, index)),),
            sections={"findings": text},
        )


@functools.cache
def corpus(length: int = 64) -> Corpus:
    return read_corpus("toy/train", ToySource(length), sections=("findings",))


@functools.cache
def tokenizer() -> Tokenizer:
    return Tokenizer.train(corpus().texts, vocab_size=300)


def batches(config: ml_collections.ConfigDict, count: int = 1) -> list[dict[str, np.ndarray]]:
    """The first batches that a run of `config` on the toy corpus gets."""
    iterator = training_batches(
        corpus(),
        tokenizer(),
        Options.from_config(config.data),
        seed=0,
        batch_size=config.batch_size,
        with_perturbed=True,
    )
    result = [next(iterator) for _ in range(count)]
    iterator.close()
    return result


def one_device() -> jax.sharding.Mesh:
    return sharding.make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, devices=jax.devices()[:1])


def config(**changes) -> ml_collections.ConfigDict:
    """The shipped smoke config, made smaller; `changes` are dotted keys with "__" for dots."""
    chosen = runpy.run_path(str(ROOT / "configs" / "pretrain.py"))["get_config"]("smoke")
    chosen.batch_size = 8
    chosen.data.text_length = 24
    for side in ("image", "text"):
        chosen.model[side].depth = 1
    for key, value in changes.items():
        *parents, last = key.split("__")
        node = chosen
        for part in parents:
            node = node[part]
        node[last] = value
    return chosen
