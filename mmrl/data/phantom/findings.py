"""Findings of the phantom corpus: which ones a study has, and which pixels each one covers.

A `Lesion` is a `Finding` with the numbers that determine its shape. `coverages` returns the pixels
that a lesion covers; `paint` draws lesions from the same coverages.
"""

import dataclasses
import math

import numpy as np

from mmrl.data.phantom.anatomy import (
    FIELD_OF_VIEW_MM,
    SIDES,
    SIGN,
    Frame,
    Patient,
    Technique,
    circle,
    spline,
)
from mmrl.data.phantom.canvas import Canvas, strip
from mmrl.data.phantom.dice import Dice
from mmrl.types import Finding

KINDS = (
    "cardiomegaly",
    "edema",
    "pleural effusion",
    "pneumothorax",
    "consolidation",
    "nodule",
    "atelectasis",
    "endotracheal tube",
    "central venous catheter",
    "pacemaker",
)
ZONES = ("upper", "mid", "lower")
SEVERITIES = ("mild", "moderate", "severe")
EXTENTS = ("small", "moderate", "large")
DENSITIES = ("patchy", "dense")
NODULE_MM = (12, 16, 20, 24, 28)
DEVICES = ("endotracheal tube", "central venous catheter", "pacemaker")
WITHOUT_SIDE = ("cardiomegaly", "edema", "endotracheal tube")  # edema is always on both

_WEIGHTS = dict(zip(KINDS, (13, 8, 20, 12, 18, 14, 11, 6, 10, 7), strict=True))
_COUNT_WEIGHTS = (22, 28, 27, 15, 8)  # studies with 0, 1, 2, 3 and 4 findings, per cent
_ZONE_HEIGHT = {"upper": (0.17, 0.28), "mid": (0.43, 0.53), "lower": (0.68, 0.77)}
FLUID_HEIGHT = {"small": (0.24, 0.28), "moderate": (0.43, 0.48), "large": (0.68, 0.74)}
_COLLAPSE = {"small": (0.10, 0.13), "moderate": (0.27, 0.27), "large": (0.62, 0.40)}
EDEMA_RADIUS = {"mild": 0.21, "moderate": 0.26, "severe": 0.32}
_SHAPE_NUMBERS = 12
BAND_WIDTH = 0.021
_BLOB_ANGLE = np.linspace(0.0, 2.0 * np.pi, 40, endpoint=False)
_FLUID_EDGE = np.linspace(1.1, 0.0, 12)


@dataclasses.dataclass(frozen=True)
class Lesion:
    """A finding, and numbers in [0, 1) that determine its place within the zone and its shape."""

    finding: Finding
    shape: tuple[float, ...]


