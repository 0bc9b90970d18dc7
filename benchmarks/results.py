"""Reads the results of several runs and tabulates them: values, and differences by seed."""

import dataclasses
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

Results = dict[str, Any]
"""evaluator -> its results, as a run stores them."""

Runs = dict[tuple[str, int], Results]
"""(variant, seed) -> results of that run."""

Interval = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Measure:
    """A row of a table.

    Attributes:
      title: name of the row.
      evaluator, key: where its value is in the results of a run.
      needs: an objective without which the value has no meaning, or "".
    """

    title: str
    evaluator: str
    key: str
    needs: str = ""


def found(results: Results, measure: Measure) -> dict[str, Any] | None:
    """The estimate of a measure in one run, with its chance and number of items."""
    return results[measure.evaluator]["values"].get(measure.key)


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (0 for a single value)."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def cell(values: Sequence[float], *, signed: bool = False) -> str:
    """Mean and deviation as the text of a cell; `signed` for differences."""
    mean, deviation = spread(values)
    return f"{mean:{'+' if signed else ''}.3f} ± {deviation:.3f}"


@dataclasses.dataclass(frozen=True)
class Tables:
    """Tables of runs of some variants with the same seeds.

    Attributes:
      runs: the results. names: variant -> title of its column; the first one is the base of
        differences.
      seeds: of every variant.
      objectives: variant -> names of the objectives it trains; what it lacks is not tabulated.
      interval: (measure, variant) -> interval of the mean over seeds, None where there is none.
      difference: (measure, variant) -> interval of the mean difference to the base.
    """

    runs: Runs
    names: Mapping[str, str]
    seeds: Sequence[int]
    objectives: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    interval: Callable[[Measure, str], Interval | None] | None = None
    difference: Callable[[Measure, str], Interval | None] | None = None

    def value(self, measure: Measure, variant: str, seed: int) -> float | None:
        """The value of a measure in one run; None if it has no meaning there."""
        if measure.needs and measure.needs not in self.objectives[variant]:
            return None
        estimate = found(self.runs[variant, seed], measure)
        return None if estimate is None else estimate["value"]

    def values(self, measure: Measure, variant: str) -> list[float | None]:
        """The value of every seed."""
        return [self.value(measure, variant, seed) for seed in self.seeds]

    def table(self, measures: Iterable[Measure]) -> list[str]:
        """Mean and deviation over seeds: a row per measure, a column per variant."""
        lines = [
            "| | " + " | ".join(self.names.values()) + " | chance | N |",
            "|---|" + "---|" * (len(self.names) + 2),
        ]
        for measure in measures:
            cells, chance, count = [], "", ""
            for variant in self.names:
                values = self.values(measure, variant)
                known = [value for value in values if value is not None]
                if len(known) < len(values):
                    cells.append("not trained" if measure.needs else "none")
                    continue
                ends = self.interval and self.interval(measure, variant)
                cells.append(cell(known) + _ends(ends, ".3f"))
                estimate = found(self.runs[variant, self.seeds[0]], measure) or {}
                count = f"{estimate['n']:,}"
                chance = "" if estimate["chance"] is None else f"{estimate['chance']:.3f}"
            lines.append(f"| {measure.title} | " + " | ".join(cells) + f" | {chance} | {count} |")
        return lines

    def differences(self, measures: Iterable[Measure]) -> list[str]:
        """Variant minus base with the same seed: mean, deviation and their ratio."""
        base, *others = self.names
        lines = [
            "| | " + " | ".join(f"{self.names[v]} - {self.names[base]}" for v in others) + " |",
            "|---|" + "---|" * len(others),
        ]
        for measure in measures:
            cells = []
            for variant in others:
                pairs = zip(self.values(measure, variant), self.values(measure, base), strict=True)
                gaps = [a - b for a, b in pairs if a is not None and b is not None]
                if not gaps:
                    cells.append("none")
                    continue
                mean, deviation = spread(gaps)
                ratio = f" ({mean / deviation:+.1f} sd)" if deviation > 1e-9 else ""
                ends = self.difference and self.difference(measure, variant)
                cells.append(f"{cell(gaps, signed=True)}{ratio}{_ends(ends, '+.3f')}")
            lines.append(f"| {measure.title} | " + " | ".join(cells) + " |")
        return lines


def with_section(page: str, heading: str, lines: Iterable[str]) -> str:
    """A Markdown page with its section "## HEADING" replaced, or added at its end."""
    kept = [part for part in page.split("\n## ") if not part.startswith(f"{heading}\n")]
    body = "\n".join([f"## {heading}", "", *lines])
    return "\n## ".join(kept).rstrip("\n") + f"\n\n{body}\n"


def section_of(page: str, heading: str) -> list[str]:
    """The lines below "## HEADING" of a Markdown page, up to the next such heading."""
    for part in page.split("\n## "):
        title, _, body = part.partition("\n")
        if title == heading:
            return body.strip("\n").split("\n")
    return []


def _ends(interval: Interval | None, form: str) -> str:
    return "" if interval is None else f" [{interval[0]:{form}}, {interval[1]:{form}}]"


def stored(runs: Runs, measures: Iterable[Measure]) -> dict[str, Any]:
    """The values of some measures of every run, as JSON, without its other results."""
    wanted = {(measure.evaluator, measure.key) for measure in measures}
    evaluators = {evaluator for evaluator, _ in wanted}
    return {
        f"{variant}-{seed}": {
            evaluator: {
                "protocol": result["protocol"],
                "data": result["data"],
                "n": result["n"],
                "excluded": result["excluded"],
                "values": {
                    key: value
                    for key, value in result["values"].items()
                    if (evaluator, key) in wanted
                },
            }
            for evaluator, result in results.items()
            if evaluator in evaluators
        }
        for (variant, seed), results in runs.items()
    }
