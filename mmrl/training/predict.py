"""Encoding with a given state, as evaluators, export and `mmrl.load` do it."""

import collections
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from mmrl import build, sequences, wiring
from mmrl.devices import gather, sharding
from mmrl.training.learner import Layout
from mmrl.types import InputError
from mmrl.wiring import Wiring

PRESENT = "present"


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
      features: tower -> features that it provides. grids: image tower -> grid of its regions.
    """

    def __init__(self, layout: Layout, mesh: Mesh, *, batch_size: int = 64) -> None:
        shards = mesh.shape["data"] * mesh.shape["fsdp"]
        self.batch_size = -(-batch_size // shards) * shards
        self.features, self.grids = layout.features, layout.grids
        self.layout, self._own = layout, dict(layout.wired.own)
        self._rows = sharding.batch_sharding(mesh)
        everywhere = sharding.replicated(mesh)
        self._encode = jax.jit(self._run, static_argnums=2, out_shardings=everywhere)
        self._cache: dict[tuple[Any, ...], dict[str, np.ndarray]] = {}
        self._cached_step: jax.Array | None = None

    @property
    def provides(self) -> tuple[str, ...]:
        """Names of all encodings of the towers' own inputs."""
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
          name -> [N, ...] on the host, and "present" bool[N]: the items that have every input; the
          encodings of the others mean nothing.

        Raises:
          InputError: a name that no tower provides, or an input that the items do not have.
        """
        # A new state has a new array for its step. Holding that array keeps its identity unique.
        if self._cached_step is not state["step"]:
            self._cache, self._cached_step = {}, state["step"]
        encoded: dict[str, np.ndarray] = {PRESENT: np.ones(len(data), bool)}
        for own in self._by_tower(names):
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
        wired = {tuple(own): Wiring.of(self._own, own) for own in self._by_tower(names)}
        weights = weights_of(state)
        for start in range(0, max(len(data), 1), self.batch_size):
            rows = range(start, min(start + self.batch_size, len(data)))
            block: dict[str, np.ndarray] = {PRESENT: np.ones(len(rows), bool)}
            for own, chosen in wired.items():
                ((tower, wanted),) = chosen.wanted().items()
                arrays = dict(data.arrays(list(wanted), rows, tower))
                for array in (f"{name}.{PRESENT}" for name in wanted):
                    if array in arrays:
                        block[PRESENT] = block[PRESENT] & arrays[array]
                padded = {name: _padded(array, self.batch_size) for name, array in arrays.items()}
                placed = sharding.to_global(padded, self._rows)
                found = gather.to_host(self._encode(weights, placed, chosen))
                for name in own:
                    full = str(wiring.resolve(name, self._own))
                    block[name] = np.asarray(found[full])[: len(rows)]
            yield block

    def check(self, names: Sequence[str]) -> None:
        """Refuses names that no tower provides.

        Raises:
          InputError: names the first one and lists the choices.
        """
        self._by_tower(names)

    def _by_tower(self, names: Sequence[str]) -> list[tuple[str, ...]]:
        """The names of each tower, in order; every tower takes a pass of its own."""
        found: dict[str, list[str]] = collections.defaultdict(list)
        for name in dict.fromkeys(sequences.each(names, "names of encodings")):
            parsed = wiring.resolve(name, self._own)
            if parsed.feature not in self.features.get(parsed.tower, ()):
                raise InputError(build.unknown("encoding", name, self.provides))
            found[parsed.tower].append(name)
        return [tuple(own) for own in found.values()]

    def _run(
        self, weights: Mapping[str, Any], arrays: Mapping[str, jax.Array], wired: Wiring
    ) -> dict[str, jax.Array]:
        module = self.layout.merge(weights["params"], weights["variables"])
        return module.encode(arrays, train=False, wired=wired)


def _padded(array: np.ndarray, rows: int) -> np.ndarray:
    return np.pad(array, ((0, rows - len(array)), *((0, 0),) * (array.ndim - 1)))


def weights_of(state: Mapping[str, Any]) -> dict[str, Any]:
    """The averaged parameters if the run keeps them, else the current ones."""
    return {"params": state.get("ema", state["params"]), "variables": state["variables"]}
