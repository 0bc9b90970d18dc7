"""Compares encoders in one table: encoders as rows, measures as columns, paired differences.

Each argument is a run, a folder of an encoder that was not trained here, or a stored evaluation (a
folder of `python -m mmrl.evaluate` or the results.json in it), with a name if it is NAME=PATH. Runs
and encoders are evaluated on the same split by the data and the evaluators of --config, or else of
the first run; evaluations that did so already are reused. Evaluations of other examples, protocol
versions or preprocessing are refused. A value is bold if its encoder is better than every other
row, blind rows included, by the paired bootstrap.

NAME=PATH,PATH,PATH are several runs of one system, such as three seeds: the table begins with the
mean and the standard deviation of each system, and its runs are the rows NAME-1, NAME-2 and so on.

    python -m mmrl.compare runs/ours runs/paper --out=compared
    python -m mmrl.compare runs/ours clip=weights/clip --config=configs/judge.py:roco --out=compared
    python -m mmrl.compare ours=runs/a-0,runs/a-1,runs/a-2 paper=runs/b-0,runs/b-1,runs/b-2 \\
        --out=compared
    python -m mmrl.compare ours=runs/pretrain/evaluations/test-00001200 \\
        paper=runs/paper/evaluations/test-00001200 --measures=retrieval/image_to_text/R@1
"""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import ml_collections
from absl import flags

from mmrl import cli, config, encoder_folder, evaluation, files, starts
from mmrl.remote import opened
from mmrl.types import InputError

if TYPE_CHECKING:  # these take seconds, which --help and refused commands do not need
    from mmrl.evaluators.stored import Evaluation
    from mmrl.opening import Opened

_FLAGS = cli.new_flags()
_CONFIG = cli.define_config(
    _FLAGS,
    "FILE[:VARIANT,...]: The preset whose data and evaluators judge runs and encoders; by default "
    "those of the first run.",
)
_SPLIT = flags.DEFINE_string(
    "split",
    "test",
    f"SPLIT: The records to evaluate: {', '.join(evaluation.SPLITS)}.",
    flag_values=_FLAGS,
)
_STEP = flags.DEFINE_string(
    "step",
    None,
    "N: The checkpoint of every run, or best: the one chosen by config.best of the run; by default "
    "the latest.",
    flag_values=_FLAGS,
)
_MEASURES = flags.DEFINE_list(
    "measures",
    [],
    "MEASURE,...: The columns, as EVALUATOR/MEASURE; by default the values that each evaluator "
    "shows first.",
    flag_values=_FLAGS,
)
_MAY_DIFFER = flags.DEFINE_list(
    "may_differ",
    [],
    "KEY,...: Preprocessing or options in which the evaluations may differ, such as "
    "preprocessing.resize; the table states them.",
    flag_values=_FLAGS,
)
_OUT = flags.DEFINE_string(
    "out",
    None,
    "FOLDER: Where to write comparison.md, comparison.json, the page comparison.html and new "
    "evaluations. Required if a run or an encoder is given.",
    flag_values=_FLAGS,
)

RUN, ENCODER, STORED = "run", "encoder", "evaluation"


def main(*arguments: str) -> None:
    """Evaluates what is not evaluated yet, prints the table and writes it with its page."""
    paths, systems = _named(arguments)
    kinds = {name: _kind(path) for name, path in paths.items()}
    asked = set(kinds.values()) - {STORED}
    if asked:
        cli.required("out", _OUT.value)
    evaluation.check_split(_SPLIT.value)
    folder = cli.output("out", _OUT.value) if _OUT.value else None
    # Here, so that --help starts at once.
    from mmrl.evaluators import stored
    from mmrl.reporting import comparison, comparison_page

    given = {name: stored.read(paths[name]) for name, kind in kinds.items() if kind == STORED}
    if asked and folder is not None:
        given |= _evaluated(paths, kinds, folder)
    ordered = {name: given[name] for name in paths}
    table = comparison.compare(
        ordered, measures=_MEASURES.value, may_differ=_MAY_DIFFER.value, systems=systems
    )
    print(table.markdown(), end="")
    if folder is not None:
        files.write(folder / "comparison.md", table.markdown())
        files.write_json(folder / "comparison.json", table.to_dict())
        print(f"comparison page: {comparison_page.write(folder, table, ordered)}")


