"""What a compiled step moves: bytes between devices, by kind of collective, and bytes of memory."""

import dataclasses
import math
import re
from collections.abc import Iterable

from mmrl.planning.hlo import Array, Instruction, Program, Visit, visits

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "collective-permute",
    "all-to-all",
    "ragged-all-to-all",
    "collective-broadcast",
)


@dataclasses.dataclass
class Collective:
    """All collectives of one kind in a step, as one device takes part in them.

    Attributes:
      count: executions, those inside loops as often as the loop runs.
      bytes: that the device sends, by the cheapest algorithm on a ring (see `sent`).
      array_bytes: of the whole arrays, the larger of what goes in and what comes out.
      exact: whether the trip counts of all loops around them are known; unknown ones count once.
    """

    count: int = 0
    bytes: float = 0.0
    array_bytes: float = 0.0
    exact: bool = True


def sent(kind: str, operand_bytes: float, devices: int) -> float:
    """Bytes that each of `devices` in a group sends, bandwidth-optimally.

    Thakur, Rabenseifner and Gropp 2005, "Optimization of collective communication operations in
    MPICH", section 4: a ring gathers by passing on n - 1 shares and reduces by passing on (n - 1)/n
    of the array; an all-reduce does both.

    Args:
      operand_bytes: of what the device puts in: its share of an all-gather, else the whole array.
    """
    rest = (devices - 1) / devices
    if kind == "all-gather":
        return operand_bytes * (devices - 1)
    if kind == "all-reduce":
        return operand_bytes * 2 * rest
    if kind in ("collective-permute", "collective-broadcast"):
        return operand_bytes if devices > 1 else 0.0
    return operand_bytes * rest


def group_size(attributes: str, devices: int) -> int:
    """How many devices take part together, from `replica_groups` or the pairs of a permute.

    Raises:
      ValueError: groups written in a form that this cannot read.
    """
    if "source_target_pairs=" in attributes:
        return devices
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", attributes)
    if listed:
        return len(listed.group(1).split(","))
    # [groups, size]<=[...]
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]<=", attributes)
    if iota:
        return int(iota.group(2))
    # mesh['a'=4,'b'=2] {'a'}: one group for each position on the axes that are not named; an axis
    # may be split, 'a':(2)4 is a factor 4 of it. Devices in another order are listed in between.
    mesh = re.search(
        r"replica_groups=[@\w]*mesh\[([^\]]*)\](?:, device_ids=\(.*?\))?\s*\{([^}]*)\}", attributes
    )
    if mesh:
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh.group(1))}
        axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", mesh.group(2))
        return math.prod(int(part) if part else sizes[name] for name, part in axes)
    if re.search(r"replica_groups=(?!\{\})", attributes):
        raise ValueError(f"replica_groups of a form that is not known: {attributes[:200]}")
    return devices


def collectives(program: Program, devices: int, *, rare: str = "") -> dict[str, Collective]:
    """Kind -> what a step does of it; kinds that do not occur are left out.

    TPU programs spread one asynchronous collective over several fusions, which all quote it with
    its channel, even over fusions in a loop that runs meanwhile: it counts once.

    Args:
      devices: of the whole mesh, for collectives that name no groups.
      rare: conditions from under this `jax.named_scope` are left out.
    """
    direct: list[Visit] = []
    spread: dict[str, Visit] = {}
    for visit in visits(program, inside=True, rare=rare):
        if visit.instruction.opcode.removesuffix("-start") not in KINDS:
            continue
        channel = re.search(r"channel_id=(\d+)", visit.instruction.attributes)
        if channel and visit.fused:
            known = spread.setdefault(channel.group(1), visit)
            spread[channel.group(1)] = min(known, visit, key=lambda one: one.times)
        else:
            direct.append(visit)
    found: dict[str, Collective] = {}
    for visit in [*direct, *spread.values()]:
        kind = visit.instruction.opcode.removesuffix("-start")
        size = group_size(visit.instruction.attributes, devices)
        total = found.setdefault(kind, Collective())
        total.count += visit.times
        put_in = _operand_bytes(visit, kind, size)
        total.bytes += visit.times * sent(kind, put_in, size)
        total.array_bytes += visit.times * put_in * (size if kind == "all-gather" else 1)
        total.exact &= visit.exact
    return found


