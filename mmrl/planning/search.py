"""Searches over plans: the largest batch that fits, other meshes, other remat policies."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ml_collections

from mmrl import build
from mmrl.planning.measure import Plan, make_plan
from mmrl.planning.topology import Topology
from mmrl.types import InputError

SWEEPS = ("all", "mesh", "remat")

# Maximum number of compilations of one bisection; each takes a minute or more for a large model.
_PROBES = 12
# Relative precision of the largest batch at which the bisection stops.
_PRECISION = 0.05

Planner = Callable[[ml_collections.ConfigDict, Topology], Plan]
Say = Callable[[str], None]


def batch_unit(config: ml_collections.ConfigDict, mesh: Mapping[str, int]) -> int:
    """The number that every valid global batch is a multiple of.

    Each micro-batch must divide among data x fsdp devices and into whole groups of packed reports.
    """
    parts = int(config.accumulation) * int(config.gradient_cache)
    shards = mesh["data"] * mesh["fsdp"]
    groups = [
        int(tower.get("packing_group", 16))
        for tower in config.towers.values()
        if tower.get("packing", 0.0)
    ]
    return parts * math.lcm(shards, *groups)


def largest_batch(
    config: ml_collections.ConfigDict,
    topology: Topology,
    first: Plan,
    *,
    say: Say,
    planner: Planner = make_plan,
) -> Plan | None:
    """The plan of the largest global batch that fits, or None if not even the smallest does.

    Doubles or halves the batch until one fits and another does not. Then bisects between them over
    multiples of `batch_unit`, to a precision of 5 % and with at most 12 compilations.

    Args:
      first: the plan of the config as it is.
      say: receives one line of text for each compilation.

    Raises:
      InputError: the memory of the devices is unknown.
    """
    if first.fits is None:
        raise InputError(
            f"the largest batch needs devices of known memory, not those of {first.topology}"
        )
    unit = batch_unit(config, first.mesh)
    best, low, high = (first, _units(first, unit), 0) if first.fits else (None, 0, 0)
    if not first.fits:
        high = _units(first, unit)
    for _ in range(_PROBES):
        middle = _next(low, high)
        if middle is None:
            break
        plan = planner(_with_batch(config, middle * unit), topology)
        say(f"batch {plan.batch_size}: {'fits' if plan.fits else 'does not fit'}")
        if plan.fits:
            best, low = plan, middle
        else:
            high = middle
    return best


def _units(plan: Plan, unit: int) -> int:
    return max(1, plan.batch_size // unit)


def _next(low: int, high: int) -> int | None:
    """The number of units to try next; None if the precision is reached.

    Args:
      low: the largest number that fits, or 0. high: the smallest that does not, or 0 if unknown.
    """
    if high == 0:
        return 2 * low
    if high - low <= max(1, int(_PRECISION * low)):
        return None
    return (low + high) // 2 if low else max(1, high // 2)


def _with_batch(config: ml_collections.ConfigDict, size: int) -> ml_collections.ConfigDict:
    copy = config.copy_and_resolve_references()
    copy.batch_size = size
    return copy


def alternatives(
    config: ml_collections.ConfigDict, devices: int, kind: str
) -> Iterator[tuple[str, ml_collections.ConfigDict]]:
    """The (name, config) pairs that a sweep compares, the given config first.

    Args:
      kind: one of SWEEPS.

    Raises:
      InputError: unknown kind.
    """
    if kind not in SWEEPS:
        raise InputError(f"--sweep={kind}; choices: {', '.join(SWEEPS)}")
    yield "as configured", config
    if kind in ("mesh", "all"):
        root = 2 ** (round(math.log2(devices)) // 2)
        sizes: list[dict[str, int]] = [{"data": -1, "fsdp": 1, "tensor": 1}]
        sizes += [{"data": -1, "fsdp": root, "tensor": 1}, {"data": 1, "fsdp": -1, "tensor": 1}]
        sizes += [{"data": -1, "fsdp": root, "tensor": 2}]
        for mesh in sizes:
            name = ", ".join(f"{axis} {size}" for axis, size in mesh.items() if size != 1)
            yield name.replace("-1", "rest"), _changed(config, {"mesh": mesh})
    if kind in ("remat", "all"):
        for policy in ("none", "dots", "full"):
            yield f"remat {policy}", _with_remat(config, policy)
        if config.accumulation == 1 and config.batch_size % 2 == 0:
            parts = 2 * int(config.gradient_cache)
            yield f"gradient_cache {parts}", _changed(config, {"gradient_cache": parts})


def _with_remat(config: ml_collections.ConfigDict, policy: str) -> ml_collections.ConfigDict:
    copy = config.copy_and_resolve_references()
    copy.unlock()
    for tower in copy.towers.values():
        if "remat" in build.options(build.find("encoder", tower["name"])):
            tower["remat"] = policy
    return copy


def _changed(
    config: ml_collections.ConfigDict, changes: Mapping[str, Any]
) -> ml_collections.ConfigDict:
    copy = config.copy_and_resolve_references()
    copy.unlock()
    copy.update(changes)
    return copy


def sweep(
    config: ml_collections.ConfigDict,
    topology: Topology,
    kind: str,
    *,
    say: Say,
    planner: Planner = make_plan,
) -> dict[str, Plan | str]:
    """Plans each alternative.

    Returns:
      Name -> plan, or the error message of a config that cannot be planned.

    Raises:
      InputError: unknown kind.
    """
    found: dict[str, Plan | str] = {}
    for name, changed in alternatives(config, len(topology.devices), kind):
        say(f"compiling: {name}")
        try:
            found[name] = planner(changed, topology)
        except InputError as error:
            found[name] = str(error)
    return found
