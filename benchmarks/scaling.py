"""What each device holds, computes and sends, against the number of devices, for one global batch.

    python -m benchmarks.scaling --json=scaling.json

Compiles the train step of a config for 1, 2, 4, 8 devices (fake ones on a CPU) and reads the
compiled programs; nothing runs. By default a small pair of transformers (a ViT and a text encoder
of width 192, two layers each) is sharded fully: mesh (1, -1, 1). Per device:

  parameters, optimizer, average   bytes of the state, from the layout
  arguments, temporaries           bytes, from XLA's memory analysis
  FLOPs                            of XLA's cost analysis, which counts the body of a loop once;
                                   "needed" is the total of mmrl.flops.count, which multiplies
  collectives                      by kind: how many, and bytes of the larger of what goes in and
                                   what comes out; bodies of loops as often as they run

The ratios are to 1/N of one device's, and of the collectives to what a step must send at least:
every gradient once, under FSDP also every parameter once, and the features that all pairs of the
batch are made of, there and, as gradients, back.
"""

import argparse
import collections
import dataclasses
import json
import math
import os
import re
import runpy
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from flax import nnx

from mmrl import config as configs
from mmrl import flops, learner, sharding
from mmrl.step import TrainStep

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
DTYPE_BYTES = {"pred": 1, "bf16": 2, "f16": 2}  # others end in their number of bits


@dataclasses.dataclass
class Row:
    """Figures of the step on so many devices, bytes and FLOPs per device."""

    devices: int
    mesh: dict[str, int]
    parameters: int
    optimizer: int
    average: int
    arguments: int
    temporaries: int
    flops: float
    needed_flops: float  # of all devices
    collectives: dict[str, tuple[int, int]]  # kind -> (number, bytes)
    gradients: int  # bytes of all; under FSDP the parameters have as many
    features: int  # bytes of what all pairs of the batch are made of

    @property
    def sent(self) -> int:
        """Bytes of all collectives."""
        return sum(size for _, size in self.collectives.values())

    @property
    def must_send(self) -> int:
        """Bytes that this mesh cannot do without, see the module's docstring."""
        if self.devices == 1:
            return 0
        return self.gradients * (1 + (self.mesh["fsdp"] > 1)) + 2 * self.features


def default_config() -> ml_collections.ConfigDict:
    """A small pair of transformers, so that every parameter that matters is a matrix."""
    config = configs.base()
    size = {"width": 192, "depth": 2, "num_heads": 8}
    config.model.image = {"name": "vit", "patch_size": 16, **size}
    config.model.text = {"name": "text", **size}
    config.data.image_size, config.data.text_length, config.data.num_perturbed = 112, 32, 2
    config.model.embed_dim = config.model.local_dim = 64
    config.ema = 0.99
    return config


def example(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The shapes of a global batch."""
    data, size = config.data, config.batch_size
    length, copies, side = data.text_length, data.num_perturbed, data.image_size
    shapes: dict[str, tuple[tuple[int, ...], Any]] = {
        "image": ((side, side, 1), jnp.uint8),
        "tokens": ((length,), jnp.int32),
        "token_mask": ((length,), jnp.bool_),
        "perturbed_tokens": ((copies, length), jnp.int32),
        "perturbed_mask": ((copies, length), jnp.bool_),
        "perturbed_valid": ((copies,), jnp.bool_),
        "perturbation": ((copies,), jnp.int8),
        "group": ((), jnp.int32),
        "index": ((), jnp.int32),
    }
    return {k: jax.ShapeDtypeStruct((size, *shape), kind) for k, (shape, kind) in shapes.items()}


def measure(config: ml_collections.ConfigDict, axes: Mapping[str, int], count: int) -> Row:
    """Compiles the step for the first `count` devices."""
    mesh = sharding.make_mesh(axes, jax.devices()[:count])
    step = TrainStep(config, config.data.vocab_size, mesh, example(config))
    rows = sharding.batch_sharding(mesh)
    batch = {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows)
        for name, x in example(config).items()
    }
    state = step.target()
    whole = jax.jit(step.__call__, donate_argnums=0, out_shardings=step.shardings)
    program = whole.lower(state, batch).compile()
    memory, cost = program.memory_analysis(), program.cost_analysis()
    assert memory is not None and cost is not None
    return Row(
        count,
        dict(mesh.shape),
        held(state["params"]),
        held(state["opt_state"]),
        held(state.get("ema", {})),
        memory.argument_size_in_bytes,
        memory.temp_size_in_bytes,
        cost["flops"],
        flops.count(step.__call__, state, batch),
        collectives(program.as_text() or ""),
        sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state["params"])),
        features(step, batch),
    )


def held(tree: Any) -> int:
    """Bytes on each device."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )


def features(step: TrainStep, batch: Mapping[str, Any]) -> int:
    """Bytes of the encodings of all pairs; copies meet their own image alone."""
    layout = step.layout

    def encode(params: Any, variables: Any, batch: Any) -> Any:
        module: learner.Learner = nnx.merge(layout.graphdef, params, variables)
        return module.encode(batch, train=True)

    encoded = jax.eval_shape(encode, layout.params, layout.variables, dict(batch))
    return sum(
        x.size * x.dtype.itemsize for name, x in encoded.items() if not name.startswith("perturbed")
    )


def collectives(program: str) -> dict[str, tuple[int, int]]:
    """Kind -> (number, bytes) in a step on one device, from the text of a compiled program."""
    found: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0])
    computations = dict(_computations(program))
    (entry,) = (name for name, (first, _) in computations.items() if first)

    def visit(name: str, times: int) -> None:
        for line in computations[name][1]:
            for kind, size in _sent(line):
                found[kind][0] += times
                found[kind][1] += times * size
            count = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
            rounds = int(count.group(1)) if count and " while(" in line else 1
            called = re.findall(
                r"(?:body|calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)", line
            )
            for branches in re.findall(r"branch_computations=\{([^}]*)\}", line):
                called += re.findall(r"[\w.\-]+", branches)
            for inner in called:
                visit(inner, times * rounds)

    visit(entry, 1)
    return {kind: (number, size) for kind, (number, size) in sorted(found.items())}


