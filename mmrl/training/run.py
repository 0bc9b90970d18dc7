"""Builds the parts of a run that training, evaluation, export and `mmrl.load` share."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from jax.sharding import Mesh

from mmrl import build, config, wiring
from mmrl.data.batches.pipeline import Examples
from mmrl.data.corpus import Corpus, read_corpus
from mmrl.data.inputs import base as inputs
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


def load_corpus(
    settings: Mapping[str, Any],
    split: str,
    *,
    encodings: Sequence[str] | None = None,
    allow_empty: bool = False,
) -> Corpus:
    """Reads one split of the source that config.data names.

    Records that lack an input which is needed are rejected.

    Args:
      settings: a whole config.
      encodings: names of the encodings whose inputs are needed; None: those that the objectives
        read.
      allow_empty: return an empty split instead of raising an error.

    Raises:
      InputError: the source cannot be read, or the split is empty and `allow_empty` is False.
    """
    pipeline, options = config.split_data(settings["data"])
    options = {key: value for key, value in options.items() if value not in (None, "")}
    trained, own = wiring.wire(settings)[0], wiring.own_inputs(settings["towers"])
    evaluated = wiring.Wiring.of(own, wiring.evaluated(settings))
    needed, others = (
        inputs.needs(inputs.make(settings, wired), pipeline["sections"])
        for wired in (
            trained if encodings is None else wiring.Wiring.of(own, encodings),
            evaluated,
        )
    )
    more = {**{sections: False for sections, _ in others.more}, **dict(needed.more)}
    source = build.find("source", pipeline["source"])(split=split, **options)
    return read_corpus(
        f"{options.get('name') or pipeline['source']}/{split}",
        source,
        sections=needed.sections,
        views=pipeline["views"],
        need_images=needed.images,
        need_texts=needed.texts,
        more=tuple(more.items()),
        allow_empty=allow_empty,
    )


def splits(
    settings: Mapping[str, Any], encodings: Sequence[str], folder: Path
) -> Callable[[str], Corpus]:
    """A function that reads the splits of the evaluated source by name, each once.

    All splits make the same demands on their records, those of `encodings`. Otherwise a split that
    an evaluator learns from or chooses by would have other records than the same split has when it
    is evaluated. Rejected records of every split read so far are listed in `folder`.

    Args:
      settings, encodings: as of `load_corpus`.

    Raises:
      InputError: as of `load_corpus` and `check_rejects`, when a split is read.
    """
    read: dict[str, Corpus] = {}

    def of(split: str) -> Corpus:
        if split not in read:
            found = load_corpus(settings, split, encodings=encodings, allow_empty=bool(read))
            read[split] = found
            check_rejects(read, folder, settings["data"]["max_reject_fraction"])
        return read[split]

    return of


def make_tokenizers(settings: Mapping[str, Any], corpus: Corpus) -> dict[str, Tokenizer]:
    """Tower -> tokenizer, of the text towers that are read; equal settings share one.

    Args:
      settings: a whole config.
      corpus: the training split, whose texts a tokenizer is trained on unless a file is named.

    Raises:
      InputError: a file that is no tokenizer, or texts too few to train one.
    """
    own = wiring.own_inputs(settings["towers"])
    made: dict[tuple[Any, ...], Tokenizer] = {}
    found = {}
    for tower in wiring.wire(settings)[0].wanted():
        given = settings["towers"][tower]
        if wiring.kind_of(tower, given) != "text":
            continue
        options = {**_DEFAULTS, **given}
        sections = tuple(inputs.make_one(settings, own[tower], tower).data["sections"])
        key = (options["tokenizer"], options["vocab_size"], options["tokenizer_model"], sections)
        if key not in made:
            if options["tokenizer"]:
                made[key] = Tokenizer.from_file(options["tokenizer"])
            else:
                made[key] = Tokenizer.train(
                    corpus.texts_of(sections)[0],
                    vocab_size=options["vocab_size"],
                    model_type=options["tokenizer_model"],
                )
        found[tower] = made[key]
    return found


_DEFAULTS = {"tokenizer": "", "tokenizer_model": "bpe"}


def resolved(
    settings: ml_collections.ConfigDict, tokenizers: Mapping[str, Tokenizer]
) -> ml_collections.ConfigDict:
    """A copy in which every text tower has the true size of its vocabulary."""
    copy = settings.copy_and_resolve_references()
    for tower, tokenizer in tokenizers.items():
        copy.towers[tower].vocab_size = tokenizer.vocab_size
    return copy


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
        return load_corpus(trained.config, "train").fingerprint
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
        name: build.find("evaluator", wiring.chosen_module(name, given))(
            predict, data, **{key: value for key, value in given.items() if key != "name"}
        )
        for name, given in chosen.items()
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
      InputError: the directory is not empty and holds no run, or a run whose config has keys of
        the first edition.
    """
    path = workdir / "config.json"
    if path.exists():
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{path} is not JSON: {error}") from None
        if sentence := config.first_edition(stored):
            raise InputError(
                f"--workdir={workdir} holds a run of an earlier version of mmrl, which this one "
                f"cannot read: {sentence}; train again in a new folder"
            )
        return config.completed(stored)
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
    tokenizers: Mapping[str, Tokenizer]
    predict: Predict
    state: Mapping[str, Any]
    step: int

    def examples(self, corpus: Corpus, splits: Callable[[str], Corpus] | None = None) -> Examples:
        """Prepares `corpus` as the run's own evaluation does; `splits` as in `Examples`."""
        return Examples(self.config, corpus, self.tokenizers, splits=splits)

    def provenance(self, examples: Examples) -> dict[str, Any]:
        """What the figures of this run rest on, for the summary page and manifests."""
        return {
            "step": self.step,
            "weights_sha256": self.weights_sha256(),
            "data": {
                "name": examples.name,
                "sha256": examples.sha256,
                "warnings": list(examples.corpus.warnings),
            },
            "tokenizers_sha256": {name: one.sha256 for name, one in self.tokenizers.items()},
            "trained_with": dict(self.meta["versions"]),
            "evaluated_with": checkpoint.versions(),
        }

    def weights_sha256(self) -> str:
        """Digest of the weights used for encoding."""
        used = {"params": self.state.get("ema", self.state["params"])}
        return checkpoint.digest({**used, "variables": self.state["variables"]})


def restore(
    workdir: Path, *, step: checkpoint.Step | None = None, mesh: Mesh | None = None
) -> Trained:
    """Loads a trained run from its checkpoint alone.

    Args:
      step: the latest by default; "best": by config.best of the run.
      mesh: all devices, data-parallel, by default.

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
        tokenizers = read_tokenizers(meta)
        layout = learner.layout(resolved(settings, tokenizers), mesh)
        state = saved.restore_partial(_encoding_state(layout, settings, mesh), step)
        reached = int(jax.device_get(state["step"]))
    finally:
        saved.close()
    predict = Predict(layout, mesh)
    return Trained(workdir, settings, meta, tokenizers, predict, state, reached)


def read_tokenizers(meta: Mapping[str, Any]) -> dict[str, Tokenizer]:
    """Tower -> tokenizer, from what a checkpoint holds beside the state."""
    return {
        tower: Tokenizer.from_bytes(checkpoint.from_text(text))
        for tower, text in meta["tokenizers"].items()
    }


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
