"""Procedural tiles of stained tissue, whose stain only colour tells.

`tile(seed, index)` draws what a tile shows and its report, `render` its image. A grey picture of
nuclei is drawn first; `stained` then gives every level the colour of the stain that has this level
as its luma. So the tiles of both stains are equal in grey, pixel by pixel. Stains resemble
haematoxylin (purple) and eosin (pink). Results depend on seed, index and size only.
"""

import dataclasses
import functools
import itertools
import math
import types
from collections.abc import Mapping

import cv2
import numpy as np

from mmrl.data.image.images import luma
from mmrl.data.phantom.dice import Dice, stream

STAINS = ("purple", "pink")
PATTERNS = ("sparse", "crowded")
SHAPES = ("round", "elongated")
LABELS = (
    *(f"{stain} stain" for stain in STAINS),
    *(f"{pattern} pattern" for pattern in PATTERNS),
    *(f"{shape} shape" for shape in SHAPES),
    "gland",
)

SHARES = (f"{STAINS[1]} stain", f"{PATTERNS[1]} pattern", f"{SHAPES[1]} shape", "gland")
"""The labels whose share may be chosen; tiles without one of the first three have the other."""

EVEN: Mapping[str, float] = types.MappingProxyType({})

# Red, green and blue of a stain beside grey, of luma 0 but for rounding.
_HUES = {"purple": (12.0, -25.0, 97.0), "pink": (84.0, -56.0, 68.0)}
_STRENGTHS = (0.7, 0.85, 1.0)
_SUBPIXEL_BITS = 4
_NUCLEI = {"sparse": (5, 9), "crowded": (18, 28)}

# Wordings of each statement; those of a report are drawn.
_STAIN = (
    "{Stain} stain is present.",
    "The nuclei are {stain}.",
    "{Stain} nuclei.",
    "Stained {stain}.",
    "The tissue takes a {stain} stain.",
)
_PATTERN = {
    "sparse": ("Sparse pattern is present.", "A sparse pattern.", "Few nuclei lie far apart."),
    "crowded": ("Crowded pattern is present.", "A crowded pattern.", "Many nuclei lie close by."),
}
_SHAPE = (
    "{Shape} shape is present.",
    "Nuclei of {shape} shape.",
    "The shape of the nuclei is {shape}.",
)
_GLAND = {
    True: ("Gland is present.", "A gland is seen.", "There is a gland."),
    False: ("No gland.", "There is no gland.", "No gland is seen."),
}
_IMPRESSION = ("{Stain}, {pattern}.", "{Pattern} tissue, {stain}.", "{Stain} and {pattern}.")


@dataclasses.dataclass(frozen=True)
class Tile:
    """What a tile shows.

    Attributes:
      stain, pattern, shape: of STAINS, PATTERNS and SHAPES. gland: whether it has one.
      findings, impression: sentences of the report.
    """

    seed: int
    index: int
    stain: str
    pattern: str
    shape: str
    gland: bool
    findings: tuple[str, ...]
    impression: str

    @property
    def labels(self) -> tuple[int, ...]:
        """1 or 0 for each of LABELS."""
        chosen = {f"{self.stain} stain", f"{self.pattern} pattern", f"{self.shape} shape"}
        return tuple(int(name in chosen or (name == "gland" and self.gland)) for name in LABELS)


def slide_number(index: int) -> int:
    """Two tiles are of one slide, which has one stain."""
    return index // 2


def patient_number(index: int) -> int:
    """Two slides are of one patient."""
    return index // 4


def tile(seed: int, index: int, prevalence: Mapping[str, float] = EVEN) -> Tile:
    """The tile at `index` of the corpus of `seed`, which has no end.

    Args:
      prevalence: share of the tiles with a feature, of SHARES; of the others a half.
    """
    share = [prevalence.get(name, 0.5) for name in SHARES]
    stain = STAINS[stream(seed, "slide", slide_number(index)).unit() >= 1 - share[0]]
    dice = stream(seed, "tile", index)
    pattern = PATTERNS[dice.unit() >= 1 - share[1]]
    shape, gland = SHAPES[dice.unit() >= 1 - share[2]], dice.chance(share[3])
    words = stream(seed, "tile report", index)
    given = {"stain": stain, "pattern": pattern, "shape": shape}
    given |= {name.capitalize(): word.capitalize() for name, word in given.items()}
    chosen = (_STAIN, _PATTERN[pattern], _SHAPE, _GLAND[gland])
    sentences = [words.pick(wordings).format(**given) for wordings in chosen]
    impression = words.pick(_IMPRESSION).format(**given)
    return Tile(
        seed, index, stain, pattern, shape, gland, tuple(words.shuffled(sentences)), impression
    )


