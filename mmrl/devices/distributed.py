"""Runs of several processes: settings, start, agreement between processes, preemption.

    settings -> roll call (which processes are present or missing) -> jax.distributed -> training

The settings of a process are given by the flags --coordinator, --num_processes and --process_id, or
by the environment variables MMRL_COORDINATOR, MMRL_NUM_PROCESSES and MMRL_PROCESS_ID. With
MMRL_DISTRIBUTED=auto they are detected on Cloud TPU, Slurm, Kubernetes and Open MPI. Without any of
these, the run has one process.

The roll call takes place before jax.distributed starts, on the same port. If a process is missing,
jax.distributed only ends the others with a stack trace after its timeout; the roll call reports
which processes are missing.
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
from typing import Any, NoReturn, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from mmrl import interrupts
from mmrl.devices import compile_cache, gather, rollcall
from mmrl.devices.environment import MODE, TIMEOUT, VARIABLES
from mmrl.types import BusyError, DamageError, InputError, MachineError

# At the end of a run, process 0 writes the summary page while the others wait for it.
_SHUTDOWN_SECONDS = 3600
# Errors of process 0 that all others raise as well.
_TOLD: dict[str, Any] = {
    kind.__name__: kind for kind in (DamageError, InputError, BusyError, MachineError)
}
_LINE = 1024  # bytes

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of one process of a run.

    Attributes:
      coordinator: host:port of process 0.
      processes: number of processes. process: index of this one, from 0.
      timeout: seconds to wait for the other processes at the start.
      devices: local devices to use; None for all.
    """

    coordinator: str
    processes: int
    process: int
    timeout: float = 300.0
    devices: tuple[int, ...] | None = None


