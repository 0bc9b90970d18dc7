"""Decodes DICOM images: decompression, then colour or the grey scale pipeline of PS3.3.

The header of a compressed frame must agree with that of the file before a decoder reads the frame,
so that a decoder allocates no more than the file's header says. A JPEG stream is rebuilt from the
segments that a single frame needs; all others are dropped.

The grey scale pipeline is computed in float64, once for every value that BitsStored bits can hold.
pydicom 3.0 has functions of the same purpose that work on pixels. They wrap the inputs of 8-bit
tables, turn negative slopes into inverted windows and overflow in the sigmoid.

Sections are those of the DICOM standard: PS3.3 (information objects), PS3.5 (encoding).
"""

from collections.abc import Callable
from typing import NamedTuple

import cv2
import imagecodecs
import numpy as np
import openjpeg
from pydicom import uid

from mmrl.data.image import jpeg_lossless
from mmrl.data.image.containers import jpeg_segments
from mmrl.data.image.dicom import (
    COLOUR,
    GREY,
    PALETTE,
    DicomError,
    DicomFile,
    Header,
    Layout,
    guarded,
    header_of,
)
from mmrl.data.image.dicom_tables import look_up

NATIVE = {
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
    uid.DeflatedExplicitVRLittleEndian,
}
_LOSSY, _LOSSLESS, _LS = frozenset({0xC0, 0xC1, 0xC2}), frozenset({0xC3}), frozenset({0xF7})
# Transfer syntax -> markers of the frames that it may hold (ITU-T T.81, T.87).
JPEG: dict[str, frozenset[int]] = {
    uid.JPEGBaseline8Bit: _LOSSY,
    uid.JPEGExtended12Bit: _LOSSY,
    uid.JPEGLossless: _LOSSLESS,
    uid.JPEGLosslessSV1: _LOSSLESS,
    uid.JPEGLSLossless: _LS,
    uid.JPEGLSNearLossless: _LS,
}
JPEG_2000 = {
    uid.JPEG2000Lossless,
    uid.JPEG2000,
    uid.HTJ2KLossless,
    uid.HTJ2KLosslessRPCL,
    uid.HTJ2K,
}
_MAX_TILES = 4096  # the decoder allocates several KiB for each before it reads any
_MAX_PRECINCTS = 2**16  # the decoder allocates some hundred bytes for each
_TABLES = {0xC4, 0xDB, 0xDD, 0xF8}  # Huffman, quantisation, restart interval, JPEG-LS parameters
_ROWS = 256  # rows of colour converted at a time
_LUMA = (0.299, 0.587, 0.114)  # of red, green and blue: Rec. 601


class Frame(NamedTuple):
    """A frame that agrees with its layout; `data` is the input of the decoder."""

    data: bytes | memoryview
    precision: int
    marker: int = 0  # of the JPEG frame header


def decode(data: bytes, *, allow_burned_in: bool = False, colour: bool = False) -> np.ndarray:
    """Decodes a DICOM file of one frame, 0 black, over its dtype's full range.

    The steps are: decompression, modality LUT or rescale (PS3.3 C.11.1), VOI LUT or the first
    window (C.11.2), inversion of MONOCHROME1 (C.7.6.3.1.2), and scaling to 8 or 16 bits, depending
    on BitsStored. Where the file has neither VOI LUT nor window, the representable range becomes
    the full range. Colour, also that of a palette (C.7.6.3.1.5), becomes Rec. 601 luma unless it is
    asked for. Bits above BitsStored, which may hold overlays, are ignored.

    Optional attributes that are absent, empty or half filled say nothing: no frames, one; no slope,
    1; no intercept, 0; no item with descriptor and entries, no table; no window with centre and
    width, no window; no VOI LUT function, LINEAR (C.11.2.1.3). Other values that the standard does
    not allow are refused, since what they meant is unknown.

    Args:
      data: the whole file.
      allow_burned_in: accept images whose header says that text is burned into the pixels.
      colour: return red, green and blue; grey images are repeated.

    Returns:
      u8[H, W] up to 8 bits stored, else u16[H, W]; [H, W, 3] with `colour`. For a palette the bits
      of its entries count.

    Raises:
      DicomError: the file cannot be decoded; see its `reason`.
    """

    def work() -> np.ndarray:
        file = DicomFile(data)
        return _decode(file, _layout(file, allow_burned_in), colour)

    return guarded(work)


