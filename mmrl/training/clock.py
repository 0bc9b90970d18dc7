"""How fast training runs: examples, arithmetic, and time spent waiting for data."""

import contextlib
import time
from collections.abc import Iterator

from mmrl.devices import flops


class Clock:
    """Figures per log interval; evaluation and saving are not training time.

    Args:
      batch_size: examples per step, of the global batch.
      step_flops: model FLOPs of one step on all devices together.
      devices: how many. device_kind: as `mmrl.devices.flops.peak` takes it.
    """

    def __init__(self, batch_size: int, *, step_flops: int, devices: int, device_kind: str) -> None:
        self._batch_size, self._step_flops, self._devices = batch_size, step_flops, devices
        self._peak = flops.peak(device_kind)
        self._reset()

    def _reset(self) -> None:
        self._began, self._waited, self._skipped, self._steps = time.monotonic(), 0.0, 0.0, 0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around the request for the next batch."""
        began = time.monotonic()
        yield
        self._waited += time.monotonic() - began
        self._steps += 1

    @contextlib.contextmanager
    def excluded(self) -> Iterator[None]:
        """Around what is not training."""
        began = time.monotonic()
        yield
        self._skipped += time.monotonic() - began

    def read(self) -> dict[str, float]:
        """The figures since the last call.

        Returns:
          examples_per_second, seconds_per_step, data_wait_share (of the time), flops_per_second
          of one device, and where its peak is known model_flops_utilization, the share of that
          (Chowdhery et al. 2022, PaLM, appendix B).
        """
        elapsed = max(time.monotonic() - self._began - self._skipped, 1e-9)
        speed = self._steps * self._step_flops / elapsed / self._devices
        values = {
            "examples_per_second": self._steps * self._batch_size / elapsed,
            "data_wait_share": self._waited / elapsed,
            "seconds_per_step": elapsed / max(self._steps, 1),
            "flops_per_second": speed,
        }
        if self._peak is not None:
            values["model_flops_utilization"] = speed / self._peak
        self._reset()
        return values
