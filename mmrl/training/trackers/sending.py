"""Sends what a run writes to its trackers, beside the training, which no tracker can stop."""

import json
import queue
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mmrl import build, files, wiring
from mmrl.training.trackers.base import Outcome, Start, Status, Tracker
from mmrl.types import InputError, first_line

FOLDER = "trackers"
"""In the run directory: RUNS, and what trackers keep on this machine."""
RUNS = "runs.json"
"""Name of a tracker -> its module, its place and the id of the run there."""
PATIENCE = {"finished": 60.0, "failed": 60.0, "stopped": 15.0}
"""Seconds that a tracker has at the end for what is left: few where a machine is taken away."""
_MOST = 10_000  # writes that may wait; a run of weeks without a network would fill the memory


class Sender:
    """One tracker behind a thread of its own, so that a slow network delays no step.

    Args:
      name: of the tracker in config.trackers.
      say: is told, in one line, of the first write that is lost, and at the end of their number.
    """

    def __init__(self, name: str, tracker: Tracker, say: Callable[[str], None]) -> None:
        self.name, self.tracker = name, tracker
        self._say, self._reason, self._lost = say, "", 0
        self._waiting: queue.Queue[tuple[Callable[..., None], tuple[Any, ...]]] = queue.Queue(_MOST)
        self._thread: threading.Thread | None = None

    def check(self) -> None:
        """Refuses a tracker that cannot work.

        Raises:
          InputError: names the tracker and the reason.
        """
        self._refusing(self.tracker.check)

    def start(self, start: Start) -> str:
        """Begins or continues the run of the tracker; returns its id.

        Raises:
          InputError: whatever went wrong, so that a run is tracked from the first step or refused.
        """
        found = self._refusing(lambda: self.tracker.start(start))
        self._thread = threading.Thread(target=self._work, name=f"tracker {self.name}", daemon=True)
        self._thread.start()
        return found

    def scalars(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        """See `Tracker.scalars`; returns at once."""
        self._send(self.tracker.scalars, step, kind, dict(values))

    def outcome(self, outcome: Outcome) -> None:
        """See `Tracker.outcome`; returns at once."""
        self._send(self.tracker.outcome, outcome)

    def close(self, status: Status) -> None:
        """Sends what is left, as long as `PATIENCE` allows, and says how much was lost."""
        if self._thread is None:
            return
        self._send(self.tracker.close, status)
        self._thread.join(PATIENCE[status])
        left = self._waiting.qsize() + self._thread.is_alive()
        self._thread = None
        if left:
            self._lose(left, f"not sent within {PATIENCE[status]:g} s")
        if self._lost:
            self._say(
                f"tracker {self.name}: {self._lost} of its writes were lost: {self._reason}; "
                "metrics.jsonl, timing.jsonl and results/ have all values"
            )

    def _refusing(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except Exception as error:  # whatever the package of the tracker raises
            raise InputError(f"config.trackers.{self.name}: {first_line(error)}") from error

    def _send(self, call: Callable[..., None], *arguments: Any) -> None:
        try:
            self._waiting.put_nowait((call, arguments))
        except queue.Full:
            self._lose(1, f"{_MOST} writes are waiting already")

    def _work(self) -> None:
        while True:
            call, arguments = self._waiting.get()
            try:
                call(*arguments)
            except Exception as error:
                self._lose(1, first_line(error))
            if call == self.tracker.close:
                return

    def _lose(self, count: int, reason: str) -> None:
        self._lost += count
        if not self._reason:
            self._reason = reason
            self._say(f"tracker {self.name}: {reason}; training goes on without what is lost")


def make(
    chosen: Mapping[str, Mapping[str, Any]], say: Callable[[str], None] = lambda _: None
) -> list[Sender]:
    """The trackers of config.trackers, checked and not yet started.

    Raises:
      InputError: a package is missing, or an option is wrong.
    """
    made = []
    for name, given in chosen.items():
        target: Any = build.find("tracker", wiring.chosen_module(name, given))
        options = {key: value for key, value in given.items() if key != "name"}
        made.append(Sender(name, target(**options), say))
        made[-1].check()
    return made


def start(senders: list[Sender], workdir: Path, config: Mapping[str, Any]) -> None:
    """Starts all trackers; those that a run had before continue where they were.

    Args:
      config: of the run, JSON-able.

    Raises:
      InputError: a tracker cannot start.
    """
    if not senders:
        return
    folder = workdir / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    known = _read(folder / RUNS)
    for sender in senders:
        here = {
            "module": wiring.chosen_module(sender.name, config["trackers"][sender.name]),
            "place": dict(sender.tracker.place()),
        }
        before = known.get(sender.name, {})
        is_same = {key: before.get(key) for key in here} == here
        begun = Start(folder, workdir.name, config, str(before.get("id", "")) if is_same else "")
        known[sender.name] = {**here, "id": sender.start(begun)}
        files.write_json(folder / RUNS, known)


def _read(path: Path) -> dict[str, Any]:
    """What `start` wrote; empty where there is nothing that can be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    found = content if isinstance(content, dict) else {}
    return {name: one for name, one in found.items() if isinstance(one, dict)}
