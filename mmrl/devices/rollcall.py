"""Roll call of a run of several processes.

Each process reports to process 0 over TCP, with one line of JSON. Once all have reported, process 0
sends the host names of all processes to each of them, in one line of JSON. Afterwards
jax.distributed uses the same port.
"""

import dataclasses
import ipaddress
import json
import socket
import time
from collections.abc import Mapping
from typing import Any

from mmrl.types import InputError

_GREETING = "mmrl roll call"
_LINE = 65536  # bytes per read; the names of thousands of hosts take several reads


class StartError(RuntimeError):
    """Processes of a run are missing; the message lists those that are present and missing."""


def call(coordinator: str, processes: int, process: int, timeout: float) -> tuple[str, ...]:
    """Blocks until all processes have reported.

    Args:
      coordinator: host:port of process 0. timeout: seconds to wait.

    Returns:
      Host names by process.

    Raises:
      InputError: two processes have the same id or different numbers of processes, or the port is
        in use.
      StartError: the timeout has passed.
    """
    deadline = time.monotonic() + timeout
    name = socket.gethostname()
    if process == 0:
        return _Coordinator(processes, name, timeout).run(coordinator, deadline)
    entry = {"run": _GREETING, "process": process, "processes": processes, "host": name}
    return _report(coordinator, entry, deadline, timeout)


def is_loopback(host: str) -> bool:
    """Whether a host name or address always refers to the local machine."""
    host = host.strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclasses.dataclass
class _Coordinator:
    """Process 0: collects the reports of the other processes, then answers all of them."""

    processes: int
    name: str
    timeout: float

    def __post_init__(self) -> None:
        self.present: dict[int, tuple[str, socket.socket]] = {}

    def run(self, coordinator: str, deadline: float) -> tuple[str, ...]:
        with _listen(coordinator) as listener:
            try:
                while len(self.present) < self.processes - 1:
                    self._next(listener, deadline)
            except (InputError, StartError) as error:
                kind = "input" if isinstance(error, InputError) else "start"
                self._answer({kind: str(error)})
                raise
            hosts = [self.name, *(self.present[p][0] for p in range(1, self.processes))]
            self._answer({"hosts": hosts})
        return tuple(hosts)

    def _next(self, listener: socket.socket, deadline: float) -> None:
        self._remove_disconnected()
        left = deadline - time.monotonic()
        if left <= 0:
            missing = [p for p in range(1, self.processes) if p not in self.present]
            present = [
                f"0 on {self.name}",
                *(f"{p} on {h}" for p, (h, _) in sorted(self.present.items())),
            ]
            raise StartError(
                f"missing after {self.timeout:g} s: process {', '.join(map(str, missing))} of "
                f"{self.processes}; present: {', '.join(present)}"
            )
        listener.settimeout(min(left, 1.0))
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            return
        entry = _read(connection, time.monotonic() + 5)
        if entry.get("run") != _GREETING or not isinstance(entry.get("process"), int):
            # The connection is not from a process of this run.
            connection.close()
            return
        process, host = entry["process"], str(entry.get("host"))
        earlier = self.present.get(process)
        self.present.setdefault(process, (host, connection))
        if entry.get("processes") != self.processes:
            raise InputError(
                f"process {process} on {host} expects {entry.get('processes')} processes, "
                f"process 0 on {self.name} {self.processes}; all need the same num_processes"
            )
        if earlier is not None:
            self.present[-1] = (host, connection)  # so that it receives the error message too
            raise InputError(
                f"process_id {process} was given twice, on {earlier[0]} and on {host}; each "
                "process needs its own"
            )

    def _remove_disconnected(self) -> None:
        """Removes processes that have ended, so that they can report again after a restart."""
        for process, (_, connection) in list(self.present.items()):
            connection.setblocking(False)
            try:
                closed = connection.recv(1, socket.MSG_PEEK) == b""
            except BlockingIOError:
                closed = False
            except OSError:
                closed = True
            if closed:
                connection.close()
                del self.present[process]

    def _answer(self, content: Mapping[str, Any]) -> None:
        """Sends `content` to all processes and closes the connections."""
        line = (json.dumps(content) + "\n").encode()
        for _, connection in self.present.values():
            try:
                connection.settimeout(5)
                connection.sendall(line)
                # Waits until the other side has closed, so that no connection stays in TIME_WAIT on
                # the port.
                connection.recv(1)
            except OSError:
                pass  # the process has ended; jax.distributed will report it
            finally:
                connection.close()


def _listen(coordinator: str) -> socket.socket:
    host, _, port = coordinator.rpartition(":")
    try:
        if is_loopback(host):
            return socket.create_server(("127.0.0.1", int(port)), backlog=1024)
        if socket.has_dualstack_ipv6():
            return socket.create_server(
                ("::", int(port)), family=socket.AF_INET6, backlog=1024, dualstack_ipv6=True
            )
        return socket.create_server(("", int(port)), backlog=1024)
    except OSError as error:
        raise InputError(
            f"process 0 cannot listen on the port of coordinator={coordinator}: {error.strerror}"
        ) from None


def _report(
    coordinator: str, entry: Mapping[str, Any], deadline: float, timeout: float
) -> tuple[str, ...]:
    """Reports to process 0 and returns its answer; tries again until there is one."""
    host, _, port = coordinator.rpartition(":")
    address = ("127.0.0.1" if is_loopback(host) else host.strip("[]"), int(port))
    reached = False
    # Waits 5 s longer than process 0, whose error message says more than a timeout here.
    while (left := deadline + 5 - time.monotonic()) > 0:
        try:
            with socket.create_connection(address, timeout=min(left, 10)) as connection:
                connection.sendall((json.dumps(entry) + "\n").encode())
                reached = True
                answer = _read(connection, deadline + 5)
        except OSError:
            answer = {}
        if "hosts" in answer:
            return tuple(answer["hosts"])
        if "input" in answer:
            raise InputError(answer["input"])
        if "start" in answer:
            raise StartError(answer["start"])
        time.sleep(0.2)
    outcome = "was reached but sent no complete answer" if reached else "could not be reached"
    raise StartError(
        f"process {entry['process']} of {entry['processes']} on {entry['host']} waited "
        f"{timeout:g} s; process 0 at {coordinator} {outcome}"
    )


def _read(connection: socket.socket, deadline: float) -> dict[str, Any]:
    """One line of JSON; empty if none arrives before the deadline."""
    data = b""
    try:
        while not data.endswith(b"\n") and len(data) < 100 * _LINE:
            connection.settimeout(max(deadline - time.monotonic(), 0.01))
            part = connection.recv(_LINE)
            if not part:
                return {}
            data += part
        content = json.loads(data)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
