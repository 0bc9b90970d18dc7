"""A lateral radiograph of a study, with the patient and the findings of the frontal image.

A finding is at the height, and has the severity and the shape, of the frontal image; its depth is
one of the numbers of its shape. Right and left lie behind each other, so the image does not depend
on the sides of the findings. Exposure and position are drawn for the image alone.

Outlines are in coordinates (d, v) of the thorax: d is the depth in half depths, -1 at the sternum
and 1 at the back, which is at the right of the image; v is the height as in `anatomy`.
"""

import dataclasses

import numpy as np

from mmrl.data.phantom import anatomy, findings, paint
from mmrl.data.phantom.anatomy import SIDES, circle, spline
from mmrl.data.phantom.canvas import Canvas, strip
from mmrl.data.phantom.dice import stream
from mmrl.data.phantom.findings import DEVICES, Lesion
from mmrl.data.phantom.study import Draw, Study, study

# Outline of a lung: front, apex, back, posterior angle, diaphragm from back to front.
_FRONT = ((-0.90, 0.80), (-0.93, 0.66), (-0.89, 0.50), (-0.78, 0.34), (-0.58, 0.18), (-0.36, 0.06))
_APEX = ((-0.08, 0.00), (0.24, 0.02))
_BACK = ((0.54, 0.10), (0.78, 0.24), (0.93, 0.42), (0.98, 0.60), (0.97, 0.80), (0.92, 0.98))
_ANGLE = ((0.87, 1.04), (0.82, 1.03))
_DOME = ((0.66, 0.945), (0.42, 0.87), (0.12, 0.825), (-0.22, 0.81), (-0.55, 0.825), (-0.80, 0.86))
_LUNG = np.array(_FRONT + _APEX + _BACK + _ANGLE + _DOME)
_FIRST_DOME = len(_LUNG) - len(_DOME)
_DOME_WEIGHT = np.array((0.35, 0.75, 1.0, 1.0, 0.9, 0.6))
_HILUM = np.array((0.06, 0.44))

_SPINE = np.array([(0.42, -0.3), (0.46, -0.08), (0.60, 0.12), (0.74, 0.34), (0.78, 0.56)])
_SPINE = np.concatenate([_SPINE, [(0.72, 0.78), (0.58, 1.0), (0.44, 1.2), (0.38, 1.42)]])
_SPINE_STEPS = np.linspace(0.0, 1.0, 49)
_ALONG = np.linspace(0.0, 1.0, 11)
_BRANCH_ANGLE = np.linspace(0.0, 2.0 * np.pi, 24, endpoint=False)
DEPTH_NUMBER = 10  # of the numbers of a shape; other shapes do not use it


class _Frame(anatomy.Frame):
    """The map from (d, v) to the image, and outlines as the painters of findings expect them."""

    def lung(self, side: str, *, lateral: float = 0.0, apical: float = 0.0) -> np.ndarray:
        """Outline of a lung; that of the higher half of the diaphragm is SIDES[0]."""
        points = _LUNG.copy()
        rise = 0.025 * (side == SIDES[0]) + self.patient.elevation[SIDES.index(side)]
        rise -= 0.05 * (self.technique.inspiration == "high")
        points[_FIRST_DOME:, 1] -= rise * _DOME_WEIGHT
        if lateral or apical:
            height = np.clip(1.0 - points[:, 1], 0.0, 1.0)
            points[:, 1] += apical * height**2
            kept = 1.0 - lateral * np.sqrt(height)
            points[:_FIRST_DOME, 0] = (
                _HILUM[0] + (points[:_FIRST_DOME, 0] - _HILUM[0]) * kept[:_FIRST_DOME]
            )
        return spline(points)

    def heart_edges(self) -> tuple[float, float]:
        """Distances of the front and of the back of the heart from d = 0."""
        return 0.80, 0.12 + 2.1 * (self.heart_ratio - 0.40)

    def heart(self) -> np.ndarray:
        """Outline of the heart on the front half of the diaphragm."""
        front, back = self.heart_edges()
        top = 0.44 - 0.25 * (self.heart_ratio - 0.40)
        points = [(-0.44, top + 0.04), (-0.70, top + 0.16), (-front, 0.73), (-front - 0.03, 0.84)]
        points += [(-0.55, 0.93), (0.6 * back - 0.1, 0.93), (back - 0.04, 0.85), (back, 0.73)]
        points += [(0.9 * back, top + 0.17), (0.5 * back, top + 0.07), (-0.16, top)]
        return spline(np.array(points))

    def mediastinum(self) -> np.ndarray:
        """Outline of the great vessels above the heart."""
        points = [(-0.40, 0.50), (-0.42, 0.36), (-0.34, 0.24), (-0.16, 0.10), (-0.22, 0.00)]
        points += [(0.26, 0.00), (0.30, 0.14), (0.32, 0.28), (0.22, 0.40), (0.10, 0.50)]
        return spline(np.array(points))


