"""Judges encoders on real sets and writes one page of tables.

    python -m benchmarks.real_sets --workdir=runs/real_sets --out=docs/results --random 0 1 2 \\
        --encoder phantom=runs/ablation/demo-0,runs/ablation/demo-1 --mobilenet=mobilenet_v2.pth

The sets are those of configs/judge.py; MMRL_REAL_DATA names their folder. An encoder is one or
more finished runs that differ in the seed alone. `--random` judges towers with initial weights,
which are made here, `--mobilenet` the features of a frozen MobileNetV2. Each evaluation is
`python -m mmrl.evaluate` on the test split, on a CPU core of its own; those that are there are not
repeated. Writes real.md, and the figures of every run as real.json.
"""

import argparse
import datetime
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks import mobilenet, real_page, runs
from benchmarks.pretrained_text import HEADING as TEXT_HEADING
from benchmarks.results import section_of, with_section
from configs import judge
from mmrl.evaluators import stored
from mmrl.training.checkpoint import versions
from mmrl.types import InputError

COMMAND = "python -m benchmarks.real_sets"
FROZEN = "MobileNetV2"
SETS = tuple(real_page.MEASURES)
# Nothing is learned at a learning rate of 0. The evaluators are those of the sets.
_UNTRAINED = (
    "--config=configs/pretrain.py",
    "--config.total_steps=1",
    "--config.optimizer.learning_rate=0.0",
    "--config.optimizer.warmup_steps=0",
    "--config.data.length=1000",
    "--config.tensorboard=False",
)


def main() -> None:
    """Judges the encoders and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--encoder",
        action="append",
        default=[],
        metavar="NAME=RUN[,RUN...]",
        help="run directories of one encoder; several times for several encoders",
    )
    parser.add_argument(
        "--random", type=int, nargs="*", default=[], metavar="SEED", help="of initial weights"
    )
    parser.add_argument("--mobilenet", type=Path, metavar="FILE", help="weights of MobileNetV2")
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS)
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--at-once", type=int, default=cores, help="processes in parallel")
    args = parser.parse_args()
    try:
        given = encoders(args.encoder, args.random, args.workdir)
        check_sets(args.sets)
    except InputError as error:
        parser.error(str(error))
    began = time.monotonic()
    untrained = {
        folder.name: [*_UNTRAINED, f"--config.seed={seed}"]
        for seed, folder in zip(args.random, given.get(real_page.RANDOM, ()), strict=True)
        if not (folder / "checkpoints").is_dir()
    }
    runs.train_all(untrained, args.workdir, args.at_once)
    weights = args.mobilenet if args.mobilenet and mobilenet.available(args.mobilenet) else None
    folders = evaluate(given, args.sets, args.workdir, args.at_once, weights)
    found = {
        name: {
            encoder: [stored.read(folder) for folder in of_runs]
            for encoder, of_runs in of_set.items()
        }
        for name, of_set in folders.items()
    }
    minutes = (time.monotonic() - began) / 60
    machine = (
        f"{datetime.date.today().isoformat()}, {minutes:.0f} minutes, {cores} cores; "
        f"jax {versions()['jax']}"
    )
    page = real_page.write_page(found, COMMAND, machine)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "real.json").write_text(
        json.dumps(real_page.stored(found), indent=1) + "\n", encoding="utf-8"
    )
    path = args.out / "real.md"
    # Another command writes that section.
    if path.exists() and (own := section_of(path.read_text(encoding="utf-8"), TEXT_HEADING)):
        page = with_section(page, TEXT_HEADING, own)
    path.write_text(page, encoding="utf-8")
    print(page)


def encoders(
    given: Sequence[str], seeds: Sequence[int], workdir: Path
) -> dict[str, tuple[Path, ...]]:
    """Name -> run directories of each encoder; those of random towers may not exist yet.

    Raises:
      InputError: no encoder, no name, a name that is taken, or a folder without a finished run.
    """
    found: dict[str, tuple[Path, ...]] = {}
    if seeds:
        found[real_page.RANDOM] = tuple(workdir / f"{real_page.RANDOM}-{seed}" for seed in seeds)
    if len(set(seeds)) < len(seeds):
        raise InputError(f"--random {' '.join(map(str, seeds))} names a seed twice")
    for one in given:
        name, equals, folders = one.partition("=")
        paths = tuple(map(Path, folders.split(",")))
        if not name or not equals or not all(folders.split(",")):
            raise InputError(f"--encoder {one}; expected NAME=RUN[,RUN...]")
        if "/" in name or name in (*found, real_page.RANDOM, FROZEN):
            raise InputError(f"--encoder {one}: the name {name!r} is taken, or not a plain name")
        for path in paths:
            if not (path / "config.json").is_file() or not (path / "checkpoints").is_dir():
                raise InputError(f"--encoder {one}: {path} holds no trained run")
        if len(set(paths)) < len(paths):
            raise InputError(f"--encoder {one} names a run twice")
        found[name] = paths
    if not found:
        raise InputError("no encoder; expected --encoder NAME=RUN[,RUN...] or --random SEED")
    return found


def check_sets(sets: Sequence[str]) -> None:
    """Checks that the tables of the sets are there.

    Raises:
      InputError: one is not; names the variable that says where they are.
    """
    for name in sets:
        path = judge.get_config(name).data.path
        if not Path(path).is_file():
            raise InputError(f"no {path}; set MMRL_REAL_DATA to the folder of the real sets")


def evaluate(
    given: Mapping[str, Sequence[Path]],
    sets: Sequence[str],
    workdir: Path,
    at_once: int,
    weights: Path | None,
) -> dict[str, dict[str, list[Path]]]:
    """Executes the evaluations that are missing.

    Args:
      given: encoder -> run directories. weights: of MobileNetV2; None: without it.

    Returns:
      Set -> encoder -> folder of the evaluation of each run.
    """
    found: dict[str, dict[str, list[Path]]] = {}
    commands: dict[str, dict[str, list[str]]] = {"mmrl.evaluate": {}, "benchmarks.frozen": {}}
    for name in sets:
        found[name] = {}
        preset = f"--config=configs/judge.py:{name}"
        for encoder, paths in given.items():
            found[name][encoder] = []
            for number, path in enumerate(paths):
                place = f"{name}/{encoder}-{number}"
                found[name][encoder].append(workdir / place)
                arguments = [f"--workdir={path}", preset, f"--out={workdir / place}"]
                commands["mmrl.evaluate"][place] = arguments
        if weights is not None and has_probe(name):
            place = f"{name}/{FROZEN}"
            found[name][FROZEN] = [workdir / place]
            first = next(iter(given.values()))[0]
            commands["benchmarks.frozen"][place] = [
                f"--weights={weights}",
                f"--workdir={first}",
                preset,
                f"--out={workdir / place}",
            ]
    for module, of_module in commands.items():
        missing = {
            place: arguments
            for place, arguments in of_module.items()
            if not (workdir / place / stored.RESULTS).is_file()
        }
        runs.execute(missing, workdir, at_once, module=module)
    return found


def has_probe(name: str) -> bool:
    """Whether a set asks for a probe, which is all that frozen features can answer."""
    return any(given.get("name", key) == "probe" for key, given in judge.EVALUATORS[name].items())


if __name__ == "__main__":
    main()