def _computations(program: str) -> Iterator[tuple[str, tuple[bool, list[str]]]]:
    """Name -> (is it the entry, its lines)."""
    for match in re.finditer(
        r"^(ENTRY )?%?([\w.\-]+) [^\n]*\{\n(.*?)^\}", program, re.MULTILINE | re.DOTALL
    ):
        yield match.group(2), (bool(match.group(1)), match.group(3).splitlines())


def _sent(line: str) -> Iterator[tuple[str, int]]:
    """The kind and bytes of an instruction that is a collective."""
    match = re.search(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(", line)
    if match is None:
        return
    result, kind, start = match.groups()
    arrays = re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", result)
    sizes = [
        _bytes(dtype) * math.prod(map(int, filter(None, dims.split(",")))) for dtype, dims in arrays
    ]
    size = max(sizes) if start else sum(sizes)  # a start returns what goes in, too
    if kind == "reduce-scatter":
        groups = re.search(r"replica_groups=(?:\{\{([\d,]+)\}|\[\d+,(\d+)\])", line)
        assert groups is not None
        size *= int(groups.group(2) or len(groups.group(1).split(",")))
    yield kind, size


def _bytes(dtype: str) -> int:
    return DTYPE_BYTES.get(dtype) or int(re.sub(r"\D", "", dtype)) // 8


def table(rows: list[Row]) -> str:
    """Figures per device, each with its ratio to 1/N of the first row's."""
    names = ("parameters", "optimizer", "average", "arguments", "temporaries", "flops")
    lines = ["devices  " + "".join(f"{name:>22s}" for name in names)]
    first = rows[0]
    for row in rows:
        cells = []
        for name in names:
            value, base = getattr(row, name), getattr(first, name)
            unit = f"{value / 1e9:,.2f} G" if name == "flops" else f"{value / 2**20:,.2f} MiB"
            ratio = value * row.devices / (base * first.devices) if base else 0.0
            cells.append(f"{unit:>14s} {ratio:5.2f} x")
        lines.append(f"{row.devices:7d}  " + "".join(cells))
    lines.append("\ndevices  collectives, number and MiB per device" + " " * 30 + "sent / must")
    for row in rows:
        kinds = ", ".join(
            f"{k} {n}: {size / 2**20:.2f}" for k, (n, size) in row.collectives.items()
        )
        share = f"{row.sent / row.must_send:.2f} x" if row.must_send else "-"
        lines.append(f"{row.devices:7d}  {kinds or 'none':70s} {share:>13s}")
    last = rows[-1]
    lines.append(
        f"\nall: needed {last.needed_flops / 1e9:.2f} GFLOP, gradients "
        f"{last.gradients / 2**20:.2f} MiB, features {last.features / 2**20:.2f} MiB"
    )
    return "\n".join(lines)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", default="", help="FILE or FILE:VARIANT; default: a small pair")
    parser.add_argument("--devices", type=_numbers, default=(1, 2, 4, 8))
    parser.add_argument("--mesh", type=_numbers, default=(1, -1, 1), help="data,fsdp,tensor")
    parser.add_argument("--batch", type=int, default=0, help="global; default that of the config")
    parser.add_argument("--objectives", help="keep only these, comma-separated")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    return parser.parse_args(arguments)


def _config(given: argparse.Namespace) -> ml_collections.ConfigDict:
    file, _, variant = given.config.partition(":")
    read: Callable[..., Any] = runpy.run_path(file)["get_config"] if file else default_config
    config = read(variant) if variant else read()
    with config.unlocked():
        config.batch_size = given.batch or config.batch_size
        for name in list(config.objectives):
            if given.objectives and name not in given.objectives.split(","):
                del config.objectives[name]
    configs.validate(config)
    return config


def main(arguments: list[str] | None = None) -> None:
    """Measures, prints the table, and writes it where --json says."""
    given = _arguments(arguments)
    if getattr(jax.config, "jax_num_cpu_devices") < max(given.devices):  # noqa: B009
        # Read when the backend starts.
        jax.config.update("jax_num_cpu_devices", max(given.devices))
        os.environ.setdefault("NPROC", str(8 * max(given.devices)))
    config = _config(given)
    axes = dict(zip(sharding.MESH_AXES, given.mesh, strict=True))
    rows = [measure(config, axes, count) for count in given.devices]
    print(
        f"{jax.devices()[0].device_kind}, jax {jax.__version__}, batch {config.batch_size}, {axes}"
    )
    print(table(rows))
    if given.json:
        stated = {name: value for name, value in vars(given).items() if name != "json"}
        figures = [
            {**dataclasses.asdict(row), "sent": row.sent, "must_send": row.must_send}
            for row in rows
        ]
        result = {"jax": jax.__version__, "settings": stated, "rows": figures}
        given.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
