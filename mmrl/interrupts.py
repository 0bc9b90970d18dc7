"""Ctrl-C at any moment of a command: one line and exit status 130, without a trace.

A command is `python -m mmrl.NAME`, which imports the package `mmrl` first. From there until the
command starts its work nothing has to be kept, so the process ends where it is (`end_at_once`).
During its work the first Ctrl-C unwinds the stack, so that files and worker processes are closed,
and a second one ends the process. Training saves first, see `mmrl.devices.distributed.Preemption`.
"""

import contextlib
import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any, NoReturn

STATUS = 130  # the status that a shell gives to a process ended by SIGINT
LINE = "stopped by Ctrl-C"
_PATIENCE = 10.0  # seconds for threads and workers to end


def end_at_once(number: int = 0, frame: FrameType | None = None) -> NoReturn:
    """Says so and ends the process; also the handler of SIGINT."""
    del number, frame
    with contextlib.suppress(OSError):  # stderr may be closed
        os.write(2, f"{LINE}\n".encode())
    os._exit(STATUS)


def arm() -> None:
    """From now on, Ctrl-C ends the process at once.

    A process that was told to ignore it, such as one started with nohup, still does.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, end_at_once)


def arm_command(package: str) -> None:
    """Arms a process that runs a command of a package; called while the package is imported.

    The worker processes of a command ignore Ctrl-C, which the terminal sends to all: the command
    ends them. Other programs that import the package are left alone.

    Args:
      package: its folder.
    """
    if sys.argv[:1] == ["-m"]:  # so while Python looks for the module of `python -m mmrl.NAME`
        arm()
    elif "--multiprocessing-fork" in sys.orig_argv and os.path.dirname(sys.argv[0]) == package:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


class Interrupts:
    """Context manager: the first Ctrl-C raises KeyboardInterrupt, the second ends the process.

    Attributes:
      came: whether there was one. Libraries turn a KeyboardInterrupt into other errors.
    """

    def __init__(self) -> None:
        self.came = False
        self._before: Any = None

    def __enter__(self) -> "Interrupts":
        before = signal.getsignal(signal.SIGINT)
        # Only the main thread may set handlers.
        if (
            before in (signal.default_int_handler, end_at_once)
            and threading.current_thread() is threading.main_thread()
        ):
            self._before = before
            signal.signal(signal.SIGINT, self._on_interrupt)
            self._hook, sys.unraisablehook = sys.unraisablehook, self._unraisable
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
            sys.unraisablehook = self._hook

    def exit_soon(self) -> None:
        """Ends the process after some seconds, even if a thread or a worker does not end."""
        if self._before is end_at_once:
            timer = threading.Timer(_PATIENCE, os._exit, (STATUS,))
            timer.daemon = True
            timer.start()

    def _on_interrupt(self, number: int, frame: FrameType | None) -> None:
        self.came = True
        signal.signal(signal.SIGINT, end_at_once)
        raise KeyboardInterrupt

    def _unraisable(self, given: Any) -> None:
        # Raised where no error can pass, as in a destructor: the command would go on.
        if isinstance(given.exc_value, KeyboardInterrupt):
            end_at_once()
        self._hook(given)
