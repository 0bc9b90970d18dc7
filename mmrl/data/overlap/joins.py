"""Joins on equal keys in bounded memory, for the search of near duplicates."""

import itertools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

CHUNK = 1 << 20
"""Greatest number of candidate pairs in memory at a time, but for those of a single item."""


class NearPairs(NamedTuple):
    """Pairs of items that are near each other, within one list or between two.

    Not all pairs are listed. Of several equal items only the first is in a pair with every item
    near to it. Each of the others is in one pair per distinct near value, with the first item of
    that value. So there are few pairs even where many items are equal, yet every item that is near
    another is in some pair, and the connected components are those of all pairs.

    Attributes:
      first, second: i64[P], positions of the items; within one list first < second.
      similarity: f32[P], in 0..1.
    """

    first: np.ndarray
    second: np.ndarray
    similarity: np.ndarray


def connected_components(count: int, pairs: Iterable[tuple[int, int]]) -> np.ndarray:
    """i64[count]: the component of each of `count` items, named by its first member.

    Union-find with path halving (Tarjan and van Leeuwen 1984). SciPy has the same function, but
    importing it takes half as long as starting a preparation.
    """
    parent = list(range(count))  # single numbers are read faster from a list than from an array

    def root(item: int) -> int:
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    for first, second in pairs:
        a, b = root(first), root(second)
        parent[max(a, b)] = min(a, b)
    return np.asarray([root(item) for item in range(count)], np.int64)


def clusters(count: int, pairs: NearPairs) -> np.ndarray:
    """i64[count]: the connected component of each item, named by its first member."""
    return connected_components(
        count, zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)
    )


def ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The concatenation of range(starts[k], starts[k] + counts[k]) for all k, as an i64 array."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - counts), counts)


def join(
    left: np.ndarray, right: np.ndarray | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields arrays of positions (i, j) with left[i] == right[j], about CHUNK pairs at a time.

    Without `right`, pairs are within `left`; each pair occurs once, with i < j.
    """
    order = np.argsort(left, kind="stable")
    if right is None:
        ordered = left[order]
        starts = np.arange(1, len(left) + 1)
        pairs = _expand(starts, np.searchsorted(ordered, ordered, "right"))
        other = order
    else:
        other = np.argsort(right, kind="stable")
        pairs = lookup(left[order], right[other])
    for i, j in pairs:
        yield order[i], other[j]


def lookup(keys: np.ndarray, ordered: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields positions (i, j) with keys[i] == ordered[j], as `join`; `ordered` is ascending."""
    starts = np.searchsorted(ordered, keys, "left")
    return _expand(starts, np.searchsorted(ordered, keys, "right"))


def _expand(starts: np.ndarray, ends: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields (i, j) for all starts[i] <= j < ends[i]; pairs of one i are not divided."""
    some = np.flatnonzero(ends > starts)
    starts, counts = starts[some], (ends - starts)[some]
    total = np.cumsum(counts)
    cuts = np.searchsorted(total, np.arange(CHUNK, (total[-1] if len(total) else 0), CHUNK))
    for low, high in itertools.pairwise([0, *np.unique(cuts + 1).tolist(), len(some)]):
        if high > low:
            yield (
                np.repeat(some[low:high], counts[low:high]),
                ranges(starts[low:high], counts[low:high]),
            )


class Distinct(NamedTuple):
    """The distinct values of a list, and the positions at which each value occurs.

    Attributes:
      values: [V], in the order of their first occurrence.
      items: i64[N], positions grouped by value, ascending within a value. Those of value v are
        items[starts[v] : starts[v] + sizes[v]].
      starts, sizes: i64[V].
    """

    values: np.ndarray
    items: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray) -> "Distinct":
        """The distinct values of an array [N] of hashable values."""
        number: dict[object, int] = {}
        inverse = np.fromiter(
            (number.setdefault(value, len(number)) for value in values.tolist()),
            np.int64,
            len(values),
        )
        sizes = np.bincount(inverse, minlength=len(number))
        items = np.argsort(inverse, kind="stable")
        starts = np.cumsum(sizes) - sizes
        return cls(values[items[starts]], items, starts, sizes)


def item_pairs(
    left: Distinct, right: Distinct | None, found: np.ndarray, *, skip: np.ndarray
) -> NearPairs:
    """Expands near pairs of values to near pairs of items; see `NearPairs`.

    Equal items whose value is marked in `skip` are not paired with each other.
    """
    u, v = found[:2].astype(np.int64)
    other = left if right is None else right
    first_u, first_v = left.items[left.starts[u]], other.items[other.starts[v]]
    more = left.sizes[u] - 1
    parts = [
        (
            np.repeat(first_u, other.sizes[v]),
            other.items[ranges(other.starts[v], other.sizes[v])],
            np.repeat(found[2], other.sizes[v]),
        ),
        (
            left.items[ranges(left.starts[u] + 1, more)],
            np.repeat(first_v, more),
            np.repeat(found[2], more),
        ),
    ]
    if right is None:
        more = np.where(skip, 0, left.sizes - 1)
        rest = left.items[ranges(left.starts + 1, more)]
        parts.append((np.repeat(left.items[left.starts], more), rest, np.ones(len(rest))))
    i, j, similarity = map(np.concatenate, zip(*parts, strict=True))
    if right is None:
        i, j = np.minimum(i, j), np.maximum(i, j)
    order = np.lexsort((j, i))
    return NearPairs(i[order], j[order], similarity[order].astype(np.float32))