def check(data: bytes, *, allow_burned_in: bool = False) -> Header:
    """Checks a file as far as possible without decoding its pixels, and returns its header.

    Finds a wrong header, pixel data cut short or of another size, and damaged lookup tables.

    Raises:
      DicomError: as `decode`, except for damage within compressed data.
    """

    def work() -> Header:
        file = DicomFile(data)
        layout = _layout(file, allow_burned_in)
        _frame(file, layout)
        if layout.samples == 1:
            _table(file, layout, colour=False)
        return header_of(file)

    return guarded(work)


def _layout(file: DicomFile, allow_burned_in: bool) -> Layout:
    if not allow_burned_in and file.text("BurnedInAnnotation").upper() == "YES":
        raise DicomError(
            "burned_in_annotation: the file says that its pixels hold text, perhaps a name",
            "burned_in_annotation",
        )
    return file.layout()


# --- frames --------------------------------------------------------------------------------------


def _frame(file: DicomFile, layout: Layout) -> Frame:
    """Finds the frame and checks its own header, without decoding.

    Raises:
      DicomError: an unsupported transfer syntax or photometric interpretation; no pixel data,
        cut short, or of another size than the file's header says.
    """
    if file.syntax not in NATIVE | JPEG.keys() | JPEG_2000 | {uid.RLELossless}:
        raise DicomError(f"transfer syntax {file.syntax}", "unsupported")
    if layout.allocated == 1 and file.syntax not in NATIVE:
        raise DicomError("compressed pixels of 1 bit", "unsupported")
    wanted = {1: (*GREY, PALETTE), 3: COLOUR}.get(layout.samples, ())
    if layout.photometric not in wanted or (layout.samples == 3 and layout.signed):
        known = layout.photometric in (*GREY, *COLOUR, PALETTE)
        kind = layout.photometric if known else "of unknown kind"
        raise DicomError(
            f"{layout.samples} {'signed ' * layout.signed}samples per pixel, photometric"
            f" interpretation {kind}; expected one of {', '.join((*GREY, PALETTE))}, or three of"
            f" {', '.join(COLOUR)}",
            "unsupported",
        )
    if layout.photometric == "YBR_FULL_422" and file.syntax in NATIVE | {uid.RLELossless}:
        native = file.syntax in NATIVE and layout.allocated == 8 and layout.width % 2 == 0
        if not native or layout.planar:
            raise DicomError("YBR_FULL_422 outside 8-bit pairs of pixels", "unsupported")
    data = file.frame(layout)
    if file.syntax in JPEG:
        frame, size = _check_jpeg(bytes(data), JPEG[file.syntax], layout.photometric)
    elif file.syntax in JPEG_2000:
        frame, size = _check_jpeg_2000(bytes(data))
    else:
        return Frame(data, layout.allocated)
    if size != (layout.height, layout.width, layout.samples) or frame.precision > layout.allocated:
        raise DicomError(
            f"the compressed frame has {size[1]} x {size[0]} pixels of {size[2]} samples of"
            f" {frame.precision} bits; the header describes {layout.width} x {layout.height} of"
            f" {layout.samples} of {layout.allocated}"
        )
    return frame


def _decode(file: DicomFile, layout: Layout, colour: bool) -> np.ndarray:
    """The frame as of `decode`."""
    frame = _frame(file, layout)
    table = _table(file, layout, colour) if layout.samples == 1 else np.empty(0)
    cells = _cells(file, layout, frame, colour)
    if layout.samples == 1:
        if cells.shape != (layout.height, layout.width):
            raise DicomError("the compressed frame decodes to another size")
        made = table[_masked(cells, layout)]
        return np.repeat(made[..., None], 3, axis=2) if colour and made.ndim == 2 else made
    if colour and cells.ndim == 2:
        raise DicomError("the compressed frame decodes to one sample per pixel")
    # Lossy JPEG of 8 bits comes as red, green and blue.
    converted = file.syntax in JPEG and _is_plain(frame)
    stored = layout.photometric in ("YBR_FULL", "YBR_FULL_422") and not converted
    make = (_of_ybr if stored else _unchanged) if colour else (_first if stored else _luma)
    return _scaled(cells, layout, make)


