"""Place: the supervised ceiling of the demo's image tower, and probes of frozen features.

    python -m benchmarks.ceiling --workdir=runs/ceiling --out=docs/results \
        --probe demo=runs/pretrain-0,runs/pretrain-1,runs/pretrain-2

Trains `configs/ceiling.py` with every pool and several seeds: on labels, and at 224 px on the
contrast of images and reports. Evaluates findings and sides on held-out studies with the questions
of the evaluator zero_shot. Then fits linear probes on raw pixels and on features of the runs of
--probe. Completed runs are not repeated. Writes a page and the figures as JSON.
"""

import argparse
import datetime
import functools
import json
import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import probes, runs
from benchmarks.recalls import held_out as validation
from benchmarks.results import cell
from configs import ceiling as experiment
from mmrl.data.batches.pipeline import Examples
from mmrl.data.phantom.study import sided_label
from mmrl.evaluators.probe import SIDE, small_pixels
from mmrl.evaluators.zero_shot import TASK_SETS, Question, ask
from mmrl.training import run
from mmrl.training.checkpoint import versions
from mmrl.types import InputError

COMMAND = "python -m benchmarks.ceiling"
SUPERVISED = {
    "sides,mean": "ViT, mean",
    "sides,zones": "ViT, zones",
    "sides,attention": "ViT, attention",
    "sides,mean,resnet": "ResNet, mean",
    "sides,zones,resnet": "ResNet, zones",
    "findings,mean": "ViT, mean",
    "findings,zones": "ViT, zones",
    "findings,attention": "ViT, attention",
}
CONTRAST = {
    "contrast,mean": "64 px, ViT, mean",
    "contrast,zones": "64 px, ViT, zones",
    "contrast,attention": "64 px, ViT, attention",
    "contrast,mean,resnet": "64 px, ResNet, mean",
    "contrast,zones,resnet": "64 px, ResNet, zones",
    "contrast,mean,large": "224 px, ViT, mean",
    "contrast,zones,large": "224 px, ViT, zones",
    "contrast,mean,resnet,large": "224 px, ResNet, mean",
    "contrast,zones,resnet,large": "224 px, ResNet, zones",
}
"""Variants of `configs/ceiling.py` -> title."""
# Without those that take longest and tell least.
DEFAULT = (
    *(variant for variant in SUPERVISED if variant != "findings,attention"),
    *("contrast,mean,large", "contrast,zones,large"),
)
CEILING = "sides,zones"  # stands beside the probes, finding by finding

PIXELS = f"pixels {SIDE} x {SIDE}"
ZERO_SHOT = "zero-shot"


class Probe(NamedTuple):
    """A row of the table of probes.

    Attributes:
      title: of the row.
      fitted, applied: encoding of the training studies, and that of the held-out ones.
      way: how regions become features: mean or flat; "" for encodings without regions.
      means: whether the means of the classes are compared; otherwise a ridge regression is fitted.
    """

    title: str
    fitted: str
    applied: str
    way: str = ""
    means: bool = False


PROBES = {
    "image.pooled": Probe("`image.pooled`", "image.pooled", "image.pooled"),
    "image.embedding": Probe("`image.embedding`", "image.embedding", "image.embedding"),
    "regions, averaged": Probe(
        "`image.regions`, averaged", "image.regions", "image.regions", "mean"
    ),
    "regions, flattened": Probe(
        "`image.regions`, flattened", "image.regions", "image.regions", "flat"
    ),
    "text.embedding": Probe("`text.embedding`", "text.embedding", "text.embedding"),
    "reports": Probe(
        "`text.embedding`, applied to `image.embedding`", "text.embedding", "image.embedding"
    ),
    "report means": Probe(
        "means of reports in place of prompts", "text.embedding", "image.embedding", means=True
    ),
}
"""Name of the column -> what is probed."""
_RETRIEVAL = ("image_to_text/R@1", "text_to_image/R@1")

Areas = dict[str, dict[str, float]]
"""Task set -> finding -> AUROC."""


