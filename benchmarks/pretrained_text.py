"""Trains real pairs from a pretrained text encoder in several ways, and compares them.

    python -m benchmarks.pretrained_text --encoder=weights/minilm --workdir=runs/text \\
        --out=docs/results

Each run is `python -m mmrl.main --config=configs/real_text.py:CORPUS`. All starts take the same
number of steps: our small text tower from random values, the architecture of the encoder from
random values, its pretrained values, the same but frozen, and the same with low-rank updates
(LoRA). MMRL_REAL_DATA names the folder of the corpora. Completed runs are not repeated; several
execute in parallel, each on its own CPU core. Writes a section of the page of real sets, and the
figures as JSON.
"""

import argparse
import datetime
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import real_tables, runs
from benchmarks.finetune import interval
from benchmarks.real_pairs import part_of
from benchmarks.results import Measure, Runs, Tables, stored, with_section
from configs import real_text as experiment
from mmrl.training.checkpoint import versions
from mmrl.types import InputError

COMMAND = "python -m benchmarks.pretrained_text"
HEADING = "A pretrained text encoder"
PAGE = "real.md"
RANK = 8
STARTS = {
    "scratch": "from scratch",
    "small": "our small tower, from scratch",
    "pretrained": "pretrained",
    "frozen": "pretrained, frozen",
    "lora": f"pretrained, LoRA of rank {RANK}",
}
"""Start -> title of its column; the others are compared with the first one."""
CORPORA = {
    "openi": "Findings and impressions of chest radiographs (openi)",
    "roco": "3,045 figures with captions (roco_pairs)",
    "covid": "196 radiographs with clinical notes (covid_cxr)",
}
_ABOUT = {
    "openi": "No image is read: the one text tower reads both parts of a report. Of reports with "
    "nearly equal findings one is kept. In the blind rows, the findings are those of another "
    "report.",
    "roco": "Divided by article.",
    "covid": f"Divided into {real_tables.FOLDS} parts by patient and note; the run with seed N is "
    "judged on part N.",
}
_BLIND = "images_permuted"
# Of rows for the texts of a step; imported encoders have no packing of their own.
_PACKING = {"openi": 0.5, "roco": 0.6, "covid": 0.7}
# A stack of post-norm blocks learns nothing from random values at the rate of the others. Chosen
# on openi with seed 10: R@10 of 0.178 and 0.298, against 0 and 0 at 1e-3.
_SLOW_START = "--config.optimizer.learning_rate=3e-4"


def measures(corpus: str) -> list[Measure]:
    """The rows of the table of a corpus."""
    one, two = ("findings", "impression") if corpus == "openi" else ("image", "text")
    rows = []
    for key, title in {
        "image_to_text": f"{one} to {two}",
        "text_to_image": f"{two} to {one}",
    }.items():
        for k in (1, 10):
            rows.append(Measure(f"{title} R@{k}", "retrieval", f"{key}/R@{k}"))
        rows.append(Measure(f"{title} R@10, blind", "retrieval", f"{key}/R@10_{_BLIND}"))
    if corpus == "openi":
        return rows
    name = "zero-shot AUROC of modalities" if corpus == "roco" else "zero-shot AUROC, lateral"
    where = "tasks" if corpus == "roco" else "tasks/lateral"
    return [
        *rows,
        Measure(name, "zero_shot", f"{where}/auroc"),
        Measure(f"{name}, blind", "zero_shot", f"{where}/auroc_{_BLIND}"),
    ]


