"""Mesh axes that divide the batch, for use in encoders and losses.

`mmrl.devices.sharding` defines the layout of all arrays.
"""

import math
from typing import TypeVar

from jax.sharding import AbstractMesh, Mesh

BATCH_AXES = ("data", "fsdp")

AnyMesh = TypeVar("AnyMesh", Mesh, AbstractMesh)


def usable_mesh(mesh: AnyMesh) -> AnyMesh | None:
    """The mesh; None if it is empty, or inside a `shard_map`, where devices are already manual."""
    return None if mesh.empty or mesh.manual_axes else mesh


def sharing_axes(mesh: Mesh | AbstractMesh, rows: int) -> tuple[str, ...] | None:
    """The axes of `mesh` that divide the batch; None if they cannot divide `rows` evenly."""
    axes = tuple(name for name in BATCH_AXES if name in mesh.shape)
    return None if rows % math.prod(mesh.shape[name] for name in axes) else axes
