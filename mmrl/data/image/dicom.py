"""Parses DICOM files: the header values that are wanted, and the one frame as it is stored.

No text that someone typed into a header leaves it. pydicom finds the data elements of `KEYWORDS`
only and skips names, dates and private data. Their bytes are interpreted here, because pydicom's
conversions warn, log and raise with the values they met. A value that leaves is a number or a word
of a closed list. Errors are worded here for the same reason. They do not name the file, since its
name is often that of the patient; callers add a harmless name.

Lengths are checked before anything is allocated. Sections are those of the DICOM standard: PS3.3
(information objects), PS3.5 (encoding), PS3.16 (terms).
"""

import io
import logging
import math
import os
import re
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

import numpy as np
from pydicom import Dataset, uid
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.filereader import read_dataset

from mmrl.data.image.dicom_tables import Lut, expand_segments
from mmrl.data.image.kinds import MAX_BYTES, MAX_PIXELS, ImageError, kind_of
from mmrl.data.reading.rows import projection_name
from mmrl.types import InputError

T = TypeVar("T")

REASONS = (
    "unreadable_image",
    "multi_frame",
    "burned_in_annotation",
    "no_pixel_data",
    "too_large",
    "unsupported",
)
MAX_AGE = 120  # years; a higher age is a mistake
GREY = ("MONOCHROME1", "MONOCHROME2")
COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
PALETTE = "PALETTE COLOR"

