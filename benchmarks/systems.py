"""Proofs that the presets of configs/systems/ learn what they claim, over three seeds on phantoms.

    python -m benchmarks.systems --workdir=runs/systems --out=docs/results

Writes docs/results/systems.md: held-out retrieval of every pair of encodings beside chance and
beside the same with images permuted between patients, and the checks of locked towers and of the
second stage. Completed runs are not repeated.
"""

import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import runs
from benchmarks.recalls import held_out, recalls
from benchmarks.results import cell
from mmrl.training import run
from mmrl.training.checkpoint import Checkpoints, digest
from mmrl.training.initial import by_path

COMMAND = "python -m benchmarks.systems"
PAIRS = {
    "image and report, trained alone": ("mv_mlm:dedicated", "image.embedding", "text.embedding"),
    "image and report, with views": ("mv_mlm", "image.embedding", "text.embedding"),
    "frontal and lateral view": ("mv_mlm", "image.embedding", "image@second.embedding"),
    "image and vector": ("image_vector", "image.embedding", "vector.embedding"),
}
"""What is retrieved -> (preset, the two encodings)."""

PAIRED = 256  # as many pairs as the evaluator of the presets ranks


def main() -> None:
    """Trains the missing runs, then writes the page."""
    parser = runs.arguments(__doc__, "runs/systems")
    args = parser.parse_args()
    began = time.monotonic()
    presets = dict.fromkeys(preset for preset, _, _ in PAIRS.values())
    first = {
        _name(preset, seed): _arguments(preset, seed) for preset in presets for seed in args.seeds
    }
    first |= {"locked_towers-0": _arguments("locked_towers", 0)}
    runs.train_all(first, args.workdir, args.at_once)
    stage = f"--config.towers.image.init={args.workdir / _name('mv_mlm', 0)}"
    second = {
        f"second_stage-{copy}": [*_arguments("second_stage", 0), stage] for copy in ("one", "two")
    }
    runs.train_all(second, args.workdir, args.at_once)
    lines = [
        "# Systems, on phantoms",
        "",
        f"{runs.stamp(COMMAND, began)} 300 steps; {len(args.seeds)} seeds, mean and standard "
        f"deviation. R@1 among {PAIRED} "
        "pairs of held-out studies.",
        "",
        *_retrieval(args.workdir, args.seeds),
        "",
        *_locked(args.workdir / "locked_towers-0"),
        "",
        *_second_stage(args.workdir),
        "",
    ]
    runs.write(args.out / "systems.md", "\n".join(lines))


def _name(preset: str, seed: int) -> str:
    return f"{preset.replace(':', '_')}-{seed}"


def _arguments(preset: str, seed: int) -> list[str]:
    name, colon, variant = preset.partition(":")
    return [f"--config=configs/systems/{name}.py{colon}{variant}", f"--config.seed={seed}"]


def _retrieval(workdir: Path, seeds: Sequence[int]) -> list[str]:
    """The table of R@1 in both directions, with the true and with permuted images."""
    lines = [
        "| pair | preset | first to second | second to first | images permuted | chance | N |",
        "|---|---|---|---|---|---|---|",
    ]
    for title, (preset, one, two) in PAIRS.items():
        found = [_recalls(workdir / _name(preset, seed), one, two) for seed in seeds]
        cells = [cell([row[key] for row in found]) for key in ("forth", "back", "permuted")]
        chance = statistics.fmean(row["chance"] for row in found)
        lines.append(
            f"| {title} | {preset} | {' | '.join(cells)} | {chance:.4f} | {found[0]['n']:.0f} |"
        )
    return lines


def _recalls(folder: Path, one: str, two: str) -> dict[str, float]:
    """R@1 of one trained run."""
    trained = run.restore(folder)
    found = recalls(trained, held_out(trained), one, two, PAIRED)
    return {
        "forth": float(found.forth.mean()),
        "back": float(found.back.mean()),
        "permuted": float(found.forth_permuted.mean()),
        "chance": found.chance,
        "n": len(found.forth),
    }


def _state(folder: Path, step: int | None = None) -> dict[str, Any]:
    saved = Checkpoints(folder, read_only=True)
    try:
        state = saved.read_arrays(("params", "variables", "opt_state"), step)
    finally:
        saved.close()
    return state


def _locked(folder: Path) -> list[str]:
    """Whether parameters and batch statistics of locked towers changed between checkpoints."""
    saved = Checkpoints(folder, read_only=True)
    steps = saved.steps()
    saved.close()
    first, last = _state(folder, steps[0]), _state(folder, steps[-1])
    lines = [f"Locked towers, step {steps[0]} against step {steps[-1]} (sha256 of all arrays):", ""]
    lines += ["| tower | parameters | batch statistics |", "|---|---|---|"]
    for tower in first["params"]["towers"]:
        found = []
        for part in ("params", "variables"):
            one, two = (state[part].get("towers", {}).get(tower, {}) for state in (first, last))
            found.append(("equal" if digest(one) == digest(two) else "differ") if one else "none")
        lines.append(f"| {tower} | {found[0]} | {found[1]} |")
    return lines


def _second_stage(workdir: Path) -> list[str]:
    """What the second stage copied, and whether a second run of it gives the same bits."""
    read = json.loads((workdir / "second_stage-one" / "init.json").read_text(encoding="utf-8"))
    copied = read["read"][0]["copied"]
    one, two = (by_path(_state(workdir / f"second_stage-{n}")["params"]) for n in ("one", "two"))
    same = digest(one) == digest(two)
    return [
        f"Second stage: {len(copied)} arrays come from `mv_mlm-0`, {len(read['random'])} are new "
        f"(listed in `init.json`). A second run of it is {'equal' if same else 'NOT equal'} bit "
        "for bit.",
    ]


if __name__ == "__main__":
    main()
