"""Low-rank updates of an encoder: config.towers.NAME.lora (Hu et al. 2021, section 4.1).

A kernel W [in, out] of the encoder stays as it is; training changes a [in, rank] and b [rank, out],
and the tower computes with W + alpha / rank * a b. At the start b is zero, so the tower computes
what it did before. The updates of the parameter PATH are the parameters lora/PATH/a and
lora/PATH/b.

Kernels of more axes, such as those of attention, are taken as matrices: "embed", where the first
axis has this name, is what goes in, and otherwise the last axis alone is what comes out. a and b
keep the axes that they share with the kernel, and so their sharding. Parameters of scanned layers
have a leading axis over the layers.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from mmrl import config as configs
from mmrl.types import InputError

_LAYERS = "layers"


def create(
    where: str,
    encoder: nnx.Module,
    options: Mapping[str, Any],
    *,
    make_rngs: Callable[[str], nnx.Rngs],
    param_dtype: DTypeLike,
) -> nnx.Dict[Any]:
    """The updates of the kernels that `match` names, nested as the encoder is.

    Args:
      where: the config key of the tower, for the messages.
      options: rank and match, see `config.LORA`.
      make_rngs: path of a parameter, from "encoder/" on -> its random streams.

    Raises:
      InputError: no kernel matches; lists those that there are. An encoder with batch statistics,
        which training would change.
    """
    if jax.tree.leaves(nnx.state(encoder, nnx.BatchStat)):
        raise InputError(
            f"{where}.lora: the encoder has batch statistics, which training would change; choose "
            "another norm, or frozen=encoder"
        )
    state = nnx.to_flat_state(nnx.state(encoder, nnx.Param))
    kernels = {
        "/".join(map(str, keys)): variable for keys, variable in state if keys[-1] == "kernel"
    }
    chosen = [path for path in kernels if re.fullmatch(options["match"], path)]
    if not chosen:
        offered = sorted({re.sub(r"block_\d+", "block_.*", path) for path in kernels})
        raise InputError(
            f"{where}.lora.match={options['match']!r} matches no kernel of the encoder; it has: "
            f"{', '.join(offered) or 'none'}"
        )
    tree: dict[str, Any] = {}
    for path in chosen:
        node = tree
        for part in ("encoder", *path.split("/")):
            node = node.setdefault(part, {})
        for name, one in _factors(kernels[path], int(options["rank"]), param_dtype).items():
            init, shape, axes = one
            rngs = make_rngs(f"encoder/{path}/{name}")
            made = nnx.with_partitioning(init, axes)(rngs.params(), shape, param_dtype)
            node[name] = nnx.Param(made)
    return _modules(tree)


def _factors(kernel: Any, rank: int, dtype: DTypeLike) -> dict[str, tuple[Any, Any, Any]]:
    """a and b of a kernel -> initialiser, shape and logical axes."""
    axes = tuple(kernel.get_metadata().get("out_sharding") or (None,) * kernel.ndim)
    first = int(axes[0] == _LAYERS)
    middle = first + 1 if axes[first] == "embed" else kernel.ndim - 1
    shape, layers = kernel.shape, axes[:first]
    fan_in = math.prod(shape[first:middle])
    normal = nnx.initializers.normal(fan_in**-0.5)
    return {
        "a": (normal, (*shape[:middle], rank), (*axes[:middle], None)),
        "b": (
            nnx.initializers.zeros_init(),
            (*shape[:first], rank, *shape[middle:]),
            (*layers, None, *axes[middle:]),
        ),
    }


def _modules(tree: Mapping[str, Any]) -> nnx.Dict[Any]:
    """Nested dicts as nested modules."""
    return nnx.Dict({k: _modules(v) if isinstance(v, dict) else v for k, v in tree.items()})


def scales(towers: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Tower -> alpha / rank, of the towers that have low-rank updates.

    Args:
      towers: config.towers.
    """
    found = {}
    for name, given in towers.items():
        if given.get("lora"):
            options = configs.lora_options(f"config.towers.{name}", given)
            found[name] = options["alpha"] / options["rank"]
    return found


def merged(params: dict[str, Any], scales: Mapping[str, float]) -> dict[str, Any]:
    """Parameters with the low-rank updates added to their kernels.

    No gradient reaches the parameters of the encoders that are updated; it reaches a and b alone.

    Args:
      params: nested dict of all parameters; those below "lora" stay beside the others.
      scales: see `scales`; empty: the result is `params` itself.
    """
    updates = params.get("lora", {}).get("towers", {})
    towers = dict(params["towers"])
    for name in updates:
        fixed = jax.tree.map(jax.lax.stop_gradient, towers[name]["encoder"])
        added = _added(fixed, updates[name]["encoder"], scales[name])
        towers[name] = {**towers[name], "encoder": added}
    return {**params, "towers": towers} if updates else params


def _added(node: Any, update: Mapping[str, Any], scale: float) -> Any:
    if isinstance(node, Mapping):
        return {k: _added(v, update[k], scale) if k in update else v for k, v in node.items()}
    a, b = (update[name].astype(jnp.float32) for name in ("a", "b"))
    # Of each layer where there is an axis over layers: the shapes alone tell.
    stacked = (node.shape[0],) if a.ndim + b.ndim - 2 > node.ndim else ()
    a = a.reshape(*stacked, -1, a.shape[-1])
    b = b.reshape(*stacked, a.shape[-1], -1)
    product = jnp.matmul(a, b, precision="highest").reshape(node.shape)
    return (node.astype(jnp.float32) + scale * product).astype(node.dtype)
