"""Draws the figures and writes the summary page of a run or an evaluation."""

import dataclasses
import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from mmrl.data.batches.pipeline import Examples
from mmrl.evaluators.base import Evaluator, Figure, Results
from mmrl.reporting import figures, page
from mmrl.training import scalars
from mmrl.training.run import Trained


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
) -> Path:
    """Draws `folder`/figures/*.png and writes `folder`/report.html.

    All processes of a run must call this, because evaluators may encode for their figures. The
    first process draws.

    Args:
      trained: the encoders. examples: what `results` were measured on.
      evaluators: by name; `results` holds what each of them returned for the state of `trained`.
      config: JSON-able, as the page shows it.
      leaks: held-out records that also occur in training, see `mmrl.data.overlap.leaks.summary`.
      left_out: evaluator -> why it could not run.

    Returns:
      Path of the page.
    """
    path = folder / "report.html"
    lines = scalars.read_lines(trained.folder / "metrics.jsonl")
    made = _training_figures(lines) + _distinct(
        {
            name: evaluator.figures(trained.state, results[name], _history(lines, name))
            for name, evaluator in evaluators.items()
        }
    )
    provenance = {**trained.provenance(examples), "leaks": leaks}
    if jax.process_index() == 0:
        page.write_report(
            path,
            title=title,
            summary=_summary(evaluators, results),
            results={name: result.to_dict() for name, result in results.items()},
            figures=_draw(made, folder / "figures"),
            config=config,
            provenance=provenance,
            left_out=left_out or {},
        )
    return path


def _training_figures(lines: list[dict[str, Any]]) -> list[Figure]:
    if not any(line["kind"] == "train" for line in lines):
        return []
    caption = "Losses of the objectives are shown before weighting."
    draw = functools.partial(figures.loss_curves, lines)
    return [Figure("loss", "Training losses", caption, draw)]


def _distinct(of_evaluators: Mapping[str, Sequence[Figure]]) -> list[Figure]:
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


def _draw(made: list[Figure], folder: Path) -> list[tuple[str, Path | None, str]]:
    """Writes the PNG files; (title, file or None, caption) of each figure for the page."""
    folder.mkdir(parents=True, exist_ok=True)
    shown: list[tuple[str, Path | None, str]] = []
    for one in made:
        file = None if one.draw is None else folder / f"{one.name}.png"
        if one.draw is not None and file is not None:
            one.draw(file)
        shown.append((one.title, file, one.caption))
    return shown


def _summary(
    evaluators: Mapping[str, Evaluator], results: Mapping[str, Results]
) -> list[tuple[str, Any, str]]:
    """The headline values of every evaluator, with their intervals, chance and meaning."""
    return [
        (f"{name}/{key}", str(results[name].values[key]), note)
        for name, evaluator in evaluators.items()
        for key, note in evaluator.headline.items()
        if key in results[name].values
    ]
