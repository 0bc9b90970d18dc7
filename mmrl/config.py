"""The whole configuration: its keys with their defaults, its checks, what a resumed run may change.

`KEYS` is the one list of keys; config files start from `base()` and assign. A key that is not in it
is refused with the nearest match, so a misspelt option cannot be ignored. `MODULES` says where a
config chooses modules by name; what these take is stated by their constructors.
`python -m mmrl.options` prints all of it.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import ml_collections

from mmrl import build, schedules, wiring
from mmrl.data import settings
from mmrl.data.inputs import base as inputs
from mmrl.types import InputError
from mmrl.values import Option, check, defaults, setting, type_of

# Keys that may differ when a run continues; config_history.jsonl records the changes. All other
# keys define the experiment, and a run must not change them halfway.
PLACES = ("path", "root", "mask_root", "images", "nih_mapping", "data_dir")
"""Options of sources that say where a corpus lies, relative to the current folder."""

RESUMABLE_KEYS = (
    "total_steps",
    "epochs",
    "log_every",
    "eval_every",
    "validation_loss",
    "best",
    "checkpoint",
    "evaluators",
    "data.label_policy",
    "data.waive_leaks",
    "mesh",
    "gradient_cache",
    "compile_cache",
    "tensorboard",
    "trackers",
    "profile",
    "data.prefetch",
    "data.num_threads",
    "data.num_workers",
    "data.cache_images",
    "data.cache_mib",
    "data.stall_seconds",
    *(f"data.{name}" for name in PLACES),  # what lies there must be the same
)


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a config chooses a module by name, with the options of that module beside the name.

    Attributes:
      kind: of the module, see `mmrl.build`.
      chooser: the key that names the module.
      beside: keys at the same place that are no options of the module, as in `KEYS`.
      supplied: options of the module that follow from the rest of the config; not to be set.
      many: the path holds a mapping from free names to such places, not one.
      named: a free name is the module's where no other is chosen.
      listed: (name of a module, what is given for it) -> its options, where its constructor alone
        does not tell them.
      kept: (what is given for a module, name of another) -> keys that stay when the other one is
        chosen instead.
    """

    kind: str
    chooser: str
    beside: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    supplied: tuple[str, ...] = ()
    many: bool = False
    named: bool = True
    listed: Callable[[str, Mapping[str, Any]], dict[str, Option]] | None = None
    kept: Callable[[Mapping[str, Any], str], Iterable[str]] | None = None

    def name(self, own: str, given: Mapping[str, Any]) -> str | None:
        """The module chosen at a place whose own key is `own`; None when none is."""
        default = own if self.many and self.named else None
        return given.get(self.chooser) or default

    def options(self, name: str, given: Mapping[str, Any] | None = None) -> dict[str, Option]:
        """The options of module `name` that a config may set, where it has `given`."""
        if self.listed is not None:
            return self.listed(name, given or {})
        found = build.options(build.find(self.kind, name))
        return {option: one for option, one in found.items() if option not in self.supplied}

    def own(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """What is given for the module itself, without its name and the keys beside it."""
        return {k: given[k] for k in given if k != self.chooser and k not in self.beside}


def _tower_options(name: str, given: Mapping[str, Any]) -> dict[str, Option]:
    """Options of an encoder, and of the kind of tower that it belongs to."""
    own = wiring.own_options(wiring.kind_of("NAME", {"kind": given.get("kind"), "name": name}))
    encoder = build.options(build.find("encoder", name))
    told = ("image_size", *wiring.GIVEN_TO_ENCODERS, *own)
    return {key: one for key, one in encoder.items() if key not in told} | own


def _kept_options(given: Mapping[str, Any], encoder: str) -> Iterable[str]:
    """Options of the tower itself, which stay if the other encoder is of the same kind."""
    kind = wiring.kind_of("", given)
    same = "." in encoder or kind == wiring.kind_of("", {**given, "name": encoder})
    return wiring.own_options(kind) if same else ()


def _input_options(name: str, given: Mapping[str, Any]) -> dict[str, Option]:
    """The keys of config.data that an input may set for itself."""
    target: Any = build.find("input", name)
    return {key: settings.INPUT_KEYS[key] for key in target.options}


BEST_MODES = ("max", "min")
"""Choices of config.best.mode."""

_LESS_IS_BETTER = ("loss", "rank", "error")  # ends of names of metrics

_NAME = setting("", "The module; by default the key itself.")
_READS = setting(
    {}, "Arguments that read something else than by default: argument -> name.", Mapping[str, str]
)
_TOWER_KEYS = {
    "kind": setting("", "Kind of the tower; needed for encoders of other packages."),
    "input": setting("", "The input that the tower reads; by default that of its kind."),
    "frozen": setting(
        False,
        "True: nothing of the tower changes, dropout is off; encoder: the same for all but its "
        "heads.",
        bool | str,
    ),
    "init": setting(
        "",
        "A run, or the folder of an encoder, to take initial values from: those of the encoder, "
        "and of the heads that are alike there.",
    ),
    "lora": setting(
        {},
        "Low-rank updates of kernels, while all else of the encoder stays as it is: a mapping of "
        '`rank` (8), `alpha` (16.0; the update is alpha / rank * a b) and `match` (".*/attention/'
        '(qkv|query|kv|out)/kernel"; regular expression of whole paths within the encoder). Empty: '
        "none.",
        Mapping[str, Any],
    ),
}
LORA = {"rank": 8, "alpha": 16.0, "match": r".*/attention/(qkv|query|kv|out)/kernel"}
"""The keys of config.towers.NAME.lora, with their defaults."""

MODULES: dict[str, Place] = {
    "data": Place("source", "source", beside=settings.KEYS, supplied=("split",)),
    "towers": Place(
        "encoder",
        "name",
        beside=_TOWER_KEYS,
        many=True,
        named=False,
        listed=_tower_options,
        kept=_kept_options,
    ),
    "inputs": Place("input", "name", many=True, listed=_input_options),
    "objectives": Place(
        "objective",
        "name",
        beside={
            "weight": setting(
                1.0,
                "Factor of this loss in the sum that training minimises: a number or a schedule.",
                float | Mapping[str, Any],
            ),
            "reads": _READS,
        },
        supplied=wiring.GIVEN_TO_OBJECTIVES,
        many=True,
    ),
    "derived": Place(
        "derived",
        "name",
        beside={
            "of": setting("", "The input that it carries on; by default that of its module."),
            "reads": _READS,
        },
        supplied=wiring.GIVEN_TO_DERIVED,
        many=True,
    ),
    "fusions": Place(
        "fusion",
        "name",
        beside={"reads": _READS},
        supplied=wiring.GIVEN_TO_FUSIONS,
        many=True,
    ),
    "evaluators": Place("evaluator", "name", many=True),
    "trackers": Place("tracker", "name", many=True),
}
"""Dotted path -> what is chosen there."""

# Defaults of the keys that hold a module or a mapping of modules.
_TOWERS: dict[str, Any] = {
    "image": {
        "name": "vit",
        "size": 64,
        "patch_size": 8,
        "width": 128,
        "depth": 4,
        "num_heads": 4,
        "heads": {"embedding": 128, "regions": 128},
    },
    "text": {
        "name": "transformer",
        "length": 96,
        "vocab_size": 2000,
        "width": 128,
        "depth": 2,
        "num_heads": 4,
        "heads": {"embedding": 128, "words": 128},
    },
}
_OBJECTIVES = {
    "global_contrastive": {"weight": 1.0, "temperature": 0.07},
    "local_contrastive": {"weight": 0.1, "temperatures": (4.0, 5.0, 10.0)},
    "perturbed_discrimination": {"weight": 0.1, "temperature": 0.07},
}
_RULES = (
    {
        "match": r".*/(bias|(\w+_)?scale|cls|registers|queries|latents|positions?|log|logit_bias|"
        r"(\w+_)?(gate|missing|types?|prototypes|mask(_token)?))",
        "weight_decay": 0.0,
    },
    {"match": r".*"},
)

_FREE = {path for path, place in MODULES.items() if place.many}
"""Keys that hold a mapping of free names."""

KEYS: dict[str, Any] = {
    "seed": setting(0, "Seed of every random number of the run."),
    "total_steps": setting(1000, "Number of training steps."),
    "epochs": setting(
        0,
        "Passes over the training examples. Above 0 they decide the number of steps instead of "
        "`total_steps`: epochs x examples / batch_size, rounded up.",
    ),
    "batch_size": setting(64, "Image-report pairs per step, over all devices and processes."),
    "accumulation": setting(
        1,
        "Micro-batches per step whose gradients are averaged. A pair meets only the negatives of "
        "its own micro-batch.",
    ),
    "gradient_cache": setting(
        1,
        "Micro-batches per step that are encoded one after the other to save memory. Every pair "
        "still meets all negatives of the batch, at the cost of a second forward pass. 1: off.",
    ),
    "average": {
        "decay": setting(
            0.999,
            "Decay of the moving average of the parameters: a number or a schedule. The average is "
            "kept if `evaluate` is true, or if a loss reads average/TOWER.FEATURE, as a teacher.",
            float | Mapping[str, Any],
        ),
        "warm_up": setting(
            False,
            "Whether the decay is at most (1 + n) / (10 + n) after n updates, so that the first "
            "parameters are soon forgotten.",
        ),
        "evaluate": setting(
            False, "Whether evaluation and export use the average instead of the parameters."
        ),
    },
    "log_every": setting(20, "Steps between two lines of the log."),
    "eval_every": setting(250, "Steps between two evaluations. 0: only one, after the last step."),
    "validation_loss": setting(
        False,
        "Whether evaluations also compute the losses of the run on the validation split, without "
        "anything random: val/loss, and val/OBJECTIVE/METRIC.",
    ),
    "best": {
        "metric": setting(
            "",
            "The value by which the best checkpoint is chosen, which is kept beside the latest "
            "ones, such as retrieval/image_to_text/R@1 or, with `validation_loss`, val/loss. "
            "Empty: none is.",
        ),
        "mode": setting("max", "Whether a greater value is better (max) or a lesser one (min)."),
        "min_delta": setting(
            0.0, "An evaluation is the new best one if it is better by more than this."
        ),
        "patience": setting(
            0, "Evaluations in a row without a new best one after which training stops. 0: none."
        ),
    },
    "compile_cache": setting(
        "~/.cache/mmrl", "Folder of compiled programs, shared by all runs; empty: none."
    ),
    "tensorboard": setting(True, "Whether to write TensorBoard events to WORKDIR/tensorboard."),
    "profile": {
        "steps": setting(0, "Number of steps to trace into WORKDIR/profile. 0: none."),
        "skip": setting(10, "Steps of this process before the trace begins."),
    },
    "data": settings.KEYS,
    "dtype": setting("float32", "Type of the computation: float32 or bfloat16."),
    "param_dtype": setting("float32", "Type of the parameters."),
    "towers": setting(_TOWERS, "The encoders with their heads, by free names."),
    "inputs": setting(
        {}, "Inputs with options of their own, by free names; all others take those of `data`."
    ),
    "init": setting(
        (),
        'Initial values from runs or exported folders: ({"from": FOLDER, "match": regular '
        'expression of whole paths, "to": replacement, "step": of a checkpoint, or best}, ...). '
        "The first that matches counts.",
        tuple[Mapping[str, str], ...],
    ),
    "derived": setting(
        {}, "Inputs that the step makes from others and from encodings, by free names."
    ),
    "fusions": setting({}, "Modules that join encodings of several towers, by free names."),
    "objectives": setting(_OBJECTIVES, "The losses, by free names."),
    "optimizer": {
        "name": setting("adamw", "The optimizer: adamw or sgd."),
        "learning_rate": setting(1e-3, "Learning rate after the warm-up."),
        "warmup_steps": setting(50, "Steps over which the learning rate rises linearly from 0."),
        "end_fraction": setting(
            0.0,
            "Learning rate at the last step, as a fraction of `learning_rate`; the decay is a "
            "cosine.",
        ),
        "weight_decay": setting(
            0.05,
            "Weight decay, a number or a schedule: decoupled in adamw; in sgd a part of the "
            "gradient, as in torch.optim.SGD.",
            float | Mapping[str, Any],
        ),
        "b1": setting(0.9, "Decay of the first moment of adamw."),
        "b2": setting(0.98, "Decay of the second moment of adamw."),
        "momentum": setting(0.9, "Momentum of sgd."),
        "clip_norm": setting(
            1.0, "Greatest norm of the whole gradient; a larger one is scaled down. 0: off."
        ),
        "layer_decay": setting(
            1.0,
            "Factor on the learning rate from each layer of an encoder to the one before it: with "
            "n blocks, layer_decay^(n + 1) for the embedding, layer_decay^(n - i) for block i from "
            "0, and 1 for heads and poolers. 1: off.",
        ),
        "rules": setting(
            _RULES,
            "Rules for parameters by their path, such as towers/image/encoder/norm/scale. The "
            "first rule whose regular expression `match` covers the whole path applies: "
            "`learning_rate` and `weight_decay` are factors on the values above, `freeze: True` "
            "trains nothing. Every parameter needs a rule.",
        ),
    },
    "mesh": {
        "data": setting(-1, "Devices that share the batch. -1: all that the other axes leave."),
        "fsdp": setting(
            1, "Devices that share the batch, the parameters and the optimizer state. -1: the rest."
        ),
        "tensor": setting(
            1, "Devices that share the heads and hidden features of each layer. -1: the rest."
        ),
        "dcn": {
            "data": setting(
                1,
                "How often the axis `data` is repeated over the slower network between TPU slices "
                "or GPU nodes; the sizes of the mesh are then those within one of them. -1: the "
                "rest.",
            ),
            "fsdp": setting(1, "The same for the axis `fsdp`."),
            "tensor": setting(1, "The same for the axis `tensor`."),
        },
    },
    "checkpoint": {
        "every": setting(250, "Steps between two checkpoints."),
        "keep": setting(2, "Number of latest checkpoints to keep."),
    },
    "evaluators": setting(
        {
            "retrieval": {"max_pairs": 256},
            "structure": {},
            "pointing": {"count": 200, "optional": True},
        },
        "The evaluations, by free names.",
    ),
    "trackers": setting(
        {},
        "Services that the config, the scalars and the results of the run are sent to, by free "
        "names.",
    ),
}
"""Every key with its default and its meaning, nested as the config is."""


def base() -> ml_collections.ConfigDict:
    """Every key with its default: the recipe of the paper at a size for a laptop."""
    made = ml_collections.ConfigDict(defaults(KEYS))
    # A ConfigDict keeps the type of a value; a schedule may replace a number.
    for place, key in ((made.average, "decay"), (made.optimizer, "weight_decay")):
        place[key] = ml_collections.FieldReference(place[key], field_type=object)
    return made


def variants(argument: str, known: Iterable[str]) -> set[str]:
    """The variants in the part after ":" of --config=FILE:a,b.

    Raises:
      InputError: a variant that the preset does not have.
    """
    given = {part for part in argument.split(",") if part}
    for name in sorted(given - set(known)):
        raise InputError(build.unknown("config variant", name, known))
    return given


def plain(value: Any) -> Any:
    """ConfigDict to JSON-able dict: tuples become lists."""
    if isinstance(value, ml_collections.ConfigDict):
        value = value.to_dict()
    return json.loads(json.dumps(value, default=str))


def frozen(value: Any) -> Any:
    """The inverse of `plain` on values: lists become tuples, dicts stay dicts."""
    if isinstance(value, list | tuple):
        return tuple(frozen(item) for item in value)
    if isinstance(value, Mapping):
        return {key: frozen(item) for key, item in value.items()}
    return value


def from_plain(stored: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """The config of a stored run; the inverse of `plain`, after `completed`."""
    return ml_collections.ConfigDict(frozen(completed(stored)))


def completed(stored: Mapping[str, Any]) -> dict[str, Any]:
    """A stored config with the keys that did not exist when it was written, at their defaults.

    A new key has a default that changes nothing, so a run can be read without it. Of runs that
    kept no average, the key that once said so is left out.
    """
    stored = {key: one for key, one in stored.items() if (key, one) != ("ema", 0)}
    return _with_defaults(stored, plain(defaults(KEYS)))


def _with_defaults(given: Mapping[str, Any], default: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(default) | dict(given)
    for key, value in default.items():
        # Free names, such as those of towers, are not keys: a config has those that it has.
        if isinstance(value, dict) and isinstance(found[key], dict) and key not in _FREE:
            found[key] = _with_defaults(found[key], value)
    return found


def split_data(data: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """config.data -> (pipeline options, source options).

    Mappings among the source options become plain ones, since a ConfigDict is no Mapping.
    """
    pipeline = {key: data[key] for key in data if key in settings.KEYS}
    source = {key: data[key] for key in data if key not in settings.KEYS}
    return pipeline, {
        key: value.to_dict() if isinstance(value, ml_collections.ConfigDict) else value
        for key, value in source.items()
    }


def validate(config: ml_collections.ConfigDict, *, train: bool = True) -> None:
    """Refuses what no run could use, before any data is read or any device touched.

    Args:
      train: False: for encoders that are not trained here, which may have no objectives.

    Raises:
      InputError: unknown keys, names or options, and values out of range, each in one line.
    """
    _refuse_first_edition(config)
    _check_keys("", config, KEYS)
    if train and not config.objectives:
        raise InputError("config.objectives is empty; a run needs at least one")
    for path, place, name, given in modules(config):
        _check_module(f"config.{path}", place, name, given)
    for name, given in config.objectives.items():
        weight = schedules.parse(f"config.objectives.{name}.weight", given.get("weight", 1.0))
        if not min(weight.start, weight.end) >= 0:
            raise InputError(f"config.objectives.{name}.weight={given.weight} must be >= 0")
    for name, given in config.towers.items():
        _check_tower(name, given)
    wired, _, _ = wiring.wire(config)
    for name, given in config.evaluators.items():
        evaluator: Any = build.find("evaluator", wiring.chosen_module(name, given))
        where = f"config.evaluators.{name}.reads"
        wiring.redirected(where, evaluator.reads, given.get("reads"))
    _check_ranges(config)
    inputs.make(config, wired)


_MOVED = {
    "model.image": "towers.image",
    "model.text": "towers.text",
    "model.embed_dim": "towers.image.heads.embedding and towers.text.heads.embedding",
    "model.local_dim": "towers.image.heads.regions and towers.text.heads.words",
    "model.head": "towers.image.head and towers.text.head",
    "model.pixel_mean": "towers.image.pixel_mean",
    "model.pixel_std": "towers.image.pixel_std",
    "model.dtype": "dtype",
    "model.param_dtype": "param_dtype",
    "data.image_size": "towers.image.size",
    "data.text_length": "towers.text.length",
    "data.vocab_size": "towers.text.vocab_size",
    "data.tokenizer": "towers.text.tokenizer",
    "data.tokenizer_model": "towers.text.tokenizer_model",
    "ema": "average.decay, with config.average.evaluate=true",
}
"""Keys of the first edition -> where their values are now."""


def moved(key: str) -> str:
    """One sentence about a key of the first edition, or about a key below it; "" for others."""
    for old, new in _MOVED.items():
        if key == old or key.startswith(f"{old}."):
            names = " and ".join(f"config.{one}{key[len(old) :]}" for one in new.split(" and "))
            return f"config.{key} is now {names}"
    return "config.model is now config.towers" if key.partition(".")[0] == "model" else ""


def first_edition(config: Mapping[str, Any]) -> str:
    """One sentence about the first key of the first edition in a config; "" if it has none."""
    return next(filter(None, (moved(key) for key, _ in flatten(plain(config)))), "")


def _refuse_first_edition(config: Mapping[str, Any]) -> None:
    if sentence := first_edition(config):
        raise InputError(f"unknown key: {sentence}")


def modules(
    config: Mapping[str, Any],
) -> Iterator[tuple[str, Place, str | None, Mapping[str, Any]]]:
    """Yields path, place, name and keys of every module that a config chooses."""
    for path, place in MODULES.items():
        node = config
        for part in path.split("."):
            node = node[part]
        for own in node if place.many else ():
            yield f"{path}.{own}", place, place.name(own, node[own]), node[own]
        if not place.many:
            yield path, place, place.name(path, node), node


def _check_module(where: str, place: Place, name: str | None, given: Mapping[str, Any]) -> None:
    if not hasattr(given, "items"):
        raise InputError(f"{where}={given!r}; expected a mapping of options")
    if name is None:
        listed = ", ".join(build.choices(place.kind))
        raise InputError(f"{where} needs a {place.chooser}; choices: {listed}")
    target = build.find(place.kind, name)
    own = place.own(given)
    offered = {*place.beside, *place.options(name, given)}
    for option in own:
        if option not in offered:
            raise InputError(build.unknown(f"option in {where}", option, sorted(offered)))
    if place.listed is None:
        build.check_options(where, target, own, supplied=place.supplied)
    if hasattr(target, "check_options"):
        target.check_options(where, own)


def _check_tower(name: str, given: Mapping[str, Any]) -> None:
    """Refuses a tower without an option that it needs."""
    where = f"config.towers.{name}"
    kind, own, of_encoder = wiring.tower_options(name, given)
    tower, encoder = build.find("tower", kind), build.find("encoder", given["name"])
    build.check_options(where, tower, own, supplied=wiring.GIVEN_TO_TOWERS)
    if given.get("init", "") is None:
        raise InputError(
            f"{where}.init needs a value: the run or exported folder to start from, or an empty "
            "text for random values"
        )
    if given.get("lora"):
        lora_options(where, given)
    told = ("image_size", "size", "length", "vocab_size", *wiring.GIVEN_TO_ENCODERS)
    build.check_options(where, encoder, of_encoder, supplied=told)


def lora_options(where: str, tower: Mapping[str, Any]) -> dict[str, Any]:
    """The options of low-rank updates of a tower, checked, with their defaults.

    Args:
      where: the config key of the tower. tower: what is given for it, with `lora`.

    Raises:
      InputError: an unknown key, a value out of range, or a tower that is frozen as a whole.
    """
    given = dict(tower["lora"])
    for key, value in given.items():
        if key not in LORA:
            raise InputError(build.unknown(f"key in {where}.lora", key, LORA))
        given[key] = check(f"{where}.lora.{key}={value!r}", value, type_of(LORA[key]))
    found: dict[str, Any] = {**LORA, **given}
    if found["rank"] < 1 or not found["alpha"] > 0:
        raise InputError(
            f"{where}.lora has rank {found['rank']}, alpha {found['alpha']}; expected a rank of at "
            "least 1 and alpha above 0"
        )
    try:
        re.compile(found["match"])
    except re.error as error:
        raise InputError(f"{where}.lora.match={found['match']!r}: {error}") from None
    if tower.get("frozen") is True:
        raise InputError(
            f"{where} has frozen=True and lora, which trains; leave one of them out (with lora, "
            "the encoder itself does not change)"
        )
    return found


def _check_keys(path: str, given: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Refuses keys that are not known, values of another type, and a config that lacks a key."""
    where = f"config.{path}".rstrip(".")
    if path not in MODULES:
        for name in given:
            if name not in known:
                raise InputError(build.unknown(f"key in {where}", name, sorted(known)))
    for name, inner in known.items():
        if name not in given:
            raise InputError(f"{where} lacks {name!r}; start from mmrl.config.base()")
        if isinstance(inner, Mapping):
            if not hasattr(given[name], "items"):
                raise InputError(f"{where}.{name}={given[name]!r}; expected a mapping of keys")
            _check_keys(f"{path}.{name}".lstrip("."), given[name], inner)
        else:  # a preset may have replaced a whole part, which no type protects any more
            value = given[name]
            value = value.to_dict() if hasattr(value, "to_dict") else value
            check(f"{where}.{name}={value!r}", value, inner.accepts)


def _check_ranges(config: ml_collections.ConfigDict) -> None:
    positive = {
        "total_steps": config.total_steps,
        "batch_size": config.batch_size,
        "accumulation": config.accumulation,
        "gradient_cache": config.gradient_cache,
        "log_every": config.log_every,
        "checkpoint.every": config.checkpoint.every,
        "checkpoint.keep": config.checkpoint.keep,
    }
    for key, value in positive.items():
        if value < 1:
            raise InputError(f"config.{key}={value} must be at least 1")
    settings.check(config.data, config.batch_size)
    for name, given in config.inputs.items():
        settings.check_ranges(f"config.inputs.{name}", given)
    if config.epochs < 0:
        raise InputError(f"config.epochs={config.epochs} must be at least 0")
    _check_best(config)
    for key in ("steps", "skip"):
        if config.profile[key] < 0:
            raise InputError(f"config.profile.{key}={config.profile[key]} must be at least 0")
    for key in ("accumulation", "gradient_cache"):
        if config.batch_size % config[key]:
            raise InputError(
                f"config.batch_size={config.batch_size} must be a multiple of "
                f"config.{key}={config[key]}"
            )
    if config.accumulation > 1 and config.gradient_cache > 1:
        raise InputError(
            f"config.accumulation={config.accumulation} and config.gradient_cache="
            f"{config.gradient_cache} exclude each other: choose gradient_cache to keep all "
            "negatives of the batch, accumulation for batch norm"
        )
    if not 0 <= (b2 := config.optimizer.b2) < 1:
        raise InputError(f"config.optimizer.b2={b2} must be in [0, 1)")
    decay = schedules.parse("config.average.decay", config.average.decay)
    if not 0 <= min(decay.start, decay.end) <= max(decay.start, decay.end) <= 1:
        raise InputError(f"config.average.decay={config.average.decay}; expected 0 to 1")
    weights = config.optimizer.weight_decay
    decay = schedules.parse("config.optimizer.weight_decay", weights)
    if min(decay.start, decay.end) < 0:
        raise InputError(f"config.optimizer.weight_decay={weights}; expected at least 0")


def _check_best(config: ml_collections.ConfigDict) -> None:
    """Refuses config.best as far as it can be checked before the evaluators exist."""
    best = config.best
    if config.validation_loss and "val" in config.evaluators:
        raise InputError(
            "config.evaluators.val: with config.validation_loss this name is that of the losses; "
            "choose another one"
        )
    if best.mode not in BEST_MODES:
        raise InputError(build.unknown("config.best.mode", best.mode, BEST_MODES))
    for key in ("min_delta", "patience"):
        if best[key] < 0:
            raise InputError(f"config.best.{key}={best[key]} must be at least 0")
    if not best.metric:
        if best.patience:
            raise InputError(
                f"config.best.patience={best.patience} needs config.best.metric: of which value?"
            )
        return
    if best.patience and not config.eval_every:
        raise InputError(
            f"config.best.patience={best.patience} counts evaluations; config.eval_every=0 makes "
            "only one, after the last step"
        )
    first, _, rest = best.metric.partition("/")
    offered = [*config.evaluators, "val"]
    if first not in offered or not rest:
        raise InputError(
            build.unknown("evaluator in config.best.metric", best.metric, offered)
            + "; a metric is EVALUATOR/VALUE, val/loss or val/OBJECTIVE/METRIC"
        )
    if first == "val" and not config.validation_loss:
        raise InputError(
            f"config.best.metric={best.metric} needs the losses on the validation split: set "
            "config.validation_loss=true"
        )
    if best.mode == "max" and best.metric.endswith(_LESS_IS_BETTER):
        raise InputError(
            f"config.best.metric={best.metric} is better if it is less; with config.best.mode=max "
            "the worst checkpoint would be kept: set config.best.mode=min"
        )


READ_ANEW = (
    "data.source",
    "data.sections",
    "data.views",
    "data.label_policy",
    "data.max_reject_fraction",
    "data.waive_leaks",
    "evaluators",
)
"""What may differ when trained encoders read other data, beside the options of the source."""


def is_read_anew(name: str) -> bool:
    """Whether a dotted key is one of `READ_ANEW`, or an option of the source."""
    first, _, rest = name.partition(".")
    if first == "data" and rest.partition(".")[0] not in settings.KEYS:
        return True
    return f"{name}.".startswith(tuple(f"{key}." for key in READ_ANEW))


def with_data(
    trained: ml_collections.ConfigDict, other: ml_collections.ConfigDict | None
) -> ml_collections.ConfigDict:
    """The config of trained encoders, reading what `other` names: source, sections, evaluators...

    What the encoders depend on (image size, tokenizer, text length...) stays as trained, and so
    does data.colour unless `other` asks for grey or rgb. Of the inputs of `other`, those that only
    it has are added, such as the impression of a report.
    """
    chosen = ml_collections.ConfigDict(trained.to_dict())
    if other is None:
        return chosen
    validate(other)
    pipeline, _ = split_data(chosen.data)
    given, given_source = split_data(other.data)
    taken = {name: given[name] for name in given if is_read_anew(f"data.{name}")}
    if given["colour"] != settings.KEYS["colour"].default:
        taken["colour"] = given["colour"]
    chosen.data = ml_collections.ConfigDict({**pipeline, **taken, **given_source})
    chosen.evaluators = other.evaluators
    known = {*trained.inputs, *build.choices("input")}
    added = {name: given for name, given in other.inputs.items() if name not in known}
    chosen.inputs = ml_collections.ConfigDict({**trained.inputs, **added})
    return chosen


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields ("data.num_perturbed", 9) and so on."""
    for key in sorted(config):
        value = config[key]
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted keys whose values differ, each with (old, new); absent values are None."""
    before, after = dict(flatten(plain(old))), dict(flatten(plain(new)))
    keys = sorted(before.keys() | after.keys())
    return {k: (before.get(k), after.get(k)) for k in keys if before.get(k) != after.get(k)}


def check_resumable(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What a continued run changes, if all of it may be changed.

    Raises:
      InputError: a change of model, data or objectives; lists the differing keys.
    """
    changed = differences(old, new)
    prefixes = tuple(f"{key}." for key in RESUMABLE_KEYS)
    refused = {k: v for k, v in changed.items() if not f"{k}.".startswith(prefixes)}
    if refused:
        listed = "; ".join(f"{key}: {was!r} -> {now!r}" for key, (was, now) in refused.items())
        raise InputError(
            f"the run directory holds another experiment; differing keys: {listed}. Use another "
            f"--workdir, or change only: {', '.join(RESUMABLE_KEYS)}"
        )
    return changed
