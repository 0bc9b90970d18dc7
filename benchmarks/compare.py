"""Ablation of the objectives: trains five sets of them with several seeds and compares the results.

    python -m benchmarks.compare --workdir=runs/compare --out=docs/results

Each run is `python -m mmrl.main --config=configs/compare.py:VARIANT --config.seed=SEED`. Corpus,
steps, batch and architecture are the same in all runs. The seed determines initialisation, order of
the data and perturbations. Completed runs are not repeated. Several runs execute in parallel, each
on its own CPU core. Writes a page with tables, the figures as JSON, and a plot.
"""

import argparse
import dataclasses
import datetime
import hashlib
import json
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import runs
from configs import compare as experiment
from mmrl import config as configs
from mmrl.reporting.figures import BLUE, GREY, VERMILION, new_figure, save, styled
from mmrl.training.checkpoint import versions

COMMAND = "python -m benchmarks.compare"
NAMES = {
    "global": "(a) global",
    "local": "(b) global + local",
    "discrimination": "(c) global + discrimination",
    "paper": "(d) all three: the paper",
    "clinical": "(e) all three, clinical kinds added",
}
_PROTOCOLS = ("authors-5way@1", "order-10way@1", "clinical@1", "balanced@1")


@dataclasses.dataclass(frozen=True)
class Measure:
    """A row of the table.

    Attributes:
      title: name of the row.
      evaluator, key: where its value is in the results of a run.
      needs: an objective without which the value has no meaning, or "".
    """

    title: str
    evaluator: str
    key: str
    needs: str = ""


MEASURES = (
    Measure("image to report R@1", "retrieval", "image_to_text/R@1"),
    Measure("report to image R@1", "retrieval", "text_to_image/R@1"),
    *(
        Measure(f"structure/{protocol} {title}", "structure", f"{protocol}/{row}")
        for protocol in _PROTOCOLS
        for row, title in (
            ("accuracy", "accuracy"),
            ("accuracy_images_permuted", "images permuted (blind)"),
            ("accuracy_text_only", "text only (blind)"),
            ("grounded_gain", "**grounded gain**"),
        )
    ),
    Measure("structure/control@1 accuracy", "structure", "control@1/accuracy"),
    Measure("zero-shot laterality AUROC", "zero_shot", "laterality/auroc"),
    Measure("zero-shot finding AUROC", "zero_shot", "findings/auroc"),
    Measure("pointing game accuracy", "pointing", "accuracy", "local_contrastive"),
)
FIGURE = (
    Measure("image to report R@1", "retrieval", "image_to_text/R@1"),
    Measure("order-10way grounded gain", "structure", "order-10way@1/grounded_gain"),
    Measure("clinical grounded gain", "structure", "clinical@1/grounded_gain"),
    Measure("balanced grounded gain", "structure", "balanced@1/grounded_gain"),
    Measure("laterality AUROC", "zero_shot", "laterality/auroc"),
    Measure("pointing accuracy", "pointing", "accuracy", "local_contrastive"),
)

Runs = dict[tuple[str, int], dict[str, Any]]
"""(variant, seed) -> evaluator -> results of that run."""


