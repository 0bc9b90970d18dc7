"""Subgroups of held-out examples by sex, age, projection and source, for rows of their own.

An encoder with a good mean may fail for some patients; a row per subgroup shows it. Groups are
"sex=F", "age=40-59", "projection=PA", "source=openi" and, where a record does not state the
attribute, "sex=unknown". Only records are read, no pixels.
"""

import bisect
from collections.abc import Callable, Mapping

import numpy as np

from mmrl.data.image import dicom
from mmrl.evaluators.base import HeldOut
from mmrl.types import Record

LEAST = 20
"""Examples of the smallest subgroup that has rows of its own."""

UNKNOWN = "unknown"

_BANDS = ("<20", "20-39", "40-59", "60-79", "80+")
_BOUNDS = (20, 40, 60, 80)  # years at which the next band begins
_SEXES = {"F": "F", "FEMALE": "F", "M": "M", "MALE": "M", "O": "other", "OTHER": "other"}


def subgroups(data: HeldOut, *, least: int = LEAST) -> dict[str, np.ndarray]:
    """The subgroups that are large enough for rows of their own.

    The groups of an attribute are left out unless at least two of them, without the unknown ones,
    have `least` examples. `sizes` counts all groups, also those left out.

    Args:
      least: examples of the smallest group.

    Returns:
      "attribute=group" -> bool[N]; attributes and groups in a fixed order, unknown last.
    """
    found: dict[str, np.ndarray] = {}
    for attribute, groups in _members(data).items():
        large = {group: mask for group, mask in groups.items() if mask.sum() >= least}
        if len(large.keys() - {UNKNOWN}) >= 2:
            found |= {f"{attribute}={group}": mask for group, mask in large.items()}
    return found


def sizes(data: HeldOut) -> dict[str, int]:
    """Examples of every group of any size, "attribute=group" -> count, unknown ones included."""
    return {
        f"{attribute}={group}": int(mask.sum())
        for attribute, groups in _members(data).items()
        for group, mask in groups.items()
    }


def _members(data: HeldOut) -> dict[str, dict[str, np.ndarray]]:
    """Attribute -> group -> bool[N]."""
    records = map(data.record, range(len(data)))
    rows = [[group_of(record) for group_of in _ATTRIBUTES.values()] for record in records]
    found = {}
    for attribute, column in zip(_ATTRIBUTES, zip(*rows, strict=True), strict=False):
        groups = np.array(column)
        present = sorted(set(column), key=_order)
        found[attribute] = {group: groups == group for group in present}
    return found


def _order(group: str) -> tuple[bool, int, str]:
    """Ages by age, other groups by name, unknown last."""
    return group == UNKNOWN, _BANDS.index(group) if group in _BANDS else 0, group


def _sex(record: Record) -> str:
    return _SEXES.get(record.attributes.get("sex", "").strip().upper(), UNKNOWN)


def _age(record: Record) -> str:
    """The band of the age; impossible ages and bounds such as "50+" are unknown."""
    age = dicom.years(record.attributes.get("age", ""))
    return UNKNOWN if age is None else _BANDS[bisect.bisect(_BOUNDS, age)]


def _projection(record: Record) -> str:
    stated = record.images[0].projection if record.images else "UNKNOWN"
    return UNKNOWN if stated == "UNKNOWN" else stated


def _source(record: Record) -> str:
    """What the record states; else the corpus, which differs within a mixture."""
    return record.attributes.get("source", "").strip() or record.source or UNKNOWN


_ATTRIBUTES: Mapping[str, Callable[[Record], str]] = {
    "sex": _sex,
    "age": _age,
    "projection": _projection,
    "source": _source,
}
