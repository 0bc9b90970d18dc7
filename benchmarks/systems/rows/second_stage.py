"""A second stage: the image tower comes from another run, and the stage repeats bit for bit."""

import json

from benchmarks.systems.check import Claim, Runs, arguments
from benchmarks.systems.command import execute
from mmrl.training.checkpoint import Checkpoints, digest
from mmrl.training.initial import by_path

NUMBERS = ()
EXPRESSED = "an image tower of a run of other objectives and inputs, with a lower learning rate"
DIFFERS = "20 steps of a small model: nothing is claimed of what the stage learns"
RUNS = {"first": ("mv_mlm:smoke",)}


def values(runs: Runs) -> dict[str, float]:
    """The share of the image tower that was copied, and whether two stages are equal."""
    found = []
    stage = [f"--config.towers.image.init={runs['first']}"]
    for copy in ("one", "two"):
        folder = runs.scratch / copy
        given = arguments(("second_stage:smoke", *stage), runs.seed)
        execute("mmrl.main", *given, f"--workdir={folder}")
        saved = Checkpoints(folder, read_only=True)
        try:
            found.append(by_path(saved.read_arrays(("params", "variables", "opt_state"))["params"]))
        finally:
            saved.close()
    read = json.loads((runs.scratch / "one" / "init.json").read_text(encoding="utf-8"))
    image = {path for path in found[0] if path.startswith("towers/image/")}
    copied = image & set(read["read"][0]["copied"])
    return {
        "copied": len(copied) / len(image),
        "random": len(image & set(read["random"])),
        "equal": float(digest(found[0]) == digest(found[1])),
    }


CLAIMS = (
    Claim("share of the arrays of the image tower that come from the first run", "copied", least=1),
    Claim("arrays of the image tower that start at random", "random", most=0),
    Claim("two second stages are equal bit for bit", "equal", least=1),
)
