"""Several processes as one run: settings, the roll call at the start, agreement, orderly stops.

    settings -> roll call (who came, who is missing) -> jax.distributed -> training -> stop

A process is told its place by --coordinator, --num_processes and --process_id, by the variables
MMRL_COORDINATOR, MMRL_NUM_PROCESSES and MMRL_PROCESS_ID, or, with MMRL_DISTRIBUTED=auto, by
Cloud TPU, Slurm, Kubernetes or Open MPI. Given none of these, it is a run of its own.

The roll call precedes jax.distributed on the same port, because the latter ends a process that
waited too long with a stack trace that names nobody.
"""

import dataclasses
import hashlib
import itertools
import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from mmrl.devices import gather, rollcall
from mmrl.devices.environment import MODE, TIMEOUT, VARIABLES
from mmrl.types import InputError

# Process 0 writes the report while the others wait for it at the end.
_FAREWELL_SECONDS = 3600


@dataclasses.dataclass(frozen=True)
class Settings:
    """The place of one process in a run.

    Attributes:
      coordinator: host:port of process 0.
      processes: how many there are. process: which one this is, from 0.
      timeout: seconds to wait for the others at the start.
      devices: local devices to use, None for all.
    """

    coordinator: str
    processes: int
    process: int
    timeout: float = 300.0
    devices: tuple[int, ...] | None = None


def read(given: Mapping[str, str | None], environment: Mapping[str, str]) -> Settings | None:
    """Settings from flags and environment; None: this process is a run of its own.

    Args:
      given: coordinator, num_processes and process_id as flags gave them, or None.
      environment: usually os.environ; an empty variable counts as absent.

    Raises:
      InputError: incomplete, contradictory or impossible settings, or no cluster to detect.
    """
    values = {name: _one(name, given.get(name), environment) for name in VARIABLES}
    present = [_spelled(name) for name, value in values.items() if value is not None]
    absent = [_spelled(name) for name, value in values.items() if value is None]
    timeout = _seconds(environment.get(TIMEOUT, ""))
    mode = environment.get(MODE, "")
    if mode not in ("", "auto"):
        raise InputError(f"{MODE}={mode}; expected auto, or nothing")
    if mode and present:
        raise InputError(
            f"{MODE}=auto contradicts {', '.join(present)}; give either all of "
            f"{', '.join(VARIABLES)} or let them be detected"
        )
    if mode:
        return _detect(timeout)
    if not present:
        return None
    if absent:
        raise InputError(
            f"a run of several processes needs coordinator, num_processes and process_id; given: "
            f"{', '.join(present)}; missing: {', '.join(absent)}"
        )
    return _checked(*(str(values[name]) for name in VARIABLES), timeout=timeout)


def start(settings: Settings | None) -> tuple[str, ...]:
    """Waits until all processes came, then makes them one run; must precede any use of a device.

    Several processes on CPU compile without a persistent cache.

    Returns:
      The hosts of the processes in order; empty for a run of one process.

    Raises:
      InputError: processes that disagree about the run, or an address that cannot be used.
      rollcall.StartError: not all came in time; names those that did and those that are missing.
    """
    if settings is None or settings.processes == 1:
        return ()
    hosts = rollcall.call(
        settings.coordinator, settings.processes, settings.process, settings.timeout
    )
    host, _, port = settings.coordinator.rpartition(":")
    # What was started for this machine alone should not listen to others.
    here = f"127.0.0.1:{port}" if rollcall.is_loopback(host) else None
    jax.distributed.initialize(
        here or settings.coordinator,
        settings.processes,
        settings.process,
        local_device_ids=settings.devices,
        cluster_detection_method="deactivate",
        initialization_timeout=int(max(settings.timeout, 60)),
        shutdown_timeout_seconds=_FAREWELL_SECONDS,
        coordinator_bind_address=here,
    )
    if jax.default_backend() == "cpu":
        # A CPU program that comes from the cache has lost the order of its collectives, and two at
        # once mix up their messages between processes. Seen with jax 0.10.2.
        jax.config.update("jax_enable_compilation_cache", False)
    return hosts


def agree(value: Any, what: str) -> None:
    """Refuses to go on unless all processes hold the same value; also a barrier.

    Args:
      value: JSON-able. what: names it in the message.

    Raises:
      InputError: on every process alike; names those that differ from process 0.
    """
    if jax.process_count() == 1:
        return
    text = json.dumps(value, sort_keys=True)
    digest = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
    everyone = gather.of_processes(digest)
    differing = [str(p) for p, other in enumerate(everyone) if (other != everyone[0]).any()]
    if differing:
        raise InputError(
            f"{what} is not the same on every process: process {', '.join(differing)} differs "
            "from process 0; all need the same command, data and packages, and a shared --workdir"
        )


