"""How many examples per second the input pipeline makes: each stage alone, then the whole.

    python -m benchmarks.input --json=input.json
    python -m benchmarks.input --config=configs/pretrain.py:table --table=pairs.csv
    python -m benchmarks.input --prepared=DIR --copies=4 --image-size=224 --load-size=256

Stages run one after the other on one core over the same batches, each on what the one before it
left: read (of a prepared corpus: its shard; else open or draw the image and decode it), decode,
crop and jitter (resized and padded, into the batch), tokenise (the reports), perturb (K copies and
their tokens); "first" is the pass in which words, clauses and reports are met for the first time.
They are judged by their CPU time, so that others on the machine disturb little. "sum of stages" is
what one core could do at most. "pipeline" is the iterator of training for each number of threads
and workers asked for, in the pass after caches have filled: examples per second of the wall clock,
and per second of CPU time that all its processes took, which is what one idle core would make.

The last table says what accelerators take at 40 % of their peak (mmrl.devices.flops), by the FLOPs
that a step of the shipped recipes needs (docs/plan.md), and how many cores feed them.
"""

import argparse
import functools
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
from absl import flags

from mmrl import config as configs
from mmrl import presets
from mmrl.data import counter
from mmrl.data.batches.copies import Copies
from mmrl.data.batches.pipeline import PipelineOptions, training_batches
from mmrl.data.corpus import Corpus
from mmrl.data.image import jitter
from mmrl.data.reading import shards
from mmrl.data.sources.prepared import Prepared
from mmrl.data.text.tokenizer import Tokenizer
from mmrl.devices import flops
from mmrl.training import run

UTILIZATION = 0.4
FIRST = ", first"
# FLOPs that a step needs and its global batch, of `python -m mmrl.plan` in docs/plan.md.
STEPS = {
    "ViT-B/16 without the local loss": (1.07e15, 4096),
    "ViT-B/16": (1.738e15, 4096),
    "ViT-L/16": (6.918e15, 8192),
}
HOSTS = {"one H200": ("NVIDIA H200", 1), "a host of 8 TPU v5e": ("TPU v5 lite", 8)}


class Stages:
    """CPU seconds of this thread by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def timed(self, stage: str, work: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
        """What becomes of the items."""
        began = time.thread_time()
        made = [work(item) for item in items]
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.thread_time() - began
        return made


def stages(
    corpus: Corpus, tokenizer: Tokenizer, options: PipelineOptions, count: int, batch_size: int
) -> dict[str, float]:
    """CPU seconds per example of every stage, on one core, batch by batch."""
    rng = np.random.default_rng(0)
    indices = rng.choice(len(corpus), count, replace=count > len(corpus)).tolist()
    batches = [indices[start : start + batch_size] for start in range(0, count, batch_size)]
    copies, measured = Copies(tokenizer, options.text_length), Stages()
    rows = np.empty((batch_size, options.image_size, options.image_size), np.uint8)
    for batch in batches:
        numbers = rng.random((len(batch), jitter.DRAWS)).tolist()
        _image_stages(corpus, options, measured, batch, zip(numbers, rows, strict=False))
    for first in (True, False):  # at first, each clause is tagged, and each report taken apart
        for batch in batches:
            _text_stages(corpus, tokenizer, options, measured, batch, copies, first)
    return {name: value / count for name, value in measured.seconds.items()}


def _image_stages(
    corpus: Corpus,
    options: PipelineOptions,
    measured: Stages,
    batch: Sequence[int],
    targets: Iterable[tuple[list[float], np.ndarray]],
) -> None:
    example, source = options.example(), corpus.source
    if isinstance(source, Prepared):
        places = [source.image.place(int(corpus.positions[index])) for index in batch]
        stored = measured.timed("read", lambda place: shards.read_payload(*place), places)
        images = measured.timed(
            "decode", lambda read: shards.decode_image(read["images"][0]), stored
        )
    else:
        images = measured.timed("read", corpus.image, batch)

    def place(item: tuple[np.ndarray, tuple[list[float], np.ndarray]]) -> None:
        image, (numbers, row) = item
        made = functools.partial(example.preprocess, image)
        example.jitter.fill(row, example.preprocess.size, numbers, made)

    measured.timed("crop and jitter", place, zip(images, targets, strict=True))


def _text_stages(
    corpus: Corpus,
    tokenizer: Tokenizer,
    options: PipelineOptions,
    measured: Stages,
    batch: Sequence[int],
    copies: Copies,
    first: bool,
) -> None:
    texts = [corpus.texts[index] for index in batch]
    seeds = counter.bits(np.uint64(first), np.array(batch))
    (tokens,) = measured.timed(
        "tokenise" + FIRST * first,
        lambda texts: tokenizer.encode_batch(texts, options.text_length).tokens,
        [texts],
    )

    def perturbed(texts: list[str]) -> None:
        kinds = options.mix.draw(0, options.num_perturbed, seeds)
        copies(texts, tokens, kinds, seeds)

    measured.timed("perturb" + FIRST * first, perturbed, [texts])


def _cpu_seconds() -> float:
    """Of this process and of the workers it has started, so far."""
    own = time.process_time()
    ticks = os.sysconf("SC_CLK_TCK")
    for child in multiprocessing.active_children():
        fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        own += (int(fields[11]) + int(fields[12])) / ticks
    return own


def pipeline(
    corpus: Corpus, tokenizer: Tokenizer, options: PipelineOptions, count: int, batch_size: int
) -> dict[str, float]:
    """Examples per second of the training iterator, of the clock and of CPU time."""
    batches = training_batches(
        corpus, tokenizer, options, seed=0, batch_size=batch_size, with_perturbed=True
    )
    rounds = max(1, count // batch_size)
    try:
        # Starting threads and workers is no part of the rate, nor is filling each one's caches.
        for _ in range(1 + rounds):
            next(batches)
        began, used = time.perf_counter(), _cpu_seconds()
        for _ in range(rounds):
            next(batches)
        clock, cpu = time.perf_counter() - began, _cpu_seconds() - used
    finally:
        batches.close()
    return {
        "threads": options.num_threads,
        "workers": options.num_workers,
        "clock": rounds * batch_size / clock,
        "cpu": rounds * batch_size / cpu,
    }


def needs() -> list[dict[str, Any]]:
    """What accelerators take: images per second at `UTILIZATION` of their peak."""
    found = []
    for host, (kind, devices) in HOSTS.items():
        for recipe, (step, batch) in STEPS.items():
            peak = flops.peak(kind)
            assert peak is not None
            rate = UTILIZATION * devices * peak / (step / batch)
            found.append({"host": host, "recipe": recipe, "examples_per_second": rate})
    return found


def _config(given: argparse.Namespace) -> ml_collections.ConfigDict:
    config = presets.load(given.config)
    if given.table:
        config.data.path = given.table
    if given.prepared:
        pipeline, _ = configs.split_data(config.data)
        of_source = {"source": "prepared", "path": given.prepared}
        text = {"sections": tuple(given.sections.split(",")), "text_length": 96}
        config.data = ml_collections.ConfigDict({**pipeline, **text, **of_source})
        config.data.cache_images = False  # what is measured is reading
        config.data.crop_scale = tuple(map(float, given.crop_scale.split(",")))
        config.batch_size = 64
    for name in ("image_size", "load_size", "num_perturbed"):
        if (value := getattr(given, name)) is not None:
            config.data[name] = value
    configs.validate(config)
    return config


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Everything that is printed."""
    config = _config(given)
    corpus = run.load_corpus(config.data, "train")
    options = PipelineOptions.from_config(config.data)
    tokenizer = Tokenizer.train(corpus.texts, vocab_size=config.data.vocab_size)
    cores = sorted(os.sched_getaffinity(0))
    # What was measured of a stage should be the work of one core, whatever a library may start.
    os.sched_setaffinity(0, cores[:1])
    parts = stages(corpus, tokenizer, options, given.examples, config.batch_size)
    os.sched_setaffinity(0, cores)
    ways = [tuple(map(int, way.split("x"))) for way in given.ways.split(",")]
    rates = []
    for threads, workers in ways:
        config.data.num_threads, config.data.num_workers = threads, workers
        chosen = PipelineOptions.from_config(config.data)
        rates.append(pipeline(corpus, tokenizer, chosen, given.examples, config.batch_size))
    usual = sum(value for name, value in parts.items() if not name.endswith(FIRST))
    return {
        "corpus": corpus.name,
        "records": len(corpus),
        "image_size": options.image_size,
        "load_size": options.load_size,
        "text_length": options.text_length,
        "copies": options.num_perturbed,
        "cores": len(cores),
        "stages": {name: 1 / value for name, value in parts.items()},
        "sum_of_stages": 1 / usual,
        "pipeline": rates,
        "needs": needs(),
    }