def _named(arguments: tuple[str, ...]) -> tuple[dict[str, Path], dict[str, list[str]]]:
    """Name -> path of everything that is compared, and system -> the names of its runs.

    Raises:
      InputError: nothing, two of one name, or a run that is given twice.
    """
    if not arguments:
        raise InputError(
            "nothing to compare was given; expected runs, encoders or evaluations as NAME=PATH "
            "..., see --help"
        )
    found: dict[str, Path] = {}
    systems: dict[str, list[str]] = {}
    for argument in arguments:
        name, equals, rest = argument.partition("=")
        given = rest if equals else argument
        parts = [given] if Path(given).exists() else given.split(",")
        several, paths = len(parts) > 1, [_path(one) for one in parts]
        label = name if equals else "" if several else _name_of(paths[0])
        if not label or (several and not all(parts)):
            raise InputError(f"{argument} names no encoder; expected NAME=PATH or NAME=PATH,PATH")
        if label in (".", "..") or "/" in label or "\\" in label:
            raise InputError(f"the name {label!r} is no name of a folder; expected NAME=PATH")
        if len(set(paths)) < len(paths):
            raise InputError(f"{argument} names a run twice; expected every run of a system once")
        labels = [f"{label}-{n}" for n in range(1, len(paths) + 1)] if several else [label]
        if several:
            systems[label] = labels
        for one, path in zip(labels, paths, strict=True):
            if one in found:
                raise InputError(f"two arguments are named {one!r}; expected NAME=PATH for each")
            found[one] = path
    return found, systems


def _path(given: str) -> Path:
    """The path of a run, an encoder or an evaluation; of an address, that of a local copy."""
    return opened.reading("argument", given) if opened.is_address(given) else Path(given)


def _name_of(path: Path) -> str:
    """The run folder of runs/NAME/evaluations/SPLIT-STEP; else the folder that is given."""
    folder = path.parent if path.suffix == ".json" else path
    return folder.parent.parent.name if folder.parent.name == "evaluations" else folder.name


def _kind(path: Path) -> str:
    """What a path holds; what is no folder is read as an evaluation.

    Raises:
      InputError: a folder that holds none of the three.
    """
    if encoder_folder.is_encoder(path):
        return ENCODER
    if (path / starts.RUN).is_file():
        return RUN
    if not path.is_dir() or (path / "results.json").exists():
        return STORED
    raise InputError(
        f"{path} holds no run, no encoder and no evaluation; expected {starts.RUN}, "
        f"{encoder_folder.ENCODER} or results.json in it"
    )


def _evaluated(
    paths: Mapping[str, Path], kinds: Mapping[str, str], folder: Path
) -> dict[str, "Evaluation"]:
    """The evaluations of runs and encoders, stored ones where they asked the same."""
    from mmrl.devices import compile_cache
    from mmrl.evaluators import stored
    from mmrl.training.console import Console

    judge = _judge(paths, kinds)
    console = Console(active=True)
    if note := compile_cache.use(judge.compile_cache):
        console.say(note)
    found = {}
    for name, path in paths.items():
        if kinds[name] == STORED:
            continue
        opened = _open(path, kinds[name], judge)
        asked = evaluation.digest(opened, _SPLIT.value)
        own = folder / "evaluations" / name
        where = next(
            (place for place in _places(path, own) if _asked(place) == asked),
            None,
        )
        if where is None:
            evaluation.evaluate(opened, _SPLIT.value, own, console, leave_out=True)
            where = own
        else:
            console.say(f"{name}: evaluated before, {where}")
        found[name] = stored.read(where)
    return found


def _judge(paths: Mapping[str, Path], kinds: Mapping[str, str]) -> ml_collections.ConfigDict:
    """The config whose data and evaluators are the same for all.

    Raises:
      InputError: there is neither a preset nor a run.
    """
    from mmrl.training import run

    first = next((paths[name] for name, kind in kinds.items() if kind == RUN), None)
    own = None if first is None else config.from_plain(run.read_config(first) or {})
    preset = _CONFIG.make() if own is None else _CONFIG.read_by(own)
    judge = own if preset is None else preset
    if judge is None:
        raise InputError(
            "encoders that were not trained here need --config=FILE, a preset that names the data "
            "and the evaluators, such as configs/judge.py:roco"
        )
    return judge


def _open(path: Path, kind: str, judge: ml_collections.ConfigDict) -> "Opened":
    """A run or an encoder that reads the data of `judge`."""
    from mmrl.opening import Opened
    from mmrl.training import checkpoint, run

    if kind == RUN:
        trained = run.restore(path, step=checkpoint.parse_step("--step", _STEP.value))
    else:
        trained = run.read_encoder(path)
    chosen = config.with_data(trained.config, judge)
    if kind == ENCODER:
        trained = dataclasses.replace(trained, config=chosen)
    return Opened(trained, chosen, judge)


def _places(path: Path, own: Path) -> Iterator[Path]:
    """Folders in which an evaluation of a run or an encoder may be."""
    yield own
    if (path / "evaluations").is_dir():
        yield from sorted((path / "evaluations").iterdir())


def _asked(folder: Path) -> str | None:
    """The digest of what a stored evaluation asked; None if there is none that can be read."""
    from mmrl.evaluators import stored

    try:
        return stored.read(folder).content.get("asked_sha256")
    except InputError:
        return None


if __name__ == "__main__":
    cli.run(main, _FLAGS, __doc__, positional=True)
