"""Parts of records that are expensive to read or draw, made on first access."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import overload

from mmrl.types import Box


class LazyBoxes(Sequence[Box]):
    """Boxes that are made on first access, so that a scan over all texts does not make them.

    Args:
      make: () -> the boxes. It pickles.
      count: the number of boxes, if it is known without making them.
    """

    def __init__(self, make: Callable[[], tuple[Box, ...]], count: int | None = None) -> None:
        self._make, self._count = make, count

    @functools.cached_property
    def _made(self) -> tuple[Box, ...]:
        return self._make()

    def __len__(self) -> int:
        return len(self._made) if self._count is None else self._count

    @overload
    def __getitem__(self, index: int) -> Box: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Box, ...]: ...
    def __getitem__(self, index: int | slice) -> Box | tuple[Box, ...]:
        return self._made[index]

    def __iter__(self) -> Iterator[Box]:
        return iter(self._made if self._count != 0 else ())
