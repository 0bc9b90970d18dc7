"""Compares evaluations in one table: encoders as rows, measures as columns, paired differences.

Evaluations of other examples, protocol versions or preprocessing are refused. A name may be given
to each, NAME=PATH; PATH is a folder of `python -m mmrl.evaluate` or the results.json in it. A value
is bold if its encoder is better than every other row, blind rows included, by the paired bootstrap.

    python -m mmrl.compare ours=runs/pretrain/evaluations/test-00001200 \\
        paper=runs/paper/evaluations/test-00001200 --measures=retrieval/image_to_text/R@1
"""

from pathlib import Path

from absl import flags

from mmrl import cli, files
from mmrl.types import InputError

_FLAGS = cli.new_flags()
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
    "out", None, "FOLDER: Where to write comparison.md and comparison.json.", flag_values=_FLAGS
)


def main(*arguments: str) -> None:
    """Prints the table and writes it."""
    from mmrl.evaluators import stored  # here, so that --help starts at once
    from mmrl.reporting import comparison

    given = {name: stored.read(path) for name, path in _named(arguments).items()}
    table = comparison.compare(given, measures=_MEASURES.value, may_differ=_MAY_DIFFER.value)
    print(table.markdown(), end="")
    if _OUT.value:
        folder = cli.folder("out", _OUT.value)
        files.write(folder / "comparison.md", table.markdown())
        files.write_json(folder / "comparison.json", table.to_dict())


def _named(arguments: tuple[str, ...]) -> dict[str, Path]:
    """Name -> path of every evaluation.

    Raises:
      InputError: none, or two of one name.
    """
    if not arguments:
        raise InputError("no evaluation was given; expected NAME=PATH ..., see --help")
    found: dict[str, Path] = {}
    for argument in arguments:
        name, equals, rest = argument.partition("=")
        path = Path(rest if equals else argument)
        label = name if equals else _name_of(path)
        if not label:
            raise InputError(f"{argument} names no encoder; expected NAME=PATH")
        if label in found:
            raise InputError(f"two evaluations are named {label!r}; expected NAME=PATH for each")
        found[label] = path
    return found


def _name_of(path: Path) -> str:
    """The run folder of runs/NAME/evaluations/SPLIT-STEP; else the folder of the results."""
    folder = path.parent if path.suffix == ".json" else path
    return folder.parent.parent.name if folder.parent.name == "evaluations" else folder.name


if __name__ == "__main__":
    cli.run(main, _FLAGS, __doc__, positional=True)
