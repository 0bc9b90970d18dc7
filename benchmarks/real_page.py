"""The page of `benchmarks.real_sets`: tables from stored evaluations of several encoders.

Nothing is judged here. Evaluations of other examples or protocol versions are refused.
"""

import dataclasses
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from configs import judge
from mmrl.evaluators import scoring
from mmrl.evaluators.base import Estimate
from mmrl.evaluators.stored import Evaluation
from mmrl.types import InputError

RANDOM = "random"
"""Name of the encoder with initial weights, to which differences are stated."""

Encoders = Mapping[str, Sequence[Evaluation]]
"""Encoder -> its evaluations on one set, one per seed."""

_PERMUTED, _PIXELS = "images_permuted", "raw_pixels"
_WORDS = {
    _PERMUTED: "images permuted",
    _PIXELS: "raw pixels",
    "boxes_permuted": "boxes of other patients",
}
_POINT = re.compile(r"linear_100%/label/(.+)/specificity_at_(\d+)%_sensitivity")


@dataclasses.dataclass(frozen=True)
class Measure:
    """A row of the table of a set, and the rows below it.

    Attributes:
      title: of the row.
      evaluator, key: where its value is in the results of an evaluation.
      constant: the predictor that ignores the image: "{key}_{constant}"; "" for none.
      rows: what else is compared with, in the same way.
      minus: evaluator whose value of the same key is subtracted, with what the row then says.
    """

    title: str
    evaluator: str
    key: str
    constant: str = ""
    rows: tuple[str, ...] = ()
    minus: tuple[str, str] = ("", "")


def _of_probe(evaluator: str, what: str) -> tuple[Measure, ...]:
    rows = ("constant", (_PERMUTED, _PIXELS))
    ways = {
        "linear_100%": "linear probe",
        "knn_100%": "5 nearest neighbours",
        **{f"simple_shot_{n}_shots": f"{n}-shot class means" for n in (1, 4, 16)},
    }
    found = [
        Measure(f"{what}, {title}, mean AUROC", evaluator, f"{way}/macro_auroc", *rows)
        for way, title in ways.items()
    ]
    linear = f"{what}, linear probe"
    found.insert(
        1,
        Measure(
            f"{linear}, balanced accuracy", evaluator, "linear_100%/macro_balanced_accuracy", *rows
        )
        if evaluator == "findings"
        else Measure(
            f"{linear}, balanced accuracy", evaluator, "linear_100%/balanced_accuracy", *rows
        ),
    )
    found.append(
        Measure(f"{linear}, calibration error", evaluator, "linear_100%/calibration_error")
    )
    return tuple(found)


def _of_masks(what: str) -> tuple[Measure, ...]:
    """Dice, also without empty masks; `lungs` has no empty masks."""
    rows = ("mean_mask", (_PERMUTED, _PIXELS))
    return (
        Measure(f"{what}, Dice", "segmentation", "dice", *rows),
        Measure(f"{what}, Dice of masks not empty", "segmentation", "dice_not_empty", *rows),
    )


def _of_boxes(evaluator: str, what: str, minus: tuple[str, str] = ("", "")) -> tuple[Measure, ...]:
    rows = ("prior_map", (_PERMUTED, "boxes_permuted"), minus)
    return (
        Measure(f"{what}, contrast-to-noise ratio", evaluator, "cnr", *rows),
        Measure(f"{what}, pointing", evaluator, "pointing", *rows),
    )


MEASURES: Mapping[str, tuple[Measure, ...]] = {
    "nih": (
        *_of_probe("findings", "findings"),
        *_of_probe("rsna", "RSNA classes"),
        *_of_boxes("grounding", "boxes of opacities"),
    ),
    "busi": (*_of_probe("classes", "classes"), *_of_masks("lesions")),
    "ham10000": (*_of_probe("classes", "classes"), *_of_masks("lesions")),
    "lungs": (
        _of_masks("lungs")[0],
        *_of_boxes("sides", "left and right lung", ("sides_exchanged", "words of the other side")),
        *_of_boxes("sides_exchanged", "the same with the words of the other side"),
    ),
    "roco": (
        Measure("image finds its caption, R@1", "retrieval", "image_to_text/R@1"),
        Measure("image finds its caption, R@10", "retrieval", "image_to_text/R@10"),
        Measure("caption finds its image, R@1", "retrieval", "text_to_image/R@1"),
        Measure("caption finds its image, R@10", "retrieval", "text_to_image/R@10"),
        Measure("modality, zero-shot AUROC", "modality", "tasks/auroc", "", (_PERMUTED,)),
        *_of_probe("modality_probe", "modality"),
    ),
}
"""Set -> what its table shows. The first row is the one given by subgroup and by seed."""


