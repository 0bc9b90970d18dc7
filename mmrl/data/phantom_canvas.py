"""Draws the normal part of a procedural chest radiograph: bodies, air, bones and vessels.

Every layer is f32[size, size] in [0, 1]; brightness adds up as attenuation does along a ray, air
being dark. Shapes are anti-aliased, so the same anatomy appears at every size.
"""

import functools
from collections.abc import Sequence

import cv2
import numpy as np

from mmrl.data.phantom_anatomy import SIDES, SIGN, Frame, spline, wall

_SUBPIXEL_BITS = 4


class Canvas:
    """Rasterises outlines of one `Frame` at one size and keeps the layers drawn so far."""

    def __init__(self, frame: Frame, size: int):
        self.frame = frame
        self.size = size
        self._kept: dict[str, np.ndarray] = {}

    def _fixed_point(self, xy: np.ndarray) -> np.ndarray:
        scaled = (xy * self.size - 0.5) * 2**_SUBPIXEL_BITS
        return np.rint(scaled).astype(np.int32)

    def fill(self, *outlines: np.ndarray) -> np.ndarray:
        """Coverage f32[size, size] of polygons f64[points, 2] in (x, y)."""
        layer = np.zeros((self.size, self.size), np.uint8)
        points = [self._fixed_point(outline) for outline in outlines]
        cv2.fillPoly(layer, points, 255, cv2.LINE_AA, _SUBPIXEL_BITS)
        return layer * np.float32(1 / 255)

    def lines(self, curves: Sequence[np.ndarray], width: float, *, least: float = 0) -> np.ndarray:
        """Coverage of open curves f64[points, 2] in (x, y), `width` a fraction of the image.

        A line thinner than a pixel is drawn one pixel wide and fainter, but not below `least`.
        """
        layer = np.zeros((self.size, self.size), np.uint8)
        pixels = width * self.size
        thickness = max(1, round(pixels))
        points = [self._fixed_point(curve) for curve in curves]
        cv2.polylines(layer, points, False, 255, thickness, cv2.LINE_AA, _SUBPIXEL_BITS)
        return layer * np.float32(max(min(1.0, pixels / thickness), least) / 255)

    def soften(self, layer: np.ndarray, sigma: float) -> np.ndarray:
        """Gaussian blur; `sigma` is a fraction of the image."""
        pixels = sigma * self.size
        if pixels < 0.3:
            return layer
        return cv2.GaussianBlur(layer, (0, 0), pixels, borderType=cv2.BORDER_REPLICATE)

    def lung(self, side: str) -> np.ndarray:
        """Coverage of one lung, the part behind the heart included."""
        if side not in self._kept:
            self._kept[side] = self.fill(self.frame.lung_point(self.frame.lung(side)))
        return self._kept[side]

    def heart(self) -> np.ndarray:
        """Coverage of the heart below the great vessels."""
        if "heart" not in self._kept:
            self._kept["heart"] = self.fill(self.frame.lung_point(self.frame.heart()))
        return self._kept["heart"]

    def vessels(self) -> np.ndarray:
        """Branching vessels of both lungs with their hila."""
        if "vessels" not in self._kept:
            self._kept["vessels"] = _vessels(self)
        return self._kept["vessels"]


@functools.lru_cache(maxsize=8)
def grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """x f32[1, size] and y f32[size, 1] of the pixel centres, in [0, 1]."""
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size
    return axis[None, :], axis[:, None]


def _mirrored(points: list[tuple[float, float]]) -> np.ndarray:
    half = np.array(points)
    return np.concatenate([half, half[::-1] * (-1.0, 1.0)])


def _body(canvas: Canvas) -> np.ndarray:
    """Trunk, neck and shoulders; the arms are held away, so dark gaps remain beside the trunk."""
    patient = canvas.frame.patient
    drop = 0.05 * patient.shoulder
    skin = 1.0 + patient.soft_tissue / patient.half_width
    trunk = [(0.27, -0.25), (0.27, -0.12), (0.40, -0.06 + 0.3 * drop), (0.80, 0.00 + 0.7 * drop)]
    trunk += [(1.20, 0.07 + drop), (1.55, 0.20 + drop), (1.70, 0.42), (1.60, 0.62)]
    trunk += [(1.42, 0.60), (max(skin, 1.16) + 0.03, 0.44), (skin, 0.60)]
    trunk += [(skin + 0.01, 0.90), (skin + 0.05, 1.35)]
    layer = canvas.fill(canvas.frame.body_point(_mirrored(trunk)))
    return canvas.soften(layer, 0.012)


