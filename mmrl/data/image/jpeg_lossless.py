"""Whether the pixels of a lossless JPEG are those that its entropy-coded data hold.

libjpeg-turbo fills a frame whose data end early, or lose their way, and says so in a warning that
no Python package passes on. The pixels tell: what they take as Huffman codes is the length of the
data, up to the bits that fill the last byte. Sections are those of ITU-T T.81.
"""

from typing import NamedTuple

import numpy as np

from mmrl.data.image.containers import Segment, jpeg_segments
from mmrl.types import InputError

_FRAME, _TABLES, _SCAN, _RESTART = 0xC3, 0xC4, 0xDA, 0xDD
_SPARE = 2  # bytes behind the last code; encoders that fill a word leave as many


class _Scan(NamedTuple):
    components: list[int]  # their places in the frame
    lengths: list[np.ndarray]  # of each component: bits of a difference of 0..32768, u8[32769]
    predictor: int
    shift: int  # of the point transform
    rows: int  # between restarts; 0 without restarts


def check(data: bytes, pixels: np.ndarray) -> None:
    """Compares the length of each scan with that of its pixels.

    Args:
      data: a JPEG of one lossless frame with a Huffman table for every component.
      pixels: what a decoder made of it, u8 or u16 [H, W] or [H, W, C].

    Raises:
      InputError: the data of a scan are shorter or longer than its pixels take.
    """
    cells = pixels[..., None] if pixels.ndim == 2 else pixels
    identifiers: list[int] = []
    precision = interval = 0
    tables: dict[int, np.ndarray] = {}
    for segment in jpeg_segments(data):
        body = bytes(segment.body)
        if segment.marker == _FRAME:
            precision, identifiers = body[0], list(body[6::3])
        elif segment.marker == _TABLES:
            tables |= _read_tables(body)
        elif segment.marker == _RESTART:
            interval = int.from_bytes(body[:2])
        elif segment.marker == _SCAN:
            count = body[0]
            scan = _Scan(
                [identifiers.index(found) for found in body[1 : 1 + 2 * count : 2]],
                [tables[selectors >> 4] for selectors in body[2 : 2 + 2 * count : 2]],
                predictor=body[1 + 2 * count],
                shift=body[3 + 2 * count] & 15,
                rows=interval // cells.shape[1],
            )
            _check_scan(scan, cells, precision, _coded(data, segment))


def _read_tables(body: bytes) -> dict[int, np.ndarray]:
    """Number of a table -> bits of a difference, by its magnitude (B.2.4.2, H.1.2.2)."""
    found = {}
    while len(body) >= 17:
        counts = body[1:17]
        categories = body[17 : 17 + sum(counts)]
        lengths = np.repeat(np.arange(1, 17), list(counts))
        bits = np.zeros(17, np.uint8)
        for category, length in zip(categories, lengths.tolist(), strict=True):
            if category <= 16:  # a difference of 32768 has no further bits
                bits[category] = length + category % 16
        categories_of = np.frexp(np.arange(2**15 + 1))[1]
        found[body[0] & 15] = bits[categories_of]
        body = body[17 + len(categories) :]
    return found


def _coded(data: bytes, segment: Segment) -> int:
    """Bytes of the entropy-coded data of a scan, less stuffing, fill bytes and restarts."""
    coded = data[segment.start + 4 + len(segment.body) : segment.stop]
    kept = coded.replace(b"\xff\0", b"\0")
    return len(kept) - 2 * sum(coded.count(bytes([0xFF, 0xD0 + index])) for index in range(8))


def _check_scan(scan: _Scan, cells: np.ndarray, precision: int, coded: int) -> None:
    height = len(cells)
    rows = scan.rows or height
    bits = np.zeros(height, np.int64)
    for place, lengths in zip(scan.components, scan.lengths, strict=True):
        values = cells[..., place].astype(np.int32) >> scan.shift
        expected = _expected(values, scan.predictor, rows, precision - scan.shift)
        difference = (values - expected) & 0xFFFF
        bits += lengths[np.minimum(difference, 0x10000 - difference)].sum(axis=1, dtype=np.int64)
    taken = int((-(-np.add.reduceat(bits, np.arange(0, height, rows)) // 8)).sum())
    if not taken <= coded <= taken + _SPARE:
        raise InputError(f"damaged JPEG: its scan has {coded} bytes, its pixels take {taken}")


def _expected(values: np.ndarray, predictor: int, rows: int, precision: int) -> np.ndarray:
    """What each sample is predicted to be (H.1.2.1): i32[H, W]."""
    left, above = np.roll(values, 1, axis=1), np.roll(values, 1, axis=0)
    corner = np.roll(above, 1, axis=1)
    expected = {
        1: lambda: left,
        2: lambda: above,
        3: lambda: corner,
        4: lambda: left + above - corner,
        5: lambda: left + ((above - corner) >> 1),
        6: lambda: above + ((left - corner) >> 1),
        7: lambda: (left + above) >> 1,
    }[predictor]()
    expected[:, 0] = above[:, 0]
    expected[::rows] = left[::rows]
    expected[::rows, 0] = 1 << (precision - 1)
    return expected
