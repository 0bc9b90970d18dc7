"""Compares the training step of mmrl with the published formulation, in JAX and in PyTorch.

    python -m benchmarks.step --encoder=vit_s16@128 --threads=1 --packing --json=step.json
    python -m benchmarks.step --encoder=resnet50@96 --text=4x384 --peer --peak-rss
    python -m benchmarks.step --encoder=vit_b16@224 --text=12x768 --length=128 --copies=4 \
        --batch=64 --peer --compile --dtype=bfloat16 --attention=cudnn

A step is forward pass, backward pass and update for the paper's three losses, over B pairs with K
perturbed copies of each report, without dropout. Forms:

  jax-fused         mmrl.training.step.TrainStep: one image pass, one text pass over all 1 + K texts
  jax-published     3 image passes, 3 + K text passes, a loop over captions (step_forms.published)
  jax-fused-packed  jax-fused with text packing (--packing)
  torch-fused, torch-published  the first two in PyTorch (--peer); --compile uses torch.compile

All forms start from the same parameters and batch. Before the measurement, the loss and gradient
norm of the first step must agree: in float32 to 1e-5 between JAX forms and to 1e-4 with PyTorch, in
bfloat16 to 2e-2. Otherwise the command ends with an error. The forms then run in turn, each round
with a new batch. Times are medians without the first step and without compilation. Images are noise
and are on the device before the step.

Figures:
  FLOPs        matrix products and convolutions (mmrl.devices.flops; torch.utils.flop_counter); for
               the packed form, without rows beyond the budget, which the batches do not need
  temporaries  what XLA plans for a step; for PyTorch on CUDA, the peak of its allocator during a
               pass minus what was allocated before it
  peak RSS     with --peak-rss: peak memory of a process that runs only this form, including
               compilation; the JSON file also has the value after compilation

--threads=N pins the process to N cores, which both frameworks then use.
"""

import argparse
import dataclasses
import gc
import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax

from benchmarks import commands
from benchmarks.step_forms import workload
from benchmarks.step_forms.base import Form
from benchmarks.step_forms.jax_forms import JaxForm
from benchmarks.step_forms.published import PublishedStep, apart
from benchmarks.step_forms.workload import Workload
from mmrl.devices import flops, sharding
from mmrl.training.step import TrainStep
from mmrl.types import InputError

JAX_FORMS = ("jax-fused", "jax-published", "jax-fused-packed")
TORCH_FORMS = ("torch-fused", "torch-published")
REFERENCE = "jax-published"  # the form that ratios refer to


@dataclasses.dataclass
class Row:
    """Figures of a form; None if unknown or not requested."""

    form: str
    loss: float
    grad_norm: float
    gigaflop: float
    compile_seconds: float
    temporary_bytes: int | None
    seconds: list[float] = dataclasses.field(default_factory=list)
    examples_per_second: float | None = None
    gigaflop_per_second: float | None = None
    mfu: float | None = None
    speedup: float | None = None
    peak_rss_bytes: int | None = None
    compiled_rss_bytes: int | None = None

    @property
    def median(self) -> float:
        """Seconds per step."""
        return statistics.median(self.seconds)


def chosen_forms(args: argparse.Namespace) -> list[str]:
    """Names of the chosen forms, in the order of the table."""
    offered = [*JAX_FORMS[: 3 if args.packing else 2], *(TORCH_FORMS if args.peer else ())]
    if args.peer and importlib.util.find_spec("torch") is None:
        raise InputError("--peer needs PyTorch, which is not installed: pip install torch")
    unknown = set(args.forms or ()) - set(offered)
    if unknown:
        raise InputError(
            f"--forms={','.join(args.forms)}; choices with these options: {', '.join(offered)}"
        )
    return [name for name in offered if not args.forms or name in args.forms]


def build(names: Sequence[str], work: Workload, args: argparse.Namespace) -> list[Form]:
    """Compiles the forms, all with the parameters of the config's seed."""
    # By default, accelerators round the operands of float32 products.
    with jax.default_matmul_precision("highest" if args.dtype == "float32" else "default"):
        return _build(names, work, args)


def _build(names: Sequence[str], work: Workload, args: argparse.Namespace) -> list[Form]:
    mesh = sharding.make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, devices=jax.devices()[:1])
    example = work.batches[0]

    def jax_form(name: str) -> JaxForm:
        if name == REFERENCE:
            published = PublishedStep(work.config, mesh, apart(example))
            return JaxForm(name, published, adapt=apart)
        packs = name == "jax-fused-packed"
        config = workload.packed(work.config, args.packing) if packs else work.config
        step = TrainStep(config, mesh, example)
        # The budget covers all batches, so the conditional for further rows costs nothing.
        return JaxForm(name, step, arm=min if packs else max)

    forms: list[Form] = [jax_form(name) for name in names if name in JAX_FORMS]
    peers = [name for name in names if name in TORCH_FORMS]
    if peers:
        from benchmarks.step_forms.torch_forms import TorchForm  # needs PyTorch

        step = TrainStep(work.config, mesh, example)
        parameters = jax.device_get(step.init()["params"])
        for name in peers:
            published = name == "torch-published"
            forms.append(TorchForm(name, parameters, work.config, example, published, args.compile))
    return forms