def main() -> None:
    """Runs the missing runs, then writes section and JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--encoder", type=Path, required=True, help="folder of the text encoder")
    parser.add_argument("--workdir", type=Path, default=Path("runs/text"), help="the runs")
    parser.add_argument("--out", type=Path, default=Path("docs/results"), help="of the page")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of every run")
    parser.add_argument("--corpora", nargs="+", default=list(CORPORA), choices=list(CORPORA))
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--at-once", type=int, default=cores, help="runs in parallel")
    parser.add_argument("options", nargs="*", help="--config.KEY=VALUE of all runs, after --")
    args = parser.parse_args()
    began = time.monotonic()
    try:
        results = train(args)
    except InputError as error:
        parser.error(str(error))
    minutes = (time.monotonic() - began) / 60
    tables = {corpus: tabulate(results[corpus], args.seeds) for corpus in args.corpora}
    kept = {corpus: stored(table.runs, measures(corpus)) for corpus, table in tables.items()}
    args.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(kept, indent=1) + "\n"
    (args.out / "pretrained_text.json").write_text(text, encoding="utf-8")
    body = section(tables, args, minutes)
    page = args.out / PAGE
    before = page.read_text(encoding="utf-8") if page.exists() else "# Encoders on real sets\n"
    page.write_text(with_section(before, HEADING, body), encoding="utf-8")
    print("\n".join(body))


def train(args: argparse.Namespace) -> dict[str, Runs]:
    """Executes the runs that are missing: corpus -> results of all."""
    for corpus in args.corpora:
        real_tables.write(corpus, args.workdir / f"{corpus}.csv")
    names = {
        f"{corpus}-{start}-{seed}": (corpus, start, seed)
        for corpus in args.corpora
        for seed in args.seeds
        for start in STARTS
    }
    commands = {
        name: [*arguments(*one, args.encoder, args.workdir), *args.options]
        for name, one in names.items()
    }
    found: dict[str, Runs] = {corpus: {} for corpus in args.corpora}
    for name, result in runs.train_all(commands, args.workdir, args.at_once).items():
        corpus, start, seed = names[name]
        found[corpus][start, seed] = result
    return found


def arguments(corpus: str, start: str, seed: int, encoder: Path, workdir: Path) -> list[str]:
    """Arguments of `mmrl.main` for one run."""
    slow = ",slow" if start == "pretrained" else ""
    given = [
        f"--config=configs/real_text.py:{corpus}{slow}",
        f"--config.seed={seed}",
        f"--config.data.path={workdir / f'{corpus}.csv'}",
    ]
    if corpus != "openi":
        given.append(f"--config.data.root={real_tables.folder(corpus)}")
    if corpus == "covid":
        given.append(f"--config.data.split_column=fold-{part_of(corpus, seed)}")
    if start == "small":
        return given
    given += [
        f"--config.towers.text.name={encoder}",
        f"--config.towers.text.packing={_PACKING[corpus]}",
    ]
    return (
        given
        + {
            "scratch": ["--config.towers.text.init=", _SLOW_START],
            "pretrained": [],
            "frozen": ["--config.towers.text.frozen=encoder"],
            "lora": [f"--config.towers.text.lora.rank={RANK}"],
        }[start]
    )


def tabulate(results: Runs, seeds: Sequence[int]) -> Tables:
    """The tables of one corpus."""
    base = next(iter(STARTS))

    def values(measure: Measure, start: str) -> list[float]:
        rows = (results[start, seed][measure.evaluator]["values"] for seed in seeds)
        return [row[measure.key]["value"] for row in rows]

    def difference(measure: Measure, start: str) -> tuple[float, float] | None:
        pairs = zip(values(measure, start), values(measure, base), strict=True)
        return interval([one - other for one, other in pairs])

    return Tables(
        results,
        STARTS,
        seeds,
        interval=lambda measure, start: interval(values(measure, start)),
        difference=difference,
    )


def section(tables: Mapping[str, Tables], args: argparse.Namespace, minutes: float) -> list[str]:
    """The lines below the heading."""
    source = described(args.encoder)
    suffix = "".join([" --", *(f" {option}" for option in args.options)]) if args.options else ""
    lines = [
        f"`{COMMAND} --encoder={args.encoder}{suffix}`, {datetime.date.today().isoformat()}, "
        f"{minutes:.0f} minutes, {len(os.sched_getaffinity(0))} cores; jax {versions()['jax']}.",
        "",
        f"The text encoder is {source}. Every start takes the same steps of the global loss "
        "(`configs/real_text.py`); the image tower starts from random values. Mean and standard "
        f"deviation over seeds {', '.join(map(str, args.seeds))}, and in brackets the 95 % "
        "interval of the mean over seeds by Student's t, which is wide for three of them. "
        "The learning rate is 1e-3; of *pretrained*, a tenth of that for the encoder, and of "
        "*from scratch*, 3e-4, because nothing was learned at 1e-3 (chosen with seed 10).",
    ]
    for corpus, table in tables.items():
        steps = experiment.get_config(corpus).total_steps
        lines += ["", f"### {CORPORA[corpus]}", "", f"{_ABOUT[corpus]} {steps} steps.", ""]
        lines += table.table(measures(corpus))
        compared = [measure for measure in measures(corpus) if _BLIND not in measure.key]
        lines += ["", "Differences of equal seeds:", "", *table.differences(compared)]
    return [*lines, "", *trained(args)]


def described(encoder: Path) -> str:
    """What the folder of an encoder says of its source."""
    stated: dict[str, Any] = json.loads((encoder / "encoder.json").read_text(encoding="utf-8"))
    text, source = stated["towers"]["text"], stated["source"]
    sizes = ", ".join(f"{key} {text[key]}" for key in ("width", "depth", "num_heads"))
    weights = next(iter(source["files"].values()))[:12]
    return f"`{encoder.name}` ({source['family']}, {sizes}, sha256 {weights})"


def trained(args: argparse.Namespace) -> Iterator[str]:
    """The line of each start that counts its parameters, as the runs printed it."""
    yield "Parameters, as the runs with the first seed printed them:"
    yield ""
    for corpus in args.corpora[:1]:
        for start, title in STARTS.items():
            log = (args.workdir / f"{corpus}-{start}-{args.seeds[0]}.log").read_text(
                encoding="utf-8"
            )
            (line,) = [line for line in log.splitlines() if line.startswith("parameters: ")]
            yield f"- {title}: {line.removeprefix('parameters: ')}"


if __name__ == "__main__":
    main()
