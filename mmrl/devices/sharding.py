"""The device mesh, and the sharding of every array of a step.

Mesh axes: `data` and `fsdp` divide the batch, `fsdp` also divides parameters and optimizer state,
and `tensor` divides the heads of attention and the hidden features of MLPs. `data` and `fsdp` may
span several slices or nodes, see `make_mesh`. Parameters have logical axis names, see
`mmrl.models.layers`; LOGICAL_RULES maps these names to mesh axes.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mmrl.devices.axes import BATCH_AXES
from mmrl.types import InputError

MESH_AXES = ("data", "fsdp", "tensor")

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

# Minimum number of elements of a parameter that `fsdp` divides.
_WORTH_SHARDING = 4096


def make_mesh(axes: Mapping[str, Any], devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh over all devices, arranged for the networks between them.

    Args:
      axes: data, fsdp, tensor -> size. One of them may be -1 and takes the remaining devices. The
        key "dcn" is optional: a mapping of the same names to the sizes of the mesh over the slower
        network between TPU slices or nodes, by default 1 each. With "dcn", the other sizes are
        those within one slice or node, and the size of each mesh axis is the product of both. One
        size of "dcn" may be -1.
      devices: defaults to all devices of all processes.

    Raises:
      InputError: the product of the sizes is not the number of devices or slices, nodes do not
        divide the processes evenly, or "dcn" has a tensor axis.
    """
    devices = jax.devices() if devices is None else devices
    return Mesh(arrange(axes, devices), MESH_AXES, (AxisType.Auto,) * len(MESH_AXES))


def arrange(axes: Mapping[str, Any], devices: Sequence[Any]) -> np.ndarray:
    """Arranges devices in an array object[data, fsdp, tensor].

    The arrangement is that of `jax.experimental.mesh_utils.create_hybrid_device_mesh`: along every
    axis, slices or nodes are outermost, and within each of them devices are arranged for its own
    network. Slices are identified by `slice_index`. Devices without it, such as GPUs, are grouped
    into the number of nodes in "dcn", each of which consists of consecutive processes: a node may
    run one process, or one process per GPU.

    Arguments and errors are those of `make_mesh`. Of each device, this reads `device_kind`,
    `platform`, `process_index`, `slice_index` if present, and its coordinates within a slice.
    """
    inner = {name: int(axes[name]) for name in MESH_AXES}
    outer = {name: int(axes.get("dcn", {}).get(name, 1)) for name in MESH_AXES}
    parts, outer = _parts(outer, list(devices))
    count = len(parts[0])
    place = "" if len(parts) == 1 else f" of each of {len(parts)} slices or nodes"
    inner = _fill(inner, count, f"config.mesh={inner} does not cover {count} devices{place}")
    blocks = np.empty(len(parts), object)
    for number, part in enumerate(parts):
        blocks[number] = mesh_utils.create_device_mesh(
            tuple(inner.values()),
            part,
            # As in jax.make_mesh. On other chips, splitting an axis of the torus costs bandwidth.
            allow_split_physical_axes=part[0].device_kind in ("TPU v5 lite", "TPU v5e"),
        )
    return np.block(blocks.reshape(tuple(outer.values())).tolist())


def _parts(outer: dict[str, int], devices: list[Any]) -> tuple[list[list[Any]], dict[str, int]]:
    """The devices of each slice or node, and `outer` with -1 resolved."""
    given = f"config.mesh.dcn={outer}"
    if outer["tensor"] != 1:
        raise InputError(
            f"{given} would divide every layer over the network between slices or nodes; expected "
            "tensor 1; choose data or fsdp instead"
        )
    single = set(outer.values()) == {1}
    parts = _grouped(devices, "slice_index")
    if devices[0].platform == "tpu" or (len(parts) > 1 and not single):
        outer = _fill(outer, len(parts), f"{given} does not cover {len(parts)} slices")
    elif single:
        return [devices], outer
    else:
        processes = _grouped(devices, "process_index")
        number = len(processes) if -1 in outer.values() else math.prod(outer.values())
        if number < 1 or len(processes) % number:
            raise InputError(f"{given} does not divide {len(processes)} processes into nodes")
        outer = _fill(outer, number, f"{given} does not cover {number} processes")
        size = len(processes) // number
        parts = [
            list(itertools.chain(*processes[first : first + size]))
            for first in range(0, len(processes), size)
        ]
    if len({len(part) for part in parts}) > 1:
        sizes = sorted({len(part) for part in parts})
        raise InputError(f"{given} needs slices or nodes of equal size, got {sizes} devices")
    return parts, outer


