"""Puts the items of concurrent requests together, so that the device works on full batches."""

import asyncio
import collections
import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Any

import numpy as np

from mmrl.web.limits import Refusal


class Batcher:
    """Collects items of all requests and works on at most `most` at a time, in their order.

    Items whose request has gone are dropped. `start` and `stop` run in the event loop.

    Args:
      work: n items -> f32[n, D]. It runs in `executor`.
      most: items of a batch.
      seconds: how long the first item of a batch waits for others.
      seen: called with the number of items of each batch.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Any]], np.ndarray],
        executor: Executor,
        *,
        most: int,
        seconds: float,
        seen: Callable[[int], Any] = lambda items: None,
    ) -> None:
        self._work, self._executor = work, executor
        self._most, self._seconds, self.seen = most, seconds, seen
        self._queue: collections.deque[tuple[Any, asyncio.Future[np.ndarray]]] = collections.deque()
        self._arrived = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        """Number of items that wait."""
        return len(self._queue)

    def start(self) -> None:
        """Begins to work on items."""
        self._task = asyncio.get_running_loop().create_task(self._serve())

    async def stop(self) -> None:
        """Ends the work; items that still wait are not worked on."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def submit(self, items: Sequence[Any]) -> np.ndarray:
        """Works on n items, together with those of other requests: f32[n, D].

        Raises:
          Refusal: 500, a result is not finite.
        """
        loop = asyncio.get_running_loop()
        futures = [loop.create_future() for _ in items]
        self._queue.extend(zip(items, futures, strict=True))
        self._arrived.set()
        try:
            rows = np.stack(await asyncio.gather(*futures))
        finally:
            for future in futures:
                future.cancel()
        if not np.isfinite(rows).all():
            raise Refusal(500, "an embedding is not finite")
        return rows

    async def _serve(self) -> None:
        while True:
            await self._filled()
            batch = self._take()
            if not batch:
                continue
            self.seen(len(batch))
            items = [item for item, _ in batch]
            loop = asyncio.get_running_loop()
            try:
                rows = await loop.run_in_executor(self._executor, self._work, items)
                for (_, future), row in zip(batch, rows, strict=True):
                    if not future.done():
                        future.set_result(row)
            except Exception as error:  # each request that waits for it gets the error
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)

    async def _filled(self) -> None:
        """Returns when a batch is full, or when its first item has waited long enough."""
        while not self._queue:
            self._arrived.clear()
            await self._arrived.wait()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._seconds):
                while len(self._queue) < self._most:
                    self._arrived.clear()
                    await self._arrived.wait()

    def _take(self) -> list[tuple[Any, asyncio.Future[np.ndarray]]]:
        taken: list[tuple[Any, asyncio.Future[np.ndarray]]] = []
        while self._queue and len(taken) < self._most:
            item, future = self._queue.popleft()
            if not future.done():
                taken.append((item, future))
        return taken
