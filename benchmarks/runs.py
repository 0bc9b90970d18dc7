"""Trains several runs in parallel, each on its own CPU core."""

import concurrent.futures
import json
import os
import queue
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_ON_CORE = (
    "import os, sys; os.sched_setaffinity(0, {int(sys.argv[1])}); "
    "os.execv(sys.executable, [sys.executable, *sys.argv[2:]])"
)


def train_all(
    runs: Mapping[str, Sequence[str]], workdir: Path, at_once: int
) -> dict[str, dict[str, Any]]:
    """Executes `mmrl.main` for every run; completed runs are not repeated.

    Args:
      runs: name of the run directory -> arguments of `mmrl.main`.
      at_once: number of runs in parallel.

    Returns:
      Name -> evaluator -> results of the last step.

    Raises:
      SystemExit: a run failed; names it and its log.
    """
    cores: queue.SimpleQueue[int] = queue.SimpleQueue()
    for core in sorted(os.sched_getaffinity(0))[:at_once]:
        cores.put(core)

    def run(name: str) -> dict[str, Any]:
        core = cores.get()
        try:
            return _train(name, runs[name], workdir, core)
        finally:
            cores.put(core)

    with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
        return dict(zip(runs, pool.map(run, runs), strict=True))


def _train(name: str, arguments: Sequence[str], workdir: Path, core: int) -> dict[str, Any]:
    folder = workdir / name
    command = [
        *(sys.executable, "-c", _ON_CORE, str(core), "-m", "mmrl.main"),
        *(*arguments, f"--workdir={folder}", "--nosummary"),
        f"--config.compile_cache={(workdir / 'compile_cache').resolve()}",
    ]
    began = time.monotonic()
    workdir.mkdir(parents=True, exist_ok=True)
    log = workdir / f"{name}.log"
    with log.open("w") as out:
        code = subprocess.call(command, stdout=out, stderr=subprocess.STDOUT)
    if code:
        raise SystemExit(f"{name} failed with exit status {code}; see {log}")
    last = sorted((folder / "results").glob("*.json"))[-1]
    print(f"{name}: {(time.monotonic() - began) / 60:.1f} min", flush=True)
    return json.loads(last.read_text())["results"]
