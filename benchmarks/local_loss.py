"""Memory and time of the word-region contrastive loss, by implementation and batch size.

    python -m benchmarks.local_loss --json=local_loss.json

Each program computes the loss and its gradients. Forms:

  dense    the whole B x B x W x R attention at once
  chunked  tiles; on several devices XLA gathers the texts on every device
  ring     tiles, with the texts moving from device to device; same as chunked on one device
  kernel   chunked (one device) or ring (several), with tiles computed by
           `mmrl.objectives.local_kernel`. Without a TPU the kernel is interpreted, and its memory
           and time have no meaning.

Memory is the temporaries that XLA plans per device, without inputs (words, regions) and outputs
(their gradients). It is known after compilation, so batches may be larger than the machine can run.
Only batches up to --time-up-to are run. Their times are medians of rounds in which the forms run in
turn, in one process. Caption lengths are uniform from 1 to --words; tiles are cut to the longest
caption in them, so that only the dense form computes all padding.

With --topology, programs are compiled for a TPU that need not be present, and nothing is run:

    python -m benchmarks.local_loss --topology=v5e:2x2 --devices=1 --batches=1024 --chunk=0 \\
        --dtype=bfloat16 --forms=chunked,kernel
"""

import argparse
import dataclasses
import functools
import itertools
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
    """Figures of a case; `milliseconds` is None if it was not run."""

    case: Case
    temporary_bytes: int
    argument_bytes: int
    output_bytes: int
    compile_seconds: float
    milliseconds: float | None = None


def hardware(args: argparse.Namespace) -> list[Any]:
    """The devices to compile for: those of --topology, else of JAX."""
    return topology.find(args.topology).devices if args.topology else jax.devices()


def inputs(case: Case, args: argparse.Namespace) -> list[jax.ShapeDtypeStruct]:
    """Abstract words, regions, word mask and groups, with their shardings."""
    mesh = sharding.make_mesh(
        {"data": -1, "fsdp": 1, "tensor": 1}, devices=hardware(args)[: case.devices]
    )
    spread = sharding.batch_sharding(mesh)
    dtype = jnp.dtype(args.dtype)
    shapes: list[tuple[tuple[int, ...], Any]] = [
        ((case.batch, args.words, args.width), dtype),
        ((case.batch, args.regions, args.width), dtype),
        ((case.batch, args.words), jnp.bool_),
        ((case.batch,), jnp.int32),
    ]
    return [jax.ShapeDtypeStruct(shape, kind, sharding=spread) for shape, kind in shapes]


def values(abstract: list[jax.ShapeDtypeStruct]) -> list[jax.Array]:
    """Random features, caption lengths uniform in 1..W, and a different group for each pair."""
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


def compiled(case: Case, args: argparse.Namespace) -> tuple[Row, Callable[..., Any]]:
    """The compiled program of a case, and a row with its figures."""
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
            chunk_size=args.chunk,
            tile="kernel" if case.form == "kernel" else "xla",
        )

    began = time.perf_counter()
    gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    program = gradient.lower(*inputs(case, args)).compile()
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


def measure(args: argparse.Namespace) -> list[Row]:
    """Compiles all cases, and runs those up to --time-up-to."""
    rows = []
    for batch in args.batches:
        timed: list[Row] = []
        calls: list[Callable[[], Any]] = []
        for devices, form in itertools.product(args.devices, args.forms):
            if batch % devices or (form == "ring" and devices == 1):
                continue
            case = Case(form, devices, batch)
            row, program = compiled(case, args)
            rows.append(row)
            if batch <= args.time_up_to:
                timed.append(row)
                calls.append(functools.partial(program, *values(inputs(case, args))))
        for row, seconds in zip(timed, commands.median_seconds(calls, args.rounds), strict=True):
            row.milliseconds = seconds * 1e3
    return rows


def table(rows: list[Row]) -> str:
    """One line per case. The ratio is to the dense form with the same batch and devices."""
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


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batches", type=commands.numbers, default=(256, 512, 1024, 2048, 4096))
    parser.add_argument("--words", type=int, default=64, help="W")
    parser.add_argument("--regions", type=int, default=196, help="R")
    parser.add_argument("--width", type=int, default=256, help="D")
    parser.add_argument("--chunk", type=int, default=16, help="captions and images per tile")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--devices", type=commands.numbers, default=(1, 8))
    parser.add_argument("--forms", type=lambda text: tuple(text.split(",")), default=FORMS[:3])
    parser.add_argument("--topology", default="", help="TPU to compile for, such as v5e:2x2")
    parser.add_argument("--time-up-to", type=int, default=0, help="largest batch that is run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args(arguments)
    for form in args.forms:
        if form not in FORMS:
            parser.error(f"unknown form {form!r}; choices: {', '.join(FORMS)}")
    if args.topology and args.time_up_to:
        parser.error("--topology only compiles; leave out --time-up-to")
    return args


def main(arguments: list[str] | None = None) -> None:
    """Measures, prints a table, and writes the figures to the file of --json."""
    args = _parse(arguments)
    commands.at_least_devices(max(args.devices))
    devices = hardware(args)
    args.devices = tuple(count for count in args.devices if count <= len(devices))
    rows = measure(args)
    print(
        f"{devices[0].device_kind}, jax {jax.__version__}, W={args.words} R={args.regions} "
        f"D={args.width}, {args.dtype}, tiles of at most {args.chunk or 'as many as fit'}"
    )
    print(table(rows))
    figures = [dataclasses.asdict(row) for row in rows]
    commands.write(args, {"device": devices[0].device_kind, "rows": figures})


if __name__ == "__main__":
    main()
