"""What the check of a system states, and how its claims are judged.

A row is a file of benchmarks/systems/rows/ with these names:

    NUMBERS    the systems of `python -m mmrl.systems` that it stands for; () for a block of several
    EXPRESSED  what the preset expresses. DIFFERS: how it differs from what was published, or ""
    RUNS       label -> a preset of configs/systems/ with its variants, and arguments of mmrl.main
    values     (Runs) -> the values of one seed
    CLAIMS     what is promised of the values
"""

import dataclasses
import functools
import hashlib
import importlib
import json
import pkgutil
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

from scipy import stats

from benchmarks.systems import rows

# One step that changes nothing: the results of a run with its first weights.
UNTRAINED = (
    "--config.total_steps=1",
    "--config.optimizer.learning_rate=0.0",
    "--config.optimizer.warmup_steps=0",
)


class Claim(NamedTuple):
    """What a row promises of a value.

    The effect of a seed is the value minus the greatest of those beside it. A claim without bounds
    holds if the mean effect reaches the threshold and its interval lies above 0; one with bounds if
    every seed keeps them, and the interval lies above 0 where anything stands beside the value.

    Attributes:
      text: what is measured, for the page.
      value: its name in the values.
      beside: names of what it is compared with: chance, blind, constant, untrained, raw pixels.
      less: whether less is better; the effect is then the least of those beside minus the value.
      least, most: bounds that the published check or its authors state, instead of a threshold.
    """

    text: str
    value: str
    beside: tuple[str, ...] = ()
    less: bool = False
    least: float | None = None
    most: float | None = None

    @property
    def bounded(self) -> bool:
        """Whether bounds are stated, so that nothing has to be calibrated."""
        return self.least is not None or self.most is not None

    def effect(self, values: Mapping[str, float]) -> float:
        """Of one seed."""
        if self.less:
            return min(values[name] for name in self.beside) - values[self.value]
        return values[self.value] - max(values[name] for name in self.beside)


@dataclasses.dataclass(frozen=True)
class Runs:
    """The finished runs of a row with one seed.

    Attributes:
      folders: label of RUNS -> run directory. seed: of all of them.
      scratch: an empty folder.
    """

    folders: Mapping[str, Path]
    seed: int
    scratch: Path

    def __getitem__(self, label: str) -> Path:
        return self.folders[label]


class Row(Protocol):
    """The module of a row, as the head of this file describes it."""

    __name__: str
    __doc__: str
    NUMBERS: tuple[int, ...]
    EXPRESSED: str
    DIFFERS: str
    RUNS: Mapping[str, Sequence[str]]
    CLAIMS: tuple[Claim, ...]
    values: Callable[[Runs], Mapping[str, float]]


class Judged(NamedTuple):
    """A claim and what was found: of the effects, or of the values where nothing is beside them.

    Attributes:
      mean: over seeds. low, high: the 95 % t interval of the mean.
    """

    holds: bool
    mean: float
    low: float
    high: float


@functools.cache
def names() -> tuple[str, ...]:
    """Of all rows."""
    return tuple(sorted(one.name for one in pkgutil.iter_modules(rows.__path__)))


def load(name: str) -> Row:
    """The row of a name."""
    return cast(Row, importlib.import_module(f"{rows.__name__}.{name}"))


def judge(
    claim: Claim, values: Sequence[Mapping[str, float]], threshold: float | None = None
) -> Judged:
    """Whether a claim holds.

    Args:
      values: of each seed. threshold: that the mean effect has to reach, for claims without bounds.
    """
    found = [claim.effect(one) if claim.beside else one[claim.value] for one in values]
    (low, high), mean = interval(found), statistics.fmean(found)
    if claim.bounded:
        least = -float("inf") if claim.least is None else claim.least
        most = float("inf") if claim.most is None else claim.most
        holds = all(least <= one[claim.value] <= most for one in values)
        holds &= low > 0 or not claim.beside
    else:
        holds = threshold is not None and mean >= threshold and low > 0
    return Judged(holds, mean, low, high)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the mean by Student's t; infinite for a single value."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return -float("inf"), float("inf")
    deviation = statistics.stdev(values)
    half = float(stats.t.ppf(0.975, len(values) - 1)) * deviation / len(values) ** 0.5
    return mean - half, mean + half


def last(folder: Path) -> dict[str, Any]:
    """The results that the last evaluation of a run stored."""
    path = sorted((folder / "results").glob("*.json"))[-1]
    return cast(dict[str, Any], json.loads(path.read_text(encoding="utf-8")))


def value(folder: Path, evaluator: str, measure: str) -> float:
    """A value that the last evaluation of a run stored."""
    return float(last(folder)["results"][evaluator]["values"][measure]["value"])


def chance(folder: Path, evaluator: str, measure: str) -> float:
    """The chance of a value that the last evaluation of a run stored."""
    return float(last(folder)["results"][evaluator]["values"][measure]["chance"])


def recall(runs: Runs, measure: str) -> dict[str, float]:
    """A recall of the evaluator `retrieval`, and what stands beside it.

    Args:
      runs: with the labels trained and untrained. measure: such as image_to_text/R@1.
    """
    trained = runs["trained"]
    return {
        measure.rpartition("/")[2]: value(trained, "retrieval", measure),
        "chance": chance(trained, "retrieval", measure),
        "permuted": value(trained, "retrieval", f"{measure}_images_permuted"),
        "untrained": value(runs["untrained"], "retrieval", measure),
    }


def both_ways(folder: Path, measure: str, evaluator: str = "retrieval") -> float:
    """A measure of a retrieval, such as "R@1", as the mean of both directions."""
    ways = ("image_to_text", "text_to_image")
    return statistics.fmean(value(folder, evaluator, f"{way}/{measure}") for way in ways)


def loss(folder: Path, name: str) -> float:
    """A metric of an objective on the validation split: "masked_text/accuracy"."""
    return float(last(folder)["losses"][f"val/{name}"])


def slug(given: Sequence[str]) -> str:
    """A name of a folder for what is given to mmrl.main; equal ones share their runs."""
    preset, *arguments = given
    stem = preset.removeprefix("configs/").replace(".py", "")
    stem = "".join(one if one.isalnum() or one in "_-" else "_" for one in stem)
    if not arguments:
        return stem
    if tuple(arguments) == UNTRAINED:
        return f"{stem}-untrained"
    return f"{stem}-{hashlib.sha256(json.dumps(arguments).encode()).hexdigest()[:8]}"


def arguments(given: Sequence[str], seed: int) -> list[str]:
    """The arguments of mmrl.main for an entry of RUNS."""
    preset, *others = given
    if "/" not in preset:
        name, colon, variants = preset.partition(":")
        preset = f"configs/systems/{name}.py{colon}{variants}"
    return [f"--config={preset}", f"--config.seed={seed}", *others]
