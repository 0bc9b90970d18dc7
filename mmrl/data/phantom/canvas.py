"""Draws the normal anatomy of a procedural chest radiograph: soft tissue, air, bones and vessels.

Every layer is f32[size, size] in [0, 1]. Brightness adds up, as attenuation does along a ray; air
is dark. Shapes are anti-aliased, so that the anatomy is the same at every size.
"""

import cv2
import numpy as np

from mmrl.data.phantom.anatomy import Frame, circle, spline, wall

_SUBPIXEL_BITS = 4
_QUARTER_TURN = np.array([-1.0, 1.0])
_MIRROR = np.array([[[-1.0, 1.0]], [[1.0, 1.0]]])  # (u, v) of the right and of the left side
_ALONG = np.linspace(0.0, 1.0, 13)
_QUARTER = 0.5 * np.pi * _ALONG


class Canvas:
    """Rasterises outlines of one `Frame` at one size, and caches layers."""

    def __init__(self, frame: Frame, size: int):
        self.frame = frame
        self.size = size
        self._kept: dict[str, np.ndarray] = {}
        # Set by `draw_normal`: aerated lung beside heart and mediastinum, and the skeleton.
        self.air = self.bones = np.zeros((size, size), np.float32)

    def _fixed_point(self, xy: np.ndarray) -> list[np.ndarray]:
        scaled = xy * (self.size * 2.0**_SUBPIXEL_BITS) - 0.5 * 2**_SUBPIXEL_BITS
        points = np.rint(scaled).astype(np.int32)
        return [points] if points.ndim == 2 else list(points)

    def fill(self, outlines: np.ndarray) -> np.ndarray:
        """Coverage f32[size, size] of polygons f64[(count,) points, 2] in (x, y).

        The area where two of them overlap is not covered.
        """
        layer = np.zeros((self.size, self.size), np.uint8)
        cv2.fillPoly(layer, self._fixed_point(outlines), 255, cv2.LINE_AA, _SUBPIXEL_BITS)
        return layer * np.float32(1 / 255)

    def lines(self, curves: np.ndarray, width: float, *, least: float = 0.0) -> np.ndarray:
        """Coverage of open curves f64[(count,) points, 2] in (x, y).

        `width` is a fraction of the image. A line thinner than a pixel is drawn one pixel wide with
        lower coverage, which is at least `least`.
        """
        layer = np.zeros((self.size, self.size), np.uint8)
        pixels = width * self.size
        thickness = max(1, round(pixels))
        points = self._fixed_point(curves)
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


def _body(canvas: Canvas) -> np.ndarray:
    """Trunk, neck and shoulders, with dark gaps between the trunk and the arms."""
    patient = canvas.frame.patient
    drop = 0.05 * patient.shoulder
    skin = 1.0 + patient.soft_tissue / patient.half_width
    trunk = [(0.27, -0.25), (0.27, -0.12), (0.40, -0.06 + 0.3 * drop), (0.80, 0.00 + 0.7 * drop)]
    trunk += [(1.20, 0.07 + drop), (1.55, 0.20 + drop), (1.70, 0.42), (1.60, 0.62)]
    trunk += [(1.42, 0.60), (max(skin, 1.16) + 0.03, 0.44), (skin, 0.60)]
    trunk += [(skin + 0.01, 0.90), (skin + 0.05, 1.35)]
    half = np.array(trunk)
    outline = np.concatenate([half, half[::-1] * (-1.0, 1.0)])
    layer = canvas.fill(canvas.frame.body_point(outline))
    return canvas.soften(layer, 0.012)


def _rib_paths(canvas: Canvas) -> tuple[np.ndarray, np.ndarray]:
    """Posterior and anterior ribs: two f64[2 * ribs, points, 2] in (x, y)."""
    number = np.arange(10)[:, None]
    start = -0.015 + 0.02 * canvas.frame.patient.rib_phase + 0.094 * number
    drop = 0.075 + 0.012 * number
    outer = np.minimum(wall(start + drop), 1.0) + 0.015
    fall = 1.0 - np.cos(_QUARTER)
    reach = np.sin(_QUARTER)
    back_u = 0.09 + (outer - 0.09) * reach
    back_v = start - 0.02 * np.sin(np.pi * _ALONG) + drop * fall
    front_u = outer - (outer - 0.42) * fall
    front_v = start + drop + (0.10 + 0.012 * number) * reach
    both = []
    for u, v in ((back_u, back_v), (front_u[:7], front_v[:7])):
        path = np.stack([np.concatenate([u, -u]), np.concatenate([v, v])], axis=-1)
        both.append(canvas.frame.body_point(path))
    return both[0], both[1]