def main(arguments: list[str] | None = None) -> None:
    """Measures, prints tables, and writes the figures where --json says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", default="configs/pretrain.py", help="FILE or FILE:VARIANT")
    parser.add_argument("--table", help="config.data.path")
    parser.add_argument("--prepared", help="the folder of a prepared corpus")
    parser.add_argument("--sections", default="findings,impression", help="of a prepared corpus")
    parser.add_argument("--image-size", type=int, help="default: that of the config")
    parser.add_argument("--load-size", type=int, help="default: that of the config")
    parser.add_argument(
        "--crop-scale", default="1,1", help="of a prepared corpus; 1,1 cuts a window of that size"
    )
    parser.add_argument("--copies", type=int, dest="num_perturbed", help="likewise")
    parser.add_argument("--examples", type=int, default=2000)
    parser.add_argument("--ways", default="1x0,2x0,1x1,1x2", help="THREADSxWORKERS of the pipeline")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    given = parser.parse_args(arguments)
    flags.FLAGS.mark_as_parsed()  # grain reads absl's flags when it starts workers
    found = measure(given)
    print(
        f"{found['corpus']}: {found['records']:,} records, {found['load_size'] or ''} -> "
        f"{found['image_size']} px, L = {found['text_length']}, K = {found['copies']}; "
        f"{found['cores']} cores"
    )
    for name, rate in found["stages"].items():
        print(f"{name:18s} {rate:12,.0f} examples per CPU second")
    print(f"{'sum of stages':18s} {found['sum_of_stages']:12,.0f} examples per CPU second")
    for way in found["pipeline"]:
        title = f"pipeline, {way['threads']} threads, {way['workers']} workers"
        print(f"{title:32s} {way['clock']:8,.0f} examples/s {way['cpu']:8,.0f} per CPU second")
    clock = max(way["clock"] for way in found["pipeline"])
    core = max(way["cpu"] for way in found["pipeline"])
    print(f"\nat {UTILIZATION:.0%} of the peak, FLOPs of a step as in docs/plan.md:")
    for need in found["needs"]:
        rate = need["examples_per_second"]
        met = "met here" if clock >= rate else "not met here"
        print(
            f"{need['host']:20s} {need['recipe']:32s} {rate:8,.0f} images/s: {rate / core:4.1f} "
            f"cores, {met}"
        )
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
