"""The endless sequence of training: which example is at which position."""

import fractions
import functools
import math
from collections.abc import Callable, Sequence

import grain
import numpy as np

from mmrl.data.corpus import Corpus
from mmrl.data.sampling import Groups
from mmrl.types import InputError

# Numbers of the random streams of the seed. Changing one would change every batch.
_SHUFFLE, _EXAMPLES, _GROUPS = 1, 5, 7
_FEW = 256  # items, of which a permutation is kept


def example_seed(seed: int) -> int:
    """The seed of everything random within examples, see `inputs.base.Rows`."""
    return _stream(seed, _EXAMPLES)


def order(
    corpus: Corpus,
    seed: int,
    batch_size: int,
    drawn: np.ndarray | None = None,
    groups: Groups | None = None,
) -> Callable[[int], int]:
    """The order of training: position -> index in the corpus, for any position from 0 on.

    Every epoch is a new shuffle of all examples. In a mixture with weights, every part has epochs
    of its own; with groups, every group has, see `Rounds`.

    Args:
      drawn: i64[n], ascending, the examples that training uses; None: all.
      groups: to draw equally often; None: examples are.

    Raises:
      InputError: the corpus, a part with a weight, or a group has fewer records than one batch
        takes; groups in a mixture with weights.
    """
    if groups is not None:
        return _of_groups(corpus, seed, batch_size, drawn, groups)
    size, of = (len(corpus), "") if drawn is None else (len(drawn), "the draw from ")
    if size < batch_size:
        raise InputError(
            f"{of}{corpus.name} has {size} usable records, fewer than "
            f"config.batch_size={batch_size}; a batch must not repeat a record"
        )
    if corpus.weights is None:
        return Shuffled(size, _stream(seed, _SHUFFLE), drawn)
    weights = proportions(corpus.weights)
    shuffled = []
    for number, weight in enumerate(weights):
        members = np.flatnonzero(corpus.parts == number)
        if drawn is not None:
            members = np.intersect1d(members, drawn)
        taken = math.ceil(batch_size * weight / sum(weights))
        if len(members) < taken:
            raise InputError(
                f"part {number} of {corpus.name} has {len(members)} usable records, but its weight "
                f"takes {taken} of config.batch_size={batch_size}; a batch must not repeat a record"
            )
        shuffled.append(Shuffled(len(members), _stream(seed, _SHUFFLE, number), members))
    return _Mixed(shuffled, weights)


def _of_groups(
    corpus: Corpus, seed: int, batch_size: int, drawn: np.ndarray | None, groups: Groups
) -> "Rounds":
    if corpus.weights is not None:
        raise InputError(
            f"{corpus.name} has parts with weights, and config.data.sampler draws groups; "
            "expected one of the two"
        )
    groups = groups.within(np.arange(len(corpus)) if drawn is None else drawn)
    members = [np.flatnonzero(groups.of == number) for number in range(len(groups.names))]
    if not members:
        raise InputError(
            f"no group of config.data.sampler has {groups.members} examples in {corpus.name}; "
            "lower config.data.sampler.members"
        )
    taken = math.ceil(batch_size / (groups.members * len(members))) * groups.members
    for name, rows in zip(groups.names, members, strict=True):
        if len(rows) < taken:
            raise InputError(
                f"group {name!r} of config.data.sampler has {len(rows)} usable records, but a "
                f"batch of {batch_size} takes {taken} of each of {len(members)} groups; a batch "
                "must not repeat a record"
            )
    return Rounds(members, groups.members, _stream(seed, _GROUPS))


