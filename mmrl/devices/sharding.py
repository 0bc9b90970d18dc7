"""The device mesh, and where every array of a step lives on it.

Mesh axes: `data` and `fsdp` both split the batch, `fsdp` also splits parameters and optimizer
state, `tensor` splits the width of attention and MLP. The first two may reach over several slices
or nodes, see `make_mesh`. Parameters name their axes logically (`mmrl.models.layers`);
LOGICAL_RULES maps those names to mesh axes.
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

# Numbers of a parameter from which on `fsdp` looks for a dimension to split.
_WORTH_SHARDING = 4096


def make_mesh(axes: Mapping[str, Any], devices: Sequence[Any] | None = None) -> Mesh:
    """The named mesh over all devices, laid out for the networks between them.

    Args:
      axes: data, fsdp, tensor -> size; one may be -1 and takes what is left. "dcn", a mapping of
        the same names, default 1 each, says how often an axis is repeated over the slower network
        between TPU slices or nodes; the sizes beside it are then those within one slice or node,
        and the mesh has the products of both. One of dcn may be -1, too.
      devices: defaults to all devices of all processes.

    Raises:
      InputError: sizes that do not multiply to the number of devices or slices, or do not divide
        the number of processes; a tensor axis over dcn.
    """
    devices = jax.devices() if devices is None else devices
    return Mesh(arrange(axes, devices), MESH_AXES, (AxisType.Auto,) * len(MESH_AXES))


def arrange(axes: Mapping[str, Any], devices: Sequence[Any]) -> np.ndarray:
    """Devices in their places of a mesh, object[data, fsdp, tensor].

    As by `jax.experimental.mesh_utils.create_hybrid_device_mesh`: along every axis, what the slower
    network connects is outermost, and within a slice or node devices lie as its own network wants
    it. Slices are told apart by `slice_index`. Other devices than TPUs, where that tells nothing,
    are grouped by process, or by as many consecutive ones as make up the number of nodes in dcn:
    a node may run one process or one for each GPU.

    Arguments and errors are those of `make_mesh`. Of a device this reads `device_kind`, `platform`,
    `process_index`, `slice_index` if it has one, and what tells its place within a slice.
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
            # As jax.make_mesh: elsewhere, splitting an axis of the torus costs bandwidth.
            allow_split_physical_axes=part[0].device_kind in ("TPU v5 lite", "TPU v5e"),
        )
    return np.block(blocks.reshape(tuple(outer.values())).tolist())


def _parts(outer: dict[str, int], devices: list[Any]) -> tuple[list[list[Any]], dict[str, int]]:
    """The devices of each slice or node, and `outer` without -1."""
    given = f"config.mesh.dcn={outer}"
    if outer["tensor"] != 1:
        raise InputError(
            f"{given} would divide every layer over the network between slices or nodes; expected "
            "tensor 1, choices for more: data, fsdp"
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
    """Devices of equal value together, in ascending order of it; one group where none has it."""
    groups: dict[int, list[Any]] = {}
    for device in devices:
        groups.setdefault(getattr(device, attribute, None) or 0, []).append(device)
    return [groups[value] for value in sorted(groups)]


def _fill(sizes: dict[str, int], count: int, refusal: str) -> dict[str, int]:
    """`sizes` with -1 replaced by what is left of `count`."""
    free = [name for name, size in sizes.items() if size == -1]
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if len(free) == 1 and fixed > 0 and count % fixed == 0:
        sizes = {**sizes, free[0]: count // fixed}
    if min(sizes.values()) < 1 or math.prod(sizes.values()) != count:
        raise InputError(
            f"{refusal}; the sizes must multiply to that number, and one of them may be -1 for "
            "the rest"
        )
    return sizes


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

    A mesh axis that does not divide its dimension is left out there. `fsdp`, for which any
    dimension will do, then takes the largest of those that it divides and no other axis has,
    except "layers", which a scan goes through one by one; so it also takes a dimension of kernels
    whose names give it none. Arrays of fewer than 4096 numbers (of a layer) are not worth the
    messages. What `tensor` does not divide is held whole by each of its devices: the results are
    the same, the memory plan shows it.
    """
    # Without rules in effect these are the logical names themselves.
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
