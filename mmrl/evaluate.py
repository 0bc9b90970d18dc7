"""Evaluates a checkpoint and writes results.json, draws.npz, figures and a summary page.

Model, tokenizer, preprocessing, data and evaluators are those of the run. --config takes the data
and the evaluators from a preset instead; --config.KEY=VALUE without it changes those of the run.

    python -m mmrl.evaluate --workdir=runs/pretrain --split=test
    python -m mmrl.evaluate --workdir=runs/pretrain --config.evaluators.zero_shot.tasks=findings
"""

from typing import Any

from absl import flags

from mmrl import cli, config, wiring
from mmrl.types import InputError

SPLITS = ("train", "val", "test")

_FLAGS = cli.new_flags()
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "FOLDER: The run to evaluate. Required.", flag_values=_FLAGS
)
_SPLIT = flags.DEFINE_string(
    "split", "test", f"SPLIT: The records to evaluate: {', '.join(SPLITS)}.", flag_values=_FLAGS
)
_STEP = flags.DEFINE_string(
    "step",
    None,
    "N: The checkpoint to evaluate, or best: the one chosen by config.best of the run; by default "
    "the latest.",
    flag_values=_FLAGS,
)
_OUT = flags.DEFINE_string(
    "out",
    None,
    "FOLDER: Where to write; by default WORKDIR/evaluations/SPLIT-STEP.",
    flag_values=_FLAGS,
)
_CONFIG = cli.define_config(
    _FLAGS, "FILE[:VARIANT,...]: A preset whose data and evaluators replace those of the run."
)
cli.define_processes(_FLAGS)


def main() -> None:
    """Evaluates one checkpoint on one split."""
    workdir = cli.folder("workdir", _WORKDIR.value)
    if _SPLIT.value not in SPLITS:
        raise InputError(f"--split={_SPLIT.value}; choices: {', '.join(SPLITS)}")
    # These take seconds, which --help and refused commands do not need.
    import jax

    from mmrl.devices import compile_cache
    from mmrl.evaluators import stored
    from mmrl.reporting import write as reporting
    from mmrl.training import checkpoint, run
    from mmrl.training.console import Console

    step = checkpoint.parse_step("--step", _STEP.value)
    first = jax.process_index() == 0
    console = Console(active=first)
    trained = run.restore(workdir, step=step)
    if note := compile_cache.use(trained.config.compile_cache):
        console.say(note)
    chosen = config.with_data(trained.config, _CONFIG.read_by(trained.config))
    default = trained.workdir / "evaluations" / f"{_SPLIT.value}-{trained.step:08d}"
    folder = cli.folder("out", _OUT.value) if _OUT.value else default
    splits = run.splits(chosen, wiring.evaluated(chosen), folder)
    corpus = splits(_SPLIT.value)
    for warning in corpus.warnings:
        console.say(f"warning: {warning}")
    leaks: dict[str, Any] = {"note": "the evaluated split is the training split"}
    if _SPLIT.value != "train":
        training = run.training_fingerprint(trained)
        leaks = run.check_leaks(training, corpus.fingerprint, chosen.data, console)
    examples = trained.examples(corpus, splits)
    console.say(f"evaluating step {trained.step} of {trained.workdir} on {examples.name}")
    evaluators = run.make_evaluators(chosen.evaluators, trained.predict, examples)
    results = run.evaluate_all(evaluators, trained.state)
    console.results(f"{examples.name} at step {trained.step}", results)
    content = {
        "step": trained.step,
        "weights_sha256": trained.weights_sha256(),
        "leaks": leaks,
        "warnings": corpus.warnings,
        "headline": {name: dict(one.headline) for name, one in evaluators.items()},
    }
    if first:
        stored.write(folder, content, results)
    page = reporting.write(
        folder,
        trained,
        examples,
        evaluators,
        results,
        title=f"mmrl evaluation: {examples.name}",
        config=config.plain(chosen),
        leaks=leaks,
    )
    console.say(f"results: {folder / stored.RESULTS}\nsummary page: {page}")


if __name__ == "__main__":
    cli.run(main, _FLAGS, __doc__)
