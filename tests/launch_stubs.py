"""Stubs of gcloud, kubectl, Slurm and python that record the calls of the launchers."""

import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TRAIN = "--config=configs/pretrain.py --workdir=gs://bucket/run"
SLURM_TOOLS = ("sbatch", "srun", "squeue", "scontrol", "scancel")
SECRET = "value-that-must-not-be-seen"

# Answers by rules: [text in the command line, [[output, status], ...]]; the last answer repeats.
STUB = f"""#!{sys.executable} -IS
import fcntl, json, os, sys
folder = os.environ["STUB_FOLDER"]
with open(folder + "/state.json", "r+") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    state = json.load(file)
    call = [os.path.basename(sys.argv[0]), *sys.argv[1:]]
    text = sys.stdin.read() if call[0] == "kubectl" else ""
    state["calls"].append([call, dict(os.environ), text])
    output, status = "", 0
    for pattern, answers in state["rules"]:
        if pattern in " ".join(call):
            output, status = answers[0] if len(answers) == 1 else answers.pop(0)
            break
    file.seek(0)
    json.dump(state, file)
    file.truncate()
if output:
    print(output)
sys.exit(status)
"""

# Stands in for python: what each process does is said by BEHAVIOUR, a list of Python statements.
PROCESS = f"""#!{sys.executable} -IS
import json, os, signal, sys, time
index = int(os.environ.get("MMRL_PROCESS_ID", "0"))
def saved(*_):
    os.write(1, b"saved\\n")  # print is not reentrant
    sys.exit(75)
exec(json.loads(os.environ["BEHAVIOUR"])[index])
"""

WAITS = "signal.signal(15, saved); print('ready', flush=True); time.sleep(30)"


class Stubs:
    """Stub executables, first on PATH, and their recorded calls."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rules: list[Any] = []
        for name in ("gcloud", "gcsfuse", "kubectl", "mkdir", "sleep", "tar", *SLURM_TOOLS):
            self.install(name, STUB)

    def install(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(text)
        path.chmod(0o755)
        return path

    def environment(self, extra: dict[str, str] | None = None) -> dict[str, str]:
        kept = {
            k: v for k, v in os.environ.items() if not k.startswith(("MMRL_", "SLURM_", "XLA_"))
        }
        rules = [*self.rules, ["storage buckets describe", [["True", 0]]]]
        (self.folder / "state.json").write_text(json.dumps({"calls": [], "rules": rules}))
        path = f"{self.folder}:{kept['PATH']}"
        return {**kept, "PATH": path, "STUB_FOLDER": str(self.folder), **(extra or {})}

    def run(
        self, command: str, extra: dict[str, str] | None = None
    ) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            shlex.split(command),
            cwd=ROOT,
            env=self.environment(extra),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def recorded(self) -> list[Any]:
        with (self.folder / "state.json").open() as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            return json.load(file)["calls"]

    def calls(self, *names: str) -> list[list[str]]:
        return [call for call, *_ in self.recorded() if not names or call[0] in names]


def lines(text: str) -> list[list[str]]:
    return [shlex.split(line) for line in text.splitlines()]


def launched(
    stubs: Stubs, command: str, behaviours: Sequence[str], extra: dict[str, str] | None = None
) -> Any:
    """A running launcher whose processes execute the given code."""
    environment = stubs.environment({"BEHAVIOUR": json.dumps(behaviours), **(extra or {})})
    pipe = subprocess.PIPE
    # What is ignored here, as in a shell's background, the launcher could not trap.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(
            shlex.split(command), cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True
        )
    finally:
        signal.signal(signal.SIGINT, before)
