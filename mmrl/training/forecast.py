"""What a run will take, said before its first step: disk, memory and time.

The bytes of checkpoints follow from the shapes of the state, the memory of a step from its compiled
program, which the run needs anyway. Time is bounded by the arithmetic of all steps at the peak of
the devices, where that is known. Anything closer is measured: the console prints the time left,
evaluations and checkpoints included, beside the losses.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from mmrl import durations, files
from mmrl.devices import flops, hardware
from mmrl.devices.memory import Memory
from mmrl.training.step import TrainStep
from mmrl.types import MachineError

_FULL = 74  # EX_IOERR of sysexits.h, the status of a disk that is full


@dataclasses.dataclass(frozen=True)
class Disk:
    """Bytes on the disk of a run.

    Attributes:
      checkpoint: of one checkpoint, before compression, which gains a few per cent.
      count: of checkpoints that are there at once: those that are kept, the best one, and the one
        that is being written.
      free: without the checkpoints that the run already has, which are replaced.
    """

    checkpoint: int
    count: int
    free: int

    @property
    def needed(self) -> int:
        """Bytes of all checkpoints."""
        return self.checkpoint * self.count


def disk(step: TrainStep, meta: Mapping[str, Any], workdir: Path) -> Disk:
    """The disk that a run takes.

    Args:
      meta: what a checkpoint holds beside the state.
    """
    state = sum(
        math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(step.abstract)
    )
    config = step.config
    count = config.checkpoint.keep + bool(config.best.metric) + 1
    old = sum(file.stat().st_size for file in (workdir / "checkpoints").rglob("*"))
    return Disk(state + len(json.dumps(meta)), count, files.free_bytes(workdir) + old)


def check_disk(found: Disk, workdir: Path) -> None:
    """Refuses a run whose checkpoints cannot fit.

    Raises:
      MachineError: names what is needed and what is free.
    """
    if found.needed > found.free:
        raise MachineError(
            f"--workdir={workdir}: {found.count} checkpoints of {_size(found.checkpoint)} need "
            f"{_size(found.needed)}, but only {_size(found.free)} are free; free some, choose "
            "another disk or lower config.checkpoint.keep",
            _FULL,
        )


def facts(step: TrainStep, found: Disk, steps: int) -> dict[str, str]:
    """What a run will take, in words.

    Args:
      found: from `disk`. steps: those that are left.
    """
    kind = jax.devices()[0].device_kind
    chip = hardware.find(kind)
    memory = f"{_size(Memory.of(step.compiled).peak)} of each device"
    if chip is not None:
        memory += f", which has {_size(chip.memory)}"
    peak, time = flops.peak(kind), f"not known beforehand on {kind}"
    if peak is not None:
        least = steps * step.model_flops() / (peak * step.mesh.size)
        time = f"at least {durations.clock(least)} for {steps:,} steps, at the peak of the devices"
    return {
        "memory": f"{memory} (compiled step)",
        "disk": f"{_size(found.needed)} for {found.count} checkpoints, {_size(found.free)} free",
        "time": f"{time}; measured below",
    }


def _size(count: float) -> str:
    return f"{count / 1e6:,.1f} MB" if count < 1e9 else f"{count / 1e9:,.1f} GB"
