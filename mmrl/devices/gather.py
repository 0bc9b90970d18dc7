"""Whole arrays on the host, whichever process holds their parts.

All processes must ask for the same, in the same order. Each waits until all its devices are done,
not only the one it reads from: on CPU a device that lags behind would mix the messages of this
program with those of the next, which need not wait for it.
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P


def to_host(tree: Any) -> Any:
    """Replicated arrays, or those of this process -> np.ndarray, once all devices are done."""
    return jax.device_get(jax.block_until_ready(tree))


def whole(array: jax.Array) -> np.ndarray:
    """An array however it is spread."""
    if not (array.is_fully_addressable or array.is_fully_replicated):
        mesh: Any = array.sharding.mesh  # type: ignore[attr-defined]
        array = _replicated(array, mesh)
    return to_host(array)


def of_processes(array: np.ndarray) -> np.ndarray:
    """Every process's array of the same shape [...], stacked: [processes, ...]."""
    if jax.process_count() == 1:
        return array[None]
    by_process: list[list[jax.Device]] = [[] for _ in range(jax.process_count())]
    for device in jax.devices():
        by_process[device.process_index].append(device)
    mesh = Mesh(np.array(by_process), ("process", "local"))
    spread = NamedSharding(mesh, P("process"))
    return to_host(_replicated(jax.make_array_from_process_local_data(spread, array[None]), mesh))


def _replicated(array: jax.Array, mesh: Mesh) -> jax.Array:
    return jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, P()))(array)
