"""Lookup tables of DICOM files: of grey levels, and of the colours of a palette.

Sections are those of the DICOM standard, PS3.3.
"""

from typing import NamedTuple

import numpy as np

from mmrl.data.image.kinds import ImageError


class Lut(NamedTuple):
    """A lookup table (PS3.3 C.11.1.1.1). Value `first` maps to entries[0]; ends are clamped."""

    first: int
    bits: int
    entries: np.ndarray  # u16[N]


def look_up(table: Lut, values: np.ndarray) -> np.ndarray:
    """Maps values through a table, f64; values between two entries take the nearest."""
    index = np.clip(np.rint(values) - table.first, 0, len(table.entries) - 1)
    return table.entries[index.astype(np.int64)].astype(np.float64)


def expand_segments(data: np.ndarray, count: int) -> np.ndarray:
    """The entries of a segmented palette (PS3.3 C.7.9.2), u16[N], where N is `count` at most.

    Args:
      data: u1[M] or u2[M], the segments.

    Raises:
      ImageError: damaged segments.
    """
    cells: list[int] = data.tolist()
    found: list[int] = []
    width = 4 if data.dtype.itemsize == 1 else 2  # cells of an offset, which counts bytes
    position, back, left = 0, 0, 0  # back, left: where and after how many segments to go on
    while len(found) < count and position + 2 < len(cells):
        kind, length = cells[position : position + 2]
        position += 2
        if kind == 0 and length:  # discrete: entry after entry
            found += cells[position : position + length]
            position += length
        elif kind == 1 and length and found:  # linear, from the last entry
            steps = np.linspace(found[-1], cells[position], length + 1)[1:]
            found += np.rint(steps).astype(int).tolist()
            position += 1
        elif kind == 2 and length and found and not left:  # indirect: earlier segments again
            offset = data[position : position + width].astype(f"<u{4 // width}").tobytes()
            back, left = position + width, length + 1
            position = int.from_bytes(offset, "little") // data.dtype.itemsize
        else:
            raise ImageError("damaged segments of a palette")
        if left:
            left -= 1
            if not left:
                position = back
    return np.array(found[:count], np.uint16)
