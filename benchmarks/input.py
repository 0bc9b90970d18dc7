"""Examples per second of the input pipeline: each stage alone, then the whole pipeline.

    python -m benchmarks.input --json=input.json
    python -m benchmarks.input --config=configs/pretrain.py:table --table=pairs.csv
    python -m benchmarks.input --prepared=DIR --copies=4 --image-size=224 --load-size=256

The stages run one after the other on one core, over the same batches:

  read             read the record from its shard (prepared corpus); open and decode the image, or
                   draw it (other corpora)
  decode           decode the image (prepared corpus only)
  crop and jitter  resize, crop, pad and jitter the image, and write it into the batch
  tokenise         tokenise the report
  perturb          make K perturbed copies and their tokens

"first" marks the first pass, in which caches of words, clauses and reports are empty. The rate of a
stage is per second of CPU time, which other jobs on the machine affect little. "sum of stages" is
the upper bound for one core. "pipeline" is the iterator that training uses, with each of the given
numbers of threads and workers, after caches have been filled. It has two rates: per second of wall
time, and per second of CPU time of all its processes, which estimates the rate of one idle core.

The last table shows how many images per second accelerators need at 40 % of their peak FLOP/s
(mmrl.devices.flops), given the FLOPs of a step of the shipped recipes (docs/plan.md), and how many
cores supply them.
"""

import argparse
import functools
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections
import numpy as np
from absl import flags

from benchmarks import commands
from mmrl import config as configs
from mmrl import presets, wiring
from mmrl.data import counter
from mmrl.data.batches.pipeline import training_batches
from mmrl.data.corpus import Corpus
from mmrl.data.image import jitter
from mmrl.data.inputs import base as inputs
from mmrl.data.inputs.image import Image
from mmrl.data.inputs.perturbed import Perturbed
from mmrl.data.perturb.copies import Copies
from mmrl.data.reading import shards
from mmrl.data.sources.prepared import Prepared
from mmrl.data.text.tokenizer import Tokenizer
from mmrl.devices import flops
from mmrl.training import run

UTILIZATION = 0.4
FIRST = ", first"
# FLOPs and global batch of a step, from `python -m mmrl.plan`; see docs/plan.md.
STEPS = {
    "ViT-B/16 without the local loss": (1.07e15, 4096),
    "ViT-B/16": (1.738e15, 4096),
    "ViT-L/16": (6.918e15, 8192),
}
HOSTS = {"one H200": ("NVIDIA H200", 1), "a host of 8 TPU v5e": ("TPU v5 lite", 8)}


class Inputs(NamedTuple):
    """The inputs whose stages are measured."""

    image: Image
    copies: Perturbed


def inputs_of(config: ml_collections.ConfigDict) -> Inputs:
    """Images, and reports with their copies, as the towers of a config read them."""
    image = Image("image", config.towers.image, config.data)
    return Inputs(image, Perturbed("perturbed", config.towers.text, config.data))