_SEQUENCES = ("ModalityLUTSequence", "VOILUTSequence")
_COLOURS = ("Red", "Green", "Blue")
KEYWORDS = (
    *("Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "BitsStored", "HighBit"),
    *("PixelRepresentation", "PlanarConfiguration", "PhotometricInterpretation"),
    *("NumberOfFrames", "RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth"),
    *("VOILUTFunction", "PresentationLUTShape", "BurnedInAnnotation", "Modality"),
    *("ViewPosition", "PixelSpacing", "ImagerPixelSpacing", "ImageLaterality", "Laterality"),
    *("PatientSex", "PatientAge", "PatientPosition", "BodyPartExamined"),
    *_SEQUENCES,
    *(f"{colour}PaletteColorLookupTableDescriptor" for colour in _COLOURS),
    *(f"{colour}PaletteColorLookupTableData" for colour in _COLOURS),
    *(f"Segmented{colour}PaletteColorLookupTableData" for colour in _COLOURS),
)
_TAGS = {keyword: tag_for_keyword(keyword) or 0 for keyword in KEYWORDS}
_TABLE = (0x00283002, 0x00283006)  # LUTDescriptor, LUTData
_PIXEL_DATA = {0x7FE00010: "", 0x7FE00008: "of floats", 0x7FE00009: "of doubles"}
_UNDEFINED = 0xFFFFFFFF
_ITEM, _END_OF_ITEMS = 0xFFFEE000, 0xFFFEE0DD
_HEAD = 2**22  # bytes; the header of a deflated file must end within them
_TEXT = 1024  # bytes; longer values of codes and numbers are refused
_LUT_ENTRIES = 2**16


_lock = threading.Lock()  # for catch_warnings changes a list that all threads share
_silenced: int | None = None  # the thread that holds the lock


def _renew_lock() -> None:
    """Gives a forked process a free lock, should another thread of its parent hold it."""
    global _lock, _silenced
    _lock, _silenced = threading.Lock(), None


def _is_logged(record: logging.LogRecord) -> bool:
    """Drops what pydicom logs while it reads a file here, since it quotes header values."""
    return threading.get_ident() != _silenced


os.register_at_fork(after_in_child=_renew_lock)
logging.getLogger("pydicom").addFilter(_is_logged)


class DicomError(ImageError):
    """A DICOM file is refused; `reason` is one of REASONS, the message one line.

    Messages hold attribute names, sizes, kinds of failure and codes of closed lists: no other
    header value and no path. The exception has no cause or context, which could hold them.
    """


def guarded(work: Callable[[], T], what: str = "damaged DICOM file") -> T:
    """Returns work(); any exception becomes a DicomError without the text of the first.

    The new error is raised outside of `except`, because its context would otherwise hold the first
    exception, with its text and the stack frames that hold the header.
    """
    try:
        with np.errstate(all="ignore"):
            return work()
    except InputError as error:  # a DicomError, or of `containers`, which quotes no header
        message, reason = str(error), getattr(error, "reason", "unreadable_image")
    except Exception as error:
        message, reason = f"{what} ({type(error).__name__})", "unreadable_image"
    raise DicomError(message, reason)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences warnings and logs of pydicom. Threads take turns, so use it for short work only."""
    global _silenced
    with _lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _silenced = threading.get_ident()
        try:
            yield
        finally:
            _silenced = None


# --- parsing -------------------------------------------------------------------------------------


class Layout(NamedTuple):
    """How pixels are stored: the Image Pixel Module (PS3.3 C.7.6.3)."""

    height: int
    width: int
    samples: int
    allocated: int
    stored: int
    high: int
    signed: bool
    planar: bool
    photometric: str

    @property
    def frame_bytes(self) -> int:
        """Bytes of the frame when it is not compressed; single bits are packed (PS3.5 8.1.1)."""
        per_pixel = 2 if self.photometric == "YBR_FULL_422" else self.samples
        return -(-self.height * self.width * per_pixel * self.allocated // 8)


class DicomFile:
    """One parsed file. Header values are validated when they are read.

    Attributes:
      syntax: UID of the transfer syntax.
      little: whether numbers are little endian.

    Raises:
      DicomError: not a DICOM file, too large, or of damaged structure.
    """

    def __init__(self, data: bytes) -> None:
        if len(data) > MAX_BYTES:
            raise DicomError(f"{len(data)} bytes; expected at most {MAX_BYTES}", "too_large")
        if kind_of(data) != "DICOM":
            raise DicomError("no DICM at byte 128; expected a DICOM file")
        file = io.BytesIO(data)
        file.seek(132)
        with _quiet():
            meta = read_dataset(file, False, True, stop_when=_after_meta)
        value = self._value(_element(meta, 0x00020010))
        if not value:
            raise DicomError("no transfer syntax; expected one in the file's meta information")
        self.syntax = value.rstrip(b"\0 ").decode("ascii", "replace")
        if self.syntax not in uid.UID_dictionary:
            raise DicomError("unknown transfer syntax", "unsupported")
        self.little = self.syntax != uid.ExplicitVRBigEndian
        self._data, self._start, self._deflated = data, file.tell(), b""
        if self.syntax == uid.DeflatedExplicitVRLittleEndian:
            self._deflated, self._start = data[self._start :], 0
            self._data = _inflate(self._deflated, _HEAD)
        stream = io.BytesIO(self._data)
        stream.seek(self._start)
        with _quiet():
            self._fields = read_dataset(
                stream,
                self.syntax == uid.ImplicitVRLittleEndian,
                self.little,
                stop_when=_at_pixels,
                specific_tags=list(_TAGS.values()),
            )
        self._implicit = self._fields.original_encoding[0]  # as found, whatever was announced
        self._pixels = stream.tell()

    def count(self, keyword: str) -> int:
        """The number of values of an attribute that is written as text, blank ones included."""
        return self._bytes(keyword).count(b"\\") + 1

    def text(self, keyword: str, index: int = 0) -> str:
        """One value of an attribute, without padding; "" when absent."""
        value = self._bytes(keyword)
        if len(value) > _TEXT:
            raise DicomError(f"{keyword} has {len(value)} bytes; expected at most {_TEXT}")
        parts = value.decode("ascii", "replace").split("\\")
        return parts[index].strip("\0 ") if index < len(parts) else ""

    def number(self, keyword: str, index: int = 0) -> float | None:
        """One number of an attribute that is written as text; None when absent."""
        text = self.text(keyword, index)
        try:
            value = float(text) if text else None
        except ValueError:
            value = math.nan
        if value is not None and not math.isfinite(value):
            raise DicomError(f"{keyword} is not a number")
        return value

    def integer(self, keyword: str, default: int | None = None) -> int:
        """A 16-bit unsigned attribute; DicomError when it is absent and has no default."""
        value = self._bytes(keyword)
        if not value and default is not None:
            return default
        if len(value) != 2:
            given = f"{len(value)} bytes; expected 2" if value else "absent"
            raise DicomError(f"{keyword}: {given}")
        return self._unsigned(value)

    def lut(self, keyword: str, signed: bool) -> Lut | None:
        """The first table of a sequence, None when there is none.

        A table takes the place of a rescale or window (PS3.3 C.11.1, C.11.2). A sequence without
        items, or whose items lack descriptor or entries, takes the place of nothing.

        Args:
          keyword: ModalityLUTSequence or VOILUTSequence.
          signed: whether the input of the table may be negative, for files of implicit VR, which do
            not state it.
        """
        if _TAGS[keyword] not in self._fields:
            return None
        with _quiet():
            items = self._fields[_TAGS[keyword]].value or ()
            tables = [[_element(item, tag) for tag in _TABLE] for item in items]
        for descriptor, entries in tables:
            if _is_filled(descriptor) and _is_filled(entries):
                return self._lut(keyword, descriptor, entries, signed)
        return None

    def palette(self, signed: bool) -> list[Lut]:
        """The tables of red, green and blue (PS3.3 C.7.6.3.1.5, C.7.6.3.1.6, C.7.9.2).

        Args:
          signed: whether stored values may be negative, as for `lut`.

        Raises:
          DicomError: a table is absent or damaged.
        """
        tables = []
        for colour in _COLOURS:
            keyword = f"{colour}PaletteColorLookupTable"
            descriptor = _element(self._fields, _TAGS[f"{keyword}Descriptor"])
            entries = _element(self._fields, _TAGS[f"{keyword}Data"])
            segments = _element(self._fields, _TAGS[f"Segmented{keyword}Data"])
            segmented = not _is_filled(entries)
            data = segments if segmented else entries
            if not (_is_filled(descriptor) and _is_filled(data)):
                raise DicomError(f"no {keyword}; expected one for {PALETTE}")
            tables.append(self._lut(keyword, descriptor, data, signed, segmented=segmented))
            if tables[-1].bits not in (8, 16):
                raise DicomError(f"{keyword} of {tables[-1].bits} bits; expected 8 or 16")
        return tables

    def _lut(
        self,
        keyword: str,
        descriptor: object,
        entries: object,
        signed: bool,
        *,
        segmented: bool = False,
    ) -> Lut:
        raw, data = self._value(descriptor), self._value(entries)
        if len(raw) != 6 or not data or len(data) > 4 * _LUT_ENTRIES:
            raise DicomError(f"damaged {keyword}")
        stated = getattr(descriptor, "VR", None)
        signed = stated == "SS" or (signed and stated is None)
        count = self._unsigned(raw[:2]) or _LUT_ENTRIES
        first, bits = self._unsigned(raw[2:4]), self._unsigned(raw[4:])
        first -= 2**16 if signed and first >= 2**15 else 0
        if not 8 <= bits <= 16:
            raise DicomError(f"{keyword} of {bits} bits; expected 8 to 16", "unsupported")
        # Entries of 8 bits may take a byte or a word each; segments of them take bytes.
        packed = bits == 8 and (segmented or count <= len(data) < 2 * count)
        if packed and not self.little and getattr(entries, "VR", None) == "OW":
            data = _swapped(data)
        kind = "u1" if packed else "<u2" if self.little else ">u2"
        values = np.frombuffer(data, kind, len(data) // np.dtype(kind).itemsize)
        if segmented:
            values = expand_segments(values, count)
        if len(values) < count:
            raise DicomError(f"{keyword} holds fewer entries than its descriptor says")
        return Lut(first, bits, np.minimum(values[:count], 2**bits - 1).astype(np.uint16))

    def layout(self) -> Layout:
        """Reads the Image Pixel Module.

        Raises:
          DicomError: no image, several frames, too many pixels, an impossible or unsupported
            layout.
        """
        if not self._bytes("Rows") or not self._bytes("Columns"):
            raise DicomError("no Rows or Columns; expected an image", "no_pixel_data")
        frames = self.number("NumberOfFrames")
        if frames is not None and frames > 1:
            raise DicomError(f"{frames:.0f} frames; expected one", "multi_frame")
        height, width = self.integer("Rows"), self.integer("Columns")
        if height * width == 0:
            raise DicomError(f"{width} x {height} pixels")
        if height * width > MAX_PIXELS:
            size = f"{width} x {height} pixels; expected at most {MAX_PIXELS} in all"
            raise DicomError(size, "too_large")
        allocated = self.integer("BitsAllocated")
        stored = self.integer("BitsStored", allocated)
        layout = Layout(
            height,
            width,
            self.integer("SamplesPerPixel", 1),
            allocated,
            stored,
            self.integer("HighBit", max(stored - 1, 0)),
            self.integer("PixelRepresentation", 0) == 1,
            self.integer("PlanarConfiguration", 0) == 1,
            self.text("PhotometricInterpretation"),
        )
        # 32 bits hold doses and other quantities, whose range says nothing of black and white.
        if layout.allocated not in (1, 8, 16) or (layout.allocated == 1 and layout.samples > 1):
            given = f"{layout.samples} samples of {layout.allocated} bits allocated"
            raise DicomError(f"{given}; expected 8 or 16, or one of 1", "unsupported")
        if not 0 < layout.stored <= layout.high + 1 <= layout.allocated:
            raise DicomError(
                f"{layout.stored} bits stored up to bit {layout.high} of {layout.allocated}"
            )
        return layout

    def frame(self, layout: Layout) -> bytes | memoryview:
        """The bytes of the frame as they are stored, compressed or not.

        Raises:
          DicomError: no pixel data, cut short, or of another length than the layout describes.
        """
        header = self._data[self._pixels : self._pixels + 12]
        tag = self._unsigned(header[:2]) << 16 | self._unsigned(header[2:4])
        if tag not in _PIXEL_DATA:
            raise DicomError("no pixel data", "no_pixel_data")
        if _PIXEL_DATA[tag]:
            raise DicomError(f"pixel data {_PIXEL_DATA[tag]}", "unsupported")
        explicit = header[4:6].isalpha() and not self._implicit
        length = self._unsigned(header[8:12] if explicit else header[4:8])
        start = self._pixels + (12 if explicit else 8)
        if uid.UID(self.syntax).is_compressed and not self._deflated:
            if length != _UNDEFINED:
                raise DicomError("compressed pixel data are not encapsulated")
            return b"".join(_fragments(self._data, start))
        expected = layout.frame_bytes
        if length < expected or length - expected >= max(expected, 2):
            raise DicomError(f"{length} bytes of pixel data; the header describes {expected}")
        if self._deflated:
            self._data = _inflate(self._deflated, start + length)
        if len(self._data) < start + length:
            held = max(len(self._data) - start, 0)
            raise DicomError(f"truncated pixel data: {held} of {length} bytes")
        if not self.little and layout.allocated <= 8 and header[4:6] == b"OW":
            return _swapped(self._data[start : start + length])[:expected]
        return memoryview(self._data)[start : start + expected]

    def _unsigned(self, value: bytes) -> int:
        return int.from_bytes(value, "little" if self.little else "big")

    def _bytes(self, keyword: str) -> bytes:
        return self._value(_element(self._fields, _TAGS[keyword]))

    @staticmethod
    def _value(element: object) -> bytes:
        """The bytes of an element; b"" when it is absent, cut short or a sequence."""
        if not isinstance(element, RawDataElement) or not isinstance(element.value, bytes):
            return b""
        return element.value if element.length in (len(element.value), _UNDEFINED) else b""


def _after_meta(tag: int, vr: str | None, length: int) -> bool:
    return tag >> 16 != 2


def _at_pixels(tag: int, vr: str | None, length: int) -> bool:
    return tag in _PIXEL_DATA


def _element(fields: Dataset, tag: int) -> object:
    """An element as it was read; pydicom would convert an empty one, and fail at some."""
    return fields.get_item(tag, keep_deferred=True)


def _is_filled(element: object) -> bool:
    """Whether an attribute is there and has a value, even a damaged one."""
    return getattr(element, "value", None) not in (None, "", b"")


def _swapped(data: bytes) -> bytes:
    """Bytes that are stored as big-endian words of two, in their order (PS3.5 8.1)."""
    return np.frombuffer(data, ">u2", len(data) // 2).astype("<u2").tobytes()


def _inflate(data: bytes, limit: int) -> bytes:
    """Decompresses (PS3.5 A.5) to at most `limit` bytes."""
    return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, limit)


def _fragments(data: bytes, position: int) -> list[bytes]:
    """The fragments of encapsulated pixel data (PS3.5 A.4), without the offset table."""
    view, found = memoryview(data), []
    while True:
        head = view[position : position + 8]
        tag = int.from_bytes(head[:2], "little") << 16 | int.from_bytes(head[2:4], "little")
        length = int.from_bytes(head[4:8], "little")
        position += 8
        if len(head) < 8 or (tag == _ITEM and position + length > len(data)):
            raise DicomError(f"truncated pixel data: the file ends after {len(data)} bytes")
        if tag == _END_OF_ITEMS:
            break
        if tag != _ITEM:
            raise DicomError(f"damaged pixel data: no item at byte {position - 8}")
        found.append(bytes(view[position : position + length]))
        position += length
    if not found or not any(found[1:]):
        raise DicomError("no pixel data: their items are empty", "no_pixel_data")
    if len(found[0]) > 4:
        raise DicomError(f"offsets of {len(found[0]) // 4} frames; expected one", "multi_frame")
    return found[1:]


# --- header --------------------------------------------------------------------------------------


def _terms(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Defined terms. Any other value of a file becomes OTHER.
_MODALITIES = _terms("CR CT DX IO MG MR NM OT PT PX RF RG SC US XA")
_POSITIONS = _terms("HFP HFS HFDR HFDL FFP FFS FFDR FFDL LFP LFS RFP RFS AFDR AFDL")
_BODY_PARTS = _terms(  # of PS3.16 annex L, those that are radiographed
    "ABDOMEN ANKLE ARM BREAST CALCANEUS CHEST CHESTABDOMEN CHESTABDPELVIS CLAVICLE COCCYX CSPINE"
    " ELBOW EXTREMITY FEMUR FINGER FOOT FOREARM HAND HEAD HIP HUMERUS JAW KNEE LEG LSPINE LUNG"
    " MAXILLA NECK PELVIS RIB SACRUM SCAPULA SHOULDER SKULL SPINE SSPINE STERNUM THORAX THUMB"
    " TLSPINE TOE TSPINE WHOLEBODY WRIST ZYGOMA"
)
_PHOTOMETRICS = frozenset((*GREY, *COLOUR, PALETTE))
_DAYS = {"D": 1.0, "W": 7.0, "M": 365.25 / 12, "Y": 365.25, "": 365.25}


class Header(NamedTuple):
    """All header values that may leave a DICOM file.

    Attributes:
      height, width: in pixels.
      bits_stored: significant bits of a stored pixel.
      photometric: photometric interpretation, or OTHER.
      projection: PA, AP, FRONTAL, LATERAL, OTHER or UNKNOWN, as in ImageRef.
      modality: CR, DX, MG and the like, OTHER, or "" when not stated.
      spacing: (row, column) distance in mm: PixelSpacing, else ImagerPixelSpacing, else None.
      laterality: L, R, U, B or "".
      sex: M, F, O or "".
      age: in years, or None when not stated or above MAX_AGE.
      patient_position: HFS and the like, OTHER or "".
      body_part: a term of PS3.16 annex L, OTHER or "".
      burned_in: YES, NO or "".
      transfer_syntax: its UID.
    """

    height: int
    width: int
    bits_stored: int
    photometric: str
    projection: str
    modality: str
    spacing: tuple[float, float] | None
    laterality: str
    sex: str
    age: float | None
    patient_position: str
    body_part: str
    burned_in: str
    transfer_syntax: str


def inspect(data: bytes) -> Header:
    """Reads the header without the pixels, also of images with burned-in text.

    Args:
      data: the whole file.

    Raises:
      DicomError: no image, several frames, too many pixels, or a damaged header.
    """
    return guarded(lambda: header_of(DicomFile(data)))


def header_of(file: DicomFile) -> Header:
    """The header of a parsed file; a DicomError as for `inspect`."""
    layout = file.layout()
    laterality = _word(file, "ImageLaterality") or _word(file, "Laterality")
    position = _word(file, "ViewPosition")
    return Header(
        height=layout.height,
        width=layout.width,
        bits_stored=layout.stored,
        photometric=_known(layout.photometric, _PHOTOMETRICS, "OTHER"),
        projection="LATERAL" if position.upper() == "RL" else projection_name(position),
        modality=_known(_word(file, "Modality"), _MODALITIES, "OTHER"),
        spacing=_spacing(file, "PixelSpacing") or _spacing(file, "ImagerPixelSpacing"),
        laterality=_known(laterality, frozenset("LRUB")),
        sex=_known(_word(file, "PatientSex"), frozenset("MFO")),
        age=years(_word(file, "PatientAge")),
        patient_position=_known(_word(file, "PatientPosition"), _POSITIONS, "OTHER"),
        body_part=_known(_word(file, "BodyPartExamined"), _BODY_PARTS, "OTHER"),
        burned_in=_known(file.text("BurnedInAnnotation"), frozenset(("YES", "NO"))),
        transfer_syntax=_known(file.syntax, frozenset(uid.UID_dictionary), "OTHER"),
    )


def _known(value: str, terms: frozenset[str], other: str = "") -> str:
    """A value that is one of `terms`, "" for a blank one, `other` for any other."""
    value = value.upper()
    return value if value in terms or not value else other


def _word(file: DicomFile, keyword: str) -> str:
    """A value that describes the image and does not change it; "" when absent or too long."""
    try:
        return file.text(keyword)
    except DicomError:
        return ""


def _spacing(file: DicomFile, keyword: str) -> tuple[float, float] | None:
    try:
        row, column = file.number(keyword, 0), file.number(keyword, 1)
    except DicomError:
        return None
    if row is None or column is None or not (0 < row < 100 and 0 < column < 100):
        return None
    return row, column


def years(text: str) -> float | None:
    """Years of 058Y, 012M, 03W or 9D (PS3.5 6.2, AS), or of a number without unit, such as 54.0.

    None for other text, and for more than `MAX_AGE` years.
    """
    found = re.fullmatch(r"([0-9]{1,3}(?:\.[0-9]+)?)([DWMY]?)", text.strip().upper())
    age = float(found[1]) * _DAYS[found[2]] / _DAYS["Y"] if found else None
    return age if age is not None and age <= MAX_AGE else None
