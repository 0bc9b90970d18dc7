"""Which evaluation of a run was the best one, and when there has been no better one for too long.

The state is part of every checkpoint, so an interrupted run selects and stops as one that was never
stopped.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from mmrl import build
from mmrl.devices import distributed
from mmrl.types import InputError


@dataclasses.dataclass(frozen=True)
class Selection:
    """The best evaluation so far.

    Attributes:
      metric: the value that is compared, such as "val/loss"; "" selects nothing.
      mode: "max" if a greater value is better, "min" if a lesser one is.
      min_delta: what a value must be better by. A tie, and a value that is NaN, is never better.
      patience: evaluations in a row without a better one after which training stops; 0: it goes on.
      step, value: of the best evaluation; None before the first one.
      waited: evaluations since then.
    """

    metric: str = ""
    mode: str = "max"
    min_delta: float = 0.0
    patience: int = 0
    step: int | None = None
    value: float | None = None
    waited: int = 0

    @classmethod
    def of(cls, options: Mapping[str, Any], state: Mapping[str, Any] | None) -> "Selection":
        """What config.best says, with the best evaluation of a resumed run.

        Args:
          options: config.best.
          state: of a checkpoint, see `state`; None: there is none. That of another metric or mode
            does not count.
        """
        new = cls(**options)
        kept = state is not None and (state["metric"], state["mode"]) == (new.metric, new.mode)
        if not kept or state is None:
            return new
        found = {key: state[key] for key in ("step", "value", "waited")}
        return dataclasses.replace(new, **found)

    def state(self) -> dict[str, Any]:
        """JSON-able, for a checkpoint."""
        return {key: getattr(self, key) for key in ("metric", "mode", "step", "value", "waited")}

    def after(self, step: int, values: Mapping[str, float]) -> "Selection":
        """The selection after an evaluation; all processes decide by the value of the first one.

        Raises:
          InputError: the evaluation has no such value; lists those that it has.
        """
        if not self.metric:
            return self
        if self.metric not in values:
            raise InputError(build.unknown("value in config.best.metric", self.metric, values))
        value = distributed.of_first(values[self.metric])
        if self._is_better(value):
            return dataclasses.replace(self, step=step, value=value, waited=0)
        return dataclasses.replace(self, waited=self.waited + 1)

    def _is_better(self, value: float) -> bool:
        if math.isnan(value):
            return False
        if self.value is None:
            return True
        gain = value - self.value if self.mode == "max" else self.value - value
        return gain > self.min_delta

    @property
    def stopped(self) -> bool:
        """Whether training stops because there was no better evaluation for too long."""
        return 0 < self.patience <= self.waited

    def __str__(self) -> str:
        if self.step is None or self.value is None:
            return f"no evaluation had a value of {self.metric} that is a number"
        return f"step {self.step}, {self.metric} {self.value:.4f}"
