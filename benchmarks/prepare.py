"""Speed of preparing a corpus, and a check that a killed and resumed preparation gives equal files.

    python -m benchmarks.prepare --out=measure -- phantom --option=length=20000 --size=224
    python -m benchmarks.prepare --out=measure --kills=0 -- table --input=pairs.csv

Prepares OUT/undisturbed without interruption. Then prepares OUT/killed with the same command, kills
it and its workers with SIGKILL at random moments (seeded by --seed), and finally lets it finish.
Both folders must contain the same files with the same sha256. Rates are of the whole command:
start, reading all texts, encoding, index and manifest.
"""

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import commands
from mmrl import files
from mmrl.data.reading import shards
from mmrl.preparation.workplace import WORK

_CHUNK = re.compile(r"chunk-(\d+)\.msgpack")


def command(output: Path, arguments: list[str]) -> list[str]:
    """The command that prepares into `output`."""
    return [sys.executable, "-m", "mmrl.prepare", *arguments, f"--output={output}"]


def encoded_chunks(output: Path) -> int:
    """Number of encoded chunks, including those in closed shards."""
    try:
        names = os.listdir(output / WORK)
        closed = [
            json.loads((output / WORK / name).read_text(encoding="utf-8"))["stop"]
            for name in names
            if re.fullmatch(r"closed-\d+\.json", name)
        ]
    except FileNotFoundError:
        return 0
    single = [int(match[1]) + 1 for name in names if (match := _CHUNK.fullmatch(name))]
    return max([0, *closed, *single])


def kill_once(output: Path, arguments: list[str], chunks: int, delay: float) -> int:
    """Starts the command and kills it `delay` seconds after it has encoded `chunks` chunks.

    Returns:
      The number of chunks it had encoded.

    Raises:
      RuntimeError: the command ended before it was killed.
    """
    child = subprocess.Popen(command(output, arguments), start_new_session=True)
    while child.poll() is None and encoded_chunks(output) < chunks:
        time.sleep(0.01)
    time.sleep(delay)
    if child.poll() is not None:
        raise RuntimeError(f"the command ended with {child.returncode} before it was killed")
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    return encoded_chunks(output)


def digests(folder: Path) -> dict[str, str]:
    """Name of file -> sha256."""
    return {path.name: files.sha256(path) for path in sorted(folder.iterdir())}


def measure(out: Path, arguments: list[str], kills: int, seed: int) -> dict[str, Any]:
    """Prepares both folders and returns all figures."""
    undisturbed, killed = out / "undisturbed", out / "killed"
    began = time.perf_counter()
    subprocess.run(command(undisturbed, arguments), check=True)
    seconds = time.perf_counter() - began
    manifest = shards.read_manifest(undisturbed)
    records, size = manifest["input"]["records"], manifest["shards"]["chunk"]
    chunks = -(-records // size)
    figures: dict[str, Any] = {
        "command": arguments,
        "records": sum(count["records"] for count in manifest["counts"].values()),
        "images": sum(count["images"] for count in manifest["counts"].values()),
        "bytes": sum(file["bytes"] for file in manifest["files"].values()),
        "files": len(manifest["files"]),
        "seconds": seconds,
        "records_per_second": records / seconds,
    }
    if kills:
        rng = random.Random(seed)
        moments = sorted(rng.uniform(0.05, 0.9) * chunks for _ in range(kills))
        figures["chunks"] = chunks
        figures["killed_at_chunk"] = [
            kill_once(killed, arguments, max(1, round(moment)), rng.uniform(0.0, 0.3))
            for moment in moments
        ]
        began = time.perf_counter()
        subprocess.run(command(killed, arguments), check=True)
        figures["last_seconds"] = time.perf_counter() - began
        figures["identical"] = digests(undisturbed) == digests(killed)
    return figures


def main(arguments: list[str] | None = None) -> None:
    """Measures and prints a table. Exit status 1 if the folders differ."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", required=True, help="a new or empty folder")
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("command", nargs="+", help="arguments of mmrl.prepare, after --")
    args = parser.parse_args(arguments)
    out = Path(args.out)
    if out.exists() and any(out.iterdir()):
        parser.error(f"--out={out} is not empty")
    figures = measure(out, args.command, args.kills, args.seed)
    print(f"{'command':20s} mmrl.prepare {' '.join(figures['command'])}")
    for name in ("records", "images", "bytes", "files"):
        print(f"{name:20s} {figures[name]:16,d}")
    print(f"{'seconds':20s} {figures['seconds']:16,.1f}")
    print(f"{'records/s':20s} {figures['records_per_second']:16,.0f}")
    print(f"{'MiB/s':20s} {figures['bytes'] / 2**20 / figures['seconds']:16,.1f}")
    if args.kills:
        chunks = ", ".join(map(str, figures["killed_at_chunk"]))
        print(f"{'killed at chunk':20s} {chunks} of {figures['chunks']}")
        print(f"{'seconds, last run':20s} {figures['last_seconds']:16,.1f}")
        print(f"{'sha256 of all files':20s} {'equal' if figures['identical'] else 'DIFFER':>16s}")
    commands.write(args, figures)
    sys.exit(0 if figures.get("identical", True) else 1)


if __name__ == "__main__":
    main()
