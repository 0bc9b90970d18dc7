"""Console output of a run: facts about data and model, progress, and results."""

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from mmrl import durations
from mmrl.evaluators.base import Results


class Console:
    """Prints lines and, in a terminal, a live progress bar.

    Args:
      active: False prints nothing; for all processes but the first.
    """

    def __init__(self, *, active: bool = True) -> None:
        self._out = RichConsole(quiet=not active, highlight=False, soft_wrap=True)
        if not self._out.is_terminal:
            self._out.width = 120  # a log file has no width of its own
        self._progress: Progress | None = None
        self._task: Any = None
        self._start = (0, time.monotonic())
        self._total = 0

    def say(self, text: str) -> None:
        """Prints one line."""
        self._out.print(text, markup=False)

    def facts(self, title: str, values: Mapping[str, Any]) -> None:
        """Prints a title and "name value" pairs on one line."""
        self.say(f"{title}: " + ", ".join(f"{key} {value}" for key, value in values.items()))

    def start(self, step: int, total: int) -> None:
        """Starts the progress bar and the estimate of the time left, at `step` of `total`."""
        self._start, self._total = (step, time.monotonic()), total
        if self._out.is_terminal:
            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("left"), TimeRemainingColumn())
            self._progress = Progress(*columns, console=self._out, transient=True)
            self._task = self._progress.add_task("steps", total=total, completed=step)
            self._progress.start()

    def advance(self, step: int) -> None:
        """Moves the bar."""
        if self._progress is not None:
            self._progress.update(self._task, completed=step)

    def step(self, step: int, values: Mapping[str, float], timing: Mapping[str, float]) -> None:
        """Prints one line of losses, speed and time left."""
        parts = [f"step {step:>6}/{self._total}", f"loss {values['loss']:.4f}"]
        parts += [
            f"{name.removesuffix('/loss')} {value:.4f}"
            for name, value in values.items()
            if name.endswith("/loss")
        ]
        parts.append(f"{timing['examples_per_second']:.0f} examples/s")
        parts.append(f"{timing['flops_per_second'] / 1e9:.3g} GFLOP/s per device")
        if "model_flops_utilization" in timing:
            parts.append(f"MFU {timing['model_flops_utilization']:.1%}")
        parts.append(f"data wait {timing['data_wait_share']:.0%}")
        parts.append(f"left {durations.clock(self._left(step))}")
        self.say("  ".join(parts))

    def _left(self, step: int) -> float:
        first, began = self._start
        return (time.monotonic() - began) / max(step - first, 1) * (self._total - step)

    def stop(self) -> None:
        """Ends the progress bar."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def results(self, title: str, results: Mapping[str, Results]) -> None:
        """Prints the main measures with interval, chance and N; the summary page has the rest."""
        table = Table(title=title, title_justify="left", title_style="", box=None, pad_edge=False)
        for column in ("measure", "value", "95 % interval", "chance", "N"):
            table.add_column(column, no_wrap=True)
        for name, result in results.items():
            protocol = "" if result.protocol == name else f" ({result.protocol})"
            table.add_row(name + protocol)
            for key, estimate in result.values.items():
                if key.count("/") > 1 or key.endswith("_rank"):
                    continue
                interval = (
                    "" if estimate.low is None else f"{estimate.low:.3f} to {estimate.high:.3f}"
                )
                chance = "" if estimate.chance is None else f"{estimate.chance:.3f}"
                value = f"{estimate.value:.3f}"
                table.add_row(f"  {key}", value, interval, chance, str(estimate.n))
            for reason, count in result.excluded.items():
                table.add_row(f"  {count} excluded: {reason}")
        self._out.print(table)
