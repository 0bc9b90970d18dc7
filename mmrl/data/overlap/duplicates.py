"""Finds near duplicates of images and of texts without comparing all pairs.

Images are compared by a 64-bit perceptual hash of low frequencies (Zauner, "Implementation and
Benchmarking of Perceptual Image Hash Functions", 2010, section 3.2.1). Near hashes are found by
multi-index hashing (Norouzi, Punjani and Fleet, "Fast Exact Search in Hamming Space with
Multi-Index Hashing", 2014). Since radiographs resemble each other, near hashes are only candidates:
`pixel_similarity` decides whether two images show the same picture.

Texts are compared by the Jaccard index of their word shingles. Candidates come from MinHash
(Broder, "On the Resemblance and Containment of Documents", 1997) in bands (Leskovec, Rajaraman and
Ullman, "Mining of Massive Datasets", section 3.4); the index of each candidate is then exact.
"""

import functools
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from mmrl import sequences
from mmrl.data.image.images import luma
from mmrl.data.overlap.joins import (
    CHUNK,
    Distinct,
    NearPairs,
    clusters,
    item_pairs,
    join,
    lookup,
    ranges,
)
from mmrl.data.text import reports
from mmrl.types import InputError

__all__ = [
    "FLAT", "RADIUS", "SAME_PICTURE", "THRESHOLD", "SHINGLE", "NearPairs", "perceptual_hash",
    "pixel_similarity", "near_hashes", "near_texts", "clusters",
]  # fmt: skip

FLAT = 0
"""The hash of an image without structure. It is near to no hash, not even to another FLAT."""

RADIUS = 4
"""Bits in which the hashes of one picture may differ.

Measured on 196 radiographs of the COVID-19 image data collection (Cohen et al., 2020): reducing a
radiograph to 256 pixels at JPEG quality 75 changes at most 2 bits. Of their 19,110 pairs, three are
true duplicates, at 0 bits; different radiographs differ in at least 6. Hashes have 32 ones, so
distances are even.
"""

SAME_PICTURE = 0.98
"""`pixel_similarity` at or above which two images with near hashes are the same picture.

On the radiographs above, it is above 0.996 between a radiograph and its reduced version, and at
most 0.90 between different radiographs whose hashes differ in up to 14 bits.
"""

THRESHOLD = 0.8
SHINGLE = 3  # words

# If two hashes differ in r bits, one of three parts differs in at most r // 3. (lowest bit, width)
_PARTS = ((0, 22), (22, 21), (43, 21))
_SIDE, _LOW = 32, 8  # thumbnail, and frequencies kept along each axis
_COMPARED = 64  # side of the thumbnails that are correlated
# 40 bands of 6: two texts of Jaccard 0.8 share none of them with probability (1 - 0.8^6)^40, 5e-6.
_BANDS, _ROWS = 40, 6
_SLACK = 0.15  # an estimate from 240 hashes is too low by more than this once in 1e8


def perceptual_hash(image: np.ndarray) -> int:
    """A hash of 64 bits that resizing, compression and mild changes of contrast hardly change.

    The image is averaged to 32 x 32. Of its DCT-II, the 8 x 8 coefficients that follow the constant
    ones along both axes are compared with their median, row by row; the first is the highest bit.

    An image without structure in both directions (constant, noise or a ramp) gets `FLAT`, since its
    bits would be random. The criterion is that the root mean square in those frequencies is below
    1/128 of the brightest value, or below a quarter grey level. Radiographs have 1/30 or more.

    Args:
      image: u8 or u16 [H, W], or [H, W, 3], of which the luma counts; the scale of the values does
        not matter.

    Raises:
      InputError: another dtype or shape.
    """
    small = _thumbnail(image, _SIDE)
    basis = _cosines()
    low = basis @ small @ basis.T
    peak = float(small.max())
    if np.sqrt(np.square(low).sum()) / _SIDE < max(peak / 128, 0.25):
        return FLAT
    # Coefficients that are zero but for rounding errors must be equal on every machine.
    values = np.round(low.ravel() / peak, 6)
    bits = np.packbits(values > np.median(values))
    return int.from_bytes(bits.tobytes(), "big") or 1


def pixel_similarity(first: np.ndarray, second: np.ndarray) -> float:
    """Correlation of two images after averaging to 64 x 64; 0 where one has no contrast.

    Args:
      first, second: u8 or u16 [H, W] or [H, W, 3], of any sizes.

    Raises:
      InputError: another dtype or shape.
    """
    a, b = (_thumbnail(image, _COMPARED).ravel() for image in (first, second))
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale > 0 else 0.0