class Rounds:
    """Position -> index: every group once per round, in another order each round.

    A turn of a group is k examples at neighbouring positions. A group of n examples has epochs of
    its own of floor(n / k) turns: a new permutation of its examples, of which the last n mod k are
    left out, others in each epoch. So after any number of rounds all groups had as many turns, and
    within an epoch of a group no example comes twice.

    Args:
      groups: i64[n], the examples of each group; at least k.
      members: k.
    """

    def __init__(self, groups: Sequence[np.ndarray], members: int, seed: int) -> None:
        self._members = members
        self._turns = _shuffled(len(groups), seed)
        self._groups = [
            _Group(rows, members, _stream(seed, number)) for number, rows in enumerate(groups)
        ]

    def __call__(self, position: int) -> int:
        """The example at a position, counted from 0."""
        turn, member = divmod(position, self._members)
        return self._groups[self._turns(turn)](turn // len(self._groups), member)


class _Group:
    """(turn, member) -> example, for one group."""

    def __init__(self, rows: np.ndarray, members: int, seed: int) -> None:
        self._order = _shuffled(len(rows), seed, rows)
        self._size, self._members, self._turns = len(rows), members, len(rows) // members

    def __call__(self, turn: int, member: int) -> int:
        epoch, within = divmod(turn, self._turns)
        return self._order(epoch * self._size + within * self._members + member)


class Later:
    """Position -> index from a position on: `order`, counted from there."""

    def __init__(self, order: Callable[[int], int], start: int) -> None:
        self._order, self._start = order, start

    def __call__(self, position: int) -> int:
        """The example at a position, counted from 0 of the whole training."""
        return self._order(position - self._start)


class Shuffled:
    """Position -> index: every epoch is another permutation.

    The same order as `grain.MapDataset.source(...).shuffle(seed).repeat()`, from the same function,
    without the overhead of three nested data sets for every index.

    Args:
      size: number of items.
      members: i64[size], the items; None for 0 to size - 1.
    """

    def __init__(self, size: int, seed: int, members: np.ndarray | None = None) -> None:
        self._size, self._seed, self._members = size, seed, members

    def __call__(self, position: int) -> int:
        """The item at a position, counted from 0 through all epochs."""
        epoch, place = divmod(position, self._size)
        index = grain.experimental.index_shuffle(
            place, max_index=self._size - 1, seed=(self._seed + epoch) % 2**32, rounds=4
        )
        return index if self._members is None else int(self._members[index])


class _Permuted(Shuffled):
    """As Shuffled, in another order, for few items.

    Grain's shuffle walks cycles of 65,536 numbers, which takes milliseconds for a handful of items.
    """

    def __call__(self, position: int) -> int:
        epoch, place = divmod(position, self._size)
        index = int(_permutation(self._size, self._seed, epoch)[place])
        return index if self._members is None else int(self._members[index])


@functools.lru_cache(1 << 16)
def _permutation(size: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(size)


def _shuffled(size: int, seed: int, members: np.ndarray | None = None) -> Shuffled:
    return (_Permuted if size <= _FEW else Shuffled)(size, seed, members)


def proportions(weights: tuple[float, ...]) -> tuple[int, ...]:
    """The smallest integers in the ratio of decimal weights: (0.7, 0.3) -> (7, 3)."""
    exact = [fractions.Fraction(repr(float(weight))) for weight in weights]
    common = math.lcm(*(part.denominator for part in exact))
    whole = [int(part * common) for part in exact]
    divisor = math.gcd(*whole)
    return tuple(part // divisor for part in whole)


def part_at(position: int, weights: tuple[int, ...]) -> tuple[int, int]:
    """(part, number of examples of that part before this position), for weighted parts.

    Part 0, of weight w of W in all, has n - floor(n (W - w) / W) of the first n positions. The
    other parts divide the remaining positions in the same way. At any n, the count of part k
    differs from its exact share by less than k + 1 examples.
    """
    left = sum(weights)
    for part, weight in enumerate(weights):
        others, others_after = (
            position * (left - weight) // left,
            (position + 1) * (left - weight) // left,
        )
        if others_after == others:
            return part, position - others
        position, left = others, left - weight
    raise AssertionError(f"position {position} has no part among {weights}")


class _Mixed:
    """Position -> index in a mixture: the orders of its parts, interleaved by their weights."""

    def __init__(self, parts: Sequence[Callable[[int], int]], weights: tuple[int, ...]) -> None:
        self._parts, self._weights = parts, weights

    def __call__(self, position: int) -> int:
        part, place = part_at(position, self._weights)
        return self._parts[part](place)


def _stream(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, dtype=np.uint32)[0])
