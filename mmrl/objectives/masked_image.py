"""Reconstruction of the removed patches of an image.

He et al. 2022 (MAE); as other targets, the Fourier spectrum (Juyal et al. 2024, PLUTO) and the
encoding of the patch among those of others (Shi et al. 2021, DCVLP).
"""

import functools
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp

from mmrl.objectives.base import Context, Objective, check_present, require
from mmrl.types import InputError, Loss, Metrics
from mmrl.vectors import l2_normalize


def patchify(image: jax.Array, patch_size: int) -> jax.Array:
    """Image [B, H, W, C] -> patches [B, P, patch_size^2 C], row by row.

    Within a patch the order is pixel row, pixel column, channel (MAE).

    Raises:
      ValueError: height or width is no multiple of `patch_size`.
    """
    require(
        image.ndim == 4 and not any(side % patch_size for side in image.shape[1:3]),
        f"image must be [B, H, W, C] with sides that are multiples of {patch_size}, got "
        f"{image.shape}",
    )
    size, height, width, channels = image.shape
    rows, columns = height // patch_size, width // patch_size
    split = image.reshape(size, rows, patch_size, columns, patch_size, channels)
    return split.transpose(0, 1, 3, 2, 4, 5).reshape(size, rows * columns, -1)


def unpatchify(patches: jax.Array, patch_size: int, grid: tuple[int, int]) -> jax.Array:
    """Patches [B, P, patch_size^2 C] -> image [B, H, W, C]: the inverse of `patchify`.

    Args:
      grid: rows and columns of patches.
    """
    rows, columns = grid
    require(
        patches.ndim == 3 and patches.shape[1] == rows * columns,
        f"patches must be [B, {rows * columns}, N], got {patches.shape}",
    )
    split = patches.reshape(len(patches), rows, columns, patch_size, patch_size, -1)
    joined = split.transpose(0, 1, 3, 2, 4, 5)
    return joined.reshape(len(patches), rows * patch_size, columns * patch_size, -1)


