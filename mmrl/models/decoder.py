"""A light decoder from the regions of an image to maps of its labels."""

import functools

import jax
from flax import nnx

from mmrl.models.layers import check_choice

KINDS = ("convolutional", "linear")


class Decoder(nnx.Module):
    """Regions to logits of masks.

    kind "convolutional": a linear layer to `width` features, then twice: to twice the grid by
    bilinear interpolation, a 3x3 convolution, group norm and ReLU; then a linear layer. kind
    "linear": one linear layer, so that every region is classified alone. The logits are
    interpolated to the size of the image, where regions and pixels share their outer edges.

    Args:
      in_features: of a region. labels: number of maps.
      grid: rows and columns of the regions. size: rows and columns of the maps.
      kind: of the decoder. width: of its features.

    Raises:
      InputError: another kind.
    """

    def __init__(
        self,
        in_features: int,
        labels: int,
        *,
        grid: tuple[int, int],
        size: tuple[int, int],
        kind: str = "convolutional",
        width: int = 64,
        rngs: nnx.Rngs,
    ) -> None:
        check_choice("Decoder", "kind", kind, KINDS)
        self.grid, self.size, self.kind = grid, size, kind
        if kind == "convolutional":
            conv = functools.partial(nnx.Conv, width, width, (3, 3), use_bias=False, rngs=rngs)
            norm = functools.partial(nnx.GroupNorm, width, num_groups=_groups(width), rngs=rngs)
            self.project = nnx.Linear(in_features, width, rngs=rngs)
            self.conv_0, self.norm_0 = conv(), norm()
            self.conv_1, self.norm_1 = conv(), norm()
            in_features = width
        self.out = nnx.Linear(in_features, labels, rngs=rngs)

    def __call__(self, regions: jax.Array) -> jax.Array:
        """regions f32[B, R, in_features], row by row -> logits f32[B, H, W, labels]."""
        x = regions.reshape(len(regions), *self.grid, -1)
        if self.kind == "convolutional":
            x = self.project(x)
            for conv, norm in ((self.conv_0, self.norm_0), (self.conv_1, self.norm_1)):
                x = _resized(x, 2 * x.shape[1], 2 * x.shape[2])
                x = jax.nn.relu(norm(conv(x)))
        return _resized(self.out(x), *self.size)


def _resized(x: jax.Array, height: int, width: int) -> jax.Array:
    """f32[B, h, w, C] -> f32[B, height, width, C]; bilinear."""
    return jax.image.resize(x, (len(x), height, width, x.shape[-1]), "bilinear", antialias=False)


def _groups(width: int) -> int:
    """The number of groups of group norm: the greatest up to 8 that divides the width."""
    return max(n for n in range(1, 9) if width % n == 0)