def await_shared(path: Path, seconds: float = 60.0) -> None:
    """Waits until what process 0 wrote is visible to all.

    Raises:
      InputError: on every process alike; names those that do not see it.
    """
    if jax.process_count() == 1:
        return
    deadline = time.monotonic() + seconds  # a network file system may remember its absence
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    agree(path.exists(), str(path))


def gather_rows(rows: np.ndarray) -> np.ndarray:
    """i32[B] of the whole batch, from each process's i32[n]; sorted where there are several."""
    if jax.process_count() == 1:
        return rows
    return np.unique(gather.of_processes(rows))


def exit_soon(code: int, seconds: float = 15.0) -> None:
    """Makes sure that a process which is about to exit does, even if the others do not come.

    jax waits at exit for all processes, but they wait in a collective for the one that failed;
    once it is gone they fail as well.
    """
    if jax.distributed.is_initialized():
        timer = threading.Timer(seconds, os._exit, (code,))
        timer.daemon = True
        timer.start()


# Counts the questions of this process; the same on all processes, as they ask after each step.
_QUESTIONS = itertools.count(1)


class Preemption:
    """Notices SIGTERM, or the first SIGINT, while a `with` block runs.

    In a run of several processes the one that is told tells all others, and they agree on a step
    that none has passed. Asking costs a look at host memory, never a wait for a device.
    """

    def __init__(self) -> None:
        self._told = False
        self._several = jax.distributed.is_initialized()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Preemption":
        # Python allows handlers in the main thread only; a run in another cannot be told.
        if threading.current_thread() is threading.main_thread():
            handlers: dict[int, Callable[..., None]] = {signal.SIGINT: self._on_interrupt}
            if not self._several:  # else jax has taken SIGTERM
                handlers[signal.SIGTERM] = self._on_terminate
            self._before = {n: signal.signal(n, handler) for n, handler in handlers.items()}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def reached(self) -> bool:
        """Whether to save and stop after this step; every process asks after every step."""
        if self._several:
            # Not the step itself: a notice that comes before the first question makes jax agree
            # on number 1, which a resumed run would never ask for.
            return multihost_utils.reached_preemption_sync_point(next(_QUESTIONS))
        return self._told

    def _on_terminate(self, *_: object) -> None:
        self._told = True

    def _on_interrupt(self, *_: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # the second one interrupts
        if self._several:
            signal.raise_signal(signal.SIGTERM)
        self._told = True


def _one(name: str, flag: str | None, environment: Mapping[str, str]) -> str | None:
    """The value of a setting, from flag or variable."""
    variable = environment.get(VARIABLES[name]) or None
    if flag is not None and variable is not None and flag != variable:
        raise InputError(f"--{name}={flag} contradicts {VARIABLES[name]}={variable}")
    return flag if flag is not None else variable


def _spelled(name: str) -> str:
    return f"--{name} ({VARIABLES[name]})"


def _seconds(text: str) -> float:
    if not text:
        return Settings.timeout
    if not re.fullmatch(r"\d+(\.\d+)?", text) or float(text) <= 0:
        raise InputError(f"{TIMEOUT}={text}; expected seconds, more than 0")
    return float(text)


def _checked(coordinator: str, processes: str, process: str, *, timeout: float) -> Settings:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        _refuse("coordinator", coordinator, "host:port with a port from 1 to 65535")
    if not processes.isdigit() or int(processes) < 1:
        _refuse("num_processes", processes, "a whole number from 1")
    if not process.isdigit() or int(process) >= int(processes):
        _refuse("process_id", process, f"0 to {int(processes) - 1}, one below num_processes")
    return Settings(coordinator, int(processes), int(process), timeout)


def _refuse(name: str, value: str, expected: str) -> NoReturn:
    raise InputError(f"--{name}={value} ({VARIABLES[name]}); expected {expected}")


def _detect(timeout: float) -> Settings:
    """What jax finds out about the cluster, without starting anything."""
    # jax offers this only as a part of initialize(), which does not tell whom it waits for.
    from jax._src import clusters

    try:
        found = clusters.ClusterEnv.auto_detect_unset_distributed_params(
            None, None, None, None, None, int(timeout)
        )
    except (RuntimeError, OSError, KeyError, ValueError) as error:
        raise InputError(f"{MODE}=auto cannot read this cluster: {error}") from None
    coordinator, processes, process, devices = found
    if coordinator is None or processes is None or process is None:
        raise InputError(
            f"{MODE}=auto finds no Cloud TPU, Slurm, Kubernetes or Open MPI here; unset it, or "
            f"give {', '.join(_spelled(name) for name in VARIABLES)}"
        )
    kept = None if devices is None else tuple(int(device) for device in devices)
    return Settings(coordinator, processes, process, timeout, kept)