class _Plan:
    """Places findings so that none covers or contradicts another."""

    def __init__(self, dice: Dice, patient: Patient, technique: Technique):
        self._dice = dice
        self._patient = patient
        self._technique = technique
        self._taken: set[tuple[str, str]] = set()
        self._heart = ""
        self.lesions: list[Lesion] = []

    def _has(self, name: str, side: str = "") -> bool:
        return any(
            lesion.finding.name == name and side in ("", lesion.finding.side)
            for lesion in self.lesions
        )

    def _add(self, finding: Finding, *zones: str) -> bool:
        self.lesions.append(Lesion(finding, self._dice.units(_SHAPE_NUMBERS)))
        self._taken.update((finding.side, zone) for zone in zones)
        return True

    def place(self, kind: str, room: int) -> bool:
        """Adds a finding of `kind` if there is room; two for an effusion on both sides."""
        if kind == "cardiomegaly":
            self._heart = self._dice.pick(SEVERITIES)
            return self._add(Finding(kind, severity=self._heart))
        if kind == "edema":
            return self._add(Finding(kind, "bilateral", severity=self._dice.pick(SEVERITIES)))
        if kind == "pleural effusion":
            return self._effusion(room)
        if kind == "pneumothorax":
            return self._pneumothorax()
        if kind == "endotracheal tube":
            return self._add(Finding(kind))
        if kind in DEVICES:
            return self._line(kind)
        return self._in_lung(kind)

    def _raised(self, side: str) -> bool:
        return self._patient.elevation[SIDES.index(side)] > 0.0

    def _effusion(self, room: int) -> bool:
        extents = EXTENTS[:2] if self._has("edema") else EXTENTS
        sides = SIDES if room > 1 and self._dice.chance(0.4) else (self._dice.pick(SIDES),)
        if any(self._raised(side) for side in sides):
            return False
        extent = self._dice.pick(extents)
        for side in sides:
            covered = {"small": 1, "moderate": 2, "large": 3}[extent]
            self._add(Finding("pleural effusion", side, severity=extent), *ZONES[::-1][:covered])
            if self._dice.chance(0.5):
                extent = self._dice.pick(extents)
        return True

    def _pneumothorax(self) -> bool:
        side = self._dice.pick(SIDES)
        extent = self._dice.pick(EXTENTS)
        zones = ZONES[:1] if extent == "small" else ZONES[:2]
        if self._has("edema") or any((side, zone) in self._taken for zone in zones):
            return False
        zone = "" if extent == "large" else "apical"
        return self._add(Finding("pneumothorax", side, zone, extent), *zones)

    def _line(self, kind: str) -> bool:
        side = self._dice.pick(SIDES)
        if any(self._has(other, side) for other in DEVICES[1:]):
            return False
        return self._add(Finding(kind, side), *ZONES[:1] if kind == "pacemaker" else ())

    def _in_lung(self, kind: str) -> bool:
        side = self._dice.pick(SIDES)
        zone = self._dice.weighted(ZONES, (1, 2, 3) if kind == "atelectasis" else (1, 1, 1))
        if (side, zone) in self._taken or self._hidden_by_edema(kind):
            return False
        if zone == "lower" and self._raised(side):
            return False
        frame = Frame(self._patient, self._technique, self._heart)
        inner, outer = frame.free_width(side, _ZONE_HEIGHT[zone][1])
        if outer - inner < 0.22:
            return False
        severity = ""
        if kind == "consolidation":
            severity = self._dice.pick(DENSITIES)
        elif kind == "nodule":
            severity = f"{self._dice.pick(NODULE_MM)} mm"
        return self._add(Finding(kind, side, zone, severity), zone)

    def _hidden_by_edema(self, kind: str) -> bool:
        return any(
            lesion.finding.name == "edema"
            and (lesion.finding.severity != "mild" or kind != "consolidation")
            for lesion in self.lesions
        )


def draw_kinds(dice: Dice) -> tuple[str, ...]:
    """Draws 0 to 4 kinds of findings, in the order of `KINDS`, which may not all find room."""
    count = dice.weighted(range(len(_COUNT_WEIGHTS)), _COUNT_WEIGHTS)
    repeatable = ("consolidation", "nodule", "atelectasis")
    chosen: list[str] = []
    while len(chosen) < count:
        kind = dice.weighted(KINDS, tuple(_WEIGHTS.values()))
        if kind not in chosen or kind in repeatable:
            chosen.append(kind)
    return tuple(sorted(chosen, key=KINDS.index))


def draw_lesions(
    kinds: tuple[str, ...], patient: Patient, technique: Technique, dice: Dice
) -> tuple[Lesion, ...]:
    """Draws at most 4 findings of the given kinds that neither cover nor contradict each other.

    Devices, cardiomegaly and edema are placed first. A kind that cannot be placed in eight attempts
    is left out.
    """
    plan = _Plan(dice, patient, technique)
    order = sorted(kinds, key=lambda kind: kind not in (*DEVICES, "cardiomegaly", "edema"))
    waiting = len(order)
    for kind in order:
        room = 4 - len(plan.lesions) - (waiting - 1)
        waiting -= 1
        for _ in range(8):
            if plan.place(kind, room):
                break
    return tuple(sorted(plan.lesions, key=lambda lesion: KINDS.index(lesion.finding.name)))


def height(lesion: Lesion) -> float:
    """The height v of a lesion within its zone."""
    low, high = _ZONE_HEIGHT[lesion.finding.zone]
    return low + (high - low) * lesion.shape[0]


def _centre(lesion: Lesion, frame: Frame, margin: float) -> tuple[float, float]:
    """(u, v) inside the zone, at least `margin` (in u) from heart and chest wall where possible."""
    v = height(lesion)
    inner, outer = frame.free_width(lesion.finding.side, v)
    middle = 0.5 * (inner + outer)
    inner, outer = min(inner + margin, middle), max(outer - margin, middle)
    return SIGN[lesion.finding.side] * (inner + (outer - inner) * lesion.shape[1]), v