def main() -> None:
    """Runs the missing runs, then writes page, JSON and plot."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workdir", type=Path, default=Path("runs/compare"))
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", default=list(NAMES), choices=list(NAMES))
    parser.add_argument("--at-once", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("options", nargs="*", help="--config.KEY=VALUE, after --")
    args = parser.parse_args()
    began = time.monotonic()
    results = train(args)
    minutes = (time.monotonic() - began) / 60
    args.out.mkdir(parents=True, exist_ok=True)
    draw(results, args.variants, args.seeds, args.out / "compare.png")
    stored = {f"{variant}-{seed}": result for (variant, seed), result in results.items()}
    (args.out / "compare.json").write_text(json.dumps(_short(stored), indent=1) + "\n")
    page = write_page(results, args.variants, args.seeds, minutes, args.options)
    (args.out / "compare.md").write_text(page)
    print(page)


def train(args: argparse.Namespace) -> Runs:
    """Executes the runs that are missing and returns the results of all."""
    # Starts with the last variant, which takes longest, so that all cores finish at about the same
    # time.
    names = {f"{v}-{s}": (v, s) for v in reversed(args.variants) for s in args.seeds}
    results = runs.train_all(
        {
            name: [
                f"--config=configs/compare.py:{variant}",
                f"--config.seed={seed}",
                *args.options,
            ]
            for name, (variant, seed) in names.items()
        },
        args.workdir,
        args.at_once,
    )
    return {names[name]: result for name, result in results.items()}


def value(results: dict[str, Any], measure: Measure, variant: str) -> float | None:
    """The value of a measure in one run; None if it has no meaning there."""
    if measure.needs and measure.needs not in experiment.OBJECTIVES[variant]:
        return None
    found = results[measure.evaluator]["values"].get(measure.key)
    return None if found is None else found["value"]


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (0 for a single value)."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def write_page(
    results: Runs, variants: Sequence[str], seeds: Sequence[int], minutes: float, options: list[str]
) -> str:
    """The Markdown page with tables of values and differences."""
    first = results[variants[0], seeds[0]]
    hashes = ", ".join(f"{NAMES[v]} `{config_sha256(v)[:12]}`" for v in variants)
    suffix = " ".join(["--", *options]) if options else ""
    lines = [
        "# Ablation of the objectives, on phantom data",
        "",
        f"`{COMMAND} {suffix}`".replace(" `", "`")
        + f", {datetime.date.today().isoformat()}, {minutes:.0f} minutes, "
        f"{len(os.sched_getaffinity(0))} cores; jax {versions()['jax']}.",
        "",
        f"Mean and standard deviation over seeds {', '.join(map(str, seeds))}, on "
        f"{first['structure']['n']:,} held-out studies of patients without training data. "
        f"Digests of the configurations: {hashes}.",
        "",
        "![Key figures: one dot per seed, bars show the mean](compare.png)",
        "",
        *_table(results, variants, seeds),
        "",
        "## Paired differences to (a)",
        "",
        "Variant minus (a) with the same seed: mean, standard deviation, and their ratio (sd).",
        "",
        *_differences(results, variants, seeds),
        "",
    ]
    return "\n".join(lines)


def _table(results: Runs, variants: Sequence[str], seeds: Sequence[int]) -> list[str]:
    lines = [
        "| | " + " | ".join(NAMES[v] for v in variants) + " | chance | N |",
        "|---|" + "---|" * (len(variants) + 2),
    ]
    for measure in MEASURES:
        cells, chance, count = [], "", ""
        for variant in variants:
            values = [value(results[variant, seed], measure, variant) for seed in seeds]
            known = [v for v in values if v is not None]
            if len(known) == len(values):
                found = results[variant, seeds[0]][measure.evaluator]["values"][measure.key]
                mean, deviation = spread(known)
                cells.append(f"{mean:.3f} ± {deviation:.3f}")
                count = f"{found['n']:,}"
                chance = "" if found["chance"] is None else f"{found['chance']:.3f}"
            else:
                cells.append("not trained" if measure.needs else "none")
        lines.append(f"| {measure.title} | " + " | ".join(cells) + f" | {chance} | {count} |")
    return lines


def _differences(results: Runs, variants: Sequence[str], seeds: Sequence[int]) -> list[str]:
    base, *others = variants
    lines = [
        "| | " + " | ".join(f"{NAMES[v]} - {NAMES[base]}" for v in others) + " |",
        "|---|" + "---|" * len(others),
    ]
    for measure in MEASURES:
        if measure.needs or "text_only" in measure.key:
            continue  # (a) has no such value; the text-only model is the same for all variants
        cells = []
        for variant in others:
            own, of_base = (
                [value(results[name, seed], measure, name) for seed in seeds]
                for name in (variant, base)
            )
            pairs = zip(own, of_base, strict=True)
            gaps = [a - b for a, b in pairs if a is not None and b is not None]
            mean, deviation = spread(gaps) if gaps else (0.0, 0.0)
            ratio = f" ({mean / deviation:+.1f} sd)" if deviation > 1e-9 else ""
            cells.append(f"{mean:+.3f} ± {deviation:.3f}{ratio}" if gaps else "none")
        lines.append(f"| {measure.title} | " + " | ".join(cells) + " |")
    return lines


def config_sha256(variant: str) -> str:
    """Digest of the configuration of a variant, without the seed."""
    plain = configs.plain(experiment.get_config(variant))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _short(stored: dict[str, Any]) -> dict[str, Any]:
    """The values of all measures, without the other results of a run."""
    wanted = {(measure.evaluator, measure.key) for measure in (*MEASURES, *FIGURE)}
    return {
        name: {
            evaluator: {
                "protocol": result["protocol"],
                "data": result["data"],
                "n": result["n"],
                "excluded": result["excluded"],
                "values": {
                    key: value
                    for key, value in result["values"].items()
                    if (evaluator, key) in wanted
                },
            }
            for evaluator, result in results.items()
        }
        for name, results in stored.items()
    }


@styled
def draw(results: Runs, variants: Sequence[str], seeds: Sequence[int], path: Path) -> None:
    """One panel per key figure, with a bar for the mean of each variant and a dot for each seed."""
    figure = new_figure(11, 6)
    panels = figure.subplots(2, 3)
    for axis, measure in zip(panels.flat, FIGURE, strict=True):
        chance = None
        for place, variant in enumerate(variants):
            values = [value(results[variant, seed], measure, variant) for seed in seeds]
            known = [v for v in values if v is not None]
            if not known:
                axis.text(
                    place, 0, "not\ntrained", ha="center", va="bottom", color=GREY, fontsize=9
                )
                continue
            found = results[variant, seeds[0]][measure.evaluator]["values"][measure.key]
            chance = found["chance"] if chance is None else chance
            colour = BLUE if variant in ("paper", "clinical") else GREY
            axis.bar(place, statistics.fmean(known), 0.7, color=colour)
            axis.plot([place] * len(known), known, "o", color=VERMILION, markersize=4)
        if chance is not None:
            axis.axhline(chance, color="black", linewidth=1, linestyle=(0, (4, 3)))
        axis.set_title(measure.title)
        axis.set_xlim(-0.6, len(variants) - 0.4)
        axis.set_xticks(range(len(variants)), [NAMES[v].split()[0] for v in variants])
    for axis in panels.flat[4:5]:
        axis.set_ylim(bottom=0.4)
    key = "; ".join(NAMES[v] for v in variants)
    figure.suptitle(
        f"Phantom data, {len(seeds)} seeds (dots), means (bars), chance (dashed)\n{key}",
        fontsize=10,
    )
    save(figure, path)


if __name__ == "__main__":
    main()
