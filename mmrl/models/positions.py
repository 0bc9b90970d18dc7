"""Fits pretrained parameters to another image size, patch size, text length or one grey channel.

All functions take and return NumPy arrays, compute in float64 and return the dtype of their input.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from mmrl.types import InputError


def resampling(old: int, new: int, *, antialias: bool = True) -> np.ndarray:
    """Weights f64[new, old] of a bicubic resize along one side; every row sums to 1.

    Sample i of a side lies at (i + 1/2) / samples of its length. The cubic kernel is that of Keys
    (1981, equation 4).

    Args:
      old, new: samples along the side.
      antialias: True: a = -1/2, stretched by old / new where samples become fewer; samples beyond
        the border do not count, as in Pillow and in timm. False: a = -3/4, four samples whatever
        the sizes; the border is repeated, as in PyTorch without antialiasing, in DINOv2 and
        in the vision models of transformers.
    """
    centre = (np.arange(new) + 0.5) * old / new - 0.5
    if antialias:
        distance = np.arange(old) - centre[:, None]
        weights = _cubic(distance / max(old / new, 1.0), -0.5)
        return weights / weights.sum(axis=1, keepdims=True)
    weights = np.zeros((new, old))
    for tap in range(-1, 3):
        at = np.floor(centre).astype(int) + tap
        weights[np.arange(new), np.clip(at, 0, old - 1)] += _cubic(at - centre, -0.75)
    return weights


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x**2 + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def resize_grid(
    table: np.ndarray, old: tuple[int, int], new: tuple[int, int], *, antialias: bool = True
) -> np.ndarray:
    """Bicubic interpolation of a position table to another grid of patches.

    Args:
      table: f[R, D], row by row, R = rows * columns of `old`; no position of a class token.
      old, new: (rows, columns).
      antialias: as of `resampling`: True as timm, False as DINOv2 and transformers.

    Returns:
      f[rows * columns of `new`, D]; the table itself where the grids are equal.

    Raises:
      InputError: a table of another size, or a grid without patches.
    """
    if table.ndim != 2 or len(table) != old[0] * old[1] or min(*old, *new) < 1:
        raise InputError(
            f"position table {table.shape} of {old[0]} x {old[1]} patches, for {new[0]} x {new[1]};"
            " expected a row for each patch, and at least one patch"
        )
    if old == new:
        return table
    rows, columns = (
        resampling(before, after, antialias=antialias)
        for before, after in zip(old, new, strict=True)
    )
    return _apply(rows, columns, table.reshape(*old, -1)).reshape(new[0] * new[1], -1)


def resize_patch(kernel: np.ndarray, old: int, new: int, channels: int) -> np.ndarray:
    """Resizes the kernel of a patch embedding by the pseudo-inverse (FlexiViT).

    A patch that is enlarged by the bicubic `resampling` B keeps its embedding exactly: the result
    is pinv(B^T) kernel (Beyer et al. 2023, "How to resize patch embeddings", who use a bilinear B;
    timm's is bicubic, as here). Where patches become smaller, the embedding of a resized patch is
    the best approximation in the mean over patches of white noise. The bias stays.

    Args:
      kernel: f[old * old * channels, width], rows in the order (row, column, channel).
      old, new: side of a patch in pixels.
      channels: of the image.

    Returns:
      f[new * new * channels, width]; the kernel itself where the sides are equal.

    Raises:
      InputError: a kernel of another size, or a side or channels below 1.
    """
    if kernel.ndim != 2 or len(kernel) != old**2 * channels or min(old, new, channels) < 1:
        raise InputError(
            f"patch kernel {kernel.shape} of {old} x {old} pixels and {channels} channels, for "
            f"{new} x {new}; expected a row for each value of a patch, and at least one pixel"
        )
    if old == new:
        return kernel
    inverse = np.linalg.pinv(resampling(old, new).T)  # new, old
    return _apply(inverse, inverse, kernel.reshape(old, old, -1)).reshape(new**2 * channels, -1)


def _apply(rows: np.ndarray, columns: np.ndarray, x: np.ndarray) -> np.ndarray:
    """rows f64[Y, r], columns f64[X, c], x f[r, c, D] -> f[Y, X, D]."""
    resized = np.einsum("yr,xc,rcd->yxd", rows, columns, x.astype(np.float64), optimize=True)
    return resized.astype(x.dtype)


def cut_positions(table: np.ndarray, length: int) -> np.ndarray:
    """The first `length` rows of a position table f[L, D] of tokens -> f[length, D].

    Raises:
      InputError: a length below 1, or more rows than there are. Positions that were never trained
        are not made up.
    """
    if not 1 <= length <= len(table):
        raise InputError(f"length {length} with {len(table)} positions; expected 1 to {len(table)}")
    return table[:length]


class Folded(NamedTuple):
    """A first layer of one grey channel, and how its pixels are normalised.

    Attributes:
      kernel: as the given one, with one channel.
      bias: f[width].
      mean, std: pixels enter the layer as (value / 255 - mean) / std.
    """

    kernel: np.ndarray
    bias: np.ndarray
    mean: float
    std: float


def fold_channels(
    kernel: np.ndarray,
    bias: np.ndarray | None,
    how: Literal["sum", "mean"],
    mean: Sequence[float],
    std: Sequence[float],
) -> Folded:
    """Folds the channels of a first layer into one.

    Three-channel encoders see a grey image g repeated, (g - mean_c) / std_c in channel c. With M
    and S the means of `mean` and `std`, the folded kernel is the sum over c of kernel_c S / std_c,
    and the bias takes up kernel_c (M - mean_c) / std_c summed over window and channels. So "sum"
    gives the layer the same output on (g - M) / S. "mean" divides both sums by the number of
    channels: the layer answers as to a single average channel, and less strongly.

    "sum" is exact without padding, as in the patches of a vision transformer. A padded convolution
    (the stem of a ResNet) pads channel c with its own mean, and the folded one with M: outputs
    whose window reaches over the border differ, unless all means are equal. A convolution without
    bias hands its bias on to the batch norm after it, by subtraction from its running mean.

    Args:
      kernel: f[patch * patch * C, width], rows in the order (row, column, channel), or of a
        convolution f[height, width, C, out].
      bias: f[width]; None: zeros.
      how: sum or mean.
      mean, std: of each of the C channels, where pixels range from 0 to 1.

    Raises:
      InputError: another `how`, numbers for other channels than the kernel has, or a deviation
        that is not above 0.
    """
    if how not in ("sum", "mean"):
        raise InputError(f"fold={how!r}; choices: sum, mean")
    count, axes = len(mean), kernel.ndim
    channels = kernel.shape[-2]
    fits = channels == count if axes == 4 else axes == 2 and count > 0 and channels % count == 0
    if not fits or len(std) != count or min(std) <= 0:
        raise InputError(
            f"kernel {kernel.shape} with mean {tuple(mean)} and std {tuple(std)}; expected "
            "[patch * patch * channels, width] or [height, width, channels, out], and a mean and a "
            "deviation above 0 for each channel"
        )
    means, stds = (np.asarray(given, np.float64) for given in (mean, std))
    each = kernel.reshape(-1, count, kernel.shape[-1]).astype(np.float64) / stds[:, None]
    share = 1.0 if how == "sum" else 1.0 / count
    one = each.sum(axis=1) * stds.mean() * share
    shift = np.einsum("pcw,c->w", each, means.mean() - means) * share
    shape = (*kernel.shape[:2], 1, kernel.shape[3]) if axes == 4 else one.shape
    return Folded(
        kernel=one.reshape(shape).astype(kernel.dtype),
        bias=(shift if bias is None else bias + shift).astype(kernel.dtype),
        mean=float(means.mean()),
        std=float(stds.mean()),
    )
