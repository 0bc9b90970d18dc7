"""Encodes a batch: takes the steps of a wiring one after the other."""

import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from mmrl import streams, wiring
from mmrl.context import Context
from mmrl.training.arguments import arrays_of, fitting, named, read, taken
from mmrl.types import Batch, Encoded
from mmrl.wiring import Derive, Encode, Fuse, Name, Select, Wiring

ROWS = "rows"
"""bool[B] of a batch: the rows that are examples, where some only fill it up."""

PRESENT = "present"
"""bool[B] of an input: the rows that have it."""


class Encoding:
    """One pass over the steps of a wiring.

    Args:
      own: a learner: modules by name as attributes towers, derived and fusions.
      average: the same learner with averaged weights; None where nothing reads them.
      batch, wired, step, train: as of `Learner.encode`.
    """

    def __init__(
        self,
        own: Any,
        average: Any,
        batch: Batch,
        wired: Wiring,
        *,
        step: jax.Array | int,
        train: bool,
    ) -> None:
        self._own, self._average = own, average
        self._batch, self._wired = batch, wired
        self._step, self._train = jnp.asarray(step, jnp.int32), train

    def run(
        self,
        steps: Iterable[wiring.Step],
        found: Encoded,
        key: jax.Array | None,
        drawn: jax.Array | None,
    ) -> dict[str, jax.Array]:
        """`found`, with what the steps make: encodings, and arrays of derived inputs."""
        found = dict(found)
        for one in steps:
            if isinstance(one, Derive):
                found |= self._derive(one, found, drawn)
            elif isinstance(one, Encode):
                found |= self._encode(one, found, key)
            elif isinstance(one, Select):
                found[str(one.name)] = self._select(one.name, found)
            else:
                found |= self._fuse(one, found, key)
        return found

    def _derive(self, one: Derive, found: Encoded, drawn: jax.Array | None) -> dict[str, jax.Array]:
        derived = self._wired.graph.input(one.name)
        assert derived is not None
        given = {**self._batch, **found}
        context = Context(
            step=self._step,
            key=None if drawn is None else streams.fold(drawn, one.name),
            present=present(self._wired, given, derived.reads),
        )
        module = self._own.derived[one.name]
        values = jax.lax.stop_gradient(read(derived.reads, found))
        values |= taken(self._wired.graph, derived.arrays, given)
        carried = arrays_of(self._wired.graph, derived.of, given)
        reads: tuple[tuple[str, Name | str], ...] = (*derived.reads, *derived.arrays)
        with fitting("derived", one.name, module, self._wired, reads, values):
            made = module(context=context, given=carried, **values)
        return named(one.name, made)

    def _encode(self, one: Encode, found: Encoded, key: jax.Array | None) -> dict[str, jax.Array]:
        given = {**self._batch, **found}
        arrays = {name: arrays_of(self._wired.graph, name, given) for name, _ in one.wanted}
        own = None if key is None else streams.fold(key, one.tower)
        made = (
            self._of_average().towers[one.tower](arrays, dict(one.wanted), train=False, key=None)
            if one.average
            else self._own.towers[one.tower](arrays, dict(one.wanted), train=self._train, key=own)
        )
        return {
            str(Name(one.tower, name, feature, one.average)): _stopped(array, one.average)
            for name, features in made.items()
            for feature, array in features.items()
        }

    def _select(self, name: Name, found: Encoded) -> jax.Array:
        derived = self._wired.graph.input(name.input)
        assert derived is not None
        return jnp.take(
            found[str(name._replace(input=derived.of))], found[f"{name.input}.rows"], axis=0
        )

    def _fuse(self, one: Fuse, found: Encoded, key: jax.Array | None) -> dict[str, jax.Array]:
        name = Name(one.name, one.input, "", one.average)
        graph, given = self._wired.graph, {**self._batch, **found}
        own = None if key is None else streams.fold(key, f"{one.name}@{one.input}")
        module = (self._of_average() if one.average else self._own).fusions[one.name]
        encodings, arrays = graph.reads(name).items(), graph.arrays(name).items()
        values = read(encodings, found) | taken(graph, arrays, given)
        with fitting("fusion", one.name, module, self._wired, (*encodings, *arrays), values):
            made = module(
                one.features,
                train=self._train and not one.average,
                key=None if one.average else own,
                **values,
            )
        return {
            str(name._replace(feature=feature)): _stopped(made[feature], one.average)
            for feature in one.features
        }

    def _of_average(self) -> Any:
        if self._average is None:
            raise ValueError("an encoding of averaged weights without averaged weights")
        return self._average


def _stopped(array: jax.Array, average: bool) -> jax.Array:
    return jax.lax.stop_gradient(array) if average else array


def kept(found: Encoded, names: frozenset[str]) -> dict[str, jax.Array]:
    """Of encodings and arrays of derived inputs, those with these names, or of these inputs."""
    return {
        name: array
        for name, array in found.items()
        if name in names or f"{name.partition('.')[0]}." in names
    }


def present(
    wired: Wiring, given: Encoded, encodings: Iterable[tuple[str, Name]]
) -> jax.Array | None:
    """bool[B]: rows with every input of these encodings; None where no row can lack one."""
    inputs = dict.fromkeys(one for _, name in encodings for one in wired.inputs_of(name))
    names = (ROWS, *(f"{name}.{PRESENT}" for name in inputs))
    masks = [given[name] for name in names if name in given]
    return functools.reduce(jnp.logical_and, masks) if masks else None
