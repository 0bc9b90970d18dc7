"""The numbers of many NumPy generators at once, without making the generators.

A generator of its own for every example makes what it draws depend on its seed alone, but most of
what that costs is spreading the seed over the generator's state. Here this is done for all seeds
of a batch together. NumPy guarantees both algorithms: `numpy.random.SeedSequence` (O'Neill 2015,
"Developing a seed_seq alternative") and PCG64 (O'Neill 2014, "PCG: a family of simple fast
space-efficient statistically good algorithms for random number generation").
"""

from collections.abc import Sequence

import numpy as np

_POOL = 4  # words of SeedSequence
_SHIFT = np.uint32(16)
_MIX_LEFT, _MIX_RIGHT = np.uint32(0xCA01F9DD), np.uint32(0x4973F715)
_MULTIPLIER = 0x2360ED051FC65DA44385DF649FCCF645  # of PCG64
_MASK = 2**128 - 1


def _constants(first: int, factor: int, count: int) -> np.ndarray:
    """The u32 that a hash of SeedSequence takes one after the other, u32[count]."""
    return np.array([first * pow(factor, n, 2**32) % 2**32 for n in range(count)], np.uint32)


_OF_POOL = _constants(0x43B0D7E5, 0x931E8875, _POOL * _POOL + 1)
_OF_STATE = _constants(0x8B51F9DD, 0x58F38DED, 2 * _POOL + 1)


def uniforms(seeds: Sequence[int], count: int) -> np.ndarray:
    """f64[n, count], each row the same bits as `np.random.default_rng(seed).random(count)`.

    Args:
      seeds: n of them, from 0 to 2**64 - 1.
    """
    bits = np.random.PCG64(0)
    generator, rows = np.random.Generator(bits), np.empty((len(seeds), count))
    for row, (a, b, c, d) in zip(rows, _spread(seeds).tolist(), strict=True):
        step = ((c << 64 | d) << 1 | 1) & _MASK
        state = ((step + (a << 64 | b)) * _MULTIPLIER + step) & _MASK
        bits.state = {
            "bit_generator": "PCG64",
            "state": {"state": state, "inc": step},
            "has_uint32": 0,
            "uinteger": 0,
        }
        generator.random(out=row)
    return rows


def _spread(seeds: Sequence[int]) -> np.ndarray:
    """u64[n, 4], what `SeedSequence(seed).generate_state(4, np.uint64)` is of each."""
    given = np.array(seeds, np.uint64)
    pool = np.zeros((len(given), _POOL), np.uint32)
    pool[:, 0], pool[:, 1] = given & np.uint64(2**32 - 1), given >> np.uint64(32)
    pool = _hash(pool, _OF_POOL[: _POOL + 1])
    for source in range(_POOL):
        others = [word for word in range(_POOL) if word != source]
        first = _POOL + len(others) * source
        hashed = _hash(pool[:, source, None], _OF_POOL[first : first + len(others) + 1])
        mixed: np.ndarray = _MIX_LEFT * pool[:, others] - _MIX_RIGHT * hashed
        pool[:, others] = mixed ^ (mixed >> _SHIFT)
    words = _hash(np.tile(pool, 2), _OF_STATE).astype(np.uint64)
    return words[:, ::2] | words[:, 1::2] << np.uint64(32)


def _hash(words: np.ndarray, constants: np.ndarray) -> np.ndarray:
    """u32[n, k] from u32[n, k] or u32[n, 1] and u32[k + 1]."""
    hashed = (words ^ constants[:-1]) * constants[1:]
    return hashed ^ (hashed >> _SHIFT)
