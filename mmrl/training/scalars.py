"""Where numbers go: metrics.jsonl, TensorBoard and the console, from process 0.

metrics.jsonl holds only what the computation determines, so the file of a run that was killed
and resumed equals that of one that never stopped. Clock readings go to timing.jsonl.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from tensorboardX import SummaryWriter

from mmrl import files
from mmrl.types import Metrics


def zeros(metrics: Metrics) -> Metrics:
    """An empty accumulator of the same structure."""
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), metrics)


def add(total: Metrics, new: Metrics) -> Metrics:
    """Sums and weights add up."""
    return jax.tree.map(lambda a, b: a + b.astype(jnp.float32), total, new)


def compute(total: Mapping[str, tuple[Any, Any]]) -> dict[str, float]:
    """sum / weight on the host; NaN where nothing was counted."""
    values = jax.device_get(dict(total))
    return {
        name: float(value) / float(weight) if float(weight) else math.nan
        for name, (value, weight) in values.items()
    }


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All complete lines of a JSON-lines file; a line cut off by a crash is not one."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


class JsonLines:
    """An append-only JSON-lines file that can be cut back to a step on resume."""

    def __init__(self, path: Path, *, resume_step: int) -> None:
        self.path = path
        kept = [line for line in read_lines(path) if line["step"] <= resume_step]
        files.write(path, "".join(map(_dump, kept)))
        self._file = path.open("a", encoding="utf-8")

    def write(self, line: Mapping[str, Any]) -> None:
        """Appends one line and hands it to the operating system at once."""
        self._file.write(_dump(line))
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _dump(line: Mapping[str, Any]) -> str:
    # NaN is not JSON: an undefined figure is null.
    safe = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in line.items()
    }
    return json.dumps(safe, allow_nan=False) + "\n"


class Writer:
    """Fans scalars out to metrics.jsonl, timing.jsonl and TensorBoard.

    Args:
      workdir: the run directory.
      resume_step: lines after it belong to work that was lost and is being redone; they go.
      active: False on all processes but the first: writes nothing.
    """

    def __init__(
        self, workdir: Path, *, resume_step: int, tensorboard: bool, active: bool = True
    ) -> None:
        self._metrics = self._timing = None
        self._board = None
        if not active:
            return
        self._metrics = JsonLines(workdir / "metrics.jsonl", resume_step=resume_step)
        self._timing = JsonLines(workdir / "timing.jsonl", resume_step=resume_step)
        if tensorboard:
            self._board = SummaryWriter(
                str(workdir / "tensorboard"), purge_step=resume_step + 1 if resume_step else None
            )

    def scalars(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        """Figures that the computation determines; `kind` is train or eval."""
        if self._metrics is not None:
            self._metrics.write({"step": step, "kind": kind, **values})
        self._to_board(step, kind, values)

    def timing(self, step: int, values: Mapping[str, float]) -> None:
        """Clock readings."""
        if self._timing is not None:
            self._timing.write({"step": step, **values})
        self._to_board(step, "timing", values)

    def _to_board(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        if self._board is not None:
            for name, value in values.items():
                # "@" is no part of a TensorBoard tag.
                self._board.add_scalar(f"{kind}/{name.replace('@', '_')}", value, step)

    def close(self) -> None:
        """Flushes and closes everything."""
        for sink in (self._metrics, self._timing, self._board):
            if sink is not None:
                sink.close()