def write_page(sets: Mapping[str, Encoders], command: str, machine: str) -> str:
    """The Markdown page.

    Args:
      sets: set -> encoder -> evaluations. command: that made them. machine: and where.

    Raises:
      InputError: evaluations that do not compare, or lack a measure.
    """
    lines = [
        "# Encoders on real sets",
        "",
        f"`{command}`, {machine}.",
        "",
        "All encoders are frozen. An encoder of several runs has the mean over their seeds, ± the "
        "deviation over seeds, and in brackets the 95 % interval of the mean from a bootstrap over "
        "patients (or lesions, articles, images, see the notes). *Constant* ignores the image: the "
        "frequencies of the training labels, the mean training mask, or the mean place of the "
        "boxes. *Images permuted* answers about the images of other patients. *Raw pixels* is the "
        "same probe or decoder on the pixels that this encoder gets. Differences are paired; they "
        "are bold if their interval excludes 0.",
        "",
        *_described(sets),
    ]
    for name, encoders in sets.items():
        check(name, encoders)
        lines += ["", f"## {name}: {judge.VARIANTS[name]}", ""]
        lines += [*values_table(MEASURES[name], encoders), ""]
        lines += [*(f"- {line}" for line in facts(encoders)), ""]
        lines += ["Paired differences:", "", *differences_table(MEASURES[name], encoders)]
        for title, table in (
            ("Operating points of the linear probe", points_table(encoders)),
            (f"Subgroups: {MEASURES[name][0].title}", subgroups_table(MEASURES[name][0], encoders)),
            (f"Single runs: {MEASURES[name][0].title}", runs_table(MEASURES[name][0], encoders)),
        ):
            if table:
                lines += ["", f"{title}:", "", *table]
    return "\n".join(lines) + "\n"


def estimate(runs: Sequence[Evaluation], evaluator: str, key: str) -> Estimate | None:
    """The mean of a value over the runs of an encoder; None if they lack the evaluator.

    Raises:
      InputError: they have the evaluator and lack the value.
    """
    found = [one.estimates(evaluator) for one in runs if evaluator in one.results]
    if not found:
        return None
    lacking = [
        one.path for one in runs if key not in one.results.get(evaluator, {"values": ()})["values"]
    ]
    if lacking:
        raise InputError(f"{lacking[0]} has no value {key!r} of {evaluator}; evaluate again")
    return scoring.average([one[key] for one in found])


def check(name: str, encoders: Encoders) -> None:
    """Refuses evaluations of one set that do not compare.

    Raises:
      InputError: another protocol, other examples, or another number of them.
    """
    seen: dict[tuple[str, str], tuple[Any, str]] = {}
    for encoder, runs in encoders.items():
        for one in runs:
            for evaluator, result in one.results.items():
                stated = {
                    "protocol": result["protocol"],
                    "n": result["n"],
                    "excluded": result["excluded"],
                    "examples": result["data"].get("items_sha256", result["data"]["name"]),
                }
                for fact, value in stated.items():
                    first, by = seen.setdefault((evaluator, fact), (value, encoder))
                    if first != value:
                        raise InputError(
                            f"{name}, {evaluator}: {fact} of {by} is {first}, of {encoder} {value};"
                            " one table would compare what does not compare"
                        )


def values_table(measures: Sequence[Measure], encoders: Encoders) -> list[str]:
    """A row per measure and per blind or simpler predictor, a column per encoder."""
    rows = []
    for measure in measures:
        of = {
            name: estimate(runs, measure.evaluator, measure.key) for name, runs in encoders.items()
        }
        known = [one for one in of.values() if one is not None]
        if not known:
            continue
        constant = ""
        if measure.constant:
            at = f"{measure.key}_{measure.constant}"
            fixed = [estimate(runs, measure.evaluator, at) for runs in encoders.values()]
            constant = next(f"{one.value:.3f}" for one in fixed if one is not None)
        chance = "" if known[0].chance is None else f"{known[0].chance:.3f}"
        cells = [
            _shown(one) + _spread(encoders[name], measure.evaluator, measure.key)
            for name, one in of.items()
        ]
        rows.append([measure.title, f"{known[0].n:,}", chance, constant, *cells])
        for row in measure.rows:
            at = f"{measure.key}_{row}"
            others = [estimate(runs, measure.evaluator, at) for runs in encoders.values()]
            rows.append([f"— {_WORDS[row]}", "", "", "", *map(_shown, others)])
    return _table(["", "N", "chance", "constant", *encoders], rows)