class Stages:
    """CPU seconds of this thread, by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def timed(self, stage: str, work: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
        """Applies `work` to each item and adds the time to a stage."""
        began = time.thread_time()
        results = [work(item) for item in items]
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.thread_time() - began
        return results


def stages(
    corpus: Corpus, tokenizer: Tokenizer, made: Inputs, count: int, batch_size: int
) -> dict[str, float]:
    """CPU seconds per example of every stage."""
    rng = np.random.default_rng(0)
    indices = rng.choice(len(corpus), count, replace=count > len(corpus)).tolist()
    batches = [indices[start : start + batch_size] for start in range(0, count, batch_size)]
    copies, measured = Copies(tokenizer, made.copies.length), Stages()
    rows = np.empty((batch_size, made.image.size, made.image.size), np.uint8)
    for batch in batches:
        numbers = rng.random((len(batch), jitter.DRAWS)).tolist()
        _image_stages(corpus, made.image, measured, batch, zip(numbers, rows, strict=False))
    for first in (True, False):  # the first pass fills the caches of clauses and reports
        for batch in batches:
            _text_stages(corpus, tokenizer, made.copies, measured, batch, copies, first)
    return {name: value / count for name, value in measured.seconds.items()}


def _image_stages(
    corpus: Corpus,
    own: Image,
    measured: Stages,
    batch: Sequence[int],
    targets: Iterable[tuple[list[float], np.ndarray]],
) -> None:
    source = corpus.source
    if isinstance(source, Prepared):
        places = [source.image.place(int(corpus.positions[index])) for index in batch]
        stored = measured.timed("read", lambda place: shards.read_payload(*place), places)
        images = measured.timed(
            "decode", lambda read: shards.decode_image(read["images"][0]), stored
        )
    else:
        images = measured.timed("read", corpus.image, batch)

    def fill(item: tuple[np.ndarray, tuple[list[float], np.ndarray]]) -> None:
        image, (numbers, row) = item
        own.jitter.fill(row, own.loaded.size, numbers, functools.partial(own.loaded, image))

    measured.timed("crop and jitter", fill, zip(images, targets, strict=True))


def _text_stages(
    corpus: Corpus,
    tokenizer: Tokenizer,
    own: Perturbed,
    measured: Stages,
    batch: Sequence[int],
    copies: Copies,
    first: bool,
) -> None:
    texts = [corpus.texts[index] for index in batch]
    seeds = counter.bits(np.uint64(first), np.array(batch))
    (encoded,) = measured.timed(
        "tokenise" + FIRST * first,
        lambda texts: tokenizer.encode_batch(texts, own.length),
        [texts],
    )

    def perturbed(texts: list[str]) -> None:
        kinds = own.mix.draw(0, own.count, seeds)
        copies(texts, encoded.tokens, encoded.mask, kinds, seeds)

    measured.timed("perturb" + FIRST * first, perturbed, [texts])


def _cpu_seconds() -> float:
    """CPU time of this process and its active workers so far."""
    seconds = time.process_time()
    ticks = os.sysconf("SC_CLK_TCK")
    for child in multiprocessing.active_children():
        fields = (
            Path(f"/proc/{child.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        )
        seconds += (int(fields[11]) + int(fields[12])) / ticks
    return seconds


def pipeline(
    corpus: Corpus, tokenizers: dict[str, Tokenizer], config: ml_collections.ConfigDict, count: int
) -> dict[str, float]:
    """Examples per second of the training iterator: of wall time and of CPU time."""
    batch_size = config.batch_size
    batches = training_batches(
        corpus,
        inputs.make(config, wiring.wire(config)[0]),
        tokenizers,
        config.data,
        seed=0,
        batch_size=batch_size,
    )
    rounds = max(1, count // batch_size)
    try:
        # Threads and workers start and fill their caches before the measurement.
        for _ in range(1 + rounds):
            next(batches)
        began, used = time.perf_counter(), _cpu_seconds()
        for _ in range(rounds):
            next(batches)
        clock, cpu = time.perf_counter() - began, _cpu_seconds() - used
    finally:
        batches.close()
    return {
        "threads": config.data.num_threads,
        "workers": config.data.num_workers,
        "clock": rounds * batch_size / clock,
        "cpu": rounds * batch_size / cpu,
    }


def needs() -> list[dict[str, Any]]:
    """Images per second that accelerators need at `UTILIZATION` of their peak."""
    result = []
    for host, (kind, devices) in HOSTS.items():
        for recipe, (step, batch) in STEPS.items():
            peak = flops.peak(kind)
            assert peak is not None
            rate = UTILIZATION * devices * peak / (step / batch)
            result.append({"host": host, "recipe": recipe, "examples_per_second": rate})
    return result


def _config(args: argparse.Namespace) -> ml_collections.ConfigDict:
    config = presets.load(args.config)
    if args.table:
        config.data.path = args.table
    if args.prepared:
        pipeline, _ = configs.split_data(config.data)
        of_source = {"source": "prepared", "path": args.prepared}
        text = {"sections": tuple(args.sections.split(","))}
        config.data = ml_collections.ConfigDict({**pipeline, **text, **of_source})
        config.towers.text.length = 96
        config.data.cache_images = False  # reading is to be measured
        config.data.crop_scale = tuple(map(float, args.crop_scale.split(",")))
        config.batch_size = 64
    for name in ("load_size", "num_perturbed"):
        if (value := getattr(args, name)) is not None:
            config.data[name] = value
    if args.image_size is not None:
        config.towers.image.size = args.image_size
    configs.validate(config)
    return config


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Measures all figures."""
    config = _config(args)
    corpus = run.load_corpus(config, "train")
    tokenizers, made = run.make_tokenizers(config, corpus), inputs_of(config)
    cores = sorted(os.sched_getaffinity(0))
    # Stages run on one core, even if a library starts threads.
    os.sched_setaffinity(0, cores[:1])
    parts = stages(corpus, tokenizers["text"], made, args.examples, config.batch_size)
    os.sched_setaffinity(0, cores)
    ways = [tuple(map(int, way.split("x"))) for way in args.ways.split(",")]
    rates = []
    for threads, workers in ways:
        config.data.num_threads, config.data.num_workers = threads, workers
        rates.append(pipeline(corpus, tokenizers, config, args.examples))
    seconds = sum(value for name, value in parts.items() if not name.endswith(FIRST))
    return {
        "corpus": corpus.name,
        "records": len(corpus),
        "image_size": made.image.size,
        "load_size": config.data.load_size,
        "text_length": made.copies.length,
        "copies": made.copies.count,
        "cores": len(cores),
        "stages": {name: 1 / value for name, value in parts.items()},
        "sum_of_stages": 1 / seconds,
        "pipeline": rates,
        "needs": needs(),
    }