def _fluid(lesion: Lesion, canvas: Canvas) -> np.ndarray:
    """Free fluid, which is higher at the chest wall than at the mediastinum (meniscus)."""
    side, extent = lesion.finding.side, lesion.finding.severity
    low, high = FLUID_HEIGHT[extent]
    top = 1.0 - (low + (high - low) * lesion.shape[0])
    u = _FLUID_EDGE
    slope = {"small": 0.17, "moderate": 0.13, "large": 0.12}[extent]
    v = top + slope * (1.0 - np.exp(-3.0 * np.clip(1.0 - u, 0.0, 1.0)))
    outline = np.concatenate([np.stack([u, v], axis=-1), [(0.0, 1.2), (1.1, 1.2)]])
    fluid = canvas.fill(canvas.frame.lung_point(outline * (SIGN[side], 1.0)))
    return fluid * canvas.lung(side) * (1.0 - canvas.heart())


def _free_air(lesion: Lesion, canvas: Canvas) -> np.ndarray:
    """Air between the chest wall and the collapsed lung."""
    finding = lesion.finding
    collapsed = canvas.fill(canvas.frame.lung_point(collapsed_lung(lesion, canvas.frame)))
    centre = np.maximum(
        canvas.heart(), canvas.fill(canvas.frame.lung_point(canvas.frame.mediastinum()))
    )
    return canvas.lung(finding.side) * (1.0 - collapsed) * (1.0 - centre)


def collapsed_lung(lesion: Lesion, frame: Frame) -> np.ndarray:
    """Outline (u, v) of the lung that a pneumothorax has collapsed."""
    lateral, apical = _COLLAPSE[lesion.finding.severity]
    scale = 0.93 + 0.14 * lesion.shape[0]
    return frame.lung(lesion.finding.side, lateral=scale * lateral, apical=scale * apical)


def blob(lesion: Lesion) -> np.ndarray:
    """Outline of an irregular patch around (0, 0), f64[points, 2], in fractions of the image."""
    angle = _BLOB_ANGLE
    radius = np.ones_like(angle)
    for wave in range(3):
        amplitude = 0.16 * lesion.shape[2 + 2 * wave] / (1 + 0.4 * wave)
        radius += amplitude * np.cos((wave + 2) * angle + 6.28 * lesion.shape[3 + 2 * wave])
    radius *= 0.072 + 0.022 * lesion.shape[8]
    return radius[:, None] * circle(len(angle)) * (1.1, 0.95)


def _blob(lesion: Lesion, canvas: Canvas) -> np.ndarray:
    """An irregular patch of filled air spaces."""
    centre = _centre(lesion, canvas.frame, 0.18)
    patch = canvas.fill(canvas.frame.around(centre, blob(lesion)))
    return patch * canvas.lung(lesion.finding.side)


def disc(lesion: Lesion) -> np.ndarray:
    """Outline of a nodule of the stated diameter around (0, 0), in fractions of the image."""
    return 0.5 * float(lesion.finding.severity.split()[0]) / FIELD_OF_VIEW_MM * circle(32)


def _disc(lesion: Lesion, canvas: Canvas) -> np.ndarray:
    """A round nodule of the stated diameter."""
    centre = _centre(lesion, canvas.frame, 0.14)
    return canvas.fill(canvas.frame.around(centre, disc(lesion)))


def band(lesion: Lesion) -> np.ndarray:
    """Middle line of a band of collapsed lung around (0, 0), f64[3, 2], fractions of the image."""
    length = 0.15 + 0.05 * lesion.shape[2]
    slope = math.radians(-28.0 + 56.0 * lesion.shape[3])
    reach = 0.5 * length * np.array([math.cos(slope), math.sin(slope)])
    return np.stack([-reach, 0 * reach, reach])


def _band(lesion: Lesion, canvas: Canvas) -> np.ndarray:
    """A straight band of collapsed lung, a few millimetres thick."""
    path = canvas.frame.around(_centre(lesion, canvas.frame, 0.24), band(lesion))
    return canvas.fill(strip(path, BAND_WIDTH)) * canvas.lung(lesion.finding.side)


def _perihilar(lesion: Lesion, canvas: Canvas, side: str) -> np.ndarray:
    """The edematous part of one lung around its hilum."""
    radius = EDEMA_RADIUS[lesion.finding.severity]
    offsets = radius * circle(32) * (0.85, 1.0)
    area = canvas.fill(canvas.frame.around((SIGN[side] * 0.36, 0.52), offsets))
    return area * canvas.lung(side) * (1.0 - canvas.heart())


