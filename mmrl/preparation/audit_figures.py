"""Figures of an audit: lengths of texts, labels, and sizes and projections of images."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmrl.preparation.audit_tables import percent
from mmrl.preparation.survey import VALUES
from mmrl.reporting.figures import (
    BLUE,
    GREY,
    ORANGE,
    VERMILION,
    Path,
    new_figure,
    readable,
    save,
    styled,
)

_MOST_LABELS = 40
_LOOKS: dict[str, dict[str, Any]] = {
    "present": {"color": BLUE},
    "uncertain": {"color": ORANGE, "hatch": "////"},
    "absent": {"color": "#C9C9C9"},
    "not_stated": {"color": "white", "edgecolor": GREY, "hatch": "...."},
}


@styled
def lengths(
    words: np.ndarray, tokens: np.ndarray | None, limits: Sequence[int], path: Path
) -> None:
    """Draws histograms of words and of tokens, with the share of truncated texts at each limit.

    Args:
      words: i64[N], N above 0.
      tokens: i64[N], or None without a tokenizer.
      limits: in tokens.
      path: PNG to write, 1350 pixels wide.
    """
    panels = [("words", words)] + ([] if tokens is None else [("tokens", tokens)])
    figure = new_figure(9, 3.4)
    for axis, (name, values) in zip(
        np.ravel(figure.subplots(1, len(panels), squeeze=False)), panels, strict=True
    ):
        # The longest texts are in the last bar, so that the scale fits the others.
        top = int(max(np.percentile(values, 99.5), *(limits if name == "tokens" else (1,)))) + 1
        width = max(1, -(-top // 60))
        edges = np.arange(0, top + 2 * width, width)
        axis.hist(np.minimum(values, edges[-1] - 0.5), edges, color=BLUE)
        note = ", including begin and end marks" if name == "tokens" else ""
        axis.set(xlabel=f"{name} of the text{note}", ylabel="records", xlim=(0, edges[-1]))
        beyond = int((values >= edges[-1]).sum())
        axis.set_title(
            f"{name.capitalize()}, median {np.median(values):.0f}, longest {values.max():,}"
            + (f"\n{beyond:,} longer in the last bar" if beyond else "")
        )
        for limit in limits if name == "tokens" else ():
            axis.axvline(limit, color=VERMILION, linewidth=1.2)
            axis.text(
                limit,
                0.98,
                f" {limit}: {percent(float(np.mean(values > limit)))} cut",
                color=VERMILION,
                rotation=90,
                fontsize=8,
                ha="right",
                va="top",
                transform=axis.get_xaxis_transform(),
            )
    figure.suptitle(f"Length of the composed text, N = {len(words):,}", fontsize=11)
    save(figure, path)


@styled
def labels(found: Mapping[str, Any], path: Path) -> None:
    """Draws one bar per label with shares of the labelled records, most frequent labels on top.

    Args:
      found: `survey.labels()["all"]`, with labels.
      path: PNG to write, 1350 pixels wide.
    """
    every: Mapping[str, Mapping[str, int]] = found["labels"]
    ranked = sorted(every, key=lambda name: (-every[name]["present"], name))[:_MOST_LABELS]
    figure = new_figure(9, 1.4 + 0.24 * len(ranked))
    axis = figure.subplots()
    start = np.zeros(len(ranked))
    for word in ("present", "uncertain", "absent", "not_stated"):
        share = np.array([every[name][word] / found["labelled"] for name in ranked])
        look = {"edgecolor": "white", "linewidth": 0.3, **_LOOKS[word]}
        shown = word.replace("_", " ")
        axis.barh(range(len(ranked)), share, 0.8, left=start, label=shown, **look)
        start += share
    for place, name in enumerate(ranked):
        axis.text(1.01, place, f"{every[name]['present']:,}", va="center", fontsize=8)
    axis.set_yticks(range(len(ranked)), [readable(name) for name in ranked], fontsize=8.5)
    axis.set(
        xlim=(0, 1),
        ylim=(len(ranked) - 0.4, -0.6),
        xlabel="share of labelled records; right: present",
    )
    axis.grid(visible=False, axis="y")
    figure.legend(loc="outside lower center", ncols=len(VALUES), fontsize=9)
    title = f"Labels, N = {found['labelled']:,} of {found['records']:,} records"
    if len(every) > len(ranked):
        title += f"; the {len(ranked)} most frequent of {len(every)}"
    figure.suptitle(title, fontsize=11)
    save(figure, path)


@styled
def images(
    widths: np.ndarray,
    heights: np.ndarray,
    projections: Mapping[str, int],
    path: str | os.PathLike[str],
) -> None:
    """Draws one dot per distinct size of the distributed images, and a bar per projection.

    Args:
      widths, heights: i64[M] in pixels, M above 0.
      path: PNG to write, 1350 pixels wide.
    """
    figure = new_figure(9, 3.6)
    scatter, bars = figure.subplots(1, 2)
    sizes, counts = np.unique(np.stack([widths, heights], axis=1), axis=0, return_counts=True)
    order = np.argsort(-counts)  # small dots over large ones
    area = 8 + 250 * counts[order] / counts.max()
    scatter.scatter(*sizes[order].T, s=area, color=BLUE, alpha=0.45, linewidth=0)
    reach = 1.08 * float(sizes.max())
    scatter.plot([0, reach], [0, reach], color=GREY, linewidth=0.8, linestyle=(0, (4, 3)))
    scatter.set(xlim=(0, reach), ylim=(0, reach), aspect="equal")
    scatter.set(xlabel="width as distributed (pixels)", ylabel="height (pixels)")
    scatter.set_title(f"{len(sizes):,} distinct sizes; area: number")
    names = list(projections)
    bars.barh(range(len(names)), list(projections.values()), 0.7, color=BLUE)
    bars.set_yticks(range(len(names)), [readable(name) for name in names])
    bars.set(xlabel="images", title="Projections", ylim=(max(len(names), 3) - 0.4, -0.6))
    bars.set_xlim(0, 1.2 * max(projections.values()))
    for place, number in enumerate(projections.values()):
        bars.text(number, place, f" {number:,}", va="center", fontsize=9)
    bars.grid(visible=False, axis="y")
    figure.suptitle(f"Images, N = {len(widths):,}", fontsize=11)
    save(figure, path)
