"""Reads the text of a compiled XLA program: its instructions, and how often each of them runs.

Of a program laid out over devices XLA prints what one device executes. Computations call each
other; a `while` loop runs its body as often as XLA has noted (`known_trip_count`) or as its
condition says by comparing a counter with a constant.
"""

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_OPCODE = re.compile(r"\s*([a-z][\w\-]*)\(")
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,<=]*)\](?:\{([^}]*)\})?")
_CALLED = re.compile(
    r"(?:calls|body|to_apply|called_computations|branch_computations|true_computation|"
    r"false_computation|async_wrapped)=(\{[^}]*\}|%?[\w.\-]+)"
)
_NAME = re.compile(r"%?([\w.\-]+)")
_TRIPS = re.compile(r'"?known_trip_count"?:\{"?n"?:"?(\d+)')
_BITS = {"pred": 8, "token": 0, "opaque": 0}

# Instructions whose computation is a scalar rule, such as addition: nothing of interest in it.
_RULES = frozenset(
    {"reduce", "scatter", "sort", "map", "reduce-window", "select-and-scatter", "all-reduce"}
    | {"all-reduce-start", "reduce-scatter"}
)


class Array(NamedTuple):
    """Part of a result: its bytes, and whether it lives in the main memory of the device.

    TPU programs name another memory space of an array, such as the on-chip S(1), in its layout.
    """

    bytes: int
    in_memory: bool


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      results: the arrays of its value, more than one for a tuple.
      operands: names of instructions in the same computation.
      attributes: everything behind the operands.
    """

    name: str
    opcode: str
    results: tuple[Array, ...]
    operands: tuple[str, ...]
    attributes: str

    @property
    def called(self) -> tuple[str, ...]:
        """Names of the computations that it runs, without scalar rules and loop conditions."""
        if self.opcode in _RULES:
            return ()
        groups = _CALLED.findall(self.attributes)
        return tuple(name for group in groups for name in _NAME.findall(group))

    @property
    def op_name(self) -> str:
        """Where in the traced program it comes from, "" when unknown."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found.group(1) if found else ""


@dataclasses.dataclass(frozen=True)
class Program:
    """Computations by name, each a dict of its instructions by name; `entry` starts."""

    computations: dict[str, dict[str, Instruction]]
    entry: str

    def trips(self, loop: Instruction) -> int | None:
        """Rounds of a `while` instruction; None where they are not known."""
        noted = _TRIPS.search(loop.attributes)
        if noted:
            return int(noted.group(1))
        condition = re.search(r"condition=%?([\w.\-]+)", loop.attributes)
        return self._compared(condition.group(1)) if condition else None

    def _compared(self, name: str) -> int | None:
        """The constant that a loop condition `counter < constant` has, if that is all it has."""
        lines = self.computations.get(name, {}).values()
        constants = [
            int(found.group(1))
            for line in lines
            if line.opcode == "constant" and (found := re.match(r"(\d+)\)", line.attributes))
        ]
        below = any("direction=LT" in line.attributes for line in lines) or any(
            "direction=LT" in inner.attributes
            for line in lines
            for called in line.called
            for inner in self.computations.get(called, {}).values()
        )
        return constants[0] if len(constants) == 1 and below else None


class Visit(NamedTuple):
    """An instruction as the device meets it.

    Attributes:
      where: the computation that holds it.
      fused: whether it stands inside a fusion.
      times: how often it runs in a step, as far as trip counts are known.
      exact: whether all of those are known.
    """

    instruction: Instruction
    where: dict[str, Instruction]
    fused: bool
    times: int
    exact: bool