def _tube(lesion: Lesion, canvas: Canvas) -> np.ndarray:
    turn = 0.5 * canvas.frame.technique.turn
    tip = 0.17 + 0.07 * lesion.shape[0]
    path = np.array([(turn + 0.02, -0.3), (turn, -0.1), (turn, tip)])
    return canvas.lines(canvas.frame.body_point(path), 0.012, least=0.9)


def _catheter(lesion: Lesion, canvas: Canvas) -> np.ndarray:
    """From the neck or from below the clavicle into the superior vena cava."""
    sign = SIGN[lesion.finding.side]
    end = np.array([(-0.12, 0.22), (-0.125, 0.32), (-0.12, 0.40 + 0.05 * lesion.shape[0])])
    if lesion.shape[1] < 0.5:
        start = [(0.24 * sign, -0.3), (0.23 * sign, -0.1), (0.19 * sign, 0.06)]
    else:
        start = [(0.98 * sign, 0.20), (0.72 * sign, 0.085), (0.42 * sign, 0.075)]
        start.append((0.22 * sign, 0.10))
    if sign > 0:
        start.append((0.06, 0.14))
    path = spline(np.concatenate([np.array(start), end]), closed=False)
    return canvas.lines(canvas.frame.body_point(path), 0.009, least=0.8)


def _pacemaker(lesion: Lesion, canvas: Canvas) -> np.ndarray:
    """A generator under the skin below the clavicle and a lead to the apex of the heart."""
    frame, sign = canvas.frame, SIGN[lesion.finding.side]
    u, v = 0.70 + 0.06 * lesion.shape[0], 0.17 + 0.03 * lesion.shape[1]
    corners = np.array([(-1, -0.5), (-0.7, -1), (0.7, -1), (1, -0.5), (1, 0.6), (0.6, 1)])
    corners = np.concatenate([corners, [(-0.6, 1), (-1, 0.6)]]) * (0.15, 0.065)
    box = canvas.fill(frame.body_point(spline((corners + (u, v)) * (sign, 1.0))))
    lead = [(u * sign, v - 0.05), (0.55 * sign, 0.06), (0.26 * sign, 0.09)]
    if sign > 0:
        lead.append((0.06, 0.14))
    start = frame.body_point(np.array(lead))
    apex = frame.heart_edges()[1]
    heart = frame.lung_point(
        np.array([(-0.12, 0.30), (-0.15, 0.60), (0.0, 0.82), (0.70 * apex, 0.85)])
    )
    path = spline(np.concatenate([start, heart]), closed=False)
    return np.maximum(box, canvas.lines(path, 0.009, least=0.7))


_SHAPES = {
    "pleural effusion": _fluid,
    "pneumothorax": _free_air,
    "consolidation": _blob,
    "nodule": _disc,
    "atelectasis": _band,
    "endotracheal tube": _tube,
    "central venous catheter": _catheter,
    "pacemaker": _pacemaker,
}


def _coverage(lesion: Lesion, canvas: Canvas) -> tuple[np.ndarray, ...]:
    if lesion.finding.name == "cardiomegaly":
        return (canvas.heart(),)
    if lesion.finding.name == "edema":
        return tuple(_perihilar(lesion, canvas, side) for side in SIDES)
    return (_SHAPES[lesion.finding.name](lesion, canvas),)


def coverages(lesions: tuple[Lesion, ...], canvas: Canvas) -> list[tuple[np.ndarray, ...]]:
    """The share of each pixel that each lesion covers: f32[size, size] per region.

    Edema has two regions, one per lung; other lesions have one. Pleural fluid removes what it
    covers from pneumothorax and edema.
    """
    layers = [_coverage(lesion, canvas) for lesion in lesions]
    fluid = [
        layer[0]
        for lesion, layer in zip(lesions, layers, strict=True)
        if lesion.finding.name == "pleural effusion"
    ]
    for position, lesion in enumerate(lesions):
        if fluid and lesion.finding.name in ("pneumothorax", "edema"):
            dry = 1.0 - np.maximum.reduce(fluid)
            layers[position] = tuple(layer * dry for layer in layers[position])
    return layers


def is_inside(finding: Finding, layer: np.ndarray) -> np.ndarray:
    """bool[size, size]: the pixels that count as part of the finding, given their coverage."""
    return layer >= (0.35 if finding.name in DEVICES else 0.5)
