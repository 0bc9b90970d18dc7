"""Image towers: pixels to an embedding and the regions of the image."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from mmrl import streams
from mmrl.models.layers import ImageEncoder
from mmrl.models.towers.base import Arrays, Tower
from mmrl.types import InputError


class Image(Tower):
    """A tower whose inputs have pixels u8[B, H, W, C].

    Every input takes a pass of its own, so batch norm sees the images of one input at a time. Grey
    pixels (C = 1) are repeated where the encoder takes images of several channels.

    Args:
      encoder, others: as of Tower.
      size: side of the square images, in pixels.
      pixel_mean, pixel_std: pixels enter the encoder as (value / 255 - mean) / std; a number, or
        one for each channel of the encoder.

    Raises:
      InputError: a size below 1, a deviation that is not above 0, numbers for other channels than
        the encoder has, or as of Tower.
    """

    input: ClassVar[str] = "image"

    def __init__(
        self,
        *,
        encoder: ImageEncoder,
        size: int,
        pixel_mean: float | Sequence[float] = 0.5,
        pixel_std: float | Sequence[float] = 0.25,
        **others: Any,
    ) -> None:
        if size < 1 or not np.all(np.asarray(pixel_std) > 0):
            raise InputError(
                f"image tower: size {size}, pixel_std {pixel_std}; expected size >= 1, "
                "pixel_std > 0"
            )
        self.channels = int(getattr(encoder, "channels", 1))
        for option, given in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std)):
            if np.shape(given) not in ((), (self.channels,)):
                raise InputError(
                    f"image tower: {option} {given}; expected a number, or {self.channels}, one "
                    "for each channel of the encoder"
                )
        super().__init__(encoder=encoder, **others)
        self.grid = encoder.grid
        # Tuples, because an array on a module would be part of its state.
        self.pixel_mean, self.pixel_std = _plain(pixel_mean), _plain(pixel_std)

    @staticmethod
    def encoder_options(given: Mapping[str, Any]) -> dict[str, Any]:
        """See Tower."""
        return {"image_size": given["size"]}

    @property
    def local(self) -> tuple[str, ...]:
        """See Tower."""
        return ("regions",)

    def __call__(
        self,
        inputs: Mapping[str, Arrays],
        wanted: Mapping[str, tuple[str, ...]],
        *,
        train: bool = False,
        key: jax.Array | None = None,
    ) -> dict[str, dict[str, jax.Array]]:
        """See Tower. Regions [B, R, D'] are in the compute dtype and not normalised."""
        encoded = {}
        for name, features in wanted.items():
            arrays = inputs[name]
            pixels = arrays["pixels"].astype(jnp.float32) / 255.0
            if pixels.shape[-1] == 1 and self.channels > 1:
                pixels = jnp.repeat(pixels, self.channels, axis=-1)
            pixels = (pixels - _by_channel(self.pixel_mean)) / _by_channel(self.pixel_std)
            own = None if key is None else streams.fold(key, name)
            present = arrays.get("present")
            found = self._encode(self.encoder, pixels, train=train, key=own, present=present)
            encoded[name] = self._pooled(found.pooled, features, found.local)
            if "regions" in features:
                encoded[name]["regions"] = self.heads["regions"](found.local)
        return encoded


def _plain(given: float | Sequence[float]) -> float | tuple[float, ...]:
    return tuple(map(float, given)) if isinstance(given, Sequence) else given


def _by_channel(given: float | tuple[float, ...]) -> float | np.ndarray:
    """A number as it is; numbers as f32[1, 1, 1, C]."""
    return np.asarray(given, np.float32)[None, None, None] if isinstance(given, tuple) else given
