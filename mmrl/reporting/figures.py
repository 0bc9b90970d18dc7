"""Figures of a run as PNG files: the common style, losses, and retrieval over time.

Figures are drawn without pyplot, which needs no window system and keeps no global state. They are
saved without dates or software versions, so equal input gives equal bytes. The colours are those
of Okabe and Ito (2008), which colour-blind readers can distinguish.
"""

import functools
import hashlib
import itertools
import os
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

import matplotlib
import matplotlib.style
import numpy as np
from matplotlib import font_manager, ft2font
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mmrl.types import InputError

Line = Mapping[str, Any]
Path = str | os.PathLike[str]

BLUE, ORANGE, GREEN = "#0072B2", "#E69F00", "#009E73"
VERMILION, GREY = "#D55E00", "#6E6E6E"
SKY, PURPLE, LIGHT = "#56B4E9", "#CC79A7", "#DDDDDD"
_PALETTE = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, "#000000")
MARKS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
_LOOKS = ((BLUE, "o"), (VERMILION, "s"), (GREEN, "^"), (GREY, "D"))

_DPI = 150
_STYLE: dict[str, Any] = {
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": False,
    "grid.color": "#E2E2E2",
    "legend.frameon": False,
    "hatch.linewidth": 0.8,
    "text.parse_math": False,  # Reports may hold dollar signs.
}

P = ParamSpec("P")
T = TypeVar("T")


def colours(names: Iterable[str], fixed: Mapping[str, str] | None = None) -> dict[str, str]:
    """Name -> a colour that depends on the name, not on its place.

    The names of one figure have different colours as long as there are as many: a name whose colour
    an earlier one has takes the next free one. Adding a name at the end changes no other.

    Args:
      fixed: colours of some of the names, as another figure has them.
    """
    asked = list(dict.fromkeys(names))
    found = {name: colour for name, colour in (fixed or {}).items() if name in asked}
    for name in [name for name in asked if name not in found]:
        start = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
        turns = [_PALETTE[(start + n) % len(_PALETTE)] for n in range(len(_PALETTE))]
        used = Counter(found.values())
        found[name] = min(turns, key=lambda colour: used[colour])  # the first of the least used
    return {name: found[name] for name in asked}


def styled(draw: Callable[P, T]) -> Callable[P, T]:
    """Makes a function draw in the common style, regardless of the user's matplotlibrc."""

    @functools.wraps(draw)
    def in_style(*args: P.args, **options: P.kwargs) -> T:
        with matplotlib.style.context(["default", _STYLE]):
            return draw(*args, **options)

    return in_style


