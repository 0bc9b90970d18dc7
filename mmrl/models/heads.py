"""Heads that project encoder features into the joint embedding space."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from mmrl import build
from mmrl.models.layers import ACTIVATIONS, Activation, LayerNorm, check_choice, dense, flatten
from mmrl.types import InputError
from mmrl.vectors import l2_normalize

# Kind -> its options.
KINDS: dict[str, tuple[str, ...]] = {
    "linear": (),
    "affine": (),
    "normed": ("epsilon",),
    "mlp": ("hidden", "bias", "activation", "norm", "epsilon"),
    "identity": (),
    "prototypes": ("hidden", "bottleneck"),
}

# Options of Projection that the owner of a head fills in.
_SUPPLIED = ("dtype", "param_dtype", "rngs")


class Projection(nnx.Module):
    """[..., in_features] -> [..., out_features].

    Args:
      in_features, out_features: of the projection.
      kind: linear (one linear layer without bias), affine (the same with bias), normed (layer norm,
        then affine), mlp (linear, activation, linear), identity (no parameters; the encoder has as
        many features as the head) or prototypes (Caron et al. 2021, DINO, section 3.1: three linear
        layers with activations between them, then the cosines with as many learned vectors as the
        head has features).
      hidden: of an mlp and of prototypes: features between layers; 0: in_features.
      bottleneck: of prototypes: features that are compared by their cosine, 256 in DINO.
      bias: of an mlp: whether its linear layers have biases.
      activation: of an mlp: gelu (exact), gelu_tanh, quick_gelu, silu or relu.
      norm: of an mlp: whether a layer norm follows the activation.
      epsilon: added to the variance by the layer norm of a normed head or an mlp.

    Raises:
      InputError: an unknown kind or activation, or an identity between different numbers of
        features.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        kind: str = "linear",
        hidden: int = 0,
        bottleneck: int = 256,
        bias: bool = True,
        activation: Activation = "gelu",
        norm: bool = False,
        epsilon: float = 1e-6,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        check_choice("Projection", "kind", kind, KINDS)
        check_choice("Projection", "activation", activation, ACTIVATIONS)
        if kind == "identity" and in_features != out_features:
            raise InputError(
                f"Projection: identity of {out_features} features; expected {in_features}, those "
                "of the encoder"
            )
        self.kind, self.activation, self.out_features = kind, activation, out_features
        make = functools.partial(dense, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        make_norm = functools.partial(
            LayerNorm, epsilon=epsilon, param_dtype=param_dtype, rngs=rngs
        )
        if bottleneck < 1:
            raise InputError(f"Projection: bottleneck {bottleneck}; expected at least 1")
        self.has_norm = kind == "normed" or norm
        if kind == "mlp":
            hidden = hidden or in_features
            self.wide = make(in_features, hidden, ("embed", "mlp"), use_bias=bias)
            if norm:
                self.norm = make_norm(hidden)
            self.out = make(hidden, out_features, ("mlp", "joint"), use_bias=bias)
        elif kind == "prototypes":
            hidden = hidden or in_features
            self.wide = make(in_features, hidden, ("embed", "mlp"))
            self.middle = make(hidden, hidden, ("mlp", "embed"))
            self.narrow = make(hidden, bottleneck, ("embed", "mlp"))
            self.out = make(bottleneck, out_features, ("mlp", "joint"), use_bias=False)
        elif kind != "identity":
            if kind == "normed":
                self.norm = make_norm(in_features)
            self.out = make(
                in_features, out_features, ("embed", "joint"), use_bias=kind != "linear"
            )

    def __call__(self, x: jax.Array) -> jax.Array:
        """x [..., in_features] -> [..., out_features] in the compute dtype."""
        if self.kind == "identity":
            return x
        rows = flatten(x)
        if self.kind == "prototypes":
            for layer in (self.wide, self.middle):
                rows = ACTIVATIONS[self.activation](layer(rows))
            kernel = self.out.kernel[...]
            made = l2_normalize(self.narrow(rows)) @ l2_normalize(kernel.T).T
            return made.astype(x.dtype).reshape(*x.shape[:-1], -1)
        if self.kind == "mlp":
            rows = ACTIVATIONS[self.activation](self.wide(rows))
        if self.has_norm:
            rows = self.norm(rows)
        return self.out(rows).reshape(*x.shape[:-1], -1)


def make_head(
    where: str,
    given: Any,
    *,
    kind: str,
    of: tuple[str, ...],
    width_of: Callable[[str], int | None],
    local: str,
    dtype: DTypeLike,
    param_dtype: DTypeLike,
    rngs: Callable[[], nnx.Rngs],
) -> tuple[Projection, str]:
    """A head as a config gives it.

    Args:
      where: names the head in messages.
      given: number of features, or a mapping with the keys width, kind, options of that kind, and
        `of` where there is a choice.
      kind: of a head that states none.
      of: the features that it may start from, the default first.
      width_of: one of these -> its width; None: the owner cannot have this head.
      local: heads of local features that the owner may have, for the message.

    Returns:
      The head, and the feature that it starts from.

    Raises:
      InputError: an unknown kind, option or feature, no number of features, or a head that the
        owner cannot have.
    """
    # A ConfigDict is no Mapping.
    spec = dict(given.items()) if hasattr(given, "items") else {"width": given}
    spec.setdefault("kind", kind)
    check_choice(where, "kind", spec["kind"], KINDS)
    offered = ["kind", "width", *KINDS[spec["kind"]], *(["of"] if len(of) > 1 else [])]
    for option in spec:
        if option not in offered:
            raise InputError(f"{where}: {build.unknown('option', option, offered)}")
    start = spec.pop("of", of[0])
    check_choice(where, "of", start, of)
    out, width = spec.pop("width", 0), width_of(start)
    if type(out) is not int or out < 1 or width is None:
        raise InputError(
            f'{where}; expected a number of features, or {{"width": n, "kind": k}}; local heads: '
            f"{local or 'none'}"
        )
    build.check_options(where, Projection, spec, supplied=_SUPPLIED)
    numbers: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
    return Projection(width, out, **spec, **numbers, rngs=rngs()), start
