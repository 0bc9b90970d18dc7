"""The optax chain from config.optimizer, with per-parameter rules.

Rules are regular expressions on the parameter's path ("towers/text/encoder/norm/scale"), matched in
full; the first match applies. A parameter that no rule matches is an error, so a new module cannot
silently train without weight decay or inside a frozen encoder.

With `layer_decay`, the learning rate also falls from layer to layer of an encoder, towards its
input.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from mmrl import build, schedules
from mmrl.models.layers import Layers
from mmrl.types import InputError

_RULE_KEYS = ("match", "learning_rate", "weight_decay", "freeze")


def path_of(keys: tuple[Any, ...]) -> str:
    """Formats a jax key path as "towers/image/...", the form that rules match."""
    return "/".join(str(getattr(key, "key", key)) for key in keys)


def assign_rules(params: Any, rules: tuple[Mapping[str, Any], ...]) -> Any:
    """Assigns a rule to each parameter; returns a tree of indices into `rules`.

    Raises:
      InputError: a rule has an unknown key or an invalid pattern, or parameters have no rule; the
        message lists them all.
    """
    patterns = []
    for rule in rules:
        for key in rule:
            if key not in _RULE_KEYS:
                raise InputError(build.unknown("key in config.optimizer.rules", key, _RULE_KEYS))
        try:
            patterns.append(re.compile(rule["match"]))
        except (KeyError, re.error) as error:
            raise InputError(
                f"config.optimizer.rules: {rule} has no valid match: {error}"
            ) from None
    unmatched: list[str] = []

    def index(keys: tuple[Any, ...], _: Any) -> int:
        path = path_of(keys)
        for number, pattern in enumerate(patterns):
            if pattern.fullmatch(path):
                return number
        unmatched.append(path)
        return -1

    assigned = jax.tree_util.tree_map_with_path(index, params)
    if unmatched:
        raise InputError(
            "config.optimizer.rules has no rule for: "
            + ", ".join(unmatched)
            + "; end the rules with a general one such as {'match': '.*'}"
        )
    return assigned


def trainable(params: Any, rules: tuple[Mapping[str, Any], ...]) -> Any:
    """Tree of bools: False where a rule freezes the parameter."""
    return jax.tree.map(lambda n: not rules[n].get("freeze", False), assign_rules(params, rules))


def counts(params: Any, trains: Any) -> dict[str, str]:
    """Numbers of parameters of each module, and of the objectives: "1,024 (32 trained, ...)".

    Args:
      params: nested dict of all parameters, possibly abstract. trains: as of `trainable`.
    """

    def sizes(*path: str) -> tuple[int, int]:
        """All parameters below a path, and those that train."""
        part, own = params, trains
        for name in path:
            part, own = part.get(name, {}), own.get(name, {})
        pairs = list(zip(jax.tree.leaves(part), jax.tree.leaves(own), strict=True))
        return sum(leaf.size for leaf, _ in pairs), sum(leaf.size for leaf, yes in pairs if yes)

    found = {}
    parts = [
        (room, name) for room in ("towers", "derived", "fusions") for name in params.get(room, {})
    ]
    for path in (*parts, ("objectives",)):
        every, trained = sizes(*path)
        low_rank, _ = sizes("lora", *path)
        text = f"{every:,}"
        if trained < every:
            text += f" ({trained:,} trained, {every - trained:,} frozen"
            text += f", and {low_rank:,} low-rank)" if low_rank else ")"
        found[path[-1]] = text
    return found


def rules(config: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """The rules of a config: those of frozen towers, then config.optimizer.rules.

    `towers.NAME.frozen` is short for a rule: True for all of the tower, "encoder" for all but its
    heads. With `towers.NAME.lora` the parameters of the encoder itself are frozen, too.

    Raises:
      InputError: another value of `frozen`.
    """
    frozen = []
    for name, tower in config["towers"].items():
        chosen = tower.get("frozen", False)
        if chosen not in (False, True, "encoder"):
            raise InputError(
                f"config.towers.{name}.frozen={chosen!r}; choices: False, True, encoder"
            )
        if chosen or tower.get("lora"):
            part = "" if chosen is True else "encoder/"
            frozen.append({"match": f"towers/{name}/{part}.*", "freeze": True})
    return (*frozen, *config["optimizer"]["rules"])


def all_frozen(path: str, module: nnx.Module, chosen: tuple[Mapping[str, Any], ...]) -> bool:
    """Whether rules freeze every parameter of a module at `path` of the whole tree."""
    params = nnx.to_pure_dict(nnx.state(module, nnx.Param))
    for part in reversed(path.split("/")):
        params = {part: params}
    return not any(jax.tree.leaves(trainable(params, chosen)))


def layer_factors(params: Any, layers: Mapping[str, Layers], decay: float) -> Any:
    """The factor on the learning rate of each parameter that its layer gives.

    As in the fine-tuning of BEiT (Bao et al. 2022, appendix H) and MAE (He et al. 2022, appendix
    A.1): the embedding of an encoder with n blocks is layer 0, block i (from 0) is layer i + 1, and
    all that follows, heads and parameters of objectives included, is layer n + 1. The factor of
    layer l is decay^(n + 1 - l). Every tower counts its own layers.

    Args:
      params: nested dict of parameters, possibly abstract.
      layers: tower -> layers of its encoder, from the embedding on.
      decay: above 0, at most 1.

    Returns:
      A tree of floats; where the layers of an encoder are scanned, f32[depth, 1, ...], one factor
      for each slice of the parameter.

    Raises:
      InputError: a decay out of range; an encoder that does not state its layers.
    """
    if not 0 < decay <= 1:
        raise InputError(f"config.optimizer.layer_decay={decay}; expected above 0 and at most 1")
    if decay < 1:
        for name in params.get("towers", {}):
            if not layers.get(name):
                raise InputError(
                    f"config.optimizer.layer_decay={decay}: the encoder of config.towers.{name} "
                    "does not state its layers (an attribute `layers`); set it to 1"
                )

    def factor(keys: tuple[Any, ...], leaf: Any) -> float | np.ndarray:
        _, _, inner = path_of(keys).partition("towers/")
        tower, _, rest = inner.partition("/encoder/")
        own = layers.get(tower, ())
        found = [
            decay ** (len(own) - number)
            for number, starts in enumerate(own)
            if any(f"{rest}/".startswith(f"{start}/") for start in starts)
        ]
        if len(found) > 1:
            return np.asarray(found, np.float32).reshape(-1, *(1,) * (len(leaf.shape) - 1))
        return found[0] if found else 1.0

    return jax.tree_util.tree_map_with_path(factor, params)


def schedule(config: Mapping[str, Any], total_steps: int) -> optax.Schedule:
    """Linear warm-up to the peak, then cosine decay to end_fraction of the peak.

    Raises:
      InputError: the warm-up is not shorter than the run.
    """
    warmup = int(config["warmup_steps"])
    if warmup >= total_steps:
        raise InputError(
            f"config.optimizer.warmup_steps={warmup} must be less than the {total_steps} steps of "
            f"the run (config.total_steps or config.epochs); lower it, for example "
            f"--config.optimizer.warmup_steps={total_steps // 10}"
        )
    peak = float(config["learning_rate"])
    curve = optax.schedules.warmup_cosine_decay_schedule(
        0.0 if warmup else peak, peak, warmup, total_steps, peak * float(config["end_fraction"])
    )
    # An integer count would need implicit promotion inside optax.
    return lambda count: curve(jnp.asarray(count, jnp.float32))


def make(
    config: Mapping[str, Any],
    total_steps: int,
    params: Any,
    layers: Mapping[str, Layers] | None = None,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Builds the transformation and its learning-rate schedule.

    Args:
      config: `config.optimizer`.
      params: nested dict of parameters, possibly abstract, to assign the rules.
      layers: tower -> layers of its encoder, for `layer_factors`.

    Raises:
      InputError: the optimizer is unknown, or the rules, a schedule or the decay over layers are
        invalid.
    """
    rules = tuple(config["rules"])
    assigned = assign_rules(params, rules)
    rate = schedule(config, total_steps)
    factors = {
        key: jax.tree.map(lambda n, key=key: float(rules[n].get(key, 1.0)), assigned)
        for key in ("learning_rate", "weight_decay")
    }
    by_layer = layer_factors(params, layers or {}, float(config["layer_decay"]))
    factors["learning_rate"] = jax.tree.map(
        lambda one, other: one * other, factors["learning_rate"], by_layer
    )
    if config["name"] == "adamw":
        direction = optax.scale_by_adam(b1=config["b1"], b2=config["b2"])
    elif config["name"] == "sgd":
        direction = optax.trace(decay=config["momentum"])
    else:
        raise InputError(
            build.unknown("optimizer in config.optimizer.name", config["name"], ("adamw", "sgd"))
        )
    strength = schedules.parse("config.optimizer.weight_decay", config["weight_decay"])
    decay = _add_decay(factors["weight_decay"], strength)
    clip = float(config["clip_norm"])
    transform = optax.chain(
        optax.clip_by_global_norm(clip) if clip > 0 else optax.identity(),
        # AdamW: decoupled decay (Loshchilov & Hutter 2019). SGD: decay is part of the gradient.
        *((direction, decay) if config["name"] == "adamw" else (decay, direction)),
        _scale_each(factors["learning_rate"]),
        optax.scale_by_learning_rate(rate),
    )
    labels = jax.tree.map(lambda n: "frozen" if rules[n].get("freeze") else "trained", assigned)
    frozen = optax.multi_transform({"trained": transform, "frozen": optax.set_to_zero()}, labels)
    return frozen, rate


