"""Ablation of the objectives: trains six sets of them with several seeds and compares the results.

    python -m benchmarks.ablation --workdir=runs/ablation --out=docs/results

Each run is `python -m mmrl.main --config=configs/compare.py:VARIANT --config.seed=SEED`. Corpus,
steps, batch and architecture are the same in all runs. The seed determines initialisation, order of
the data and perturbations. Completed runs are not repeated. Several runs execute in parallel, each
on its own CPU core. Writes a page with tables, the figures as JSON, and a plot. The column of the
supervised ceiling is from place.json of `python -m benchmarks.ceiling`, if --out has it. Ends in
`python -m mmrl.compare` of the runs with the first seed, WORKDIR/compared/comparison.html.
"""

import argparse
import datetime
import hashlib
import json
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks import runs
from benchmarks.results import Measure, Runs, Tables, cell, found, stored
from configs import compare as experiment
from mmrl import config as configs
from mmrl.reporting.figures import GREY, colours, new_figure, save, styled
from mmrl.training.checkpoint import versions

COMMAND = "python -m benchmarks.ablation"
NAMES = {
    "global": "(a) global",
    "local": "(b) global + local",
    "discrimination": "(c) global + discrimination",
    "paper": "(d) all three: the paper",
    "clinical": "(e) all three, clinical kinds added",
    "recommended": "(f) our recipe",
}
_EXCHANGED = "accuracy_boxes_permuted"
_PROTOCOLS = ("authors-5way@1", "order-10way@1", "clinical@1", "balanced@1")


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
    Measure("pointing, words", "pointing", "accuracy", "local_contrastive"),
    Measure("pointing, words, boxes exchanged", "pointing", _EXCHANGED, "local_contrastive"),
    Measure("pointing, sentences", "sentence_pointing", "accuracy", "sentence_contrastive"),
    Measure(
        "pointing, sentences, boxes exchanged",
        "sentence_pointing",
        _EXCHANGED,
        "sentence_contrastive",
    ),
)
FIGURE = (
    Measure("image to report R@1", "retrieval", "image_to_text/R@1"),
    Measure("order-10way grounded gain", "structure", "order-10way@1/grounded_gain"),
    Measure("clinical grounded gain", "structure", "clinical@1/grounded_gain"),
    Measure("finding AUROC", "zero_shot", "findings/auroc"),
    Measure("laterality AUROC", "zero_shot", "laterality/auroc"),
    Measure("pointing accuracy, words", "pointing", "accuracy", "local_contrastive"),
)
SENTENCES = Measure("pointing accuracy", "sentence_pointing", "accuracy", "sentence_contrastive")
"""What stands in the last panel for variants whose sentences point, not their words."""

CEILING = {"laterality/auroc": "laterality", "findings/auroc": "findings"}
"""Key of a measure -> task set of the supervised ceiling."""


