"""Parts of records that cost reading or drawing, made when first looked at."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import overload

from mmrl.types import Box


class LazyBoxes(Sequence[Box]):
    """Boxes made when first asked for: a scan over all texts must not draw or read every study.

    Args:
      make: () -> the boxes; it pickles.
      count: how many there are, where that is known without making them.
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
