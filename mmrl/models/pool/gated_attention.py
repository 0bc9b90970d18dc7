"""Gated attention over the elements of a set, as in ABMIL, CLAM and Madeleine."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from mmrl.models.layers import ACTIVATIONS, Activation, LayerNorm, check_choice, dense
from mmrl.models.pool.base import Pooler, cleared, shares
from mmrl.types import InputError


class PerHead(nnx.Module):
    """A linear layer of its own for each head: [..., heads, inner] -> [..., heads, outer]."""

    def __init__(
        self,
        heads: int,
        inner: int,
        outer: int,
        axes: tuple[str | None, str | None],
        *,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        xavier = nnx.initializers.xavier_uniform(in_axis=-2, out_axis=-1, batch_axis=(0,))
        zeros = nnx.initializers.zeros_init()
        kernel = nnx.with_partitioning(xavier, (None, *axes))
        bias = nnx.with_partitioning(zeros, (None, axes[1]))
        self.kernel = nnx.Param(kernel(rngs.params(), (heads, inner, outer), param_dtype))
        self.bias = nnx.Param(bias(rngs.params(), (heads, outer), param_dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        """x [N, R, heads, inner] -> [N, R, heads, outer], in the same dtype."""
        y = jnp.einsum("nrhi,hio->nrho", x, self.kernel[...].astype(x.dtype))
        return y + self.bias[...].astype(x.dtype)[None, None]


class GatedAttention(Pooler):
    """Gated attention pooling (Ilse et al. 2018, "Attention-based deep multiple instance learning",
    equation 9).

    With the elements h_r of a head: its scores are w . (tanh(V h_r) * sigmoid(U h_r)), its weights
    their softmax over the set, and its result the weighted sum of h_r. With several branches, w has
    a column for each (CLAM; Lu et al. 2021, section "Attention-based pooling").

    Layers before the attention may make other features of the elements, equal for all heads; heads
    then divide what the last layer makes: feature c of head h is at c * heads + h (Madeleine; Jaume
    et al. 2024). The result has the axes [branches, features of a head, heads], flattened.

    Madeleine is `heads` 4, `layers` 3 and `hidden` 512. The attention of CLAM is `layers` 1 with
    `activation` relu, no `norm`, and `features` 512.

    Args:
      width, grid, dtype, param_dtype, rngs: as of Pooler.
      heads: attentions, each over features of its own.
      branches: attentions of a head, over the same features.
      hidden: features between the two layers of an attention.
      layers: linear layers before the attention, each followed by a norm and the activation.
      features: of each of these layers, of the last one for each head; 0: width.
      activation: after each of these layers: gelu (exact), gelu_tanh, quick_gelu, silu or relu.
      norm: whether a layer norm precedes the activation.
      epsilon: added to the variance by the norms.

    Raises:
      InputError: an unknown activation, or sizes that do not fit together.
    """

    unordered: ClassVar[bool] = True
    weighs: ClassVar[bool] = True

    def __init__(
        self,
        *,
        width: int,
        grid: tuple[int, int],
        heads: int = 1,
        branches: int = 1,
        hidden: int = 256,
        layers: int = 0,
        features: int = 0,
        activation: Activation = "gelu",
        norm: bool = True,
        epsilon: float = 1e-5,
        dtype: DTypeLike,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        check_choice("pool gated_attention", "activation", activation, ACTIVATIONS)
        if min(heads, branches, hidden) < 1 or min(layers, features) < 0:
            raise InputError(
                f"pool gated_attention: heads {heads}, branches {branches}, hidden {hidden}, "
                f"layers {layers}, features {features}; expected at least 1, of layers and "
                "features 0"
            )
        if not layers and (features or width % heads):
            raise InputError(
                f"pool gated_attention: heads {heads}, width {width}, features {features}, no "
                "layers; expected a width that is a multiple of heads, and features 0"
            )
        self.heads, self.layers, self.has_norm, self.activation = heads, layers, norm, activation
        inner = (features or width) if layers else width // heads
        size = width
        for index in range(layers):
            out = inner * heads if index == layers - 1 else inner
            axes = ("embed", "mlp") if index % 2 == 0 else ("mlp", "embed")
            layer = dense(size, out, axes, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
            setattr(self, f"layer_{index:02d}", layer)
            if norm:
                made = LayerNorm(out, epsilon=epsilon, param_dtype=param_dtype, rngs=rngs)
                setattr(self, f"norm_{index:02d}", made)
            size = out
        self.width = branches * inner * heads
        numbers: dict[str, Any] = {"param_dtype": param_dtype, "rngs": rngs}
        self.content = PerHead(heads, inner, hidden, ("embed", "mlp"), **numbers)
        self.gate = PerHead(heads, inner, hidden, ("embed", "mlp"), **numbers)
        self.score = PerHead(heads, hidden, branches, ("mlp", None), **numbers)

    def __call__(
        self,
        regions: jax.Array,
        mask: jax.Array | None = None,
        grid: tuple[int, int] | None = None,
    ) -> jax.Array:
        """See Pooler."""
        x = self._by_head(cleared(regions, mask))
        weights = self._weights(x, mask).astype(x.dtype)
        return jnp.einsum("nhkr,nrhc->nkch", weights, x).reshape(x.shape[0], self.width)

    def scores(self, regions: jax.Array) -> jax.Array:
        """What the softmax is taken of: regions [N, R, width] -> f32[N, heads, branches, R]."""
        return self._scores(self._by_head(regions))

    def weights(self, regions: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """The share of each element, the mean over heads and branches.

        regions [N, R, width], mask bool[N, R] -> f32[N, R].
        """
        x = self._by_head(cleared(regions, mask))
        return self._weights(x, mask).mean(axis=(1, 2))

    def _by_head(self, x: jax.Array) -> jax.Array:
        """[N, R, width] -> [N, R, heads, features of a head], after the layers."""
        for index in range(self.layers):
            x = getattr(self, f"layer_{index:02d}")(x)
            x = getattr(self, f"norm_{index:02d}")(x) if self.has_norm else x
            x = ACTIVATIONS[self.activation](x)
        return jnp.swapaxes(x.reshape(*x.shape[:2], -1, self.heads), -1, -2)

    def _scores(self, x: jax.Array) -> jax.Array:
        gated = jnp.tanh(self.content(x)) * jax.nn.sigmoid(self.gate(x))
        return self.score(gated).transpose(0, 2, 3, 1).astype(jnp.float32)  # N heads branches R

    def _weights(self, x: jax.Array, mask: jax.Array | None) -> jax.Array:
        return shares(self._scores(x), None if mask is None else mask[:, None, None])