def _grouped(devices: list[Any], attribute: str) -> list[list[Any]]:
    """Groups devices by an attribute, in ascending order; 0 for devices without it."""
    groups: dict[int, list[Any]] = {}
    for device in devices:
        groups.setdefault(getattr(device, attribute, None) or 0, []).append(device)
    return [groups[value] for value in sorted(groups)]


def _fill(sizes: dict[str, int], count: int, error: str) -> dict[str, int]:
    """Replaces -1 in `sizes`, so that their product is `count`."""
    free = [name for name, size in sizes.items() if size == -1]
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if len(free) == 1 and fixed > 0 and count % fixed == 0:
        sizes = {**sizes, free[0]: count // fixed}
    if min(sizes.values()) < 1 or math.prod(sizes.values()) != count:
        raise InputError(
            f"{error}; the sizes must multiply to that number, and one of them may be -1 for the "
            "rest"
        )
    return sizes


def check_batch(mesh: Mesh, batch_size: int, accumulation: int) -> None:
    """Checks that the mesh divides each micro-batch evenly.

    Raises:
      InputError: the micro-batch is not a multiple of data * fsdp.
    """
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    if (batch_size // accumulation) % shards:
        raise InputError(
            f"config.batch_size={batch_size} over accumulation={accumulation} gives micro-batches "
            f"of {batch_size // accumulation}, not a multiple of the {shards} devices that share "
            "a batch (mesh axes data x fsdp)"
        )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Divides the first axis over data and fsdp."""
    return NamedSharding(mesh, P(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, P())


def variable_shardings(abstract: nnx.State, mesh: Mesh) -> dict[str, Any]:
    """Shardings of an abstract NNX state as a pure dict, from the logical axis names.

    * A mesh axis that does not divide its dimension is not used for it. If `tensor` does not divide
      a dimension, each of its devices holds that dimension whole; this costs memory, which
      `mmrl.plan` shows, but changes no result.
    * If no dimension is assigned to `fsdp`, it divides the largest dimension that it can and that
      no other axis divides. "layers" is excluded, because a scan takes one layer at a time.
    * `fsdp` does not divide arrays with fewer than 4096 elements per layer, where communication
      would cost more than the memory is worth.
    """
    # Outside of nnx.logical_axis_rules, these are the logical names.
    names = nnx.to_pure_dict(nnx.get_partition_spec(abstract))
    arrays = nnx.to_pure_dict(abstract)
    return jax.tree.map(
        lambda array, given: NamedSharding(mesh, _fit(given, array.shape, mesh)), arrays, names
    )


def _fit(names: P | None, shape: tuple[int, ...], mesh: Mesh) -> P:
    logical = (tuple(names or ()) + (None,) * len(shape))[: len(shape)]
    rules = dict(LOGICAL_RULES)
    kept: list[str | None] = []
    for size, name in zip(shape, logical, strict=True):
        axis = None if name is None else rules[name]
        fits = axis is not None and axis not in kept and size % mesh.shape[axis] == 0
        kept.append(axis if fits else None)
    if "fsdp" not in kept:
        within = [place for place, name in enumerate(logical) if name != "layers"]
        large = math.prod(shape[place] for place in within) >= _WORTH_SHARDING
        free = [p for p in within if kept[p] is None and shape[p] % mesh.shape["fsdp"] == 0]
        if large and free:
            kept[max(free, key=lambda place: shape[place])] = "fsdp"
    return P(*kept)


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """Rows of the global batch that devices of this process hold, i64[n] ascending.

    A run of one process holds all rows. Several processes hold the same rows if a `tensor` axis
    spans them.

    Raises:
      InputError: the mesh gives processes different numbers of rows.
    """
    held: Any = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
    rows = sorted({row for part in held.values() for row in range(*part[0].indices(batch_size))})
    if batch_size % len(rows):
        raise InputError(
            f"config.mesh={dict(mesh.shape)} gives process {jax.process_index()} {len(rows)} of "
            f"{batch_size} rows of a batch, and other processes a different number; choose sizes "
            "that give each process the same number"
        )
    return np.array(rows, np.int64)


def to_global(
    batch: Mapping[str, np.ndarray],
    sharding: NamedSharding,
    rows: np.ndarray | None = None,
    batch_size: int | None = None,
) -> dict[str, jax.Array]:
    """Converts the arrays of this process to global device arrays.

    Args:
      batch: name -> [n, ...]. sharding: divides the first axis only.
      rows: i64[n], ascending, the rows of the global batch that `batch` contains. They must
        include those of `local_rows`. None if it contains all.
      batch_size: of the global batch; required with `rows`.
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

    # A caller may have disallowed implicit transfers; this transfer is intended.
    with jax.transfer_guard_host_to_device("allow"):
        return {name: place(array) for name, array in batch.items()}
