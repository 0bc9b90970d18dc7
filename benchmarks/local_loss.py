"""The word-region contrast in its forms: compiled bytes against batch size, and time.

    python -m benchmarks.local_loss --json=local_loss.json

Bytes are what XLA plans for value and gradients, per device: temporaries, without the words and
regions that come in and their gradients that go out. They are read off the compiled program, so
batches that no machine holds cost nothing but their compilation. Times are medians of rounds in
which the forms take turns within one process; only batches up to --time-up-to run. On one device
"ring" is "chunked"; "chunked" on several leaves it to XLA to bring the texts to every device.
The lengths of the captions are uniform up to --words; only the dense form works on padding.
"kernel" is "chunked", or the ring on several devices, with tiles computed by
`mmrl.objectives.local_kernel`; off TPU it is interpreted, and its bytes and times say nothing.
With --topology the programs are compiled for TPUs that need not be here, and nothing runs:

    python -m benchmarks.local_loss --topology=v5e:2x2 --devices=1 --batches=1024 --chunk=0 \\
        --dtype=bfloat16 --forms=chunked,kernel
"""

import argparse
import dataclasses
import functools
import itertools
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import commands
from mmrl.devices import sharding
from mmrl.objectives.local_contrastive import local_contrastive_loss
from mmrl.planning import topology

FORMS = ("dense", "chunked", "ring", "kernel")


@dataclasses.dataclass(frozen=True)
class Case:
    """One program: a form at a batch size on some devices."""

    form: str
    devices: int
    batch: int


@dataclasses.dataclass
class Row:
    """What was found out about a case; seconds is None where it was not run."""

    case: Case
    temporary_bytes: int
    argument_bytes: int
    output_bytes: int
    compile_seconds: float
    milliseconds: float | None = None


def hardware(given: argparse.Namespace) -> list[Any]:
    """The devices to compile for."""
    return topology.find(given.topology).devices if given.topology else jax.devices()


def inputs(case: Case, given: argparse.Namespace) -> list[jax.ShapeDtypeStruct]:
    """Words, regions, word mask and groups as they lie on the mesh."""
    mesh = sharding.make_mesh(
        {"data": -1, "fsdp": 1, "tensor": 1}, devices=hardware(given)[: case.devices]
    )
    spread = sharding.batch_sharding(mesh)
    dtype = jnp.dtype(given.dtype)
    shapes: list[tuple[tuple[int, ...], Any]] = [
        ((case.batch, given.words, given.width), dtype),
        ((case.batch, given.regions, given.width), dtype),
        ((case.batch, given.words), jnp.bool_),
        ((case.batch,), jnp.int32),
    ]
    return [jax.ShapeDtypeStruct(shape, kind, sharding=spread) for shape, kind in shapes]


def values(abstract: list[jax.ShapeDtypeStruct]) -> list[jax.Array]:
    """Random features, lengths uniform in 1..W, every pair a group of its own."""
    rng = np.random.default_rng(0)
    words, regions, mask, group = abstract
    lengths = rng.integers(1, mask.shape[1] + 1, size=mask.shape[0])
    arrays = [
        rng.normal(size=words.shape).astype(words.dtype),
        rng.normal(size=regions.shape).astype(regions.dtype),
        np.arange(mask.shape[1])[None] < lengths[:, None],
        np.arange(group.shape[0], dtype=np.int32),
    ]
    return [jax.device_put(x, a.sharding) for x, a in zip(arrays, abstract, strict=True)]


def compiled(case: Case, given: argparse.Namespace) -> tuple[Row, Callable[..., Any]]:
    """Value and both gradients, ready to run, and what they will need."""
    implementation = case.form
    if case.form == "kernel":
        implementation = "ring" if case.devices > 1 else "chunked"

    def loss(words: jax.Array, regions: jax.Array, mask: jax.Array, group: jax.Array) -> jax.Array:
        return local_contrastive_loss(
            words,
            mask,
            regions,
            group=group,
            implementation=implementation,
            chunk_size=given.chunk,
            tile="kernel" if case.form == "kernel" else "xla",
        )

    began = time.perf_counter()
    gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    program = gradient.lower(*inputs(case, given)).compile()
    seconds = time.perf_counter() - began
    memory: Any = program.memory_analysis()
    row = Row(
        case,
        memory.temp_size_in_bytes,
        memory.argument_size_in_bytes,
        memory.output_size_in_bytes,
        seconds,
    )
    return row, program


