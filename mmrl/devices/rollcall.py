"""Who came to a run of several processes: each reports to process 0, which answers with all names.

One line of JSON each way over TCP, on the port that jax.distributed takes next.
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
_LINE = 65536  # bytes; a name list of thousands of hosts is read in parts


class StartError(RuntimeError):
    """Not all processes of a run came in time; the message says which did."""


def call(coordinator: str, processes: int, process: int, timeout: float) -> tuple[str, ...]:
    """Blocks until all processes called in.

    Args:
      coordinator: host:port of process 0. timeout: seconds to wait.

    Returns:
      Host names by process.

    Raises:
      InputError: an id given twice, another number of processes, or a port in use.
      StartError: the time is over; names the processes that came and those that did not.
    """
    deadline = time.monotonic() + timeout
    name = socket.gethostname()
    if process == 0:
        return _Desk(processes, name, timeout).hold(coordinator, deadline)
    entry = {"run": _GREETING, "process": process, "processes": processes, "host": name}
    return _report(coordinator, entry, deadline, timeout)


def is_loopback(host: str) -> bool:
    """Whether a host name can only mean this machine."""
    host = host.strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclasses.dataclass
class _Desk:
    """Process 0: takes down who comes, and answers all at once."""

    processes: int
    name: str
    timeout: float

    def __post_init__(self) -> None:
        self.came: dict[int, tuple[str, socket.socket]] = {}

    def hold(self, coordinator: str, deadline: float) -> tuple[str, ...]:
        with _listen(coordinator) as listener:
            try:
                while len(self.came) < self.processes - 1:
                    self._next(listener, deadline)
            except (InputError, StartError) as error:
                kind = "input" if isinstance(error, InputError) else "start"
                self._answer({kind: str(error)})
                raise
            hosts = [self.name, *(self.came[p][0] for p in range(1, self.processes))]
            self._answer({"hosts": hosts})
        return tuple(hosts)

    def _next(self, listener: socket.socket, deadline: float) -> None:
        self._forget_the_gone()
        left = deadline - time.monotonic()
        if left <= 0:
            missing = [p for p in range(1, self.processes) if p not in self.came]
            here = [
                f"0 on {self.name}",
                *(f"{p} on {h}" for p, (h, _) in sorted(self.came.items())),
            ]
            raise StartError(
                f"after {self.timeout:g} s, process {', '.join(map(str, missing))} of "
                f"{self.processes} did not come; came: {', '.join(here)}"
            )
        listener.settimeout(min(left, 1.0))
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            return
        entry = _read(connection, time.monotonic() + 5)
        if entry.get("run") != _GREETING or not isinstance(entry.get("process"), int):
            # Something else knocked at the port.
            connection.close()
            return
        process, host = entry["process"], str(entry.get("host"))
        held = self.came.get(process)
        self.came.setdefault(process, (host, connection))
        if entry.get("processes") != self.processes:
            raise InputError(
                f"process {process} on {host} expects {entry.get('processes')} processes, "
                f"process 0 on {self.name} {self.processes}; all need the same num_processes"
            )
        if held is not None:
            self.came[-1] = (host, connection)  # it too shall hear why
            raise InputError(
                f"process_id {process} was given twice, on {held[0]} and on {host}; each process "
                "needs its own"
            )

    def _forget_the_gone(self) -> None:
        """A process that was restarted while it waited comes again."""
        for process, (_, connection) in list(self.came.items()):
            connection.setblocking(False)
            try:
                gone = connection.recv(1, socket.MSG_PEEK) == b""
            except BlockingIOError:
                gone = False
            except OSError:
                gone = True
            if gone:
                connection.close()
                del self.came[process]

    def _answer(self, content: Mapping[str, Any]) -> None:
        line = (json.dumps(content) + "\n").encode()
        for _, connection in self.came.values():
            try:
                connection.settimeout(5)
                connection.sendall(line)
                # The others hang up first, so that no connection lingers on the port.
                connection.recv(1)
            except OSError:
                pass  # it is gone; jax.distributed will miss it
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
    """All other processes: call in, wait for the answer, try again while there is none."""
    host, _, port = coordinator.rpartition(":")
    address = ("127.0.0.1" if is_loopback(host) else host.strip("[]"), int(port))
    reached = False
    # A little longer than process 0 waits, since its answer says more than our silence.
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
    met = "answered, but not with the names of all" if reached else "could not be reached"
    raise StartError(
        f"process {entry['process']} of {entry['processes']} on {entry['host']} waited "
        f"{timeout:g} s; process 0 at {coordinator} {met}"
    )


def _read(connection: socket.socket, deadline: float) -> dict[str, Any]:
    """One line of JSON; empty when none came in time."""
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
