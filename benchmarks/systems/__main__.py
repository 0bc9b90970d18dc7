"""Trains the presets of published systems on phantoms, checks what each claims, and writes a page.

    python -m benchmarks.systems --workdir=runs/systems --out=docs
    python -m benchmarks.systems m3ae chexficient
    python -m benchmarks.systems m3ae --calibrate

--calibrate trains the seeds 10, 11 and 12 and freezes a threshold for each claim, half of the mean
effect, in benchmarks/systems/thresholds.json. Without it, the seeds 0, 1 and 2 are trained and
judged by the frozen thresholds; results go to docs/results/systems.json, and docs/systems.md is
written from all results that are there. Completed runs and values are not repeated.
"""

import argparse
import datetime
import json
import os
import resource
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import runs
from benchmarks.systems import check, page
from benchmarks.systems.check import Row, Runs
from mmrl.runs import describe

CALIBRATION, FINAL = (10, 11, 12), (0, 1, 2)
THRESHOLDS = Path(__file__).with_name("thresholds.json")


def main() -> None:
    """Checks the chosen rows one after the other."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help="rows; by default all that have no result yet")
    parser.add_argument("--workdir", type=Path, default=Path("runs/systems"), help="the runs")
    parser.add_argument("--out", type=Path, default=Path("docs"), help="the page and its results")
    parser.add_argument("--calibrate", action="store_true", help="freezes thresholds")
    parser.add_argument("--page", action="store_true", help="writes the page, and runs nothing")
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--at-once", type=int, default=cores, help="runs in parallel")
    args = parser.parse_args()
    if unknown := sorted(set(args.names) - set(check.names())):
        parser.error(f"unknown row {unknown[0]!r}; choices: {', '.join(check.names())}")
    thresholds = _read(THRESHOLDS)
    stored = args.out / "results" / "systems.json"
    results = _read(stored)
    done = thresholds if args.calibrate else results
    for name in () if args.page else args.names or [n for n in check.names() if n not in done]:
        row = check.load(name)
        unbounded = [claim.value for claim in row.CLAIMS if not claim.bounded]
        if args.calibrate:
            if frozen := sorted(set(unbounded) & set(thresholds.get(name, {}))):
                parser.error(f"{name} has a frozen threshold of {frozen[0]!r} in {THRESHOLDS}")
            measured = _measure(name, row, CALIBRATION, args)
            thresholds = _read(THRESHOLDS) | {name: _thresholds(row, measured["values"])}
            _write(THRESHOLDS, thresholds)
            print(f"{name}: frozen {json.dumps(thresholds[name])}", flush=True)
        else:
            if missing := sorted(set(unbounded) - set(thresholds.get(name, {}))):
                line = f"{name} has no threshold of {missing[0]!r}; first use --calibrate"
                if name in args.names:
                    parser.error(line)
                print(f"left out: {line}", flush=True)
                continue
            measured = _measure(name, row, FINAL, args)
            results = _read(stored) | {name: measured}  # another command may have added to it
            _write(stored, results)
            for claim in row.CLAIMS:
                print(f"{name}: {page.line(row, claim, results[name], thresholds)}", flush=True)
    if not args.calibrate:
        page.write(args.out / "systems.md", results, thresholds)


def _measure(name: str, row: Row, seeds: Sequence[int], args: argparse.Namespace) -> dict[str, Any]:
    """The values of each seed, and where and when they were found."""
    began = _core_minutes()
    given = {
        (label, seed): (f"{check.slug(one)}-{seed}", check.arguments(one, seed))
        for seed in seeds
        for label, one in row.RUNS.items()
    }
    missing = {folder: one for folder, one in given.values() if not _is_done(args.workdir / folder)}
    runs.train_all(missing, args.workdir, args.at_once)
    found = []
    for seed in seeds:
        path = args.workdir / "values" / f"{name}-{seed}.json"
        if not path.exists():
            folders = {
                label: args.workdir / folder
                for (label, of), (folder, _) in given.items()
                if of == seed
            }
            scratch = Path(tempfile.mkdtemp(prefix="mmrl-systems-"))
            try:
                values = {
                    key: float(v) for key, v in row.values(Runs(folders, seed, scratch)).items()
                }
            finally:
                shutil.rmtree(scratch)
            _write(path, values)
        found.append(_read(path))
    return {
        "seeds": list(seeds),
        "values": found,
        "date": datetime.date.today().isoformat(),
        "commit": _commit(),
        "core_minutes": round(_core_minutes() - began, 1),
    }


def _core_minutes() -> float:
    """Computing time of this process and its finished children, whatever else the machine did."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used) / 60


def _is_done(folder: Path) -> bool:
    """Whether a run is complete and evaluated; rows share runs."""
    complete = folder.is_dir() and describe(folder).status == "complete"
    return complete and any((folder / "results").glob("*.json"))


def _thresholds(row: Row, values: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Half of the mean effect of each claim without bounds."""
    frozen = {}
    for claim in row.CLAIMS:
        if not claim.bounded:
            effects = [claim.effect(one) for one in values]
            frozen[claim.value] = {
                "effects": [round(one, 4) for one in effects],
                "threshold": round(statistics.fmean(effects) / 2, 4),
            }
    return frozen


def _commit() -> str:
    """The commit of the working tree, with "+" if it has changes; "" outside a repository."""
    command = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip()


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    unfinished.replace(path)


if __name__ == "__main__":
    main()
