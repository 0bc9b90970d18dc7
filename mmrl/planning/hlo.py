"""Parses the text of a compiled XLA program: its instructions, and how often each of them runs.

The text of a partitioned program is what one device executes. The trip count of a `while` loop is
the one that XLA has noted (`known_trip_count`), or the constant with which the condition compares
its counter.
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

# Instructions that call a scalar computation, such as addition, which need not be visited.
_SCALAR_CALLERS = frozenset(
    {"reduce", "scatter", "sort", "map", "reduce-window", "select-and-scatter", "all-reduce"}
    | {"all-reduce-start", "reduce-scatter"}
)


class Array(NamedTuple):
    """An array of a result: its size in bytes, and whether it is in the device's main memory.

    TPU programs mark arrays in other memory spaces in the layout, such as S(1) for on-chip memory.
    """

    bytes: int
    in_memory: bool


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      results: the arrays of its value; several for a tuple.
      operands: names of instructions in the same computation.
      attributes: the text after the operands.
    """

    name: str
    opcode: str
    results: tuple[Array, ...]
    operands: tuple[str, ...]
    attributes: str

    @property
    def called(self) -> tuple[str, ...]:
        """Names of the computations it runs, except scalar computations and loop conditions."""
        if self.opcode in _SCALAR_CALLERS:
            return ()
        groups = _CALLED.findall(self.attributes)
        return tuple(name for group in groups for name in _NAME.findall(group))

    @property
    def op_name(self) -> str:
        """Its origin in the traced program, "" if unknown."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found.group(1) if found else ""


@dataclasses.dataclass(frozen=True)
class Program:
    """A parsed program.

    Attributes:
      computations: name -> (name of instruction -> instruction).
      entry: name of the computation that runs first.
    """

    computations: dict[str, dict[str, Instruction]]
    entry: str

    def trips(self, loop: Instruction) -> int | None:
        """Trip count of a `while` instruction; None if unknown."""
        noted = _TRIPS.search(loop.attributes)
        if noted:
            return int(noted.group(1))
        condition = re.search(r"condition=%?([\w.\-]+)", loop.attributes)
        return self._upper_bound(condition.group(1)) if condition else None

    def _upper_bound(self, name: str) -> int | None:
        """The constant of a loop condition `counter < constant`; None for other conditions."""
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
    """An instruction and how often it runs.

    Attributes:
      computation: the computation that contains it.
      fused: whether it is inside a fusion.
      times: executions per step; loops of unknown length count once.
      exact: whether all trip counts are known.
    """

    instruction: Instruction
    computation: dict[str, Instruction]
    fused: bool
    times: int
    exact: bool


def parse(text: str) -> Program:
    """Parses the text that `compiled.as_text()` returns.

    Raises:
      ValueError: the text has no entry computation.
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

    Of a conditional, only the branch with the most instructions is visited.

    Args:
      inside: whether to visit the instructions inside fusions too.
      rare: `jax.named_scope` of conditionals whose branches are not visited; "" for none.
    """
    yield from _visit(program, _Call(program.entry, False, 1, True), inside, rare)


class _Call(NamedTuple):
    """A computation to visit, with `fused`, `times` and `exact` of its instructions."""

    name: str
    fused: bool
    times: int
    exact: bool


def _visit(program: Program, call: _Call, inside: bool, rare: str) -> Iterator[Visit]:
    computation = program.computations.get(call.name, {})
    for instruction in computation.values():
        yield Visit(instruction, computation, call.fused, call.times, call.exact)
        for inner in _calls(program, instruction, call, inside, rare):
            yield from _visit(program, inner, inside, rare)


def _calls(
    program: Program, instruction: Instruction, at: _Call, inside: bool, rare: str
) -> list[_Call]:
    """The computations that an instruction of `at` runs."""
    called = instruction.called
    if instruction.opcode == "while":
        trips = program.trips(instruction)
        rounds = at.times * (1 if trips is None else trips)
        return [_Call(body, at.fused, rounds, at.exact and trips is not None) for body in called]
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
    if opcode in ("constant", "parameter"):  # the parentheses contain no operands but a number
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
        # The first number of a type is its size in bits, also for "c64" and "f8e4m3fn". Types of
        # less than a byte are packed.
        count = math.prod(sizes)
        found.append(Array(-(-count * bits // 8), not re.search(r"S\([1-9]", layout)))
    return tuple(found)
