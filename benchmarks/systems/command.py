"""Commands of mmrl that rows execute on a finished run, each in a process of its own."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

Values = Mapping[str, float]


def execute(module: str, *arguments: str) -> None:
    """Runs python -m MODULE.

    Raises:
      RuntimeError: it failed; holds the end of what it printed.
    """
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {(done.stdout + done.stderr)[-2000:]}")


def evaluated(run: Path, out: Path, *arguments: str) -> dict[str, Values]:
    """Evaluator -> value name -> value, by python -m mmrl.evaluate.

    Args:
      run: whose encoders are evaluated. out: a new folder. arguments: of the command.
    """
    execute("mmrl.evaluate", f"--workdir={run}", f"--out={out}", *arguments)
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))["results"]
    return {
        name: {key: one["value"] for key, one in found["values"].items()}
        for name, found in results.items()
    }
