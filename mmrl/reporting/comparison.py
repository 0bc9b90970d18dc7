"""One table of several evaluations with paired differences; what does not compare is refused."""

import dataclasses
import statistics
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from mmrl import build, sequences
from mmrl.evaluators import scoring
from mmrl.evaluators.base import ROWS, Estimate, direction
from mmrl.evaluators.stored import Evaluation
from mmrl.types import InputError

OWN = ("size", "text_length", "tokenizer_sha256")
"""Keys of the preprocessing that are an encoder's own; they may differ, and the table states them.
Every other difference between two evaluations is refused unless it is named."""

_OF_ONE_KIND = (*OWN, "resize", "max_value")
"""Keys of the preprocessing that an encoder without images, or without texts, does not state."""

CHANCE = "chance"


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the table: an encoder, or what encoders are compared with.

    Attributes:
      name: of the row. cells: measure -> estimate; measures that the row lacks are left out, such
        as those of evaluators that an encoder cannot run.
      encoder: whether it is the row of an encoder, not of a blind or simpler predictor.
    """

    name: str
    cells: Mapping[str, Estimate]
    encoder: bool = True


class Spread(NamedTuple):
    """A measure over the runs of one system, such as three seeds.

    Attributes:
      deviation: the sample standard deviation, 0 of a single run. runs: how many there are.
    """

    mean: float
    deviation: float
    runs: int

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.deviation:.3f}"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A table of K encoders and what they are compared with.

    Attributes:
      measures: "{evaluator}/{measure}", the columns.
      rows: of the encoders, in the order given, then of the other predictors.
      best: measure -> the encoder that beats every other row: the interval of each paired
        difference excludes 0. Measures without such an encoder are left out.
      differences: encoder, all but the first -> measure -> paired difference to the first one.
      facts: of what was compared; notes: sentences to read with it.
      systems: system -> measure -> what its runs spread over, where runs of one system were given.
    """

    measures: tuple[str, ...]
    rows: tuple[Row, ...]
    best: Mapping[str, str]
    differences: Mapping[str, Mapping[str, Estimate]]
    facts: Mapping[str, Any]
    notes: tuple[str, ...]
    systems: Mapping[str, Mapping[str, Spread]] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form, without the draws."""
        return {
            "measures": list(self.measures),
            "rows": [
                {"name": row.name, "encoder": row.encoder, "values": _plain(row.cells)}
                for row in self.rows
            ],
            "best": dict(self.best),
            "differences": {name: _plain(cells) for name, cells in self.differences.items()},
            "systems": {
                name: {measure: spread._asdict() for measure, spread in cells.items()}
                for name, cells in self.systems.items()
            },
            "facts": dict(self.facts),
            "notes": list(self.notes),
        }

    def markdown(self) -> str:
        """The table, that of the differences, and the notes."""
        first = next(row.name for row in self.rows if row.encoder)
        body = [
            [
                row.name,
                *(
                    _bold(cell) if self.best.get(measure) == row.name else cell
                    for measure in self.measures
                    for cell in [shown(row.cells.get(measure))]
                ),
            ]
            for row in self.rows
        ]
        counts = [
            str(next(row.cells[measure].n for row in self.rows if measure in row.cells))
            for measure in self.measures
        ]
        lines = _table(["", *self.measures], [*body, ["N", *counts]])
        if self.systems:
            lines = [
                "Mean ± standard deviation over the runs of each system:",
                "",
                *_table(["", "runs", *self.measures], self.spreads()),
                "",
                "Each run:",
                "",
                *lines,
            ]
        if self.differences:
            lines += ["", f"Paired differences to {first}:", ""]
            lines += _table(
                ["", *self.measures],
                [
                    [name, *(shown(cells.get(measure), sign=True) for measure in self.measures)]
                    for name, cells in self.differences.items()
                ],
            )
        return "\n".join([*lines, "", *(f"- {note}" for note in self.notes)]) + "\n"

    def spreads(self) -> list[list[str]]:
        """A row of cells for each system: its name, how many runs it has, and each measure."""
        return [
            [
                name,
                ", ".join(sorted({str(one.runs) for one in cells.values()})),
                *(str(cells[measure]) if measure in cells else "" for measure in self.measures),
            ]
            for name, cells in self.systems.items()
        ]


def compare(
    given: Mapping[str, Evaluation],
    *,
    measures: Sequence[str] = (),
    may_differ: Sequence[str] = (),
    systems: Mapping[str, Sequence[str]] = types.MappingProxyType({}),
) -> Comparison:
    """Compares evaluations of the same examples under the same protocols.

    An encoder that cannot run an evaluator, and whose evaluation says so, has blank cells.

    Args:
      given: name -> evaluation; the first is the one that differences are to.
      measures: "{evaluator}/{measure}"; by default those that evaluators show first.
      may_differ: facts that are allowed to differ, such as preprocessing.resize; the notes then
        state them. `OWN` are always allowed, and what intervals depend on never is.
      systems: name -> names of its evaluations, such as those of three seeds.

    Raises:
      InputError: no evaluation, an unknown measure, or evaluations that do not compare: the message
        names the fact that differs.
    """
    if not given:
        raise InputError("no evaluation was given; expected at least one results.json")
    may_differ = sequences.of(may_differ, "may_differ")
    chosen = _chosen(given, sequences.of(measures, "measures"))
    notes: list[str] = []
    differing: set[str] = set()
    for evaluator in dict.fromkeys(_split(given, measure)[0] for measure in chosen):
        parts = [_split(given, one)[1] for one in chosen if _split(given, one)[0] == evaluator]
        found = _check(_with(given, evaluator), evaluator, parts, may_differ)
        differing |= set(found)
        notes += found.values()
    for fact in sorted(set(may_differ) - differing):
        raise InputError(
            f"may_differ names {fact!r}, which does not differ; leave it out so that the table "
            "states only what it rests on"
        )
    values = {name: _estimates(one, chosen, given) for name, one in given.items()}
    for measure in chosen:
        counts = {name: cells[measure].n for name, cells in values.items() if measure in cells}
        if len(set(counts.values())) > 1:
            raise InputError(f"{measure} is of {_listed(counts)} items; expected equally many")
    others = _references(given, chosen)
    encoders = [Row(name, cells) for name, cells in values.items()]
    first, *rest = encoders
    best = {m: name for m in chosen if (name := _best(m, encoders, others)) is not None}
    return Comparison(
        measures=chosen,
        rows=(*encoders, *others),
        best=best,
        differences={
            row.name: {
                m: scoring.difference(row.cells[m], first.cells[m])
                for m in chosen
                if m in row.cells and m in first.cells
            }
            for row in rest
        },
        facts=_facts(given, chosen),
        notes=(*_explained(encoders, best), *notes, *_provenance(given, chosen)),
        systems={
            name: _spread([values[run] for run in runs], chosen) for name, runs in systems.items()
        },
    )


def _spread(runs: Sequence[Mapping[str, Estimate]], measures: Sequence[str]) -> dict[str, Spread]:
    """Measure -> its spread over runs; measures that a run lacks are left out."""
    found = {}
    for measure in measures:
        values = [cells[measure].value for cells in runs if measure in cells]
        if len(values) == len(runs):
            deviation = statistics.stdev(values) if len(values) > 1 else 0.0
            found[measure] = Spread(statistics.fmean(values), deviation, len(values))
    return found


def _chosen(given: Mapping[str, Evaluation], measures: Sequence[str]) -> tuple[str, ...]:
    """The measures to show. Every evaluation has them, or says that its encoder cannot."""
    wanted = list(measures)
    for evaluator in () if measures else _evaluators(given):
        having = _with(given, evaluator)
        if any(name not in having and not _left_out(given[name], evaluator) for name in given):
            continue
        first = next(iter(having.values()))
        values = list(first.results[evaluator]["values"])
        shown = [m for m in first.content.get("headline", {}).get(evaluator, ()) if m in values]
        wanted += [f"{evaluator}/{measure}" for measure in shown or values[:1]]
    if not wanted:
        raise InputError("the evaluations have no evaluator with values in common")
    for measure in wanted:
        evaluator, name = _split(given, measure)
        for label, one in given.items():
            if _left_out(one, evaluator):
                continue
            offered = list(one.results.get(evaluator, {"values": {}})["values"])
            if name not in offered:
                raise InputError(
                    f"{label}: {build.unknown(f'measure of {evaluator}', name, offered)}"
                )
    return tuple(dict.fromkeys(wanted))


def _evaluators(given: Mapping[str, Evaluation]) -> list[str]:
    """The evaluators that any evaluation has."""
    return list(dict.fromkeys(evaluator for one in given.values() for evaluator in one.results))


def _with(given: Mapping[str, Evaluation], evaluator: str) -> dict[str, Evaluation]:
    """The evaluations that have an evaluator."""
    return {name: one for name, one in given.items() if evaluator in one.results}


def _left_out(one: Evaluation, evaluator: str) -> str:
    """Why the encoder of an evaluation cannot run an evaluator; "" where it is not said."""
    return (one.content.get("left_out") or {}).get(evaluator, "")


def _split(given: Mapping[str, Evaluation], measure: str) -> tuple[str, str]:
    """(evaluator, name of the value)."""
    evaluator, _, name = measure.partition("/")
    known = _evaluators(given)
    if evaluator not in known or not name:
        choices = ", ".join(f"{one}/MEASURE" for one in known)
        raise InputError(f"unknown measure {measure!r}; expected one of {choices}")
    return evaluator, name


def _check(
    given: Mapping[str, Evaluation], evaluator: str, measures: Sequence[str], allowed: Sequence[str]
) -> dict[str, str]:
    """The facts in which evaluations differ and are allowed to, each with a note.

    Raises:
      InputError: another difference; names the fact and what each evaluation states.
    """
    stated = {name: dict(_compared(one, evaluator, measures)) for name, one in given.items()}
    notes = {}
    for key in dict.fromkeys(key for facts in stated.values() for key in facts):
        values = {
            name: facts.get(key)
            for name, facts in stated.items()
            if key in facts or key.rpartition(".")[2] not in _OF_ONE_KIND
        }
        if all(value == next(iter(values.values())) for value in values.values()):
            continue
        own = key.startswith("preprocessing.") and key.rpartition(".")[2] in OWN
        if not own and not (_may_be_named(key) and key in allowed):
            way = (
                f"; --may_differ={key} allows it"
                if _may_be_named(key)
                else f"; --measures=EVALUATOR/MEASURE,... without {evaluator} leaves it out"
            )
            raise InputError(
                f"{evaluator}: {key} differs: {_listed(values)}; one table would compare what does "
                f"not compare{way}"
            )
        notes[key] = f"{evaluator}: {key} differs: {_listed(values)}."
    return notes


def _may_be_named(key: str) -> bool:
    """Whether a user may allow a difference: in preprocessing, or in options that draw nothing."""
    draws = ("options.seed", "options.bootstrap")
    return key.startswith(("preprocessing.", "options.")) and key not in draws


def _compared(
    one: Evaluation, evaluator: str, measures: Sequence[str]
) -> Iterator[tuple[str, Any]]:
    """The facts of an evaluation that measures depend on, by dotted names."""
    result = one.results[evaluator]
    details = result["details"]
    yield "protocol", result["protocol"]
    yield "data.items_sha256", result["data"].get("items_sha256", "not stated")
    yield "n", result["n"]
    yield from _flat(result["excluded"], "excluded.")
    options = details.get("options", {})
    direct = {key: details[key] for key in ("bootstrap", "seed") if key in details}
    yield from _flat({**direct, **options}, "options.")
    # Digests of questions and truths; those of a part only if a measure is of that part.
    parts = {name.partition("/")[0] for name in result["values"] if "/" in name}
    for key, value in _flat(details, ""):
        within = [part for part in parts if f".{part}." in f".{key}"]
        if key.endswith("sha256") and all(
            any(name.startswith(f"{part}/") for name in measures) for part in within
        ):
            yield key, value
    yield from _flat(result["preprocessing"], "preprocessing.")


def _flat(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _estimates(
    one: Evaluation, chosen: Sequence[str], given: Mapping[str, Evaluation]
) -> dict[str, Estimate]:
    found = {}
    for measure in chosen:
        evaluator, name = _split(given, measure)
        if evaluator in one.results:
            found[measure] = one.estimates(evaluator)[name]
    return found


def _references(given: Mapping[str, Evaluation], chosen: Sequence[str]) -> list[Row]:
    """Rows of blind and simpler predictors, and chance; one for all encoders where they agree."""
    rows = []
    for suffix in ROWS:
        cells = {
            label: {
                measure: found
                for measure in chosen
                if (found := _reference(one, measure, suffix)) is not None
            }
            for label, one in given.items()
        }
        name, several = suffix.replace("_", " "), len(given) > 1
        shared = {measure: cell for of in cells.values() for measure, cell in of.items()}
        if all(cell == shared[measure] for of in cells.values() for measure, cell in of.items()):
            cells, several = {"": shared}, False
        rows += [
            Row(f"{label}, {name}" if several else name, of, encoder=False)
            for label, of in cells.items()
            if of
        ]
    chances = {}
    for measure in chosen:
        evaluator, value = _split(given, measure)
        first = next(iter(_with(given, evaluator).values()))
        own = first.estimates(evaluator)[value]
        if own.chance is not None:
            chances[measure] = Estimate(own.chance, n=own.n)
    return [*rows, Row(CHANCE, chances, encoder=False)] if chances else rows


def _reference(one: Evaluation, measure: str, suffix: str) -> Estimate | None:
    """The measure of another predictor; a constant one may be stated in the details alone."""
    evaluator, _, name = measure.partition("/")
    if evaluator not in one.results:
        return None
    values = one.estimates(evaluator)
    if f"{name}_{suffix}" in values:
        return values[f"{name}_{suffix}"]
    stated = one.results[evaluator]["details"].get("constant_predictor", {})
    last = name.rpartition("/")[2]
    if suffix == "constant" and last in stated:
        return Estimate(float(stated[last]), n=values[name].n)
    return None


def _best(measure: str, encoders: Sequence[Row], others: Sequence[Row]) -> str | None:
    """The encoder that is better than every other row; None if there is no such encoder."""
    sign = direction(measure)
    having = [row for row in encoders if measure in row.cells]
    if not sign or len(having) < 2:
        return None
    best = max(having, key=lambda row: sign * row.cells[measure].value)
    own = best.cells[measure]
    for row in (*having, *others):
        if row is best or measure not in row.cells:
            continue
        if not _better(own, row.cells[measure], sign):
            return None
    return best.name


def _better(one: Estimate, two: Estimate, sign: int) -> bool:
    """Whether the interval of the difference excludes 0, in favour of `one`.

    A row without draws is a fixed number, such as chance; the interval of `one` must exclude it.
    """
    if one.low is None or one.high is None:
        return False
    if two.draws is None:
        if two.low is not None:
            return False  # draws of this row were not kept
        return one.low > two.value if sign > 0 else one.high < two.value
    gap = scoring.difference(one, two)
    if gap.low is None or gap.high is None:
        return False
    return gap.low > 0 if sign > 0 else gap.high < 0


def _explained(encoders: Sequence[Row], best: Mapping[str, str]) -> list[str]:
    if len(encoders) < 2:
        return []
    if not best:
        return [
            "Nothing is bold: on no measure is an encoder better than all others and all rows that "
            "they are compared with, with intervals of the paired differences that exclude 0."
        ]
    return [
        "Bold: better on the measure than all others and all rows that they are compared with; the "
        "95 % interval of each paired difference excludes 0."
    ]


def _facts(given: Mapping[str, Evaluation], chosen: Sequence[str]) -> dict[str, Any]:
    used = dict.fromkeys(_split(given, measure)[0] for measure in chosen)
    first = {name: next(iter(_with(given, name).values())).results[name] for name in used}
    stated = ("step", "weights_sha256", "source", "encoders", "leaks", "left_out")
    return {
        "evaluators": {
            name: {key: one[key] for key in ("protocol", "n", "excluded")}
            | {"data": {k: one["data"][k] for k in ("name", "items_sha256")}}
            for name, one in first.items()
        },
        "encoders": {
            name: {
                **{key: one.content.get(key) for key in stated},
                "preprocessing": {
                    e: one.results[e]["preprocessing"] for e in used if e in one.results
                },
            }
            for name, one in given.items()
        },
    }


def _provenance(given: Mapping[str, Evaluation], chosen: Sequence[str]) -> list[str]:
    notes = []
    used = dict.fromkeys(_split(given, measure)[0] for measure in chosen)
    for name, one in given.items():
        leaks = one.content.get("leaks") or {}
        stated = f"accepted overlap with training: {', '.join(leaks.get('waived') or {})}"
        source = one.content.get("source")
        what = f"step {one.content.get('step')}"
        if source is not None:
            what, stated = f"encoder of the family {source.get('family')}", leaks.get("note", "")
        weights = f"{name}: {what}, weights {str(one.content.get('weights_sha256'))[:16]}"
        said = source is not None or leaks.get("waived")
        notes.append(f"{weights}; {stated}." if said else f"{weights}.")
        missing = {evaluator: _left_out(one, evaluator) for evaluator in used}
        notes += [
            f"{name}: without {evaluator}, which {reason}."
            for evaluator, reason in missing.items()
            if reason
        ]
    for evaluator in used:
        result = next(iter(_with(given, evaluator).values())).results[evaluator]
        data = result["data"]
        notes.append(
            f"{evaluator}: {result['protocol']} on {data['name']}, items "
            f"{data.get('items_sha256', '')[:16]}."
        )
    return notes


def _plain(cells: Mapping[str, Estimate]) -> dict[str, Any]:
    plain = {}
    for measure, cell in cells.items():
        plain[measure] = {
            field.name: getattr(cell, field.name)
            for field in dataclasses.fields(cell)
            if field.name != "draws"
        }
    return plain


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} {value[:16] if isinstance(value, str) and len(value) == 64 else value}"
        for name, value in values.items()
    )


def shown(cell: Estimate | None, *, sign: bool = False) -> str:
    """The value of a cell with its interval; "" for a blank one."""
    if cell is None:
        return ""
    form = "+.3f" if sign else ".3f"
    if cell.low is None or cell.high is None:
        return f"{cell.value:{form}}"
    return f"{cell.value:{form}} ({cell.low:{form}} to {cell.high:{form}})"


def _bold(text: str) -> str:
    """Text whose first word is bold in Markdown."""
    first, *rest = text.split(" ", 1)
    return " ".join([f"**{first}**", *rest])


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"

    return [line(header), line(["---"] * len(header)), *map(line, rows)]