def random_masking(noise: jax.Array, ratio: float) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Chooses the patches that are kept: those with the smallest noise (MAE, random_masking).

    Args:
      noise: f[B, P]. ratio: share of patches that are removed, at least 0 and below 1.

    Returns:
      kept i32[B, int(P (1 - ratio))], places of the kept patches in the order of their noise; mask
      f32[B, P], 1: removed; restore i32[B, P], the place of each patch in the order of the noise.
    """
    require(
        noise.ndim == 2 and 0 <= ratio < 1,
        f"noise must be [B, P] and ratio from 0 to below 1, got {noise.shape}, {ratio}",
    )
    count = int(noise.shape[1] * (1 - ratio))
    order = jnp.argsort(noise, axis=1).astype(jnp.int32)
    restore = jnp.argsort(order, axis=1).astype(jnp.int32)
    return order[:, :count], (restore >= count).astype(jnp.float32), restore


def patch_targets(image: jax.Array, patch_size: int, *, normalise: bool = True) -> jax.Array:
    """The pixels of each patch, f32[B, P, patch_size^2 C], without a gradient.

    With `normalise`, less their mean and divided by sqrt(variance + 1e-6), where the variance is
    the unbiased one (MAE, section 4.1 and the released code).

    Raises:
      ValueError: patches of a single value, which have no unbiased variance.
    """
    patches = patchify(jnp.asarray(image), patch_size).astype(jnp.float32)
    if normalise:
        require(
            patches.shape[2] > 1, "patches of a single value cannot be normalised; normalise=False"
        )
        mean = patches.mean(axis=2, keepdims=True)
        variance = patches.var(axis=2, ddof=1, keepdims=True)
        patches = (patches - mean) * jax.lax.rsqrt(variance + 1e-6)
    return jax.lax.stop_gradient(patches)


def masked_image_loss(
    prediction: jax.Array,
    image: jax.Array,
    mask: jax.Array,
    *,
    patch_size: int,
    normalise: bool = True,
    present: jax.Array | None = None,
) -> jax.Array:
    """Mean squared error of the removed patches (MAE, section 3).

    One mean over all removed patches of the batch; an image with more of them counts more.

    Args:
      prediction: f[B, P, patch_size^2 C], see `patchify` for the order.
      image: [B, H, W, C]; no gradient. mask: [B, P], 1 or True: removed.
      patch_size: in pixels. normalise: see `patch_targets`.
      present: bool[B], the rows that have all inputs; None: all.

    Returns:
      f32[]; 0 if nothing is removed.

    Raises:
      ValueError: shapes that do not fit.
    """
    target, mask = _targets(prediction, image, mask, patch_size, normalise, present)
    return _mean(jnp.mean(_difference(prediction, target, mask) ** 2, axis=2), mask)


def fourier_loss(
    prediction: jax.Array,
    image: jax.Array,
    mask: jax.Array,
    *,
    patch_size: int,
    radius: float = 0.25,
    low: float = 1.0,
    high: float = 1.0,
    normalise: bool = True,
    present: jax.Array | None = None,
) -> jax.Array:
    """Squared error of the spectrum of the reconstructed image, by bands of frequency.

    After the Fourier loss of Juyal et al. 2024 (PLUTO), which weighs low and high frequencies; its
    exact form is not published. Here the image with its removed patches reconstructed is compared
    with the image itself: the squared error of each coefficient of their two-dimensional Fourier
    transforms is multiplied by the weight of its band. Where both weights are 1, the result is that
    of `masked_image_loss`, by Parseval's theorem.

    Args:
      prediction, image, mask, patch_size, normalise, present: see `masked_image_loss`.
      radius: greatest frequency of the low band, in cycles per pixel; 0.5 is the greatest along an
        axis.
      low, high: weights of the bands.

    Returns:
      f32[]; 0 if nothing is removed.

    Raises:
      ValueError: shapes that do not fit.
    """
    target, mask = _targets(prediction, image, mask, patch_size, normalise, present)
    height, width = image.shape[1:3]
    grid = (height // patch_size, width // patch_size)
    error = unpatchify(_difference(prediction, target, mask), patch_size, grid)
    spectrum = jnp.fft.fft2(error, axes=(1, 2), norm="ortho")
    frequency = jnp.hypot(jnp.fft.fftfreq(height)[:, None], jnp.fft.fftfreq(width))
    weight = jnp.where(frequency <= radius, jnp.float32(low), jnp.float32(high))[..., None]
    squared = jnp.real(spectrum) ** 2 + jnp.imag(spectrum) ** 2
    values = target.shape[2]
    return jnp.sum(weight * squared) / (values * jnp.maximum(mask.sum(dtype=jnp.float32), 1.0))


def masked_region_loss(
    prediction: jax.Array,
    target: jax.Array,
    mask: jax.Array,
    scale: jax.Array | float,
    *,
    present: jax.Array | None = None,
) -> jax.Array:
    """Tells the encoding of each removed patch from those of all others of the batch.

    Cross-entropy of scale * cos(prediction of a removed patch, target of any patch), with the
    target of the same patch as the right one (Shi et al. 2021, DCVLP, section 3.3, one direction).

    Args:
      prediction: f[B, P, D]. target: f[B, P, D], encodings of the whole image; no gradient. Neither
        has to be normalised.
      mask: bool[B, P], True: removed.
      scale: f32[], the inverse temperature itself, not its logarithm.
      present: bool[B], the rows that have all inputs; None: all.

    Returns:
      f32[], the mean over all removed patches; 0 if there are none.

    Raises:
      ValueError: shapes that do not fit.
    """
    logits, mask = masked_region_logits(prediction, target, mask, scale, present=present)
    right = jnp.diagonal(logits)
    return _mean(jax.nn.logsumexp(logits, axis=1) - right, mask.reshape(-1))


def masked_region_logits(
    prediction: jax.Array,
    target: jax.Array,
    mask: jax.Array,
    scale: jax.Array | float,
    *,
    present: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """(logits f32[BP, BP] of predictions against targets, bool[B, P]: which patches count)."""
    require(
        prediction.ndim == 3
        and prediction.shape == target.shape
        and mask.shape == prediction.shape[:2],
        f"prediction and target must be [B, P, D] and mask [B, P], got {prediction.shape}, "
        f"{target.shape}, {mask.shape}",
    )
    size, count, width = prediction.shape
    present, mask = check_present(present, size), jnp.asarray(mask).astype(bool)
    target = jax.lax.stop_gradient(jnp.asarray(target))
    if present is not None:
        mask &= present[:, None]
        target = jnp.where(present[:, None, None], target, jnp.zeros((), target.dtype))
    kept = jnp.asarray(prediction)
    kept = jnp.where(mask[..., None], kept, jnp.zeros((), kept.dtype))
    one, two = (l2_normalize(x.reshape(-1, width)) for x in (kept, target))
    logits = jnp.float32(scale) * jnp.einsum("id,jd->ij", one, two)
    if present is not None:
        places = jnp.repeat(present, count)
        logits = jnp.where(places[None, :] | ~places[:, None], logits, -jnp.inf)
    return logits, mask


def _targets(
    prediction: jax.Array,
    image: jax.Array,
    mask: jax.Array,
    patch_size: int,
    normalise: bool,
    present: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    """(targets f32[B, P, N], mask bool[B, P] without the rows that are not present), checked."""
    target = patch_targets(image, patch_size, normalise=normalise)
    require(
        prediction.shape == target.shape and mask.shape == target.shape[:2],
        f"prediction must be {target.shape} and mask {target.shape[:2]}, got {prediction.shape}, "
        f"{mask.shape}",
    )
    present, mask = check_present(present, len(target)), jnp.asarray(mask).astype(bool)
    return target, mask if present is None else mask & present[:, None]


def _difference(prediction: jax.Array, target: jax.Array, mask: jax.Array) -> jax.Array:
    """prediction - target f32[B, P, N] in the removed patches, whatever the others hold; else 0."""
    removed = mask[..., None]
    prediction = jnp.where(removed, jnp.asarray(prediction), jnp.zeros((), prediction.dtype))
    return prediction.astype(jnp.float32) - jnp.where(removed, target, 0.0)


def _mean(losses: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean of f32[...] over the places bool[...]."""
    total = jnp.sum(jnp.where(mask, losses, 0.0))
    return total / jnp.maximum(mask.sum(dtype=jnp.float32), 1.0)


