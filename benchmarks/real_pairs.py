"""Trains three image poolers on real image-text pairs with several seeds and compares them.

    python -m benchmarks.real_pairs --workdir=runs/real --out=docs/results

Each run is `python -m mmrl.main --config=configs/real.py:CORPUS,POOL --config.seed=SEED` on the
tables of `benchmarks.real_tables`, from scratch. MMRL_REAL_DATA names the folder of the corpora.
Completed runs are not repeated; several execute in parallel, each on its own CPU core. Writes a
page with tables, the figures as JSON, and a picture of where sentences of held-out captions point.
"""

import argparse
import dataclasses
import datetime
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import real_tables, runs
from benchmarks.recalls import held_out, recalls
from benchmarks.results import Interval, Measure, Runs, Tables, stored
from configs import real as experiment
from mmrl import build
from mmrl.data.inputs.sentences import phrases
from mmrl.data.perturb.statements import affirms
from mmrl.evaluators import metrics, statistics
from mmrl.training import run
from mmrl.training.checkpoint import versions

COMMAND = "python -m benchmarks.real_pairs"
NAMES = {"mean": "mean", "zones": "zones (4 x 4)", "attention": "attention"}
PICTURED = ("roco", "zones", 0)
"""The run whose sentences are pictured, fixed before any run."""

_BLIND = "images_permuted"
_PERMUTED = "images permuted (blind)"
_TASKS = {"roco": experiment.modality_tasks(), "covid": experiment.view_tasks()}
_DIRECTIONS = {"image_to_text": "image to text", "text_to_image": "text to image"}
_HEADINGS = {
    "roco": "3,045 figures with captions (roco_pairs)",
    "covid": "196 radiographs with clinical notes (covid_cxr)",
}
_ABOUT = {
    "roco": "Divided by article; all seeds share the held-out articles. The index does not state a "
    "modality, so a figure has the one that its caption names; figures whose captions name none or "
    "several are left out of the zero-shot tasks. Each task sets the prompts of one modality "
    "against those of the three others.",
    "covid": f"Divided into {real_tables.FOLDS} parts by patient and note; the run with seed N is "
    "judged on part N, so every pair is held out once. The deviation over seeds is also one over "
    "parts.",
}


def measures(corpus: str) -> list[Measure]:
    """The rows of the table of a corpus."""
    rows = []
    for key, title in _DIRECTIONS.items():
        rows.append(Measure(f"{title} R@1", "retrieval", f"{key}/R@1"))
        rows.append(Measure(f"{title} R@1, {_PERMUTED}", "pairs", f"{key}/{_BLIND}"))
    rows.append(Measure("R@1 of a constant", "pairs", "constant/R@1"))
    tasks = [f"tasks/{task}" for task in _TASKS[corpus]]
    for where in ["tasks", *tasks] if len(tasks) > 1 else tasks:
        what = "mean over tasks" if where == "tasks" else where.removeprefix("tasks/")
        title = f"zero-shot AUROC, {what}"
        rows.append(Measure(title, "zero_shot", f"{where}/auroc"))
        blind = f"{where}/auroc_{_BLIND}"
        rows.append(Measure(f"{title}, {_PERMUTED}", "zero_shot", blind))
    return [*rows, Measure("AUROC of a constant", "pairs", "constant/auroc")]


@dataclasses.dataclass(frozen=True)
class Judged:
    """What a run got right, item by item, for intervals over several runs.

    Attributes:
      patients: of the N held-out pairs; for roco the article.
      hits: key of a measure -> f64[N].
      draws: key of a measure -> f64[S], its AUROC in bootstrap draws over patients; NaN where a
        draw lacks a class.
      values: key -> estimates of this file, as evaluators store theirs.
    """

    patients: Sequence[str]
    hits: Mapping[str, np.ndarray]
    draws: Mapping[str, np.ndarray]
    values: Mapping[str, Mapping[str, Any]]


