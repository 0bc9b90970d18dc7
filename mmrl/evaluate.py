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
from typing import TYPE_CHECKING, Any

import ml_collections
from absl import flags

from mmrl import cli, config, opening, wiring
from mmrl.types import InputError

if TYPE_CHECKING:  # these take seconds, which --help and refused commands do not need
    from mmrl.data.corpus import Corpus
    from mmrl.training.console import Console
    from mmrl.training.run import Trained

SPLITS = ("train", "val", "test")

_FLAGS = cli.new_flags()
_ENCODERS = opening.Encoders(
    _FLAGS,
    "to evaluate",
    "FILE[:VARIANT,...]: A preset whose data and evaluators replace those of the run.",
)
_SPLIT = flags.DEFINE_string(
    "split", "test", f"SPLIT: The records to evaluate: {', '.join(SPLITS)}.", flag_values=_FLAGS
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
    if _SPLIT.value not in SPLITS:
        raise InputError(f"--split={_SPLIT.value}; choices: {', '.join(SPLITS)}")
    # These take seconds, which --help and refused commands do not need.
    import jax

    from mmrl.devices import compile_cache
    from mmrl.evaluators import stored
    from mmrl.reporting import write as reporting
    from mmrl.training import run
    from mmrl.training.console import Console

    trained, chosen, asked = _ENCODERS.open()
    left_out = {} if trained.step is not None else _left_out(trained, chosen)
    folder = cli.folder("out", _OUT.value or _default_out(trained))
    first = jax.process_index() == 0
    console = Console(active=first)
    if note := compile_cache.use(chosen.compile_cache):
        console.say(note)
    for name, reason in left_out.items():
        console.say(f"left out: {name} {reason}")
    splits = run.splits(asked, wiring.evaluated(asked), folder)
    corpus = splits(_SPLIT.value)
    for warning in corpus.warnings:
        console.say(f"warning: {warning}")
    leaks = _leaks(trained, chosen, corpus, console)
    examples = trained.examples(corpus, splits, config=chosen)
    console.say(f"evaluating {trained} on {examples.name}")
    if trained.step is None:
        console.facts("preprocessing", examples.preprocessing)
        for tower, facts in trained.encoders().items():
            console.facts(f"tower {tower}", facts)
    evaluators = run.make_evaluators(chosen.evaluators, trained.predict, examples)
    results = run.evaluate_all(evaluators, trained.state)
    console.results(f"{examples.name}, {trained}", results)
    content = {
        "step": trained.step,
        "weights_sha256": trained.weights_sha256(),
        "encoders": trained.encoders(),
        **{key: trained.meta[key] for key in ("source",) if key in trained.meta},
        "leaks": leaks,
        "warnings": corpus.warnings,
        "left_out": dict(left_out),
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
        left_out=left_out,
    )
    console.say(f"results: {folder / stored.RESULTS}\nsummary page: {page}")


def _default_out(trained: "Trained") -> Path:
    return trained.folder / "evaluations" / f"{_SPLIT.value}-{trained.step:08d}"


def _left_out(trained: "Trained", chosen: ml_collections.ConfigDict) -> dict[str, str]:
    """Takes the evaluators that an encoder cannot run out of its config; each with the reason.

    Raises:
      InputError: none is left.
    """
    from mmrl.training import run

    found = run.left_out(chosen.evaluators, trained.predict.provides)
    kept = {name: given for name, given in chosen.evaluators.items() if name not in found}
    if not kept:
        reasons = "; ".join(f"{name} {reason}" for name, reason in found.items())
        raise InputError(
            f"--encoder={trained.folder} can run no evaluator of --config: "
            f"{reasons or 'it has none'}"
        )
    chosen.evaluators = ml_collections.ConfigDict(kept)
    return found


def _leaks(
    trained: "Trained", chosen: ml_collections.ConfigDict, corpus: "Corpus", console: "Console"
) -> dict[str, Any]:
    """What results state of records that occur in training, too."""
    from mmrl.training import run

    if trained.step is None:
        console.say(f"warning: {run.UNKNOWN_TRAINING}")
        return {"note": run.UNKNOWN_TRAINING}
    if _SPLIT.value == "train":
        return {"note": "the evaluated split is the training split"}
    training = run.training_fingerprint(trained)
    return run.check_leaks(training, corpus.fingerprint, chosen.data, console)


if __name__ == "__main__":
    cli.run(main, _FLAGS, __doc__)
