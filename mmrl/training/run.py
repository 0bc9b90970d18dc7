"""Builds the parts of a run that training, evaluation, export and `mmrl.load` share."""

import contextlib
import dataclasses
import itertools
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import Mesh

from mmrl import build, config, encoder_folder, files, locks, sequences, wiring
from mmrl.data.batches.pipeline import Examples
from mmrl.data.corpus import Corpus, read_corpus
from mmrl.data.inputs import base as inputs
from mmrl.data.overlap import leaks
from mmrl.data.overlap.fingerprints import Fingerprint
from mmrl.data.reading import rejects, within
from mmrl.data.text.tokenizer import Tokenizer
from mmrl.devices import sharding
from mmrl.evaluators.base import Evaluator, Results
from mmrl.training import checkpoint, initial, learner, stored
from mmrl.training.console import Console
from mmrl.training.predict import Predict
from mmrl.training.trackers import sending
from mmrl.types import DamageError, InputError, Reject

FINGERPRINT = "training_fingerprint.npz"  # in the run directory

UNKNOWN_TRAINING = "the training data of this encoder are unknown to mmrl; leaks cannot be excluded"


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
    trained = wiring.wire(settings)[0]
    evaluated = wiring.Wiring.of(trained.graph, wiring.evaluated(settings))
    if encodings is not None:
        trained = wiring.Wiring.of(trained.graph, sequences.of(encodings, "encodings"))
    made = [inputs.make(settings, wired) for wired in (trained, evaluated)]
    needed, others = (inputs.needs(one, pipeline["sections"]) for one in made)
    more = {**{sections: False for sections, _ in others.more}, **dict(needed.more)}
    source = within.open_source(pipeline["source"], split, options)
    name = f"{options.get('name') or pipeline['source']}/{split}"
    for one in itertools.chain.from_iterable(each.values() for each in made):
        one.check(name, source)
    return read_corpus(
        name,
        source,
        sections=needed.sections,
        views=pipeline["views"],
        need_images=needed.images,
        need_texts=needed.texts,
        more=tuple(more.items()),
        allow_empty=allow_empty,
    )


def load_corpora(
    settings: Mapping[str, Any], splits: Sequence[str], workdir: Path
) -> dict[str, Corpus]:
    """Reads several splits, and checks how many of their records are rejected.

    Rejected records are listed in WORKDIR/rejects.jsonl, also before an error.

    Raises:
      InputError: as of `load_corpus` and `check_rejects`.
    """
    read: dict[str, Corpus] = {}
    for split in splits:
        with _listing_rejects(read, workdir):
            read[split] = load_corpus(settings, split)
    check_rejects(read, workdir, settings["data"]["max_reject_fraction"])
    return read


@contextlib.contextmanager
def _listing_rejects(read: Mapping[str, Corpus], folder: Path) -> Iterator[None]:
    """Lists why no record of a split can be used, before the error is raised."""
    try:
        yield
    except rejects.UnusableError as error:
        _list_rejects([*_rejects_of(read), *error.rejects], folder)
        raise rejects.UnusableError(f"{error}; see rejects.jsonl", error.rejects) from None


def _rejects_of(corpora: Mapping[str, Corpus]) -> list[Reject]:
    return [reject for corpus in corpora.values() for reject in corpus.rejects]


def _list_rejects(refused: Sequence[Reject], folder: Path) -> None:
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        rejects.write_rejects(folder / "rejects.jsonl", refused)


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
            with _listing_rejects(read, folder):
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
        # A tokenizer that is read needs no texts, and a large corpus has millions.
        made_here = not options["tokenizer"]
        one = inputs.make_one(settings, own[tower], tower)
        texts = one.vocabulary(corpus) if made_here else ()
        key = (options["tokenizer"], options["vocab_size"], options["tokenizer_model"], texts)
        if key not in made:
            if made_here:
                made[key] = Tokenizer.train(
                    texts,
                    vocab_size=options["vocab_size"],
                    model_type=options["tokenizer_model"],
                )
            else:
                made[key] = Tokenizer.from_file(options["tokenizer"])
        found[tower] = made[key]
    return found


_DEFAULTS = {"tokenizer": "", "tokenizer_model": "bpe"}


