"""The endless sequence of training: which record stands at which position."""

import fractions
import math
from collections.abc import Callable, Sequence

import grain
import numpy as np

from mmrl.data.corpus import Corpus
from mmrl.types import InputError

# Grain's own numbers of the two streams when they hung on its chain of steps: runs that were
# started then continue on the same batches.
_SHUFFLE, _EXAMPLES = 1, 5


def example_seed(seed: int) -> int:
    """The seed of what is random within examples."""
    return _stream(seed, _EXAMPLES)


def order(corpus: Corpus, seed: int, batch_size: int) -> Callable[[int], int]:
    """Position -> index in the corpus, endless and at random access.

    Every epoch is a fresh shuffle, complete before the next begins; of a mixture with weights,
    every part has epochs of its own.

    Raises:
      InputError: fewer records, in all or in a weighted part, than one batch takes.
    """
    if len(corpus) < batch_size:
        raise InputError(
            f"{corpus.name} has {len(corpus)} usable records, fewer than "
            f"config.batch_size={batch_size}; a batch must not repeat a record"
        )
    if corpus.weights is None:
        return Shuffled(len(corpus), _stream(seed, _SHUFFLE))
    weights = proportions(corpus.weights)
    shuffled = []
    for number, weight in enumerate(weights):
        members = np.flatnonzero(corpus.parts == number)
        taken = math.ceil(batch_size * weight / sum(weights))
        if len(members) < taken:
            raise InputError(
                f"part {number} of {corpus.name} has {len(members)} usable records, but its weight "
                f"takes {taken} of config.batch_size={batch_size}; a batch must not repeat a record"
            )
        shuffled.append(Shuffled(len(members), _stream(seed, _SHUFFLE, number), members))
    return _Mixed(shuffled, weights)


class Shuffled:
    """Position -> index: every epoch a permutation of all, of its own.

    What `grain.MapDataset.source(...).shuffle(seed).repeat()` gives, by the same function, without
    the three layers of bookkeeping in which an index would spend most of its time.

    Args:
      size: how many there are. members: i64[size], what is shuffled; None: 0 to size - 1.
    """

    def __init__(self, size: int, seed: int, members: np.ndarray | None = None) -> None:
        self._size, self._seed, self._members = size, seed, members

    def __call__(self, position: int) -> int:
        """The index at a position, counted from 0 through all epochs."""
        epoch, place = divmod(position, self._size)
        index = grain.experimental.index_shuffle(
            place, max_index=self._size - 1, seed=(self._seed + epoch) % 2**32, rounds=4
        )
        return index if self._members is None else int(self._members[index])


def proportions(weights: tuple[float, ...]) -> tuple[int, ...]:
    """The least integers in the proportions of weights as they print: (0.7, 0.3) -> (7, 3)."""
    exact = [fractions.Fraction(repr(float(weight))) for weight in weights]
    common = math.lcm(*(part.denominator for part in exact))
    whole = [int(part * common) for part in exact]
    divisor = math.gcd(*whole)
    return tuple(part // divisor for part in whole)


def part_at(position: int, weights: tuple[int, ...]) -> tuple[int, int]:
    """(part, how many of its examples came before) of a position among weighted parts.

    Of the first n positions part 0 has n - floor(n (W - w) / W), the others divide the rest in the
    same way: each comes in proportion to its weight, up to less than one example for each part
    before it and itself.
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
    """Endless parts, interleaved by their weights."""

    def __init__(self, parts: Sequence[Callable[[int], int]], weights: tuple[int, ...]) -> None:
        self._parts, self._weights = parts, weights

    def __call__(self, position: int) -> int:
        part, place = part_at(position, self._weights)
        return self._parts[part](place)


def _stream(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, dtype=np.uint32)[0])
