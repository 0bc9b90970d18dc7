"""TIFF files of one image: are they whole, and a copy of them that says nothing but the pixels.

The directory is read here and not by Pillow, which would turn the image by its orientation tag,
warn of tags that say nothing of the pixels, and allocate what the file asks for.
"""

import struct
from typing import NamedTuple

import numpy as np

from mmrl.data.image.kinds import Header, ImageError, check_size, truncated
from mmrl.types import InputError

# Tags (TIFF 6.0, section 8 and appendix A) of one value, and of several.
_WIDTH, _HEIGHT, _COMPRESSION, _PHOTOMETRIC, _SAMPLES = 256, 257, 259, 262, 277
_STRIP_HEIGHT, _PLANAR, _TILE_WIDTH, _TILE_HEIGHT = 278, 284, 322, 323
_FILL_ORDER, _PREDICTOR = 266, 317
_BITS, _STRIPS, _STRIP_BYTES, _COLOURS, _TILES, _TILE_BYTES = 258, 273, 279, 320, 324, 325
_ALPHA, _FORMAT, _JPEG_TABLES, _SUBSAMPLING = 338, 339, 347, 530
_SINGLE = {_WIDTH, _HEIGHT, _COMPRESSION, _PHOTOMETRIC, _SAMPLES, _STRIP_HEIGHT, _PLANAR}
_SINGLE |= {_TILE_WIDTH, _TILE_HEIGHT, _FILL_ORDER, _PREDICTOR}
_LISTS = {_BITS, _STRIPS, _STRIP_BYTES, _COLOURS, _TILES, _TILE_BYTES, _ALPHA, _FORMAT}
_LISTS |= {_JPEG_TABLES, _SUBSAMPLING}
_TYPES = {3: "u2", 4: "u4", 7: "u1"}  # SHORT, LONG, UNDEFINED
_COMPRESSIONS = {1: "none", 5: "LZW", 7: "JPEG", 8: "deflate", 32946: "deflate", 32773: "PackBits"}
_JPEG, _YCBCR = 7, 6
# Photometric interpretation and samples -> bits of a sample: grey, also with alpha; RGB, also with
# alpha or a sample that is ignored; palette; YCbCr.
_LAYOUTS = {
    **dict.fromkeys([(0, 1), (1, 1)], (1, 2, 4, 8, 16)),
    **dict.fromkeys([(1, 2), (2, 3), (2, 4), (_YCBCR, 3)], (8,)),
    (3, 1): (1, 2, 4, 8),
}
_UNSIGNED = {1, 4}  # sample formats; 4 is "undefined"
_TILE_PIXELS = 2**22  # a tile may hold so many beside four times those of the image


class Plain(NamedTuple):
    """A TIFF file for a decoder.

    Attributes:
      data: the file with a directory of the tags that decide the pixels, and no others.
      inverted: whether the decoder gives 0 for white.
    """

    data: bytes
    inverted: bool


def inspect(data: bytes) -> Header:
    """Reads the directory of a TIFF file, and checks that what it names is in the file.

    Raises:
      InputError: cut short, damaged, or more than MAX_PIXELS pixels; an ImageError for several
        images in one file, or a layout or compression that is not supported.
    """
    return _Directory(data).check()


def plain(data: bytes) -> Plain:
    """A copy of a file that `inspect` has accepted."""
    directory = _Directory(data)
    # Pillow inverts images of up to 8 bits whose 0 is white, and no others.
    inverted = directory.value(_PHOTOMETRIC) == 0 and directory.value(_BITS, 1) == 16
    return Plain(directory.rewritten({_PHOTOMETRIC: 1} if inverted else {}), inverted)


