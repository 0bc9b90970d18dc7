"""The containers of image files: is a file whole, and how large is its image?

Nothing is decoded, yet every file that was cut short is found, even one that lacks only its end
marker, and every PNG chunk with a wrong checksum. OpenCV decodes such files without an error.
"""

# Pillow does not check the same. Its `verify` accepts every JPEG that was cut short behind its
# header, and a PNG that lost the last four bytes. It refuses PNG files whose text, colour or
# animation chunks it cannot parse, which say nothing of the pixels and which OpenCV decodes.

import re
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from mmrl.data.image import tiff
from mmrl.data.image.kinds import Header, ImageError, check_size, kind_of, truncated, unknown
from mmrl.types import InputError

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_GREY = 0  # colour type (PNG specification, third edition, section 11.2.1)
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # markers of JPEG frame headers
_JPEG_LS = 0xF7  # its frame header (ITU-T T.87)
# Entropy-coded data end at the first 0xFF that is not stuffing (FF00), restart or fill (FFFF).
# JPEG-LS stuffs a bit, not a byte.
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_LS_MARKER = re.compile(rb"\xff[\x80-\xcf\xd8-\xfe]")


class Segment(NamedTuple):
    """A segment of a JPEG file.

    Attributes:
      marker: its second byte, such as 0xDA for the start of a scan.
      body: its parameters, without marker and length.
      start, stop: where it lies in the file; the entropy-coded data of a scan belong to it.
    """

    marker: int
    body: memoryview
    start: int
    stop: int


def inspect(data: bytes) -> Header:
    """Walks the container of a JPEG, PNG, TIFF or WebP from its first byte to its last.

    Raises:
      InputError: of another kind, cut short, damaged, or more than MAX_PIXELS pixels; an ImageError
        for several images in one file, or TIFF that is not supported.
    """
    walk = _WALKS.get(kind_of(data))
    if walk is None:
        raise unknown(data)
    header = walk(data)
    check_size(header)
    return header


def jpeg_segments(data: bytes) -> Iterator[Segment]:
    """Yields the segments between start and end marker (ITU-T T.81, annex B).

    Raises:
      InputError: no start marker, no marker where one is due, or no end marker.
    """
    if not data.startswith(b"\xff\xd8"):
        raise InputError("damaged JPEG: it does not begin with a start marker")
    view, position, end_of_scan = memoryview(data), 2, _MARKER
    while position + 2 <= len(data):
        start, marker = position, data[position + 1]
        if data[position] != 0xFF:
            raise InputError(f"damaged JPEG: expected a marker at byte {position}")
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        if marker == 0xD9:
            return
        body, position = view[:0], position + 2
        if marker != 0x01 and not 0xD0 <= marker <= 0xD7:  # those have no parameters
            length = int.from_bytes(view[position : position + 2])
            body = view[position + 2 : position + length]
            position += max(length, 2)
        if marker == _JPEG_LS:
            end_of_scan = _LS_MARKER
        elif marker == 0xDA:
            found = end_of_scan.search(data, position)
            position = found.start() if found else len(data)
        yield Segment(marker, body, start, position)
    raise InputError(
        f"truncated JPEG: its data stop after {len(data)} bytes, before the end marker"
    )


def _inspect_jpeg(data: bytes) -> Header:
    frame = None
    for segment in jpeg_segments(data):
        if segment.marker in _FRAMES:
            frame = segment.body
    if frame is None:
        raise InputError("damaged JPEG: it ends without a frame")
    return Header("JPEG", int.from_bytes(frame[1:3]), int.from_bytes(frame[3:5]))


def _inspect_png(data: bytes) -> Header:
    """Reads chunk after chunk to IEND (PNG specification, third edition, section 5)."""
    view = memoryview(data)
    header, depth, colour = None, 0, 0
    position = len(_PNG_SIGNATURE)
    while True:
        end = position + 12 + int.from_bytes(view[position : position + 4])
        if position + 12 > len(data) or end > len(data):
            raise InputError(f"truncated PNG: its data stop after {len(data)} bytes, before IEND")
        kind, body = bytes(view[position + 4 : position + 8]), view[position + 8 : end - 4]
        if zlib.crc32(view[position + 4 : end - 4]) != int.from_bytes(view[end - 4 : end]):
            raise InputError(f"damaged PNG: checksum of the chunk at byte {position} is wrong")
        if header is None:
            if kind != b"IHDR" or len(body) != 13:
                raise InputError("damaged PNG: it does not begin with a header")
            width, height = int.from_bytes(body[:4]), int.from_bytes(body[4:8])
            depth, colour = body[8], body[9]
            header = Header("PNG", height, width)
        elif kind == b"tRNS" and colour == _PNG_GREY and len(body) == 2:
            scale = 255 // (2**depth - 1) if depth < 8 else 1  # as the decoder widens to 8 bits
            header = header._replace(transparent_grey=int.from_bytes(body) * scale)
        elif kind == b"IEND":
            return header
        position = end


def _inspect_webp(data: bytes) -> Header:
    """Walks the chunks of a WebP (RFC 9649, section 2)."""
    view, found, canvas = memoryview(data), [], None
    position, end = 12, 8 + int.from_bytes(view[4:8], "little")
    while position < end:
        kind = bytes(view[position : position + 4])
        length = int.from_bytes(view[position + 4 : position + 8], "little")
        body = bytes(view[position + 8 : position + 18])
        position += 8 + length
        if max(position, end) > len(data):
            raise truncated("WebP", data)
        if kind in (b"ANIM", b"ANMF"):
            raise ImageError("an animated WebP; expected one image", "multi_frame")
        if kind == b"VP8X":
            width, height = (int.from_bytes(body[at : at + 3], "little") + 1 for at in (4, 7))
            canvas = Header("WebP", height, width)
        elif kind == b"VP8 " and body[3:6] == b"\x9d\1\x2a":
            width, height = (int.from_bytes(body[at : at + 2], "little") for at in (6, 8))
            found.append(Header("WebP", height & 0x3FFF, width & 0x3FFF))
        elif kind == b"VP8L" and body[:1] == b"\x2f":
            sides = int.from_bytes(body[1:5], "little")
            found.append(Header("WebP", (sides >> 14 & 0x3FFF) + 1, (sides & 0x3FFF) + 1))
        position += length % 2
    if len(found) != 1 or canvas not in (None, found[0]):
        raise InputError("damaged WebP: expected one image, as large as its canvas")
    return found[0]


_WALKS = {"PNG": _inspect_png, "JPEG": _inspect_jpeg, "TIFF": tiff.inspect, "WebP": _inspect_webp}
