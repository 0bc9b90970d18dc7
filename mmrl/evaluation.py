"""The evaluation of opened encoders on one split, for the commands that evaluate and compare."""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_collections

from mmrl import config, wiring
from mmrl.types import InputError

if TYPE_CHECKING:  # these take seconds, which --help and refused commands do not need
    from mmrl.data.corpus import Corpus
    from mmrl.opening import Opened
    from mmrl.training.console import Console
    from mmrl.training.run import Trained

SPLITS = ("train", "val", "test")


def check_split(split: str) -> None:
    """Refuses a split that is none.

    Raises:
      InputError: names the choices.
    """
    if split not in SPLITS:
        raise InputError(f"--split={split}; choices: {', '.join(SPLITS)}")


def digest(opened: "Opened", split: str) -> str:
    """sha256 of the weights and of what is asked of them: data, evaluators and split.

    Evaluations of one digest have equal results, as long as the files of the data are the same.
    """
    asked = {
        "weights": opened.trained.weights_sha256(),
        "split": split,
        "data": config.plain(opened.chosen.data),
        "inputs": config.plain(opened.chosen.inputs),
        "evaluators": config.plain(opened.asked.evaluators),
        "read": wiring.evaluated(opened.asked),
    }
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def evaluate(
    opened: "Opened", split: str, folder: Path, console: "Console", *, leave_out: bool
) -> Path:
    """Evaluates encoders; writes results.json, draws.npz, figures and the summary page.

    All processes call this; the first one writes.

    Args:
      split: the records to evaluate.
      folder: where to write.
      leave_out: whether evaluators that the encoders cannot run are left out, and named; else they
        are refused.

    Returns:
      The path of the summary page.

    Raises:
      InputError: the encoders can run no evaluator, or data that an evaluator cannot use.
      LeakError: an evaluated record occurs in the training of the run.
    """
    import jax

    from mmrl.evaluators import stored
    from mmrl.reporting import write as reporting
    from mmrl.training import run

    trained, chosen, asked = opened
    asked_sha256 = digest(opened, split)
    left_out = _left_out(trained, chosen) if leave_out else {}
    for name, reason in left_out.items():
        console.say(f"left out: {name} {reason}")
    splits = run.splits(asked, wiring.evaluated(asked), folder)
    corpus = splits(split)
    for warning in corpus.warnings:
        console.say(f"warning: {warning}")
    leaks = _leaks(trained, chosen, corpus, split, console)
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
        "asked_sha256": asked_sha256,
        "encoders": trained.encoders(),
        **{key: trained.meta[key] for key in ("source", "config") if key in trained.meta},
        "leaks": leaks,
        "warnings": corpus.warnings,
        "left_out": dict(left_out),
        "headline": {name: dict(one.headline) for name, one in evaluators.items()},
    }
    if jax.process_index() == 0:
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
    )["whole"]
    console.say(f"results: {folder / stored.RESULTS}\nsummary page: {page}")
    return page


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
            f"{trained.folder} can run no evaluator of --config: {reasons or 'it has none'}"
        )
    chosen.evaluators = ml_collections.ConfigDict(kept)
    return found


def _leaks(
    trained: "Trained",
    chosen: ml_collections.ConfigDict,
    corpus: "Corpus",
    split: str,
    console: "Console",
) -> dict[str, Any]:
    """What results state of records that occur in training, too."""
    from mmrl.training import run

    if trained.step is None:
        console.say(f"warning: {run.UNKNOWN_TRAINING}")
        return {"note": run.UNKNOWN_TRAINING}
    if split == "train":
        return {"note": "the evaluated split is the training split"}
    training = run.training_fingerprint(trained)
    return run.check_leaks(training, corpus.fingerprint, chosen.data, console)
