"""Convolutions that turn pixels into the patches of a vision transformer."""

import jax
from flax import nnx
from jax.typing import DTypeLike

from mmrl.models.image.resnet import conv
from mmrl.models.layers import LayerNorm, dense
from mmrl.types import InputError


class ConvolutionStem(nnx.Module):
    """Convolutions of stride 2, each followed by a norm and ReLU, then one linear layer.

    "Early convolutions help transformers see better" (Xiao et al. 2021, section 3), with two
    differences. Layer norm over the features of each place, instead of batch norm, keeps images
    independent of each other, and places too: with group norm every place would know the statistics
    of the whole image, and a local loss can then be won at any of them. Kernels are 4x4 instead of
    3x3, because a 3x3 window of stride 2 is centred on the first of its two
    pixels: after three of them, a feature would be that of a place half a patch up and left.
    With n = log2(patch_size) convolutions, the last one has `width` features and each of the others
    half of the next one's.

    Args:
      channels: of the image. width: features of a patch. patch_size: a power of two, at least 2.

    Raises:
      InputError: another patch size, or a width that n - 1 halvings do not divide.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        patch_size: int,
        *,
        dtype: DTypeLike,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        count = patch_size.bit_length() - 1
        if count < 1 or patch_size != 2**count or width % 2 ** (count - 1):
            raise InputError(
                f"stem convolution: patch_size {patch_size}, width {width}; expected a power of "
                "two, at least 2, and a width that patch_size / 2 divides"
            )
        self.count = count
        features = channels
        for index in range(count):
            out = width // 2 ** (count - 1 - index)
            layer = conv(
                features, out, 4, 2, padding=1, dtype=dtype, param_dtype=param_dtype, rngs=rngs
            )
            setattr(self, f"conv_{index}", layer)
            setattr(self, f"norm_{index}", LayerNorm(out, param_dtype=param_dtype, rngs=rngs))
            features = out
        self.out = dense(
            width, width, ("patch", "embed"), dtype=dtype, param_dtype=param_dtype, rngs=rngs
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, H, W, channels] -> [B, H / patch_size, W / patch_size, width]."""
        for index in range(self.count):
            x = getattr(self, f"conv_{index}")(x)
            x = jax.nn.relu(getattr(self, f"norm_{index}")(x))
        return self.out(x)