def main() -> None:
    """Runs the missing runs, then writes page, JSON and plot."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workdir", type=Path, default=Path("runs/ablation"))
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
    draw(results, args.variants, args.seeds, args.out / "ablation.png")
    kept = stored(results, (*MEASURES, *FIGURE))
    found_ceiling = ceiling(args.out / "place.json")
    (args.out / "ablation.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    page = write_page(
        results, args.variants, args.seeds, minutes, args.options, ceiling=found_ceiling
    )
    (args.out / "ablation.md").write_text(page, encoding="utf-8")
    print(page)
    compare(args)


def compare(args: argparse.Namespace) -> None:
    """Compares the runs with the first seed under the evaluators of our recipe."""
    given = [f"{v}={args.workdir / f'{v}-{args.seeds[0]}'}" for v in args.variants]
    judge = ["--config=configs/compare.py:recommended", *args.options, "--split=val"]
    out = args.workdir / "compared"
    commands = {"compared": [*given, *judge, f"--out={out}"]}
    runs.execute(commands, args.workdir, 1, module="mmrl.compare")
    print(f"comparison page: {out / 'comparison.html'}")


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


def tables(results: Runs, variants: Sequence[str], seeds: Sequence[int]) -> Tables:
    """The tables of some variants."""
    names = {variant: NAMES[variant] for variant in variants}
    return Tables(results, names, seeds, experiment.OBJECTIVES)


def write_page(
    results: Runs,
    variants: Sequence[str],
    seeds: Sequence[int],
    minutes: float,
    options: list[str],
    *,
    ceiling: Mapping[str, str] | None = None,
) -> str:
    """The Markdown page with tables of values and differences."""
    first = results[variants[0], seeds[0]]
    tabulated = tables(results, variants, seeds)
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
        "![Key figures: one dot per seed, bars show the mean](ablation.png)",
        "",
        *with_ceiling(tabulated.table(MEASURES), ceiling or {}),
        "",
        "*Supervised*: the image tower of our recipe, trained on the labels of findings and sides "
        "for as many steps ([place.md](place.md)). Words point with GLoRIA's attention, sentences "
        "with that of our recipe.",
        "",
        "## Paired differences to (a)",
        "",
        "Variant minus (a) with the same seed: mean, standard deviation, and their ratio (sd).",
        "",
        # (a) trains the global loss alone; the text-only model is the same for all variants.
        *tabulated.differences(
            measure for measure in MEASURES if not measure.needs and "text_only" not in measure.key
        ),
        "",
    ]
    return "\n".join(lines)


def ceiling(file: Path) -> dict[str, str]:
    """Key of a measure -> "mean ± deviation" of the supervised ceiling; empty without the file."""
    if not file.exists():
        return {}
    by_seed = json.loads(file.read_text(encoding="utf-8"))["supervised"]["sides,zones"].values()
    return {
        key: cell([statistics.fmean(one[name].values()) for one in by_seed])
        for key, name in CEILING.items()
    }


def with_ceiling(lines: Sequence[str], ceiling: Mapping[str, str]) -> list[str]:
    """The table with one more column, the supervised ceiling of the measures that have one."""
    of_title = {measure.title: ceiling.get(measure.key, "") for measure in MEASURES}
    columns = ["supervised", "---", *(of_title[measure.title] for measure in MEASURES)]
    return [f"{line} {cell} |" for line, cell in zip(lines, columns, strict=True)]


def config_sha256(variant: str) -> str:
    """Digest of the configuration of a variant, without the seed."""
    plain = configs.plain(experiment.get_config(variant))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


@styled
def draw(results: Runs, variants: Sequence[str], seeds: Sequence[int], path: Path) -> None:
    """One panel per key figure, with a bar for the mean of each variant and a dot for each seed."""
    figure = new_figure(11, 6)
    panels = figure.subplots(2, 3)
    tabulated = tables(results, variants, seeds)
    of_variant = colours(variants)
    for axis, drawn in zip(panels.flat, FIGURE, strict=True):
        chance = None
        for place, variant in enumerate(variants):
            sentences = drawn is FIGURE[-1] and SENTENCES.needs in experiment.OBJECTIVES[variant]
            measure = SENTENCES if sentences else drawn
            known = [v for v in tabulated.values(measure, variant) if v is not None]
            if not known:
                axis.text(
                    place, 0, "not\ntrained", ha="center", va="bottom", color=GREY, fontsize=9
                )
                continue
            estimate = found(results[variant, seeds[0]], measure)
            chance = estimate["chance"] if estimate and chance is None else chance
            axis.bar(place, statistics.fmean(known), 0.7, color=of_variant[variant], alpha=0.6)
            axis.plot([place] * len(known), known, "o", color=of_variant[variant], markersize=4)
        if chance is not None:
            axis.axhline(chance, color="black", linewidth=1, linestyle=(0, (4, 3)))
        axis.set_title("pointing accuracy" if drawn is FIGURE[-1] else drawn.title)
        axis.set_xlim(-0.6, len(variants) - 0.4)
        axis.set_xticks(range(len(variants)), [NAMES[v].split()[0] for v in variants])
    for axis in panels.flat[3:5]:
        axis.set_ylim(bottom=0.4)
    key = "; ".join(NAMES[v] for v in variants)
    figure.suptitle(
        f"Phantom data, {len(seeds)} seeds (dots), means (bars), chance (dashed)\n{key}",
        fontsize=10,
    )
    save(figure, path)


if __name__ == "__main__":
    main()
