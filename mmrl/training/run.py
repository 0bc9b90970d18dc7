"""Builds the parts of a run that training, evaluation, export and `mmrl.load` share."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from jax.sharding import Mesh

from mmrl import build, config
from mmrl.data.batches.pipeline import Examples, PipelineOptions
from mmrl.data.corpus import Corpus, read_corpus
from mmrl.data.overlap import leaks
from mmrl.data.overlap.fingerprints import Fingerprint
from mmrl.data.reading import rejects
from mmrl.data.text.tokenizer import Tokenizer
from mmrl.devices import sharding
from mmrl.evaluators.base import Evaluator, Results
from mmrl.training import checkpoint, learner
from mmrl.training.console import Console
from mmrl.training.predict import Predict
from mmrl.types import InputError, Reject

FINGERPRINT = "training_fingerprint.npz"  # in the run directory


def load_corpus(data: Mapping[str, Any], split: str, *, allow_empty: bool = False) -> Corpus:
    """Reads one split of the source that config.data names.

    Args:
      allow_empty: return an empty split instead of raising an error.

    Raises:
      InputError: the source cannot be read, or the split is empty and `allow_empty` is False.
    """
    pipeline, options = config.split_data(data)
    options = {key: value for key, value in options.items() if value not in (None, "")}
    source = build.find("source", pipeline["source"])(split=split, **options)
    return read_corpus(
        f"{pipeline['source']}/{split}",
        source,
        sections=tuple(pipeline["sections"]),
        views=pipeline["views"],
        allow_empty=allow_empty,
    )


def check_rejects(corpora: Mapping[str, Corpus], workdir: Path, max_fraction: float) -> None:
    """Lists every rejected record in WORKDIR/rejects.jsonl and checks their number.

    Raises:
      InputError: a split rejected more than `max_fraction` of its records.
    """
    refused: list[Reject] = [reject for corpus in corpora.values() for reject in corpus.rejects]
    if jax.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)
        rejects.write_rejects(workdir / "rejects.jsonl", refused)
    for corpus in corpora.values():
        rejects.check_fraction(
            len(corpus.rejects),
            corpus.total,
            max_fraction,
            what=corpus.name,
            reasons=rejects.summarise(corpus.rejects),
        )


def check_leaks(
    training: Fingerprint, held_out: Fingerprint, data: Mapping[str, Any], console: Console
) -> dict[str, Any]:
    """Reports which held-out records also occur in training.

    Returns:
      The part that results must state, see `leaks.summary`.

    Raises:
      LeakError: there is an overlap that config.data.waive_leaks does not cover.
    """
    waivers = leaks.parse_waivers(data["waive_leaks"])
    overlaps = leaks.compare(training, held_out)
    leaks.check(overlaps, waivers, f"{held_out.name} against training on {training.name}")
    found = leaks.summary(training, held_out, overlaps, waivers)
    lines = [str(overlap) for overlap in overlaps] or ["no overlap"]
    lines += [
        f"waived {kind}: {why}" for kind, (_, why) in waivers.items() if kind in found["waived"]
    ]
    lines += found["not_compared"]
    where = f"{held_out.name} against {training.name}"
    console.say(f"leak check of {where}: {'; '.join(lines)}")
    return found


def training_fingerprint(trained: "Trained") -> Fingerprint:
    """The fingerprint of the training split, from the run directory or else from the data.

    Raises:
      InputError: both are missing.
    """
    stored = trained.workdir / FINGERPRINT
    if stored.exists():
        return Fingerprint.load(stored)
    try:
        return load_corpus(trained.config.data, "train").fingerprint
    except InputError as error:
        raise InputError(
            f"--workdir={trained.workdir} has no {FINGERPRINT}, and its training data cannot be"
            f" read, so leaks cannot be excluded: {error}"
        ) from None


def make_evaluators(
    chosen: Mapping[str, Mapping[str, Any]], predict: Predict, data: Examples
) -> dict[str, Evaluator]:
    """Builds the evaluators of config.evaluators over `data`, by name."""
    return {
        name: build.find("evaluator", name)(predict, data, **options)
        for name, options in chosen.items()
    }


def evaluate_all(evaluators: Mapping[str, Evaluator], state: Any) -> dict[str, Results]:
    """Runs each evaluator on `state`."""
    return {name: evaluator.run(state) for name, evaluator in evaluators.items()}


def scalars(results: Mapping[str, Results]) -> dict[str, float]:
    """Flattens results to "retrieval/image_to_text/R@1" -> value."""
    return {
        f"{name}/{key}": value
        for name, result in results.items()
        for key, value in result.scalars().items()
    }


def read_config(workdir: Path) -> dict[str, Any] | None:
    """The stored config of a run directory; None if the directory is missing or empty.

    Raises:
      InputError: the directory is not empty and holds no run.
    """
    path = workdir / "config.json"
    if path.exists():
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{path} is not JSON: {error}") from None
    others = [p.name for p in workdir.iterdir()] if workdir.is_dir() else []
    # A first start that failed its data checks leaves only rejects.jsonl.
    if [name for name in others if name != "rejects.jsonl"]:
        raise InputError(
            f"--workdir={workdir} exists, is not empty and holds no config.json; expected a new "
            "or empty folder, or that of an earlier run"
        )
    if workdir.exists() and not workdir.is_dir():
        raise InputError(f"--workdir={workdir} is a file; expected a folder")
    return None


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained run, ready to encode, for evaluation, export and `mmrl.load`.

    Attributes:
      workdir: the run directory.
      config: of the run. meta: as saved in the checkpoint. step: of the checkpoint.
      tokenizer, predict: encode as in training.
      state: step, parameters, averaged parameters ("ema") if the run keeps them, and variables.
    """

    workdir: Path
    config: ml_collections.ConfigDict
    meta: Mapping[str, Any]
    tokenizer: Tokenizer
    predict: Predict
    state: Mapping[str, Any]
    step: int

    def examples(self, corpus: Corpus, training: Callable[[], Corpus] | None = None) -> Examples:
        """Prepares `corpus` as the run's own evaluation does; `training` as in `Examples`."""
        options = PipelineOptions.from_config(self.config.data)
        preprocess, length = options.preprocess(), options.text_length
        return Examples(
            corpus,
            self.tokenizer,
            preprocess,
            length,
            training=training,
            label_policy=options.label_policy,
        )

    def provenance(self, examples: Examples) -> dict[str, Any]:
        """What the figures of this run rest on, for the summary page and manifests."""
        return {
            "step": self.step,
            "weights_sha256": self.weights_sha256(),
            "data": {"name": examples.name, "sha256": examples.sha256},
            "tokenizer_sha256": self.tokenizer.sha256,
            "trained_with": dict(self.meta["versions"]),
            "evaluated_with": checkpoint.versions(),
        }

    def weights_sha256(self) -> str:
        """Digest of the weights used for encoding."""
        used = {"params": self.state.get("ema", self.state["params"])}
        return checkpoint.digest({**used, "variables": self.state["variables"]})