def judge(folder: Path, results: Mapping[str, Any], *, part: int) -> Judged:
    """Encodes the held-out pairs of a run again.

    Args:
      results: of the run. part: runs with equal parts hold out the same pairs.
    """
    trained = run.restore(folder)
    data = held_out(trained)
    found = recalls(trained, data, "image.embedding", "text.embedding")
    hits = {
        "image_to_text/R@1": found.forth,
        "text_to_image/R@1": found.back,
        f"image_to_text/{_BLIND}": found.forth_permuted,
        f"text_to_image/{_BLIND}": found.back_permuted,
    }
    constant = {
        "constant/R@1": (
            results["retrieval"]["details"]["constant_predictor"]["R@1"],
            found.chance,
        ),
        "constant/auroc": (results["zero_shot"]["details"]["constant_predictor"]["auroc"], 0.5),
    }
    values = {key: (float(row.mean()), found.chance) for key, row in hits.items()} | constant
    chosen = {"zero_shot": trained.config.evaluators["zero_shot"]}
    evaluator: Any = run.make_evaluators(chosen, trained.predict, data)["zero_shot"]
    tasks = evaluator.ranked(trained.state)["tasks"]
    # Equal seeds of the draws where the pairs are equal, so that runs are resampled together.
    drawn = metrics.draws(list(tasks.values()), data.patients, seed=part, tie=statistics.TIE)
    draws = {f"tasks/{name}/auroc": column for name, column in zip(tasks, drawn.T, strict=True)}
    return Judged(
        found.patients.tolist(),
        {key: row.astype(np.float64) for key, row in hits.items()},
        {**draws, "tasks/auroc": drawn.mean(axis=1)},
        {
            key: {
                "value": value,
                "low": None,
                "high": None,
                "n": len(found.forth),
                "chance": chance,
            }
            for key, (value, chance) in values.items()
        },
    )


def interval(
    own: Sequence[Judged], key: str, base: Sequence[Judged] | None = None
) -> Interval | None:
    """95 % interval of the mean over runs, or of the mean difference to `base`; None without one.

    From a bootstrap over patients, who are drawn with their pairs in all runs together.
    """
    if key in own[0].hits:
        rows = [one.hits[key] for one in own]
        if base is not None:
            rows = [a - b.hits[key] for a, b in zip(rows, base, strict=True)]
        patients = [patient for one in own for patient in one.patients]
        low, high = statistics.patient_bootstrap(np.concatenate(rows), patients)
        return float(low), float(high)
    if key not in own[0].draws:
        return None
    drawn = np.mean([one.draws[key] for one in own], axis=0)
    if base is not None:
        drawn = drawn - np.mean([one.draws[key] for one in base], axis=0)
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return None
    low, high = np.quantile(drawn, (0.025, 0.975))
    return float(low), float(high)


