"""Runs that chaos interrupts: how they are started, how far they are, and what they came to."""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmrl.training.checkpoint import Checkpoints, digest

# 16 steps with a checkpoint after every second one: half of the time passes between saves, so that
# moments fall before, within and after them.
CHANGES = (
    "total_steps=16",
    "log_every=1",
    "checkpoint.every=2",
    "eval_every=6",
    "tensorboard=False",
    "evaluators={'retrieval': {'max_pairs': 16}}",
)
_QUICK = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
LONGEST = 600.0  # seconds; a start that takes longer hangs
_STATE = ("step", "params", "opt_state", "variables", "average", "metrics", "nonfinite_step")


class Setting(NamedTuple):
    """How many processes a run has, how many devices each of them, and further flags."""

    title: str
    processes: int
    devices: int
    flags: tuple[str, ...] = ()


SETTINGS = {
    "one": Setting("one device", 1, 1),
    "eight": Setting("eight fake devices", 1, 8, ("--nosummary",)),
    "two": Setting("two processes", 2, 1, ("--nosummary",)),
}


class Outcome(NamedTuple):
    """How one start of a run ended.

    Attributes:
      statuses: of its processes; negative: the signal that ended it, None: it hung.
      lines: the last line of stderr of every process.
      tracebacks: how many tracebacks they printed.
      seconds: from start to end.
    """

    statuses: tuple[int | None, ...]
    lines: tuple[str, ...]
    tracebacks: int
    seconds: float

    @property
    def status(self) -> str:
        """The exit statuses as a cell of a table."""
        names = [
            "hangs" if code is None else signal.Signals(-code).name if code < 0 else str(code)
            for code in self.statuses
        ]
        return ", ".join(dict.fromkeys(names))


@dataclasses.dataclass
class Run:
    """One run directory, and the processes that work in it.

    Attributes:
      folder: the run directory.
      setting: of every start.
      changes: further KEY=VALUE of the config.
      preset: variants of configs/pretrain.py.
      wrapped: arguments of `benchmarks.chaos.child`, which then stands in for mmrl.main.
      home: folder of the logs and of compiled programs; that of the run directory by default.
    """

    folder: Path
    setting: Setting
    changes: Sequence[str] = ()
    preset: str = "smoke"
    wrapped: Sequence[str] = ()
    home: Path | None = None
    processes: list[subprocess.Popen[bytes]] = dataclasses.field(default_factory=list)
    began: float = 0.0

    def start(self, *flags: str, wrapped: Sequence[str] | None = None) -> "Run":
        """Starts all processes of the run; their output goes to FOLDER.N.out and FOLDER.N.err."""
        home = self.home or self.folder.parent
        home.mkdir(parents=True, exist_ok=True)
        around = self.wrapped if wrapped is None else wrapped
        module = ["benchmarks.chaos.child", *around, "--"] if around else ["mmrl.main"]
        cache = (home / "compile_cache").resolve()
        command = [
            *(sys.executable, "-m", *module),
            f"--config=configs/pretrain.py:{self.preset}",
            f"--workdir={self.folder}",
            f"--config.compile_cache={cache}",
            *(f"--config.{change}" for change in (*CHANGES, *self.changes)),
            *(*self.setting.flags, *flags),
        ]
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            # Without optimisations, several devices compile in half of the time.
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "XLA_FLAGS": f"{_QUICK} --xla_force_host_platform_device_count={self.setting.devices}",
        }
        together: list[list[str]] = [[]]
        if self.setting.processes > 1:
            count, port = self.setting.processes, _free_port()
            shared = [f"--coordinator=localhost:{port}", f"--num_processes={count}"]
            together = [[*shared, f"--process_id={process}"] for process in range(count)]
        self.began = time.monotonic()
        self.processes = []
        for process, own in enumerate(together):
            with (
                self._log(process, "out").open("wb") as out,
                self._log(process, "err").open("wb") as err,
            ):
                self.processes.append(
                    subprocess.Popen([*command, *own], env=environment, stdout=out, stderr=err)
                )
        return self

    def signal(self, number: int, only: int | None = None) -> None:
        """Sends a signal to all processes, or to one of them."""
        for process, started in enumerate(self.processes):
            if only in (None, process) and started.poll() is None:
                started.send_signal(number)

    def wait_until(self, seconds: float) -> bool:
        """Waits until the start is `seconds` old; False if all processes ended before."""
        while time.monotonic() - self.began < seconds:
            if all(started.poll() is not None for started in self.processes):
                return False
            time.sleep(0.005)
        return True

    def finish(self, longest: float = LONGEST) -> Outcome:
        """Waits for the end of all processes; what does not end in time is killed."""
        codes: list[int | None] = []
        for started in self.processes:
            try:
                codes.append(started.wait(max(self.began + longest - time.monotonic(), 0.1)))
            except subprocess.TimeoutExpired:
                codes.append(None)
        self.signal(signal.SIGKILL)
        for started in self.processes:
            started.wait()
        texts = [
            self._log(process, "err").read_text("utf-8", "replace")
            for process in range(len(self.processes))
        ]
        return Outcome(
            tuple(codes),
            tuple(_last(text) for text in texts),
            sum(text.count("Traceback (most recent") for text in texts),
            time.monotonic() - self.began,
        )

    def to_end(self, *flags: str) -> Outcome:
        """Starts the run, undisturbed, and waits for its end."""
        return self.start(*flags, wrapped=()).finish()

    def kill(self) -> Outcome:
        """Ends all processes at once, as a machine that loses its power does."""
        self.signal(signal.SIGKILL)
        return self.finish()

    def logged(self) -> int:
        """The last step whose loss was logged; 0 before the first one."""
        steps = [line["step"] for line in self._lines() if line.get("kind") == "train"]
        return max(steps, default=0)

    def saved(self) -> list[int]:
        """The steps of complete checkpoints, as their names state."""
        folder = self.folder / "checkpoints"
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        return sorted(int(name) for name in names if name.isdecimal())

    def is_saving(self) -> bool:
        """Whether a checkpoint is being written."""
        folder = self.folder / "checkpoints"
        return folder.is_dir() and any(not path.name.isdecimal() for path in folder.iterdir())

    def printed(self, process: int = 0) -> str:
        """What a process of the last start printed."""
        return self._log(process, "out").read_text("utf-8", "replace")

    def identity(self) -> dict[str, str]:
        """What the run came to: digests of its state, its log and its last evaluation.

        Two runs whose identities are equal are equal bit for bit.
        """
        saved = Checkpoints(self.folder, read_only=True)
        try:
            step = saved.steps()[-1]
            state = digest(saved.read_arrays(_STATE, step))
        finally:
            saved.close()
        log = [line for line in self._lines() if line.get("kind") in ("train", "eval")]
        result = json.loads((self.folder / "results" / f"{step:08d}.json").read_text("utf-8"))
        return {
            "step": str(step),
            "state": state,
            "log": json.dumps(log, sort_keys=True),
            "results": json.dumps(result["results"], sort_keys=True),
        }

    def _lines(self) -> list[dict[str, Any]]:
        path = self.folder / "metrics.jsonl"
        found = []
        for line in path.read_text("utf-8").splitlines() if path.exists() else []:
            try:
                found.append(json.loads(line))
            except ValueError:  # the line that is being written
                continue
        return found

    def _log(self, process: int, kind: str) -> Path:
        home = self.home or self.folder.parent
        return home / f"{self.folder.name}.{process}.{kind}"


def differing(one: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    """The parts in which two identities differ."""
    return [part for part in one if one[part] != other.get(part)]


def _last(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
