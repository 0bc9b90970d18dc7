"""Encoding with a given state, as evaluators, export and `mmrl.load` do it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from mmrl import build, sequences
from mmrl.devices import gather, sharding
from mmrl.training.encoding import PRESENT
from mmrl.training.learner import Layout
from mmrl.types import InputError
from mmrl.wiring import Name, Wiring


class Items(Protocol):
    """What can be encoded: N items with the arrays of some inputs."""

    def __len__(self) -> int: ...

    def arrays(
        self, names: Sequence[str], rows: Sequence[int], tower: str = ""
    ) -> Mapping[str, np.ndarray]:
        """Arrays "<input>.<array>" [n, ...] of some rows, as `tower` reads the inputs."""


class Data(Items, Protocol):
    """Items with an identity, by which their encodings are remembered."""

    sha256: str


class Predict:
    """Encodes items with the towers of a learner; implements evaluators' Predict.

    Args:
      layout: of the learner whose states will be given.
      mesh: batches are spread over it.
      batch_size: rows per device call; rounded up to a multiple of the devices.

    Attributes:
      layout: as given.
      features: tower or fusion -> features that it provides.
      grids: image tower -> grid of its regions.
    """

    def __init__(self, layout: Layout, mesh: Mesh, *, batch_size: int = 64) -> None:
        shards = mesh.shape["data"] * mesh.shape["fsdp"]
        self.batch_size = -(-batch_size // shards) * shards
        self.features, self.grids = layout.features, layout.grids
        self.layout, self._graph = layout, layout.wired.graph
        self._rows = sharding.batch_sharding(mesh)
        everywhere = sharding.replicated(mesh)
        self._encode = jax.jit(self._run, static_argnums=2, out_shardings=everywhere)
        self._cache: dict[tuple[Any, ...], dict[str, np.ndarray]] = {}
        self._cached_step: jax.Array | None = None

    @property
    def provides(self) -> tuple[str, ...]:
        """Names of all encodings of the towers' own inputs, and of what fusions read."""
        return tuple(
            f"{tower}.{feature}"
            for tower, features in self.features.items()
            for feature in features
        )

    def encode(self, state: Any, data: Data, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Encodings of all items, remembered until another state is given.

        Args:
          names: "<tower>[@<input>].<feature>".

        Returns:
          name -> [N, ...] on the host, and "present" bool[N]: the items that have every input that
          their encodings need; the encodings of the others mean nothing.

        Raises:
          InputError: a name that no tower provides, an encoding of averaged weights that are not
            kept, one that depends on the other items, or an input that the items do not have.
        """
        # A new state has a new array for its step. Holding that array keeps its identity unique.
        if self._cached_step is not state["step"]:
            self._cache, self._cached_step = {}, state["step"]
        encoded: dict[str, np.ndarray] = {PRESENT: np.ones(len(data), bool)}
        for own in self._passes(names):
            key = (data.sha256, *own)
            if key not in self._cache:
                parts = list(self.stream(state, data, own))
                self._cache[key] = {
                    name: np.concatenate([part[name] for part in parts]) for name in parts[0]
                }
            found = dict(self._cache[key])
            encoded[PRESENT] = encoded[PRESENT] & found.pop(PRESENT)
            encoded |= found
        return encoded

    def stream(
        self, state: Any, data: Items, names: Sequence[str]
    ) -> Iterator[dict[str, np.ndarray]]:
        """As `encode`, one block of at most `batch_size` rows after the other; keeps nothing."""
        wired = {own: Wiring.of(self._graph, own) for own in self._passes(names)}
        weights = self.layout.weights_of(state)
        for start in range(0, max(len(data), 1), self.batch_size):
            rows = range(start, min(start + self.batch_size, len(data)))
            block: dict[str, np.ndarray] = {PRESENT: np.ones(len(rows), bool)}
            for own, chosen in wired.items():
                arrays = self._read(data, rows, chosen)
                for one in (i for name in chosen.encodings for i in chosen.inputs_of(name)):
                    if f"{one}.{PRESENT}" in arrays:
                        block[PRESENT] = block[PRESENT] & arrays[f"{one}.{PRESENT}"]
                padded = {name: _padded(array, self.batch_size) for name, array in arrays.items()}
                placed = sharding.to_global(padded, self._rows)
                found = gather.to_host(self._encode(weights, placed, chosen))
                for name in own:
                    full = str(self._graph.resolve(name))
                    block[name] = np.asarray(found[full])[: len(rows)]
            yield block

    def _read(self, data: Items, rows: Sequence[int], wired: Wiring) -> dict[str, np.ndarray]:
        """The arrays that a pass needs; `index` is that of the items where draws depend on it."""
        inputs: dict[str, list[str]] = {}
        for one, tower in wired.readers().items():
            inputs.setdefault(tower or "", []).append(one)
        arrays: dict[str, np.ndarray] = {}
        for tower, names in inputs.items():
            arrays |= data.arrays(names, rows, tower)
        if wired.derived:
            arrays["index"] = np.asarray(rows, np.int32)
        return arrays

    def check(self, names: Sequence[str]) -> None:
        """Refuses names that cannot be encoded.

        Raises:
          InputError: names the first one and lists the choices.
        """
        self._passes(names)

    def _passes(self, names: Sequence[str]) -> list[tuple[str, ...]]:
        """The names of each tower or fusion, in order; every one takes a pass of its own."""
        found: dict[tuple[str, bool], list[str]] = {}
        for name in dict.fromkeys(sequences.each(names, "names of encodings")):
            parsed = self._graph.resolve(name)
            if parsed.feature not in self.features.get(parsed.tower, ()):
                raise InputError(build.unknown("encoding", name, self.provides))
            self._check(name, parsed)
            found.setdefault((parsed.tower, parsed.average), []).append(name)
        return [tuple(own) for own in found.values()]

    def _check(self, name: str, parsed: Name) -> None:
        if parsed.average and not self.layout.averages:
            raise InputError(
                f"encoding {name!r}: the run keeps no averaged weights; expected a run with "
                "config.average.evaluate=true, or with losses that read average/ encodings"
            )
        if Wiring.of(self._graph, [parsed]).coupled:
            raise InputError(
                f"encoding {name!r} depends on the other items of a batch, so an item alone has "
                "none; expected an encoding that reads no coupled input"
            )

    def _run(
        self, weights: Mapping[str, Any], arrays: Mapping[str, jax.Array], wired: Wiring
    ) -> dict[str, jax.Array]:
        variables = weights["variables"]
        module = self.layout.merge(weights["params"], variables)
        average = self.layout.merge_average(weights.get("average"), variables)
        return module.encode(arrays, train=False, wired=wired, average=average)


def _padded(array: np.ndarray, rows: int) -> np.ndarray:
    return np.pad(array, ((0, rows - len(array)), *((0, 0),) * (array.ndim - 1)))
