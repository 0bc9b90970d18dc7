"""What a tower is: an encoder and the heads that turn its features into named encodings."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from mmrl import build
from mmrl.models.heads import Projection
from mmrl.types import InputError
from mmrl.vectors import l2_normalize

Arrays = Mapping[str, jax.Array]
"""Arrays of one input by name, such as {"tokens": i32[B, L], "mask": bool[B, L]}."""

# What heads of these names start from; all others start from "pooled".
LOCAL_HEADS = ("regions", "words")


class Tower(nnx.Module):
    """Encodes inputs of one kind into named features, each input once.

    A kind of tower is a file in this folder; its encoders are the files of `mmrl/models/KIND`.
    Subclasses take keyword options and pass `encoder`, `heads`, `head`, `dtype`, `param_dtype` and
    `make_rngs` on to this class.

    Features, where B is the batch axis:
      pooled      [B, width], the encoder's output before any head
      embedding   f32[B, D], L2-normalised, from the head "embedding"
      regions     [B, R, D'] of an image; words [B, L, D'] of a text: the heads of those names
      HEAD        f32[B, C], any other head: an affine function of `pooled`, such as class logits

    Args:
      encoder: with an attribute `width`, and `local_width` where it has local features.
      heads: name -> number of features, or {"width": n, "kind": k}; k is linear, affine, normed
        or mlp, see `Projection`.
      head: kind of the heads embedding, regions and words where they state none; linear or mlp.
      make_rngs: name of a part -> its random streams.

    Attributes:
      input: what the tower reads unless a name says otherwise.
      frozen: whether the encoder does not change; the learner sets it. A frozen encoder computes
        as in evaluation: no dropout, no new batch statistics, no gradient. Heads may still train.

    Raises:
      InputError: a head of an unknown kind, or of a feature that the encoder does not have.
    """

    input: ClassVar[str]

    def __init__(
        self,
        *,
        encoder: Any,
        heads: Mapping[str, Any],
        head: str = "linear",
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        make_rngs: Callable[[str], nnx.Rngs],
    ) -> None:
        self.encoder, self.frozen = encoder, False
        made = {}
        for name, given in heads.items():
            # A ConfigDict is no Mapping.
            spec = dict(given) if hasattr(given, "items") else {"width": given}
            kind = spec.pop("kind", head if name in ("embedding", *LOCAL_HEADS) else "affine")
            out = int(spec.pop("width", 0))
            width = self._width_of(name)
            if spec or out < 1 or width is None:
                raise InputError(
                    f"head {name!r}={given!r} of a {type(self).__name__} tower; expected a number "
                    'of features, or {"width": n, "kind": k}; local heads: '
                    f"{', '.join(self.local) or 'none'}"
                )
            made[name] = Projection(
                width, out, kind=kind, dtype=dtype, param_dtype=param_dtype, rngs=make_rngs(name)
            )
        self.heads = nnx.Dict(made)

    @staticmethod
    def encoder_options(given: Mapping[str, Any]) -> dict[str, Any]:
        """Options of the encoder that follow from those `given` to the tower."""
        raise NotImplementedError

    @property
    def local(self) -> tuple[str, ...]:
        """Names of the local heads that this kind of tower may have."""
        return ()

    @property
    def features(self) -> tuple[str, ...]:
        """Names of all features that the tower provides for each of its inputs."""
        return ("pooled", *self.heads)

    def _width_of(self, head: str) -> int | None:
        """Features that a head starts from; None: this tower can have no such head."""
        if head in LOCAL_HEADS:
            return getattr(self.encoder, "local_width", None) if head in self.local else None
        return None if head == "pooled" else self.encoder.width

    def check(self, where: str, wanted: Mapping[str, tuple[str, ...]]) -> None:
        """Refuses features that the tower does not provide.

        Raises:
          InputError: names the first one and lists all that there are.
        """
        for one, features in wanted.items():
            for feature in features:
                if feature not in self.features:
                    name = f"{where}@{one}.{feature}" if one != self.input else f"{where}.{feature}"
                    raise InputError(
                        build.unknown(f"feature {name}; feature", feature, self.features)
                        + f" (set config.towers.{where}.heads.{feature} for another head)"
                    )

    def __call__(
        self,
        inputs: Mapping[str, Arrays],
        wanted: Mapping[str, tuple[str, ...]],
        *,
        train: bool = False,
        key: jax.Array | None = None,
    ) -> dict[str, dict[str, jax.Array]]:
        """Encodes inputs.

        Args:
          inputs: input -> its arrays, with the batch axis first.
          wanted: input -> features.
          key: of dropout; None: no dropout.

        Returns:
          input -> feature -> array, with the batch axis first.
        """
        raise NotImplementedError

    def _encode(
        self,
        call: Callable[..., Any],
        *arrays: jax.Array,
        train: bool,
        key: jax.Array | None,
        **options: Any,
    ) -> Any:
        """`call(*arrays, **options)` of the encoder, as in evaluation where it is frozen."""
        if self.frozen:
            return jax.lax.stop_gradient(call(*arrays, train=False, rngs=None, **options))
        rngs = None if key is None else nnx.Rngs(dropout=key)
        return call(*arrays, train=train, rngs=rngs, **options)

    def _pooled(self, pooled: jax.Array, features: tuple[str, ...]) -> dict[str, jax.Array]:
        """Those of `features` that start from pooled [..., width]."""
        made: dict[str, jax.Array] = {}
        for name in features:
            if name == "pooled":
                made[name] = pooled
            elif name == "embedding":
                made[name] = l2_normalize(self.heads[name](pooled))
            elif name in self.heads and name not in LOCAL_HEADS:
                made[name] = self.heads[name](pooled).astype(jnp.float32)
        return made
