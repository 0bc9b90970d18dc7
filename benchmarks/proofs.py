"""Proofs that the presets of configs/proofs/ learn what they are made for, over three seeds.

    python -m benchmarks.proofs --workdir=runs/proofs --out=docs/results

Writes docs/results/proofs.md: what each preset reaches after 300 steps on phantoms made for it,
beside the same preset without the ability, beside chance, and beside what was promised before the
runs. Completed runs are not repeated. Names of proofs choose some of them.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import runs
from benchmarks.results import cell

COMMAND = "python -m benchmarks.proofs"


class Row(NamedTuple):
    """A value that a proof claims.

    Attributes:
      measure: what it is.
      path: where the stored results of a run hold it.
      presets: with the ability. without: the same without it, for comparison; "" for none.
      chance: what a constant or blind answer reaches.
      promised: written down before the runs of this table; "" for a value that promises nothing.
    """

    measure: str
    path: tuple[str, ...]
    presets: tuple[str, ...]
    without: str
    chance: str
    promised: str


def _of(evaluator: str, value: str) -> tuple[str, ...]:
    return "results", evaluator, "values", value, "value"


PROOFS = {
    "colour": (
        Row(
            "colour questions, accuracy",
            _of("colours", "accuracy"),
            ("colour",),
            "colour:grey",
            "0.5",
            "at least 0.9; chance without",
        ),
        Row(
            "questions about the pattern, accuracy",
            _of("patterns", "accuracy"),
            ("colour",),
            "colour:grey",
            "0.5",
            "",
        ),
    ),
    "sets": (
        Row(
            "findings of eight slices, macro AUROC",
            _of("classification", "macro_auroc"),
            ("sets:gated", "sets:mean"),
            "sets:single",
            "0.5",
            "",
        ),
    ),
    "prior": (
        Row(
            "new or unchanged, macro AUROC",
            _of("course", "macro_auroc"),
            ("prior",),
            "prior:without",
            "0.5",
            "chance without",
        ),
    ),
    "teacher": (
        Row(
            "crop to what the teacher makes of the image, R@1 of 256",
            _of("agreement", "image_to_text/R@1"),
            ("teacher",),
            "teacher:first",
            "0.004",
            "",
        ),
    ),
    "masked_patches": (
        Row(
            "image to report, R@1 of 256",
            _of("retrieval", "image_to_text/R@1"),
            ("masked_patches",),
            "masked_patches:whole",
            "0.004",
            "",
        ),
    ),
    "fusion": (
        Row(
            "matching, accuracy",
            ("losses", "val/matching/accuracy"),
            ("fusion",),
            "",
            "0.667",
            "at least 0.8",
        ),
        Row(
            "matching, balanced accuracy",
            ("losses", "val/matching/balanced_accuracy"),
            ("fusion",),
            "",
            "0.5",
            "at least 0.8",
        ),
    ),
}


def main() -> None:
    """Trains the missing runs, then writes the page."""
    parser = runs.arguments(__doc__, "runs/proofs")
    parser.add_argument("names", nargs="*", help=f"proofs: {', '.join(PROOFS)}; by default all")
    args = parser.parse_args()
    if unknown := sorted(set(args.names) - set(PROOFS)):
        parser.error(f"unknown proof {unknown[0]!r}; choices: {', '.join(PROOFS)}")
    chosen = {name: PROOFS[name] for name in (args.names or PROOFS)}
    began = time.monotonic()
    rows = [row for found in chosen.values() for row in found]
    presets = dict.fromkeys(one for row in rows for one in (*row.presets, row.without) if one)
    runs.train_all(
        {_name(preset, seed): _given(preset, seed) for preset in presets for seed in args.seeds},
        args.workdir,
        args.at_once,
    )
    lines = [
        "# Proofs, on phantoms",
        "",
        f"{runs.stamp(COMMAND, began)} 300 steps; {len(args.seeds)} seeds, mean and standard "
        f"deviation, on the validation "
        "split. Presets are files of configs/proofs/.",
        "",
        "| measure | preset | value | without | value | chance | promised |",
        "|---|---|---|---|---|---|---|",
        *(line for row in rows for line in _lines(row, args.workdir, args.seeds)),
        "",
    ]
    runs.write(args.out / "proofs.md", "\n".join(lines))


def _name(preset: str, seed: int) -> str:
    return f"{preset.replace(':', '_')}-{seed}"


def _given(preset: str, seed: int) -> list[str]:
    name, colon, variant = preset.partition(":")
    return [f"--config=configs/proofs/{name}.py{colon}{variant}", f"--config.seed={seed}"]


def _lines(row: Row, workdir: Path, seeds: Sequence[int]) -> list[str]:
    """One line for each preset of a row."""

    def of(preset: str) -> str:
        return cell([_value(workdir / _name(preset, seed), row.path) for seed in seeds])

    without = f"{row.without} | {of(row.without)}" if row.without else "none |"
    return [
        f"| {row.measure} | {preset} | {of(preset)} | {without} | {row.chance} | {row.promised} |"
        for preset in row.presets
    ]


def _value(folder: Path, path: Sequence[str]) -> float:
    """The value that the last evaluation of a run stored."""
    last = sorted((folder / "results").glob("*.json"))[-1]
    found: Any = json.loads(last.read_text(encoding="utf-8"))
    for key in path:
        found = found[key]
    return float(found)


if __name__ == "__main__":
    main()
