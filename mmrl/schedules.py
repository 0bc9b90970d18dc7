"""Numbers that change over training: weights of losses, temperatures, momentum, decay.

A schedule in a config is a number, or a mapping with the options of one kind:

    0.1
    {"kind": "linear", "start": 0.0, "end": 0.1, "from_step": 0, "steps": 500}
    {"kind": "cosine", "start": 0.992, "end": 1.0, "from_step": 0, "steps": 10_000}
"""

import dataclasses
import math
from typing import TYPE_CHECKING, Any

from mmrl import build
from mmrl.types import InputError

if TYPE_CHECKING:
    import jax

KINDS = ("constant", "linear", "cosine")


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A value for every training step; hashable, so that a module may hold it.

    The value is `start` up to step `from_step`, `end` from step `from_step + steps` on, and between
    them on a straight line ("linear") or on half a cosine wave ("cosine"). "constant" is `end`
    throughout.

    Attributes:
      kind: one of KINDS.
      start, end: finite numbers.
      from_step, steps: whole numbers from 0 up.
    """

    kind: str = "constant"
    start: float = 0.0
    end: float = 0.0
    from_step: int = 0
    steps: int = 0

    @property
    def constant(self) -> float | None:
        """The value, if it is the same at every step."""
        return self.end if self.kind == "constant" or self.start == self.end else None

    def __call__(self, step: "jax.Array") -> "jax.Array | float":
        """The value at `step` i32[], which counts the updates done before: f32[] or a float."""
        if self.constant is not None:
            return self.constant
        import jax.numpy as jnp

        passed = (step - self.from_step).astype(jnp.float32)
        done = jnp.clip(passed / jnp.float32(max(self.steps, 1)), 0.0, 1.0)
        if self.kind == "cosine":
            done = 0.5 * (1.0 - jnp.cos(jnp.float32(math.pi) * done))
        return jnp.float32(self.start) + jnp.float32(self.end - self.start) * done


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def parse(where: str, value: Any) -> Schedule:
    """A number or a mapping from a config -> Schedule.

    Args:
      where: the config key to name in the message, such as "config.objectives.siglip.weight".

    Raises:
      InputError: another type, an unknown kind or option, a value that is not finite, or steps
        below 0.
    """
    if hasattr(value, "items"):  # a ConfigDict is no Mapping
        known = [field.name for field in dataclasses.fields(Schedule)]
        for key in value:
            if key not in known:
                raise InputError(build.unknown(f"option in {where}", key, known))
        schedule = Schedule(**value)
    elif _is_number(value):
        schedule = Schedule(end=float(value))
    else:
        raise InputError(
            f"{where}={value!r}; expected a number, or a mapping such as "
            '{"kind": "linear", "start": 0.0, "end": 0.1, "steps": 500}'
        )
    if schedule.kind not in KINDS:
        raise InputError(build.unknown(f"kind in {where}", schedule.kind, KINDS))
    if not all(_is_number(one) and math.isfinite(one) for one in (schedule.start, schedule.end)):
        raise InputError(
            f"{where}: start {schedule.start!r} and end {schedule.end!r} must be finite numbers"
        )
    if not all(isinstance(one, int) and one >= 0 for one in (schedule.from_step, schedule.steps)):
        raise InputError(
            f"{where}: from_step {schedule.from_step!r} and steps {schedule.steps!r} must be whole "
            "numbers of at least 0"
        )
    return schedule