class _Canvas(Canvas):
    """Layers of the lateral image."""

    def lungs(self) -> np.ndarray:
        """Coverage of either lung."""
        return np.maximum(self.lung(SIDES[0]), self.lung(SIDES[1]))

    def vessels(self) -> np.ndarray:
        """Vessels of both lungs, from the hila in all directions."""
        if "vessels" not in self._kept:
            self._kept["vessels"] = _vessels(self)
        return self._kept["vessels"]


def render(chosen: Study, size: int) -> np.ndarray:
    """Draws the lateral radiograph, u8[size, size]; the patient faces the left of the image."""
    canvas = _Canvas(_frame(chosen), size)
    lesions = _without_sides(chosen.lesions)
    picture = _draw_normal(canvas)
    paint.paint(picture, lesions, [_coverage(lesion, canvas) for lesion in lesions], canvas)
    return paint.expose(picture, canvas)


def load_image(seed: int, index: int, size: int, draw: Draw = study) -> np.ndarray:
    """`render` of a study, u8[size, size]; with functools.partial, the `load` of an ImageRef."""
    return render(draw(seed, index), size)


def _frame(chosen: Study) -> _Frame:
    """The lateral position of the patient, with an exposure of its own."""
    dice = stream(chosen.seed, "lateral", chosen.index)
    patient, frontal = chosen.patient, chosen.technique
    depth = {"low": 0.71, "normal": 0.74, "high": 0.82}[frontal.inspiration]
    technique = dataclasses.replace(
        frontal,
        projection="LATERAL",
        tilt=dice.between(-0.05, 0.05),
        turn=0.0,
        shift=(dice.between(-0.03, 0.01), dice.between(-0.015, 0.015)),
        gain=dice.between(0.94, 1.06),
        gamma=dice.between(0.9, 1.15),
        blur=dice.between(0.0, 0.004),
        noise=dice.between(0.006, 0.016),
        noise_seed=int(dice.unit() * 2**31),
    )
    seen = dataclasses.replace(
        patient,
        half_width=depth * patient.half_width,
        scoliosis=abs(patient.scoliosis),
        elevation=(0.17 * any(patient.elevation), 0.0),
    )
    enlarged = [f.severity for f in chosen.findings if f.name == "cardiomegaly"]
    return _Frame(seen, technique, "".join(enlarged))


def _without_sides(lesions: tuple[Lesion, ...]) -> list[Lesion]:
    """The lesions in an order that does not depend on their sides, all of one side."""
    hidden = [
        dataclasses.replace(lesion, finding=dataclasses.replace(lesion.finding, side=SIDES[0]))
        for lesion in lesions
    ]
    return sorted(hidden, key=lambda lesion: (lesion.finding.name, lesion.shape))


def _body(canvas: _Canvas) -> np.ndarray:
    """Trunk and neck, and the shoulders with the raised arms, which are brighter."""
    patient = canvas.frame.patient
    skin = 1.0 + patient.soft_tissue / patient.half_width
    breast = 0.22 * patient.female
    front = [(-0.62, -0.30), (-0.50, -0.10), (-0.62, 0.04), (-0.82, 0.20), (-skin + 0.02, 0.42)]
    front += [(-skin - 0.4 * breast, 0.56), (-skin - breast, 0.68), (-skin - 0.5 * breast, 0.78)]
    front += [(-skin, 0.88), (-skin - 0.02, 1.35)]
    back = [(skin, 1.35), (skin + 0.06, 0.90), (skin + 0.16, 0.60), (skin + 0.14, 0.36)]
    back += [(skin + 0.02, 0.12), (0.90, -0.06), (0.80, -0.30)]
    outline = spline(np.array(front + back), closed=False)
    return canvas.soften(canvas.fill(canvas.frame.body_point(outline)), 0.010)


