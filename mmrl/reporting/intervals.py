"""Values with their intervals, one panel for each measure."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from mmrl.reporting.figures import GREY, Path, new_figure, readable, save, styled

Value = tuple[float, float | None, float | None]


@dataclasses.dataclass(frozen=True)
class Line:
    """A row of every panel: its name, its colour, and measure -> (value, low, high)."""

    name: str
    colour: str
    values: Mapping[str, Value]


@styled
def intervals(
    lines: Sequence[Line],
    measures: Sequence[str],
    path: Path,
    *,
    title: str,
    marked: Mapping[str, float],
) -> None:
    """Draws a dot for each value and a bar for its interval.

    Args:
      lines: from top to bottom; one without a measure is left out of its panel.
      measures: at least one; the panels.
      path: PNG to write, 1350 pixels wide.
      title: of the figure.
      marked: measure -> where a dashed line stands, such as chance.
    """
    columns = min(2, len(measures))
    rows = -(-len(measures) // columns)
    figure = new_figure(9, 0.5 + rows * (0.75 + 0.24 * len(lines)))
    axes = np.ravel(figure.subplots(rows, columns, squeeze=False))
    for axis, measure in zip(axes, measures, strict=False):
        _panel(axis, [line for line in lines if measure in line.values], measure)
        if measure in marked:
            axis.axvline(marked[measure], color=GREY, linestyle=(0, (4, 3)), linewidth=1)
    for axis in axes[len(measures) :]:
        axis.remove()
    figure.suptitle(readable(title), fontsize=11)
    save(figure, path)


def _panel(axis: Axes, lines: Sequence[Line], measure: str) -> None:
    for place, line in enumerate(lines):
        value, low, high = line.values[measure]
        if low is not None and high is not None:
            axis.plot([low, high], [place, place], color=line.colour, linewidth=2)
        axis.plot(value, place, "o", color=line.colour, markersize=6)
    axis.set_yticks(range(len(lines)), [readable(line.name)[:32] for line in lines], fontsize=8)
    axis.set_ylim(len(lines) - 0.5, -0.5)
    axis.set_title(readable(measure), fontsize=9)
    axis.tick_params(axis="x", labelsize=8)
    axis.grid(visible=False, axis="y")