def new_figure(width: float, height: float) -> Figure:
    """Creates a figure of this size in inches, at 150 dots per inch."""
    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Writes a PNG whose bytes depend only on the figure."""
    figure.savefig(path, format="png", metadata={"Software": None})


@functools.cache
def _font() -> ft2font.FT2Font:
    """The bundled font, the only one used."""
    return ft2font.FT2Font(font_manager.findfont("DejaVu Sans"))


def readable(text: str) -> str:
    """Text on one line, with a box for each character that the font lacks."""
    line = " ".join(text.split())
    return "".join(c if _font().get_char_index(ord(c)) else "\N{WHITE SQUARE}" for c in line)


def wrapped(text: str, size: float, inches: float) -> list[str]:
    """Wraps text to at most five lines of at most `inches`, in a font of `size` points."""
    line = readable(text)
    _font().set_size(size, 72)
    _font().set_text(line)
    whole = max(_font().get_width_height()[0] / 64 / 72, 1e-6)  # from 1/64 points
    # The margin allows for lines with more wide letters than average.
    return textwrap.wrap(line, max(20, int(0.9 * len(line) * inches / whole)), max_lines=5) or [""]


def _series(lines: Iterable[Line], key: str) -> tuple[np.ndarray, np.ndarray]:
    """(steps, values) of a key, without missing values and values that are not finite."""
    found = [(line["step"], float(line[key])) for line in lines if line.get(key) is not None]
    array = np.array([pair for pair in found if np.isfinite(pair[1])], float).reshape(-1, 2)
    return array[:, 0], array[:, 1]


def _smooth(values: np.ndarray, span: int) -> np.ndarray:
    """Centred running mean; the window shrinks at the ends."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    place = np.arange(len(values))
    reach = np.minimum(np.minimum(place, place[::-1]), span // 2)
    return (sums[place + reach + 1] - sums[place - reach]) / (2 * reach + 1)


@styled
def loss_curves(lines: Sequence[Line], path: Path) -> None:
    """Draws the total loss, each objective's loss and the learning rate against the step.

    Points are logged values; lines are their running mean over a twentieth of the run.

    Args:
      lines: of metrics.jsonl.
      path: PNG to write, 1350 pixels wide.

    Raises:
      InputError: no train line with a finite loss.
    """
    train = [line for line in lines if line.get("kind") == "train"]
    names = dict.fromkeys(key for line in train for key in line if key.endswith("/loss"))
    drawn = [name for name in ("loss", *sorted(names)) if len(_series(train, name)[0])]
    if "loss" not in drawn:
        raise InputError(
            f"no finite training loss in {len(lines)} lines, so there is no curve to draw"
        )
    panels = list(drawn)
    if len(_series(train, "learning_rate")[0]):
        panels.append("learning_rate")
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = new_figure(9, 0.5 + 2.5 * rows)
    axes = np.ravel(figure.subplots(rows, columns, squeeze=False, sharex=True))
    for panel, axis in zip(panels, axes, strict=False):
        _loss_panel(axis, train, panel)
    for axis in axes[len(panels) :]:
        axis.remove()
    for axis in axes[: len(panels)]:
        axis.set_xlabel("training step")
        axis.tick_params(labelbottom=True)
    steps = int(_series(train, "loss")[0].max())
    figure.suptitle(f"Training, {len(train)} logged lines up to step {steps:,}", fontsize=11)
    save(figure, path)


def _loss_panel(axis: Axes, lines: Sequence[Line], name: str) -> None:
    steps, values = _series(lines, name)
    if name == "learning_rate":
        axis.plot(steps, values, color=GREY)
        axis.set(title="Learning rate", ylabel="learning rate", ylim=(0, 1.1 * values.max() or 1))
        axis.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
        return
    title = "Total loss, weighted sum" if name == "loss" else name.removesuffix("/loss")
    axis.plot(steps, values, ".", color=BLUE, alpha=0.3, markersize=4, label="logged")
    axis.plot(steps, _smooth(values, max(3, len(values) // 20)), color=BLUE, label="running mean")
    axis.set(title=readable(title), ylabel="loss (nats)")
    if name == "loss":
        axis.legend(fontsize=9)


@styled
def retrieval_over_time(
    lines: Sequence[Line], path: Path, *, results: Mapping[str, Any] | None = None
) -> None:
    """Draws R@k in both directions against the step, with 95 % bands and chance.

    Args:
      lines: one per evaluation, with "step" and "{direction}/R@{k}" and its "/low" and "/high".
      path: PNG to write, 1350 x 600 pixels.
      results: `Results.to_dict()` of the retrieval evaluator, for N, protocol and chance.

    Raises:
      InputError: no line with a retrieval value.
    """
    names = {key for line in lines for key in line if key.rpartition("/R@")[2].isdigit()}
    if not names:
        raise InputError(f"no retrieval values in {len(lines)} lines, so there is no curve to draw")
    values = results["values"] if results else {}
    figure = new_figure(9, 4)
    panels = figure.subplots(1, 2, sharey=True)
    top = 0.0
    for axis, direction in zip(panels, ("image_to_text", "text_to_image"), strict=True):
        prefix = f"{direction}/R@"
        ks = sorted(int(name.removeprefix(prefix)) for name in names if name.startswith(prefix))
        for k, look in zip(ks, itertools.cycle(_LOOKS), strict=False):
            chance = values.get(f"{direction}/R@{k}", {}).get("chance")
            top = max(top, _recall_curve(axis, lines, f"{prefix}{k}", k, look, chance))
        axis.set(title=direction.replace("_", " ").capitalize(), xlabel="training step")
    panels[0].set_ylabel("recall at k (share of queries)")
    panels[0].set_ylim(0, min(1.0, 1.1 * top) or 1.0)
    panels[0].legend(fontsize=9, loc="best")
    figure.suptitle(
        "Held-out retrieval" + (_of(results) if results else "") + "\n"
        "bands: 95 % patient bootstrap" + ("; dashed: chance" if results else ""),
        fontsize=11,
    )
    save(figure, path)


def _recall_curve(
    axis: Axes,
    lines: Sequence[Line],
    name: str,
    k: int,
    look: tuple[str, str],
    chance: float | None,
) -> float:
    """Draws one curve; returns its highest point."""
    steps, values = _series(lines, name)
    axis.plot(steps, values, color=look[0], marker=look[1], markersize=4.5, label=f"R@{k}")
    low, high = (_series(lines, f"{name}/{end}") for end in ("low", "high"))
    if np.array_equal(low[0], high[0]):
        axis.fill_between(low[0], low[1], high[1], color=look[0], alpha=0.18, linewidth=0)
    if chance is not None:
        axis.axhline(chance, color=look[0], linestyle=(0, (4, 3)), linewidth=1.2)
    return max([*values, *high[1], chance or 0.0])


def _of(results: Mapping[str, Any]) -> str:
    """Data, N and protocol, for titles."""
    return readable(f", {results['data']['name']}, N = {results['n']:,}, {results['protocol']}")
