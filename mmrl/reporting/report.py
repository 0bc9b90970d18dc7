"""The summary page of a run or an evaluation."""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmrl.reporting import page
from mmrl.reporting.page import Code, Folded, Heading, Note, Part, Section, table

_LIMITS = (
    "docs/limits.md of mmrl says what these figures do not show; none of them is clinical evidence."
)
_VALUES = ("measure", "value", "95 % interval", "chance", "N", "protocol")


def write_report(
    path: str | os.PathLike[str],
    *,
    title: str,
    summary: Sequence[tuple[str, Mapping[str, Any], str]],
    results: Mapping[str, Mapping[str, Any]],
    pictures: Sequence[Part],
    config: Mapping[str, Any],
    changed: Mapping[str, tuple[Any, Any]],
    provenance: Mapping[str, Any],
    left_out: Mapping[str, str] | None = None,
) -> None:
    """Writes the page.

    Args:
      path: of the HTML file, written atomically.
      title: of the page.
      summary: (name, value of `Results.to_dict()`, meaning) rows of the first table.
      results: evaluator name -> `Results.to_dict()`.
      pictures: parts of the section of figures.
      config: the run's configuration, JSON-able.
      changed: dotted key -> (default, value), where the configuration is not at its default.
      provenance: step, data digests, package versions; may be nested.
      left_out: evaluator -> why it could not run.
    """
    of_results = [part for name, result in results.items() for part in _result(name, result)]
    sections = [
        Section("Summary", [*_summary(summary), Note(_LIMITS)]),
        Section("Figures", pictures),
        Section("Results", of_results),
        *_left_out(left_out or {}),
        Section("Excluded examples", _excluded(results)),
        Section("Preprocessing", _preprocessing(results)),
        Section("Configuration", _configuration(config, changed)),
        Section("Provenance", table(("", ""), page.flat(provenance))),
    ]
    page.write_page(path, title=title, sections=sections)


def _summary(rows: Sequence[tuple[str, Mapping[str, Any], str]]) -> list[Part]:
    shown = [(name, v["value"], interval(v), v["chance"], note) for name, v, note in rows]
    return table(("", "value", "95 % interval", "chance", "meaning"), shown, numbers=(1, 2, 3))


def _result(name: str, result: Mapping[str, Any]) -> Iterator[Part]:
    """One evaluator: its main values, and its breakdown and details, folded."""
    rows = [
        (
            value_name,
            value["value"],
            interval(value),
            value["chance"],
            value["n"],
            result["protocol"],
        )
        for value_name, value in result["values"].items()
    ]
    main = [row for row in rows if row[0].count("/") < 2]
    breakdown = [row for row in rows if row[0].count("/") >= 2]
    numbers = (1, 2, 3, 4)
    yield Heading(name)
    yield Note(_examples(result))
    yield from table(_VALUES, main, numbers=numbers) or [
        Note("No values: there was nothing to evaluate.", "")
    ]
    if breakdown:
        shown = table(_VALUES, breakdown, numbers=numbers)
        yield Folded(f"Breakdown, {len(breakdown)} rows", shown)
    yield Folded("Details", [Code(result["details"])])


def _examples(result: Mapping[str, Any]) -> str:
    """Name, number and digest of the evaluated examples."""
    data = result["data"]
    return f"{data['name']}, N = {result['n']:,}, sha256 {data['sha256'][:16]}"


def interval(value: Mapping[str, Any]) -> str:
    """The interval of a value of `Results.to_dict()`; a dash if it has none."""
    if value["low"] is None or value["high"] is None:
        return "\N{EN DASH}"
    return f"[{page.number(value['low'])}, {page.number(value['high'])}]"


def _left_out(reasons: Mapping[str, str]) -> list[Section]:
    """A section of evaluators that could not run, if there are any."""
    return [Section("Left out", table(("evaluator", "reason"), reasons.items()))] * bool(reasons)


def _excluded(results: Mapping[str, Mapping[str, Any]]) -> list[Part]:
    rows = [
        (name, reason, count)
        for name, result in results.items()
        for reason, count in result["excluded"].items()
    ]
    return table(("evaluator", "reason", "examples"), rows, numbers=(2,))


def _preprocessing(results: Mapping[str, Mapping[str, Any]]) -> list[Part]:
    """Tables of preprocessing; evaluators with equal preprocessing share one."""
    shared: list[tuple[Mapping[str, Any], list[str]]] = []
    for name, result in results.items():
        own = result["preprocessing"]
        names = next((names for given, names in shared if given == own), None)
        if names is None:
            shared.append((own, [name]))
        else:
            names.append(name)
    return [
        part
        for own, names in shared
        for part in (Note(", ".join(names)), *table(("", ""), page.flat(own)))
    ]


def _configuration(config: Mapping[str, Any], changed: Mapping[str, tuple[Any, Any]]) -> list[Part]:
    """What is not at its default, and the whole configuration, folded."""
    rows = [
        (key, page.brief(value), page.brief(default)) for key, (default, value) in changed.items()
    ]
    shown = table(("key, where not at its default", "value", "default"), rows)
    return [*shown, Folded("The whole configuration", [Code(config)])]
