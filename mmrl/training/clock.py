"""Measures training speed: examples, FLOPs, and the time spent waiting for data."""

import contextlib
import time
from collections.abc import Iterator

from mmrl.devices import flops


class Clock:
    """Measures speed per log interval, without the time of evaluation and saving.

    Args:
      batch_size: examples of the global batch.
      step_flops: model FLOPs of one step on all devices together.
      devices: number of devices. device_kind: as `mmrl.devices.flops.peak` takes it.
    """

    def __init__(self, batch_size: int, *, step_flops: int, devices: int, device_kind: str) -> None:
        self._batch_size, self._step_flops, self._devices = batch_size, step_flops, devices
        self._peak = flops.peak(device_kind)
        self._reset()

    def _reset(self) -> None:
        self._began, self._waited, self._skipped, self._steps = time.monotonic(), 0.0, 0.0, 0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Wraps the request for the next batch."""
        began = time.monotonic()
        yield
        self._waited += time.monotonic() - began
        self._steps += 1

    @contextlib.contextmanager
    def excluded(self) -> Iterator[None]:
        """Wraps work that is not training, to leave out its time."""
        began = time.monotonic()
        yield
        self._skipped += time.monotonic() - began

    def read(self) -> dict[str, float]:
        """Returns the figures since the last call and starts the next interval.

        Returns:
          examples_per_second; seconds_per_step; data_wait_share, a share of the time;
          flops_per_second of one device; and model_flops_utilization, the share of the device's
          peak, where the peak is known (Chowdhery et al. 2022, PaLM, appendix B).
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
