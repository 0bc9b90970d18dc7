"""The page of a comparison: its tables, its figures, and how the encoders were made."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmrl import config
from mmrl.evaluators.base import Estimate
from mmrl.evaluators.stored import Evaluation
from mmrl.reporting import intervals, page
from mmrl.reporting.comparison import CHANCE, Comparison, shown
from mmrl.reporting.figures import GREY, colours
from mmrl.reporting.page import Cell, Folded, Note, Part, Points, Section, table

PAGE = "comparison.html"
MOST_PANELS = 12
"""Measures that are drawn; the tables have all."""


def write(folder: Path, compared: Comparison, given: Mapping[str, Evaluation]) -> Path:
    """Draws `folder`/figures/*.png and writes `folder`/comparison.html.

    Args:
      given: name -> evaluation, of the encoders of `compared`.

    Returns:
      Path of the page.
    """
    of_encoder = colours(given)
    pictures = page.Pictures()
    figures = folder / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    sections = [
        Section(
            "Comparison",
            [*_spreads(compared), *_values(compared, of_encoder), Points(compared.notes)],
        ),
        Section("Figures", _drawn(compared, of_encoder, figures, pictures)),
        Section("Paired differences", _differences(compared, of_encoder)),
        Section("How the configurations differ", _configurations(given)),
        Section("Facts", [Folded("What was compared", table(("", ""), page.flat(compared.facts)))]),
    ]
    title = f"mmrl comparison: {', '.join(given)}"
    page.write_page(folder / PAGE, title=title, sections=sections)
    return folder / PAGE


def _spreads(compared: Comparison) -> list[Part]:
    """Mean and standard deviation of systems of several runs; nothing where there is none."""
    if not compared.systems:
        return []
    header = ["mean ± standard deviation", "runs", *compared.measures]
    return list(table(header, compared.spreads()))


def _values(compared: Comparison, of_encoder: Mapping[str, str]) -> list[Part]:
    """Measures as rows, because they are many; encoders and other rows as columns."""
    rows: list[list[Any]] = []
    for measure in compared.measures:
        best = compared.best.get(measure)
        cells = [
            Cell(shown(row.cells.get(measure)), strong=row.encoder and best == row.name)
            for row in compared.rows
        ]
        count = next(row.cells[measure].n for row in compared.rows if measure in row.cells)
        rows.append([measure, *cells, f"{count:,}"])
    header = [Cell(row.name, of_encoder[row.name] if row.encoder else "") for row in compared.rows]
    return table(["", *header, "N"], rows)


def _differences(compared: Comparison, of_encoder: Mapping[str, str]) -> list[Part]:
    if not compared.differences:
        return []
    rows: list[list[Any]] = [
        [measure]
        + [
            Cell(shown(cells.get(measure), sign=True), strong=_apart(cells.get(measure)))
            for cells in compared.differences.values()
        ]
        for measure in compared.measures
    ]
    said = (
        f"Encoder minus {_first(compared)}, with the same examples and draws; bold: the interval "
        "excludes 0."
    )
    header = [Cell(name, of_encoder[name]) for name in compared.differences]
    return [Note(said), *table(["", *header], rows)]


def _first(compared: Comparison) -> str:
    """The encoder that differences are to."""
    return next(row.name for row in compared.rows if row.encoder)


def _apart(gap: Estimate | None) -> bool:
    return (
        gap is not None
        and gap.low is not None
        and gap.high is not None
        and (gap.low > 0 or gap.high < 0)
    )


def _drawn(
    compared: Comparison, of_encoder: Mapping[str, str], folder: Path, pictures: page.Pictures
) -> list[Part]:
    """The values and the differences of the first measures."""
    measures = compared.measures[:MOST_PANELS]
    more = len(compared.measures) - len(measures)
    chance = next(
        (row.cells for row in compared.rows if row.name == CHANCE and not row.encoder), {}
    )
    lines = [
        intervals.Line(
            row.name, of_encoder.get(row.name, GREY) if row.encoder else GREY, _plain(row.cells)
        )
        for row in compared.rows
        if row.cells is not chance
    ]
    intervals.intervals(
        lines,
        measures,
        folder / "values.png",
        title="Values with 95 % intervals; dashed: chance",
        marked={measure: one.value for measure, one in chance.items()},
    )
    left = f" {more} more measures are in the tables." if more else ""
    caption = f"Grey: what encoders are compared with.{left}"
    parts = [*pictures.part("Values", folder / "values.png", caption)]
    paired = [m for m in measures if any(m in of for of in compared.differences.values())]
    if paired:
        intervals.intervals(
            [
                intervals.Line(name, of_encoder[name], _plain(cells))
                for name, cells in compared.differences.items()
            ],
            paired,
            folder / "differences.png",
            title=f"Paired differences to {_first(compared)} with 95 % intervals",
            marked=dict.fromkeys(paired, 0.0),
        )
        caption = f"Dashed: no difference.{left}"
        parts += pictures.part("Differences", folder / "differences.png", caption)
    return parts


def _plain(cells: Mapping[str, Estimate]) -> dict[str, intervals.Value]:
    return {measure: (one.value, one.low, one.high) for measure, one in cells.items()}


def _configurations(given: Mapping[str, Evaluation]) -> list[Part]:
    """The keys of the configs of runs that are not the same everywhere."""
    configs = {
        name: dict(config.flatten(one.content["config"]))
        for name, one in given.items()
        if one.content.get("config")
    }
    without = [name for name in given if name not in configs]
    parts: list[Part] = []
    if without:
        parts.append(Note(f"No config is stored of: {', '.join(without)}."))
    keys = sorted({key for of in configs.values() for key in of})
    rows = [
        [key, *(page.brief(of.get(key)) for of in configs.values())]
        for key in keys
        if len({page.brief(of.get(key)) for of in configs.values()}) > 1
    ]
    parts += table(["key", *configs], rows)
    if len(configs) > 1 and not rows:
        parts.append(Note("The configurations of the runs are the same."))
    return parts