def parse(text: str) -> Program:
    """The program of `compiled.as_text()`.

    Raises:
      ValueError: text without an entry computation.
    """
    computations: dict[str, dict[str, Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        header = None if line.startswith(" ") else _HEADER.match(line)
        if header and "HloModule" not in line:
            current = computations.setdefault(header.group(2), {})
            entry = header.group(2) if header.group(1) else entry
        elif current is not None and (found := _INSTRUCTION.match(line)):
            instruction = _instruction(found.group(1), found.group(2))
            if instruction is not None:
                current[instruction.name] = instruction
    if not entry:
        raise ValueError("no ENTRY computation; expected the text of a compiled XLA program")
    return Program(computations, entry)


def visits(program: Program, *, inside: bool, rare: str = "") -> Iterator[Visit]:
    """All instructions that a step executes.

    Of the branches of a condition the one with the most instructions is taken.

    Args:
      inside: whether to look into fusions; else a fusion is one instruction.
      rare: a condition from under this `jax.named_scope` is left out.
    """
    yield from _visit(program, _Place(program.entry, False, 1, True), inside, rare)


class _Place(NamedTuple):
    """A computation on the way, and what `Visit` says of its instructions."""

    name: str
    fused: bool
    times: int
    exact: bool


def _visit(program: Program, at: _Place, inside: bool, rare: str) -> Iterator[Visit]:
    where = program.computations.get(at.name, {})
    for instruction in where.values():
        yield Visit(instruction, where, at.fused, at.times, at.exact)
        for following in _following(program, instruction, at, inside, rare):
            yield from _visit(program, following, inside, rare)


def _following(
    program: Program, instruction: Instruction, at: _Place, inside: bool, rare: str
) -> list[_Place]:
    """The computations that an instruction runs."""
    called = instruction.called
    if instruction.opcode == "while":
        trips = program.trips(instruction)
        rounds = at.times * (1 if trips is None else trips)
        return [_Place(body, at.fused, rounds, at.exact and trips is not None) for body in called]
    if instruction.opcode == "conditional" and called:
        if rare and rare in instruction.op_name:
            return []
        return [at._replace(name=max(called, key=lambda name: _size(program, name)))]
    if instruction.opcode == "fusion":
        return [at._replace(name=part, fused=True) for part in called] if inside else []
    return [at._replace(name=part) for part in called]


def _size(program: Program, name: str) -> int:
    lines = program.computations.get(name, {}).values()
    return sum(1 + sum(_size(program, part) for part in line.called) for line in lines)


def _instruction(name: str, rest: str) -> Instruction | None:
    if rest.startswith("("):
        end = _closing(rest, 0) + 1
        kind, rest = rest[:end], rest[end:]
    else:
        kind, _, rest = rest.partition(" ")
    found = _OPCODE.match(rest)
    if not found:
        return None
    start = found.end() - 1
    end = _closing(rest, start)
    inside = rest[start + 1 : end]
    opcode, attributes = found.group(1), rest[end + 1 :]
    if opcode in ("constant", "parameter"):  # what stands inside is a value or a number
        attributes = inside + ")" + attributes
    operands = tuple(re.findall(r"%([\w.\-]+)", inside))
    return Instruction(name, opcode, arrays(kind), operands, attributes)


def _closing(text: str, start: int) -> int:
    """Index of the parenthesis that closes the one at `start`."""
    depth = 0
    for index in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[index], 0)
        if depth == 0:
            return index
    return len(text)


def arrays(kind: str) -> tuple[Array, ...]:
    """The arrays of a type such as "(f32[2,3]{1,0}, s32[])"."""
    found = []
    for element, dimensions, layout in _ARRAY.findall(kind):
        sizes = [int(size) for size in re.findall(r"\d+", dimensions)]
        bits = _BITS.get(element)
        if bits is None:
            digits = re.search(r"\d+", element)
            bits = int(digits.group(0)) if digits else 0
        # Sub-byte types are packed; "c64" and "f8e4m3fn" say their bits first as all others do.
        count = math.prod(sizes)
        found.append(Array(-(-count * bits // 8), not re.search(r"S\([1-9]", layout)))
    return tuple(found)