def _cells(file: DicomFile, layout: Layout, frame: Frame, colour: bool) -> np.ndarray:
    """u8 or u16 [H, W], or [H, W, 3]: values in the lowest BitsStored bits, any bits above them."""
    if file.syntax in JPEG:
        return guarded(lambda: _decode_jpeg(frame, layout.samples, colour), "damaged JPEG")
    if file.syntax in JPEG_2000:
        cells = guarded(lambda: openjpeg.decode(bytes(frame.data)), "damaged JPEG 2000")
        size = layout.allocated // 8  # widened before the sign is dropped
        return cells.astype(f"{cells.dtype.kind}{size}", copy=False).view(f"u{size}")
    size, shape = layout.allocated // 8, (layout.height, layout.width)
    if layout.allocated == 1:  # the first pixel is the lowest bit of the first byte
        packed = np.frombuffer(frame.data, np.uint8)
        return np.unpackbits(packed, count=shape[0] * shape[1], bitorder="little").reshape(shape)
    if file.syntax == uid.RLELossless:
        planes = _decode_rle(bytes(frame.data), layout.samples * size, layout.height * layout.width)
        data = np.ascontiguousarray(planes.reshape(layout.samples, size, -1).swapaxes(1, 2))
        cells = data.view(f">u{size}").reshape(layout.samples, *shape)
        cells = np.moveaxis(cells, 0, -1) if layout.samples > 1 else cells[0]
    else:
        cells = np.frombuffer(frame.data, f"{'<' if file.little else '>'}u{size}")
        if layout.photometric == "YBR_FULL_422":  # Y Y Cb Cr
            pairs = cells.reshape(-1, 4)
            if not colour:
                return pairs[:, :2].reshape(shape)
            return pairs[:, [0, 2, 3, 1, 2, 3]].reshape(*shape, 3)
        if layout.samples == 1:
            cells = cells.reshape(shape)
        elif layout.planar:
            cells = np.moveaxis(cells.reshape(layout.samples, *shape), 0, -1)
        else:
            cells = cells.reshape(*shape, layout.samples)
    shift = layout.high + 1 - layout.stored
    cells = cells.astype(cells.dtype.newbyteorder("="), copy=False)
    return cells >> np.array(shift, cells.dtype) if shift else cells


def _masked(cells: np.ndarray, layout: Layout) -> np.ndarray:
    """Clears the bits above BitsStored."""
    top = min(2**layout.stored - 1, np.iinfo(cells.dtype).max)
    return cells & np.array(top, cells.dtype)


# --- grey scale pipeline -------------------------------------------------------------------------


def _table(file: DicomFile, layout: Layout, colour: bool) -> np.ndarray:
    """What each stored value of BitsStored bits shows: u8 or u16 [2**stored].

    With `colour` and a palette, [2**stored, 3].
    """
    values = np.arange(2**layout.stored)
    if layout.signed:
        values = np.where(values < 2 ** (layout.stored - 1), values, values - 2**layout.stored)
    if layout.photometric == PALETTE:
        return _palette_table(file, layout, values, colour)
    return _grey_table(file, layout, values)


def _palette_table(file: DicomFile, layout: Layout, values: np.ndarray, colour: bool) -> np.ndarray:
    """The colours of `values` (PS3.3 C.7.6.3.1.5), or their luma: u8 or u16, as the entries are.

    No other transform applies to a palette.
    """
    tables = file.palette(layout.signed)
    dtype = np.uint8 if max(table.bits for table in tables) == 8 else np.uint16
    parts = [
        share * look_up(table, values) * (np.iinfo(dtype).max / (2**table.bits - 1))
        for share, table in zip((1, 1, 1) if colour else _LUMA, tables, strict=True)
    ]
    return np.rint(np.stack(parts, axis=-1) if colour else sum(parts)).astype(dtype)