def _rib_paths(canvas: Canvas) -> tuple[np.ndarray, np.ndarray]:
    """Posterior and anterior ribs: two f64[2 * ribs, points, 2] in (x, y)."""
    number = np.arange(10)[:, None]
    along = np.linspace(0.0, 1.0, 13)[None, :]
    start = -0.015 + 0.02 * canvas.frame.patient.rib_phase + 0.094 * number
    drop = 0.075 + 0.012 * number
    outer = np.minimum(wall(start + drop), 1.0) + 0.015
    quarter = 0.5 * np.pi * along
    back_u = 0.09 + (outer - 0.09) * np.sin(quarter)
    back_v = start - 0.02 * np.sin(np.pi * along) + drop * (1.0 - np.cos(quarter))
    front_u = outer - (outer - 0.42) * (1.0 - np.cos(quarter))
    front_v = start + drop + (0.10 + 0.012 * number) * np.sin(quarter)
    both = []
    for u, v in ((back_u, back_v), (front_u[:7], front_v[:7])):
        path = np.stack([np.concatenate([u, -u]), np.concatenate([v, v])], axis=-1)
        both.append(canvas.frame.body_point(path))
    return both[0], both[1]


def _strips(paths: np.ndarray, width: float) -> list[np.ndarray]:
    """Closed outlines of bands of constant `width` along paths f64[count, points, 2]."""
    step = np.gradient(paths, axis=1)
    normal = np.stack([-step[..., 1], step[..., 0]], axis=-1)
    normal *= 0.5 * width / np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-9)
    return list(np.concatenate([paths + normal, (paths - normal)[:, ::-1]], axis=1))


def strip(path: np.ndarray, width: float) -> np.ndarray:
    """Closed outline of a band of constant `width` along a path f64[points, 2]."""
    return _strips(path[None], width)[0]


def _spine_path(frame: Frame) -> np.ndarray:
    v = np.linspace(-0.3, 1.4, 15)
    bend = frame.patient.scoliosis * np.sin(np.pi * np.clip(v, 0.0, 1.0)) ** 2
    return frame.body_point(np.stack([bend, v], axis=-1))


def _bones(canvas: Canvas) -> np.ndarray:
    """Ribs, clavicles, shoulder blades, humeral heads and the spine."""
    frame = canvas.frame
    back, front = _rib_paths(canvas)
    bones = 0.11 * canvas.fill(*_strips(back, 0.022))
    bones += 0.055 * canvas.fill(*_strips(front, 0.025))
    lift = 0.05 * frame.patient.clavicle
    clavicle = np.array([(0.10, 0.085), (0.35, 0.075), (0.65, 0.02), (0.92, 0.03), (1.18, 0.03)])
    clavicle[:, 1] += lift * np.array([0.4, 0.2, -0.2, -0.6, -0.8])
    blade = np.array([(0.98, 0.08), (1.22, 0.10), (1.15, 0.30), (1.02, 0.50), (0.93, 0.46)])
    turn = (0.6 * frame.technique.turn, 0.0)
    pairs: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for sign in SIGN.values():
        path = frame.body_point(spline(clavicle, closed=False) * (sign, 1.0) + turn)
        pairs[0].append(strip(path, 0.026))
        pairs[1].append(frame.body_point(spline(blade) * (sign, 1.0)))
    bones += 0.16 * canvas.fill(*pairs[0])
    bones += 0.06 * canvas.fill(*pairs[1])
    spine = _spine_path(frame)
    bones += 0.10 * canvas.fill(strip(spine, 0.085))
    discs = canvas.lines(_disc_lines(spine), 0.008)
    bones -= 0.06 * discs
    return canvas.soften(bones, 0.004)


def _disc_lines(spine: np.ndarray) -> list[np.ndarray]:
    at = np.linspace(1, len(spine) - 2, 21)
    whole = np.arange(len(spine))
    x, y = np.interp(at, whole, spine[:, 0]), np.interp(at, whole, spine[:, 1])
    return [np.array([(cx - 0.036, cy), (cx + 0.036, cy)]) for cx, cy in zip(x, y, strict=True)]