def resolved(
    settings: ml_collections.ConfigDict, tokenizers: Mapping[str, Tokenizer]
) -> ml_collections.ConfigDict:
    """A copy in which text towers have the size and the marks of their tokenizers.

    The table of an imported encoder may have more rows than its tokenizer has ids.
    """
    copy = settings.copy_and_resolve_references()
    for tower, tokenizer in tokenizers.items():
        own = copy.towers[tower]
        with own.unlocked():
            own.vocab_size = max(tokenizer.vocab_size, own.vocab_size if tokenizer.imported else 0)
            own.begin_mark, own.end_mark = tokenizer.begin is not None, tokenizer.end is not None
            own.mask_token, own.special_tokens = tokenizer.mask, tokenizer.special
    return copy


def check_rejects(corpora: Mapping[str, Corpus], workdir: Path, max_fraction: float) -> None:
    """Lists every rejected record in WORKDIR/rejects.jsonl and checks their number.

    Raises:
      InputError: a split rejected more than `max_fraction` of its records.
    """
    _list_rejects(_rejects_of(corpora), workdir)
    for corpus in corpora.values():
        rejects.check_fraction(
            len(corpus.rejects),
            corpus.total,
            max_fraction,
            what=corpus.name,
            rejects=corpus.rejects,
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


def _lacks(workdir: Path) -> str:
    """Why a folder is no trained run, with the name of a folder that was perhaps meant."""
    if workdir.is_dir():
        return " (no checkpoints in it)"
    return f": {build.no_folder(workdir)}"


def training_fingerprint(trained: "Trained") -> Fingerprint:
    """The fingerprint of the training split, from the run directory or else from the data.

    Raises:
      InputError: both are missing.
    """
    stored = trained.folder / FINGERPRINT
    if stored.exists():
        return Fingerprint.load(stored)
    try:
        return load_corpus(trained.config, "train").fingerprint
    except InputError as error:
        raise InputError(
            f"--workdir={trained.folder} has no {FINGERPRINT}, and its training data cannot be"
            f" read, so leaks cannot be excluded: {error}"
        ) from None


def make_evaluators(
    chosen: Mapping[str, Mapping[str, Any]], predict: Predict, data: Examples
) -> dict[str, Evaluator]:
    """Builds the evaluators of config.evaluators over `data`, by name.

    Raises:
      InputError: one needs an encoding that cannot be made of items alone; or as it says itself.
    """
    made = {}
    for name, given in chosen.items():
        target: Any = build.find("evaluator", wiring.chosen_module(name, given))
        options = {key: value for key, value in given.items() if key != "name"}
        where = f"config.evaluators.{name}"
        reads = wiring.redirected(f"{where}.reads", target.reads, given.get("reads"))
        try:
            predict.check(target.needed(reads, options))
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
        made[name] = target(predict, data, **options)
    return made


def left_out(chosen: Mapping[str, Mapping[str, Any]], provided: Sequence[str]) -> dict[str, str]:
    """Evaluators that cannot run on some encoders, each with the reason.

    Args:
      chosen: config.evaluators.
      provided: names of the features of the encoders, such as image.pooled.
    """
    found = {}
    for name, given in chosen.items():
        target: Any = build.find("evaluator", wiring.chosen_module(name, given))
        where = f"config.evaluators.{name}.reads"
        reads = wiring.redirected(where, target.reads, given.get("reads"))
        lacking = [
            one
            for one in dict.fromkeys(target.needed(reads, given))
            if str(wiring.parse(one)._replace(input="")) not in provided
        ]
        if lacking:
            found[name] = f"needs {', '.join(lacking)}; there are {', '.join(provided)}"
    return found


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
      DamageError: the stored config is no JSON object.
    """
    path = workdir / "config.json"
    if path.exists():
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DamageError(f"{path} is not JSON: {error}") from None
        if not isinstance(stored, dict):
            raise DamageError(f"{path} holds a {type(stored).__name__}; expected an object")
        stored = config.completed(stored)
        if sentence := config.first_edition(stored):
            raise InputError(
                f"--workdir={workdir} holds a run of an earlier version of mmrl, which this one "
                f"cannot read: {sentence}; train again in a new folder"
            )
        return stored
    others = workdir.iterdir() if workdir.is_dir() else ()
    # A first start that failed its data checks, or was killed, leaves no more than these.
    begun = {"rejects.jsonl", "init.json", locks.NAME, sending.FOLDER}
    if [p for p in others if p.name not in begun and not files.is_unfinished(p)]:
        raise InputError(
            f"--workdir={workdir} exists, is not empty and holds no config.json; expected a new "
            "or empty folder, or that of an earlier run"
        )
    if workdir.exists() and not workdir.is_dir():
        raise InputError(f"--workdir={workdir} is a file; expected a folder")
    return None


@dataclasses.dataclass(frozen=True)
class Trained:
    """Trained encoders, ready to encode, for evaluation, export and `mmrl.load`.

    Attributes:
      folder: the run directory, or the folder of encoders that were not trained here.
      config: of the run; of other encoders the default with their towers and no objectives.
      meta: as saved in the checkpoint; of other encoders {"source": what their folder states}.
      tokenizers, predict: encode as in training.
      state: step, parameters, averaged parameters if the run keeps them, and variables.
      step: of the checkpoint; None for encoders that were not trained here.
    """

    folder: Path
    config: ml_collections.ConfigDict
    meta: Mapping[str, Any]
    tokenizers: Mapping[str, Tokenizer]
    predict: Predict
    state: Mapping[str, Any]
    step: int | None

    def __str__(self) -> str:
        what = "the encoder" if self.step is None else f"step {self.step}"
        return f"{what} of {self.folder}"

    def examples(
        self,
        corpus: Corpus,
        splits: Callable[[str], Corpus] | None = None,
        *,
        config: Mapping[str, Any] | None = None,
    ) -> Examples:
        """Prepares `corpus` as the run's own evaluation does.

        Args:
          splits: as in `Examples`.
          config: the one by which the corpus was read, see `config.with_data`; by default the own.
        """
        return Examples(config or self.config, corpus, self.tokenizers, splits=splits)

    def encoders(self) -> dict[str, dict[str, Any]]:
        """Tower -> name of its encoder, and how it reads pixels and texts."""
        found: dict[str, dict[str, Any]] = {}
        for tower, given in self.config.towers.items():
            offered = config.MODULES["towers"].options(given.name, given)
            stated = {k: given.get(k, offered[k].default) for k in _READING if k in offered}
            found[tower] = config.plain({"name": given.name, **stated})
        return found

    def provenance(self, examples: Examples) -> dict[str, Any]:
        """What the figures of these encoders rest on, for the summary page and manifests."""
        source = "source" in self.meta
        return {
            "step": self.step,
            "weights_sha256": self.weights_sha256(),
            "encoders": self.encoders(),
            "data": {
                "name": examples.name,
                "sha256": examples.sha256,
                "warnings": list(examples.corpus.warnings),
            },
            "tokenizers_sha256": {name: one.sha256 for name, one in self.tokenizers.items()},
            **(
                {"source": dict(self.meta["source"])}
                if source
                else {"trained_with": dict(self.meta["versions"])}
            ),
            "evaluated_with": checkpoint.versions(),
        }

    def weights_sha256(self) -> str:
        """Digest of the weights used for encoding."""
        used = self.predict.layout.weights_of(self.state)
        return checkpoint.digest({name: used[name] for name in ("params", "variables")})


_READING = ("size", "channels", "pixel_mean", "pixel_std", "length")
"""Options of towers that say how pixels and texts enter an encoder."""


def restore(
    workdir: Path,
    *,
    step: checkpoint.Step | None = None,
    mesh: Mesh | None = None,
    fall_back: bool = False,
    say: Callable[[str], None] = warnings.warn,
) -> Trained:
    """Loads a trained run from its checkpoint alone.

    Args:
      step: the latest by default; "best": by config.best of the run.
      mesh: all devices, data-parallel, by default.
      fall_back, say: as of `checkpoint.Checkpoints`; without a step only.

    Raises:
      InputError: there is no run or no such step, a step was given to fall back from, or the
        checkpoint lacks parameters.
      DamageError: a file of the checkpoint is not as it was written.
    """
    if fall_back and step is not None:
        raise InputError(f"--fall-back chooses the step, but --step={step} is given")
    if read_config(workdir) is None or not (workdir / "checkpoints").is_dir():
        raise InputError(f"--workdir={workdir} holds no trained run{_lacks(workdir)}")
    mesh = mesh or whole_mesh()
    saved = checkpoint.Checkpoints(workdir, read_only=True, fall_back=fall_back, say=say)
    try:
        meta = saved.meta(step)
        settings = config.from_plain(meta["config"])
        settings.trackers = ml_collections.ConfigDict()  # their modules need not be here
        _check_version(workdir, settings, meta)
        tokenizers = read_tokenizers(meta)
        layout = learner.layout(resolved(settings, tokenizers), mesh)
        state = saved.restore_partial(_encoding_state(layout, settings, mesh), step)
        reached = int(jax.device_get(state["step"]))
    finally:
        saved.close()
    predict = Predict(layout, mesh)
    return Trained(workdir, settings, meta, tokenizers, predict, state, reached)


def tokenizer_file(tower: str, tokenizers: Mapping[str, Tokenizer]) -> str:
    """The name of the file that holds the tokenizer of a tower."""
    stem = "tokenizer" if len(tokenizers) == 1 else f"tokenizer_{tower}"
    return f"{stem}{tokenizers[tower].suffix}"


def read_encoder(folder: Path, *, mesh: Mesh | None = None) -> Trained:
    """Loads encoders from a folder that carries no run, see `mmrl.encoder_folder`.

    Args:
      mesh: as of `restore`.

    Raises:
      InputError: the folder holds no encoders, or towers, tokenizers or weights that do not fit
        each other; names what is missing, unknown or of another shape.
    """
    own = encoder_folder.read(folder)
    settings = config.base()
    settings.dtype, settings.data.resize = own.dtype, own.data.get("resize", settings.data.resize)
    settings.data.colour = encoder_folder.colour_of(own.data, own.towers)
    settings.objectives = settings.evaluators = ml_collections.ConfigDict()
    settings.towers = ml_collections.ConfigDict(config.frozen(own.towers))
    settings.inputs = ml_collections.ConfigDict(config.frozen(own.inputs))
    mesh = mesh or whole_mesh()
    try:
        config.validate(settings, train=False)
        layout = learner.layout(settings, mesh)
    except InputError as error:
        raise InputError(f"{folder / encoder_folder.ENCODER}: {error}") from None
    tokenizers = _own_tokenizers(own)
    step = jax.device_put(jnp.int32(0), sharding.replicated(mesh))
    state = {"step": step, **_placed(own, layout)}
    meta = {"source": own.source}
    return Trained(folder, settings, meta, tokenizers, Predict(layout, mesh), state, None)


def _own_tokenizers(own: encoder_folder.EncoderFolder) -> dict[str, Tokenizer]:
    """Tower -> tokenizer, of the text towers of a folder."""
    found = {}
    for tower, given in own.towers.items():
        if wiring.kind_of(tower, given) != "text":
            continue
        where = f"{own.path / encoder_folder.ENCODER}: towers.{tower}"
        if not given.get("tokenizer"):
            raise InputError(f"{where} has no tokenizer; expected the name of a file beside it")
        found[tower] = Tokenizer.from_file(given["tokenizer"])
        if (size := found[tower].vocab_size) > given["vocab_size"]:
            raise InputError(
                f"{where}.vocab_size={given['vocab_size']}, but its tokenizer has {size} ids"
            )
    return found


def _placed(own: encoder_folder.EncoderFolder, layout: learner.Layout) -> dict[str, Any]:
    """Parameters and variables of the towers of a folder, on the devices of the layout.

    Arrays of objectives, such as a temperature, are left out.
    """
    where, held = own.file, stored.arrays(own)
    arrays = {k: v for k, v in held.items() if not k.startswith("objectives/")}
    target = {**initial.by_path(layout.params), **initial.by_path(layout.variables)}
    wrong = [f"{path} is missing" for path in sorted(target.keys() - arrays.keys())]
    wrong += [f"{path} belongs to no tower" for path in sorted(arrays.keys() - target.keys())]
    for path in sorted(target.keys() & arrays.keys()):
        array, leaf = arrays[path], target[path]
        if array.shape != leaf.shape:
            wrong.append(f"{path} is {list(array.shape)}; expected {list(leaf.shape)}")
        elif array.dtype.kind not in "fiu":
            wrong.append(f"{path} is {array.dtype}; expected numbers")
        elif array.dtype.kind == "f" and not np.isfinite(array).all():
            wrong.append(f"{path} is not finite")
    if wrong:
        raise InputError(f"{where}: {len(wrong)} arrays do not fit: {'; '.join(wrong)}")
    read = initial.Copied(str(own.path), "", arrays, ())
    return initial.apply({"params": layout.params, "variables": layout.variables}, [read])


def whole_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Some devices, by default all, data-parallel."""
    everything = {"data": -1, "fsdp": 1, "tensor": 1}
    return sharding.make_mesh({**everything, "dcn": everything}, devices)


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
    if layout.averages:
        target["average"] = layout.params
    return target
