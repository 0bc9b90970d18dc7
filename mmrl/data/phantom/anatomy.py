"""Patient, exposure and anatomical outlines of a procedural chest radiograph.

Outlines are in coordinates of the thorax, (u, v): u is the distance from the midline in half widths
of the thorax, positive towards the patient's left; v is 0 at the apex of the lung and 1 at the
costophrenic angle. `Frame` maps them to the image, with x and y in [0, 1]. As in every frontal
radiograph, the patient's left is at the right of the image.
"""

import dataclasses
import functools
import math

import numpy as np

from mmrl.data.phantom.dice import Dice

SIDES = ("right", "left")
SIGN = {"right": -1.0, "left": 1.0}

# Image width in millimetres: less than the usual 350 mm, so that a nodule of 12 mm covers more than
# two pixels of an image of 64 pixels.
FIELD_OF_VIEW_MM = 300.0

# Apex to costophrenic angle at normal inspiration, as a fraction of the image.
BODY_HEIGHT = 0.69

# Cardiothoracic ratio by severity; up to 0.5 counts as normal on a frontal radiograph.
HEART_RATIO = {"": (0.40, 0.455), "mild": (0.54, 0.57), "moderate": (0.62, 0.65)}
HEART_RATIO["severe"] = (0.70, 0.74)

# Lung outline, |u| and v, clockwise on the patient's left: wall, angle, diaphragm, mediastinum.
_WALL: tuple[tuple[float, float], ...] = (
    (0.30, 0.00),
    (0.48, 0.03),
    (0.66, 0.12),
    (0.79, 0.26),
    (0.88, 0.43),
    (0.94, 0.60),
    (0.98, 0.78),
    (1.00, 0.93),
)
_ANGLE = ((0.985, 1.0),)
_DOME = ((0.90, 0.940), (0.74, 0.870), (0.55, 0.835), (0.36, 0.845), (0.20, 0.880))
_MEDIAL = ((0.14, 0.72), (0.12, 0.50), (0.11, 0.30), (0.13, 0.12), (0.20, 0.025))
_DOME_WEIGHT = (0.35, 0.8, 1.0, 0.95, 0.75)
_LUNG = np.array(_WALL + _ANGLE + _DOME + _MEDIAL)
_FIRST_DOME = len(_WALL) + len(_ANGLE)


@dataclasses.dataclass(frozen=True)
class Patient:
    """The anatomy that all studies of one patient share.

    Attributes:
      number: counts patients from 0 within a seed.
      female, age: as the indication states them.
      half_width: half the inner width of the thorax, as a fraction of the image.
      soft_tissue: thickness of the chest wall, as a fraction of the image.
      heart_unit: in [0, 1), the position within the range of heart sizes of a severity.
      scoliosis: sideways bend of the spine in u, positive towards the patient's left, or 0.
      aorta: extra radius of the aortic knob in u; 0 is normal.
      elevation: rise of the right and of the left hemidiaphragm in v beyond normal.
      shoulder, clavicle, rib_phase, bubble: further shape numbers in [0, 1).
      vessels: numbers in [0, 1) that shape the vessels of the lungs.
    """

    number: int
    female: bool
    age: int
    half_width: float
    soft_tissue: float
    heart_unit: float
    scoliosis: float
    aorta: float
    elevation: tuple[float, float]
    shoulder: float
    clavicle: float
    rib_phase: float
    bubble: float
    vessels: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Technique:
    """The exposure of one study.

    Attributes:
      projection: PA or AP.
      inspiration: low, normal or high lung volumes.
      lung_height: apex to costophrenic angle, as a fraction of the image.
      tilt: rotation in the image plane, radians.
      turn: rotation about the long axis, in u, which moves all that is in front of the spine.
      shift: of the whole body, fractions of the image.
      gain, gamma: exposure; blur: standard deviation as a fraction of the image.
      noise: standard deviation at 64 pixels, of full scale; noise_seed: seeds it.
    """

    projection: str
    inspiration: str
    lung_height: float
    tilt: float
    turn: float
    shift: tuple[float, float]
    gain: float
    gamma: float
    blur: float
    noise: float
    noise_seed: int


