"""What a form of the step is to the benchmark."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np


@dataclasses.dataclass(frozen=True)
class Cost:
    """What is known of a form before it is timed.

    Attributes:
      flops: of matrix products and convolutions in one step.
      compile_seconds: from tracing to a program that runs; 0 without compilation.
      temporary_bytes: peak of what a step allocates besides its arguments; None where unknown.
    """

    flops: int
    compile_seconds: float
    temporary_bytes: int | None


class Form(Protocol):
    """A step with its own parameters, optimizer state and copies of the batches.

    Attributes: name, and device, the kind that runs it.
    """

    name: str
    device: str
    cost: Cost

    def place(self, batch: Mapping[str, np.ndarray]) -> Any:
        """A batch as `run` takes it, on the device."""

    def run(self, placed: Any) -> None:
        """One update, finished when this returns."""

    def values(self) -> tuple[float, float]:
        """Loss and gradient norm of the last update."""
