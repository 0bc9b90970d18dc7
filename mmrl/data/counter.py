"""Counter-based random numbers: any output of any number of streams, computed directly.

The generator is SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number
generators", section 4). Its n-th output for a seed is a mix of seed + (n + 1) gamma, so that no
state is kept, and arrays of outputs of many streams are computed without a loop in Python.
"""

import numpy as np

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))


def bits(seeds: np.ndarray | np.uint64, numbers: np.ndarray | int) -> np.ndarray:
    """u64[...]: outputs `numbers`, from 0, of the streams with `seeds` (u64), broadcast."""
    with np.errstate(over="ignore"):  # of scalars; arithmetic is modulo 2**64
        mixed = seeds + (np.asarray(numbers, np.uint64) + np.uint64(1)) * _GAMMA
        for shift, factor in _MIX:
            mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
        return mixed ^ (mixed >> np.uint64(31))


def subset(seed: np.uint64, count: int, most: int) -> np.ndarray:
    """i64[min(count, most)]: some of the numbers below `count`, ascending, all equally likely."""
    return np.sort(np.argsort(bits(seed, np.arange(count)), kind="stable")[:most])


def uniforms(seeds: np.ndarray, numbers: np.ndarray | int) -> np.ndarray:
    """f64[...] in [0, 1), multiples of 2**-53: the upper 53 of the same `bits`."""
    return (bits(seeds, numbers) >> np.uint64(11)) * 2.0**-53
