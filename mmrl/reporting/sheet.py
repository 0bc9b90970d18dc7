"""A sheet of images: what a search asked, and what it found."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mmrl.reporting.figures import Path, new_figure, save, styled, wrapped

_COLUMNS = 5
_SIDE = 2.2  # inches of a tile


class Tile(NamedTuple):
    """An image u8[H, W] or [H, W, 3], or None where there is none, with its title and text."""

    image: np.ndarray | None
    title: str
    text: str


@styled
def sheet(title: str, tiles: Sequence[Tile], path: Path) -> None:
    """Draws tiles in rows of five, in order.

    Args:
      title: of the sheet.
      tiles: at least one.
      path: PNG to write.
    """
    columns = min(_COLUMNS, len(tiles))
    width = max(columns, 2) * _SIDE
    heading = wrapped(title, 11, width)
    names = [wrapped(tile.title, 8.5, _SIDE - 0.1) for tile in tiles]
    texts = [wrapped(tile.text, 7.5, _SIDE - 0.1) for tile in tiles]
    rows = -(-len(tiles) // columns)
    heights = [_SIDE + 0.17 * max(map(len, names)), 0.1 + 0.14 * max(map(len, texts))]
    figure = new_figure(width, rows * sum(heights) + 0.25 * len(heading) + 0.15)
    figure.suptitle("\n".join(heading), fontsize=11)
    grid = figure.add_gridspec(2 * rows, columns, height_ratios=heights * rows)
    for number, (tile, name, text) in enumerate(zip(tiles, names, texts, strict=True)):
        row, column = divmod(number, columns)
        panel = figure.add_subplot(grid[2 * row, column])
        panel.set_axis_off()
        panel.set_title("\n".join(name), fontsize=8.5)
        if tile.image is None:
            panel.text(0.5, 0.5, "no image", ha="center", va="center", fontsize=9)
        else:
            panel.imshow(tile.image, cmap="gray", vmin=0, vmax=255)
        below = figure.add_subplot(grid[2 * row + 1, column])
        below.set_axis_off()
        written = below.text(0, 1, "\n".join(text), va="top", fontsize=7.5)
        written.set_in_layout(False)  # already wrapped; the layout must not widen panels for it
    save(figure, path)