def main() -> None:
    """Trains what is missing, evaluates, probes, and writes page and JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workdir", type=Path, default=Path("runs/ceiling"), help="the runs")
    parser.add_argument("--out", type=Path, default=Path("docs/results"), help="page and JSON")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of labels")
    parser.add_argument("--contrast-seeds", type=int, nargs="+", default=[0], help="of contrast")
    parser.add_argument(
        "--variants",
        nargs="*",
        default=list(DEFAULT),
        choices=[*SUPERVISED, *CONTRAST],
        metavar="VARIANT",
        help=f"of configs/ceiling.py: {' '.join([*SUPERVISED, *CONTRAST])}",
    )
    parser.add_argument(
        "--probe",
        nargs="*",
        default=[],
        metavar="NAME=DIR,...",
        help="trained runs whose features are probed; runs of one name differ in their seeds",
    )
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--at-once", type=int, default=cores, help="runs in parallel")
    parser.add_argument("options", nargs="*", help="--config.KEY=VALUE of all runs, after --")
    args = parser.parse_args()
    try:
        probed = {
            name: [run.restore(folder) for folder in folders]
            for name, folders in parse_probed(args.probe).items()
        }
    except InputError as error:
        raise SystemExit(f"--probe: {error}") from None
    began = time.monotonic()
    results = train(args)
    found = {
        "settings": {
            "command": shlex.join([*COMMAND.split(), *sys.argv[1:]]),
            "seeds": args.seeds,
            "jax": versions()["jax"],
        },
        "supervised": {
            variant: {
                str(seed): supervised(args.workdir / run_name(variant, seed), variant)
                for seed in args.seeds
            }
            for variant in args.variants
            if variant in SUPERVISED
        },
        "contrast": {
            variant: {
                str(seed): contrast(results[run_name(variant, seed)])
                for seed in args.contrast_seeds
            }
            for variant in args.variants
            if variant in CONTRAST
        },
        "data": of_pixels(),
        "probes": {
            name: [of_run(trained) for trained in of_seeds] for name, of_seeds in probed.items()
        },
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "place.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    page = write_page(found, (time.monotonic() - began) / 60)
    (args.out / "place.md").write_text(page, encoding="utf-8")
    print(page)


def parse_probed(given: Sequence[str]) -> dict[str, list[Path]]:
    """Name -> run directories, from NAME=DIR,DIR.

    Raises:
      SystemExit: another form.
    """
    found = {}
    for text in given:
        name, equals, folders = text.partition("=")
        if not (name and equals and all(folders.split(","))):
            raise SystemExit(f"--probe {text}: expected NAME=DIR,DIR,...")
        found[name] = [Path(folder) for folder in folders.split(",")]
    return found


def run_name(variant: str, seed: int) -> str:
    """The folder of a run: "sides-zones-0"."""
    return f"{variant.replace(',', '-')}-{seed}"


def train(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Executes the runs that are missing; name of the run -> evaluator -> results."""
    wanted = {
        run_name(variant, seed): [
            f"--config=configs/ceiling.py:{variant}",
            f"--config.seed={seed}",
            *args.options,
        ]
        # The large ones take longest and start first, so that all cores finish at the same time.
        for variant in sorted(args.variants, key=lambda one: "large" not in one)
        for seed in (args.seeds if variant in SUPERVISED else args.contrast_seeds)
    }
    return runs.train_all(wanted, args.workdir, args.at_once)


def supervised(folder: Path, variant: str) -> Areas:
    """AUROCs of a run that was trained on labels, by the questions of zero_shot."""
    trained = run.restore(folder)
    data = validation(trained)
    logits = trained.predict.encode(trained.state, data, ["image.labels"])["image.labels"]
    names = tuple(trained.config.data.label_names)
    return areas_of_logits(ask(data).sets, logits, names, sides=variant.startswith("sides"))


def areas_of_logits(
    sets: Mapping[str, Mapping[str, Question]],
    logits: np.ndarray,
    names: Sequence[str],
    *,
    sides: bool,
) -> Areas:
    """AUROCs from logits f[N, C] of the labels `names`.

    The score of a finding is its logit; that of left against right is the difference of the logits
    of the two sides.
    """
    column = dict(zip(names, np.asarray(logits, np.float64).T, strict=True))
    found = {"findings": {name: column[name] for name in sets["findings"]}}
    if sides:
        found["laterality"] = {
            name: column[sided_label(name, "left")] - column[sided_label(name, "right")]
            for name in sets["laterality"]
        }
    return {name: probes.areas(sets[name], scores) for name, scores in found.items()}


def contrast(results: Mapping[str, Any]) -> dict[str, float]:
    """R@1 both ways, and the macro AUROC of each task set, from the results of a run."""
    values = results["retrieval"]["values"]
    found = {key: values[key]["value"] for key in _RETRIEVAL}
    return found | {name: macro(one) for name, one in zero_shot(results).items()}


def zero_shot(results: Mapping[str, Any]) -> Areas:
    """AUROCs of zero-shot classification, from the results of a run; empty if it has none."""
    if "zero_shot" not in results:
        return {}
    values = results["zero_shot"]["values"]
    found: Areas = {name: {} for name in TASK_SETS}
    for key, value in values.items():
        name, _, rest = key.partition("/")
        finding, _, row = rest.rpartition("/")
        if name in found and finding and row == "auroc":
            found[name][finding] = value["value"]
    return found


def macro(areas: Mapping[str, float]) -> float:
    """The mean over findings."""
    return statistics.fmean(areas.values())


