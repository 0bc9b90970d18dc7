"""Bytes that a compiled step sends between devices, by kind of collective, and moves in memory."""

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
    """All collectives of one kind in a step, from the view of one device.

    Attributes:
      count: executions; a collective in a loop counts once per iteration.
      bytes: bytes that the device sends, see `sent`.
      array_bytes: bytes of the larger of the input and output arrays.
      exact: whether the trip counts of all loops around them are known; a loop of unknown length
        counts once.
    """

    count: int = 0
    bytes: float = 0.0
    array_bytes: float = 0.0
    exact: bool = True


def sent(kind: str, operand_bytes: float, devices: int) -> float:
    """Bytes that each device of a group sends with a bandwidth-optimal algorithm.

    On a ring of n devices, an all-gather sends n - 1 shares, a reduce-scatter (n - 1)/n of the
    array, and an all-reduce does both (Thakur, Rabenseifner and Gropp 2005, "Optimization of
    collective communication operations in MPICH", section 4).

    Args:
      operand_bytes: input of one device: its share for an all-gather, else the whole array.
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
    """Number of devices in each group of a collective, from its `replica_groups`.

    Args:
      devices: number of all devices; the result for permutes and for collectives without groups.

    Raises:
      ValueError: unknown format of `replica_groups`.
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
    # mesh['a'=4,'b'=2] {'a'}: the group spans the axes in braces. 'a':(2)4 is a part of axis 'a',
    # of size 4. If the devices are not in their usual order, a list of them comes in between.
    mesh = re.search(
        r"replica_groups=[@\w]*mesh\[([^\]]*)\](?:, device_ids=\(.*?\))?\s*\{([^}]*)\}", attributes
    )
    if mesh:
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh.group(1))}
        axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", mesh.group(2))
        return math.prod(int(part) if part else sizes[name] for name, part in axes)
    if re.search(r"replica_groups=(?!\{\})", attributes):
        raise ValueError(f"replica_groups in an unknown format: {attributes[:200]}")
    return devices


def collectives(program: Program, devices: int, *, rare: str = "") -> dict[str, Collective]:
    """The collectives of a step, by kind; kinds that do not occur are left out.

    In TPU programs, one asynchronous collective may appear in several fusions with the same
    channel, even in the fusions of a loop that runs in the meantime. It counts once.

    Args:
      devices: number of devices of the mesh.
      rare: as in `hlo.visits`.
    """
    direct: list[Visit] = []
    fused: dict[str, Visit] = {}  # by channel
    for visit in visits(program, inside=True, rare=rare):
        if visit.instruction.opcode.removesuffix("-start") not in KINDS:
            continue
        channel = re.search(r"channel_id=(\d+)", visit.instruction.attributes)
        if channel and visit.fused:
            known = fused.setdefault(channel.group(1), visit)
            fused[channel.group(1)] = min(known, visit, key=lambda one: one.times)
        else:
            direct.append(visit)
    found: dict[str, Collective] = {}
    for visit in [*direct, *fused.values()]:
        kind = visit.instruction.opcode.removesuffix("-start")
        size = group_size(visit.instruction.attributes, devices)
        total = found.setdefault(kind, Collective())
        total.count += visit.times
        operand_bytes = _operand_bytes(visit, kind, size)
        total.bytes += visit.times * sent(kind, operand_bytes, size)
        total.array_bytes += visit.times * operand_bytes * (size if kind == "all-gather" else 1)
        total.exact &= visit.exact
    return found


def _operand_bytes(visit: Visit, kind: str, size: int) -> float:
    names = visit.instruction.operands
    known = [visit.computation[name] for name in names if name in visit.computation]
    if known:
        return float(sum(array.bytes for one in known for array in one.results))
    # The text may omit the operands; their size then follows from the result.
    total = sum(array.bytes for array in visit.instruction.results)
    return total / size if kind == "all-gather" else float(total)


# Instructions that do not read or write their arrays.
_FREE = frozenset(
    {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional"}
    | {"call", "after-all", "opt-barrier", "partition-id", "replica-id", "domain", "iota"}
)


def memory_bytes(program: Program, *, rare: str = "") -> float:
    """Bytes of main memory that a step reads and writes on one device.

    Every instruction outside fusions, and every fusion, reads its operands and writes its results.
    Arrays in on-chip memory are not counted. A slice that is read, or written in place, counts with
    its own size. A loop of unknown length counts once.
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
    operands = [visit.computation.get(name) for name in instruction.operands]
    read = [_main_memory(one.results) if one else 0.0 for one in operands]
    written = _main_memory(instruction.results)
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
    """Bytes that a fusion reads and writes; an operand used in slices counts with their size."""
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


def _main_memory(arrays: Iterable[Array]) -> float:
    """Bytes of the arrays that are in main memory."""
    return float(sum(array.bytes for array in arrays if array.in_memory))