class MaskedImage(Objective):
    """`masked_image_loss`, and optionally `fourier_loss`, of what a decoder makes of kept patches.

    `mmrl.models.fusion.patch_decoder` is such a decoder. Pixels are divided by 255. Metrics:
    `pixels` and `fourier`, the two losses; `explained`, 1 - error / variance, where the variance is
    that of the targets about their mean over all removed patches of the batch. It is 0 for a
    decoder that always returns the mean patch, and 1 for a perfect one.

    Args:
      patch_size: side of a patch, in pixels.
      normalise: whether the pixels of each patch are normalised, see `patch_targets`.
      pixels: weight of the loss of pixels.
      fourier: weight of the loss of the spectrum.
      radius: greatest frequency of the low band of the spectrum, in cycles per pixel.
      low: weight of the low band.
      high: weight of the high band.

    Raises:
      InputError: a number out of range.
    """

    reads: ClassVar[Mapping[str, str]] = {"prediction": "decoder.patches"}
    batch: ClassVar[Mapping[str, str]] = {"image": "image.pixels", "mask": "patches.mask"}

    def __init__(
        self,
        *,
        patch_size: int,
        normalise: bool = True,
        pixels: float = 1.0,
        fourier: float = 0.0,
        radius: float = 0.25,
        low: float = 1.0,
        high: float = 1.0,
    ) -> None:
        numbers = {"pixels": pixels, "fourier": fourier, "radius": radius, "low": low, "high": high}
        if patch_size < 1 or min(numbers.values()) < 0 or not max(pixels, fourier):
            found = ", ".join(f"{name} {value}" for name, value in numbers.items())
            raise InputError(
                f"MaskedImage: patch_size {patch_size}, {found}; expected at least 1, no negative "
                "number, and pixels or fourier above 0"
            )
        self.patch_size, self.normalise = patch_size, normalise
        self.pixels, self.fourier = float(pixels), float(fourier)
        self.spectrum = functools.partial(fourier_loss, radius=radius, low=low, high=high)

    def __call__(
        self, *, context: Context, prediction: jax.Array, image: jax.Array, mask: jax.Array
    ) -> Loss:
        """Compares removed patches.

        Args:
          prediction: f[B, P, patch_size^2 C]. image: u8[B, H, W, C]. mask: bool[B, P], True:
            removed.
        """
        image = image.astype(jnp.float32) / 255.0
        target, removed = _targets(
            prediction, image, mask, self.patch_size, self.normalise, context.present
        )
        of_pixels, of_spectrum = (
            functools.partial(loss, patch_size=self.patch_size, normalise=self.normalise)
            for loss in (masked_image_loss, self.spectrum)
        )
        count = removed.sum(dtype=jnp.float32)
        error = of_pixels(prediction, image, removed)
        metrics: Metrics = {"pixels": (error * count, count)}
        value = self.pixels * error
        if self.fourier:
            term = of_spectrum(prediction, image, removed)
            value += self.fourier * term
            metrics["fourier"] = (term * count, count)
        kept = jnp.where(removed[..., None], target, 0.0)
        mean = kept.sum(axis=(0, 1)) / jnp.maximum(count, 1.0)
        variance = _mean(jnp.mean((target - mean) ** 2, axis=2), removed)
        explained = 1.0 - jax.lax.stop_gradient(error) / jnp.maximum(variance, 1e-12)
        metrics |= {"loss": (value * count, count), "explained": (explained * count, count)}
        return Loss(value, metrics)
