"""Signatures of texts: 128 bytes from which the overlap of two texts can be estimated.

A signature is a minwise hash of word trigrams (Broder 1997) of which the lowest eight bits are kept
(Li and König 2010). Two texts whose sets of trigrams have Jaccard similarity J agree in an expected
share of J + (1 - J) / 256 of their bytes. Signatures of reports can be stored with a run without
storing the reports.
"""

import functools
import zlib
from collections.abc import Sequence

import numpy as np

from mmrl import sequences
from mmrl.data.text import reports

LENGTH = 128  # bytes of a signature; the standard error of J is at most 0.044
SHINGLE = 3  # words
MIN_WORDS = 8  # shorter reports ("No acute cardiopulmonary disease.") recur in every corpus
NEAR = 0.8  # two reports of at least this estimated Jaccard similarity are nearly the same

_PRIME = np.uint64(2**31 - 1)  # Mersenne, so that products of two residues fit 64 bits
_BAND = 8  # bytes of a band: 16 bands find a pair of similarity 0.8 with probability 0.95
_MOST = 64  # a text is compared with so many of a bucket; fuller buckets hold templated texts


@functools.cache
def _permutations() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(20260101)
    return (
        rng.integers(1, int(_PRIME), LENGTH, dtype=np.uint64),
        rng.integers(0, int(_PRIME), LENGTH, dtype=np.uint64),
    )


def signatures(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Signatures u8[N, 128], and bool[N]: whether the text has at least MIN_WORDS words."""
    texts = sequences.of(texts, "texts")
    scale, shift = _permutations()
    found = np.zeros((len(texts), LENGTH), np.uint8)
    long_enough = np.zeros(len(texts), bool)
    first: dict[str, int] = {}
    for row, text in enumerate(texts):
        if (earlier := first.setdefault(text, row)) != row:  # reports repeat
            found[row], long_enough[row] = found[earlier], long_enough[earlier]
            continue
        words = reports.canonical(text).split()
        if len(words) < MIN_WORDS:
            continue
        shingles = {" ".join(words[at : at + SHINGLE]) for at in range(len(words) - SHINGLE + 1)}
        hashed = np.array([zlib.crc32(shingle.encode()) for shingle in shingles], np.uint64)
        mixed = (hashed % _PRIME)[:, None] * scale + shift
        found[row] = (mixed % _PRIME).min(axis=0).astype(np.uint8)
        long_enough[row] = True
    return found, long_enough


def similarity(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Estimated Jaccard similarity of signatures u8[..., 128], elementwise: f64[...]."""
    agree = (one == other).mean(axis=-1)
    return np.clip((agree - 1 / 256) / (1 - 1 / 256), 0.0, 1.0)


def near(
    known: np.ndarray, queries: np.ndarray, *, threshold: float = NEAR
) -> tuple[np.ndarray, np.ndarray]:
    """Finds for each signature the most similar known one among those that share a band with it.

    Args:
      known: u8[M, 128].
      queries: u8[N, 128].
      threshold: least estimated similarity.

    Returns:
      i64[N], the row of `known`, or -1 where none reaches the threshold; f64[N], the similarity. Of
      a band that more than 64 distinct signatures share, 64 are compared.
    """
    best, score = np.full(len(queries), -1, np.int64), np.zeros(len(queries))
    if not len(known) or not len(queries):
        return best, score
    rows, first = np.unique(known, axis=0, return_index=True)
    distinct, place = np.unique(queries, axis=0, return_inverse=True)
    top, value = np.full(len(distinct), -1, np.int64), np.zeros(len(distinct))
    for start in range(0, LENGTH, _BAND):
        one = np.ascontiguousarray(rows[:, start : start + _BAND]).view(np.uint64)[:, 0]
        other = np.ascontiguousarray(distinct[:, start : start + _BAND]).view(np.uint64)[:, 0]
        order = np.argsort(one, kind="stable")
        low = np.searchsorted(one[order], other, "left")
        high = np.minimum(np.searchsorted(one[order], other, "right"), low + _MOST)
        for step in range(int((high - low).max(initial=0))):
            at = np.flatnonzero(low + step < high)
            candidate = order[low[at] + step]
            alike = similarity(rows[candidate], distinct[at])
            better = alike > value[at]
            value[at[better]], top[at[better]] = alike[better], candidate[better]
    value[value < threshold] = 0.0
    top = np.where(value > 0, first[top], -1)
    return top[place.reshape(-1)], value[place.reshape(-1)]
