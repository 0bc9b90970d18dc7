"""Held-out examples whose images are corrupted, for curves of a measure against the strength.

Corruptions are applied to the preprocessed image, before it is encoded. Each is deterministic: its
random numbers depend on the seed and the id of the example. A strength is from 0, which changes
nothing, to 1.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from mmrl import build
from mmrl.evaluators import statistics
from mmrl.evaluators.base import HeldOut
from mmrl.types import InputError


def noise(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Adds Gaussian noise whose deviation is `strength` times the greatest grey level, 255."""
    return _levels(image + 255 * strength * rng.standard_normal(image.shape))


def blur(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Blurs by a Gaussian whose deviation is `strength` times a tenth of the longer side."""
    if not strength:
        return image
    deviation = strength * max(image.shape[:2]) / 10
    return cv2.GaussianBlur(image, (0, 0), deviation).reshape(image.shape)


def occlusion(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Covers a share `strength` of the area by a rectangle of the mean grey level.

    The rectangle has the proportions of the image and lies anywhere within it.
    """
    height, width = (round(side * strength**0.5) for side in image.shape[:2])
    top = int(rng.integers(image.shape[0] - height + 1))
    left = int(rng.integers(image.shape[1] - width + 1))
    covered = image.copy()
    covered[top : top + height, left : left + width] = np.round(image.mean(axis=(0, 1)))
    return covered


def contrast(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Multiplies the differences from the mean grey level by 1 - `strength`."""
    mean = image.mean(axis=(0, 1))
    return _levels(mean + (1 - strength) * (image - mean))


def _levels(image: np.ndarray) -> np.ndarray:
    return np.clip(np.round(image), 0, 255).astype(np.uint8)


# (u8[H, W, C], strength, random numbers) -> u8[H, W, C]
KINDS: dict[str, Callable[[np.ndarray, float, np.random.Generator], np.ndarray]] = {
    "noise": noise,
    "blur": blur,
    "occlusion": occlusion,
    "contrast": contrast,
}


class Corrupted(statistics.Subset):
    """A held-out set with corrupted images, as a `HeldOut` with its own digest.

    Args:
      kind: of `KINDS`. strength: from 0 to 1. seed: of the random numbers.

    Raises:
      InputError: an unknown kind, or a strength out of range.
    """

    def __init__(self, data: HeldOut, kind: str, strength: float, *, seed: int = 0) -> None:
        if kind not in KINDS:
            raise InputError(build.unknown("corruption", kind, KINDS))
        if not 0 <= strength <= 1:
            raise InputError(f"the strength of {kind} is {strength}, expected a number from 0 to 1")
        super().__init__(data, range(len(data)))
        self._kind, self._strength, self._seed = kind, float(strength), seed
        stated = {"kind": kind, "strength": self._strength, "seed": seed}
        self.preprocessing = {**data.preprocessing, "corruption": stated}
        written = json.dumps(stated, sort_keys=True)
        self.sha256, self.items_sha256 = (
            hashlib.sha256((digest + written).encode()).hexdigest()
            for digest in (data.sha256, data.items_sha256)
        )

    def arrays(
        self, names: Sequence[str], rows: Sequence[int], tower: str = ""
    ) -> Mapping[str, np.ndarray]:
        """As in `HeldOut`; arrays named "pixels" are corrupted."""
        made = dict(super().arrays(names, rows, tower))
        for name in made:
            if name.endswith(".pixels"):
                pairs = zip(made[name], rows, strict=True)
                made[name] = np.stack([self._corrupt(image, row) for image, row in pairs])
        return made

    def pixels(self, encoding: str, rows: Sequence[int]) -> np.ndarray | None:
        """As in `HeldOut`, corrupted as the arrays are."""
        found = super().pixels(encoding, rows)
        if found is None:
            return None
        return np.stack([self._corrupt(one, row) for one, row in zip(found, rows, strict=True)])

    def image(self, index: int) -> np.ndarray:
        """u8[H, W, C] of an example, corrupted as its arrays are."""
        return self._corrupt(super().image(index), index)

    def _corrupt(self, image: np.ndarray, row: int) -> np.ndarray:
        # Not of the input's name, so that all ways to ask for an image give the same one.
        rng = statistics.generator(self._seed, "corruption", self._kind, self.ids[row])
        return KINDS[self._kind](image, self._strength, rng)


def chosen(given: Mapping[str, Any] | None, *, where: str) -> list[tuple[str, float]]:
    """(kind, strength) pairs of an option that maps kinds to strengths.

    Args:
      where: the option, for messages.

    Raises:
      InputError: an unknown kind, or strengths that are not numbers from 0 to 1.
    """
    pairs = []
    for kind, strengths in given.items() if given else ():
        if kind not in KINDS:
            raise InputError(build.unknown(f"corruption in {where}", kind, KINDS))
        listed = strengths if isinstance(strengths, Sequence) else (strengths,)
        for one in listed:
            if not isinstance(one, int | float) or not 0 <= one <= 1:
                raise InputError(f"{where}.{kind} holds {one!r}; expected numbers from 0 to 1")
            pairs.append((kind, float(one)))
    return pairs


def curve_name(kind: str, strength: float) -> str:
    """The name of a point of a curve, such as "noise=0.1"."""
    return f"{kind}={strength:g}"
