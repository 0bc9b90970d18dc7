"""Memory, FLOPs and communication of each device against the number of devices.

    python -m benchmarks.scaling --json=scaling.json

Compiles the training step of a config, with the same global batch, for 1, 2, 4 and 8 devices (by
default CPU devices) and analyses the compiled programs; nothing is run. The default config has a
ViT and a text encoder of width 192 with two layers each. The default mesh, (1, -1, 1), divides all
parameters (FSDP). Figures per device:

  parameters, optimizer, average   bytes of the state, from its sharding
  arguments, temporaries           bytes, from XLA's memory analysis
  FLOPs                            from XLA's cost analysis, which counts the body of a loop once;
                                   "needed" is the total of mmrl.devices.flops, which multiplies
                                   it by the length of the loop
  collectives                      by kind: number, and bytes of the larger of input and output; a
                                   collective in a loop counts once per iteration

The ratio of a figure is to 1/N of the figure of one device. The ratio of the collectives is to the
bytes that a step must send: each gradient once; with FSDP, each parameter once; and the features of
all pairs of the batch, once forward and once, as gradients, backward.
"""

import argparse
import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import ml_collections
from flax import nnx

from benchmarks import commands
from mmrl import config as configs
from mmrl import presets, wiring
from mmrl.data.batches.pipeline import batch_shapes
from mmrl.data.inputs import base as inputs
from mmrl.devices import flops, sharding
from mmrl.planning import hlo, traffic
from mmrl.training import learner
from mmrl.training.step import TrainStep


@dataclasses.dataclass
class Row:
    """Figures of the step on `devices` devices; bytes and FLOPs are per device unless noted."""

    devices: int
    mesh: dict[str, int]
    parameters: int
    optimizer: int
    average: int
    arguments: int
    temporaries: int
    flops: float
    needed_flops: float  # on all devices together
    collectives: dict[str, tuple[int, int]]  # kind -> (number, bytes)
    gradients: int  # bytes of the gradients of all parameters; the parameters have as many
    features: int  # bytes of the features of all pairs of the batch

    @property
    def sent(self) -> int:
        """Bytes of all collectives."""
        return sum(size for _, size in self.collectives.values())

    @property
    def must_send(self) -> int:
        """Bytes that a step must send, see the module docstring."""
        if self.devices == 1:
            return 0
        return self.gradients * (1 + (self.mesh["fsdp"] > 1)) + 2 * self.features


def default_config() -> ml_collections.ConfigDict:
    """Small transformers, in which nearly all parameters are in matrices."""
    config = configs.base()
    size = {"width": 192, "depth": 2, "num_heads": 8}
    image, text = config.towers.image, config.towers.text
    image.update({"size": 112, "patch_size": 16, **size})
    text.update({"length": 32, **size})
    image.heads, text.heads = {"embedding": 64, "regions": 64}, {"embedding": 64, "words": 64}
    config.data.num_perturbed = 2
    config.average.decay, config.average.evaluate = 0.99, True
    return config


def measure(config: ml_collections.ConfigDict, axes: Mapping[str, int], count: int) -> Row:
    """Compiles and analyses the step for the first `count` devices."""
    mesh = sharding.make_mesh(axes, jax.devices()[:count])
    batch = batch_shapes(inputs.make(config, wiring.wire(config)[0]), config.batch_size)
    step = TrainStep(config, mesh, batch)
    state = step.target()
    traced = step.traced
    program = traced.lower().compile()
    memory, cost = program.memory_analysis(), program.cost_analysis()
    sent = traffic.collectives(hlo.parse(program.as_text() or ""), count)
    assert memory is not None and cost is not None
    return Row(
        count,
        dict(mesh.shape),
        held(state["params"]),
        held(state["opt_state"]),
        held(state.get("average", {})),
        memory.argument_size_in_bytes,
        memory.temp_size_in_bytes,
        cost["flops"],
        flops.of_jaxpr(traced.jaxpr.jaxpr),
        {kind: (one.count, round(one.array_bytes)) for kind, one in sorted(sent.items())},
        sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state["params"])),
        features(step, batch),
    )


def held(tree: Any) -> int:
    """Bytes that one device holds of a tree."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )


def features(step: TrainStep, batch: Mapping[str, Any]) -> int:
    """Bytes of all encodings except those of perturbed copies, which need no communication."""
    layout = step.layout

    def encode(params: Any, variables: Any, batch: Any) -> Any:
        module: learner.Learner = nnx.merge(layout.graphdef, params, variables)
        return module.encode(batch, train=True)

    encoded = jax.eval_shape(encode, layout.params, layout.variables, dict(batch))
    return sum(
        x.size * x.dtype.itemsize for name, x in encoded.items() if "@perturbed." not in name
    )


def table(rows: list[Row]) -> str:
    """Figures per device, each with its ratio to 1/N of that of the first row."""
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


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--config", default="", help="FILE or FILE:VARIANT; default: two small encoders"
    )
    parser.add_argument("--devices", type=commands.numbers, default=(1, 2, 4, 8))
    parser.add_argument(
        "--mesh", type=commands.numbers, default=(1, -1, 1), help="data,fsdp,tensor"
    )
    parser.add_argument("--batch", type=int, default=0, help="default: config.batch_size")
    parser.add_argument("--objectives", help="keep only these, comma-separated")
    parser.add_argument("--json", type=Path, help="file for the figures")
    return parser.parse_args(arguments)


def _config(args: argparse.Namespace) -> ml_collections.ConfigDict:
    config = presets.load(args.config) if args.config else default_config()
    with config.unlocked():
        config.batch_size = args.batch or config.batch_size
        for name in list(config.objectives):
            if args.objectives and name not in args.objectives.split(","):
                del config.objectives[name]
    configs.validate(config)
    return config


def main(arguments: list[str] | None = None) -> None:
    """Measures, prints a table, and writes the figures to the file of --json."""
    args = _parse(arguments)
    commands.at_least_devices(max(args.devices))
    config = _config(args)
    axes = dict(zip(sharding.MESH_AXES, args.mesh, strict=True))
    rows = [measure(config, axes, count) for count in args.devices]
    print(
        f"{jax.devices()[0].device_kind}, jax {jax.__version__}, batch {config.batch_size}, {axes}"
    )
    print(table(rows))
    figures = [
        {**dataclasses.asdict(row), "sent": row.sent, "must_send": row.must_send} for row in rows
    ]
    commands.write(args, {"rows": figures})


if __name__ == "__main__":
    main()