@functools.cache
def _phantoms(split: str) -> Examples:
    """The phantoms of the supervised runs."""
    config = experiment.get_config(CEILING)
    return Examples(config, run.load_corpus(config, split), {})


def of_pixels() -> dict[str, Any]:
    """What the images hold: probes of raw pixels, and counts of the held-out studies.

    Returns:
      "pixels": AUROCs; "studies": task set -> finding -> [positives, negatives]; "hidden": number
      of findings of held-out studies that no pixel shows.
    """
    train, held_out = _phantoms("train"), _phantoms("val")
    asked = ask(held_out).sets
    hidden = 0
    for index in range(len(held_out)):
        record = held_out.record(index)
        stated = {finding.name for finding in record.findings}
        hidden += len(stated - {box.label for box in record.boxes})
    return {
        "pixels": _answered(
            train,
            held_out,
            _ridge(train, *(small_pixels(data, "image.pooled") for data in (train, held_out))),
        ),
        "studies": {
            name: {
                finding: [int(one.positive.sum()), int((~one.positive).sum())]
                for finding, one in questions.items()
            }
            for name, questions in asked.items()
        },
        "hidden": hidden,
    }


def of_run(trained: run.Trained) -> dict[str, Any]:
    """Name in PROBES -> AUROCs; ZERO_SHOT -> those of the last evaluation of the run."""
    train, held_out = (
        trained.examples(run.load_corpus(trained.config, split)) for split in ("train", "val")
    )
    provided = set(trained.predict.provides)
    known = {name: one for name, one in PROBES.items() if {one.fitted, one.applied} <= provided}
    names = list(dict.fromkeys(name for one in known.values() for name in one[1:3]))
    first, second = (
        trained.predict.encode(trained.state, data, names) for data in (train, held_out)
    )
    found = {}
    for name, one in known.items():
        x, y = _flat(first[one.fitted], one.way), _flat(second[one.applied], one.way)
        fit = functools.partial(probes.means, x, held_out=y) if one.means else _ridge(train, x, y)
        found[name] = _answered(train, held_out, fit)
    last = sorted((trained.folder / "results").glob("*.json"))[-1]
    own = zero_shot(json.loads(last.read_text(encoding="utf-8"))["results"])
    return found | ({ZERO_SHOT: own} if own else {})


def _flat(encoded: np.ndarray, way: str) -> np.ndarray:
    """Features [N, F] of an encoding [N, F] or [N, R, F]."""
    return encoded.mean(axis=1) if way == "mean" else encoded.reshape(len(encoded), -1)


Fit = Callable[[Mapping[str, Question]], Mapping[str, np.ndarray]]
"""Questions about the training split -> scores of the held-out studies."""


def _ridge(train: Examples, x: np.ndarray, y: np.ndarray) -> Fit:
    """Probes of features x of the training split and y of the held-out one."""
    return functools.partial(probes.probe, x, train.patients, held_out=y)


def _answered(train: Examples, held_out: Examples, fit: Fit) -> Areas:
    """AUROCs on held-out studies of what is fitted to the training split."""
    asked, answered = ask(train).sets, ask(held_out).sets
    found = {}
    for name in TASK_SETS:
        missing = set(answered[name]) - set(asked[name])
        if missing:
            raise InputError(f"{train.name} has too few studies of {name}: {sorted(missing)}")
        questions = {finding: asked[name][finding] for finding in answered[name]}
        found[name] = probes.areas(answered[name], fit(questions))
    return found


def write_page(found: Mapping[str, Any], minutes: float) -> str:
    """The Markdown page."""
    settings = found["settings"]
    seeds = ", ".join(map(str, settings["seeds"]))
    lines = [
        "# Place: what pools keep, and what bounds left against right, on phantom data",
        "",
        f"`{settings['command']}`, {datetime.date.today().isoformat()}, {minutes:.0f} minutes on "
        f"{len(os.sched_getaffinity(0))} cores; jax {settings['jax']}. Macro AUROC on held-out "
        f"studies, mean and standard deviation over seeds ({seeds}); chance is 0.5. *Findings* "
        "asks whether a finding is present, *side* whether it is left or right in studies that "
        "have it on exactly one side: the questions of `zero_shot`.",
        "",
    ]
    if found["supervised"]:
        lines += ["## Supervised ceiling", "", *_supervised(found["supervised"]), ""]
    if found["contrast"]:
        lines += ["## Contrast of images and reports alone", "", *_contrast(found["contrast"]), ""]
    lines += ["## Probes of frozen features", "", *_probes(found), ""]
    for name, title in (("laterality", "Left against right"), ("findings", "Findings")):
        lines += [f"## {title}, finding by finding", "", *_by_finding(found, name), ""]
    return "\n".join(lines)