def _vessels(canvas: Canvas) -> np.ndarray:
    """Twelve arteries per lung that leave the hilum, fork once and taper to the periphery."""
    frame = canvas.frame
    numbers = np.array(frame.patient.vessels).reshape(2, 12, 2)
    angle = np.radians(-80.0 + 13.8 * np.arange(12) + 14.0 * (numbers[..., 0] - 0.5))[..., None]
    length = (0.26 + 0.30 * numbers[..., 1])[..., None]
    bend = (numbers[..., 1:] * 7.0 % 1.0 - 0.5) * 1.4
    root = 0.035 * np.cos(5.0 * angle)
    side_sign = np.array([SIGN[side] for side in SIDES])[:, None, None]
    along = np.linspace(0.0, 1.0, 9)
    layer = np.zeros((canvas.size, canvas.size), np.float32)
    for fork, parts in ((0.0, (0.010, 0.006, 0.003)), (0.55, (0.0, 0.0045, 0.0025))):
        heading = angle + bend * along + fork * np.sign(bend) * np.clip(along - 0.3, 0.0, 1.0)
        u = 0.21 + 0.95 * length * along * np.cos(heading)
        v = 0.45 + root + 0.72 * length * along * np.sin(heading)
        paths = frame.lung_point(np.stack([u * side_sign, v], axis=-1)).reshape(24, 9, 2)
        for (first, last), width in zip(((0, 4), (3, 7), (6, 9)), parts, strict=True):
            if width:
                drawn = canvas.lines(list(paths[:, first:last]), width)
                layer = np.maximum(layer, drawn)
    circle = np.linspace(0.0, 2.0 * np.pi, 16, endpoint=False)
    shape = np.stack([0.022 * np.cos(circle), 0.05 * np.sin(circle)], axis=-1)
    hila = canvas.fill(*(frame.around((sign * 0.21, 0.45), shape) for sign in SIGN.values()))
    return 0.8 * canvas.soften(layer, 0.003) + 0.7 * canvas.soften(hila, 0.016)


def _airway(canvas: Canvas) -> np.ndarray:
    """Trachea and main bronchi."""
    frame = canvas.frame
    turn = 0.5 * frame.technique.turn
    trachea = np.array([(turn, -0.3), (turn, 0.1), (0.7 * turn, 0.33)])
    airway = canvas.fill(strip(frame.body_point(trachea), 0.042))
    for end in ((-0.19, 0.43), (0.20, 0.45)):
        bronchus = np.array([(0.7 * turn, 0.32), end])
        airway = np.maximum(airway, canvas.fill(strip(frame.body_point(bronchus), 0.028)))
    return canvas.soften(airway, 0.007)


def _stomach(canvas: Canvas) -> np.ndarray:
    """The air bubble of the stomach under the left half of the diaphragm."""
    frame = canvas.frame
    left = frame.lung("left")
    below_dome = left[(np.abs(left[:, 0] - 0.5) < 0.1) & (left[:, 1] > 0.5)]
    top = float(below_dome[:, 1].mean())
    extent = 0.03 + 0.03 * frame.patient.bubble
    circle = np.linspace(0.0, 2.0 * np.pi, 20, endpoint=False)
    shape = np.stack([1.5 * extent * np.cos(circle), extent * np.sin(circle)], axis=-1)
    shape[:, 1] += extent + 0.028
    return canvas.soften(canvas.fill(frame.around((0.50, top), shape)), 0.006)


def _breasts(canvas: Canvas) -> np.ndarray:
    circle = np.linspace(0.0, 2.0 * np.pi, 24, endpoint=False)
    shape = np.stack([0.46 * np.cos(circle), 0.19 * np.sin(circle)], axis=-1)
    pair = (canvas.frame.body_point(shape + (sign * 0.60, 0.76)) for sign in SIGN.values())
    return canvas.soften(canvas.fill(*pair), 0.016)


def draw_normal(canvas: Canvas) -> np.ndarray:
    """Brightness f32[size, size] of the healthy chest, before exposure; may leave [0, 1]."""
    frame = canvas.frame
    _, y = grid(canvas.size)
    body = _body(canvas)
    lungs = np.maximum(canvas.lung("right"), canvas.lung("left"))
    centre = np.maximum(
        canvas.soften(canvas.heart(), 0.006),
        canvas.soften(canvas.fill(frame.lung_point(frame.mediastinum())), 0.006),
    )
    air = canvas.soften(lungs, 0.005) * (1.0 - 0.92 * centre)
    picture = body * (0.56 + 0.12 * np.clip(2.2 * y - 1.0, 0.0, 1.0))
    picture -= 0.40 * air
    picture += 0.06 * centre
    picture -= 0.09 * _airway(canvas)
    picture += body * _bones(canvas) * (0.55 + 0.45 * air)
    picture += 0.13 * canvas.vessels() * air
    picture -= 0.24 * _stomach(canvas)
    if frame.patient.female:
        picture += 0.055 * _breasts(canvas)
    return picture
