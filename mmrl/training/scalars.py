"""Accumulates metrics and writes them to metrics.jsonl, timing.jsonl, TensorBoard and trackers.

metrics.jsonl holds only values that the computation determines, so an interrupted and resumed run
writes the same file as an uninterrupted one. Clock readings go to timing.jsonl.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from mmrl import files
from mmrl.training.trackers.base import Outcome, Start, Status
from mmrl.training.trackers.sending import Sender
from mmrl.training.trackers.tensorboard import TensorBoard
from mmrl.types import Metrics


def zeros(metrics: Metrics) -> Metrics:
    """Returns an empty accumulator of the same structure."""
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), metrics)


def add(total: Metrics, new: Metrics) -> Metrics:
    """Adds sums and weights elementwise."""
    return jax.tree.map(lambda a, b: a + b.astype(jnp.float32), total, new)


def compute(total: Mapping[str, tuple[Any, Any]]) -> dict[str, float]:
    """Returns sum / weight on the host; NaN where the weight is zero."""
    values = jax.device_get(dict(total))
    return {
        name: float(value) / float(weight) if float(weight) else math.nan
        for name, (value, weight) in values.items()
    }


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Reads all complete lines of a JSON-lines file; skips a last line that a crash cut off."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


class JsonLines:
    """An append-only JSON-lines file; opening it drops the lines after `resume_step`."""

    def __init__(self, path: Path, *, resume_step: int) -> None:
        self.path = path
        kept = [line for line in read_lines(path) if line["step"] <= resume_step]
        files.write(path, "".join(map(_dump, kept)))
        self._file = path.open("a", encoding="utf-8")

    def write(self, line: Mapping[str, Any]) -> None:
        """Appends one line and flushes it to the operating system."""
        self._file.write(_dump(line))
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _dump(line: Mapping[str, Any]) -> str:
    # JSON has no NaN, so undefined values are null.
    safe = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in line.items()
    }
    return json.dumps(safe, allow_nan=False) + "\n"


class Writer:
    """Writes scalars to metrics.jsonl, timing.jsonl, TensorBoard and the trackers of the run.

    Args:
      workdir: the run directory.
      resume_step: lines after this step are dropped, because the resumed run repeats those steps.
      tensorboard: also write TensorBoard events.
      trackers: started; `close` ends them.
      active: False writes nothing; for all processes but the first.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        resume_step: int,
        tensorboard: bool,
        trackers: Sequence[Sender] = (),
        active: bool = True,
    ) -> None:
        self._metrics = self._timing = None
        self._boards: list[TensorBoard | Sender] = []
        if not active:
            return
        self._metrics = JsonLines(workdir / "metrics.jsonl", resume_step=resume_step)
        self._timing = JsonLines(workdir / "timing.jsonl", resume_step=resume_step)
        if tensorboard:
            board = TensorBoard(purge_step=resume_step + 1 if resume_step else None)
            board.start(Start(workdir / "tensorboard", workdir.name, {}))
            self._boards.append(board)
        self._boards += trackers

    def scalars(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        """Writes values that the computation determines; `kind` is "train" or "eval"."""
        if self._metrics is not None:
            self._metrics.write({"step": step, "kind": kind, **values})
        self._to_boards(step, kind, values)

    def timing(self, step: int, values: Mapping[str, float]) -> None:
        """Writes clock readings."""
        if self._timing is not None:
            self._timing.write({"step": step, **values})
        self._to_boards(step, "timing", values)

    def outcome(self, outcome: Outcome) -> None:
        """Sends the results of the run to the trackers."""
        for board in self._boards:
            board.outcome(outcome)

    def _to_boards(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        for board in self._boards:
            board.scalars(step, kind, values)

    def close(self, status: Status = "finished") -> None:
        """Flushes and closes everything; `status` says how the run ended."""
        for sink in (self._metrics, self._timing):
            if sink is not None:
                sink.close()
        for board in self._boards:
            board.close(status)