def draw_patient(number: int, dice: Dice) -> Patient:
    """Draws a patient. Scoliosis, a wide aorta and a raised hemidiaphragm have probability 0.12."""
    female = dice.chance(0.5)
    scoliosis = dice.pick((-1.0, 1.0)) * dice.between(0.13, 0.18) if dice.chance(0.12) else 0.0
    aorta = dice.between(0.09, 0.12) if dice.chance(0.12) else 0.0
    raised = dice.pick(SIDES) if dice.chance(0.12) else ""
    return Patient(
        number=number,
        female=female,
        age=int(dice.between(22, 90)),
        half_width=dice.between(0.345, 0.375) - 0.012 * female,
        soft_tissue=dice.between(0.025, 0.085),
        heart_unit=dice.unit(),
        scoliosis=scoliosis,
        aorta=aorta,
        elevation=(0.17 if raised == "right" else 0.0, 0.19 if raised == "left" else 0.0),
        shoulder=dice.unit(),
        clavicle=dice.unit(),
        rib_phase=dice.unit(),
        bubble=dice.unit(),
        vessels=dice.units(48),
    )


def draw_technique(dice: Dice, *, bedside: bool) -> Technique:
    """Draws an exposure. At the bedside (with tubes) it is AP, and inspiration is not deep."""
    weights = (0.16, 0.84, 0.0) if bedside else (0.12, 0.76, 0.12)
    inspiration = dice.weighted(("low", "normal", "high"), weights)
    low, high = {"low": (0.52, 0.55), "normal": (0.65, 0.70), "high": (0.79, 0.82)}[inspiration]
    return Technique(
        projection="AP" if bedside or dice.chance(0.15) else "PA",
        inspiration=inspiration,
        lung_height=dice.between(low, high),
        tilt=dice.between(-0.05, 0.05),
        turn=dice.between(-0.035, 0.035),
        shift=(dice.between(-0.02, 0.02), dice.between(-0.015, 0.015)),
        gain=dice.between(0.94, 1.06),
        gamma=dice.between(0.9, 1.15),
        blur=dice.between(0.0, 0.004),
        noise=dice.between(0.006, 0.016),
        noise_seed=int(dice.unit() * 2**31),
    )


def wall(v: np.ndarray | float) -> np.ndarray:
    """|u| of the inner chest wall at height v."""
    return np.interp(v, _LUNG[: len(_WALL), 1], _LUNG[: len(_WALL), 0])


@functools.lru_cache(maxsize=32)
def _spline_matrix(count: int, steps: int, closed: bool) -> np.ndarray:
    """Matrix from control points to points on their Catmull-Rom spline (Catmull, Rom 1974)."""
    segments = count if closed else count - 1
    basis = 0.5 * np.array([[0, 2, 0, 0], [-1, 0, 1, 0], [2, -5, 4, -1], [-1, 3, -3, 1]])
    powers = np.linspace(0.0, 1.0, steps, endpoint=False)[:, None] ** np.arange(4)
    weights = powers @ basis
    matrix = np.zeros((segments * steps + (not closed), count))
    for segment in range(segments):
        for offset in range(4):
            control = segment + offset - 1
            control = control % count if closed else min(max(control, 0), count - 1)
            matrix[segment * steps : (segment + 1) * steps, control] += weights[:, offset]
    if not closed:
        matrix[-1, -1] = 1.0
    matrix.setflags(write=False)
    return matrix


def spline(controls: np.ndarray, *, steps: int = 4, closed: bool = True) -> np.ndarray:
    """f64[count, 2] control points -> f64[points, 2] on a smooth curve through them."""
    return _spline_matrix(len(controls), steps, closed) @ controls


@functools.lru_cache(maxsize=16)
def circle(steps: int) -> np.ndarray:
    """f64[steps, 2]: points on the unit circle, not to be written to."""
    angle = np.linspace(0.0, 2.0 * np.pi, steps, endpoint=False)
    points = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    points.setflags(write=False)
    return points


