"""The parts of a run that training, evaluation, export and `mmrl.load` build in the same way."""

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
from mmrl.data.batches.pipeline import Examples, Options
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
      allow_empty: an empty split is an answer rather than an error.

    Raises:
      InputError: whatever the source refuses, or too many rejected records.
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
    """Lists every rejected record in WORKDIR/rejects.jsonl, then stops if there are too many.

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
    """Says which held-out records were seen in training; stops unless config.data waives it.

    Returns:
      What results must carry of it, see `leaks.summary`.

    Raises:
      LeakError: an overlap that config.data.waive_leaks does not cover.
    """
    waivers = leaks.parse_waivers(data["waive_leaks"])
    overlaps = leaks.compare(training, held_out)
    where = f"{held_out.name} against training on {training.name}"
    leaks.check(overlaps, waivers, where)
    found = leaks.summary(training, held_out, overlaps, waivers)
    lines = [str(overlap) for overlap in overlaps]
    lines += [
        f"waived {kind}: {why}" for kind, (_, why) in waivers.items() if kind in found["waived"]
    ]
    lines += [f"not compared: {what}" for what in found["not_compared"]]
    console.say(f"leaks, {where}: {'; '.join(lines) or 'none'}")
    return found


def training_fingerprint(trained: "Trained") -> Fingerprint:
    """That of the training split: from the run directory, or from the data themselves.

    Raises:
      InputError: neither is there.
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
    """config.evaluators -> name to evaluator over `data`."""
    return {
        name: build.find("evaluator", name)(predict, data, **options)
        for name, options in chosen.items()
    }


def evaluate_all(evaluators: Mapping[str, Evaluator], state: Any) -> dict[str, Results]:
    """Runs each evaluator on `state`."""
    return {name: evaluator.run(state) for name, evaluator in evaluators.items()}


def scalars(results: Mapping[str, Results]) -> dict[str, float]:
    """All figures as "retrieval/image_to_text/R@1" -> value."""
    return {
        f"{name}/{key}": value
        for name, result in results.items()
        for key, value in result.scalars().items()
    }


def read_config(workdir: Path) -> dict[str, Any] | None:
    """The stored config of a run directory; None when there is no such directory yet.

    Raises:
      InputError: the directory holds something, but not a run.
    """
    path = workdir / "config.json"
    if path.exists():
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{path} is not JSON: {error}") from None
    others = [p.name for p in workdir.iterdir()] if workdir.is_dir() else []
    # A first start that was refused for its data leaves only the list of rejects behind.
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
    """A trained run, ready to encode: what evaluation, export and `mmrl.load` start from.

    Attributes:
      config: of the run. meta: as saved in the checkpoint. step: the checkpoint's.
      state: step, parameters (averaged ones as "ema" if kept) and variables.
    """

    workdir: Path
    config: ml_collections.ConfigDict
    meta: Mapping[str, Any]
    tokenizer: Tokenizer
    predict: Predict
    state: Mapping[str, Any]
    step: int

    def examples(self, corpus: Corpus, training: Callable[[], Corpus] | None = None) -> Examples:
        """`corpus` prepared exactly as in this run's own evaluation; `training` as in Examples."""
        options = Options.from_config(self.config.data)
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
        """Where a figure of this run comes from, for reports and manifests."""
        return {
            "step": self.step,
            "weights_sha256": self.weights_sha256(),
            "data": {"name": examples.name, "sha256": examples.sha256},
            "tokenizer_sha256": self.tokenizer.sha256,
            "trained_with": dict(self.meta["versions"]),
            "evaluated_with": checkpoint.versions(),
        }

    def weights_sha256(self) -> str:
        """Identity of the weights used for encoding."""
        used = {"params": self.state.get("ema", self.state["params"])}
        return checkpoint.digest({**used, "variables": self.state["variables"]})


def restore(workdir: Path, *, step: int | None = None, mesh: Mesh | None = None) -> Trained:
    """Loads a checkpoint with all it needs, from nothing but the checkpoint.

    Args:
      step: default the latest. mesh: default all devices, data-parallel.

    Raises:
      InputError: no run, no such step, or a checkpoint that lacks parameters.
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
    """Refuses a run whose config this version cannot read."""
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
    """What encoding needs of a train state: no optimizer, no metrics."""
    step = jax.ShapeDtypeStruct((), jnp.int32, sharding=sharding.replicated(mesh))
    target = {"step": step, "params": layout.params, "variables": layout.variables}
    if settings.ema > 0:
        target["ema"] = layout.params
    return target