def main() -> None:
    """Runs the missing runs, then writes page, JSON and picture."""
    parser = runs.arguments(__doc__, "runs/real")
    corpora = list(experiment.CORPORA)
    parser.add_argument("--corpora", nargs="+", default=corpora, choices=corpora)
    parser.add_argument("options", nargs="*", help="--config.KEY=VALUE, after --")
    args = parser.parse_args()
    began = time.monotonic()
    results = train(args)
    minutes = (time.monotonic() - began) / 60
    judged = {
        (corpus, pool, seed): judge(
            args.workdir / _name(corpus, pool, seed), result, part=part_of(corpus, seed)
        )
        for (corpus, pool, seed), result in results.items()
    }
    args.out.mkdir(parents=True, exist_ok=True)
    tables = {corpus: tabulate(corpus, args.seeds, results, judged) for corpus in args.corpora}
    kept = {corpus: stored(table.runs, measures(corpus)) for corpus, table in tables.items()}
    (args.out / "real_pairs.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    shown = PICTURED in results
    if shown:
        picture(args.workdir / _name(*PICTURED), args.out / "real_pairs.png")
    page = write_page(tables, args.seeds, minutes, args.options, shown=shown)
    (args.out / "real_pairs.md").write_text(page, encoding="utf-8")
    print(page)


def _name(corpus: str, pool: str, seed: int) -> str:
    return f"{corpus}-{pool}-{seed}"


def part_of(corpus: str, seed: int) -> int:
    """Which part of a corpus the run with a seed holds out."""
    return seed % real_tables.FOLDS if corpus == "covid" else 0


def train(args: argparse.Namespace) -> dict[tuple[str, str, int], dict[str, Any]]:
    """Executes the runs that are missing and returns the results of all."""
    for corpus in args.corpora:
        real_tables.write(corpus, args.workdir / f"{corpus}.csv")
    # Runs on roco take longer; they start first, so that all cores finish at about the same time.
    names = {
        _name(corpus, pool, seed): (corpus, pool, seed)
        for corpus in experiment.CORPORA
        if corpus in args.corpora
        for seed in args.seeds
        for pool in NAMES
    }
    given = {name: [*arguments(*one, args.workdir), *args.options] for name, one in names.items()}
    found = runs.train_all(given, args.workdir, args.at_once)
    return {names[name]: result for name, result in found.items()}


def arguments(corpus: str, pool: str, seed: int, workdir: Path) -> list[str]:
    """Arguments of `mmrl.main` for one run."""
    part = f"--config.data.split_column=fold-{part_of(corpus, seed)}"
    return [
        f"--config=configs/real.py:{corpus},{pool}",
        f"--config.seed={seed}",
        f"--config.data.path={workdir / f'{corpus}.csv'}",
        f"--config.data.root={real_tables.folder(corpus)}",
        *([part] if corpus == "covid" else []),
    ]


def tabulate(
    corpus: str,
    seeds: Sequence[int],
    results: Mapping[tuple[str, str, int], Mapping[str, Any]],
    judged: Mapping[tuple[str, str, int], Judged],
) -> Tables:
    """The tables of one corpus."""
    table: Runs = {}
    for (of_corpus, pool, seed), result in results.items():
        if of_corpus == corpus:
            own = {**result["retrieval"], "protocol": "real_pairs@1"}
            own["values"] = judged[corpus, pool, seed].values
            table[pool, seed] = {**result, "pairs": own}

    def of(pool: str) -> list[Judged]:
        return [judged[corpus, pool, seed] for seed in seeds]

    base = next(iter(NAMES))
    return Tables(
        table,
        NAMES,
        seeds,
        interval=lambda measure, pool: interval(of(pool), measure.key),
        difference=lambda measure, pool: interval(of(pool), measure.key, of(base)),
    )


def write_page(
    tables: Mapping[str, Tables],
    seeds: Sequence[int],
    minutes: float,
    options: Sequence[str],
    *,
    shown: bool,
) -> str:
    """The Markdown page."""
    suffix = "".join([" --", *(f" {option}" for option in options)]) if options else ""
    lines = [
        "# Image poolers on real pairs",
        "",
        f"`{COMMAND}{suffix}`, {datetime.date.today().isoformat()}, {minutes:.0f} minutes, "
        f"{len(os.sched_getaffinity(0))} cores; jax {versions()['jax']}.",
        "",
        f"Trained from scratch. Mean and standard deviation over seeds "
        f"{', '.join(map(str, seeds))}; in brackets the 95 % interval of the mean, from a "
        "bootstrap over articles or patients. R@1 is among all N held-out pairs. In the "
        "blind rows, every image is one of another article or patient.",
        "",
    ]
    for corpus, table in tables.items():
        # A constant is the same for all pools, and permuted images tell nothing about a pool.
        compared = [m for m in measures(corpus) if m.evaluator != "pairs" and _BLIND not in m.key]
        lines += [f"## {_HEADINGS[corpus]}", "", _ABOUT[corpus], ""]
        lines += [*table.table(measures(corpus)), ""]
        lines += ["Pool minus mean pool with the same seed; in brackets the ratio of mean to "]
        lines[-1] += "deviation (sd), then the 95 % interval of the mean difference:"
        lines += ["", *table.differences(compared), "", kept_sentences(corpus), ""]
    if shown:
        corpus, pool, seed = PICTURED
        lines += [
            f"## What sentences point at ({corpus}, {pool}, seed {seed})",
            "",
            "The six figures come first by the hash of their ids. The sentence is the one with the "
            "rarest word of the caption that other captions hold, too.",
            "",
            "![Six held-out figures with the attention of a sentence](real_pairs.png)",
            "",
        ]
    return "\n".join(lines)


def kept_sentences(corpus: str) -> str:
    """How many sentences of a corpus affirm something, and which the preset trains on."""
    texts = [phrases(row["report"]) for row in real_tables.read(corpus)]
    kept = [sum(map(affirms, sentences)) for sentences in texts]
    total = sum(map(len, texts))
    reads = experiment.get_config(corpus).objectives.sentence_contrastive.get("reads", {})
    trained = "all of them" if reads else "those that it keeps"
    return (
        f"`affirms` keeps {sum(kept):,} of {total:,} sentences ({sum(kept) / total:.1%}) and "
        f"leaves {kept.count(0):,} of {len(texts):,} texts without any; the sentence loss reads "
        f"{trained}."
    )


def picture(folder: Path, path: Path) -> None:
    """Draws the attention of sentences over the regions of six held-out figures."""
    trained = run.restore(folder)
    data = held_out(trained)
    name = "sentence_pointing"
    evaluator = build.find("evaluator", name)(
        trained.predict, data, **trained.config.evaluators[name]
    )
    (figure,) = evaluator.figures(trained.state, evaluator.run(trained.state), [])
    figure.draw(path)


if __name__ == "__main__":
    main()
