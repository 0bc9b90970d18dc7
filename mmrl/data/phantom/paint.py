"""Draws the findings of a phantom into its image, and exposes the image."""

from collections.abc import Sequence

import cv2
import numpy as np

from mmrl.data.phantom.canvas import Canvas
from mmrl.data.phantom.findings import DEVICES, Lesion, collapsed_lung

_FLUID_LEVEL = 0.69
_EDEMA_STRENGTH = {"mild": 0.13, "moderate": 0.20, "severe": 0.28}
_CONSOLIDATION_STRENGTH = {"patchy": 0.19, "dense": 0.30}
_DEVICE_STRENGTH = {"endotracheal tube": 0.30, "central venous catheter": 0.30, "pacemaker": 0.36}
# Findings are painted in this order: fluid covers the lung, and metal is visible through all else.
_ORDER = (
    "cardiomegaly",
    "edema",
    "consolidation",
    "atelectasis",
    "nodule",
    "pneumothorax",
    "pleural effusion",
    *DEVICES,
)


def _texture(numbers: tuple[float, ...], size: int, cells: int) -> np.ndarray:
    """Smooth noise f32[size, size] of mean about 1, computed from `numbers` in [0, 1)."""
    golden = 0.618034 * np.arange(cells * cells, dtype=np.float32) ** 1.5
    noise = (np.resize(np.array(numbers, np.float32) * 7.31, cells * cells) + golden) % 1.0
    noise = (0.5 + noise).reshape(cells, cells)
    return cv2.resize(noise, (size, size), interpolation=cv2.INTER_CUBIC)


def _paint_edema(
    picture: np.ndarray, lesion: Lesion, layers: tuple[np.ndarray, ...], canvas: Canvas
) -> None:
    haze = canvas.soften(np.maximum.reduce(layers), 0.055)
    haze *= 0.45 + 0.55 * _texture(lesion.shape, canvas.size, 13) + 0.3 * canvas.vessels()
    picture += _EDEMA_STRENGTH[lesion.finding.severity] * haze * canvas.air


def _paint_consolidation(
    picture: np.ndarray, lesion: Lesion, layer: np.ndarray, canvas: Canvas
) -> None:
    strength = _CONSOLIDATION_STRENGTH[lesion.finding.severity]
    patch = canvas.soften(layer, 0.012)
    if lesion.finding.severity == "patchy":
        patch = patch * (0.1 + 0.9 * _texture(lesion.shape, canvas.size, 17))
    picture += strength * patch * (0.3 + 0.7 * canvas.air)


def _paint_pneumothorax(
    picture: np.ndarray, lesion: Lesion, layer: np.ndarray, canvas: Canvas
) -> None:
    edge = canvas.frame.lung_point(collapsed_lung(lesion, canvas.frame))
    line = canvas.lines(np.concatenate([edge, edge[:1]]), 0.007)
    picture -= (0.14 + 0.13 * canvas.vessels()) * layer
    picture += 0.11 * line * canvas.soften(layer, 0.006)


def _paint_effusion(picture: np.ndarray, layer: np.ndarray, canvas: Canvas) -> None:
    # Wider than the region itself, so that it covers the outline of the lung.
    cover = np.minimum(1.9 * canvas.soften(layer, 0.008), 1.0)
    fluid = _FLUID_LEVEL + 0.3 * canvas.bones
    picture += 0.93 * cover * np.maximum(fluid - picture, 0.0)


def paint(
    picture: np.ndarray,
    lesions: Sequence[Lesion],
    coverages: Sequence[tuple[np.ndarray, ...]],
    canvas: Canvas,
) -> None:
    """Adds the lesions, which cover `coverages`, to `picture`, f32[size, size], in place.

    Cardiomegaly is part of the anatomy (see `Frame`), so nothing is added for it.
    """
    drawn = zip(lesions, coverages, strict=True)
    for lesion, layers in sorted(drawn, key=lambda pair: _ORDER.index(pair[0].finding.name)):
        name = lesion.finding.name
        if name == "edema":
            _paint_edema(picture, lesion, layers, canvas)
        elif name == "consolidation":
            _paint_consolidation(picture, lesion, layers[0], canvas)
        elif name == "pneumothorax":
            _paint_pneumothorax(picture, lesion, layers[0], canvas)
        elif name == "pleural effusion":
            _paint_effusion(picture, layers[0], canvas)
        elif name in DEVICES:
            picture += _DEVICE_STRENGTH[name] * layers[0]
        elif name != "cardiomegaly":
            opacity = canvas.soften(layers[0], 0.003)
            picture += 0.27 * opacity * (0.4 + 0.6 * canvas.air)


def expose(picture: np.ndarray, canvas: Canvas) -> np.ndarray:
    """Brightness f32[size, size] -> u8[size, size]: side marker, exposure, blur and noise.

    A lateral image has no side marker.

    The standard deviation of the noise grows with the square root of the size. With photon counting
    it would grow in proportion to the size.
    """
    technique = canvas.frame.technique
    if technique.projection != "LATERAL":
        marker = [(0.93, 0.03), (0.945, 0.03), (0.945, 0.07), (0.97, 0.07), (0.97, 0.085)]
        picture += 0.75 * canvas.fill(np.array([*marker, (0.93, 0.085)]))
    picture = canvas.soften(picture, technique.blur)
    rng = np.random.Generator(np.random.PCG64(technique.noise_seed))
    grain = rng.standard_normal(picture.shape, dtype=np.float32)
    picture = np.clip(picture, 0.0, None)
    picture = technique.gain * 1.12 * picture**technique.gamma + 0.02
    picture += technique.noise * (canvas.size / 64) ** 0.5 * grain
    return np.clip(picture * 255.0, 0.0, 255.0).astype(np.uint8)
