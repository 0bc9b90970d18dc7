"""Which axes of a mesh share the rows of a batch: what encoders and losses ask of a mesh.

The layout of everything else is `mmrl.devices.sharding`'s.
"""

import math
from typing import TypeVar

from jax.sharding import AbstractMesh, Mesh

BATCH_AXES = ("data", "fsdp")

AnyMesh = TypeVar("AnyMesh", Mesh, AbstractMesh)


def usable_mesh(mesh: AnyMesh) -> AnyMesh | None:
    """The mesh, unless there is none, or each device runs its own part of the program already."""
    return None if mesh.empty or mesh.manual_axes else mesh


def sharing_axes(mesh: Mesh | AbstractMesh, rows: int) -> tuple[str, ...] | None:
    """The axes of `mesh` that share a batch of so many rows; None: they cannot do so evenly."""
    axes = tuple(name for name in BATCH_AXES if name in mesh.shape)
    return None if rows % math.prod(mesh.shape[name] for name in axes) else axes