def _arms(canvas: _Canvas) -> np.ndarray:
    drop = 0.04 * canvas.frame.patient.shoulder
    arm = np.array([(0.34, 0.07 + drop), (-0.30, -0.02 + drop), (-1.1, -0.12), (-1.9, -0.20)])
    upper = canvas.fill(strip(canvas.frame.body_point(spline(arm, closed=False)), 0.15))
    joint = canvas.fill(canvas.frame.body_point((0.36, 0.06 + drop) + circle(24) * (0.46, 0.14)))
    return canvas.soften(np.maximum(upper, joint), 0.022)


def _spine(canvas: _Canvas) -> np.ndarray:
    """Middle line of the vertebral bodies in (x, y); scoliosis shows as a deeper curve."""
    path = spline(_SPINE, closed=False)
    path = np.stack(
        [np.interp(_SPINE_STEPS, np.linspace(0.0, 1.0, len(path)), axis) for axis in path.T], -1
    )
    bend = np.sin(np.pi * np.clip(path[:, 1], 0.0, 1.0)) ** 2
    path[:, 0] += 0.6 * canvas.frame.patient.scoliosis * bend
    return canvas.frame.body_point(path)


def _bones(canvas: _Canvas) -> np.ndarray:
    """Spine with its discs, ribs, breastbone and shoulder blades."""
    frame = canvas.frame
    spine = _spine(canvas)
    bones = 0.15 * canvas.fill(strip(spine, 0.078))
    step = spine[2:] - spine[:-2]
    across = step[:, ::-1] * (-1.0, 1.0) / np.linalg.norm(step, axis=-1, keepdims=True)
    discs = spine[1:-1][4::2, None] + across[4::2, None] * np.array([[-0.034], [0.034]])
    bones -= 0.10 * canvas.lines(discs, 0.009)
    behind = spine[6:-8] + 0.062 * across[5:-7]
    bones += 0.05 * canvas.fill(strip(behind, 0.022))
    start = (0.03 + 0.02 * frame.patient.rib_phase + 0.094 * np.arange(9))[:, None]
    reach = np.clip(0.75 + 2.0 * start, 0.0, 1.78)
    back = np.interp(start, [v for _, v in _BACK], [d for d, _ in _BACK])
    ribs = np.stack(
        [back + 0.02 - reach * _ALONG, start + 0.34 * np.sin(0.5 * np.pi * _ALONG) ** 1.3], -1
    )
    bones += 0.07 * canvas.fill(strip(frame.body_point(ribs), 0.020))
    bones += 0.05 * canvas.fill(strip(frame.body_point(ribs + (0.03, 0.035)), 0.018))
    sternum = np.array([(-0.58, 0.10), (-0.78, 0.26), (-0.93, 0.44), (-0.99, 0.62)])
    bones += 0.14 * canvas.fill(strip(frame.body_point(spline(sternum, closed=False)), 0.024))
    blade = np.array([(0.52, 0.06), (0.86, 0.22), (1.02, 0.40)])
    bones += 0.05 * canvas.fill(strip(frame.body_point(spline(blade, closed=False)), 0.05))
    return canvas.soften(bones, 0.004)


def _vessels(canvas: _Canvas) -> np.ndarray:
    numbers = np.array(canvas.frame.patient.vessels).reshape(24, 2)
    angle = (_BRANCH_ANGLE + 0.3 * (numbers[:, 0] - 0.5))[:, None]
    length = (0.30 + 0.34 * numbers[:, 1])[:, None] * _ALONG
    heading = angle + (numbers[:, 1:] * 7.0 % 1.0 - 0.5) * 1.2 * _ALONG
    paths = np.stack([1.5 * length * np.cos(heading), 0.72 * length * np.sin(heading)], -1)
    paths = canvas.frame.lung_point(_HILUM + paths)
    layer: np.ndarray = np.zeros((canvas.size, canvas.size), np.float32)
    for first, last, width in ((0, 5, 0.009), (4, 8, 0.006), (7, 11, 0.003)):
        layer = np.maximum(layer, canvas.lines(paths[:, first:last], width))
    hila = canvas.fill(canvas.frame.lung_point(_HILUM + circle(20) * (0.17, 0.065)))
    return 0.75 * canvas.soften(layer, 0.003) + 0.9 * canvas.soften(hila, 0.018)


