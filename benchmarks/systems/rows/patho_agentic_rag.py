"""Patho-AgenticRAG: a planted report is found by an image and a text together."""

import numpy as np

import mmrl
from benchmarks.recalls import held_out
from benchmarks.systems.check import UNTRAINED, Claim, Runs
from benchmarks.systems.command import execute
from mmrl.evaluators import statistics
from mmrl.index import Index, joined

NUMBERS = (23,)
EXPRESSED = "python -m mmrl.search with --image and --text, over exported embeddings"
DIFFERS = (
    "reports instead of pages, asked for by a noisy image and the impression; the agent that asks, "
    "and its training, are left out"
)
RUNS = {"trained": ("convirt",), "untrained": ("convirt", *UNTRAINED)}

_NEAREST = 5
_NOISE = 25  # grey levels


def values(runs: Runs) -> dict[str, float]:
    """Of one seed."""
    found = _found(runs, "trained")
    return {**found, "untrained": _found(runs, "untrained")["image and text"]}


def _found(runs: Runs, label: str) -> dict[str, float]:
    """How often the report is among the nearest, for queries of its image and its impression."""
    out = runs.scratch / label
    execute("mmrl.export", "embeddings", f"--workdir={runs[label]}", "--split=val", f"--out={out}")
    index, encoder = Index.open(out), mmrl.load(str(runs[label]))
    data = held_out(encoder.trained)
    rng = np.random.default_rng(runs.seed)
    records = [data.record(row) for row in range(len(data))]
    # So noisy an image and so short a part of the report find it less often than both together.
    noisy = [_noisy(record.images[0].load(), rng) for record in records]
    images = encoder.embed_images(noisy)
    texts = encoder.embed_texts([record.sections["impression"] for record in records])
    order = statistics.permutation_between_patients(data.patients, rng)
    asked = {
        "image and text": joined(images, texts),
        "image alone": images,
        "text alone": texts,
        "images permuted": joined(images[order], texts),
    }
    own = np.array([index.row(record.id) for record in records])
    shares = {
        name: float((index.nearest(query, _NEAREST, "text").rows == own[:, None]).any(1).mean())
        for name, query in asked.items()
    }
    return {**shares, "chance": _NEAREST / len(index)}


def _noisy(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.clip(image + rng.normal(0, _NOISE, image.shape), 0, 255).astype(np.uint8)


CLAIMS = (
    Claim(
        "planted report among the nearest five, image and text",
        "image and text",
        beside=("image alone", "text alone", "images permuted", "untrained", "chance"),
    ),
)
