"""Plans one config on one topology by compiling the training step and analysing the program."""

import dataclasses
import re
import time
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import ml_collections
from flax import nnx
from jax.sharding import Mesh

from mmrl import build, wiring
from mmrl import config as configs
from mmrl.data.batches.pipeline import batch_shapes
from mmrl.data.inputs import base as inputs
from mmrl.devices import flops, sharding
from mmrl.devices.memory import Memory
from mmrl.planning import hlo, traffic
from mmrl.planning.roofline import Roofline, roofline
from mmrl.planning.topology import Topology
from mmrl.planning.traffic import Collective
from mmrl.training import learner
from mmrl.training.step import State, TrainStep, model_flops

# `jax.named_scope` of the rows beyond the budget of packed texts, which steps rarely compute.
SPILL = "spill"

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Shortage:
    """Bytes that the compiler wanted and had, for a program that does not fit in memory."""

    wanted: float
    had: float


@dataclasses.dataclass(frozen=True)
class Plan:
    """What one training step needs on each device of a topology.

    Attributes:
      mesh: axis -> size. batch_size: global.
      parameters: part of the model -> number of parameters.
      state: part of the state, such as "params" or "opt_state" -> bytes on one device.
      replicated: parameter dimensions that the mesh does not divide, see `undivided`.
      model_flops: FLOPs that the result needs, on all devices together.
      executed_flops: FLOPs that the step executes, including everything that is recomputed.
      capacity: bytes of memory of one device; None if unknown.
      memory, collectives, memory_bytes, roofline: None if the step does not fit in memory.
      shortage: None if it fits.
      loops_known: whether the trip counts of all loops are known.
      peak_flops: bfloat16 FLOP/s of one device; None if unknown.
      compile_seconds: wall time.
    """

    topology: str
    device: str
    mesh: Mapping[str, int]
    batch_size: int
    parameters: Mapping[str, int]
    state: Mapping[str, int]
    replicated: tuple[str, ...]
    model_flops: int
    executed_flops: int
    capacity: float | None
    memory: Memory | None
    shortage: Shortage | None
    collectives: Mapping[str, Collective] | None
    memory_bytes: float | None
    loops_known: bool
    roofline: Roofline | None
    peak_flops: float | None
    compile_seconds: float

    @property
    def fits(self) -> bool | None:
        """Whether the step fits in the memory of a device; None if that memory is unknown."""
        if self.shortage is not None:
            return False
        if self.capacity is None or self.memory is None:
            return None
        return self.memory.peak <= self.capacity

    @property
    def utilisation(self) -> float | None:
        """Model FLOPs utilisation at the roofline, an upper bound for every step."""
        if self.roofline is None or self.peak_flops is None:
            return None
        devices = 1
        for size in self.mesh.values():
            devices *= size
        return self.model_flops / (self.roofline.least * devices * self.peak_flops)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        plain = dataclasses.asdict(self) | {"fits": self.fits, "utilisation": self.utilisation}
        if self.roofline is not None:
            plain["roofline"] |= {"least": self.roofline.least, "bound": self.roofline.bound}
        return plain


