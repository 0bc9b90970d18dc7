"""Points in the plane, coloured by their labels."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from mmrl.reporting.figures import (
    GREY,
    MARKS,
    Path,
    colours,
    new_figure,
    readable,
    save,
    styled,
)


@styled
def scatter(points: np.ndarray, labels: Sequence[str], path: Path, *, title: str) -> None:
    """Draws points; a label has its colour and its mark.

    Args:
      points: f[n, 2]. labels: n names, or empty.
      path: PNG to write, 1350 x 900 pixels.
      title: of the figure.
    """
    figure = new_figure(9, 6)
    axis = figure.subplots()
    named = list(labels) or [""] * len(points)
    counts = Counter(named)
    of_name = colours([name for name in counts if name])
    for place, (name, count) in enumerate(counts.most_common()):
        rows = np.array([one == name for one in named])
        axis.scatter(
            points[rows, 0],
            points[rows, 1],
            s=26,
            color=of_name.get(name, GREY),
            marker=MARKS[place % len(MARKS)],
            edgecolor="white",
            linewidth=0.4,
            label=f"{readable(name)} ({count:,})",
        )
    axis.set(xticks=[], yticks=[], title=readable(title))
    if labels:
        figure.legend(loc="outside right upper", fontsize=9)
    save(figure, path)