def near_hashes(
    hashes: npt.ArrayLike, others: npt.ArrayLike | None = None, *, radius: int = RADIUS
) -> NearPairs:
    """Pairs of hashes that differ in at most `radius` bits, see `NearPairs`.

    The similarity is the share of equal bits. The search is exact. `FLAT` is in no pair.

    Args:
      hashes: u64[N].
      others: u64[M]; pairs are then (index into hashes, index into others).
      radius: 0 to 8; 6 and more are slow for more than 1e5 hashes.

    Raises:
      InputError: a radius outside its range.
    """
    if not 0 <= radius <= 8:
        raise InputError(f"radius {radius}; expected 0 to 8 of 64 bits")
    left = Distinct.of(np.asarray(hashes, np.uint64))
    right = None if others is None else Distinct.of(np.asarray(others, np.uint64))
    a = left.values
    b = a if right is None else right.values
    found = [np.zeros((3, 0))]
    for band in range(len(_PARTS)):
        for i, j in _candidates(a, None if right is None else b, band, radius // len(_PARTS)):
            differing = a[i] ^ b[j]
            bits = np.bitwise_count(differing)
            kept = (bits <= radius) & (a[i] != FLAT) & (b[j] != FLAT)
            for earlier in range(band):  # keep only pairs that no earlier part has found
                kept &= np.bitwise_count(_part(differing, earlier)) > radius // len(_PARTS)
            i, j = i[kept], j[kept]
            if right is None:
                i, j = np.minimum(i, j), np.maximum(i, j)
            found.append(np.stack([i, j, 1 - bits[kept] / 64]))
    return item_pairs(left, right, np.concatenate(found, axis=1), skip=left.values == FLAT)


def near_texts(
    texts: Sequence[str], others: Sequence[str] | None = None, *, threshold: float = THRESHOLD
) -> NearPairs:
    """Pairs of texts whose sets of 3-word shingles have a Jaccard index of at least `threshold`.

    Words are those of `reports.canonical`. Texts of fewer than three words are near only if they
    are equal; texts without words are in no pair. At threshold 0.8 a pair is missed with
    probability 5e-6 at most. The similarity of a found pair is exact. See `NearPairs`.

    Args:
      texts: N raw texts.
      others: M raw texts; pairs are then (index into texts, index into others).
      threshold: 0.6 to 1; at a lower one too many pairs would be missed.

    Raises:
      InputError: a threshold outside its range, a single text, or an item that is none.
    """
    if not 0.6 <= threshold <= 1:
        raise InputError(f"threshold {threshold}; expected 0.6 to 1")
    plain = list(map(reports.canonical, sequences.each(texts, "texts")))
    left = Distinct.of(np.asarray(plain, object))
    right, keys = None, list(left.values)
    if others is not None:
        plain = list(map(reports.canonical, sequences.each(others, "others")))
        right = Distinct.of(np.asarray(plain, object))
        keys += list(right.values)
    sets = _Shingles.of(keys)
    split = len(left.values)
    found = [np.zeros((3, 0))]
    if right is not None:
        place = {text: index for index, text in enumerate(left.values)}
        equal = [(place[t], k, 1.0) for k, t in enumerate(right.values) if t and t in place]
        found.append(np.array(equal, float).reshape(-1, 3).T)
    bands, signatures = _minhash(sets)
    for band in range(_BANDS):
        side = None if right is None else np.ascontiguousarray(bands[split:, band])
        for i, j in join(np.ascontiguousarray(bands[:split, band]), side):
            j = j if right is None else j + split
            kept = (sets.sizes[i] > 0) & (sets.sizes[j] > 0)
            if right is not None:
                kept &= left.values[i] != right.values[j - split]
            i, j = i[kept], j[kept]
            new = (bands[i, :band] != bands[j, :band]).all(axis=1)
            i, j = i[new], j[new]
            near = (signatures[i] == signatures[j]).mean(axis=1) >= threshold - _SLACK
            i, j = np.minimum(i[near], j[near]), np.maximum(i[near], j[near])
            similarity = sets.jaccard(i, j)
            kept = similarity >= threshold
            second = j[kept] if right is None else j[kept] - split
            found.append(np.stack([i[kept], second, similarity[kept]]))
    return item_pairs(left, right, np.concatenate(found, axis=1), skip=left.values == "")


# --- images --------------------------------------------------------------------------------------


def _thumbnail(image: np.ndarray, side: int) -> np.ndarray:
    """f64[side, side], averaged by area."""
    plain = image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)
    if not plain or image.size == 0 or image.dtype not in (np.uint8, np.uint16):
        raise InputError(
            f"image {image.dtype}{list(image.shape)}; expected uint8 or uint16[H, W] or"
            " [H, W, 3], not empty"
        )
    image = luma(image)
    small = cv2.resize(image.astype(np.float32), (side, side), interpolation=cv2.INTER_AREA)
    return small.astype(np.float64)


@functools.cache
def _cosines() -> np.ndarray:
    """Rows 1 to 8 of the orthonormal DCT-II of 32 values, f64[8, 32]."""
    k, n = np.arange(1, _LOW + 1)[:, None], np.arange(_SIDE)[None]
    return np.sqrt(2 / _SIDE) * np.cos(np.pi * (2 * n + 1) * k / (2 * _SIDE))


def _part(hashes: np.ndarray, number: int) -> np.ndarray:
    """u32[N]: the bits of one of `_PARTS`."""
    low, width = _PARTS[number]
    return ((hashes >> np.uint64(low)) & np.uint64((1 << width) - 1)).astype(np.uint32)


