"""PixCell: exported embeddings are finite, repeatable, and state their dimension."""

import hashlib
import json

import numpy as np

from benchmarks.systems.check import Claim, Runs
from benchmarks.systems.command import execute

NUMBERS = (25,)
EXPRESSED = "python -m mmrl.export embeddings, which a diffusion model is conditioned on"
DIFFERS = "the diffusion model itself is left out"
RUNS = {"trained": ("convirt",)}


def values(runs: Runs) -> dict[str, float]:
    """Of one seed."""
    digests, rows, manifest = [], np.zeros((0, 0)), {}
    for copy in ("one", "two"):
        out = runs.scratch / copy
        given = (f"--workdir={runs['trained']}", "--split=val", "--format=npz", f"--out={out}")
        execute("mmrl.export", "embeddings", *given)
        manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
        parts = [out / shard["file"] for shard in manifest["shards"]]
        rows = np.concatenate([np.load(part)["image_embedding"] for part in parts])
        digests.append([hashlib.sha256(part.read_bytes()).hexdigest() for part in parts])
    (stated,) = manifest["shapes"]["image_embedding"]
    return {
        "finite": float(np.isfinite(rows).mean()),
        "equal": float(digests[0] == digests[1]),
        "dimension": float(stated - rows.shape[1]),
        "distinct": len(np.unique(rows, axis=0)) / len(rows),
    }


CLAIMS = (
    Claim("share of numbers that are finite", "finite", least=1),
    Claim("two exports are equal byte by byte", "equal", least=1),
    Claim("dimension of the manifest minus that of the rows", "dimension", least=0, most=0),
    Claim("share of embeddings that differ from all others", "distinct", least=0.99),
)