def differences_table(measures: Sequence[Measure], encoders: Encoders) -> list[str]:
    """Each encoder minus its permuted images, raw pixels, and the random tower."""
    rows = []
    for measure in measures:
        own = {
            name: estimate(runs, measure.evaluator, measure.key) for name, runs in encoders.items()
        }
        wanted = [row for row in (_PIXELS, _PERMUTED) if row in measure.rows]
        for row in wanted:
            other = {
                name: estimate(runs, measure.evaluator, f"{measure.key}_{row}")
                for name, runs in encoders.items()
            }
            cells = [_difference(own[name], other[name]) for name in encoders]
            rows.append([f"{measure.title} — minus {_WORDS[row]}", *cells])
        other_evaluator, title = measure.minus
        if other_evaluator:
            pairs = zip(own.values(), encoders.values(), strict=True)
            cells = [
                _difference(one, estimate(runs, other_evaluator, measure.key))
                for one, runs in pairs
            ]
            rows.append([f"{measure.title} — minus {title}", *cells])
        base = own.get(RANDOM)
        if base is not None and measure.rows:
            cells = ["" if name == RANDOM else _difference(one, base) for name, one in own.items()]
            rows.append([f"{measure.title} — minus {RANDOM}", *cells])
    return _table(["", *encoders], rows)


def points_table(encoders: Encoders) -> list[str]:
    """Sensitivity and specificity of each label at the threshold chosen on validation."""
    found: dict[tuple[str, str], str] = {}
    for runs in encoders.values():
        for evaluator, result in runs[0].results.items():
            for key in result["values"]:
                if matched := _POINT.fullmatch(key):
                    found[evaluator, matched[1]] = matched[2]
    rows = []
    for (evaluator, label), percent in found.items():
        cells = []
        for runs in encoders.values():
            pair = [
                estimate(
                    runs, evaluator, f"linear_100%/label/{label}/{what}_at_{percent}%_sensitivity"
                )
                for what in ("sensitivity", "specificity")
            ]
            cells.append("; ".join(_shown(one) for one in pair if one is not None))
        rows.append([f"{label}, {percent} % sensitivity on validation", *cells])
    return _table(["sensitivity; specificity", *encoders], rows) if rows else []


def subgroups_table(measure: Measure, encoders: Encoders) -> list[str]:
    """A measure by subgroup; empty if there are none."""
    start, _, last = measure.key.rpartition("/")
    pattern = re.compile(
        re.escape(f"{start}/" if start else "") + "subgroup/(.+)/" + re.escape(last)
    )
    groups: dict[str, str] = {}
    for runs in encoders.values():
        for key in runs[0].results.get(measure.evaluator, {"values": ()})["values"]:
            if matched := pattern.fullmatch(key):
                groups[matched[1]] = key
    rows = []
    for group, key in groups.items():
        of = [estimate(runs, measure.evaluator, key) for runs in encoders.values()]
        count = next(one.n for one in of if one is not None)
        rows.append([group, f"{count:,}", *map(_shown, of)])
    return _table(["", "N", *encoders], rows) if rows else []


def runs_table(measure: Measure, encoders: Encoders) -> list[str]:
    """A measure of every run, of encoders with several; empty if there are none."""
    rows = [
        [name, *(_shown(estimate([one], measure.evaluator, measure.key)) for one in runs)]
        for name, runs in encoders.items()
        if len(runs) > 1
    ]
    width = max((len(row) for row in rows), default=0)
    filled = [row + [""] * (width - len(row)) for row in rows]
    return _table(["", *(f"run {n + 1}" for n in range(width - 1))], filled) if rows else []


def facts(encoders: Encoders) -> list[str]:
    """Notes of the set, prevalence, protocols and digests of the examples."""
    first = next(iter(encoders.values()))[0]
    lines = list(first.content["warnings"])
    for evaluator, result in _results(encoders):
        lines += [f"{evaluator}: {line}" for line in prevalence(result)]
        data = result["data"]
        digest = data.get("items_sha256", data["sha256"])[:16]
        out = "; ".join(f"{reason}: {count}" for reason, count in result["excluded"].items())
        lines.append(
            f"{evaluator}: {result['protocol']} on {data['name']}, {digest}"
            + (f"; left out: {out}" if out else "")
            + "."
        )
    return lines


