"""Loads batches and copies them to the device ahead of the step."""

import queue
import threading
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np


class Batches(Protocol):
    """An iterator of host batches with a position."""

    def __next__(self) -> dict[str, np.ndarray]: ...

    def get_state(self) -> dict[str, Any]:
        """The position of the iterator."""
        ...

    def whereabouts(self) -> str:
        """Describes what the iterator is waiting for."""
        ...


class Placed(NamedTuple):
    """A batch on the device, or being copied there.

    Attributes:
      arrays: the input of the step. rows: i32[n], this process's record numbers, on the host.
      position: state of the iterator right after this batch.
    """

    arrays: dict[str, jax.Array]
    rows: np.ndarray
    position: dict[str, Any]


class Prefetch:
    """A thread that loads and transfers up to `depth` batches ahead of the step.

    Transfers are asynchronous: batches in the queue are on the device or being copied there. The
    iterator runs ahead of training, so checkpoints must store `position`, not its own state.

    Args:
      batches: must not be used elsewhere until `close`.
      place: host batch -> device arrays.
      depth: batches ahead, at least 2.
      patience: seconds that a batch may take; None for no limit.
      late: called once for each batch that takes longer, with a description of the cause.

    Raises:
      Whatever `batches` or `place` raise, from the call of `next` for that batch.
    """

    def __init__(
        self,
        batches: Batches,
        place: Callable[[Mapping[str, np.ndarray]], dict[str, jax.Array]],
        depth: int,
        *,
        patience: float | None = None,
        late: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._patience, self._late, self._placing = patience, late, False
        self._place, self._depth = place, depth
        self._begin(batches)

    def _begin(self, batches: Batches) -> None:
        self._batches, self.position = batches, batches.get_state()
        # The thread holds one more batch while the queue is full.
        self._ready: queue.Queue[Placed | BaseException] = queue.Queue(self._depth - 1)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="prefetch", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                batch = next(self._batches)
                position = dict(self._batches.get_state())
                self._placing = True
                arrays = self._place(batch)
                self._placing = False
                self._put(Placed(arrays, batch["index"], position))
        except BaseException as error:  # `next` raises it in the caller's thread
            self._put(error)

    def _put(self, item: Placed | BaseException) -> None:
        while not self._stop.is_set():
            try:
                self._ready.put(item, timeout=0.1)
                return
            except queue.Full:
                continue

    def __next__(self) -> Placed:
        try:
            item = self._ready.get(timeout=self._patience)
        except queue.Empty:
            placing = "sending the batch to the device"
            self._late(placing if self._placing else self._batches.whereabouts())
            item = self._ready.get()
        if isinstance(item, BaseException):
            self.close()
            raise item
        self.position = item.position
        return item

    def reopen(self, batches: Batches) -> None:
        """Continues with other batches, after `close`."""
        self._begin(batches)

    def __enter__(self) -> "Prefetch":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stops the thread and drops the batches that it holds."""
        self._stop.set()
        self._thread.join()
