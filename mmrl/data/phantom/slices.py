"""A stack of coronal sections of a study, from front to back, a lesion in some of them only.

The depth of a lesion is one of the numbers of its shape, as in `lateral`. Sections that are near
enough show it, at least one of them. An enlarged heart is part of the anatomy of all sections. The
chest is widest in the middle, and the noise of each section is its own.
"""

import dataclasses
import math

import numpy as np

from mmrl.data.phantom import study as phantom
from mmrl.data.phantom.findings import Lesion
from mmrl.data.phantom.lateral import DEPTH_NUMBER
from mmrl.types import Box

_REACH = 0.15  # of a lesion along the depth of the chest, to either side


def section(chosen: phantom.Study, number: int, count: int) -> phantom.Study:
    """Section `number` of `count`: the study with the lesions that it shows."""
    depth = (number + 0.5) / count
    kept = [i for i, one in enumerate(chosen.lesions) if _shows(one, depth, count)]
    width = chosen.patient.half_width * (0.8 + 0.2 * math.sin(math.pi * depth))
    seed = chosen.technique.noise_seed + number
    return dataclasses.replace(
        chosen,
        lesions=tuple(chosen.lesions[i] for i in kept),
        sentences=tuple(
            dataclasses.replace(one, states=tuple(kept.index(i) for i in one.states if i in kept))
            for one in chosen.sentences
        ),
        patient=dataclasses.replace(chosen.patient, half_width=width),
        technique=dataclasses.replace(chosen.technique, noise_seed=seed),
    )


def _shows(lesion: Lesion, depth: float, count: int) -> bool:
    if lesion.finding.name == "cardiomegaly":
        return True
    return abs(depth - lesion.shape[DEPTH_NUMBER]) <= max(_REACH, 0.5 / count)


def load_image(
    seed: int, index: int, size: int, number: int, count: int, draw: phantom.Draw = phantom.study
) -> np.ndarray:
    """Section `number` of `count` of a study, u8[size, size]."""
    return phantom.render(section(draw(seed, index), number, count), size)


def load_boxes(
    seed: int, index: int, size: int, count: int, draw: phantom.Draw = phantom.study
) -> tuple[Box, ...]:
    """The boxes on all sections; `image` is the number of the section."""
    chosen = draw(seed, index)
    return tuple(
        dataclasses.replace(box, image=number)
        for number in range(count)
        for box in phantom.boxes(section(chosen, number, count), size)
    )


def load_masks(
    seed: int, index: int, size: int, count: int, draw: phantom.Draw = phantom.study
) -> dict[str, np.ndarray]:
    """The masks of the first section, as `Record.masks` has those of the first image."""
    return phantom.masks(section(draw(seed, index), 0, count), size)
