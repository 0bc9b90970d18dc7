"""What a pooler is, and how a config chooses one."""

from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx
from jax.typing import DTypeLike

from mmrl import build
from mmrl.types import InputError

# Options that the encoder gives to its pooler.
_GIVEN = ("width", "grid", "dtype", "param_dtype", "rngs")


class Pooler(nnx.Module):
    """Turns region features into the pooled feature of an image.

    Subclasses take the keyword options `width` (features of a region), `grid` (rows and columns of
    regions), `dtype`, `param_dtype` and `rngs`, and their own ones.

    Attributes:
      width: features of the result.
    """

    width: int

    def __call__(self, regions: jax.Array) -> jax.Array:
        """regions [B, R, width of a region], row by row -> [B, self.width], in the same dtype."""
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
