"""What a pooler is, and how a config chooses one."""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from mmrl import build
from mmrl.types import InputError

# Options that the encoder gives to its pooler.
_GIVEN = ("width", "grid", "dtype", "param_dtype", "rngs")


class Pooler(nnx.Module):
    """Turns the features of regions into one vector, or those of the elements of a set.

    Subclasses take the keyword options `width` (features of a region), `grid` (rows and columns of
    regions), `dtype`, `param_dtype` and `rngs`, and their own ones.

    Attributes:
      width: features of the result.
      unordered: whether the order of the regions changes nothing. Such a pooler takes a mask, and
        can pool sets.
      weighs: whether the pooler has `weights`.
    """

    width: int
    unordered: ClassVar[bool] = False
    weighs: ClassVar[bool] = False

    def __call__(
        self,
        regions: jax.Array,
        mask: jax.Array | None = None,
        grid: tuple[int, int] | None = None,
    ) -> jax.Array:
        """Pools regions.

        Args:
          regions: [N, R, width of a region], row by row.
          mask: bool[N, R], the regions that count; None: all. What the others hold, NaN included,
            changes nothing, and they get no gradient. Where none counts the result is finite.
          grid: rows and columns of these regions; None: those of the constructor.

        Returns:
          [N, self.width], in the dtype of the regions.
        """
        raise NotImplementedError

    def weights(self, regions: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """The share of each region in the result.

        regions [N, R, width], mask bool[N, R] -> f32[N, R], whose rows sum to 1.
        """
        raise NotImplementedError


def chosen(pool: str | Mapping[str, Any], own: tuple[str, ...] = ()) -> tuple[str, dict[str, Any]]:
    """Name and options in an option `pool`: "zones", or {"name": "zones", "size": 2}.

    Args:
      own: further names, of what the encoder computes itself; they have no options.

    Raises:
      InputError: no name, an unknown one, or an option beside one of `own`.
    """
    # A ConfigDict is no Mapping.
    options: dict[str, Any] = {"name": pool} if isinstance(pool, str) else dict(pool.items())
    name, offered = options.pop("name", None), (*own, *build.choices("pooler"))
    if name is None:
        raise InputError(f"pool={pool!r} has no name; choices: {', '.join(offered)}")
    if name in own:
        for option in options:
            raise InputError(build.unknown(f"option of the pooler {name}", option, ()))
    elif "." not in name and name not in offered:
        raise InputError(build.unknown("pooler", name, offered))
    return name, options


def cleared(regions: jax.Array, mask: jax.Array | None) -> jax.Array:
    """regions [..., R, width] with zeros where mask bool[..., R] is False."""
    return regions if mask is None else jnp.where(mask[..., None], regions, 0)


def shares(scores: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Softmax over the last axis in float32: scores [..., R], mask bool[..., R] -> f32[..., R].

    Where nothing counts all shares are 0.
    """
    scores = scores.astype(jnp.float32)
    if mask is None:
        return jax.nn.softmax(scores, axis=-1)
    lowest = jnp.finfo(jnp.float32).min
    return jnp.where(mask, jax.nn.softmax(jnp.where(mask, scores, lowest), axis=-1), 0)


def make(
    pool: str | Mapping[str, Any],
    *,
    width: int,
    grid: tuple[int, int],
    dtype: DTypeLike,
    param_dtype: DTypeLike,
    rngs: nnx.Rngs,
) -> Pooler:
    """The pooler that an option `pool` names, see `chosen`.

    Raises:
      InputError: unknown name or option, or as of the pooler.
    """
    name, options = chosen(pool)
    target: Any = build.find("pooler", name)
    known = [option for option in build.options(target) if option not in _GIVEN]
    for option in options:
        if option not in known:
            raise InputError(build.unknown(f"option of the pooler {name}", option, known))
    return target(
        width=width, grid=grid, dtype=dtype, param_dtype=param_dtype, rngs=rngs, **options
    )
