"""Random choices from blocks of uniform numbers, which are fast and equal in all NumPy versions.

Only `Generator.random` is called, whose stream NumPy keeps stable. Drawing a block takes less time
than three calls of other methods of the generator.
"""

import bisect
import functools
import hashlib
import itertools
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")

_BLOCK = 128


class Dice:
    """Draws choices from `rng`; equal generators give equal sequences of choices."""

    def __init__(self, rng: np.random.Generator):
        self._rng = rng
        self._block: list[float] = []

    def unit(self) -> float:
        """A number in [0, 1)."""
        if not self._block:
            self._block = self._rng.random(_BLOCK).tolist()
        return self._block.pop()

    def units(self, count: int) -> tuple[float, ...]:
        """`count` numbers in [0, 1)."""
        return tuple(self.unit() for _ in range(count))

    def between(self, low: float, high: float) -> float:
        """A number in [low, high)."""
        return low + (high - low) * self.unit()

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self.unit() < probability

    def pick(self, items: Sequence[T]) -> T:
        """One of `items`, all equally likely."""
        return items[int(self.unit() * len(items))]

    def weighted(self, items: Sequence[T], weights: Sequence[float]) -> T:
        """One of `items`, likely in proportion to `weights`."""
        sums = list(itertools.accumulate(weights))
        return items[min(bisect.bisect_right(sums, self.unit() * sums[-1]), len(items) - 1)]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """The items in a random order."""
        order = list(items)
        for last in range(len(order) - 1, 0, -1):
            other = int(self.unit() * (last + 1))
            order[last], order[other] = order[other], order[last]
        return order


def stream(seed: int, name: str, number: int) -> Dice:
    """An independent random stream for each (seed, name, number)."""
    digest = hashlib.blake2b(str(number).encode(), digest_size=16, key=_salt(seed, name))
    return Dice(np.random.Generator(np.random.PCG64(int.from_bytes(digest.digest(), "big"))))


@functools.cache
def _salt(seed: int, name: str) -> bytes:
    return hashlib.blake2b(f"phantom/{seed}/{name}".encode(), digest_size=16).digest()
