"""Fine-tuning from 1, 10 and 100 % of the labels of phantoms, against training from scratch.

    python -m benchmarks.finetune --from runs/pretrain-0 runs/pretrain-1 runs/pretrain-2 \
        --workdir=runs/finetune --out=docs/results

Trains `configs/finetune.py:sides` from each share of the labels, drawn by patient, with and without
the weights of the runs of --from. Draw n has seed n, and starts from run n of --from; both starts
of a draw learn from the same patients. Every run stops by its AUROC on the validation split; its
best checkpoint is evaluated on the test split. Completed runs are not repeated. Writes a page and
the figures as JSON.
"""

import argparse
import datetime
import json
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from benchmarks import runs
from benchmarks.ablation import ceiling
from benchmarks.ceiling import Areas, areas_of_logits, macro
from benchmarks.results import cell, spread
from mmrl.evaluators.zero_shot import ask
from mmrl.training import run
from mmrl.training.checkpoint import versions
from mmrl.types import InputError

COMMAND = "python -m benchmarks.finetune"
STARTS = {"pretrained": "sides", "scratch": "sides,scratch"}
"""Start -> variant of `configs/finetune.py`."""
STEPS = {0.01: 200, 0.1: 400, 1.0: 600}
"""Share of the labels -> most steps of a run."""
EVALUATIONS = 20
"""In as many steps; the runs of all shares wait for equally many of them."""
TITLES = {"findings": "findings", "laterality": "left or right"}


def main() -> None:
    """Trains what is missing, evaluates, and writes page and JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--from",
        dest="pretrained",
        type=Path,
        nargs="+",
        required=True,
        metavar="RUN",
        help="runs of configs/pretrain.py; draw n starts from run n, and so on in a circle",
    )
    parser.add_argument("--workdir", type=Path, default=Path("runs/finetune"), help="the runs")
    parser.add_argument("--out", type=Path, default=Path("docs/results"), help="page and JSON")
    parser.add_argument("--draws", type=int, default=3, help="draws, and seeds, of each share")
    parser.add_argument(
        "--fractions", type=float, nargs="+", default=list(STEPS), choices=list(STEPS)
    )
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--at-once", type=int, default=cores, help="runs in parallel")
    parser.add_argument("options", nargs="*", help="--config.KEY=VALUE of all runs, after --")
    args = parser.parse_args()
    if args.draws < 1:
        raise SystemExit(f"--draws={args.draws}: expected at least 1")
    began = time.monotonic()
    runs.train_all(commands(args), args.workdir, args.at_once)
    try:
        results = {
            f"{fraction:g}": {
                start: [
                    evaluated(args.workdir / run_name(start, fraction, draw))
                    for draw in range(args.draws)
                ]
                for start in STARTS
            }
            for fraction in args.fractions
        }
    except InputError as error:
        raise SystemExit(f"{args.workdir}: {error}") from None
    found = {
        "settings": {
            "command": shlex.join([*COMMAND.split(), *sys.argv[1:]]),
            "jax": versions()["jax"],
            "draws": args.draws,
        },
        "results": results,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "finetune.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    minutes = (time.monotonic() - began) / 60
    page = write_page(found, minutes, ceiling(args.out / "place.json"))
    (args.out / "finetune.md").write_text(page, encoding="utf-8")
    print(page)


def run_name(start: str, fraction: float, draw: int) -> str:
    """The folder of a run: "scratch-0.1-2"."""
    return f"{start}-{fraction:g}-{draw}"


def commands(args: argparse.Namespace) -> dict[str, list[str]]:
    """Name of each run -> arguments of `mmrl.main`; the longest runs come first."""
    found = {}
    for fraction in sorted(args.fractions, reverse=True):
        for draw in range(args.draws):
            pretrained = args.pretrained[draw % len(args.pretrained)]
            for start, variant in STARTS.items():
                found[run_name(start, fraction, draw)] = [
                    f"--config=configs/finetune.py:{variant}",
                    f"--config.seed={draw}",
                    f"--config.data.train_fraction={fraction:g}",
                    f"--config.data.train_draw={draw}",
                    f"--config.total_steps={STEPS[fraction]}",
                    f"--config.eval_every={STEPS[fraction] // EVALUATIONS}",
                    f"--config.checkpoint.every={STEPS[fraction]}",
                    *([f"--config.towers.image.init={pretrained}"] if start != "scratch" else []),
                    *args.options,
                ]
    return found


def evaluated(folder: Path) -> dict[str, Any]:
    """AUROCs of the best checkpoint of a run on the test split, and what it learned from."""
    trained = run.restore(folder, step="best")
    data = trained.examples(run.load_corpus(trained.config, "test"))
    logits = trained.predict.encode(trained.state, data, ["image.labels"])["image.labels"]
    names = tuple(trained.config.data.label_names)
    areas: Areas = areas_of_logits(ask(data).sets, logits, names, sides=True)
    return {
        "step": trained.step,
        "weights_sha256": trained.weights_sha256(),
        "draw": dict(trained.meta["draw"]) if "draw" in trained.meta else {},
        "data": {"name": data.name, "sha256": data.sha256, "n": len(data)},
        "areas": areas,
    }


def macros(of_draws: Sequence[Mapping[str, Any]], task_set: str) -> list[float]:
    """The mean AUROC over the findings of a task set, of every draw."""
    return [macro(one["areas"][task_set]) for one in of_draws]


def interval(differences: Sequence[float]) -> tuple[float, float] | None:
    """95 % interval of the mean of paired differences by Student's t; None for a single one."""
    mean, deviation = spread(differences)
    count = len(differences)
    if count < 2:
        return None
    reach = float(stats.t.ppf(0.975, count - 1)) * deviation / np.sqrt(count)
    return mean - reach, mean + reach