def _grey_table(file: DicomFile, layout: Layout, values: np.ndarray) -> np.ndarray:
    """The grey level of each of `values`: u8 or u16, as BitsStored.

    Modality LUT or rescale (PS3.3 C.11.1), VOI LUT or the first window (C.11.2), then inversion for
    MONOCHROME1 or a presentation LUT shape INVERSE (C.7.6.3.1.2, C.8.11.3.1.2). Digital radiographs
    state both, which is one inversion. Without VOI LUT and window, black and white are the ends of
    the range of the modality transform, not those of this image.

    Raises:
      DicomError: a transform that is damaged or unknown, or leaves no range.
    """
    levels, low, high = _modality(file, values, layout.signed)
    if lut := file.lut("VOILUTSequence", bool(low < 0)):
        share = look_up(lut, levels) / (2**lut.bits - 1)
    else:
        share = _window(file, levels)
        if share is None:
            share = (levels - low) / (high - low)
    inverse = file.text("PresentationLUTShape").upper() == "INVERSE"
    if inverse or layout.photometric == "MONOCHROME1":
        share = 1 - share
    dtype = np.uint8 if layout.stored <= 8 else np.uint16
    return np.rint(np.clip(share, 0, 1) * np.iinfo(dtype).max).astype(dtype)


def _modality(file: DicomFile, values: np.ndarray, signed: bool) -> tuple[np.ndarray, float, float]:
    """The values after the modality transform, and the lowest and highest that it can give."""
    if lut := file.lut("ModalityLUTSequence", signed):
        return look_up(lut, values), 0.0, 2.0**lut.bits - 1
    slope, intercept = file.number("RescaleSlope"), file.number("RescaleIntercept")
    if slope == 0:
        raise DicomError("RescaleSlope is 0")
    levels = values * (1.0 if slope is None else slope) + (intercept or 0.0)
    low, high = float(levels.min()), float(levels.max())
    if not 0 < high - low < np.inf:
        raise DicomError("RescaleSlope and RescaleIntercept leave no range")
    return levels, low, high


def _window(file: DicomFile, levels: np.ndarray) -> np.ndarray | None:
    """Applies the first window (PS3.3 C.11.2.1.2, C.11.2.1.3) to 0..1; None without a window."""
    for index in range(file.count("WindowCenter")):
        centre, width = file.number("WindowCenter", index), file.number("WindowWidth", index)
        if centre is not None and width is not None:
            break
    else:
        return None
    function = file.text("VOILUTFunction").upper() or "LINEAR"
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        raise DicomError(
            "unknown VOILUTFunction; expected LINEAR, LINEAR_EXACT or SIGMOID", "unsupported"
        )
    if width <= 0 or (function == "LINEAR" and width < 1):
        raise DicomError("WindowWidth is too small for its VOILUTFunction")
    if function == "SIGMOID":
        return 1 / (1 + np.exp(-4 * (levels - centre) / width))
    if function == "LINEAR":
        centre, width = centre - 0.5, width - 1
    if width == 0:
        return (levels > centre).astype(np.float64)
    return np.clip((levels - centre) / width + 0.5, 0, 1)


def _scaled(
    cells: np.ndarray, layout: Layout, make: Callable[[np.ndarray, int], np.ndarray]
) -> np.ndarray:
    """Converts samples to u8 or u16 of the full range.

    Args:
      cells: u8 or u16 [H, W, 3]; [H, W] is luma already.
      make: (f64[h, W, 3], BitsStored) -> f64[h, W] or [h, W, 3] of the same range.
    """
    if cells.shape[:2] != (layout.height, layout.width) or cells.shape[2:] not in ((), (3,)):
        raise DicomError("the compressed frame decodes to another size")
    top = 2**layout.stored - 1
    dtype = np.uint8 if layout.stored <= 8 else np.uint16
    made = []
    for row in range(0, layout.height, _ROWS):
        block = _masked(cells[row : row + _ROWS], layout).astype(np.float64)
        if block.ndim == 3:
            block = make(block, layout.stored)
        made.append(np.rint(block * np.iinfo(dtype).max / top).astype(dtype))
    return np.concatenate(made)


def _luma(samples: np.ndarray, stored: int) -> np.ndarray:
    return samples @ _LUMA


def _first(samples: np.ndarray, stored: int) -> np.ndarray:
    """The Y of YBR, which is luma (C.7.6.3.1.2)."""
    return samples @ [1.0, 0, 0]


def _unchanged(samples: np.ndarray, stored: int) -> np.ndarray:
    return samples


def _of_ybr(samples: np.ndarray, stored: int) -> np.ndarray:
    """YBR_FULL to red, green and blue (PS3.3 C.7.6.3.1.2, the inverse of its equations)."""
    luma, blue, red = np.moveaxis(samples - [0, 2 ** (stored - 1), 2 ** (stored - 1)], -1, 0)
    parts = (luma + 1.402 * red, luma - 0.344136 * blue - 0.714136 * red, luma + 1.772 * blue)
    return np.clip(np.stack(parts, axis=-1), 0, 2**stored - 1)


