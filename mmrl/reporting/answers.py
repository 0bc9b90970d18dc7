"""Answers against their truth: ROC curves, reliability, confusion and decisions."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from mmrl.reporting.figures import (
    BLUE,
    GREY,
    LIGHT,
    ORANGE,
    SKY,
    Path,
    colours,
    new_figure,
    readable,
    save,
    styled,
)

Curves = Mapping[str, tuple[np.ndarray, np.ndarray]]


@styled
def answers(
    path: Path,
    *,
    curves: Curves,
    reliability: Mapping[str, Any] | None = None,
    confusion: tuple[tuple[str, ...], np.ndarray] | None = None,
    decisions: Mapping[str, Sequence[int]] | None = None,
) -> None:
    """Draws what there is, side by side.

    Args:
      path: PNG to write, about 700 pixels high.
      curves: label -> (false, true positive rates).
      reliability: "n", "confidence" and "accuracy" of bins; None: scores are no probabilities.
      confusion: names, and counts i64[C, C] whose rows are the truth; None: no classes.
      decisions: label -> [found, missed, false alarm, rightly denied]; empty: no threshold.
    """
    panels = [lambda axis: _roc(axis, curves)] if curves else []
    if reliability:
        panels.append(lambda axis: _reliability(axis, reliability))
    if confusion:
        panels.append(lambda axis: _confusion(axis, *confusion))
    if decisions:
        panels.append(lambda axis: _decisions(axis, decisions))
    figure = new_figure(9, 4.4 if len(panels) < 3 else 3.6)
    for axis, draw in zip(np.ravel(figure.subplots(1, len(panels))), panels, strict=True):
        draw(axis)
    save(figure, path)


def _roc(axis: Axes, curves: Curves) -> None:
    of_name = colours(curves)
    for name, (false, true) in curves.items():
        area = float(np.trapezoid(true, false))
        axis.plot(false, true, color=of_name[name], label=f"{readable(name)} {area:.2f}")
    axis.plot([0, 1], [0, 1], color=GREY, linestyle=(0, (4, 3)), linewidth=1)
    axis.set(
        title="ROC, with the area under it",
        xlabel="false positive rate",
        ylabel="true positive rate",
        xlim=(0, 1),
        ylim=(0, 1.01),
    )
    axis.set_aspect("equal", adjustable="box")
    axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))


def _reliability(axis: Axes, found: Mapping[str, Any]) -> None:
    counts = np.array(found["n"], float)
    kept = counts > 0
    confidence, accuracy = (
        np.array([np.nan if v is None else v for v in found[key]], float)[kept]
        for key in ("confidence", "accuracy")
    )
    axis.plot([0, 1], [0, 1], color=GREY, linestyle=(0, (4, 3)), linewidth=1)
    axis.plot(confidence, accuracy, color=BLUE)
    axis.scatter(confidence, accuracy, 15 + 120 * counts[kept] / counts.max(), color=BLUE)
    axis.set(
        title="Reliability",
        xlabel="confidence",
        ylabel="share that is right",
        xlim=(0, 1),
        ylim=(0, 1.02),
    )
    axis.set_aspect("equal", adjustable="box")


def _confusion(axis: Axes, names: tuple[str, ...], counts: np.ndarray) -> None:
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(names) <= 12:
        for (row, column), count in np.ndenumerate(counts):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axis.text(column, row, f"{count:,}", ha="center", va="center", color=colour, fontsize=8)
    shown = [readable(name)[:24] for name in names]
    axis.set_xticks(range(len(names)), shown, rotation=45, ha="right", fontsize=8)
    axis.set_yticks(range(len(names)), shown, fontsize=8)
    axis.set(title="Confusion", xlabel="chosen class", ylabel="true class")
    axis.grid(visible=False)


def _decisions(axis: Axes, found: Mapping[str, Sequence[int]]) -> None:
    left = np.zeros(len(found))
    whole = np.array([sum(counts) for counts in found.values()], float)
    looks = (
        ("found", BLUE, ""),
        ("missed", SKY, "////"),
        ("false alarm", ORANGE, "////"),
        ("rightly denied", LIGHT, ""),
    )
    for part, (label, colour, hatch) in enumerate(looks):
        share = np.array([counts[part] for counts in found.values()]) / np.maximum(whole, 1)
        axis.barh(
            range(len(found)), share, left=left, color=colour, hatch=hatch, edgecolor="white",
            linewidth=0, label=label,
        )  # fmt: skip
        left += share
    axis.set_yticks(range(len(found)), [readable(name)[:24] for name in found], fontsize=8)
    axis.invert_yaxis()
    axis.set(title="Decisions at the threshold", xlabel="share of items", xlim=(0, 1))
    axis.grid(visible=False, axis="y")
    axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)