def write_page(found: Mapping[str, Any], minutes: float, ceiling: Mapping[str, str]) -> str:
    """The Markdown page."""
    results, settings = found["results"], found["settings"]
    first = next(iter(results.values()))["scratch"][0]
    rows = ["| labels | patients | images | start | " + " | ".join(TITLES.values()) + " |"]
    rows.append("|---|---|---|---|" + "---|" * len(TITLES))
    gaps = ["| labels | " + " | ".join(TITLES.values()) + " |", "|---|" + "---|" * len(TITLES)]
    for fraction, of_starts in results.items():
        share = f"{float(fraction):.0%}"
        for start, of_draws in of_starts.items():
            sizes = [
                " to ".join(map(str, sorted({one["draw"][key] for one in of_draws})))
                if of_draws[0]["draw"]
                else "all"
                for key in ("patients", "examples")
            ]
            cells = [cell(macros(of_draws, name)) for name in TITLES]
            rows.append(f"| {share} | {' | '.join(sizes)} | {start} | {' | '.join(cells)} |")
        cells = []
        for name in TITLES:
            one, other = (macros(of_starts[start], name) for start in STARTS)
            pairs = [a - b for a, b in zip(one, other, strict=True)]
            ends = interval(pairs)
            text = "" if ends is None else f" [{ends[0]:+.3f}, {ends[1]:+.3f}]"
            cells.append(cell(pairs, signed=True) + text)
        gaps.append(f"| {share} | {' | '.join(cells)} |")
    lines = [
        "# Fine-tuning on phantoms: shares of the labels",
        "",
        f"`{settings['command']}`, {datetime.date.today().isoformat()}, {minutes:.0f} minutes, "
        f"{len(os.sched_getaffinity(0))} cores; jax {settings['jax']}.",
        "",
        "Mean AUROC over findings, and over the questions whether a finding is left or right, on "
        f"{first['data']['n']:,} studies of the test split (`{first['data']['sha256'][:12]}`). "
        f"Mean and standard deviation of {settings['draws']} draws. Draw n has seed n, a "
        "pretrained run of its own where there are as many, and from 1 and 10 % of the labels "
        "patients of its own; the draws from all labels differ in their seeds alone. Both starts "
        "of a draw learn from the same patients. A draw is the first part of a random order of the "
        "patients; the first patients with a class that it lacks take the place of its last ones "
        "(`mmrl.data.draws`). Training stops when ten evaluations in a row bring no better AUROC "
        "on the validation split, and the best checkpoint counts. Chance is 0.5.",
        "",
        *rows,
        "",
    ]
    if ceiling:
        lines += [
            "The same tower, trained on all labels for as many steps as that page states, "
            f"evaluated on the validation split ([place.md](place.md)): findings "
            f"{ceiling['findings/auroc']}, left or right {ceiling['laterality/auroc']}.",
            "",
        ]
    lines += [
        "## Paired differences",
        "",
        "Pretrained minus scratch in the same draw: mean, standard deviation, and the 95 % "
        "interval of the mean over draws by Student's t.",
        "",
        *gaps,
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
