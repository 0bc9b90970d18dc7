"""The interface of an implementation ("form") of the training step."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np


@dataclasses.dataclass(frozen=True)
class Cost:
    """Cost of a form.

    Attributes:
      flops: FLOPs of the matrix products and convolutions of one step.
      compile_seconds: time of tracing and compilation; 0 without compilation.
      temporary_bytes: peak of the memory that a step allocates besides its arguments; None if
        unknown.
    """

    flops: int
    compile_seconds: float
    temporary_bytes: int | None


class Form(Protocol):
    """A step with its own parameters and optimizer state.

    Attributes:
      name: of the form.
      device: kind of the device that runs it.
      cost: of one step.
    """

    name: str
    device: str
    cost: Cost

    def place(self, batch: Mapping[str, np.ndarray]) -> Any:
        """Copies a batch to the device, in the form that `run` takes."""

    def run(self, placed: Any) -> None:
        """Performs one update and waits until it is finished."""

    def values(self) -> tuple[float, float]:
        """Loss and gradient norm of the last update."""
