"""Exports embeddings of many phantoms, is killed on the way, and counts what came out.

    python -m benchmarks.export --from=runs/smoke --workdir=runs/export --records=100000

`mmrl.export embeddings` is started again after each SIGKILL, which it gets when another quarter of
the shards is there. At the end every id of the corpus must stand in the shards once, in order. The
rate is that of the last start, beside that of the encoders alone on arrays in memory.
"""

import argparse
import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from benchmarks import commands
from mmrl.evaluators.statistics import Subset
from mmrl.training import run

KILLS = 3
_SPLITS = ("train", "val", "test")
_BLOCKS = 16  # that the rate of the encoders is measured on


def main(arguments: Sequence[str] | None = None) -> None:
    """Exports, kills, resumes, checks and measures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--from", dest="run", type=Path, required=True, help="a run on phantoms")
    parser.add_argument("--workdir", type=Path, required=True, help="new folder for the export")
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--shard-size", type=int, default=4096)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(arguments)
    figures = measure(args)
    for name, value in figures.items():
        print(f"{name}: {value}")
    commands.write(args, figures)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Exports with interruptions and returns what was counted and measured."""
    out = args.workdir
    command = [
        *(sys.executable, "-m", "mmrl.export", "embeddings", f"--workdir={args.run}"),
        *(f"--out={out}", "--split=all", f"--shard_size={args.shard_size}"),
        f"--config.data.length={args.records}",
    ]
    total = -(-args.records // args.shard_size)
    for kill in range(KILLS):
        stopped = _killed(command, out, (kill + 1) * total // (KILLS + 1))
        print(f"killed with {stopped} shards complete", flush=True)
    before, began = _complete(out), time.perf_counter()
    subprocess.run(command, check=True)
    seconds = time.perf_counter() - began
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    rows = _rows(out, manifest, before)
    trained = run.restore(args.run)
    counts = check(trained, args.records, out, manifest)
    return {
        **counts,
        "kills": KILLS,
        "seconds of the last start": round(seconds, 1),
        "images/s of the last start": round(rows / seconds, 1),
        "images/s of the encoders alone": round(_alone(trained), 1),
    }


def _killed(command: Sequence[str], out: Path, shards: int) -> int:
    """Starts the export and kills it once so many shards are complete, while it goes on."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while len(_complete(out)) < shards:
            if process.poll() is not None:
                raise SystemExit(f"the export ended with status {process.returncode}")
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    return len(_complete(out))


def _complete(out: Path) -> set[str]:
    """Names of the shards that the manifest lists."""
    path = out / "manifest.json"
    if not path.is_file():
        return set()
    return {one["file"] for one in json.loads(path.read_text(encoding="utf-8"))["shards"]}


def _rows(out: Path, manifest: dict[str, Any], without: set[str]) -> int:
    """Records of the shards but those named."""
    return sum(one["records"] for one in manifest["shards"] if one["file"] not in without)


def check(
    trained: run.Trained, records: int, out: Path, manifest: dict[str, Any]
) -> dict[str, Any]:
    """Compares the ids of all shards with those of the corpus.

    Raises:
      SystemExit: an id is missing, stands twice or in another place; files of a killed export stay.
    """
    settings = trained.config.copy_and_resolve_references()
    settings.data.length = records
    found: list[str] = []
    for split in _SPLITS:
        names = sorted(one["file"] for one in manifest["shards"] if one["file"].startswith(split))
        own = [
            i for name in names for i in pq.read_table(out / name, columns=["id"])["id"].to_pylist()
        ]
        corpus = run.load_corpus(settings, split)
        if own != [corpus.record(row).id for row in range(len(corpus))]:
            raise SystemExit(f"ids of {split} in {out} are not those of the corpus, in order")
        found += own
    left = [path.name for path in out.glob(".*")]
    if left or len(set(found)) != len(found) or not manifest["complete"]:
        raise SystemExit(f"{out}: {len(found) - len(set(found))} ids twice, files left: {left}")
    return {"records": len(found), "shards": len(manifest["shards"]), "gaps": 0, "duplicates": 0}


def _alone(trained: run.Trained) -> float:
    """Images and reports per second of the encoders, on arrays in memory."""
    settings = trained.config.copy_and_resolve_references()
    corpus = run.load_corpus(settings, "train")
    size = trained.predict.batch_size
    examples = trained.examples(corpus)
    held = {
        tower: dict(examples.arrays([tower], range(size), tower)) for tower in ("image", "text")
    }

    class Held:
        """The same block again and again."""

        def __len__(self) -> int:
            return size * _BLOCKS

        def arrays(
            self, names: Sequence[str], rows: Sequence[int], tower: str = ""
        ) -> dict[str, np.ndarray]:
            return held[tower]

    names = ("image.embedding", "text.embedding")
    list(trained.predict.stream(trained.state, Subset(examples, range(size)), names))
    began = time.perf_counter()
    for _ in trained.predict.stream(trained.state, Held(), names):
        pass
    return size * _BLOCKS / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
