"""The attention figure: held-out images with attention maps of words of their reports."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.patches import Rectangle

from mmrl.reporting.figures import Path, new_figure, readable, save, styled, wrapped
from mmrl.types import InputError

_MAP = "inferno"
Corners = tuple[float, float, float, float]


@dataclasses.dataclass(frozen=True)
class AttentionExample:
    """One study with its attention maps.

    Attributes:
      image: u8[H, W, C], preprocessed, grey or red, green and blue.
      id, text: of the example.
      words: (word, attention f32[gh, gw] that sums to 1) pairs.
      boxes: (label, (x0, y0, x1, y1) in preprocessed pixels, clipped to the image) pairs.
    """

    image: np.ndarray
    id: str
    text: str
    words: list[tuple[str, np.ndarray]]
    boxes: list[tuple[str, Corners]]


@styled
def attention_grid(
    examples: Sequence[AttentionExample], path: Path, *, title: str = "Attention over image regions"
) -> None:
    """Draws one row per study: the image with its boxes, a map per word, and the text below.

    Each map is scaled from its minimum to its maximum, because attention is often nearly uniform.
    The title of each panel gives the ratio of the maximum to uniform attention.

    Args:
      examples: at least one.
      path: PNG to write, about 400 pixels per panel.
      title: what the maps are.

    Raises:
      InputError: no examples.
    """
    if not examples:
        raise InputError("no examples with words, so there is no attention to draw")
    columns = 1 + max(len(example.words) for example in examples)
    side, width = 2.7, 2.7 * columns
    texts = [wrapped(example.text, 8.5, width) for example in examples]
    # Sentences take more lines than words.
    labels = [
        [
            wrapped(f"\N{LEFT DOUBLE QUOTATION MARK}{label}\N{RIGHT DOUBLE QUOTATION MARK}", 9, 2.5)
            for label, _ in example.words
        ]
        for example in examples
    ]
    heights = [
        size
        for text, of_maps in zip(texts, labels, strict=True)
        for size in (
            side + 0.15 + 0.15 * max(map(len, of_maps), default=1),
            0.25 + 0.17 * len(text),
        )
    ]
    figure = new_figure(width, sum(heights) + 0.75)
    grid = figure.add_gridspec(2 * len(examples), columns, height_ratios=heights)
    for row, example in enumerate(examples):
        panels = [
            figure.add_subplot(grid[2 * row, column]) for column in range(1 + len(example.words))
        ]
        _image_panel(panels[0], example, readable(example.id)[-40:])
        for panel, label, (_, weights) in zip(panels[1:], labels[row], example.words, strict=True):
            _map_panel(panel, example, "\n".join(label), weights)
        text = figure.add_subplot(grid[2 * row + 1, :])
        text.set_axis_off()
        written = text.text(0, 1, "\n".join(texts[row]), va="top", fontsize=8.5)
        written.set_in_layout(False)  # already wrapped; the layout must not widen panels for it
    boxes = "; dashed: annotated boxes" if any(example.boxes for example in examples) else ""
    title = f"{title}, {len(examples)} held-out studies{boxes}"
    figure.suptitle("\n".join(wrapped(title, 11, width)), fontsize=11)
    bar = figure.colorbar(
        ScalarMappable(Normalize(0, 1), _MAP),
        ax=figure.axes,
        location="bottom",
        shrink=0.4,
        aspect=40,
        ticks=[0, 1],
        pad=0.01,
    )
    bar.ax.set_xticklabels(["minimum", "maximum of the map"])
    save(figure, path)


def _image_panel(axis: Axes, example: AttentionExample, title: str) -> None:
    height, width = example.image.shape[:2]
    axis.imshow(
        example.image,
        cmap="gray",
        vmin=0,
        vmax=255,
        extent=(0, width, height, 0),
        interpolation="nearest",
    )
    for _, (x0, y0, x1, y1) in example.boxes:
        for colour, line, style in (("black", 3.0, "-"), ("white", 1.4, (0, (4, 2)))):
            axis.add_patch(
                Rectangle(
                    (x0, y0),
                    x1 - x0,
                    y1 - y0,
                    fill=False,
                    edgecolor=colour,
                    linewidth=line,
                    linestyle=style,
                )
            )
    labels = list(dict.fromkeys(label.replace("_", " ") for label, _ in example.boxes))
    if labels:
        title += "\n" + readable(", ".join(labels))
    axis.set_title(title, fontsize=9)
    axis.set_axis_off()


def _map_panel(axis: Axes, example: AttentionExample, label: str, weights: np.ndarray) -> None:
    height, width = example.image.shape[:2]
    over_uniform = weights.max() * weights.size
    _image_panel(axis, example, "")
    spread = weights.max() - weights.min()
    scaled = (weights - weights.min()) / (spread if spread > 0 else 1.0)
    axis.set_title(f"{label}\npeak {over_uniform:.1f} x uniform", fontsize=9)
    axis.imshow(
        scaled,
        cmap=_MAP,
        vmin=0,
        vmax=1,
        alpha=0.15 + 0.5 * scaled,
        extent=(0, width, height, 0),
        interpolation="nearest",
    )
