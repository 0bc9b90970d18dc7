"""Kills, starves and damages runs, and checks that each ends as one left in peace does.

    python -m benchmarks.chaos --workdir=runs/chaos --out=docs/results
    python -m benchmarks.chaos --only=kills,damage --settings=one --count=3

Every run trains 16 steps of a tiny model on phantoms. It is disturbed, then the same command is
started again. Its state (weights, optimizer), its log and its last evaluation must equal those of a
run that nothing disturbed, bit for bit. Moments are drawn by --seed. Writes OUT/chaos.md, with the
scenarios that earlier commands ran in the same --workdir.
"""

import argparse
import collections
import dataclasses
import datetime
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.chaos import scenarios
from benchmarks.chaos.runs import SETTINGS
from benchmarks.chaos.scenarios import Place, Row
from mmrl import files
from mmrl.training.checkpoint import versions

COMMAND = "python -m benchmarks.chaos"


class Scenario(NamedTuple):
    """A scenario: what it does, in which settings, and how often unless --count is given."""

    make: Callable[[Place, str, int], Iterator[Row]]
    settings: tuple[str, ...]
    times: int


SCENARIOS = {
    "kills": Scenario(scenarios.kills, tuple(SETTINGS), 20),
    "stops": Scenario(scenarios.stops, ("one",), 5),
    "one_of_two": Scenario(scenarios.one_of_two, ("two",), 2),
    "two_starts": Scenario(scenarios.two_starts, ("one", "two"), 2),
    "clocks": Scenario(scenarios.clocks, ("one",), 3),
    "damage": Scenario(scenarios.damage, ("one", "eight"), 8),
    "disk_full": Scenario(scenarios.disk_full, ("one",), 6),
    "files": Scenario(scenarios.files, ("one",), 2),
    "shards": Scenario(scenarios.shards, ("one",), 6),
    "vanishing_folder": Scenario(scenarios.vanishing_folder, ("one",), 2),
}


def main() -> None:
    """Runs the scenarios and writes the page; the exit status is 1 if something did not hold."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workdir", type=Path, default=Path("runs/chaos"), help="the runs")
    parser.add_argument("--out", type=Path, default=Path("docs/results"), help="the page")
    parser.add_argument("--only", default=",".join(SCENARIOS), help="scenarios, with commas")
    parser.add_argument("--settings", default=",".join(SETTINGS), help="settings, with commas")
    parser.add_argument("--count", type=int, default=0, help="of each; 0: as the scenario says")
    parser.add_argument("--seed", type=int, default=0, help="of all moments")
    args = parser.parse_args()
    place = Place(args.workdir, args.seed)
    for name in args.only.split(","):
        one = SCENARIOS[name]
        for key in (key for key in args.settings.split(",") if key in one.settings):
            rows = []
            for row in one.make(place, key, args.count or one.times):
                rows.append(row)
                print("held  " if row.held else "FAILED", *_cells(row), sep=" | ", flush=True)
            stored = [dataclasses.asdict(row) for row in rows]
            files.write_json(args.workdir / "rows" / f"{name}-{key}.json", stored)
    rows = list(_stored(args.workdir / "rows"))
    args.out.mkdir(parents=True, exist_ok=True)
    page = "\n".join(_page(rows))
    (args.out / "chaos.md").write_text(page, encoding="utf-8")
    raise SystemExit(not all(row.held for row in rows))


def _stored(folder: Path) -> Iterator[Row]:
    """The rows of all scenarios that were run in a folder, also by earlier commands."""
    for name, one in SCENARIOS.items():
        for key in one.settings:
            path = folder / f"{name}-{key}.json"
            for row in json.loads(path.read_text("utf-8")) if path.is_file() else ():
                yield Row(**row)


def _page(rows: Sequence[Row]) -> list[str]:
    grouped = collections.defaultdict(list)
    for row in rows:
        grouped[row.scenario, row.setting].append(row)
    lines = [
        "# Chaos",
        "",
        f"`{COMMAND}`, {datetime.date.today().isoformat()}, on "
        f"{len(os.sched_getaffinity(0))} cores; jax {versions()['jax']}. Each run trains 16 steps "
        "of a tiny model on phantoms, saves after every second step, is disturbed, and is started "
        "again with the same command. *Equal* says that state, log and last evaluation equal those "
        "of an undisturbed run bit for bit; *as it should* also counts the exit status, one line "
        "of error and no traceback.",
        "",
        "| disturbance | setting | equal | as it should |",
        "|---|---|---|---|",
    ]
    for (scenario, setting), own in grouped.items():
        equal, held = sum(not row.equal for row in own), sum(row.held for row in own)
        lines.append(f"| {scenario} | {setting} | {equal} of {len(own)} | {held} of {len(own)} |")
    lines += ["", "## Every moment", "", "| disturbance | setting | moment | exit status | equal |"]
    lines += ["|---|---|---|---|---|"]
    lines += [f"| {' | '.join(_cells(row))} |" for row in rows]
    return [*lines, ""]


def _cells(row: Row) -> list[str]:
    cells = [row.scenario, row.setting, row.moment, row.outcome, row.equal or "yes"]
    return [cell.replace("|", "\\|") for cell in cells]


if __name__ == "__main__":
    main()
