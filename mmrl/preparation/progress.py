"""The progress of a preparation: a bar in a terminal, a line every ten seconds in a log."""

import sys
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from mmrl import durations

_MIB = 2**20


class Meter:
    """Shows how many records are done; use it as a context manager.

    Args:
      what: name of the work, for the line.
      total: number of all records, 0 if it is unknown.
      start: number of records that earlier runs did; they do not count for the rate.
      clock: () -> seconds.
      every: seconds between two lines of a log.
    """

    def __init__(
        self,
        what: str,
        total: int,
        *,
        start: int = 0,
        clock: Callable[[], float] = time.monotonic,
        every: float = 10.0,
    ) -> None:
        self._what, self._total, self._start, self._clock = what, total, start, clock
        self._began = self._shown = clock()
        self._every = every
        self._console = Console(highlight=False, soft_wrap=True)
        self._bar: Progress | None = None
        self._task: Any = None

    def __enter__(self) -> "Meter":
        if self._console.is_terminal:
            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
            self._bar = Progress(*columns, console=self._console, transient=True)
            total = self._total or None
            self._task = self._bar.add_task(self._what, total=total, completed=self._start)
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, done: int, written: int = 0) -> None:
        """Shows that `done` records are done, with `written` bytes of finished shards."""
        now = self._clock()
        if self._bar is None and now - self._shown < self._every:
            return
        self._shown = now
        rate = (done - self._start) / max(now - self._began, 1e-9)
        parts = [f"{rate:,.0f} records/s"]
        if written:
            parts.append(f"{written / _MIB:,.0f} MiB")
        if rate and self._total:
            parts.append(f"left {durations.clock((self._total - done) / rate)}")
        line = f"{self._what}: {', '.join(parts)}"
        if self._bar is not None:
            self._bar.update(self._task, completed=done, description=line)
        else:
            of = f"/{self._total:,}" if self._total else ""
            print(f"{done:,}{of}  {line}", flush=True, file=sys.stdout)
