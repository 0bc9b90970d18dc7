"""Lists all runs below some folders: what became of them, their figures, their size.

Reads names of files and small JSON files only. The runs are sorted by their last change, the latest
first. The status of a run is one of these:

running: a process holds its lock. complete: all steps are done, or patience was at its end.
stopped: it has a checkpoint of an earlier step. failed: a loss was not finite after the last
checkpoint. new: it has no checkpoint yet. damaged: its config or its last checkpoint is not whole.

    python -m mmrl.runs runs
    python -m mmrl.runs runs /mnt/shared/runs --json
"""

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from absl import flags

from mmrl import build, cli, durations, locks, origins
from mmrl.commands import as_started
from mmrl.types import InputError

_FLAGS = cli.new_flags()
_JSON = flags.DEFINE_bool("json", False, "Prints a JSON list instead.", flag_values=_FLAGS)

_CONFIG, _CHECKPOINTS, _RESULTS, _NONFINITE = (
    "config.json",
    "checkpoints",
    "results",
    "nonfinite.json",
)
# What only a run has beside a config that cannot be read.
_OTHERS = (_CHECKPOINTS, "metrics.jsonl", origins.NAME, locks.NAME)
_PARTS = ("state", "data", "meta")  # of a checkpoint
_SHOWN = 3  # figures of a run


@dataclasses.dataclass(frozen=True)
class Run:
    """What is known of a run.

    Attributes:
      folder: its directory.
      status: running, complete, stopped, failed, new or damaged.
      detail: the reason of the status in words; "" where it says enough.
      step: of the last complete checkpoint; None without one.
      steps: after which it is complete; None where that is not known.
      best: step of the best checkpoint, if the run chose one.
      figures: "{evaluator}/{measure}" -> value, of the last evaluation, most important first.
      bytes: of all its files.
      changed: time of its last change, in seconds since the epoch.
      command: what to type to continue; "" if it is complete or not known.
    """

    folder: Path
    status: str
    detail: str
    step: int | None
    steps: int | None
    best: int | None
    figures: Mapping[str, float]
    bytes: int
    changed: float
    command: str


def find(folder: Path, unreadable: list[str]) -> list[Run]:
    """All runs in a folder and below it; a run may not lie within another.

    Args:
      unreadable: gets a line for each folder that cannot be read.

    Raises:
      InputError: there is no such folder.
    """
    if not folder.is_dir():
        lacks = "it is a file" if folder.exists() else build.no_folder(folder)
        raise InputError(f"'{folder}': {lacks}; expected a folder with runs")

    def note(error: OSError) -> None:
        unreadable.append(f"cannot read '{error.filename}': {error.strerror}")

    found = []
    for path, below, names in os.walk(folder, onerror=note):
        place = Path(path)
        if _is_run(place, {*below, *names}):
            found.append(describe(place))
            below.clear()
    return sorted(found, key=lambda run: -run.changed)


def _is_run(folder: Path, names: set[str]) -> bool:
    if _CONFIG not in names:
        return _CHECKPOINTS in names and (origins.NAME in names or locks.NAME in names)
    content = _read(folder / _CONFIG)
    if isinstance(content, dict):  # that of another program has no towers
        return isinstance(content.get("towers"), dict)
    return any(name in names for name in _OTHERS)


def describe(folder: Path) -> Run:
    """What is known of the run in a folder."""
    config, origin = _read(folder / _CONFIG), origins.read(folder)
    whole = isinstance(config, dict) and isinstance(config.get("towers"), dict)
    settings: Mapping[str, Any] = config if whole else {}
    step = max(_steps(folder), default=None)
    position = _read(folder / _CHECKPOINTS / str(step) / "data" / "metadata")
    selected = position.get("best") if isinstance(position, dict) else None
    best = selected if isinstance(selected, dict) else {}
    steps = origin.steps if origin else None if settings.get("epochs") else _total(settings)
    owner = locks.owner(folder / locks.NAME)
    failed = _read(folder / _NONFINITE)
    failure = failed.get("step") if isinstance(failed, dict) else None
    status, detail, command = "stopped", "", origin.command if origin else ""
    if owner is not None:
        status, detail = "running", str(owner)
    elif not whole:
        status, detail = "damaged", f"{_CONFIG} is missing or not whole"
    elif step is not None and (lost := _missing(folder, step)):
        status, detail = "damaged", f"checkpoint {step} has no {lost}"
        command += " --fall-back" if command else ""
    elif isinstance(failure, int) and failure > (step or 0):
        status, detail = "failed", f"not finite at step {failure}"
    elif step is None:
        status, detail = "new", "no checkpoint yet"
    elif (steps is not None and step >= steps) or _is_patience_over(settings, best):
        status = "complete"
    size, changed = _extent(folder)
    return Run(
        folder,
        status,
        detail,
        step,
        steps,
        best.get("step"),
        _figures(folder, settings),
        size,
        changed,
        "" if status in ("complete", "running") else command,
    )