def strip(paths: np.ndarray, width: float) -> np.ndarray:
    """Closed outlines of bands of constant `width` along paths f64[..., points, 2]."""
    step = np.empty_like(paths)
    step[..., 1:-1, :] = paths[..., 2:, :] - paths[..., :-2, :]
    step[..., 0, :] = paths[..., 1, :] - paths[..., 0, :]
    step[..., -1, :] = paths[..., -1, :] - paths[..., -2, :]
    step *= 0.5 * width / np.sqrt((step * step).sum(axis=-1, keepdims=True))
    normal = step[..., ::-1] * _QUARTER_TURN
    return np.concatenate([paths + normal, (paths - normal)[..., ::-1, :]], axis=-2)


_SPINE_STEPS = np.arange(15.0)
_SPINE = np.linspace(-0.3, 1.4, 15)
_SPINE_BEND = np.sin(np.pi * np.clip(_SPINE, 0.0, 1.0)) ** 2
_DISCS = np.linspace(1.0, 13.0, 21)


def _spine_path(frame: Frame) -> np.ndarray:
    return frame.body_point(np.stack([frame.patient.scoliosis * _SPINE_BEND, _SPINE], axis=-1))


_CLAVICLE = np.array([(0.10, 0.085), (0.35, 0.075), (0.65, 0.02), (0.92, 0.03), (1.18, 0.03)])
_CLAVICLE_LIFT = np.array([(0.0, 0.4), (0.0, 0.2), (0.0, -0.2), (0.0, -0.6), (0.0, -0.8)])
_BLADE = spline(np.array([(0.98, 0.08), (1.22, 0.10), (1.15, 0.30), (1.02, 0.50), (0.93, 0.46)]))


def _bones(canvas: Canvas) -> np.ndarray:
    """Ribs, clavicles, shoulder blades and the spine."""
    frame = canvas.frame
    back, front = _rib_paths(canvas)
    bones = 0.10 * canvas.fill(strip(back, 0.022))
    bones += 0.055 * canvas.fill(strip(front, 0.025))
    clavicle = spline(_CLAVICLE + 0.05 * frame.patient.clavicle * _CLAVICLE_LIFT, closed=False)
    pair = frame.body_point(clavicle * _MIRROR + (0.6 * frame.technique.turn, 0.0))
    bones += 0.16 * canvas.fill(strip(pair, 0.026))
    bones += 0.06 * canvas.fill(frame.body_point(_BLADE * _MIRROR))
    spine = _spine_path(frame)
    bones += 0.13 * canvas.fill(strip(spine, 0.085))
    bones -= 0.06 * canvas.lines(_disc_lines(spine), 0.008)
    return canvas.soften(bones, 0.004)


def _disc_lines(spine: np.ndarray) -> np.ndarray:
    """The discs between the vertebrae: f64[count, 2, 2]."""
    centres = np.stack([np.interp(_DISCS, _SPINE_STEPS, axis) for axis in spine.T], axis=-1)
    return centres[:, None] + np.array([(-0.036, 0.0), (0.036, 0.0)])


_BRANCH_ANGLE = np.radians(-80.0 + 13.8 * np.arange(12))
_BRANCH = np.linspace(0.0, 1.0, 9)
_FORK = np.clip(_BRANCH - 0.3, 0.0, 1.0)
# Parts of an artery and of its branch: first point, last point and width.
_ARTERY = ((0, 4, 0.010), (3, 7, 0.006), (6, 9, 0.003))
_TWIG = ((3, 7, 0.0045), (6, 9, 0.0025))


