"""Draws the figures of a run or an evaluation and collects its summary page."""

import dataclasses
import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import jax
import numpy as np

from mmrl import config as configs
from mmrl.data.batches.pipeline import Examples
from mmrl.evaluators.base import Evaluator, Figure, Item, Neighbours, Results
from mmrl.reporting import figures, page, report
from mmrl.training import scalars
from mmrl.training.run import Trained

Pictured = Figure | Neighbours


def write(
    folder: Path,
    trained: Trained,
    examples: Examples,
    evaluators: Mapping[str, Evaluator],
    results: Mapping[str, Results],
    *,
    title: str,
    config: Mapping[str, Any],
    leaks: Mapping[str, Any],
    left_out: Mapping[str, str] | None = None,
    numbers: bool = False,
) -> dict[str, Path]:
    """Draws `folder`/figures/*.png and writes `folder`/report.html.

    All processes of a run must call this, because evaluators may encode for their figures. The
    first process draws.

    Args:
      trained: the encoders. examples: what `results` were measured on.
      evaluators: by name; `results` holds what each of them returned for the state of `trained`.
      config: JSON-able, as the page shows it.
      leaks: held-out records that also occur in training, see `mmrl.data.overlap.leaks.summary`.
      left_out: evaluator -> why it could not run.
      numbers: also write `folder`/report_numbers.html, a page for other places: without figures,
        details of results and warnings, which may show images, texts and ids of records.

    Returns:
      "whole" -> path of the page; with `numbers` also "numbers" -> path of that page.
    """
    pages = {"whole": folder / "report.html"}
    if numbers:
        pages["numbers"] = folder / "report_numbers.html"
    lines = scalars.read_lines(trained.folder / "metrics.jsonl")
    made: list[Pictured] = _training_figures(lines) + _distinct(
        {
            name: evaluator.figures(trained.state, results[name], _history(lines, name))
            for name, evaluator in evaluators.items()
        }
    )
    provenance = {**trained.provenance(examples), "leaks": leaks}
    if jax.process_index() == 0:
        shown = _draw(made, folder / "figures")
        for kind, path in pages.items():
            whole = kind == "whole"
            told = {name: result.to_dict() for name, result in results.items()}
            report.write_report(
                path,
                title=title,
                summary=_summary(evaluators, results),
                results=told if whole else {n: {**one, "details": {}} for n, one in told.items()},
                pictures=shown if whole else (),
                config=config,
                changed=configs.differences(configs.base(), config),
                provenance=provenance if whole else _without_warnings(provenance),
                left_out=left_out or {},
            )
    return pages


def _without_warnings(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Provenance without lines about data, which may name records."""
    data = {key: one for key, one in provenance["data"].items() if key != "warnings"}
    return {**provenance, "data": data}


def _training_figures(lines: list[dict[str, Any]]) -> list[Pictured]:
    if not any(line["kind"] == "train" for line in lines):
        return []
    caption = "Losses of the objectives are shown before weighting."
    draw = functools.partial(figures.loss_curves, lines)
    return [Figure("loss", "Training losses", caption, draw)]


def _distinct(of_evaluators: Mapping[str, Sequence[Pictured]]) -> list[Pictured]:
    """All figures; those whose name several evaluators use also have the evaluator's name."""
    times = Counter(one.name for made in of_evaluators.values() for one in made)
    return [
        dataclasses.replace(one, name=f"{one.name}_{name}", title=f"{one.title} ({name})")
        if times[one.name] > 1
        else one
        for name, made in of_evaluators.items()
        for one in made
    ]


def _history(lines: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """The evaluations of one evaluator: {"step": n, value name: value}."""
    start = f"{name}/"
    history = []
    for line in lines:
        values = {k.removeprefix(start): v for k, v in line.items() if k.startswith(start)}
        if line["kind"] == "eval" and values:
            history.append({"step": line["step"], **values})
    return history


def _draw(made: Sequence[Pictured], folder: Path) -> list[page.Part]:
    """Writes the PNG files; the parts of the page that show all figures, in order."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = page.Pictures()
    parts: list[page.Part] = []
    for one in made:
        if isinstance(one, Neighbours):
            parts.append(_gallery(one, pictures))
            continue
        file = None if one.draw is None else folder / f"{one.name}.png"
        if one.draw is not None and file is not None:
            one.draw(file)
        parts += pictures.part(one.title, file, one.caption)
    return parts


def _gallery(made: Neighbours, pictures: page.Pictures) -> page.Gallery:
    queries = [
        page.Query(_shown(item, pictures), [_shown(other, pictures) for other in found])
        for item, found in made.queries
    ]
    return page.Gallery(made.title, made.caption, queries)


def _shown(item: Item, pictures: page.Pictures) -> page.Shown:
    """An item with its picture as a small JPEG; without it if the page is full."""
    data = "" if item.image is None else page.embedded(_thumbnail(item.image), "jpeg")
    if not pictures.take(len(data)):
        data = ""
    return page.Shown(item.id, data, _cut(item.text), item.score, item.matches)


_SIDE, _CUT = 160, 400
"""Pixels of the long side of a thumbnail; characters of a text that are shown."""


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _CUT else f"{line[:_CUT]} [...]"


def _thumbnail(image: np.ndarray) -> bytes:
    """u8[H, W, C] -> a JPEG."""
    scale = min(1.0, _SIDE / max(image.shape[:2]))
    size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    pixels = np.ascontiguousarray(image[..., ::-1])  # OpenCV has blue first
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    done, data = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 80])
    if not done:
        raise RuntimeError(f"a picture of {size} pixels could not be encoded")
    return data.tobytes()


def _summary(
    evaluators: Mapping[str, Evaluator], results: Mapping[str, Results]
) -> list[tuple[str, Mapping[str, Any], str]]:
    """The headline values of every evaluator, with their intervals, chance and meaning.

    An evaluator without any of them shows its first value.
    """
    rows: list[tuple[str, Mapping[str, Any], str]] = []
    for name, evaluator in evaluators.items():
        values = results[name].values
        shown = {key: note for key, note in evaluator.headline.items() if key in values}
        shown = shown or dict.fromkeys(list(values)[:1], "")
        rows += [
            (f"{name}/{key}", dataclasses.asdict(values[key]), note) for key, note in shown.items()
        ]
    return rows