def render(chosen: Tile, size: int) -> np.ndarray:
    """Draws the tile, u8[size, size, 3]: red, green and blue."""
    dice = stream(chosen.seed, "tile picture", chosen.index)
    return stained(_grey(chosen, size, dice), chosen.stain, dice.pick(_STRENGTHS))


def stained(grey: np.ndarray, stain: str, strength: float = 1.0) -> np.ndarray:
    """u8[H, W] -> u8[H, W, 3] of exactly this luma, in the colour of a stain.

    Args:
      strength: of the colour, above 0 to 1.
    """
    return _table(stain, strength)[grey]


@functools.cache
def _table(stain: str, strength: float) -> np.ndarray:
    """u8[256, 3]: the colour of a stain of each luma; black and white have none."""
    levels, hue = np.arange(256.0)[:, None], strength * np.array(_HUES[stain])
    # As much of the hue as the range of levels leaves.
    room = np.where(hue > 0, (255 - levels) / hue, -levels / hue).min(axis=1, keepdims=True)
    wanted = levels + hue * np.minimum(room, 1)
    steps = np.array(list(itertools.product(range(-3, 4), repeat=3)))
    tried = np.clip(np.rint(wanted)[:, None] + steps, 0, 255).astype(np.uint8)
    far = np.square(tried - wanted[:, None]).sum(axis=2)
    far[luma(tried) != levels] = np.inf  # rounding moves the luma of most of them
    return tried[np.arange(256), far.argmin(axis=1)]


def _grey(chosen: Tile, size: int, dice: Dice) -> np.ndarray:
    """The picture before it is stained, u8[size, size]: dark nuclei on bright tissue."""
    tissue = _texture(size, dice, cells=6)
    picture = dice.between(190, 215) + 14 * tissue
    layer = np.zeros((size, size), np.uint8)
    rim, lumen = _gland(size, dice) if chosen.gland else (None, None)
    low, high = _NUCLEI[chosen.pattern]
    for _ in range(int(dice.between(low, high))):
        radius = dice.between(0.035, 0.05)
        longer = dice.between(1.0, 1.15) if chosen.shape == "round" else dice.between(2.4, 3.0)
        axes = (radius * math.sqrt(longer), radius / math.sqrt(longer))
        _ellipse(layer, (dice.unit(), dice.unit()), axes, 180 * dice.unit())
    dark = dice.between(75, 110)
    share = layer / np.float32(255)
    if rim is not None and lumen is not None:
        share = np.maximum(share * (1 - lumen), rim)
        picture = picture * (1 - lumen) + 238 * lumen
    picture = picture * (1 - share) + (dark + 10 * _texture(size, dice, cells=12)) * share
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def _gland(size: int, dice: Dice) -> tuple[np.ndarray, np.ndarray]:
    """Coverage f32[size, size] of the rim of a gland and of the light space in it."""
    outer, inner = np.zeros((2, size, size), np.uint8)
    place = (dice.between(0.3, 0.7), dice.between(0.3, 0.7))
    radius = dice.between(0.15, 0.2)
    _ellipse(outer, place, (radius, radius), 0)
    _ellipse(inner, place, (0.68 * radius, 0.68 * radius), 0)
    inside = inner / np.float32(255)
    return outer / np.float32(255) - inside, inside


def _ellipse(
    layer: np.ndarray, place: tuple[float, float], axes: tuple[float, float], angle: float
) -> None:
    """Adds an ellipse, whose places and axes are parts of the side, to a coverage layer."""
    scale = len(layer) * 2**_SUBPIXEL_BITS
    centre = tuple(round(part * scale) for part in place)
    sides = tuple(max(1, round(part * scale)) for part in axes)
    cv2.ellipse(layer, centre, sides, angle, 0, 360, 255, cv2.FILLED, cv2.LINE_AA, _SUBPIXEL_BITS)


def _texture(size: int, dice: Dice, cells: int) -> np.ndarray:
    """Smooth noise f32[size, size] from -1 to 1."""
    coarse = np.array(dice.units(cells * cells), np.float32).reshape(cells, cells) * 2 - 1
    return cv2.resize(coarse, (size, size), interpolation=cv2.INTER_LINEAR)


def load_image(
    seed: int, index: int, size: int, prevalence: Mapping[str, float] = EVEN
) -> np.ndarray:
    """`render` of `tile`; with functools.partial, the `load` of an ImageRef."""
    return render(tile(seed, index, prevalence), size)