def without_data(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """A copy with placeholders for required data options that were not given.

    Planning reads no data, so it does not need their location.

    Raises:
      InputError: the config is invalid, see `config.validate`.
    """
    copy = config.copy_and_resolve_references()
    copy.unlock()
    if copy.data.get("source") in build.choices("source"):
        _, given = configs.split_data(copy.data)
        for name, option in build.options(build.find("source", copy.data.source)).items():
            if option.required and name != "split" and given.get(name) is None:
                copy.data[name] = "not read"
    configs.validate(copy)
    return copy


def make_plan(config: ml_collections.ConfigDict, topology: Topology) -> Plan:
    """Compiles the step of `config` for all devices of `topology`.

    Raises:
      InputError: the config is invalid, or the mesh cannot divide its batch.
    """
    config = without_data(config)
    mesh = sharding.make_mesh(config.mesh, topology.devices)
    made = inputs.make(config, wiring.wire(config)[0])
    example = batch_shapes(made, config.batch_size)
    step = TrainStep(config, mesh, example)
    traced = step.traced
    chip = topology.chip
    known: dict[str, Any] = {
        "topology": topology.name,
        "device": topology.devices[0].device_kind,
        "mesh": dict(mesh.shape),
        "batch_size": int(config.batch_size),
        "parameters": _parameters(step),
        "state": _state_bytes(step.target()),
        "replicated": tuple(undivided(config, mesh)),
        "model_flops": model_flops(config, mesh, example),
        "executed_flops": flops.of_jaxpr(traced.jaxpr.jaxpr, _usual_branch),
        "capacity": None if chip is None else chip.memory,
        "peak_flops": None if chip is None else chip.peak,
    }
    began = time.monotonic()
    try:
        compiled = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        shortage = read_shortage(str(error))
        if shortage is None:
            raise
        seconds = time.monotonic() - began
        return Plan(**known, **_DOES_NOT_FIT, shortage=shortage, compile_seconds=seconds)
    seconds = time.monotonic() - began
    return Plan(**known, **_analyse(compiled, topology, known), compile_seconds=seconds)


_DOES_NOT_FIT: dict[str, Any] = {
    "memory": None,
    "collectives": None,
    "memory_bytes": None,
    "loops_known": True,
    "roofline": None,
}


def _analyse(
    compiled: jax.stages.Compiled, topology: Topology, known: Mapping[str, Any]
) -> dict[str, Any]:
    program = hlo.parse(compiled.as_text() or "")
    devices = len(topology.devices)
    collectives = traffic.collectives(program, devices, rare=SPILL)
    moved = traffic.memory_bytes(program, rare=SPILL)
    limits = None
    if topology.chip is not None:
        limits = roofline(
            topology.chip,
            flops=known["executed_flops"] / devices,
            memory_bytes=moved,
            collectives=collectives,
        )
    return {
        "memory": Memory.of(compiled),
        "shortage": None,
        "collectives": collectives,
        "memory_bytes": moved,
        "loops_known": all(visit.exact for visit in hlo.visits(program, inside=False, rare=SPILL)),
        "roofline": limits,
    }


def read_shortage(message: str) -> Shortage | None:
    """Parses XLA's out-of-memory error; None for any other message.

    For example "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory
    space hbm. Used 23.56G of 15.75G hbm. Exceeded hbm capacity by 7.81G."
    """
    size = r"([\d.]+)([KMGT]?)i?B?"
    found = re.search(rf"Used {size} of {size} hbm", message)
    if not found or "RESOURCE_EXHAUSTED" not in message:
        return None
    wanted, unit, had, other = found.groups()
    return Shortage(float(wanted) * _UNITS[unit], float(had) * _UNITS[other])


def _usual_branch(costs: Iterable[int]) -> int:
    """Cost of a conditional: 0 if a branch costs nothing, else that of the most expensive branch.

    The conditionals of the step with an empty branch skip work that is rarely needed.
    """
    listed = list(costs)
    return max(listed) if min(listed) > 0 else 0


def _parameters(step: TrainStep) -> dict[str, int]:
    params = step.abstract["params"]
    parts = {**params["towers"], "objectives": params.get("objectives", {})}
    return {name: sum(leaf.size for leaf in jax.tree.leaves(part)) for name, part in parts.items()}


def _state_bytes(target: State) -> dict[str, int]:
    """Bytes of each part of the state on one device."""

    def held(leaf: jax.ShapeDtypeStruct) -> int:
        shape = leaf.sharding.shard_shape(leaf.shape)
        return jax.ShapeDtypeStruct(shape, leaf.dtype).size * leaf.dtype.itemsize

    return {
        name: sum(held(leaf) for leaf in jax.tree.leaves(part)) for name, part in target.items()
    }


def undivided(config: ml_collections.ConfigDict, mesh: Mesh) -> list[str]:
    """Parameters that each device of a mesh axis holds whole, as the axis does not divide them.

    Parameters of which another dimension is split over that axis are not listed.

    Returns:
      One line per dimension: path, shape, dimension and mesh axis.
    """
    abstract = nnx.eval_shape(lambda: learner.make(config, jax.random.key(0)))
    params: Any = nnx.split(abstract, nnx.Param, ...)[1]
    with nnx.logical_axis_rules(sharding.LOGICAL_RULES):
        wanted = nnx.to_pure_dict(nnx.get_partition_spec(params))
    placed = sharding.variable_shardings(params, mesh)
    lines = []

    def compare(path: Any, array: Any, spec: Any, at: Any) -> None:
        for axis, (size, name) in enumerate(zip(array.shape, spec or (), strict=False)):
            if name is not None and name not in at.spec:
                where = jax.tree_util.keystr(path, simple=True, separator="/")
                lines.append(
                    f"{where} {list(array.shape)}: dimension {axis} ({size}) is not a multiple of "
                    f"{name}={mesh.shape[name]}"
                )

    jax.tree_util.tree_map_with_path(compare, nnx.to_pure_dict(params), wanted, placed)
    return lines
