"""Copies arrays to the host, including arrays that are divided among processes.

All processes must call these functions with the same arrays in the same order. Each call waits for
all devices of the process, not only for the one that it reads from. Otherwise, on CPU, a slower
device could mix up the messages of this program with those of the next one.
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P


def to_host(tree: Any) -> Any:
    """Copies a tree of arrays that are replicated or held by this process to np.ndarray."""
    return jax.device_get(jax.block_until_ready(tree))


def whole(array: jax.Array) -> np.ndarray:
    """Copies an array with any sharding to the host."""
    if not (array.is_fully_addressable or array.is_fully_replicated):
        mesh: Any = array.sharding.mesh  # type: ignore[attr-defined]
        array = _replicated(array, mesh)
    return to_host(array)


def of_processes(array: np.ndarray) -> np.ndarray:
    """Stacks one array [...] of the same shape from each process: [processes, ...]."""
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
