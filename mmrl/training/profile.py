"""Traces some steps, for TensorBoard's profiler or Perfetto."""

from pathlib import Path
from typing import Any

import jax


class Profile:
    """Writes a trace of some steps of this process to WORKDIR/profile.

    Args:
      workdir: the run directory.
      start: number of steps done before the loop.
      skip: steps of the loop to skip before the trace, because they compile and fill caches.
      steps: number of steps to trace; 0 writes no trace.
    """

    def __init__(self, workdir: Path, *, start: int, skip: int, steps: int) -> None:
        self.folder = workdir / "profile"
        self._first, self._last = start + skip + 1, start + skip + steps
        self._wanted, self._tracing = steps > 0, False

    def before(self, step: int, state: Any) -> None:
        """Call before each step. Waits for the device at the step where the trace begins."""
        if self._wanted and step == self._first:
            jax.block_until_ready(state)
            jax.profiler.start_trace(str(self.folder))
            self._tracing = True

    def after(self, step: int, state: Any) -> str:
        """Call after each step. Returns a message when the trace is written, else ""."""
        if not (self._tracing and step == self._last):
            return ""
        jax.block_until_ready(state)
        return self.close()

    def close(self) -> str:
        """Ends the trace. Returns a message, or "" if there is nothing to report."""
        if not self._wanted:
            return ""
        self._wanted = False
        if not self._tracing:
            return f"no profile: training ended before step {self._first}, the first to trace"
        self._tracing = False
        jax.profiler.stop_trace()
        return f"profile: steps {self._first} to {self._last} in {self.folder}"
