"""Which examples training draws more often: groups of equal shares, and subsets by their ids."""

import collections
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mmrl import build
from mmrl.types import InputError

SAMPLERS = ("shuffle", "classes", "groups")
UNITS = ("example", "patient")
PATIENT, DUPLICATES = "patient", "duplicates"
NONE = "none of them"


class Groups(NamedTuple):
    """Examples in groups that training draws equally often.

    Attributes:
      names: of the G groups.
      of: i32[N], the group of each example, -1 for examples that are left out.
      members: k, examples of a group that stand together in a batch.
    """

    names: tuple[str, ...]
    of: np.ndarray
    members: int = 1

    def within(self, rows: np.ndarray) -> "Groups":
        """These groups with the examples of `rows` alone; those of fewer than k are left out."""
        chosen = np.full_like(self.of, -1)
        chosen[rows] = self.of[rows]
        sizes = np.bincount(chosen[chosen >= 0], minlength=len(self.names))
        kept = np.flatnonzero(sizes >= self.members)
        number = np.full(len(self.names) + 1, -1, np.int32)  # the last one is that of -1
        number[kept] = np.arange(len(kept))
        return Groups(tuple(self.names[i] for i in kept), number[chosen], self.members)


def of_keys(keys: Sequence[str], members: int = 1) -> Groups:
    """Examples with equal keys; those whose key is empty are left out."""
    names = tuple(sorted({key for key in keys if key}))
    number = {name: index for index, name in enumerate(names)} | {"": -1}
    return Groups(names, np.array([number[key] for key in keys], np.int32), members)


def of_classes(names: Sequence[str], present: np.ndarray, members: int = 1) -> Groups:
    """Examples by class, and a last group of those that have none.

    An example with several classes belongs to the rarest of them, so no example is in two groups.

    Args:
      names: of the C classes.
      present: bool[N, C], whether an example certainly has the class.
    """
    present = np.asarray(present, bool)
    rarity = np.argsort(present.sum(axis=0), kind="stable")
    ranked = present[:, rarity]
    of = np.where(ranked.any(axis=1), rarity[np.argmax(ranked, axis=1)], len(names))
    return Groups((*names, NONE), of.astype(np.int32), members)


def read_ids(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """The ids of a file: one a line, without blank lines and lines that begin with "#".

    Raises:
      InputError: it cannot be read, has no id, or has one twice.
    """
    try:
        lines = pathlib.Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "no UTF-8 text"
        raise InputError(f"config.data.subset={os.fspath(path)}: {reason}") from None
    ids = tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))
    if not ids:
        raise InputError(f"config.data.subset={os.fspath(path)} has no id; expected one a line")
    twice, count = collections.Counter(ids).most_common(1)[0]
    if count > 1:
        raise InputError(f"config.data.subset={os.fspath(path)} has {json.dumps(twice)} twice")
    return ids


def subset(
    wanted: Sequence[str], ids: Sequence[str], patients: Sequence[str], unit: str
) -> np.ndarray:
    """i64[n], ascending: the examples with the ids, or all examples of their patients.

    Args:
      unit: one of UNITS.

    Raises:
      InputError: an id that no example has.
    """
    place = {one: index for index, one in enumerate(ids)}
    unknown = [one for one in wanted if one not in place]
    if unknown:
        raise InputError(
            f"config.data.subset has {len(unknown)} ids that no example of the training split has, "
            f"such as {json.dumps(unknown[0])}; ids look like {json.dumps(ids[0])}"
        )
    rows = {place[one] for one in wanted}
    if unit == PATIENT:
        chosen = {patients[row] for row in rows}
        rows = {row for row, patient in enumerate(patients) if patient in chosen}
    return np.array(sorted(rows), np.int64)


def check(data: Mapping[str, Any], batch_size: int) -> None:
    """Refuses values of config.data.sampler and config.data.subset_by out of range.

    Args:
      batch_size: of the global batch.

    Raises:
      InputError: names the option in one line.
    """
    sampler = data["sampler"]
    for key, value, choices in (
        ("sampler.name", sampler["name"], SAMPLERS),
        ("subset_by", data["subset_by"], UNITS),
    ):
        if value not in choices:
            raise InputError(build.unknown(f"value of config.data.{key}", value, choices))
    members = sampler["members"]
    if members < 1:
        raise InputError(f"config.data.sampler.members={members} must be at least 1")
    if sampler["name"] == "shuffle" and members > 1:
        raise InputError(
            f"config.data.sampler.members={members} with config.data.sampler.name=shuffle; "
            "expected name=groups or name=classes"
        )
    if batch_size % members:
        raise InputError(
            f"config.data.sampler.members={members} does not divide config.batch_size={batch_size}"
        )