def read(given: Mapping[str, str | None], environment: Mapping[str, str]) -> Settings | None:
    """Reads settings from flags and environment; None for a run of one process.

    Args:
      given: values of the flags coordinator, num_processes and process_id, or None.
      environment: usually os.environ; an empty variable counts as not set.

    Raises:
      InputError: incomplete, contradictory or invalid settings, or no cluster is detected.
    """
    values = {name: _setting(name, given.get(name), environment) for name in VARIABLES}
    present = [_spelled(name) for name, value in values.items() if value is not None]
    absent = [_spelled(name) for name, value in values.items() if value is None]
    timeout = _seconds(environment.get(TIMEOUT, ""))
    mode = environment.get(MODE, "")
    if mode not in ("", "auto"):
        raise InputError(f"{MODE}={mode}; expected auto, or no value")
    if mode and present:
        raise InputError(
            f"{MODE}=auto contradicts {', '.join(present)}; auto detects "
            f"{', '.join(VARIABLES)}, so give either {MODE}=auto or these"
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
    """Waits for all processes and starts jax.distributed. Call it before any device is used.

    Runs of several processes on CPU do not use the persistent compilation cache.

    Returns:
      Host names by process; empty for a run of one process.

    Raises:
      InputError: the processes have different settings, or the address cannot be used.
      rollcall.StartError: processes are missing after the timeout. The message lists the processes
        that are present and missing.
    """
    if settings is None or settings.processes == 1:
        return ()
    hosts = rollcall.call(
        settings.coordinator, settings.processes, settings.process, settings.timeout
    )
    host, _, port = settings.coordinator.rpartition(":")
    # A run on this machine only does not listen on other network interfaces.
    loopback = f"127.0.0.1:{port}" if rollcall.is_loopback(host) else None
    jax.distributed.initialize(
        loopback or settings.coordinator,
        settings.processes,
        settings.process,
        local_device_ids=settings.devices,
        cluster_detection_method="deactivate",
        initialization_timeout=int(max(settings.timeout, 60)),
        shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
        coordinator_bind_address=loopback,
    )
    compile_cache.turn_off_if_unsafe()
    return hosts


def agree(value: Any, what: str) -> None:
    """Checks that all processes have the same value. Also acts as a barrier.

    Args:
      value: serialisable as JSON. what: name of the value in the error message.

    Raises:
      InputError: the values differ; raised on every process, with the list of processes that differ
        from process 0.
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
            "from process 0; all processes need the same command, data and packages, and a shared "
            "--workdir"
        )


def of_first(value: float) -> float:
    """The value of process 0, bit for bit, so that all processes take the same decision."""
    bits = gather.of_processes(np.frombuffer(np.float64(value).tobytes(), np.uint8))[0]
    return float(np.frombuffer(np.ascontiguousarray(bits).tobytes(), np.float64)[0])


def by_first(call: Callable[[], T]) -> T:
    """What `call` returns on process 0, where alone it is called; its errors on every process.

    Args:
      call: returns a value that is serialisable as JSON.

    Raises:
      InputError, BusyError, MachineError: as `call` raised them on process 0.
    """
    if jax.process_count() == 1:
        return call()
    answer: dict[str, Any] = {}
    if jax.process_index() == 0:
        try:
            answer = {"value": call()}
        except (InputError, BusyError, MachineError) as error:
            kind = next(name for name, kind in _TOLD.items() if isinstance(error, kind))
            status = [error.status] if isinstance(error, MachineError) else []
            answer = {"error": kind, "arguments": [str(error), *status]}
    told = json.loads(_text_of_first(json.dumps(answer)))
    if "error" not in told:
        return told["value"]
    raise _TOLD[told["error"]](*told["arguments"])


def _text_of_first(text: str) -> str:
    """The text of process 0."""
    data = text.encode()
    size = int(gather.of_processes(np.array([len(data)], np.int32))[0, 0])
    padded = np.zeros(-(-size // _LINE) * _LINE, np.uint8)  # few sizes, since each is compiled
    padded[: min(len(data), size)] = np.frombuffer(data, np.uint8)[:size]
    return bytes(np.ascontiguousarray(gather.of_processes(padded)[0])[:size]).decode()


def await_shared(path: Path, seconds: float = 60.0) -> None:
    """Waits until a file that process 0 wrote exists for all processes.

    Raises:
      InputError: the file is missing after `seconds`; raised on every process, with the list of
        processes that do not see it.
    """
    if jax.process_count() == 1:
        return
    deadline = time.monotonic() + seconds  # network file systems may cache that it did not exist
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    agree(path.exists(), str(path))


def gather_rows(rows: np.ndarray) -> np.ndarray:
    """Gathers i32[n] of each process to i32[B]; sorted if there are several processes."""
    if jax.process_count() == 1:
        return rows
    return np.unique(gather.of_processes(rows))


def exit_soon(code: int, seconds: float = 15.0) -> None:
    """Ends this process after some seconds, even if it does not exit by itself.

    If one process fails, jax waits at its exit for all other processes, while these wait for the
    failed process in a collective. Once it has ended, they fail as well.
    """
    if jax.distributed.is_initialized():
        timer = threading.Timer(seconds, os._exit, (code,))
        timer.daemon = True
        timer.start()


# Numbers the calls of `Preemption.reached`. All processes call it after each step, so the numbers
# are the same on all of them.
_CALLS = itertools.count(1)


class Preemption:
    """Context manager that handles SIGTERM and the first SIGINT.

    The second SIGINT ends a command at once, and raises KeyboardInterrupt elsewhere.

    In a run of several processes, jax notifies all of them of the signal, and they agree on a step
    that none has passed. `reached` only reads host memory; it never waits for a device.

    Args:
      say: prints a line when a SIGINT arrives.
    """

    def __init__(self, say: Callable[[str], None] = lambda _: None) -> None:
        self._say = say
        self._signalled = False
        self._several = jax.distributed.is_initialized()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Preemption":
        # Python allows signal handlers in the main thread only.
        if threading.current_thread() is threading.main_thread():
            handlers: dict[int, Callable[..., None]] = {signal.SIGINT: self._on_interrupt}
            if not self._several:  # otherwise jax handles SIGTERM
                handlers[signal.SIGTERM] = self._on_terminate
            self._before = {n: signal.signal(n, handler) for n, handler in handlers.items()}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def reached(self) -> bool:
        """Whether to save and stop after this step. Every process must call it after every step."""
        if self._several:
            # Calls are numbered from 1 instead of by step: if the signal comes before the first
            # call, jax agrees on number 1, which a resumed run would never reach.
            return multihost_utils.reached_preemption_sync_point(next(_CALLS))
        return self._signalled

    def _on_terminate(self, *_: object) -> None:
        self._signalled = True

    def _on_interrupt(self, *_: object) -> None:
        outer = self._before[signal.SIGINT]
        of_command = outer not in (signal.default_int_handler, signal.SIG_DFL, signal.SIG_IGN, None)
        second = interrupts.end_at_once if of_command else signal.default_int_handler
        signal.signal(signal.SIGINT, second)
        if self._several:
            signal.raise_signal(signal.SIGTERM)
        self._signalled = True
        self._say(
            "stopping: an evaluation in progress ends, and the current step is saved; press Ctrl-C "
            "again to stop at once"
        )


def _setting(name: str, flag: str | None, environment: Mapping[str, str]) -> str | None:
    """The value of a setting, from its flag or its environment variable."""
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
        _refuse("coordinator", coordinator, "host:port, with a port from 1 to 65535")
    if not processes.isdigit() or int(processes) < 1:
        _refuse("num_processes", processes, "a whole number from 1")
    if not process.isdigit() or int(process) >= int(processes):
        _refuse("process_id", process, f"0 to {int(processes) - 1}, below num_processes")
    return Settings(coordinator, int(processes), int(process), timeout)


def _refuse(name: str, value: str, expected: str) -> NoReturn:
    raise InputError(f"--{name}={value} ({VARIABLES[name]}); expected {expected}")


def _detect(timeout: float) -> Settings:
    """Settings that jax detects from the cluster."""
    # In its public interface, jax offers detection only as part of jax.distributed.initialize.
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
            f"{MODE}=auto finds no Cloud TPU, Slurm, Kubernetes or Open MPI; unset it, or set "
            f"{', '.join(_spelled(name) for name in VARIABLES)}"
        )
    kept = None if devices is None else tuple(int(device) for device in devices)
    return Settings(coordinator, processes, process, timeout, kept)