# --- compressed frames ---------------------------------------------------------------------------


def _decode_rle(data: bytes, count: int, length: int) -> np.ndarray:
    """Unpacks `count` segments of `length` bytes (PS3.5 annex G): u8[count, length].

    Bytes beyond `length` are dropped.
    """
    words = np.frombuffer(data[:64].ljust(64, b"\0"), "<u4").tolist()
    if words[0] != count or count > 15:
        raise DicomError(f"{words[0]} RLE segments; the header describes {count}")
    bounds = [*words[1 : count + 1], len(data)]
    planes = np.empty((count, length), np.uint8)
    for index in range(count):
        segment, out = data[bounds[index] : bounds[index + 1]], bytearray()
        position = 0
        while len(out) < length and position + 1 < len(segment):
            code = segment[position]
            if code < 128:
                out += segment[position + 1 : position + 2 + code]
                position += 2 + code
            else:
                if code > 128:
                    out += segment[position + 1 : position + 2] * (257 - code)
                position += 2 if code > 128 else 1
        if len(out) < length:
            raise DicomError(f"truncated RLE segment: {len(out)} of {length} bytes")
        planes[index] = np.frombuffer(out, np.uint8, length)
    return planes


def _check_jpeg(
    data: bytes, kinds: frozenset[int], photometric: str
) -> tuple[Frame, tuple[int, int, int]]:
    """Checks a JPEG (ITU-T T.81, annex B) and rebuilds it from the segments that it needs."""
    kept: list[bytes] = []
    marker, start, scans, transform = 0, b"", 0, None
    for kind, body, begin, end in jpeg_segments(data):
        if kind in kinds and not marker and len(body) >= 6:
            marker, start = kind, bytes(body)
        elif kind == 0xDA and marker:
            scans += 1
        elif kind == 0xEE and body[:5] == b"Adobe" and len(body) == 12:
            transform = body[11]
        elif kind == 0xE0 and body[:4] == b"JFIF":
            transform = 1 if transform is None else transform
        elif kind not in _TABLES and not 0xE0 <= kind <= 0xFE:
            raise DicomError(f"damaged or unsupported JPEG: segment {kind:02X}")
        if not (0xE0 <= kind <= 0xEF or kind == 0xFE):
            kept.append(data[begin:end])
    if not scans:
        raise DicomError("damaged JPEG: it ends without a scan")
    components = start[5]
    if components == 3 and marker in _LOSSY:  # a decoder left without it would guess by names
        transform = int(photometric != "RGB") if transform is None else transform
        kept.insert(0, b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0" + bytes([transform]))
    size = (int.from_bytes(start[1:3]), int.from_bytes(start[3:5]), components)
    return Frame(b"\xff\xd8" + b"".join(kept) + b"\xff\xd9", start[0], marker), size


def _is_plain(frame: Frame) -> bool:
    """Whether a JPEG is lossy and of 8 bits, as files outside of DICOM are."""
    return frame.marker in _LOSSY and frame.precision == 8


def _decode_jpeg(frame: Frame, samples: int, colour: bool) -> np.ndarray:
    """u8 or u16 [H, W] or [H, W, 3].

    Of colour in a lossy JPEG of 8 bits: red, green and blue with `colour`, else luma, [H, W].
    imagecodecs decodes by libjpeg-turbo and, for JPEG-LS, by CharLS.
    """
    if _is_plain(frame):
        kept = cv2.IMREAD_ANYCOLOR if colour else cv2.IMREAD_GRAYSCALE
        flags = kept | cv2.IMREAD_IGNORE_ORIENTATION
        pixels = cv2.imdecode(np.frombuffer(frame.data, np.uint8), flags)
        if pixels is None:
            raise DicomError("damaged JPEG: its pixels cannot be decoded")
        return pixels[..., ::-1] if pixels.ndim == 3 else pixels
    data = bytes(frame.data)
    if frame.marker in _LS:
        return imagecodecs.jpegls_decode(data)
    # From RGB to RGB: the samples stay as they are stored, whatever they are.
    space = "RGB" if samples == 3 else None
    pixels = imagecodecs.jpeg8_decode(data, colorspace=space, outcolorspace=space)
    if frame.marker in _LOSSLESS:
        jpeg_lossless.check(data, pixels)
    return pixels


def _check_jpeg_2000(data: bytes) -> tuple[Frame, tuple[int, int, int]]:
    """Checks the SIZ segment (ITU-T T.800, A.5.1) and the end of the codestream."""
    start = data.find(b"\xff\x4f\xff\x51") if data[4:8] == b"jP  " else 0
    data = data[max(start, 0) :].rstrip(b"\0\xff")  # what pads a fragment to an even length
    if data[:4] != b"\xff\x4f\xff\x51" or len(data) < 42:
        raise DicomError("damaged JPEG 2000: it does not begin with its size")
    if not data.endswith(b"\xff\xd9"):
        raise DicomError(f"truncated JPEG 2000: its data stop after {len(data)} bytes")
    x1, y1, x0, y0, tile_x, tile_y, tile_x0, tile_y0 = np.frombuffer(data, ">u4", 8, 8).tolist()
    components = int.from_bytes(data[40:42])
    parts = {data[42 + 3 * index : 45 + 3 * index] for index in range(min(components, 4))}
    if len(parts) != 1 or next(iter(parts))[1:] != b"\1\1":
        raise DicomError("JPEG 2000 of components that differ in depth or size", "unsupported")
    if not (tile_x and tile_y and x0 < x1 and y0 < y1 and tile_x0 <= x0 and tile_y0 <= y0):
        raise DicomError("damaged JPEG 2000: impossible tiles")
    tiles = -(-(x1 - tile_x0) // tile_x) * -(-(y1 - tile_y0) // tile_y)
    if tiles > _MAX_TILES:
        raise DicomError(f"JPEG 2000 of {tiles} tiles; expected at most {_MAX_TILES}", "too_large")
    _check_coding(data, (x1 - x0, y1 - y0), (tile_x, tile_y))
    precision = (next(iter(parts))[0] & 0x7F) + 1
    return Frame(data, precision), (y1 - y0, x1 - x0, components)


def _check_coding(data: bytes, image: tuple[int, int], tile: tuple[int, int]) -> None:
    """Refuses coding styles (ITU-T T.800, A.6.1, A.6.2) of more parts than an image needs.

    A file of 2 KiB can declare millions of precincts or code-blocks, which a decoder allocates
    before it finds them empty. A style of the main header is for the whole image, one of a
    tile-part for its tile; their precincts are added up.

    Args:
      image, tile: width and height in pixels.
    """
    position, end_of_part, precincts = 2, 0, 0
    width, height = image
    while (marker := data[position : position + 2]) and marker != b"\xff\xd9":
        if marker == b"\xff\x93":  # data of a tile-part
            position = end_of_part
            continue
        if len(marker) < 2 or marker[0] != 0xFF:
            raise DicomError(f"damaged JPEG 2000: expected a marker at byte {position}")
        size = int.from_bytes(data[position + 2 : position + 4])
        body = data[position + 4 : position + 2 + size]
        if marker == b"\xff\x90":  # start of a tile-part, with its length; 0 is to the end
            length = int.from_bytes(body[2:6])
            end_of_part = position + length if length else len(data) - 2
            if not position + 12 <= end_of_part <= len(data) - 2:
                raise DicomError("truncated JPEG 2000: a tile-part exceeds the data")
            width, height = (min(sides) for sides in zip(image, tile, strict=True))
        elif marker in (b"\xff\x52", b"\xff\x53"):
            style = body[0:1] + body[5:] if marker == b"\xff\x52" else body[1:]
            if len(style) < 6 or style[2] + style[3] < 4:  # code-blocks below 256 pixels
                raise DicomError("JPEG 2000 of tiny code-blocks", "unsupported")
            levels = style[1]
            for level, exponents in enumerate(style[6:] if style[0] & 1 else b""):
                scale = max(levels - level, 0)
                columns = (width >> scale + (exponents & 15)) + 1
                precincts += columns * ((height >> scale + (exponents >> 4)) + 1)
            if precincts > _MAX_PRECINCTS:
                raise DicomError(f"JPEG 2000 of {precincts} precincts", "too_large")
        position += 2 + max(size, 2)