def first_steps(forms: Sequence[Form], work: Workload, dtype: str) -> list[Row]:
    """Runs each form once on the first batch and compares the results.

    Raises:
      InputError: a loss or gradient norm differs by more than the tolerance.
    """
    rows = []
    for form in forms:
        form.run(form.place(work.batches[0]))
        cost = form.cost
        seconds, temporary = cost.compile_seconds, cost.temporary_bytes
        rows.append(Row(form.name, *form.values(), cost.flops / 1e9, seconds, temporary))
    for row in rows[1:]:
        exact = 1e-4 if row.form in TORCH_FORMS or rows[0].form in TORCH_FORMS else 1e-5
        tolerance = exact if dtype == "float32" else 2e-2
        for name in ("loss", "grad_norm"):
            first, other = getattr(rows[0], name), getattr(row, name)
            if not abs(first - other) <= tolerance * abs(first):
                raise InputError(
                    f"{name} of {rows[0].form} is {first!r}, of {row.form} {other!r}; expected a "
                    f"relative difference of at most {tolerance:g}: they are not the same step"
                )
    return rows


def take_turns(forms: Sequence[Form], rows: Sequence[Row], work: Workload) -> None:
    """Times one step of each form with each batch except the first."""
    for batch in work.batches[1:]:
        for form, row in zip(forms, rows, strict=True):
            placed = form.place(batch)
            gc.collect()
            began = time.perf_counter()
            form.run(placed)
            row.seconds.append(time.perf_counter() - began)


def derive(rows: Sequence[Row], batch: int, device: str, dtype: str) -> None:
    """Fills in the figures that follow from the times."""
    peak = flops.peak(device) if dtype == "bfloat16" else None
    reference = next((row for row in rows if row.form == REFERENCE), None)
    for row in rows:
        row.examples_per_second = batch / row.median
        row.gigaflop_per_second = row.gigaflop / row.median
        row.mfu = None if peak is None else row.gigaflop_per_second * 1e9 / peak
        row.speedup = None if reference is None else reference.median / row.median


def peak_memory(row: Row, arguments: Sequence[str], *more: str) -> None:
    """Fills in the peak memory of a process that runs two steps of this form only.

    Args:
      arguments, more: the options of this run; later ones take precedence.

    Raises:
      InputError: the process failed; the message has its last line of output.
    """
    command = [sys.executable, "-m", "benchmarks.step", *arguments]
    command += [f"--forms={row.form}", "--rounds=1", "--only-memory", *more]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        error = (ended.stderr.strip().splitlines() or ["no output"])[-1]
        raise InputError(f"{row.form} alone ended with status {ended.returncode}: {error}")
    peaks = json.loads(ended.stdout.strip().splitlines()[-1])
    row.compiled_rss_bytes, row.peak_rss_bytes = peaks["compiled"], peaks["peak"]


def _own_peak() -> int:
    """Peak resident memory of this process so far, in bytes."""
    # On Linux, getrusage includes the peak of the parent process before exec.
    status = Path("/proc/self/status")
    if status.exists():
        lines = status.read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def only_memory(names: Sequence[str], work: Workload, args: argparse.Namespace) -> None:
    """Prints peak memory as JSON; runs in the processes that `peak_memory` starts."""
    forms = build(names, work, args)
    compiled = _own_peak()
    take_turns(forms, first_steps(forms, work, args.dtype), work)
    print(json.dumps({"compiled": compiled, "peak": _own_peak()}))


def table(rows: Sequence[Row], args: argparse.Namespace) -> str:
    """One line per form. The ratio is the speed relative to the published form in JAX."""
    lines = [
        f"{'form':17s} {'encoder':>12s} {'B':>4s} {'K':>2s} {'L':>4s} {'s/step':>8s} "
        f"{'examples/s':>10s} {'GFLOP':>9s} {'GFLOP/s':>9s} {'MFU':>6s} {'temporaries':>12s} "
        f"{'peak RSS':>11s} {'compile':>8s} {'ratio':>7s}"
    ]
    for row in rows:
        mfu = "" if row.mfu is None else f"{row.mfu:.1%}"
        ratio = "" if row.speedup is None else f"{row.speedup:.2f} x"
        lines.append(
            f"{row.form:17s} {args.encoder:>12s} {args.batch:4d} {args.copies:2d} "
            f"{args.length:4d} {row.median:8.3f} {row.examples_per_second:10.2f} "
            f"{row.gigaflop:9,.1f} {row.gigaflop_per_second:9,.1f} {mfu:>6s} "
            f"{_mebibytes(row.temporary_bytes):>12s} {_mebibytes(row.peak_rss_bytes):>11s} "
            f"{row.compile_seconds:6.1f} s {ratio:>7s}"
        )
    return "\n".join(lines)