def _operand_bytes(visit: Visit, kind: str, size: int) -> float:
    known = [visit.where[name] for name in visit.instruction.operands if name in visit.where]
    if known:
        return float(sum(array.bytes for one in known for array in one.results))
    # Operands that are not printed: the result says it as well.
    total = sum(array.bytes for array in visit.instruction.results)
    return total / size if kind == "all-gather" else float(total)


# What names, repeats or regroups arrays without touching them.
_FREE = frozenset(
    {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional"}
    | {"call", "after-all", "opt-barrier", "partition-id", "replica-id", "domain", "iota"}
)


def memory_bytes(program: Program, *, rare: str = "") -> float:
    """Bytes of main memory that a step reads and writes on one device.

    Every instruction that is not inside a fusion reads its operands and writes its results;
    arrays in on-chip memory cost nothing. Reading a slice, or writing one in place, costs the
    slice alone. Loops of unknown length count once.
    """
    total = 0.0
    for visit in visits(program, inside=False, rare=rare):
        opcode = visit.instruction.opcode
        if opcode in _FREE or opcode.endswith("-done"):
            continue
        total += visit.times * _touched(program, visit)
    return total


def _touched(program: Program, visit: Visit) -> float:
    instruction = visit.instruction
    operands = [visit.where.get(name) for name in instruction.operands]
    read = [_main(one.results) if one else 0.0 for one in operands]
    written = _main(instruction.results)
    if instruction.opcode in ("dynamic-slice", "slice", "gather"):
        return written + min(sum(read), written)
    if instruction.opcode in ("dynamic-update-slice", "scatter"):
        return 2.0 * sum(read[1:])
    if instruction.opcode.endswith("-start"):
        # Results of asynchronous instructions repeat the operands.
        return written
    if instruction.opcode == "fusion" and instruction.called:
        body = program.computations.get(instruction.called[0], {})
        return _fusion(body, read, written)
    return sum(read) + written


def _fusion(body: dict[str, Instruction], read: list[float], written: float) -> float:
    """As `_touched`: operands of which the fusion uses slices cost those alone."""
    users: dict[str, list[Instruction]] = {}
    for line in body.values():
        for operand in line.operands:
            users.setdefault(operand, []).append(line)
    total = written
    for line in body.values():
        if line.opcode != "parameter":
            continue
        number = int(re.match(r"\d*", line.attributes).group(0) or 0)  # type: ignore[union-attr]
        full = read[number] if number < len(read) else 0.0
        total += _of_parameter(body, line, users.get(line.name, []), full)
        for user in users.get(line.name, []):
            if user.opcode == "dynamic-update-slice" and user.operands[0] == line.name:
                # Written in place: the fusion's result is that array, but only a slice is new.
                update = body.get(user.operands[1])
                slice_bytes = float(sum(a.bytes for a in update.results)) if update else 0.0
                total -= max(0.0, min(full, written) - slice_bytes)
    return max(total, 0.0)


def _of_parameter(
    body: dict[str, Instruction], line: Instruction, users: Iterable[Instruction], full: float
) -> float:
    used = 0.0
    for user in users:
        if user.opcode in ("dynamic-slice", "slice", "gather") and user.operands[0] == line.name:
            used += float(sum(array.bytes for array in user.results))
        elif user.opcode == "dynamic-update-slice" and user.operands[0] == line.name:
            continue
        else:
            return full
    return min(full, used)


def _main(arrays: Iterable[Array]) -> float:
    return float(sum(array.bytes for array in arrays if array.in_memory))
