"""Findings, devices and anatomy that a report names, as labels."""

import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from mmrl import build
from mmrl.data.corpus import Corpus
from mmrl.data.entities.extract import extract
from mmrl.data.entities.lexicon import CHOICES
from mmrl.data.inputs.base import Input, Place, Reader, Rows, Shapes
from mmrl.types import InputError

UNSTATED = ("ignore", "absent")


def entity_names(name: str, data: Mapping[str, Any], default: tuple[str, ...]) -> tuple[str, ...]:
    """The option `entities` of an input, checked; empty: `default`.

    Raises:
      InputError: a name that the lexicon does not have, or that is given twice.
    """
    where, known = f"config.inputs.{name}.entities", sorted({*sum(CHOICES.values(), ())})
    given = tuple(data.get("entities") or ()) or default
    for one in given:
        if one not in known:
            raise InputError(build.unknown(f"entity in {where}", one, known))
    build.check_distinct(where, given)
    return given


class Entities(Input):
    """values f32[n, E], 1 where the report states the entity and 0 where not; mask bool[n, E].

    `mask` is False where the report leaves it open: where it only guesses, where it does not name
    the entity (unless `unstated` is "absent"), and wherever it is not English. A report that states
    an entity in one sentence and denies it in another states it.

    Args: as of Input. `entities` lists the E names, in order, by default all findings and devices;
      `sections` are those of the text that is read.

    Raises:
      InputError: a name that the lexicon does not have, or another value of `unstated`.
    """

    options: ClassVar[tuple[str, ...]] = ("entities", "unstated", "sections")

    def __init__(self, name: str, tower: Mapping[str, Any], data: Mapping[str, Any]) -> None:
        super().__init__(name, tower, data)
        default = tuple(dict.fromkeys((*CHOICES["finding"], *CHOICES["device"])))
        self.label_names = entity_names(name, data, default)
        self.unstated = str(data.get("unstated", "ignore"))
        if self.unstated not in UNSTATED:
            where = f"value of config.inputs.{name}.unstated"
            raise InputError(build.unknown(where, self.unstated, UNSTATED))

    def shapes(self) -> Shapes:
        """See Input."""
        count = len(self.label_names)
        return {"values": ((count,), np.float32), "mask": ((count,), np.bool_)}

    def table(self, corpus: Corpus) -> tuple[np.ndarray, np.ndarray]:
        """values i8[N, E] and mask bool[N, E] of all examples of a corpus."""
        made = self.open(Place(corpus))(Rows(range(len(corpus)), 0, np.zeros(0, np.uint64)), {})
        return made["values"].astype(np.int8), made["mask"]

    def open(self, place: Place) -> Reader:
        """See Input."""
        return _Entities(self, place)


@functools.lru_cache(1 << 14)
def _states(report: str) -> Mapping[str, int]:
    """Name -> 1 stated, 0 denied, -1 only guessed."""
    found: dict[str, int] = {}
    rank = {1: 2, 0: 1, -1: 0}
    for one in extract(report):
        value = -1 if one.uncertain else 0 if one.negated else 1
        if one.kind in CHOICES and rank[value] >= rank[found.get(one.name, -1)]:
            found[one.name] = value
    return found


class _Entities:
    """Reads reports when they are asked for."""

    def __init__(self, own: Entities, place: Place) -> None:
        self._texts, _ = place.corpus.texts_of(tuple(own.data["sections"]))
        self._foreign, self._columns = place.corpus.foreign, own.label_names
        self._absent = own.unstated == "absent"

    def __call__(self, rows: Rows, made: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        table = np.full((len(rows.indices), len(self._columns)), -1, np.int8)
        for row, index in zip(table, rows.indices, strict=True):
            if index not in self._foreign:
                found = _states(self._texts[index])
                default = 0 if self._absent else -1
                row[:] = [found.get(name, default) for name in self._columns]
        return {"values": (table == 1).astype(np.float32), "mask": table >= 0}