def _aorta(canvas: _Canvas) -> np.ndarray:
    """From the heart over the arch down along the spine."""
    wide = canvas.frame.patient.aorta
    path = [(-0.24, 0.44), (-0.24, 0.28), (-0.08, 0.19 - 0.3 * wide), (0.24, 0.20 - 0.3 * wide)]
    path += [(0.48 + wide, 0.32), (0.56 + wide, 0.52), (0.54 + 0.5 * wide, 0.78), (0.44, 1.0)]
    line = canvas.frame.lung_point(spline(np.array(path), closed=False))
    return canvas.soften(canvas.fill(strip(line, 0.062 + 0.35 * wide)), 0.006)


def _airway(canvas: _Canvas) -> np.ndarray:
    path = np.array([(-0.10, -0.3), (-0.06, -0.05), (0.03, 0.20), (0.08, 0.40)])
    tube = canvas.fill(strip(canvas.frame.body_point(path), 0.044))
    bronchus = canvas.fill(canvas.frame.lung_point((0.09, 0.43) + circle(20) * (0.075, 0.028)))
    return canvas.soften(np.maximum(tube, bronchus), 0.006)


def _stomach(canvas: _Canvas) -> np.ndarray:
    extent = 0.03 + 0.03 * canvas.frame.patient.bubble
    shape = extent * circle(20) * (1.7, 1.0) + (0.0, extent + 0.03)
    return canvas.soften(canvas.fill(canvas.frame.around((-0.30, 0.81), shape)), 0.011)


def _draw_normal(canvas: _Canvas) -> np.ndarray:
    """Brightness f32[size, size] of the healthy chest, before exposure."""
    frame = canvas.frame
    y = ((np.arange(canvas.size, dtype=np.float32) + 0.5) / canvas.size)[:, None]
    body = _body(canvas)
    both = [canvas.soften(canvas.lung(side), 0.005) for side in SIDES]
    vessels = canvas.soften(canvas.fill(frame.lung_point(frame.mediastinum())), 0.02)
    heart = canvas.soften(canvas.heart(), 0.007)
    inside = np.maximum(0.62 * heart, 0.25 * vessels)
    air = 0.5 * (both[0] + both[1]) * (1.0 - inside)
    canvas.air, canvas.bones = air.astype(np.float32), _bones(canvas)
    picture = body * (0.60 + 0.12 * np.clip(2.2 * y - 1.0, 0.0, 1.0))
    picture += 0.14 * _arms(canvas)
    picture -= 0.44 * air
    picture += 0.03 * np.maximum(heart, vessels)
    picture += 0.06 * _aorta(canvas) * (0.3 + 0.7 * air)
    picture -= 0.08 * _airway(canvas)
    picture += body * canvas.bones * (0.6 + 0.4 * air)
    picture += 0.10 * canvas.vessels() * air
    picture -= 0.17 * _stomach(canvas)
    return picture


def _centre(lesion: Lesion, canvas: _Canvas, margin: float) -> tuple[float, float]:
    """(d, v) in the lung, behind the heart, at least `margin` (in d) from its borders."""
    v = findings.height(lesion)
    front = float(np.interp(v, [v for _, v in _FRONT[::-1]], [d for d, _ in _FRONT[::-1]]))
    back = float(np.interp(v, [v for _, v in _BACK], [d for d, _ in _BACK]))
    edge = canvas.frame.heart_edges()[1]
    front = max(front, float(np.interp(v, (0.45, 0.6), (front, edge))))
    middle = 0.5 * (front + back)
    front, back = min(front + margin, middle), max(back - margin, middle)
    return front + (back - front) * lesion.shape[DEPTH_NUMBER], v


def _fluid(lesion: Lesion, canvas: _Canvas) -> np.ndarray:
    """Free fluid, which rises at the back and, less, at the front."""
    low, high = findings.FLUID_HEIGHT[lesion.finding.severity]
    top = 1.0 - (low + (high - low) * lesion.shape[0])
    d = np.linspace(1.15, -1.15, 24)
    v = top + 0.16 * np.clip(1.0 - ((d + 0.15) / 1.1) ** 2, 0.0, 1.0) ** 0.7
    outline = np.concatenate([np.stack([d, v], axis=-1), [(-1.15, 1.2), (1.15, 1.2)]])
    return canvas.fill(canvas.frame.lung_point(outline)) * canvas.lungs()