def take_turns(programs: list[tuple[Row, Callable[[], Any]]], rounds: int) -> None:
    """Fills in the median milliseconds of programs that run one after another, again and again."""
    for _, call in programs:
        jax.block_until_ready(call())
    seconds: list[list[float]] = [[] for _ in programs]
    for _ in range(rounds):
        for (_, call), times in zip(programs, seconds, strict=True):
            began = time.perf_counter()
            jax.block_until_ready(call())
            times.append(time.perf_counter() - began)
    for (row, _), times in zip(programs, seconds, strict=True):
        row.milliseconds = statistics.median(times) * 1e3


def measure(given: argparse.Namespace) -> list[Row]:
    """All cases, batch by batch."""
    rows = []
    for batch in given.batches:
        programs: list[tuple[Row, Callable[[], Any]]] = []
        for devices, form in itertools.product(given.devices, given.forms):
            if batch % devices or (form == "ring" and devices == 1):
                continue
            case = Case(form, devices, batch)
            row, program = compiled(case, given)
            rows.append(row)
            if batch <= given.time_up_to:
                arrays = values(inputs(case, given))
                programs.append((row, functools.partial(program, *arrays)))
        take_turns(programs, given.rounds)
    return rows


def table(rows: list[Row]) -> str:
    """One line per case; the ratio is to the dense form at the same batch and devices."""
    dense = {
        (r.case.devices, r.case.batch): r.temporary_bytes for r in rows if r.case.form == "dense"
    }
    lines = [
        f"{'form':8s} {'devices':>7s} {'B':>5s} {'temporaries/device':>18s} {'dense is':>9s} "
        f"{'in + out':>10s} {'compile':>8s} {'time':>10s}"
    ]
    for row in rows:
        case = row.case
        whole = dense.get((case.devices, case.batch))
        ratio = "" if whole is None else f"{whole / max(1, row.temporary_bytes):.1f} x"
        passing = (row.argument_bytes + row.output_bytes) / 2**20
        spent = "" if row.milliseconds is None else f"{row.milliseconds:.1f} ms"
        lines.append(
            f"{case.form:8s} {case.devices:7d} {case.batch:5d} "
            f"{row.temporary_bytes / 2**20:14,.1f} MiB {ratio:>9s} {passing:6,.0f} MiB "
            f"{row.compile_seconds:6.1f} s {spent:>10s}"
        )
    return "\n".join(lines)


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batches", type=commands.numbers, default=(256, 512, 1024, 2048, 4096))
    parser.add_argument("--words", type=int, default=64, help="W")
    parser.add_argument("--regions", type=int, default=196, help="R")
    parser.add_argument("--width", type=int, default=256, help="D")
    parser.add_argument("--chunk", type=int, default=16, help="captions and images of a tile")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--devices", type=commands.numbers, default=(1, 8))
    parser.add_argument("--forms", type=lambda text: tuple(text.split(",")), default=FORMS[:3])
    parser.add_argument("--topology", default="", help="TPUs to compile for, such as v5e:2x2")
    parser.add_argument("--time-up-to", type=int, default=0, help="largest batch that is run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="file for the numbers")
    given = parser.parse_args(arguments)
    for form in given.forms:
        if form not in FORMS:
            parser.error(f"unknown form {form!r}; choices: {', '.join(FORMS)}")
    if given.topology and given.time_up_to:
        parser.error("--topology only compiles: --time-up-to must stay 0")
    return given


def main(arguments: list[str] | None = None) -> None:
    """Measures, prints the table, and writes it where --json says."""
    given = _arguments(arguments)
    commands.at_least_devices(max(given.devices))
    devices = hardware(given)
    given.devices = tuple(count for count in given.devices if count <= len(devices))
    rows = measure(given)
    print(
        f"{devices[0].device_kind}, jax {jax.__version__}, W={given.words} R={given.regions} "
        f"D={given.width}, {given.dtype}, tiles of at most {given.chunk or 'what fits'}"
    )
    print(table(rows))
    found = [dataclasses.asdict(row) for row in rows]
    commands.write(given, {"device": devices[0].device_kind, "rows": found})


if __name__ == "__main__":
    main()
