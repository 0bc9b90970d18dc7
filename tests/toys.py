"""Small inputs shared by tests: a corpus without files and a config that compiles in seconds."""

import functools
import json
import re
import runpy
from pathlib import Path

import cv2
import jax
import ml_collections
import numpy as np
import pyarrow.parquet as pq
from array_record.python.array_record_module import ArrayRecordWriter

from mmrl import files, wiring
from mmrl.data.batches.pipeline import BatchIterator, training_batches
from mmrl.data.corpus import Corpus, read_corpus
from mmrl.data.inputs import base as inputs
from mmrl.data.reading import shards
from mmrl.data.sampling import Groups
from mmrl.data.text.tokenizer import Tokenizer
from mmrl.devices import sharding
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
            leakage_unit=f"p{index // 2}",
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


def tokenizers(config: ml_collections.ConfigDict) -> dict[str, Tokenizer]:
    """One for every text tower of a config."""
    towers = wiring.wire(config)[0].wanted()
    kinds = {name: wiring.kind_of(name, config.towers[name]) for name in towers}
    return {name: tokenizer() for name, kind in kinds.items() if kind == "text"}


def feed(
    config: ml_collections.ConfigDict,
    examples: Corpus | None = None,
    tokenized: dict[str, Tokenizer] | None = None,
    *,
    seed: int = 0,
    rows: np.ndarray | None = None,
    drawn: np.ndarray | None = None,
    groups: Groups | None = None,
) -> BatchIterator:
    """The training batches of a run of `config`, by default on the toy corpus."""
    return training_batches(
        corpus() if examples is None else examples,
        inputs.make(config, wiring.wire(config)[0]),
        tokenizers(config) if tokenized is None else tokenized,
        config.data,
        seed=seed,
        batch_size=config.batch_size,
        rows=rows,
        drawn=drawn,
        groups=groups,
    )


def batches(
    config: ml_collections.ConfigDict, count: int = 1, *given, start: int = 0, **changes
) -> list[dict[str, np.ndarray]]:
    """Batches from `start` on; further arguments are those of `feed`."""
    iterator = feed(config, *given, **changes)
    iterator.set_state({"global_next_index": start * config.batch_size})
    result = [next(iterator) for _ in range(count)]
    iterator.close()
    return result


def without_copies(chosen: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The config without the objective that reads perturbed copies."""
    del chosen.objectives.perturbed_discrimination
    return chosen


def one_device() -> jax.sharding.Mesh:
    return sharding.make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, devices=jax.devices()[:1])


def config(**changes) -> ml_collections.ConfigDict:
    """A smaller smoke config; `changes` are keys with "__" for dots."""
    chosen = runpy.run_path(str(ROOT / "configs" / "pretrain.py"))["get_config"]("paper,smoke")
    chosen.batch_size = 8
    chosen.towers.text.length = 24
    chosen.towers.text.vocab_size = tokenizer().vocab_size
    return changed(chosen, **changes)


def changed(chosen: ml_collections.ConfigDict, **changes) -> ml_collections.ConfigDict:
    """A config with other values; keys as in `config`."""
    for key, value in changes.items():
        *parents, last = key.split("__")
        node = chosen
        for part in parents:
            node = node[part]
        node[last] = value
    return chosen


def prepare(folder: Path, records: list[Record], *, per_shard: int = 8) -> Path:
    """Writes records as a prepared corpus, with JPEG images in their original size."""
    folder.mkdir()
    rows = []
    for start in range(0, len(records), per_shard):
        name = f"all-{start // per_shard:05d}.array_record"
        writer = ArrayRecordWriter(str(folder / name), shards.WRITER_OPTIONS)
        for position, record in enumerate(records[start : start + per_shard]):
            stored = [_stored(image) for image in record.images]
            writer.write(shards.pack_payload(record, stored))
            rows.append({**shards.index_row(record, stored), "shard": name, "position": position})
        writer.close()
    sections = dict.fromkeys(name for record in records for name in record.sections)
    pq.write_table(shards.index_table(rows, tuple(sections)), folder / shards.INDEX)
    stated = {
        path.name: {"bytes": path.stat().st_size, "sha256": files.sha256(path)}
        for path in sorted(folder.iterdir())
    }
    manifest = {
        "schema_version": shards.SCHEMA_VERSION,
        "label_names": list(records[0].label_names),
        "rejects": {},
        "files": stated,
    }
    (folder / shards.MANIFEST).write_text(json.dumps(manifest))
    return folder


def _stored(image: ImageRef) -> shards.StoredImage:
    pixels = image.load()
    _, data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 95])
    sizes = (*pixels.shape, *pixels.shape)
    digest = shards.pixel_sha256(pixels)
    return shards.StoredImage(
        image.key,
        data.tobytes(),
        *sizes,
        image.projection,
        image.projection_source,
        None,
        digest,
        0,
    )
