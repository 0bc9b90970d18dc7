"""The page of the checks."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import runs
from benchmarks.results import cell
from benchmarks.systems import check
from benchmarks.systems.check import Claim, Judged, Row

_HEAD = """# Published systems, checked on phantoms

Written by `python -m benchmarks.systems` from [results/systems.json](results/systems.json).
`python -m mmrl.systems` lists all systems. Phantoms are drawings: none of these figures is clinical
evidence, and none is a figure of the published system.

Each claim compares a value with what simpler answers reach: chance, a constant, the same with
images of other patients, the untrained model, raw pixels. The *effect* is the value minus the best
of them. Thresholds are half of the mean effect over the seeds 10, 11 and 12. They were frozen
before the seeds 0, 1 and 2 were run once, and stand in `benchmarks/systems/thresholds.json` beside
those effects. A claim holds if the mean effect reaches the threshold and its 95 % interval over the
three seeds, by Student's t, lies above 0. One with fixed bounds, which the published check states,
holds if every seed keeps them; its effect, if there is one, has to lie above 0 as well.
Core-minutes are the computing time of what a row started, over three seeds; rows share runs. They
grow when the machine does other work, and rows of different commits were timed on different
machines.
"""

_COLUMNS = (
    *("#", "preset", "what is measured", "value", "beside it", "effect", "threshold", "holds"),
    *("date, commit", "core-minutes"),
)


def write(path: Path, results: Mapping[str, Any], thresholds: Mapping[str, Any]) -> None:
    """Writes and prints the page of all stored results."""
    found = {name: check.load(name) for name in check.names() if name in results}
    ordered = sorted(found, key=lambda name: (found[name].NUMBERS or (1000,), name))
    lines = [
        _HEAD,
        f"| {' | '.join(_COLUMNS)} |",
        "|---" * len(_COLUMNS) + "|",
    ]
    for name in ordered:
        lines += [_line(name, found[name], one, results, thresholds) for one in found[name].CLAIMS]
    lines += ["", "## What is expressed, and what differs", ""]
    lines += ["| # | preset | expressed | differs |", "|---|---|---|---|"]
    for name in ordered:
        row = found[name]
        lines.append(f"| {_numbers(row)} | {name} | {row.EXPRESSED} | {row.DIFFERS} |")
    if left := [name for name in check.names() if name not in results]:
        lines += ["", f"Not calibrated or not run yet: {', '.join(left)}."]
    runs.write(path, "\n".join([*lines, ""]))


def line(row: Row, claim: Claim, result: Mapping[str, Any], thresholds: Mapping[str, Any]) -> str:
    """A claim in one line, for the console."""
    name = row.__name__.rpartition(".")[2]
    threshold = _threshold(name, claim, thresholds)
    judged = check.judge(claim, result["values"], threshold)
    held = "holds" if judged.holds else "DOES NOT HOLD"
    return f"{claim.text}: {_figure(judged)}, expected {_expected(claim, threshold)}: {held}"


def _line(
    name: str,
    row: Row,
    claim: Claim,
    results: Mapping[str, Any],
    thresholds: Mapping[str, Any],
) -> str:
    result = results[name]
    threshold = _threshold(name, claim, thresholds)
    judged = check.judge(claim, result["values"], threshold)
    beside = "; ".join(
        f"{one} {cell([values[one] for values in result['values']])}" for one in claim.beside
    )
    return " | ".join(
        (
            f"| {_numbers(row)}",
            name,
            claim.text,
            cell([values[claim.value] for values in result["values"]]),
            beside,
            _figure(judged) if claim.beside else "",
            _expected(claim, threshold),
            "yes" if judged.holds else "**no**",
            f"{result['date']}, {result['commit']}",
            f"{result['core_minutes']:.1f} |",
        )
    )


def _numbers(row: Row) -> str:
    return ", ".join(map(str, row.NUMBERS))


def _threshold(name: str, claim: Claim, thresholds: Mapping[str, Any]) -> float | None:
    return None if claim.bounded else float(thresholds[name][claim.value]["threshold"])


def _figure(judged: Judged) -> str:
    return f"{judged.mean:+.3f} [{judged.low:+.3f}, {judged.high:+.3f}]"


def _expected(claim: Claim, threshold: float | None) -> str:
    if threshold is not None:
        return f"at least {threshold:+.3f}"
    bounds = [
        f"at {word} {bound:g}"
        for word, bound in (("least", claim.least), ("most", claim.most))
        if bound is not None
    ]
    return " and ".join(bounds)
