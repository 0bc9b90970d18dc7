"""A trace of some steps, for TensorBoard's profiler or Perfetto."""

from pathlib import Path
from typing import Any

import jax


class Profile:
    """Writes WORKDIR/profile for steps of this process's own loop.

    Args:
      workdir: the run directory.
      start: steps done before the loop.
      skip: steps of the loop before the trace, in which programs are compiled and caches fill.
      steps: traced; 0: no trace at all.
    """

    def __init__(self, workdir: Path, *, start: int, skip: int, steps: int) -> None:
        self.folder = workdir / "profile"
        self._first, self._last = start + skip + 1, start + skip + steps
        self._wanted, self._tracing = steps > 0, False

    def before(self, step: int, state: Any) -> None:
        """To be called before a step; waits for the device where the trace begins."""
        if self._wanted and step == self._first:
            jax.block_until_ready(state)
            jax.profiler.start_trace(str(self.folder))
            self._tracing = True

    def after(self, step: int, state: Any) -> str:
        """To be called after a step; what there is to say, mostly nothing."""
        if not (self._tracing and step == self._last):
            return ""
        jax.block_until_ready(state)
        return self.close()

    def close(self) -> str:
        """Ends the trace if there is one; what there is to say."""
        if not self._wanted:
            return ""
        self._wanted = False
        if not self._tracing:
            return f"no profile: training ended before step {self._first}, where it begins"
        self._tracing = False
        jax.profiler.stop_trace()
        return f"profile: steps {self._first} to {self._last} in {self.folder}"
