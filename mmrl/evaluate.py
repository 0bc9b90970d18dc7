"""Evaluates trained encoders and writes results.json, draws.npz, figures and a summary page.

Model, tokenizer, preprocessing, data and evaluators are those of the run. --config takes the data
and the evaluators from a preset instead; --config.KEY=VALUE without it changes those of the run.

--encoder evaluates an encoder that was not trained here, with its own preprocessing, on the data
and by the evaluators of --config. What needs a part that the encoder lacks is left out, and named.

    python -m mmrl.evaluate --workdir=runs/pretrain --split=test
    python -m mmrl.evaluate --workdir=runs/pretrain --config.evaluators.zero_shot.tasks=findings
    python -m mmrl.evaluate --encoder=weights/clip --config=configs/judge.py:roco --out=judged/clip
"""

from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from mmrl import cli, evaluation, opening

if TYPE_CHECKING:  # it takes seconds, which --help and refused commands do not need
    from mmrl.training.run import Trained

_FLAGS = cli.new_flags()
_ENCODERS = opening.Encoders(
    _FLAGS,
    "to evaluate",
    "FILE[:VARIANT,...]: A preset whose data and evaluators replace those of the run.",
)
_SPLIT = flags.DEFINE_string(
    "split",
    "test",
    f"SPLIT: The records to evaluate: {', '.join(evaluation.SPLITS)}.",
    flag_values=_FLAGS,
)
_OUT = flags.DEFINE_string(
    "out",
    None,
    "FOLDER: Where to write; by default WORKDIR/evaluations/SPLIT-STEP.",
    flag_values=_FLAGS,
)
cli.define_processes(_FLAGS)


def main() -> None:
    """Evaluates one checkpoint, or one encoder, on one split."""
    if not _ENCODERS.is_run:
        cli.required("out", _OUT.value)
    evaluation.check_split(_SPLIT.value)
    # These take seconds, which --help and refused commands do not need.
    import jax

    from mmrl.devices import compile_cache
    from mmrl.training.console import Console

    opened = _ENCODERS.open()
    folder = cli.output("out", _OUT.value or _default_out(opened.trained))
    console = Console(active=jax.process_index() == 0)
    if note := compile_cache.use(opened.chosen.compile_cache):
        console.say(note)
    leave_out = opened.trained.step is None
    evaluation.evaluate(opened, _SPLIT.value, folder, console, leave_out=leave_out)


def _default_out(trained: "Trained") -> Path:
    return trained.folder / "evaluations" / f"{_SPLIT.value}-{trained.step:08d}"


if __name__ == "__main__":
    cli.run(main, _FLAGS, __doc__)
