"""What a tower is: an encoder and the heads that turn its features into named encodings."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from mmrl import build
from mmrl.models.heads import make_head
from mmrl.models.layers import Features
from mmrl.models.pool.mean import masked_mean
from mmrl.types import InputError
from mmrl.vectors import l2_normalize

Arrays = Mapping[str, jax.Array]
"""Arrays of one input by name, such as {"tokens": i32[B, L], "mask": bool[B, L]}."""

# What heads of these names start from; all others start from "pooled".
LOCAL_HEADS = ("regions", "words")

# Names of features that no head can have.
RESERVED = (
    "pooled", "local", "layers", "attention", "mask", "word_mask", "embedded",
    "elements", "element_mask", "set_attention", "set_pool",
)  # fmt: skip


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
      local       [B, R or L, local_width], the local features of the encoder before any head
      layers      [B, n, R or L, local_width], what the blocks of the option `layers` make
      attention   f32[B, heads, R or L], what the summary token attends to in the last block

    Args:
      encoder: with an attribute `width`, and `local_width` where it has local features. An encoder
        that takes the arguments `layers` and `attention` has the features of these names.
      heads: name -> number of features, or a mapping with the keys width, kind (linear, affine,
        normed, mlp, identity or prototypes) and options of that kind (normed: epsilon; mlp: hidden,
        bias, activation, norm and epsilon; prototypes: hidden and bottleneck), see `Projection`;
        for embedding also of (pooled or local).
      head: kind of the heads embedding, regions and words where they state none.
      layers: numbers of the blocks whose outputs are the feature `layers`; 1: the first block.
      make_rngs: name of a part -> its random streams.

    Attributes:
      input: what the tower reads unless a name says otherwise.
      frozen: whether the encoder does not change; the learner sets it. A frozen encoder computes
        as in evaluation: no dropout, no new batch statistics, no gradient. Heads may still train.

    Raises:
      InputError: a head of an unknown kind, or of a feature that the encoder does not have; blocks
        that the encoder does not have.
    """

    input: ClassVar[str]

    def __init__(
        self,
        *,
        encoder: Any,
        heads: Mapping[str, Any],
        head: str = "linear",
        layers: tuple[int, ...] = (),
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        make_rngs: Callable[[str], nnx.Rngs],
    ) -> None:
        self.encoder, self.frozen = encoder, False
        self.embeds_local = False
        self.layers = tuple(layers)
        self._check_layers()
        made = {}
        for name, given in heads.items():
            made[name], of = make_head(
                f"head {name!r}={given!r} of a {type(self).__name__} tower",
                given,
                kind=head if name in ("embedding", *LOCAL_HEADS) else "affine",
                of=("pooled", "local") if name == "embedding" and self.local else ("pooled",),
                width_of=functools.partial(self._width_of, name),
                local=", ".join(self.local),
                dtype=dtype,
                param_dtype=param_dtype,
                rngs=functools.partial(make_rngs, name),
            )
            self.embeds_local |= of == "local"
        self.heads = nnx.Dict(made)

    def _check_layers(self) -> None:
        """Refuses blocks that the encoder does not have."""
        if not self.layers:
            return
        depth = len(getattr(self.encoder, "layers", ())) - 1
        offered = self._gives("layers")
        if not offered or any(type(n) is not int or not 1 <= n <= depth for n in self.layers):
            expected = f"numbers from 1 to {depth}" if offered else "(), as it gives none"
            raise InputError(
                f"layers {self.layers} of a {type(self).__name__} tower whose encoder is "
                f"{type(self.encoder).__name__}; expected {expected}"
            )

    def _gives(self, feature: str) -> bool:
        """Whether the encoder takes an argument of this name, so that it has this feature."""
        return feature in inspect.signature(self.encoder.__call__).parameters

    @property
    def width(self) -> int:
        """Features of `pooled`, which heads start from."""
        return self.encoder.width

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
        layers = ("layers",) if self.layers else ()
        attention = ("attention",) if self._gives("attention") else ()
        return ("pooled", *self.heads, *layers, *attention)

    def width_of(self, feature: str) -> int:
        """Size of the last axis of a feature; 0 where it counts tokens, regions or elements.

        Raises:
          InputError: no such feature; lists all that there are.
        """
        if feature not in self.features:
            raise InputError(build.unknown("feature", feature, self.features))
        if feature in self.heads:
            return self.heads[feature].out_features
        if feature in ("local", "layers", "embedded"):
            return self.encoder.local_width
        return self.width if feature == "pooled" else 0

    def _width_of(self, head: str, of: str) -> int | None:
        """Features that a head starts from; None: this tower can have no such head."""
        if head in RESERVED or (head in LOCAL_HEADS and head not in self.local):
            return None
        if head in LOCAL_HEADS or of == "local":
            return getattr(self.encoder, "local_width", None)
        return self.width

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

    def _asked(self, features: tuple[str, ...]) -> dict[str, Any]:
        """Arguments of the encoder beyond those that it always gets."""
        asked: dict[str, Any] = {"layers": self.layers} if "layers" in features else {}
        return asked | ({"attention": True} if "attention" in features else {})

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
                made[name] = l2_normalize(masked_mean(self.heads[name](local), mask))
            elif name == "embedding":
                made[name] = l2_normalize(self.heads[name](pooled))
            elif name in self.heads and name not in LOCAL_HEADS:
                made[name] = self.heads[name](pooled).astype(jnp.float32)
        return made

    def _detailed(self, found: Features, features: tuple[str, ...]) -> dict[str, jax.Array]:
        """Those of `features` that the encoder gives as they are."""
        names = [name for name in ("local", "layers", "attention") if name in features]
        return {name: getattr(found, name) for name in names}