def _add_decay(factors: Any, strength: schedules.Schedule) -> optax.GradientTransformation:
    """Adds strength * factor * parameter to each update; a schedule counts the updates."""

    def add(updates: Any, params: Any, value: float | jax.Array) -> Any:
        def one(u: jax.Array, p: jax.Array, f: float) -> jax.Array:
            # In the dtype of the parameter: an array of f32 would widen one that is narrower.
            factor = value * f
            return u + (factor if isinstance(factor, float) else factor.astype(p.dtype)) * p

        return jax.tree.map(one, updates, params, _like(updates, factors))

    def hold(updates: Any, state: Any, params: Any) -> tuple[Any, Any]:
        return add(updates, params, strength.end), state

    def follow(updates: Any, state: Any, params: Any) -> tuple[Any, Any]:
        moved = optax.ScaleByScheduleState(optax.safe_increment(state.count))
        return add(updates, params, strength(state.count)), moved

    if strength.constant is not None:
        return optax.GradientTransformation(lambda _: optax.EmptyState(), hold)
    return optax.GradientTransformation(
        lambda _: optax.ScaleByScheduleState(jnp.zeros((), jnp.int32)), follow
    )


def _scale_each(factors: Any) -> optax.GradientTransformation:
    """Multiplies each update by its factor."""

    def update(updates: Any, state: Any, params: Any) -> tuple[Any, Any]:
        del params
        kept = _like(updates, factors)
        # In the dtype of the update: an array of factors would widen one that is narrower.
        return jax.tree.map(lambda u, f: u * jnp.asarray(f, u.dtype), updates, kept), state

    return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


def _is_masked(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)


def _like(updates: Any, factors: Any) -> Any:
    """`factors` with the frozen leaves masked as in `updates`."""
    return jax.tree.map(
        lambda u, f: u if _is_masked(u) else f, updates, factors, is_leaf=_is_masked
    )