def _vessels(canvas: Canvas) -> np.ndarray:
    """Twelve arteries per lung, from the hilum to the periphery, each with one fork."""
    frame = canvas.frame
    numbers = np.array(frame.patient.vessels).reshape(2, 12, 2)
    angle = (_BRANCH_ANGLE + np.radians(14.0) * (numbers[..., 0] - 0.5))[..., None]
    length = (0.26 + 0.30 * numbers[..., 1])[..., None] * _BRANCH
    bend = (numbers[..., 1:] * 7.0 % 1.0 - 0.5) * 1.4
    root = 0.45 + 0.035 * np.cos(5.0 * angle)
    layer = np.zeros((canvas.size, canvas.size), np.float32)
    for fork, parts in ((0.0, _ARTERY), (0.55, _TWIG)):
        heading = angle + bend * _BRANCH + fork * np.sign(bend) * _FORK
        u = (0.21 + 0.95 * length * np.cos(heading)) * _MIRROR[:, :, :1]
        v = root + 0.72 * length * np.sin(heading)
        paths = frame.lung_point(np.stack([u, v], axis=-1)).reshape(24, 9, 2)
        for first, last, width in parts:
            layer = np.maximum(layer, canvas.lines(paths[:, first:last], width))
    hila = circle(16) * (0.06, 0.073) + (0.21, 0.45)
    blobs = canvas.fill(frame.lung_point(hila * _MIRROR))
    return 0.8 * canvas.soften(layer, 0.003) + 0.7 * canvas.soften(blobs, 0.016)


def _airway(canvas: Canvas) -> np.ndarray:
    """Trachea and main bronchi."""
    frame = canvas.frame
    turn = 0.5 * frame.technique.turn
    trachea = np.array([(turn, -0.3), (turn, 0.1), (0.7 * turn, 0.33)])
    airway = canvas.fill(strip(frame.body_point(trachea), 0.042))
    bronchi = np.array([[(0.7 * turn, 0.32), (-0.19, 0.43)], [(0.7 * turn, 0.32), (0.20, 0.45)]])
    airway = np.maximum(airway, canvas.fill(strip(frame.body_point(bronchi), 0.028)))
    return canvas.soften(airway, 0.007)


def _stomach(canvas: Canvas) -> np.ndarray:
    """The air bubble of the stomach under the left half of the diaphragm."""
    frame = canvas.frame
    left = frame.lung("left")
    below_dome = left[(np.abs(left[:, 0] - 0.5) < 0.1) & (left[:, 1] > 0.5)]
    extent = 0.03 + 0.03 * frame.patient.bubble
    shape = extent * circle(20) * (1.5, 1.0) + (0.0, extent + 0.028)
    bubble = canvas.fill(frame.around((0.50, float(below_dome[:, 1].mean())), shape))
    return canvas.soften(bubble, 0.011)


def _breasts(canvas: Canvas) -> np.ndarray:
    shape = circle(24) * (0.46, 0.19) + (0.60, 0.76)
    return canvas.soften(canvas.fill(canvas.frame.body_point(shape * _MIRROR)), 0.016)


def draw_normal(canvas: Canvas) -> np.ndarray:
    """Brightness f32[size, size] of the healthy chest, before exposure; may leave [0, 1]."""
    frame = canvas.frame
    y = ((np.arange(canvas.size, dtype=np.float32) + 0.5) / canvas.size)[:, None]
    body = _body(canvas)
    lungs = np.maximum(canvas.lung("right"), canvas.lung("left"))
    centre = np.maximum(
        canvas.soften(canvas.heart(), 0.006),
        canvas.soften(canvas.fill(frame.lung_point(frame.mediastinum())), 0.006),
    )
    air = canvas.soften(lungs, 0.005) * (1.0 - 0.92 * centre)
    canvas.air, canvas.bones = air, _bones(canvas)
    picture = body * (0.56 + 0.12 * np.clip(2.2 * y - 1.0, 0.0, 1.0))
    picture -= 0.40 * air
    picture += 0.06 * centre
    picture -= 0.09 * _airway(canvas)
    picture += body * canvas.bones * (0.55 + 0.45 * air)
    picture += 0.13 * canvas.vessels() * air
    picture -= 0.19 * _stomach(canvas)
    if frame.patient.female:
        picture += 0.055 * _breasts(canvas)
    return picture