def _supervised(found: Mapping[str, Mapping[str, Areas]]) -> list[str]:
    """Rows of variants, with the paired differences to the mean pool of the same tower."""
    lines = [
        "The image tower of `configs/pretrain.py`, or a narrow ResNet-18, with a linear head on "
        "the pooled feature, trained on labels for as many steps. *Minus mean* is the difference "
        "to the mean pool with the same seed.",
        "",
        "| trained on | tower, pool | findings | side | findings, minus mean | side, minus mean |",
        "|---|---|---|---|---|---|",
    ]
    for variant, by_seed in found.items():
        target, pool, *_ = variant.split(",")
        base = found.get(variant.replace(pool, "mean", 1))
        cells, gaps = [], []
        for name in TASK_SETS:
            own = {seed: macro(areas[name]) for seed, areas in by_seed.items() if name in areas}
            cells.append(cell(list(own.values())) if own else "not trained")
            if not own or base is None or pool == "mean":
                gaps.append("")
            else:
                pairs = [value - macro(base[seed][name]) for seed, value in own.items()]
                gaps.append(cell(pairs, signed=True))
        title = {"findings": "findings", "sides": "findings and sides"}[target]
        lines.append(f"| {title} | {SUPERVISED[variant]} | {' | '.join(cells + gaps)} |")
    return lines


def _contrast(found: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[str]:
    seeds = sorted({seed for by_seed in found.values() for seed in by_seed})
    lines = [
        f"Global loss only, seeds {', '.join(seeds)}; R@1 among 256 pairs. At 224 px the ViT has "
        "patches of 16 px, width 64 and depth 3.",
        "",
        "| tower and pool | image to report R@1 | report to image R@1 | findings | side |",
        "|---|---|---|---|---|",
    ]
    for variant, by_seed in found.items():
        cells = [
            cell([values[key] for values in by_seed.values()]) for key in (*_RETRIEVAL, *TASK_SETS)
        ]
        lines.append(f"| {CONTRAST[variant]} | {' | '.join(cells)} |")
    return lines


def _probes(found: Mapping[str, Any]) -> list[str]:
    """Rows of features, with the macro AUROCs of every probed name."""
    probed = found["probes"]
    lines = [
        "Ridge regressions fitted on the training split; every fifth patient of it chooses the "
        "strength. `image.regions` are those of the head. A probe of reports that is applied to "
        "images, and the means of reports with and without a finding in place of prompts, show "
        "what images and reports share, whatever the wording of prompts. Findings of held-out "
        f"studies that no pixel shows: {found['data']['hidden']}.",
        "",
        "| features | run | findings | side |",
        "|---|---|---|---|",
        "| " + " | ".join([PIXELS, "", *(_macros([found["data"]["pixels"]]))]) + " |",
    ]
    titles = {name: one.title for name, one in PROBES.items()}
    for row, title in (titles | {ZERO_SHOT: "prompts (zero-shot), for comparison"}).items():
        for name, of_seeds in probed.items():
            known = [one[row] for one in of_seeds if row in one]
            cells = _macros(known) if len(known) == len(of_seeds) else ["none", "none"]
            lines.append(f"| {title} | {name} | {' | '.join(cells)} |")
    return lines


def _macros(of_seeds: Sequence[Areas]) -> list[str]:
    cells = []
    for name in TASK_SETS:
        values = [macro(one[name]) for one in of_seeds]
        cells.append(cell(values) if len(values) > 1 else f"{values[0]:.3f}")
    return cells


def _by_finding(found: Mapping[str, Any], name: str) -> list[str]:
    """One row for each finding of a task set: the data, the ceiling, and every probed run."""
    data, probed = found["data"], found["probes"]
    columns = {PIXELS: [data["pixels"]]}
    if CEILING in found["supervised"]:
        title = f"supervised ({SUPERVISED[CEILING]})"
        columns[title] = list(found["supervised"][CEILING].values())
    for own, of_seeds in probed.items():
        for row in (*PROBES, ZERO_SHOT):
            if all(row in one for one in of_seeds):
                columns[f"{own}: {row}"] = [one[row] for one in of_seeds]
    counts = ("left", "right") if name == "laterality" else ("with", "without")
    lines = [
        "Number of held-out studies, and means over seeds.",
        "",
        "| finding | " + " | ".join([*counts, *columns]) + " |",
        "|---|" + "---|" * (len(counts) + len(columns)),
    ]
    for finding, studies in data["studies"][name].items():
        cells = [
            f"{statistics.fmean([one[name][finding] for one in of_seeds]):.3f}"
            for of_seeds in columns.values()
        ]
        lines.append(f"| {finding} | " + " | ".join([*map(str, studies), *cells]) + " |")
    return lines


if __name__ == "__main__":
    main()
