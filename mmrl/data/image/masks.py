"""Masks of findings, stored as runs of pixels."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from mmrl.data.image.kinds import MAX_PIXELS
from mmrl.types import InputError


@dataclasses.dataclass(frozen=True)
class Mask:
    """A mask of the first image of a record.

    Attributes:
      label: name of the finding.
      height, width: in pixels, of the image as its owner distributes it.
      runs: start, length, start, length and so on. Starts are positions in column-major order: they
        count from 0 down the first column, then down the second.
    """

    label: str
    height: int
    width: int
    runs: tuple[int, ...]


def decode_mask(mask: Mask) -> np.ndarray:
    """The pixels of a mask, bool[H, W].

    Raises:
      InputError: runs that overlap, are empty, are not in order or leave the image.
    """
    pixels = mask.height * mask.width
    if not 0 < pixels <= MAX_PIXELS or len(mask.runs) % 2:
        raise InputError(
            f"mask of {mask.width} x {mask.height} pixels with {len(mask.runs)} numbers; expected"
            f" at most {MAX_PIXELS} pixels and pairs of start and length"
        )
    flat = np.zeros(pixels, bool)
    end = 0
    for start, length in zip(mask.runs[::2], mask.runs[1::2], strict=True):
        if start < end or length < 1 or start + length > pixels:
            raise InputError(f"mask run {start}+{length} overlaps, is empty or leaves the image")
        end = start + length
        flat[start:end] = True
    return flat.reshape(mask.width, mask.height).T


def encode_mask(label: str, pixels: np.ndarray) -> Mask:
    """The inverse of `decode_mask`: the runs of bool[H, W]."""
    flat = np.concatenate([[False], pixels.T.reshape(-1), [False]])
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    starts, ends = edges[::2], edges[1::2]
    runs = np.stack([starts, ends - starts], axis=1).reshape(-1)
    return Mask(label, pixels.shape[0], pixels.shape[1], tuple(int(value) for value in runs))


def decode_masks(masks: Sequence[Mask]) -> dict[str, np.ndarray]:
    """Label -> bool[H, W], the union of all masks of that label.

    Raises:
      InputError: see `decode_mask`; masks of a label that differ in size.
    """
    found: dict[str, np.ndarray] = {}
    for mask in masks:
        drawn = decode_mask(mask)
        earlier = found.get(mask.label)
        if earlier is not None and earlier.shape != drawn.shape:
            raise InputError(f"masks of {mask.label!r} differ in size")
        found[mask.label] = drawn if earlier is None else earlier | drawn
    return found
