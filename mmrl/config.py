"""The whole configuration with its defaults, its checks, and what a resumed run may change.

`base()` is the one list of keys; config files start from it and assign. A key that is not in it
is refused with the nearest match, so a misspelt option cannot be ignored.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import ml_collections

from mmrl import build
from mmrl.data import settings
from mmrl.types import InputError

# What may differ when a run is continued; it is recorded in config_history.jsonl. Everything
# else defines the experiment: changing it would make one run out of two.
RESUMABLE_KEYS = (
    "total_steps",
    "log_every",
    "eval_every",
    "checkpoint",
    "evaluators",
    "data.label_policy",
    "data.waive_leaks",
    "mesh",
    "gradient_cache",
    "compile_cache",
    "tensorboard",
    "profile",
    "data.prefetch",
    "data.num_threads",
    "data.num_workers",
    "data.cache_images",
    "data.cache_mib",
    "data.stall_seconds",
)


def base() -> ml_collections.ConfigDict:
    """Every key with its default: the recipe of the paper at a size for a laptop."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.total_steps = 1000
    config.batch_size = 64  # global, over all devices and processes
    config.accumulation = 1  # micro-batches per step; contrast then sees fewer negatives
    # Micro-batches whose activations are held one at a time, for large batches in little memory;
    # every pair still meets all negatives, at the price of a second forward pass. 1: off.
    config.gradient_cache = 1
    config.ema = 0.0  # decay of the parameter average that evaluation and export use; 0: off
    config.log_every = 20
    config.eval_every = 250  # 0: only at the end
    config.compile_cache = "~/.cache/mmrl"  # compiled programs, shared by all runs; "": none
    config.tensorboard = True
    # A trace of so many steps goes to WORKDIR/profile, after the first `skip`. 0: none.
    config.profile = ml_collections.ConfigDict({"steps": 0, "skip": 10})
    config.data = ml_collections.ConfigDict(settings.defaults())
    config.model = _model()
    config.objectives = ml_collections.ConfigDict(
        {
            "global_contrastive": {"weight": 1.0, "temperature": 0.07},
            "local_contrastive": {"weight": 0.1, "temperatures": (4.0, 5.0, 10.0)},
            "perturbed_discrimination": {"weight": 0.1, "temperature": 0.07},
        }
    )
    config.optimizer = _optimizer()
    config.mesh = _mesh()
    config.checkpoint = ml_collections.ConfigDict({"every": 250, "keep": 2})
    config.evaluators = ml_collections.ConfigDict(
        {
            "retrieval": {"max_pairs": 256},
            "structure": {},
            "pointing": {"count": 200, "optional": True},
        }
    )
    return config


def _mesh() -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(
        {
            # Devices that share the batch; that share batch, parameters and optimizer state; that
            # share the heads and hidden features of each layer. -1: what is left.
            "data": -1,
            "fsdp": 1,
            "tensor": 1,
            # Several TPU slices need this, nodes of GPUs profit: how often each axis is repeated
            # over the slower network between them. The sizes above are then those within a slice
            # or node, and the mesh has the products. -1: what is left of slices or processes.
            "dcn": {"data": 1, "fsdp": 1, "tensor": 1},
        }
    )


def _model() -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(
        {
            "image": {"name": "vit", "patch_size": 8, "width": 128, "depth": 4, "num_heads": 4},
            "text": {"name": "transformer", "width": 128, "depth": 2, "num_heads": 4},
            "embed_dim": 128,
            "local_dim": 128,  # width of regions and words; 0: no local features
            "head": "linear",
            "pixel_mean": 0.5,
            "pixel_std": 0.25,
            "dtype": "float32",  # of the computation; parameters are param_dtype
            "param_dtype": "float32",
        }
    )


def _optimizer() -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(
        {
            "name": "adamw",  # or sgd
            "learning_rate": 1e-3,
            "warmup_steps": 50,
            "end_fraction": 0.0,  # of the peak learning rate, at the last step
            "weight_decay": 0.05,
            "b1": 0.9,
            "b2": 0.98,
            "momentum": 0.9,  # sgd only
            "clip_norm": 1.0,  # global gradient norm; 0: off
            # First match wins; every parameter must match. `learning_rate` and `weight_decay`
            # are factors on the values above; freeze: no gradient, no optimizer state.
            "rules": (
                {"match": r".*/(bias|scale|cls|positions?|log|logit_bias)", "weight_decay": 0.0},
                {"match": r".*"},
            ),
        }
    )


