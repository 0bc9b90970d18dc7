"""Image towers: pixels to an embedding and the regions of the image."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from mmrl import streams
from mmrl.models.layers import ImageEncoder
from mmrl.models.towers.base import Arrays
from mmrl.models.towers.sets import SetTower
from mmrl.types import InputError

PATCHES = {"kept": ("chooses", ""), "hidden": ("hides", ", with mask_token")}
"""Arrays about patches -> what an input does by them, and the option that an encoder needs."""


class Image(SetTower):
    """A tower whose inputs have pixels u8[B, H, W, C], or u8[B, S, H, W, C]; C is `channels`.

    Every input takes a pass of its own, so batch norm sees the images of one input at a time; of a
    set it sees the elements that its mask marks. H and W are those of the input. An input may have
    arrays `kept`, i32[B, P'] or i32[B, S, P'], the places of the patches to encode, row by row, and
    `hidden`, bool[B, P] or bool[B, S, P], the patches in whose place a learned token stands; of an
    encoder that takes them.

    Args:
      encoder, others: as of SetTower.
      size: side of the square images, in pixels.
      pixel_mean, pixel_std: pixels enter the encoder as (value / 255 - mean) / std; a number, or
        one for each channel of the encoder.

    Raises:
      InputError: a size below 1, a deviation that is not above 0, numbers for other channels than
        the encoder has, or as of SetTower.
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
            if pixels.shape[-1] != self.channels:
                raise InputError(
                    f"input {name!r} has pixels of {pixels.shape[-1]} channels; expected "
                    f"{self.channels}, as the image tower; see config.data.colour"
                )
            pixels = (pixels - _by_channel(self.pixel_mean)) / _by_channel(self.pixel_std)
            own = None if key is None else streams.fold(key, name)
            given = {"present": arrays.get("present")}
            mask = arrays.get("mask") if pixels.ndim == 5 else None
            if pixels.ndim == 5:
                given["present"] = _element_present(given["present"], mask, pixels.shape[1])
            for array, (does, expected) in PATCHES.items():
                if array in arrays:
                    given[array] = arrays[array]
                    if not getattr(self.encoder, f"takes_{array}", False):
                        raise InputError(
                            f"input {name!r} {does} patches, which {type(self.encoder).__name__} "
                            f"does not take; expected an encoder such as vit{expected}"
                        )
            encoded[name] = self._encoded(
                pixels, 4, features, mask=mask, train=train, key=own, **given
            )
        return encoded


def _plain(given: float | Sequence[float]) -> float | tuple[float, ...]:
    return tuple(map(float, given)) if isinstance(given, Sequence) else given


def _by_channel(given: float | tuple[float, ...]) -> float | np.ndarray:
    """A number as it is; numbers as f32[1, 1, 1, C]."""
    return np.asarray(given, np.float32)[None, None, None] if isinstance(given, tuple) else given


def _element_present(
    present: jax.Array | None, mask: jax.Array | None, count: int
) -> jax.Array | None:
    """present bool[B] and mask bool[B, S] -> bool[B, S], the elements that are there; None: all."""
    if present is None:
        return mask
    repeated = jnp.repeat(present[:, None], count, axis=1)
    return repeated if mask is None else repeated & mask
