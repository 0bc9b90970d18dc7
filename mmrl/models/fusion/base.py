"""What a fusion is: a module that turns encodings of several towers into further encodings."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from mmrl import build
from mmrl.models.heads import make_head
from mmrl.types import InputError
from mmrl.vectors import l2_normalize


class Fusion(nnx.Module):
    """Turns encodings into encodings, whose names begin with its own: fused.words, fused.pooled.

    `fused@masked.words` is the same module applied to the input `masked`: what it reads of the
    input of that kind is read of `masked` instead.

    Subclasses take keyword options, and pass the following ones on.

    Args:
      widths: argument of `reads` -> size of the last axis of the encoding that it gets.
      dtype, param_dtype: of the computation and of the parameters.
      make_rngs: name of a part -> its random streams.

    Attributes:
      reads: argument of `__call__` -> the encoding that it gets.
      batch: argument of `__call__` -> the array of the batch that it gets.
        config.fusions.NAME.reads redirects either.
      optional: arguments of `reads` that a row may lack; a row without any other one is no row of
        a loss that reads the fusion.
    """

    reads: ClassVar[Mapping[str, str]] = {}
    batch: ClassVar[Mapping[str, str]] = {}
    optional: ClassVar[tuple[str, ...]] = ()
    heads: "Heads"

    def __init__(
        self,
        *,
        widths: Mapping[str, int],
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        make_rngs: Callable[[str], nnx.Rngs],
    ) -> None:
        raise NotImplementedError

    @property
    def features(self) -> tuple[str, ...]:
        """Names of all features that it provides; of a fusion with `heads`, theirs."""
        return self.heads.features

    def width_of(self, feature: str) -> int:
        """Size of the last axis of a feature."""
        return self.heads.width_of(feature)

    def check(self, where: str, wanted: tuple[str, ...]) -> None:
        """Refuses features that it does not provide.

        Raises:
          InputError: names the first one and lists all that there are.
        """
        build.check_known(f"feature of {where}; feature", wanted, self.features)

    def __call__(self, *_: Any, **arrays: Any) -> dict[str, jax.Array]:
        """Makes features. Subclasses take `wanted`, and the other arguments by keyword.

        Args:
          wanted: the names of the features.
          train: whether dropout is on, where there is a key.
          key: of dropout; None: no dropout.
          arrays: the arguments of `reads` and `batch`, with the batch axis first.

        Returns:
          feature -> array with the batch axis first.
        """
        raise NotImplementedError


class Heads(nnx.Module):
    """The heads of a fusion: further features, each from one of those that it makes itself.

    A head is f32[..., C], an affine function of the feature that it states as `of`, by default of
    `pooled`. The head "embedding" is linear and L2-normalised.

    Args:
      owner: names the fusion in messages.
      heads: name -> number of features, or a mapping with the keys width, kind and `of`, and the
        options of that kind, see `mmrl.models.heads.Projection`.
      widths: feature that the fusion makes itself -> size of its last axis; "pooled" first.
      make_rngs: name of a head -> its random streams.

    Raises:
      InputError: a head of an unknown kind or feature, or with the name of a feature.
    """

    def __init__(
        self,
        owner: str,
        heads: Mapping[str, Any],
        widths: Mapping[str, int],
        *,
        dtype: DTypeLike,
        param_dtype: DTypeLike,
        make_rngs: Callable[[str], nnx.Rngs],
    ) -> None:
        # Tuples, because a dict on a module would make its structure unhashable.
        self.widths = tuple(widths.items())
        self.starts: tuple[tuple[str, str], ...] = ()
        for name, given in heads.items():
            where = f"head {name!r}={given!r} of a {owner}"
            if name in dict(self.widths):
                raise InputError(f"{where}; expected another name than: {', '.join(widths)}")
            head, start = make_head(
                where,
                given,
                kind="linear" if name == "embedding" else "affine",
                of=tuple(widths),
                width_of=widths.get,
                local="",
                dtype=dtype,
                param_dtype=param_dtype,
                rngs=functools.partial(make_rngs, name),
            )
            setattr(self, name, head)
            self.starts += ((name, start),)
            self.widths += ((name, head.out_features),)

    @property
    def features(self) -> tuple[str, ...]:
        """Names of what the fusion makes itself, then of the heads."""
        return tuple(name for name, _ in self.widths)

    def width_of(self, feature: str) -> int:
        """Size of the last axis of a feature."""
        return dict(self.widths)[feature]

    def __call__(
        self, made: Mapping[str, jax.Array], wanted: tuple[str, ...]
    ) -> dict[str, jax.Array]:
        """The wanted features, those of heads from what the fusion `made` itself."""
        found = {name: made[name] for name in wanted if name in made}
        for name, of in self.starts:
            if name in wanted:
                x = getattr(self, name)(made[of])
                found[name] = l2_normalize(x) if name == "embedding" else x.astype(jnp.float32)
        return found
