"""Candidates for the local objective of our recipe, on phantoms.

    python -m benchmarks.local_objectives --workdir=runs/local --out=docs/results

Trains our recipe (`configs/compare.py:recommended`, 400 steps) with one change at a time and writes
a table of what each change costs and gains. One seed by default: it screens, it does not decide.
Completed runs are not repeated.
"""

import argparse
import dataclasses
import datetime
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks import runs
from benchmarks.results import Measure, Runs, cell, found
from mmrl.training.checkpoint import versions

COMMAND = "python -m benchmarks.local_objectives"
_LOCAL = "--config.objectives.sentence_contrastive"
_SPARSE = (f"{_LOCAL}.name=sub_captions", f"{_LOCAL}.multi_positive=0.0")


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One change of our recipe.

    Attributes:
      title: of its row. options: arguments of `mmrl.main`. variant: of configs/compare.py.
      pointing: the evaluator that uses the map of this objective.
    """

    title: str
    options: tuple[str, ...] = ()
    variant: str = "recommended"
    pointing: str = "sentence_pointing"


CANDIDATES: Mapping[str, Candidate] = {
    "recipe": Candidate("our recipe: log-sum-exp, regions after block 1, weight 0.5"),
    "none": Candidate("no local objective", variant="no_local", pointing=""),
    "gloria": Candidate("GLoRIA's local loss", variant="gloria", pointing="pointing"),
    "block_2": Candidate("regions after block 2", ("--config.towers.image.region_layer=2",)),
    "last": Candidate("regions of the last block", ("--config.towers.image.region_layer=None",)),
    "max": Candidate("greatest cosine over regions", (f"{_LOCAL}.aggregate=max",)),
    "attention": Candidate("attention over regions", (f"{_LOCAL}.aggregate=attention",)),
    "denied": Candidate("sentences that deny, too", (f"{_LOCAL}.reads.valid=sentences.valid",)),
    "weight_0.1": Candidate("weight 0.1", (f"{_LOCAL}.weight=0.1",)),
    "weight_1": Candidate("weight 1", (f"{_LOCAL}.weight=1.0",)),
    "grouping": Candidate("DreamLIP's grouping of regions by sentence", _SPARSE),
    "sparc": Candidate(
        "SPARC: the same among sentences of one report",
        (*_SPARSE, f"{_LOCAL}.negatives=report", f"{_LOCAL}.threshold=-1.0"),
    ),
    "words": Candidate(
        "single words, which read one sentence of the report (here also those that deny)",
        (
            "--config.inputs.sentence.name=text",
            "--config.inputs.sentence.text=sentence",
            "--config.towers.text.heads.words=64",
            f"{_LOCAL}.reads.sentences=text@sentence.words",
            f"{_LOCAL}.reads.valid=sentence.mask",
            f"{_LOCAL}.reads.key=sentence.tokens",
            f"{_LOCAL}.reads.known=sentence.tokens",
            "--config.evaluators.sentence_pointing.reads.sentences=text.words",
        ),
    ),
    "sigmoid": Candidate(
        "ConceptCLIP: sigmoid, maximum over regions", (f"{_LOCAL}.name=concept_alignment",)
    ),
}
MEASURES = (
    Measure("R@1, image to report", "retrieval", "image_to_text/R@1"),
    Measure("R@1, report to image", "retrieval", "text_to_image/R@1"),
    Measure("finding AUROC", "zero_shot", "findings/auroc"),
    Measure("laterality AUROC", "zero_shot", "laterality/auroc"),
    Measure("clinical gain", "structure", "clinical@1/grounded_gain"),
)
POINTING = (
    ("pointing", "accuracy"),
    ("exchanged", "accuracy_boxes_permuted"),
    ("entropy", "attention_entropy"),
)


def main() -> None:
    """Executes the missing runs, then writes the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workdir", type=Path, default=Path("runs/local"), help="the runs")
    parser.add_argument("--out", type=Path, default=Path("docs/results"), help="the page")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of every candidate")
    parser.add_argument(
        "--candidates", nargs="+", default=list(CANDIDATES), choices=list(CANDIDATES)
    )
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--at-once", type=int, default=cores, help="runs in parallel")
    parser.add_argument("options", nargs="*", help="--config.KEY=VALUE of all runs, after --")
    args = parser.parse_args()
    wanted = {f"{name}-{seed}": (name, seed) for name in args.candidates for seed in args.seeds}
    results = runs.train_all(
        {
            run: [
                f"--config=configs/compare.py:{CANDIDATES[name].variant}",
                "--config.eval_every=0",
                f"--config.seed={seed}",
                *CANDIDATES[name].options,
                *args.options,
            ]
            for run, (name, seed) in wanted.items()
        },
        args.workdir,
        args.at_once,
    )
    page = write_page({wanted[run]: of_run for run, of_run in results.items()}, args.seeds)
    runs.write(args.out / "local.md", page)


def write_page(results: Runs, seeds: Sequence[int]) -> str:
    """The Markdown page: a row per candidate."""
    names = list(dict.fromkeys(name for name, _ in results))
    titles = [measure.title for measure in MEASURES] + [title for title, _ in POINTING]
    first = results[names[0], seeds[0]]
    chance = (found(first, Measure("", "sentence_pointing", "accuracy")) or {}).get("chance")
    lines = [
        "# Candidates for the local objective, on phantom data",
        "",
        f"`{COMMAND}`, {datetime.date.today().isoformat()}; jax {versions()['jax']}. Our recipe "
        f"with one change, 400 steps, seed {', '.join(map(str, seeds))}, validation split. "
        "Pointing is of the map that the objective trains: of sentences, and of words for "
        f"GLoRIA's; chance {chance:.3f}. *Exchanged* is the same with boxes of other patients, "
        "*entropy* that of the map, 1 if it is uniform. With one seed, differences of 0.03 in R@1 "
        "and AUROC and of 0.1 in pointing mean nothing.",
        "",
        "| | " + " | ".join(titles) + " |",
        "|---|" + "---|" * len(titles),
    ]
    for name in names:
        candidate = CANDIDATES[name]
        pointing = [Measure(title, candidate.pointing, key) for title, key in POINTING]
        cells = []
        for measure in (*MEASURES, *pointing):
            if not measure.evaluator:
                cells.append("none")
                continue
            of_seeds = [found(results[name, seed], measure) for seed in seeds]
            known = [one["value"] for one in of_seeds if one is not None]
            cells.append(cell(known) if len(known) > 1 else f"{known[0]:.3f}")
        lines.append(f"| {candidate.title} | {' | '.join(cells)} |")
    lines += ["", "Changes, as arguments of `mmrl.main`:", ""]
    for name in names:
        candidate = CANDIDATES[name]
        given = " ".join([f"--config=configs/compare.py:{candidate.variant}", *candidate.options])
        lines.append(f"- {candidate.title}: `{given}`")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
