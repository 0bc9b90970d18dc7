"""What a tower is: an encoder and the heads that turn its features into named encodings."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from mmrl import build
from mmrl.models.heads import KINDS, Projection
from mmrl.models.layers import check_choice
from mmrl.types import InputError
from mmrl.vectors import l2_normalize

Arrays = Mapping[str, jax.Array]
"""Arrays of one input by name, such as {"tokens": i32[B, L], "mask": bool[B, L]}."""

# What heads of these names start from; all others start from "pooled".
LOCAL_HEADS = ("regions", "words")

# Options of Projection that a tower fills in.
_SUPPLIED = ("dtype", "param_dtype", "rngs")


class Tower(nnx.Module):
    """Encodes inputs of one kind into named features, each input once.

    A kind of tower is a file in this folder; its encoders are the files of `mmrl/models/KIND`.
    Subclasses take keyword options and pass `encoder`, `heads`, `head`, `dtype`, `param_dtype` and
    `make_rngs` on to this class.

    Features, where B is the batch axis:
      pooled      [B, width], the encoder's output before any head
      embedding   f32[B, D], L2-normalised, from the head "embedding"; with the option `of` local,
                  the mean over all regions or words of what the head makes of each (BioViL;
                  Boecking et al. 2022, section 2.2)
      regions     [B, R, D'] of an image; words [B, L, D'] of a text: the heads of those names
      HEAD        f32[B, C], any other head: an affine function of `pooled`, such as class logits

    Args:
      encoder: with an attribute `width`, and `local_width` where it has local features.
      heads: name -> number of features, or a mapping with the keys width, kind (linear, affine,
        normed, mlp or identity) and options of that kind (normed: epsilon; mlp: hidden, bias,
        activation, norm and epsilon), see `Projection`; for embedding also of (pooled or local).
      head: kind of the heads embedding, regions and words where they state none.
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
        self.embeds_local = False
        made = {}
        for name, given in heads.items():
            # A ConfigDict is no Mapping.
            spec = dict(given.items()) if hasattr(given, "items") else {"width": given}
            spec.setdefault("kind", head if name in ("embedding", *LOCAL_HEADS) else "affine")
            where = f"head {name!r}={given!r} of a {type(self).__name__} tower"
            width, out = self._sizes(where, name, spec)
            build.check_options(where, Projection, spec, supplied=_SUPPLIED)
            made[name] = Projection(
                width, out, **spec, dtype=dtype, param_dtype=param_dtype, rngs=make_rngs(name)
            )
        self.heads = nnx.Dict(made)

    def _sizes(self, where: str, name: str, spec: dict[str, Any]) -> tuple[int, int]:
        """Features that a head starts from and makes; only options of Projection stay in `spec`.

        Raises:
          InputError: sizes or options that this head cannot have; `where` names it.
        """
        check_choice(where, "kind", spec["kind"], KINDS)
        offered = ["kind", "width", *KINDS[spec["kind"]]]
        if name == "embedding" and self.local:
            offered.append("of")
        for option in spec:
            if option not in offered:
                raise InputError(f"{where}: {build.unknown('option', option, offered)}")
        of = spec.pop("of", "pooled")
        check_choice(where, "of", of, ("pooled", "local"))
        self.embeds_local |= of == "local"
        out, width = spec.pop("width", 0), self._width_of(name)
        if type(out) is not int or out < 1 or width is None:
            raise InputError(
                f'{where}; expected a number of features, or {{"width": n, "kind": k}}; local '
                f"heads: {', '.join(self.local) or 'none'}"
            )
        return width, out

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
        if head in LOCAL_HEADS and head not in self.local:
            return None
        if head in LOCAL_HEADS or (head == "embedding" and self.embeds_local):
            return getattr(self.encoder, "local_width", None)
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

    def _pooled(
        self,
        pooled: jax.Array,
        features: tuple[str, ...],
        local: jax.Array | None = None,
        mask: jax.Array | None = None,
    ) -> dict[str, jax.Array]:
        """Those of `features` that are one vector per input.

        Args:
          pooled: [..., width].
          local: [..., R, local_width], of a tower that embeds its regions or words.
          mask: bool[..., R], what counts of `local`; None: all.
        """
        made: dict[str, jax.Array] = {}
        for name in features:
            if name == "pooled":
                made[name] = pooled
            elif name == "embedding" and self.embeds_local:
                assert local is not None
                made[name] = l2_normalize(_mean(self.heads[name](local), mask))
            elif name == "embedding":
                made[name] = l2_normalize(self.heads[name](pooled))
            elif name in self.heads and name not in LOCAL_HEADS:
                made[name] = self.heads[name](pooled).astype(jnp.float32)
        return made


def _mean(x: jax.Array, mask: jax.Array | None) -> jax.Array:
    """x [..., R, D], mask bool[..., R] -> f32[..., D], the mean over R; 0 where nothing counts."""
    x = x.astype(jnp.float32)
    if mask is None:
        return x.mean(axis=-2)
    counts = mask[..., None].astype(jnp.float32)
    return (x * counts).sum(axis=-2) / jnp.maximum(counts.sum(axis=-2), 1.0)
