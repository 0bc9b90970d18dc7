"""The device mesh, and where every array of a step lives on it.

Mesh axes: `data` and `fsdp` both split the batch, `fsdp` also splits parameters and optimizer
state, `tensor` splits the width of attention and MLP. Parameters name their axes logically
(`mmrl.models.layers`); LOGICAL_RULES maps those names to mesh axes.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mmrl.types import InputError

MESH_AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")

LOGICAL_RULES = (
    ("embed", "fsdp"),
    ("channels_in", "fsdp"),
    ("patch", "fsdp"),
    ("mlp", "tensor"),
    ("heads", "tensor"),
    ("vocab", "tensor"),
    ("channels_out", "tensor"),
    ("joint", None),
    ("position", None),
    ("head_dim", None),
    ("norm", None),
    ("layers", None),
    ("qkv", None),
)


def make_mesh(axes: Mapping[str, int], devices: list[Any] | None = None) -> Mesh:
    """The named mesh over all devices; one axis may be -1 and takes what is left.

    Args:
      axes: data, fsdp, tensor -> size.
      devices: defaults to all devices of all processes.

    Raises:
      InputError: sizes that do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = {name: int(axes[name]) for name in MESH_AXES}
    free = [name for name, size in sizes.items() if size == -1]
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if len(free) == 1 and fixed > 0 and len(devices) % fixed == 0:
        sizes[free[0]] = len(devices) // fixed
    if min(sizes.values()) < 1 or math.prod(sizes.values()) != len(devices):
        raise InputError(
            f"config.mesh={dict(axes)} does not cover {len(devices)} devices; the sizes must "
            "multiply to that number, and one of them may be -1 for the rest"
        )
    return jax.make_mesh(
        tuple(sizes.values()), MESH_AXES, (AxisType.Auto,) * len(MESH_AXES), devices=devices
    )


def check_batch(mesh: Mesh, batch_size: int, accumulation: int) -> None:
    """Refuses a batch that the mesh cannot divide evenly.

    Raises:
      InputError: micro-batch not a multiple of data * fsdp.
    """
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    if (batch_size // accumulation) % shards:
        raise InputError(
            f"config.batch_size={batch_size} over accumulation={accumulation} gives micro-batches "
            f"of {batch_size // accumulation}, not a multiple of the {shards} devices that share "
            "a batch (mesh axes data x fsdp)"
        )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """First axis split over data and fsdp."""
    return NamedSharding(mesh, P(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, P())


def variable_shardings(abstract: nnx.State, mesh: Mesh) -> dict[str, Any]:
    """Shardings of an abstract NNX state as a pure dict, from the logical axis names.

    A mesh axis that does not divide its dimension evenly is left out for that dimension, which
    is then replicated; the memory plan shows it, results do not change.
    """
    with nnx.logical_axis_rules(LOGICAL_RULES):
        specs = nnx.to_pure_dict(nnx.get_partition_spec(abstract))
    arrays = nnx.to_pure_dict(abstract)
    return jax.tree.map(
        lambda array, spec: NamedSharding(mesh, _fit(spec, array.shape, mesh)),
        arrays,
        specs,
    )


def _fit(spec: P | None, shape: tuple[int, ...], mesh: Mesh) -> P:
    names = tuple(spec or ()) + (None,) * len(shape)
    used: set[str] = set()
    kept: list[str | None] = []
    for size, name in zip(shape, names, strict=False):
        fits = name is not None and name not in used and size % mesh.shape[name] == 0
        kept.append(name if fits else None)
        used.add(name if fits else "")
    return P(*kept)


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """Rows of the global batch that devices of this process hold, i64[n] ascending.

    All of them in a run of one process; processes that share rows (a `tensor` axis across hosts)
    each have them.

    Raises:
      InputError: the mesh gives processes shares of different size.
    """
    held: Any = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
    rows = sorted({row for part in held.values() for row in range(*part[0].indices(batch_size))})
    if batch_size % len(rows):
        raise InputError(
            f"config.mesh={dict(mesh.shape)} gives process {jax.process_index()} {len(rows)} of "
            f"{batch_size} rows of a batch, others another number; choose sizes by which each "
            "process holds the same"
        )
    return np.array(rows, np.int64)


def to_global(
    batch: Mapping[str, np.ndarray],
    sharding: NamedSharding,
    rows: np.ndarray | None = None,
    batch_size: int | None = None,
) -> dict[str, jax.Array]:
    """Arrays of this process -> global device arrays.

    Args:
      batch: name -> [n, ...]. sharding: splits the first axis only.
      rows: i64[n], ascending, the rows of the global batch that `batch` holds, at least those of
        `local_rows`; None: all.
      batch_size: of the global batch; needed with `rows`.
    """

    if sharding.is_fully_addressable:
        return jax.device_put(dict(batch), sharding)

    def place(array: np.ndarray) -> jax.Array:
        total = len(array) if batch_size is None else batch_size

        def part(index: Any) -> np.ndarray:
            first, end, _ = index[0].indices(total)
            begin = first if rows is None else int(np.searchsorted(rows, first))
            return array[begin : begin + end - first]

        return jax.make_array_from_callback((total, *array.shape[1:]), sharding, part)

    # Transfers that a caller may have forbidden where they happen unasked; here they are asked for.
    with jax.transfer_guard_host_to_device("allow"):
        return {name: place(array) for name, array in batch.items()}
