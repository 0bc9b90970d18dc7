"""Fits the parameters of an encoder to other sizes: of images, patches and texts, and channels."""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from mmrl.models import positions
from mmrl.types import InputError

Arrays = Mapping[str, np.ndarray]


def fitted(
    path: str,
    array: np.ndarray,
    given: Mapping[str, Any],
    wanted: Mapping[str, Any],
    *,
    antialias: bool = True,
) -> tuple[np.ndarray, str] | None:
    """A parameter for a tower of other sizes.

    Args:
      path: of the parameter within its tower, such as encoder/position.
      array: its value.
      given, wanted: options of the tower that it comes from, and of the one that it is for.
      antialias: how positions of patches are interpolated, see `positions.resampling`.

    Returns:
      The value, and a sentence about what was done; None where no rule applies.
    """
    if path == "encoder/position" and "length" in given:
        length = int(wanted["length"])
        if length > len(array):
            return None
        return array[:length], f"{length} of {len(array)} positions are kept"
    if not {"size", "patch_size"} <= given.keys() & wanted.keys():
        return None
    if path == "encoder/position":
        old, new = _side(given), _side(wanted)
        if old**2 != len(array):
            return None
        table = positions.resize_grid(array, (old, old), (new, new), antialias=antialias)
        return table, f"positions are interpolated from {old} x {old} to {new} x {new} patches"
    old, new = int(given["patch_size"]), int(wanted["patch_size"])
    channels = int(given.get("channels", 1))
    if path == "encoder/patch/kernel" and channels == int(wanted.get("channels", 1)):
        kernel = positions.resize_patch(array, old, new, channels)
        return kernel, f"patches are resampled from {old} to {new} pixels"
    return None


def changed(
    given: Mapping[str, Any],
    arrays: Arrays,
    changes: Mapping[str, Any],
    *,
    fold: str | None = None,
    antialias: bool = True,
) -> tuple[dict[str, Any], dict[str, np.ndarray], list[str]]:
    """A tower with other options.

    Args:
      given: its options. arrays: its parameters by full path.
      changes: options that change, of size, patch_size, length and channels.
      fold: how three channels become one, "sum" or "mean".
      antialias: as of `fitted`.

    Returns:
      The new options, the parameters that change, and a sentence about each.

    Raises:
      InputError: an encoder of one channel is to be folded.
    """
    wanted = {**given, **changes}
    found: dict[str, np.ndarray] = {}
    notes: list[str] = []
    unfolded = {**wanted, "channels": given["channels"]} if "channels" in given else wanted
    sizes = ("size", "patch_size", "length")
    differs = any(wanted.get(key) != given.get(key) for key in sizes)
    for full, array in arrays.items() if differs else ():
        made = fitted(full.split("/", 2)[2], array, given, unfolded, antialias=antialias)
        if made is not None and made[0].shape != array.shape:
            found[full] = made[0]
            notes.append(made[1])
    if fold is not None:
        if given.get("channels") != 3:
            raise InputError(f"an encoder of {given.get('channels', 1)} channels cannot be folded")
        options, folded, note = _folded({**arrays, **found}, wanted, fold)
        wanted |= options
        found |= folded
        notes.append(note)
    return wanted, found, notes


def _side(options: Mapping[str, Any]) -> int:
    return int(options["size"]) // int(options["patch_size"])


def _folded(
    arrays: Arrays, options: Mapping[str, Any], fold: str
) -> tuple[dict[str, Any], dict[str, np.ndarray], str]:
    """Options, parameters and a sentence of a tower whose first layer reads one channel."""
    mean, std = (_three(options.get(key, default)) for key, default in _PIXELS.items())
    (path,) = (path for path in arrays if path.split("/", 2)[2] in _STEMS)
    bias, statistics = path.removesuffix("kernel") + "bias", f"{path.removesuffix('/kernel')}_norm"
    how: Literal["sum", "mean"] = "mean" if fold == "mean" else "sum"
    made = positions.fold_channels(arrays[path], arrays.get(bias), how, mean, std)
    found = {path: made.kernel}
    if bias in arrays:
        found[bias] = made.bias
    else:  # a convolution before a batch norm, which subtracts its running mean
        found[f"{statistics}/mean"] = arrays[f"{statistics}/mean"] - made.bias
    kept = {"pixel_mean": made.mean, "pixel_std": made.std}
    note = f"three channels are folded to one by their {fold}"
    if bias not in arrays and len({*mean}) > 1:
        note += "; at the border of the image, where the convolution pads, this is not exact"
    return kept, found, note


_PIXELS = {"pixel_mean": 0.5, "pixel_std": 0.25}
_STEMS = ("encoder/patch/kernel", "encoder/stem/kernel")


def _three(value: Any) -> list[float]:
    return np.broadcast_to(np.asarray(value, np.float64), (3,)).tolist()