class _Directory:
    """The first directory of a TIFF file (TIFF 6.0, section 2): the tags named above."""

    def __init__(self, data: bytes) -> None:
        self._data, self._order = data, "<" if data[:2] == b"II" else ">"
        if 43 in data[2:4]:
            raise ImageError("a BigTIFF; expected a TIFF of at most 4 GiB", "unsupported")
        (start,) = self._unpack("I", 4)
        (count,) = self._unpack("H", start)
        self._entries: dict[int, bytes] = {}
        for at in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, number = self._unpack("HHI", at)
            if tag not in _SINGLE | _LISTS:
                continue
            kinds = (7,) if tag == _JPEG_TABLES else (3, 4)
            if kind not in kinds or not number or (number > 1 and tag in _SINGLE):
                raise InputError(f"damaged TIFF: tag {tag} of {number} values of type {kind}")
            self._entries[tag] = data[at : at + 12]
            if len(self._held(tag)) < self._size(tag):
                raise truncated("TIFF", data)
        (following,) = self._unpack("I", start + 2 + 12 * count)
        if following:
            raise ImageError("a TIFF of several images; expected one", "multi_frame")

    def values(self, tag: int, default: int | None = None) -> np.ndarray:
        """All values of a tag, i64[N]."""
        if tag not in self._entries and default is None:
            raise InputError(f"damaged TIFF: no tag {tag}")
        if tag not in self._entries:
            return np.array([default])
        kind = f"{self._order}{self._type(tag)}"
        return np.frombuffer(self._held(tag), kind).astype(np.int64)

    def value(self, tag: int, default: int | None = None) -> int:
        return int(self.values(tag, default)[0])

    def check(self) -> Header:
        """Checks layout, size and the place of every strip or tile.

        Raises:
          InputError: as `inspect`.
        """
        header = Header("TIFF", self.value(_HEIGHT), self.value(_WIDTH))
        check_size(header)
        self._check_layout()
        if _STRIPS in self._entries:
            offsets, sizes = self.values(_STRIPS), self.values(_STRIP_BYTES)
            height, width = self.value(_STRIP_HEIGHT, header.height), header.width
            height = min(height, header.height)  # 2**32 - 1 stands for all rows
        else:
            offsets, sizes = self.values(_TILES), self.values(_TILE_BYTES)
            height, width = self.value(_TILE_HEIGHT), self.value(_TILE_WIDTH)
        if not 0 < height * width <= 4 * header.height * header.width + _TILE_PIXELS:
            raise InputError(f"damaged TIFF: parts of {width} x {height} pixels")
        down, across = -(-header.height // height), -(-header.width // width)
        samples = self.value(_SAMPLES, 1)
        planes = samples if self.value(_PLANAR, 1) == 2 else 1
        if not len(offsets) == len(sizes) == planes * down * across:
            expected = planes * down * across
            raise InputError(f"damaged TIFF: {len(offsets)} parts; its size needs {expected}")
        if (offsets + sizes).max() > len(self._data):
            raise truncated("TIFF", self._data)
        if self.value(_COMPRESSION, 1) == 1:  # Pillow does not look at their sizes
            rows = np.full(len(sizes), height)
            if _STRIPS in self._entries:
                rows[down - 1 :: down] = header.height - height * (down - 1)
            row = -(-width * self.value(_BITS, 1) * samples // (8 * planes))
            if np.any(sizes < rows * row):
                raise InputError("damaged TIFF: its parts have fewer bytes than pixels")
        return header

    def rewritten(self, replaced: dict[int, int]) -> bytes:
        """The file with this directory at its end; some tags get another value, a SHORT."""
        entries = dict(self._entries)
        for tag, value in replaced.items():
            entries[tag] = struct.pack(f"{self._order}HHIHH", tag, 3, 1, value, 0)
        data = self._data + b"\0" * (len(self._data) % 2)
        parts = (
            data[:4],
            struct.pack(f"{self._order}I", len(data)),
            data[8:],
            struct.pack(f"{self._order}H", len(entries)),
            *(entries[tag] for tag in sorted(entries)),
            b"\0\0\0\0",
        )
        return b"".join(parts)

    def _check_layout(self) -> None:
        compression = self.value(_COMPRESSION, 1)
        if compression not in _COMPRESSIONS:
            known = ", ".join(dict.fromkeys(_COMPRESSIONS.values()))
            raise ImageError(f"TIFF compression {compression}; expected {known}", "unsupported")
        if not _UNSIGNED.issuperset(self.values(_FORMAT, 1).tolist()):
            raise ImageError("a TIFF of signed or floating-point samples", "unsupported")
        photometric, samples = self.value(_PHOTOMETRIC), self.value(_SAMPLES, 1)
        bits = self.values(_BITS, 1)
        taken = _LAYOUTS.get((photometric, samples), ())
        if len(set(bits.tolist())) > 1 or bits[0] not in taken:
            raise ImageError(
                f"a TIFF of {samples} samples of {bits[0]} bits, photometric interpretation"
                f" {photometric}; expected grey of 1, 2, 4, 8 or 16 bits, or a palette or RGB of 8",
                "unsupported",
            )
        if photometric == _YCBCR and compression != _JPEG:
            raise ImageError("a TIFF of YCbCr that is not compressed as JPEG", "unsupported")
        if photometric == 3 and len(self.values(_COLOURS)) != 3 * 2 ** bits[0]:
            raise InputError("damaged TIFF: a palette of another size than its bits")

    def _unpack(self, layout: str, at: int) -> tuple[int, ...]:
        try:
            return struct.unpack_from(f"{self._order}{layout}", self._data, at)
        except struct.error:
            raise truncated("TIFF", self._data) from None

    def _type(self, tag: int) -> str:
        return _TYPES[struct.unpack_from(f"{self._order}H", self._entries[tag], 2)[0]]

    def _size(self, tag: int) -> int:
        """Bytes of the values of a tag."""
        (number,) = struct.unpack_from(f"{self._order}I", self._entries[tag], 4)
        return number * np.dtype(self._type(tag)).itemsize

    def _held(self, tag: int) -> bytes:
        """The bytes of the values of a tag, as many as are in the file."""
        size = self._size(tag)
        if size <= 4:
            return self._entries[tag][8 : 8 + size]
        (at,) = struct.unpack_from(f"{self._order}I", self._entries[tag], 8)
        return self._data[at : at + size]