def main(arguments: list[str] | None = None) -> None:
    """Measures, prints tables, and writes the figures to the file of --json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", default="configs/pretrain.py", help="FILE or FILE:VARIANT")
    parser.add_argument("--table", help="config.data.path")
    parser.add_argument("--prepared", help="folder of a prepared corpus")
    parser.add_argument("--sections", default="findings,impression", help="of a prepared corpus")
    parser.add_argument("--image-size", type=int, help="default: config.towers.image.size")
    parser.add_argument("--load-size", type=int, help="default: config.data.load_size")
    parser.add_argument(
        "--crop-scale",
        default="1,1",
        help="config.data.crop_scale, for a prepared corpus; 1,1 crops without resizing",
    )
    parser.add_argument(
        "--copies",
        type=int,
        dest="num_perturbed",
        help="perturbed copies per report; default: config.data.num_perturbed",
    )
    parser.add_argument("--examples", type=int, default=2000)
    parser.add_argument("--ways", default="1x0,2x0,1x1,1x2", help="THREADSxWORKERS of the pipeline")
    parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args(arguments)
    flags.FLAGS.mark_as_parsed()  # grain reads absl flags when it starts workers
    figures = measure(args)
    print(
        f"{figures['corpus']}: {figures['records']:,} records, {figures['load_size'] or ''} -> "
        f"{figures['image_size']} px, L = {figures['text_length']}, K = {figures['copies']}; "
        f"{figures['cores']} cores"
    )
    for name, rate in figures["stages"].items():
        print(f"{name:18s} {rate:12,.0f} examples per CPU second")
    print(f"{'sum of stages':18s} {figures['sum_of_stages']:12,.0f} examples per CPU second")
    for way in figures["pipeline"]:
        title = f"pipeline, {way['threads']} threads, {way['workers']} workers"
        print(f"{title:32s} {way['clock']:8,.0f} examples/s {way['cpu']:8,.0f} per CPU second")
    clock = max(way["clock"] for way in figures["pipeline"])
    core = max(way["cpu"] for way in figures["pipeline"])
    print(f"\nneeded at {UTILIZATION:.0%} of the peak, with the FLOPs per step of docs/plan.md:")
    for need in figures["needs"]:
        rate = need["examples_per_second"]
        met = "met here" if clock >= rate else "not met here"
        print(
            f"{need['host']:20s} {need['recipe']:32s} {rate:8,.0f} images/s: {rate / core:4.1f} "
            f"cores, {met}"
        )
    commands.write(args, figures)


if __name__ == "__main__":
    main()
