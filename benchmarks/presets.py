"""Compares the training step of presets, each with its own batches, in turn.

    python -m benchmarks.presets configs/pretrain.py:paper configs/pretrain.py --json=presets.json

Every preset is trained from scratch for some steps on real batches of its corpus. The steps of the
presets alternate, so that a change in the load of the machine affects all of them alike. Times are
medians over steps, without compilation and without waiting for data; ratios are to the first one.
--threads=N pins the process to N cores.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import jax

from benchmarks import commands
from benchmarks.step import pin
from mmrl import presets
from mmrl.devices import sharding
from mmrl.training.train import Trainer


def main() -> None:
    """Times the presets and prints a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("presets", nargs="+", help="FILE[:VARIANT,...], each with its batch size")
    parser.add_argument("--steps", type=int, default=40, help="timed steps of each preset")
    parser.add_argument("--threads", type=int, default=0, help="cores; 0: all")
    parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args()
    if args.threads:
        pin(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        steps = [_Steps(preset, Path(folder) / str(n)) for n, preset in enumerate(args.presets)]
        for _ in range(args.steps + 1):  # the first step compiles
            for one in steps:
                one.take()
    seconds = [statistics.median(one.seconds[1:]) for one in steps]
    rows = [
        {"preset": one.preset, "batch": one.batch, "seconds": own, "ratio": own / seconds[0]}
        for one, own in zip(steps, seconds, strict=True)
    ]
    print(f"medians of {args.steps} steps; jax {jax.__version__}, {jax.devices()[0].device_kind}")
    print("| preset | batch | step, ms | ratio |\n|---|---|---|---|")
    for row in rows:
        print(
            f"| `{row['preset']}` | {row['batch']} | {1e3 * row['seconds']:.0f} "
            f"| {row['ratio']:.2f} |"
        )
    commands.write(args, {"presets": rows})


class _Steps:
    """Takes the steps of one preset and keeps their times."""

    def __init__(self, preset: str, workdir: Path) -> None:
        config: Any = presets.load(preset)
        config.evaluators, config.tensorboard = {}, False
        self.preset, self.batch = preset, config.batch_size
        self._trainer = Trainer(config, workdir)
        self._state: Any = self._trainer.step.init()
        self._rows = sharding.batch_sharding(self._trainer.mesh)
        self.seconds: list[float] = []

    def take(self) -> None:
        """One step on the next batch, which is on the device before the clock starts."""
        batch = next(self._trainer.batches)
        placed = jax.block_until_ready(sharding.to_global(batch, self._rows))
        began = time.perf_counter()
        self._state = jax.block_until_ready(self._trainer.step(self._state, placed))
        self.seconds.append(time.perf_counter() - began)


if __name__ == "__main__":
    main()
