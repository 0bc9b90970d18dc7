"""BenchX: one table of systems on equal splits, with mean and deviation over three seeds."""

import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.systems.check import Claim, Runs

NUMBERS = (49,)
EXPRESSED = "`python -m mmrl.compare NAME=RUN,RUN,RUN ...`: equal data, questions and heads for all"
DIFFERS = "phantoms in place of nine public sets, and two systems in place of nine models"
RUNS = {"both": ("mv_mlm",), "single": ("mv_mlm:dedicated",)}

SEEDS = 3  # of each system: those of the same ten
MEASURE = "lateral/findings/auroc"


def values(runs: Runs) -> dict[str, float]:
    """What the table of three seeds states, and the measure of this seed."""
    first = runs.seed - runs.seed % 10
    folders = {
        name: [_sibling(runs[name], first + number) for number in range(SEEDS)] for name in RUNS
    }
    # Beside the runs, so that the next seed finds the evaluations.
    out = runs["both"].with_name("comparisons") / f"benchx-{first}"
    given = [f"{name}={','.join(map(str, paths))}" for name, paths in folders.items()]
    _compare(*given, f"--out={out}").check_returncode()
    table = json.loads((out / "comparison.json").read_text(encoding="utf-8"))
    of_run = {
        f"{name}-{number + 1}": _read(out / "evaluations" / f"{name}-{number + 1}")
        for name in RUNS
        for number in range(SEEDS)
    }
    hashes = {
        evaluator: {one[evaluator]["data"]["items_sha256"] for one in of_run.values()}
        for evaluator in of_run["both-1"]
    }
    errors = []
    for name, cells in table["systems"].items():
        for measure, spread in cells.items():
            found = [_value(of_run[f"{name}-{n + 1}"], measure) for n in range(SEEDS)]
            errors += [
                abs(spread["mean"] - statistics.fmean(found)),
                abs(spread["deviation"] - statistics.stdev(found)),
            ]
    own = runs.seed - first + 1
    return {
        "hashes": max(map(len, hashes.values())),
        "measures": len(errors) / 2 / len(RUNS),
        "error": max(errors),
        "refused": float(_refuses_another_split(out / "evaluations" / "both-1", runs.scratch)),
        "AUROC": _value(of_run[f"both-{own}"], MEASURE),
        "AUROC, single": _value(of_run[f"single-{own}"], MEASURE),
        "AUROC, images permuted": _value(of_run[f"both-{own}"], f"{MEASURE}_images_permuted"),
    }


def _sibling(folder: Path, seed: int) -> Path:
    return folder.with_name(f"{folder.name.rpartition('-')[0]}-{seed}")


def _read(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return found["results"]


def _value(results: dict[str, Any], measure: str) -> float:
    evaluator, _, name = measure.partition("/")
    return float(results[evaluator]["values"][name]["value"])


def _compare(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mmrl.compare", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _refuses_another_split(evaluation: Path, scratch: Path) -> bool:
    """Whether an evaluation that states other items is refused, with the name of the fact."""
    other = shutil.copytree(evaluation, scratch / "other")
    path = other / "results.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    for result in content["results"].values():
        result["data"]["items_sha256"] = "0" * 64
    path.write_text(json.dumps(content), encoding="utf-8")
    found = _compare(f"one={evaluation}", f"two={other}")
    return found.returncode == 2 and "data.items_sha256 differs" in found.stderr + found.stdout


CLAIMS = (
    Claim("distinct hashes of the items of an evaluator, over all runs", "hashes", least=1, most=1),
    Claim("another split is refused", "refused", least=1),
    Claim("measures with mean and deviation over three seeds", "measures", least=4),
    Claim("greatest error of mean and deviation", "error", most=1e-6),
    Claim("zero-shot AUROC, lateral", "AUROC", ("AUROC, single", "AUROC, images permuted")),
)