def _candidates(
    a: np.ndarray, b: np.ndarray | None, number: int, radius: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields positions whose hashes differ in at most `radius` bits of one part, each pair once."""
    key = _part(a, number)
    yield from join(key, None if b is None else _part(b, number))
    order = np.argsort(key)
    key = key[order]
    other, ordered = order, key
    if b is not None:
        ordered = _part(b, number)
        other = np.argsort(ordered)
        ordered = ordered[other]
    for count in range(1, radius + 1):
        for places in itertools.combinations(range(_PARTS[number][1]), count):
            mask = np.uint32(sum(1 << place for place in places))
            # Of two items of one list that differ in these bits, only one has the first of them
            # unset. Only that one looks for the other, so the pair is found once.
            half = slice(None) if b is not None else (key >> np.uint32(places[0])) & 1 == 0
            position = order[half]
            for i, j in lookup(key[half] ^ mask, ordered):
                yield position[i], other[j]


# --- texts ---------------------------------------------------------------------------------------


class _Shingles(NamedTuple):
    """N sets of shingles: the ids i64[S] of all sets, their starts and sizes, i64[N] each."""

    ids: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray

    @classmethod
    def of(cls, texts: Sequence[str]) -> "_Shingles":
        """The sets of canonical texts. Ids are exact: different shingles have different ids."""
        number: dict[str, int] = {}
        words: list[int] = []
        lengths = np.zeros(len(texts), np.int64)
        for index, text in enumerate(texts):
            ids = [number.setdefault(word, len(number)) for word in text.split()]
            lengths[index] = len(ids)
            words += ids
        stream = np.asarray(words, np.int64)
        counts = np.maximum(lengths - (SHINGLE - 1), 0)
        begin = ranges(np.cumsum(lengths) - lengths, counts)
        shingle = stream[begin]
        for step in range(1, SHINGLE):
            # Renumbered at each word, so that the product does not exceed 64 bits.
            _, shingle = np.unique(
                shingle * len(number) + stream[begin + step], return_inverse=True
            )
        owner = np.repeat(np.arange(len(texts)), counts)
        keys = np.sort((owner << 32) | shingle)
        keys = keys[np.concatenate([[True], keys[1:] != keys[:-1]])[: len(keys)]]
        sizes = np.bincount(keys >> 32, minlength=len(texts))
        return cls(keys & 0xFFFFFFFF, np.cumsum(sizes) - sizes, sizes)

    def jaccard(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """f64[P]: the Jaccard index of P pairs of sets, which are not empty."""
        out = np.zeros(len(first))
        step = max(1, CHUNK // max(int(self.sizes.max(initial=1)), 1))
        for low in range(0, len(first), step):
            i, j = first[low : low + step], second[low : low + step]
            pair = np.arange(len(i)) << 32
            keys = [
                np.repeat(pair, self.sizes[k]) | self.ids[ranges(self.starts[k], self.sizes[k])]
                for k in (i, j)
            ]
            both = np.sort(np.concatenate(keys))
            shared = both[1:][both[1:] == both[:-1]] >> 32
            common = np.bincount(shared, minlength=len(i))
            out[low : low + step] = common / (self.sizes[i] + self.sizes[j] - common)
        return out


def _minhash(sets: _Shingles) -> tuple[np.ndarray, np.ndarray]:
    """Keys of the bands, u64[N, 40], and the low 16 bits of the minima, u16[N, 240]."""
    count = len(sets.sizes)
    filled = np.flatnonzero(sets.sizes)
    bands = np.zeros((count, _BANDS), np.uint64)
    signatures = np.zeros((count, _BANDS * _ROWS), np.uint16)
    digest = hashlib.shake_128(b"mmrl.data.overlap.duplicates").digest(8 * _BANDS * _ROWS)
    constants = np.frombuffer(digest, "<u4").reshape(-1, 2)
    mixed = sets.ids.astype(np.uint32)
    for multiplier in (0x85EBCA6B, 0xC2B2AE35):  # the finaliser of MurmurHash3
        mixed = (mixed ^ (mixed >> np.uint32(16))) * np.uint32(multiplier)
    sums = np.cumsum(sets.sizes[filled])
    cuts = np.searchsorted(sums, np.arange(1 << 18, (sums[-1] if len(sums) else 0), 1 << 18))
    for low, high in itertools.pairwise([0, *np.unique(cuts + 1).tolist(), len(filled)]):
        rows = filled[low:high]
        if not len(rows):
            continue
        begin = sets.starts[rows]
        block = mixed[begin[0] : begin[-1] + sets.sizes[rows[-1]]]
        for k, (factor, offset) in enumerate(constants):
            least = np.minimum.reduceat(block * (factor | np.uint32(1)) + offset, begin - begin[0])
            signatures[rows, k] = least
            key = bands[rows, k // _ROWS]
            bands[rows, k // _ROWS] = key * np.uint64(0x9E3779B97F4A7C15) + least
    return bands, signatures