def restore(workdir: Path, *, step: int | None = None, mesh: Mesh | None = None) -> Trained:
    """Loads a trained run from its checkpoint alone.

    Args:
      step: the latest by default. mesh: all devices, data-parallel, by default.

    Raises:
      InputError: there is no run or no such step, or the checkpoint lacks parameters.
    """
    if read_config(workdir) is None or not (workdir / "checkpoints").is_dir():
        raise InputError(f"--workdir={workdir} holds no trained run (no checkpoints in it)")
    everything = {"data": -1, "fsdp": 1, "tensor": 1}
    mesh = mesh or sharding.make_mesh({**everything, "dcn": everything})
    saved = checkpoint.Checkpoints(workdir, read_only=True)
    try:
        meta = saved.meta(step)
        settings = config.from_plain(meta["config"])
        _check_version(workdir, settings, meta)
        tokenizer = Tokenizer.from_bytes(checkpoint.from_text(meta["tokenizer"]))
        layout = learner.layout(settings, tokenizer.vocab_size, mesh)
        state = saved.restore_partial(_encoding_state(layout, settings, mesh), step)
        reached = int(jax.device_get(state["step"]))
    finally:
        saved.close()
    predict = Predict(layout, mesh)
    return Trained(workdir, settings, meta, tokenizer, predict, state, reached)


def _check_version(
    workdir: Path, settings: ml_collections.ConfigDict, meta: Mapping[str, Any]
) -> None:
    """Checks that this version can read the run's config."""
    try:
        config.validate(settings)
    except InputError as error:
        raise InputError(
            f"--workdir={workdir} was trained by another version ({meta['versions']['mmrl']}) of "
            f"mmrl, whose config this one cannot read: {error}"
        ) from None


def _encoding_state(
    layout: learner.Layout, settings: ml_collections.ConfigDict, mesh: Mesh
) -> dict[str, Any]:
    """The target for restoring what encoding needs, without optimizer state and metrics."""
    step = jax.ShapeDtypeStruct((), jnp.int32, sharding=sharding.replicated(mesh))
    target = {"step": step, "params": layout.params, "variables": layout.variables}
    if settings.ema > 0:
        target["ema"] = layout.params
    return target