def _read(path: Path) -> Any:
    """The content of a JSON file; None if it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def _steps(folder: Path) -> list[int]:
    """The steps of complete checkpoints; one that is being written has another name."""
    try:
        return [int(name) for name in os.listdir(folder / _CHECKPOINTS) if name.isdecimal()]
    except OSError:
        return []


def _total(settings: Mapping[str, Any]) -> int | None:
    total = settings.get("total_steps")
    return total if isinstance(total, int) else None


def _missing(folder: Path, step: int) -> str:
    """The parts that a checkpoint lacks."""
    place = folder / _CHECKPOINTS / str(step)
    return ", ".join(part for part in _PARTS if not (place / part).is_dir())


def _is_patience_over(settings: Mapping[str, Any], best: Mapping[str, Any]) -> bool:
    chosen = settings.get("best")
    patience = chosen.get("patience") if isinstance(chosen, dict) else 0
    return bool(patience) and best.get("waited", 0) >= patience


def _figures(folder: Path, settings: Mapping[str, Any]) -> dict[str, float]:
    """The headline figures of the last evaluation in training, that of config.best.metric first."""
    try:
        names = sorted(name for name in os.listdir(folder / _RESULTS) if name.endswith(".json"))
    except OSError:
        return {}
    read = (_read(folder / _RESULTS / name) for name in reversed(names))
    content = next((one for one in read if isinstance(one, dict)), {})
    found: dict[str, float] = {}
    with contextlib.suppress(AttributeError, KeyError, TypeError):  # not written by mmrl
        for evaluator, result in content["results"].items():
            values = result["values"]
            stated = content.get("headline", {}).get(evaluator, ())
            # Values are in order of importance.
            for name in [one for one in stated if one in values] or list(values)[:1]:
                found[f"{evaluator}/{name}"] = float(values[name]["value"])
    chosen = settings.get("best")
    metric = chosen.get("metric", "") if isinstance(chosen, dict) else ""
    if metric in found:
        found = {metric: found[metric], **found}
    return found


def _extent(folder: Path) -> tuple[int, float]:
    """Bytes of all files below a folder, and the time of the last change of one."""
    size, changed = 0, 0.0
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                stat = os.stat(os.path.join(path, name), follow_symlinks=False)
            except OSError:  # a running process deletes checkpoints
                continue
            size, changed = size + stat.st_size, max(changed, stat.st_mtime)
    return size, changed


def lines(runs: list[Run], now: float) -> Iterator[str]:
    """A row for each run; below it, its figures and how to continue it."""
    rows = [("run", "status", "step", "size", "changed")]
    for run in runs:
        step = "-" if run.step is None else f"{run.step:,}"
        step += "" if run.steps is None else f" of {run.steps:,}"
        rows.append(
            (
                str(run.folder),
                run.status,
                step + ("" if run.best is None else f", best {run.best:,}"),
                f"{run.bytes / 1e6:,.1f} MB",
                f"{durations.rough(now - run.changed)} ago",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    head, *others = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
    yield head
    for run, row in zip(runs, others, strict=True):
        yield row
        figures = [f"{name} {value:.3f}" for name, value in run.figures.items()]
        more = [f"and {len(figures) - _SHOWN} more"] if len(figures) > _SHOWN else []
        told = [run.detail, *figures[:_SHOWN], *more]
        told.append(f"to continue: {run.command}" if run.command else "")
        yield from (f"    {one}" for one in told if one)


def main(*folders: str) -> None:
    """Lists the runs."""
    if not folders:
        raise InputError("no folder was given; expected one or more with runs, see --help")
    for folder in folders:
        if "://" in folder:
            raise InputError(
                f"{folder} is an address; expected a folder on this machine: mount the bucket "
                "first (docs/cloud.md)"
            )
    unreadable: list[str] = []
    given = dict.fromkeys(Path(folder) for folder in folders)
    runs = [run for folder in given for run in find(folder, unreadable)]
    runs.sort(key=lambda run: -run.changed)
    if _JSON.value:
        plain = [{**dataclasses.asdict(run), "folder": str(run.folder)} for run in runs]
        print(json.dumps(plain, indent=2))
        return
    found = lines(runs, time.time()) if runs else [f"no runs below {', '.join(map(str, given))}"]
    print(as_started("\n".join([*found, *unreadable])))


if __name__ == "__main__":
    cli.run(main, _FLAGS, __doc__, positional=True)