class Frame:
    """The map from the thorax of a patient to the image of one exposure.

    `heart_severity` is the severity of cardiomegaly, "" for a heart of normal size.
    """

    def __init__(self, patient: Patient, technique: Technique, heart_severity: str = ""):
        self.patient = patient
        self.technique = technique
        low, high = HEART_RATIO[heart_severity]
        self.heart_ratio = low + (high - low) * patient.heart_unit
        cos, sin = math.cos(technique.tilt), math.sin(technique.tilt)
        self._turn = np.array([[cos, sin], [-sin, cos]])
        # Turned about the centre of the image: (point - 0.5) @ turn + 0.5.
        origin = np.array([technique.shift[0], technique.shift[1] - 0.385])
        self._origin = origin @ self._turn + 0.5
        self._lung = np.array([[patient.half_width], [technique.lung_height]]) * self._turn
        self._body = np.array([[patient.half_width], [BODY_HEIGHT]]) * self._turn

    def lung_point(self, uv: np.ndarray) -> np.ndarray:
        """f64[..., 2] (u, v) -> (x, y), where v depends on the depth of inspiration."""
        return uv @ self._lung + self._origin

    def body_point(self, uv: np.ndarray) -> np.ndarray:
        """f64[..., 2] (u, v) -> (x, y), with v of normal inspiration, for bones and skin."""
        return uv @ self._body + self._origin

    def around(self, uv: tuple[float, float], offsets: np.ndarray) -> np.ndarray:
        """Points around the lung point `uv` at `offsets` f64[..., 2], in fractions of the image."""
        return offsets @ self._turn + self.lung_point(np.array(uv))

    def lung(self, side: str, *, lateral: float = 0.0, apical: float = 0.0) -> np.ndarray:
        """Outline of a lung in (u, v); a collapsed one when `lateral` or `apical` is positive.

        Args:
          side: right or left.
          lateral: displacement of the lateral edge, as a fraction of its distance to the hilum.
          apical: displacement of the apex, in v.
        """
        points = _LUNG.copy()
        rise = 0.025 * (side == "right") + self.patient.elevation[SIDES.index(side)]
        if self.technique.inspiration == "high":
            rise -= 0.05
        dome = slice(_FIRST_DOME, _FIRST_DOME + len(_DOME))
        points[dome, 1] -= rise * np.array(_DOME_WEIGHT)
        if lateral or apical:
            height = np.clip(1.0 - points[:, 1], 0.0, 1.0)
            points[:, 1] += apical * height**2
            fallen = 0.16 + (points[:, 0] - 0.16) * (1.0 - lateral * np.sqrt(height))
            points[:_FIRST_DOME, 0] = fallen[:_FIRST_DOME]
        points[:, 0] *= SIGN[side]
        return spline(points)

    def heart_edges(self) -> tuple[float, float]:
        """Greatest |u| of the heart to the patient's right and left."""
        width = 2.0 * self.heart_ratio
        return 0.31 * width, 0.69 * width

    def heart(self) -> np.ndarray:
        """Outline of the heart below the great vessels, in (u, v)."""
        right, left = self.heart_edges()
        turn = self.technique.turn
        points = [(-0.10, 0.44), (-0.80 * right, 0.53), (-right, 0.66), (-0.93 * right, 0.80)]
        points += [(-0.6 * right, 0.90), (0.1 * left, 0.935), (0.55 * left, 0.945)]
        points += [(0.90 * left, 0.915), (left, 0.83), (0.93 * left, 0.715), (0.70 * left, 0.58)]
        points += [(0.16 + 0.25 * (left - 0.16), 0.46), (0.08, 0.41)]
        return spline(np.array(points) + (turn, 0.0))

    def mediastinum(self) -> np.ndarray:
        """Outline of the vascular pedicle with the aortic knob, in (u, v)."""
        turn, knob = self.technique.turn, self.patient.aorta
        points = [(-0.11, 0.02), (-0.135, 0.15), (-0.145, 0.30), (-0.15, 0.50), (0.0, 0.62)]
        points += [(0.17, 0.52), (0.19, 0.42), (0.165, 0.36), (0.205 + 0.8 * knob, 0.31)]
        points += [(0.225 + knob, 0.255), (0.19 + 0.6 * knob, 0.20), (0.125, 0.15), (0.105, 0.02)]
        return spline(np.array(points) + (turn, 0.0))

    def free_width(self, side: str, v: float) -> tuple[float, float]:
        """The range of |u| at height v in which lung is visible: between heart and chest wall."""
        right, left = self.heart_edges()
        edge = right if side == "right" else left
        turn = SIGN[side] * self.technique.turn
        medial = np.interp(v, (0.0, 0.4, 0.55, 0.7, 0.85), (0.24, 0.24, 0.68 * edge, edge, edge))
        return float(max(medial, 0.24)) + turn, float(wall(v))