def _free_air(lesion: Lesion, canvas: _Canvas) -> np.ndarray:
    """Air in front of, above and behind the collapsed lung."""
    frame = canvas.frame
    collapsed = canvas.fill(frame.lung_point(findings.collapsed_lung(lesion, frame)))
    return canvas.lung(SIDES[0]) * (1.0 - collapsed) * (1.0 - canvas.heart())


def _blob(lesion: Lesion, canvas: _Canvas) -> np.ndarray:
    outline = canvas.frame.around(_centre(lesion, canvas, 0.22), findings.blob(lesion))
    return canvas.fill(outline) * canvas.lungs()


def _disc(lesion: Lesion, canvas: _Canvas) -> np.ndarray:
    return canvas.fill(canvas.frame.around(_centre(lesion, canvas, 0.18), findings.disc(lesion)))


def _band(lesion: Lesion, canvas: _Canvas) -> np.ndarray:
    path = canvas.frame.around(_centre(lesion, canvas, 0.26), findings.band(lesion))
    return canvas.fill(strip(path, findings.BAND_WIDTH)) * canvas.lungs()


def _perihilar(lesion: Lesion, canvas: _Canvas) -> np.ndarray:
    offsets = findings.EDEMA_RADIUS[lesion.finding.severity] * circle(32) * (0.9, 1.0)
    area = canvas.fill(canvas.frame.around((_HILUM[0], 0.52), offsets))
    return area * canvas.lungs() * (1.0 - 0.6 * canvas.heart())


def _tube(lesion: Lesion, canvas: _Canvas) -> np.ndarray:
    tip = 0.17 + 0.07 * lesion.shape[0]
    path = np.array([(-0.09, -0.3), (-0.06, -0.05), (-0.06 + 0.36 * (tip + 0.05), tip)])
    return canvas.lines(canvas.frame.body_point(path), 0.012, least=0.9)


def _catheter(lesion: Lesion, canvas: _Canvas) -> np.ndarray:
    """From the neck or from below the clavicle into the superior vena cava."""
    if lesion.shape[1] < 0.5:
        start = [(-0.16, -0.3), (-0.18, -0.1), (-0.20, 0.06)]
    else:
        start = [(-0.62, 0.16), (-0.50, 0.07), (-0.34, 0.06)]
    end = [(-0.17, 0.22), (-0.12, 0.32), (-0.10, 0.40 + 0.05 * lesion.shape[0])]
    path = spline(np.array(start + end), closed=False)
    return canvas.lines(canvas.frame.body_point(path), 0.009, least=0.8)


def _pacemaker(lesion: Lesion, canvas: _Canvas) -> np.ndarray:
    """The generator, seen from its edge, under the skin of the chest; a lead to the heart."""
    frame = canvas.frame
    v = 0.17 + 0.03 * lesion.shape[1]
    edge = np.array([(-0.80, v - 0.06), (-0.86, v + 0.01), (-0.93, v + 0.07)])
    box = canvas.fill(strip(frame.body_point(spline(edge, closed=False)), 0.034))
    start = frame.body_point(np.array([(-0.80, v - 0.05), (-0.55, 0.06), (-0.28, 0.09)]))
    heart = np.array([(-0.14, 0.30), (-0.10, 0.60), (-0.36, 0.80), (-0.66, 0.85)])
    path = spline(np.concatenate([start, frame.lung_point(heart)]), closed=False)
    return np.maximum(box, canvas.lines(path, 0.009, least=0.7))


_SHAPES = {
    "edema": _perihilar,
    "pleural effusion": _fluid,
    "pneumothorax": _free_air,
    "consolidation": _blob,
    "nodule": _disc,
    "atelectasis": _band,
    **dict(zip(DEVICES, (_tube, _catheter, _pacemaker), strict=True)),
}


def _coverage(lesion: Lesion, canvas: _Canvas) -> tuple[np.ndarray, ...]:
    if lesion.finding.name == "cardiomegaly":
        return (canvas.heart(),)
    return (_SHAPES[lesion.finding.name](lesion, canvas),)
