"""Executes several commands in parallel, each on its own CPU core."""

import argparse
import concurrent.futures
import datetime
import json
import os
import queue
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmrl.training.checkpoint import versions

_ON_CORE = (
    "import os, sys; os.sched_setaffinity(0, {int(sys.argv[1])}); "
    "os.execv(sys.executable, [sys.executable, *sys.argv[2:]])"
)


def arguments(doc: str | None, workdir: str) -> argparse.ArgumentParser:
    """A parser with what commands that train several presets share."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--workdir", type=Path, default=Path(workdir), help="the runs")
    parser.add_argument("--out", type=Path, default=Path("docs/results"), help="the page")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of every run")
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--at-once", type=int, default=cores, help="runs in parallel")
    return parser


def stamp(command: str, began: float) -> str:
    """What a page states first: its command, the date, how long it took, and where.

    Args:
      began: `time.monotonic()` at the start of the command.
    """
    minutes, cores = (time.monotonic() - began) / 60, len(os.sched_getaffinity(0))
    today = datetime.date.today().isoformat()
    return f"`{command}`, {today}, {minutes:.0f} minutes on {cores} cores; jax {versions()['jax']}."


def write(page: Path, text: str) -> None:
    """Writes and prints a page."""
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(text, encoding="utf-8")
    print(text)


def execute(
    commands: Mapping[str, Sequence[str]], workdir: Path, at_once: int, *, module: str
) -> None:
    """Executes a module with several lists of arguments, each in a process on its own core.

    Args:
      commands: name -> arguments. Output goes to NAME.log in `workdir`.
      at_once: number of processes in parallel.
      module: that every process executes, such as mmrl.main.

    Raises:
      SystemExit: a process failed; names it and its log.
    """
    cores: queue.SimpleQueue[int] = queue.SimpleQueue()
    for core in sorted(os.sched_getaffinity(0))[:at_once]:
        cores.put(core)

    def run(name: str) -> None:
        core = cores.get()
        try:
            _execute(name, [module, *commands[name]], workdir, core)
        finally:
            cores.put(core)

    with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
        list(pool.map(run, commands))


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
    cache = f"--config.compile_cache={(workdir / 'compile_cache').resolve()}"
    commands = {
        name: [*given, f"--workdir={workdir / name}", "--nosummary", cache]
        for name, given in runs.items()
    }
    execute(commands, workdir, at_once, module="mmrl.main")
    last = {name: sorted((workdir / name / "results").glob("*.json"))[-1] for name in runs}
    return {
        name: json.loads(path.read_text(encoding="utf-8"))["results"] for name, path in last.items()
    }


def _execute(name: str, arguments: Sequence[str], workdir: Path, core: int) -> None:
    command = [sys.executable, "-c", _ON_CORE, str(core), "-m", *arguments]
    began = time.monotonic()
    log = workdir / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as out:
        code = subprocess.call(command, stdout=out, stderr=subprocess.STDOUT)
    if code:
        raise SystemExit(f"{name} failed with exit status {code}; see {log}")
    print(f"{name}: {(time.monotonic() - began) / 60:.1f} min", flush=True)