def _mebibytes(size: int | None) -> str:
    return "" if size is None else f"{size / 2**20:,.0f} MiB"


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks.step", description=(__doc__ or "").splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("--encoder", default="vit_s16@128", help=workload.ENCODERS)
    parser.add_argument("--text", default="4x384", help="<layers>x<width> of the text encoder")
    parser.add_argument("--length", type=int, default=77, help="L, tokens of a text")
    parser.add_argument("--batch", type=int, default=16, help="B, pairs per step")
    parser.add_argument("--copies", type=int, default=9, help="K, perturbed copies of a report")
    parser.add_argument("--dim", type=int, default=128, help="D, width of the joint spaces")
    parser.add_argument("--optimizer", choices=("sgd", "adamw"), default="sgd")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--attention", choices=("xla", "cudnn"), default="xla", help="of JAX forms")
    parser.add_argument("--remat", choices=("none", "full", "dots"), default="none")
    parser.add_argument("--scan-layers", action="store_true", help="in JAX forms")
    parser.add_argument(
        "--packing", type=float, nargs="?", const=-1.0, default=0.0, metavar="ROWS",
        help="add jax-fused-packed, with this budget of rows per text; default: what batches need",
    )  # fmt: skip
    parser.add_argument("--peer", action="store_true", help="add the PyTorch forms")
    parser.add_argument("--compile", action="store_true", help="torch.compile the PyTorch forms")
    parser.add_argument("--forms", type=lambda text: tuple(text.split(",")), help="only these")
    parser.add_argument("--phantom", action="store_true", help="phantom reports, not Open-i")
    parser.add_argument("--threads", type=int, default=0, help="cores to use; 0: all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peak-rss", action="store_true", help="measure peak memory of each form")
    parser.add_argument("--only-memory", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args(arguments)
    if min(args.rounds, args.batch, args.copies) < 1 or args.threads < 0:
        raise InputError("--rounds, --batch and --copies must be 1 or more, --threads 0 or more")
    return args


def pin(threads: int) -> None:
    """Pins this process and its future threads to `threads` cores; 0 does nothing.

    Raises:
      InputError: fewer cores are available, or the system does not support pinning.
    """
    if not threads:
        return
    if not hasattr(os, "sched_setaffinity"):
        raise InputError(f"--threads={threads} needs Linux, which can pin a process to cores")
    cores = sorted(os.sched_getaffinity(0))
    if threads > len(cores):
        raise InputError(f"--threads={threads}; this process has {len(cores)} cores")
    os.sched_setaffinity(0, cores[:threads])


def measure(arguments: Sequence[str]) -> None:
    """Measures, prints a table, and writes the figures to the file of --json.

    Raises:
      InputError: inconsistent options, or forms that do not compute the same step.
    """
    args = _parse(arguments)
    pin(args.threads)
    names = chosen_forms(args)
    if args.peer:  # JAX and PyTorch share the GPU memory
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    work = workload.make(args, args.rounds + 1)
    if args.only_memory:
        only_memory(names, work, args)
        return
    forms = build(names, work, args)
    rows = first_steps(forms, work, args.dtype)
    device = forms[0].device
    for row in rows:
        print(f"{row.form:17s} first step: loss {row.loss:.7g}, grad norm {row.grad_norm:.7g}")
    take_turns(forms, rows, work)
    derive(rows, args.batch, device, args.dtype)
    forms.clear()
    if args.peak_rss:
        for row in rows:
            peak_memory(row, arguments, f"--packing={args.packing}")
    filled = workload.filled(work.batches)
    print(
        f"{device}, jax {jax.__version__}, {args.dtype}, {args.optimizer}, text {args.text}, "
        f"{args.threads or os.cpu_count()} cores, {work.corpus}, {filled:.0%} of "
        f"the token positions filled, medians of {args.rounds} rounds"
    )
    print(table(rows, args))
    figures = [{**dataclasses.asdict(row), "median_seconds": row.median} for row in rows]
    facts = {"device": device, "corpus": work.corpus, "filled": filled}
    commands.write(args, {**facts, "rows": figures})


def main() -> None:
    """Runs `measure` with the command line; prints input errors in one line, with status 2."""
    try:
        measure(sys.argv[1:])
    except InputError as error:
        print(f"benchmarks.step: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