def prevalence(result: Mapping[str, Any]) -> Iterator[str]:
    """How often classes, labels or mask pixels occur, and what is left out, as sentences."""
    details = result["details"]
    for setting in list(details.get("probes", {}).values())[:1]:
        shares = {
            name: f"{given['share']:.0%} of {given['n']}" if isinstance(given, dict) else str(given)
            for name, given in setting["prevalence"].items()
        }
        yield "test items: " + ", ".join(f"{name} {share}" for name, share in shares.items()) + "."
    for name, reason in details.get("left_out", {}).items():
        yield f"{name} is left out: {reason}."
    if result["protocol"].startswith("segmentation"):
        for name, label in details["labels"].items():
            yield (
                f"{name}: {label['pixels']:.1%} of the pixels, {label['empty_masks']:.0%} of the "
                "masks are empty."
            )
    if result["protocol"].startswith("grounding"):
        for name, label in details["classes"].items():
            yield (
                f"{name}: {label['phrases']} images of {label['patients']} patients, boxes hold "
                f"{label['box_area_share']:.0%} of the pixels."
            )


def stored(sets: Mapping[str, Encoders]) -> dict[str, Any]:
    """The values of the page for every run, as JSON, with reliability curves."""
    return {
        name: {encoder: [_run(name, one) for one in runs] for encoder, runs in encoders.items()}
        for name, encoders in sets.items()
    }


def _run(name: str, one: Evaluation) -> dict[str, Any]:
    shown = {(m.evaluator, m.key): m for m in MEASURES[name]}
    results = {}
    for evaluator, result in one.results.items():
        starts = [key for of, key in shown if of == evaluator]
        values = {
            key: value
            for key, value in result["values"].items()
            if any(key == start or key.startswith(f"{start}_") for start in starts)
            or "subgroup/" in key
            or _POINT.fullmatch(key)
        }
        curves = {
            setting: given["calibration"]
            for setting, given in result["details"].get("probes", {}).items()
            if "calibration" in given
        }
        results[evaluator] = {
            **{key: result[key] for key in ("protocol", "data", "n", "excluded", "preprocessing")},
            "values": values,
            "reliability": curves,
        }
    return {
        **{key: one.content[key] for key in ("step", "weights_sha256", "leaks")},
        "results": results,
    }


def _described(sets: Mapping[str, Encoders]) -> list[str]:
    """A table of the encoders: what they learned from, and the digests of their weights."""
    rows: dict[str, list[str]] = {}
    for encoders in sets.values():
        for name, runs in encoders.items():
            learned = {str(one.content["leaks"].get("training", "")) for one in runs}
            if name == RANDOM:
                learned = {"none"}
            sizes = {
                str(one.content.get("image", result["preprocessing"].get("size", "")))
                for one in runs
                for result in one.results.values()
            }
            steps = {
                "" if one.content["step"] is None else f"{one.content['step']:,}" for one in runs
            }
            weights = [str(one.content["weights_sha256"])[:12] for one in runs]
            rows.setdefault(
                name,
                [
                    name,
                    *(", ".join(sorted(part)) for part in (learned, steps, sizes)),
                    ", ".join(weights),
                ],
            )
    return _table(["encoder", "training", "steps", "image size", "weights"], list(rows.values()))


def _results(encoders: Encoders) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every evaluator of a set once, with the result of the first encoder that has it."""
    seen = set()
    for runs in encoders.values():
        for evaluator, result in runs[0].results.items():
            if evaluator not in seen:
                seen.add(evaluator)
                yield evaluator, result


def _difference(one: Estimate | None, two: Estimate | None) -> str:
    if one is None or two is None:
        return ""
    gap = scoring.difference(one, two)
    text = _shown(gap, sign=True)
    apart = gap.low is not None and gap.high is not None and (gap.low > 0 or gap.high < 0)
    return f"**{text}**" if apart else text


def _spread(runs: Sequence[Evaluation], evaluator: str, key: str) -> str:
    if len(runs) < 2 or evaluator not in runs[0].results:
        return ""
    values = [one.estimates(evaluator)[key].value for one in runs]
    return f" ± {statistics.stdev(values):.3f}"


def _shown(one: Estimate | None, *, sign: bool = False) -> str:
    if one is None:
        return ""
    form = "+.3f" if sign else ".3f"
    if one.low is None or one.high is None:
        return f"{one.value:{form}}"
    return f"{one.value:{form}} [{one.low:{form}}, {one.high:{form}}]"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return [
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines
    ]
