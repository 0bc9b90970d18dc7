"""The survey of CLIP in medical imaging: each topic and domain names a recipe or a gap."""

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.systems.check import Claim, Runs
from mmrl import systems

NUMBERS = (33,)
EXPRESSED = "python -m mmrl.systems --coverage, topics by the taxonomy of the survey"
DIFFERS = "seven topics are added that the survey does not have"
RUNS: dict[str, tuple[str, ...]] = {}


def values(runs: Runs) -> dict[str, float]:
    """Of any seed."""
    listed = systems.read()
    command = [sys.executable, "-m", "mmrl.systems", "--json"]
    printed = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    cells = systems.coverage(listed)
    named = {name for cell in cells.values() for name in (*cell.has, *cell.gaps)}
    recipes = [one.place for one in listed if one.status == systems.PRESET]
    topics = {topic for (topic, _), cell in cells.items() if cell.has or cell.gaps}
    return {
        "printed": len(printed),
        "topics": len(topics) / len(systems.TOPICS),
        "systems": sum(one.place in named or one.title in named for one in listed) / len(listed),
        "recipes": sum(Path(place).is_file() for place in recipes) / len(recipes),
    }


CLAIMS = (
    Claim("systems listed", "printed", least=76, most=76),
    Claim("share of topics that name a recipe or a gap", "topics", least=1),
    Claim("share of systems that a cell names", "systems", least=1),
    Claim("share of recipes named that are files", "recipes", least=1),
)
