"""Bar charts of perturbed-report choice: with the true image, another image, and no image."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from mmrl.reporting.figures import BLUE, GREY, ORANGE, new_figure, readable, save, styled
from mmrl.types import InputError


@styled
def structure_per_kind(results: Mapping[str, Any], protocol: str, path: Path) -> None:
    """Draws accuracy with the true image, another image and no image, per kind, and chance.

    The first group is the whole protocol; the others are the report against the copy of one kind.

    Args:
      results: `Results.to_dict()` of the structure evaluator.
      protocol: one of its protocols, such as "clinical@1".
      path: PNG to write, 1350 pixels wide.

    Raises:
      InputError: no values of that protocol.
    """
    start = f"{protocol}/"
    values = {
        name.removeprefix(start): value
        for name, value in results["values"].items()
        if name.startswith(start)
    }
    if "accuracy" not in values:
        raise InputError(
            f"{results['protocol']} has no values of {protocol}, so there are no bars to draw"
        )
    kinds = [name.split("/")[1] for name in values if name.endswith("/accuracy")]
    headline = "choice among all" if values["accuracy"]["chance"] < 0.5 else "all questions"
    groups = [("", headline)]
    if len(kinds) > 1:
        groups += [(f"kind/{kind}/", kind.replace("_", " ")) for kind in kinds]
    figure = new_figure(9, 1.7 + 0.8 * len(groups))
    axis = figure.subplots()
    looks: list[tuple[str, dict[str, Any]]] = [
        ("accuracy", {"color": BLUE, "label": "its own image"}),
        (
            "accuracy_images_permuted",
            {"color": ORANGE, "hatch": "////", "label": "another patient's image (blind)"},
        ),
        ("accuracy_text_only", {"color": GREY, "hatch": "....", "label": "text only (blind)"}),
    ]
    for g, (prefix, _) in enumerate(groups):
        for place, (row, look) in enumerate(looks):
            if f"{prefix}{row}" in values:
                _bar(axis, values[f"{prefix}{row}"], g + 0.26 * (place - 1), **look)
        ends = [g - 0.42, g + 0.42]
        chance = values[f"{prefix}accuracy"]["chance"]
        axis.plot([chance] * 2, ends, color="black", linewidth=1.6, label="chance")
        gain = values[f"{prefix}grounded_gain"]
        axis.text(1.02, g, _with_interval(gain), va="center", fontsize=9)
    axis.text(1.02, -0.62, "grounded gain [95 %]", va="center", fontsize=9, weight="bold")
    labels = [f"{label}\nn = {values[f'{prefix}accuracy']['n']:,}" for prefix, label in groups]
    axis.set_yticks(range(len(groups)), labels)
    axis.set(
        xlim=(0, 1), ylim=(len(groups) - 0.5, -0.8), xlabel="share of questions answered correctly"
    )
    axis.grid(visible=False, axis="y")
    axis.axhline(0.5, color=GREY, linewidth=0.8)
    handles = dict(zip(*axis.get_legend_handles_labels()[::-1], strict=True)).values()
    figure.legend(handles=list(handles), loc="outside lower center", ncols=3, fontsize=9)
    title = f"True report against perturbed copies: structure/{protocol}, {results['data']['name']}"
    figure.suptitle(readable(title), fontsize=11)
    save(figure, path)


def _bar(axis: Axes, row: Mapping[str, Any], place: float, **look: Any) -> None:
    axis.barh(place, row["value"], 0.24, edgecolor="white", linewidth=0, **look)
    if row["low"] is not None:
        for colour, width in (("white", 3.4), ("black", 1.4)):  # a rim, to show on dark bars
            axis.plot([row["low"], row["high"]], [place, place], color=colour, linewidth=width)


def _with_interval(row: Mapping[str, Any]) -> str:
    text = f"{row['value']:+.3f}"
    return text if row["low"] is None else f"{text} [{row['low']:+.3f}, {row['high']:+.3f}]"
