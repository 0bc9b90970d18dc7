"""The JAX forms of the step: `mmrl.training.step.TrainStep` or a subclass."""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from benchmarks.step_forms.base import Cost
from mmrl.devices import flops, sharding
from mmrl.training import scalars
from mmrl.training.step import TrainStep


class JaxForm:
    """A compiled TrainStep, see base.Form.

    Args:
      name: of the form.
      step: its example batch gives the shapes of all batches.
      adapt: applied to each batch before it is copied to the device.
      arm: as in flops.count.

    Attributes:
      state: the current training state.
    """

    def __init__(
        self,
        name: str,
        step: TrainStep,
        *,
        adapt: Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]] = dict,
        arm: Callable[[Iterable[int]], int] = max,
    ) -> None:
        self.name, self.device = name, jax.devices()[0].device_kind
        self._step, self._spread = step, sharding.batch_sharding(step.mesh)
        self._adapt = adapt
        self.state = step.init()
        began = time.perf_counter()
        memory: Any = step.compiled.memory_analysis()
        seconds = time.perf_counter() - began
        count = flops.of_jaxpr(step.traced.jaxpr.jaxpr, arm)
        self.cost = Cost(count, seconds, memory.temp_size_in_bytes)

    def place(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """Copies a batch to the mesh."""
        return {
            name: jax.device_put(array, self._spread) for name, array in self._adapt(batch).items()
        }

    def run(self, placed: dict[str, jax.Array]) -> None:
        """Performs one update."""
        self.state = jax.block_until_ready(self._step(self.state, placed))

    def values(self) -> tuple[float, float]:
        """Loss and gradient norm of the last update."""
        metrics = scalars.compute(self.state["metrics"])
        return float(metrics["loss"]), float(metrics["grad_norm"])
