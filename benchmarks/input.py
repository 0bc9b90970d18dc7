"""How many examples per second the input pipeline makes: each stage alone, then the whole.

    python -m benchmarks.input --json=input.json
    python -m benchmarks.input --config=configs/pretrain.py:table --table=pairs.csv

Stages run one after the other on one core over the same records, each on what the one before it
left: read (open or draw the image, decode), preprocess (resize), augment (crop and jitter),
tokenise (the report), perturb (K copies and their tokens), batch (stack). "sum of stages" is what
one core could do at most. "pipeline" is Grain's iterator as training uses it, with the threads and
workers of the config on all cores: first the pass in which caches fill, then the same again. A GPU
or TPU that takes more examples per second than the last line waits for data.
"""

import argparse
import json
import os
import runpy
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
from absl import flags

from mmrl import config as configs
from mmrl import run
from mmrl.data import perturb
from mmrl.data.corpus import Corpus
from mmrl.data.example import perturbed_arrays
from mmrl.data.jitter import Jitter
from mmrl.data.pipeline import Options, training_batches
from mmrl.data.tokenizer import Tokenizer


def timed(work: Callable[[Any], Any], items: Sequence[Any]) -> tuple[float, list[Any]]:
    """Seconds for all items, and what became of them."""
    began = time.perf_counter()
    made = [work(item) for item in items]
    return time.perf_counter() - began, made


def stages(
    corpus: Corpus, tokenizer: Tokenizer, options: Options, count: int, batch_size: int
) -> dict[str, float]:
    """Seconds per example of every stage, on one core."""
    rng = np.random.default_rng(0)
    indices = [int(index) for index in rng.choice(len(corpus), count, replace=count > len(corpus))]
    texts = [corpus.texts[index] for index in indices]
    preprocess, kinds = options.preprocess(), options.mix.at(0)
    jitter = {name: getattr(options, name) for name in ("crop_scale", "brightness", "contrast")}

    def perturbed(pair: tuple[str, Any]) -> dict[str, np.ndarray]:
        drawn = perturb.draw_kinds(kinds, options.num_perturbed, rng)
        return perturbed_arrays(pair[0], pair[1].tokens, tokenizer, drawn, rng)

    seconds = {}
    seconds["read"], images = timed(lambda i: corpus.record(i).images[0].load(), indices)
    seconds["preprocess"], images = timed(preprocess, images)
    seconds["augment"], images = timed(lambda image: Jitter(**jitter)(image, rng), images)
    seconds["tokenise"], encoded = timed(
        lambda text: tokenizer.encode(text, options.text_length), texts
    )
    pairs = list(zip(texts, encoded, strict=True))
    seconds["perturb, first"], _ = timed(perturbed, pairs)  # tags each clause and remembers it
    seconds["perturb"], copies = timed(perturbed, pairs)
    rows = [
        {"image": image, "tokens": report.tokens, **extra}
        for image, report, extra in zip(images, encoded, copies, strict=True)
    ]
    groups = [rows[start : start + batch_size] for start in range(0, count, batch_size)]
    seconds["batch"], _ = timed(
        lambda group: {name: np.stack([row[name] for row in group]) for name in group[0]}, groups
    )
    return {name: value / count for name, value in seconds.items()}


def pipeline(
    corpus: Corpus, tokenizer: Tokenizer, options: Options, count: int, batch_size: int
) -> tuple[float, float]:
    """Examples per second of the training iterator, in its first pass and in the second."""
    batches = training_batches(
        corpus, tokenizer, options, seed=0, batch_size=batch_size, with_perturbed=True
    )
    rounds = max(1, min(count, len(corpus)) // batch_size)
    rates = []
    try:
        begin = batches.get_state()
        next(batches)  # starting threads and workers is no part of the rate
        for _ in range(2):
            batches.set_state(begin)
            began = time.perf_counter()
            for _ in range(rounds):
                next(batches)
            rates.append(rounds * batch_size / (time.perf_counter() - began))
    finally:
        batches.close()
    return rates[0], rates[1]


def _config(given: argparse.Namespace) -> ml_collections.ConfigDict:
    file, _, variant = given.config.partition(":")
    config = runpy.run_path(file)["get_config"](variant)
    if given.table:
        config.data.path = given.table
    if given.workers is not None:
        config.data.num_workers = given.workers
    configs.validate(config)
    return config


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Everything that is printed."""
    config = _config(given)
    corpus = run.load_corpus(config.data, "train")
    options = Options.from_config(config.data)
    tokenizer = Tokenizer.train(corpus.texts, vocab_size=config.data.vocab_size)
    cores = sorted(os.sched_getaffinity(0))
    # What was measured of a stage should be the work of one core, whatever a library may start.
    os.sched_setaffinity(0, cores[:1])
    parts = stages(corpus, tokenizer, options, given.examples, config.batch_size)
    os.sched_setaffinity(0, cores)
    first, again = pipeline(corpus, tokenizer, options, given.examples, config.batch_size)
    usual = sum(value for name, value in parts.items() if name != "perturb, first")
    return {
        "corpus": corpus.name,
        "records": len(corpus),
        "image_size": options.image_size,
        "text_length": options.text_length,
        "copies": options.num_perturbed,
        "cores": len(cores),
        "threads": options.num_threads,
        "workers": options.num_workers,
        "stages": {name: 1 / value for name, value in parts.items()},
        "sum_of_stages": 1 / usual,
        "pipeline_first": first,
        "pipeline_again": again,
    }


def main(arguments: list[str] | None = None) -> None:
    """Measures, prints one table, and writes it where --json says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", default="configs/pretrain.py", help="FILE or FILE:VARIANT")
    parser.add_argument("--table", help="config.data.path")
    parser.add_argument("--examples", type=int, default=2000)
    parser.add_argument("--workers", type=int, help="default: that of the config")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    given = parser.parse_args(arguments)
    flags.FLAGS.mark_as_parsed()  # grain reads absl's flags when it starts workers
    found = measure(given)
    print(
        f"{found['corpus']}: {found['records']:,} records, {found['image_size']} px, "
        f"L = {found['text_length']}, K = {found['copies']}; {found['cores']} cores, "
        f"{found['threads']} threads, {found['workers']} workers"
    )
    for name, rate in found["stages"].items():
        print(f"{name:18s} {rate:12,.0f} examples/s on one core")
    print(f"{'sum of stages':18s} {found['sum_of_stages']:12,.0f} examples/s on one core")
    for name in ("first", "again"):
        print(f"{'pipeline, ' + name:18s} {found['pipeline_' + name]:12,.0f} examples/s")
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
