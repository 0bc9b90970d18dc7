"""How fast a corpus is prepared, and whether a run that is killed ends in the same bytes.

    python -m benchmarks.prepare --out=measure -- phantom --option=length=20000 --size=224
    python -m benchmarks.prepare --out=measure --kills=0 -- table --input=pairs.csv

Prepares OUT/undisturbed once. Then prepares OUT/killed by the same command, and kills it with
SIGKILL, workers and all, at random moments (seeded by --seed) before it may end; both folders must
hold the same files with the same sha256. Rates are of the whole command: start, reading all text,
encoding, index and manifest.
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
from mmrl.data.reading import shards
from mmrl.preparation.workplace import WORK

_CHUNK = re.compile(r"chunk-(\d+)\.msgpack")


def command(output: Path, given: list[str]) -> list[str]:
    """The command that prepares into `output`."""
    return [sys.executable, "-m", "mmrl.prepare", *given, f"--output={output}"]


def reached(output: Path) -> int:
    """How many chunks have been encoded, those in closed shards included."""
    try:
        names = os.listdir(output / WORK)
        closed = [
            json.loads((output / WORK / name).read_text())["stop"]
            for name in names
            if re.fullmatch(r"closed-\d+\.json", name)
        ]
    except FileNotFoundError:
        return 0
    made = [int(found[1]) + 1 for name in names if (found := _CHUNK.fullmatch(name))]
    return max([0, *closed, *made])


def kill_once(output: Path, given: list[str], chunks: int, delay: float) -> int:
    """Starts the command, kills it `delay` seconds after it has `chunks`; returns what it had.

    Raises:
      RuntimeError: it ended by itself.
    """
    child = subprocess.Popen(command(output, given), start_new_session=True)
    while child.poll() is None and reached(output) < chunks:
        time.sleep(0.01)
    time.sleep(delay)
    if child.poll() is not None:
        raise RuntimeError(f"the command ended with {child.returncode} before it was killed")
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    return reached(output)


def digests(folder: Path) -> dict[str, str]:
    """File -> sha256."""
    return {path.name: shards.file_sha256(path) for path in sorted(folder.iterdir())}


def measure(out: Path, given: list[str], kills: int, seed: int) -> dict[str, Any]:
    """Everything that is printed."""
    whole, cut = out / "undisturbed", out / "killed"
    began = time.perf_counter()
    subprocess.run(command(whole, given), check=True)
    seconds = time.perf_counter() - began
    manifest = shards.read_manifest(whole)
    records, size = manifest["input"]["records"], manifest["shards"]["chunk"]
    chunks = -(-records // size)
    found: dict[str, Any] = {
        "command": given,
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
        had = [
            kill_once(cut, given, max(1, round(moment)), rng.uniform(0.0, 0.3))
            for moment in moments
        ]
        began = time.perf_counter()
        subprocess.run(command(cut, given), check=True)
        found["chunks"] = chunks
        found["killed_at_chunk"] = had
        found["last_seconds"] = time.perf_counter() - began
        found["identical"] = digests(whole) == digests(cut)
    return found


def main(arguments: list[str] | None = None) -> None:
    """Measures and prints one table; exit status 1 when the folders differ."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", required=True, help="a new or empty folder")
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file for the numbers")
    parser.add_argument("given", nargs="+", help="arguments of mmrl.prepare, after --")
    given = parser.parse_args(arguments)
    out = Path(given.out)
    if out.exists() and any(out.iterdir()):
        parser.error(f"--out={out} is not empty")
    found = measure(out, given.given, given.kills, given.seed)
    print(f"{'command':20s} mmrl.prepare {' '.join(found['command'])}")
    for name in ("records", "images", "bytes", "files"):
        print(f"{name:20s} {found[name]:16,d}")
    print(f"{'seconds':20s} {found['seconds']:16,.1f}")
    print(f"{'records/s':20s} {found['records_per_second']:16,.0f}")
    print(f"{'MiB/s':20s} {found['bytes'] / 2**20 / found['seconds']:16,.1f}")
    if given.kills:
        at = ", ".join(map(str, found["killed_at_chunk"]))
        print(f"{'killed at chunk':20s} {at} of {found['chunks']}")
        print(f"{'seconds, last run':20s} {found['last_seconds']:16,.1f}")
        print(f"{'sha256 of all files':20s} {'equal' if found['identical'] else 'DIFFER':>16s}")
    commands.write(given, found)
    sys.exit(0 if found.get("identical", True) else 1)


if __name__ == "__main__":
    main()