def variants(argument: str, known: tuple[str, ...]) -> set[str]:
    """Splits the part after ":" of --config=FILE:a,b.

    Raises:
      InputError: a variant that the file does not have.
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
    """The config of a stored run; what it lacks because it is older is as it was then."""
    return ml_collections.ConfigDict(_with_later_keys(frozen(stored)))


def _with_later_keys(stored: Mapping[str, Any]) -> dict[str, Any]:
    return (
        {**stored, "data": {**settings.LATER_KEYS, **stored["data"]}}
        if "data" in stored
        else {**stored}
    )


def split_data(data: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """config.data -> (pipeline options, source options)."""
    pipeline = {key: data[key] for key in data if key in settings.KEYS}
    return pipeline, {key: data[key] for key in data if key not in settings.KEYS}


def validate(config: ml_collections.ConfigDict) -> None:
    """Refuses what no run could use, before any data is read or any device touched.

    Raises:
      InputError: unknown keys, names or options, and values out of range, each in one line.
    """
    _check_keys("config", config, base(), open_keys=("data", "objectives", "evaluators", "model"))
    _check_named("config.data", config.data)
    _check_keys("config.model", config.model, _model(), open_keys=("image", "text"))
    for side in ("image", "text"):
        where, given = f"config.model.{side}", dict(config.model[side])
        if "name" not in given:
            raise InputError(f"{where} needs a name")
        target = build.find(f"{side} encoder", given.pop("name"))
        build.check_options(where, target, given, supplied=_SUPPLIED[side])
    if not config.objectives:
        raise InputError("config.objectives is empty; a run needs at least one")
    for kind in ("objective", "evaluator"):
        for name, given in config[f"{kind}s"].items():
            target = build.find(kind, name)
            extra = {"weight"} if kind == "objective" else set()
            kept = {key: given[key] for key in given if key not in extra}
            supplied = _SUPPLIED.get(kind, ())
            build.check_options(f"config.{kind}s.{name}", target, kept, supplied=supplied)
            if kind == "objective" and not float(given.get("weight", 1.0)) >= 0:
                raise InputError(f"config.objectives.{name}.weight={given.weight} must be >= 0")
    _check_ranges(config)


# Options that follow from the data or the model as a whole.
_SUPPLIED = {
    "image": ("image_size", "rngs", "dtype", "param_dtype"),
    "text": ("vocab_size", "length", "rngs", "dtype", "param_dtype"),
    "objective": ("kinds",),
}


# What configs of runs from before it was an option do not have; then it is off.
_OPTIONAL = ("config.mesh.dcn", *(f"config.mesh.dcn.{axis}" for axis in ("data", "fsdp", "tensor")))


def _check_named(where: str, data: ml_collections.ConfigDict) -> None:
    if "source" not in data:
        raise InputError(f"{where} needs a source; choices: {', '.join(build.choices('source'))}")
    target = build.find("source", data.source)
    pipeline, source = split_data(data)
    offered = set(settings.KEYS) | set(build.options(target)) - {"split"}
    for name in source:
        if name not in offered:
            raise InputError(build.unknown(f"option in {where}", name, sorted(offered)))
    for name in settings.KEYS - set(pipeline):
        raise InputError(f"{where} lacks {name!r}; start from mmrl.config.base()")
    build.check_options(where, target, source, supplied=("split",))
    if hasattr(target, "check_options"):
        target.check_options(where, source)


def _check_keys(
    where: str,
    given: ml_collections.ConfigDict,
    known: ml_collections.ConfigDict,
    open_keys: tuple[str, ...] = (),
) -> None:
    for key in given:
        if key not in known:
            raise InputError(build.unknown(f"key in {where}", key, sorted(known)))
    for key, default in known.items():
        if key not in given:
            if f"{where}.{key}" in _OPTIONAL:
                continue
            raise InputError(f"{where} lacks {key!r}; start from mmrl.config.base()")
        if isinstance(default, ml_collections.ConfigDict) and key not in open_keys:
            _check_keys(f"{where}.{key}", given[key], default)


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
    settings.check(config.data)
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
    for key, value in {"ema": config.ema, "optimizer.b2": config.optimizer.b2}.items():
        if not 0 <= value < 1:
            raise InputError(f"config.{key}={value} must be in [0, 1)")


def with_data(
    trained: ml_collections.ConfigDict, other: ml_collections.ConfigDict | None
) -> ml_collections.ConfigDict:
    """The config of a trained run, reading what `other` names: source, sections, views, evaluators.

    What the encoders depend on (image size, tokenizer, text length...) stays as trained.
    """
    chosen = ml_collections.ConfigDict(trained.to_dict())
    if other is None:
        return chosen
    validate(other)
    pipeline, _ = split_data(chosen.data)
    given, given_source = split_data(other.data)
    kept = ("source", "sections", "views", "label_policy", "max_reject_fraction", "waive_leaks")
    taken = {key: given[key] for key in kept}
    chosen.data = ml_collections.ConfigDict({**pipeline, **taken, **given_source})
    chosen.evaluators = other.evaluators
    return chosen


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields ("data.image_size", 64) and so on."""
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
    changed = differences(_with_later_keys(old), new)
    prefixes = tuple(f"{key}." for key in RESUMABLE_KEYS)
    refused = {k: v for k, v in changed.items() if not f"{k}.".startswith(prefixes)}
    if refused:
        listed = "; ".join(f"{key}: {was!r} -> {now!r}" for key, (was, now) in refused.items())
        raise InputError(
            f"the run directory holds another experiment; differing keys: {listed}. Use another "
            f"--workdir, or change only: {', '.join(RESUMABLE_KEYS)}"
        )
    return changed
