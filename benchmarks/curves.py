"""Learning curves of our recipe and of its ablations, on phantoms.

    python -m benchmarks.curves --workdir=runs/ablation --out=docs/results

Trains `configs/pretrain.py` and, for fewer steps, our recipe without one of its parts
(`configs/compare.py`), each with several seeds, and evaluates them several times on the way.
Completed runs are not repeated; those of `python -m benchmarks.ablation` are reused. Writes a plot,
and a page with the value of every measure at every evaluation.
"""

import argparse
import datetime
import json
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import ablation, runs
from benchmarks.results import Measure, cell
from mmrl.reporting.figures import colours, new_figure, save, styled
from mmrl.training.checkpoint import versions

COMMAND = "python -m benchmarks.curves"
NAMES = {
    "demo": "our recipe, 1,200 steps (make pretrain)",
    "recommended": "our recipe",
    "mean_pool": "mean pool",
    "no_convolution": "no convolution in the text tower",
    "gloria": "GLoRIA's local loss",
}
PRESETS = {"demo": "configs/pretrain.py"} | {
    variant: f"configs/compare.py:{variant}" for variant in NAMES if variant != "demo"
}
COLOURS = colours(NAMES, fixed=colours(ablation.NAMES))

# Where a sentence contrast was trained, sentences point; with GLoRIA's loss, words do.
POINTING = {"gloria": "pointing"}
MEASURES = (
    Measure("image to report R@1", "retrieval", "image_to_text/R@1"),
    Measure("report to image R@1", "retrieval", "text_to_image/R@1"),
    Measure("zero-shot laterality AUROC", "zero_shot", "laterality/auroc"),
    Measure("zero-shot finding AUROC", "zero_shot", "findings/auroc"),
    Measure("pointing accuracy", "sentence_pointing", "accuracy"),
    Measure("pointing, boxes exchanged", "sentence_pointing", "accuracy_boxes_permuted"),
    Measure("clinical grounded gain", "structure", "clinical@1/grounded_gain"),
)

Curves = dict[tuple[str, int], dict[int, dict[str, Any]]]
"""(variant, seed) -> step -> evaluator -> results."""


def main() -> None:
    """Executes the missing runs, then writes plot and page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workdir", type=Path, default=Path("runs/ablation"), help="the runs")
    parser.add_argument("--out", type=Path, default=Path("docs/results"), help="plot and page")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of every variant")
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--at-once", type=int, default=cores, help="runs in parallel")
    parser.add_argument("options", nargs="*", help="--config.KEY=VALUE of all runs, after --")
    args = parser.parse_args()
    began = time.monotonic()
    wanted = {f"{variant}-{seed}": (variant, seed) for variant in NAMES for seed in args.seeds}
    runs.train_all(
        {
            name: [f"--config={PRESETS[variant]}", f"--config.seed={seed}", *args.options]
            for name, (variant, seed) in wanted.items()
        },
        args.workdir,
        args.at_once,
    )
    minutes = (time.monotonic() - began) / 60
    curves = {key: read(args.workdir / name) for name, key in wanted.items()}
    args.out.mkdir(parents=True, exist_ok=True)
    draw(curves, args.seeds, args.out / "curves.png")
    page = write_page(curves, args.seeds, minutes, args.options)
    (args.out / "curves.md").write_text(page, encoding="utf-8")
    print(page)


def read(folder: Path) -> dict[int, dict[str, Any]]:
    """Step -> evaluator -> results, of every evaluation of a run."""
    files = sorted((folder / "results").glob("*.json"))
    stored = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    return {one["step"]: one["results"] for one in stored}


def value(variant: str, results: Mapping[str, Any], measure: Measure) -> dict[str, Any]:
    """The estimate of a measure at one evaluation of a variant."""
    pointing = measure.evaluator == "sentence_pointing"
    evaluator = POINTING.get(variant, measure.evaluator) if pointing else measure.evaluator
    return results[evaluator]["values"][measure.key]


def write_page(curves: Curves, seeds: Sequence[int], minutes: float, options: Sequence[str]) -> str:
    """The Markdown page: one table per measure, a row per variant and step."""
    suffix = " ".join(["", "--", *options]) if options else ""
    lines = [
        "# Learning curves of our recipe and its ablations, on phantom data",
        "",
        f"`{COMMAND}{suffix}`, {datetime.date.today().isoformat()}, {minutes:.0f} minutes on "
        f"{len(os.sched_getaffinity(0))} cores without the runs that it found; jax "
        f"{versions()['jax']}. Mean and standard deviation over seeds "
        f"{', '.join(map(str, seeds))}, on held-out studies. The learning rate falls to 0 at the "
        "last step of each run, so a value on the way is below that of a run of so many steps. "
        f"Pointing is of sentences (chance {_chance(curves, seeds):.3f}); with GLoRIA's loss, of "
        "words.",
        "",
        "![One line per variant: the mean; dots: the seeds](curves.png)",
        "",
    ]
    header = "| variant | step | " + " | ".join(measure.title for measure in MEASURES) + " |"
    lines += [header, "|---|---|" + "---|" * len(MEASURES)]
    for variant, title in NAMES.items():
        for step in sorted(curves[variant, seeds[0]]):
            cells = []
            for measure in MEASURES:
                of_seeds = [
                    value(variant, curves[variant, seed][step], measure)["value"] for seed in seeds
                ]
                cells.append(cell(of_seeds))
            lines.append(f"| {title} | {step:,} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _chance(curves: Curves, seeds: Sequence[int]) -> float:
    last = max(curves["demo", seeds[0]])
    return curves["demo", seeds[0]][last]["sentence_pointing"]["values"]["accuracy"]["chance"]


@styled
def draw(curves: Curves, seeds: Sequence[int], path: Path) -> None:
    """One panel per measure: a line through the means of each variant, a dot for each seed."""
    drawn = [m for m in MEASURES if m.key not in ("text_to_image/R@1", "accuracy_boxes_permuted")]
    figure = new_figure(12, 6.5)
    panels = list(figure.subplots(2, 3).flat)
    for axis, measure in zip(panels, drawn, strict=False):
        for variant in NAMES:
            steps = sorted(curves[variant, seeds[0]])
            of_steps = [
                [value(variant, curves[variant, seed][step], measure)["value"] for seed in seeds]
                for step in steps
            ]
            means = [statistics.fmean(values) for values in of_steps]
            axis.plot(steps, means, color=COLOURS[variant], linewidth=1.6, label=NAMES[variant])
            for step, values in zip(steps, of_steps, strict=True):
                axis.plot([step] * len(values), values, "o", color=COLOURS[variant], markersize=3)
        last = max(curves["demo", seeds[0]])
        chance = value("demo", curves["demo", seeds[0]][last], measure)["chance"]
        if chance is not None:
            axis.axhline(chance, color="black", linewidth=1, linestyle=(0, (4, 3)))
        axis.set_title(measure.title)
        axis.set_xlabel("step")
        axis.set_xlim(left=0)
    handles, labels = panels[0].get_legend_handles_labels()
    panels[-1].axis("off")
    panels[-1].legend(handles, labels, loc="center", frameon=False, title="dashed: chance")
    figure.suptitle("Phantom data, held-out studies")
    save(figure, path)


if __name__ == "__main__":
    main()
