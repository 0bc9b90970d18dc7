"""DICOM radiographs: one frame to grey levels, and a header that names nobody.

What leaves a header is a fixed list of attributes. Each is a number, a word from a closed list,
or an identifier hashed with a key, so text that someone typed into a field cannot leave by any of
them. Errors are in our own words for the same reason, and do not name the file: its name is often
the patient's or a UID. Callers that know a harmless name for it add that.

Sections are those of the DICOM standard: PS3.3 (information objects), PS3.5 (encoding).
"""

import hashlib
import os
import re
import secrets
import stat
from typing import NamedTuple

import numpy as np
from pydicom import uid

from mmrl.data.image import dicom_pixels
from mmrl.data.image.dicom_file import REASONS, DicomError, DicomFile, guarded
from mmrl.data.image.images import MAX_BYTES
from mmrl.data.reading.rows import projection_name
from mmrl.types import InputError

__all__ = [
    "REASONS",
    "DicomError",
    "Header",
    "decode",
    "read",
    "load_file",
    "check_file",
    "inspect",
    "pseudonym",
    "load_key",
    "new_key",
]

MAX_AGE = 120  # years; more is a mistake
_KEY_BYTES = (32, 64)  # below, a key can be guessed; above, BLAKE2b does not take it
_DISTINCT = 16  # bytes of a key; 32 random ones practically always have more
_DAYS = {"D": 1.0, "W": 7.0, "M": 365.25 / 12, "Y": 365.25, "": 365.25}


def _terms(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Defined terms; whatever else a file holds there becomes OTHER.
_MODALITIES = _terms("CR CT DX IO MG MR NM OT PT PX RF RG SC US XA")
_POSITIONS = _terms("HFP HFS HFDR HFDL FFP FFS FFDR FFDL LFP LFS RFP RFS AFDR AFDL")
_BODY_PARTS = _terms(  # of PS3.16 annex L, those that are radiographed
    "ABDOMEN ANKLE ARM BREAST CALCANEUS CHEST CHESTABDOMEN CHESTABDPELVIS CLAVICLE COCCYX CSPINE"
    " ELBOW EXTREMITY FEMUR FINGER FOOT FOREARM HAND HEAD HIP HUMERUS JAW KNEE LEG LSPINE LUNG"
    " MAXILLA NECK PELVIS RIB SACRUM SCAPULA SHOULDER SKULL SPINE SSPINE STERNUM THORAX THUMB"
    " TLSPINE TOE TSPINE WHOLEBODY WRIST ZYGOMA"
)
_PHOTOMETRICS = frozenset((*dicom_pixels.GREY, *dicom_pixels.COLOUR, "PALETTE COLOR"))


class Header(NamedTuple):
    """All that may leave a DICOM header.

    Attributes:
      height, width: in pixels.
      bits_stored: significant bits of a stored pixel.
      photometric: photometric interpretation, or OTHER.
      projection: PA, AP, FRONTAL, LATERAL, OTHER or UNKNOWN, as ImageRef has it.
      modality: CR, DX, MG and the like, OTHER, or "" when not stated.
      spacing: (row, column) distance in mm: PixelSpacing, else ImagerPixelSpacing, else None.
      laterality: L, R, U, B or "".
      sex: M, F, O or "".
      age: in years, or None when not stated or above MAX_AGE.
      patient_position: HFS and the like, OTHER or "".
      body_part: a term of PS3.16 annex L, OTHER or "".
      burned_in: YES, NO or "".
      transfer_syntax: its UID.
      patient, study, series, instance: pseudonyms; "" without a key or when not stated.
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
    patient: str
    study: str
    series: str
    instance: str


def decode(data: bytes, *, allow_burned_in: bool = False) -> np.ndarray:
    """Decodes a DICOM file of one frame to one channel, 0 black, over its dtype's full range.

    Decompression, modality LUT or rescale (PS3.3 C.11.1), VOI LUT or the first window (C.11.2),
    inversion of MONOCHROME1 (C.7.6.3.1.2), then 8 or 16 bits by BitsStored. Where the file names
    neither VOI LUT nor window, the representable range becomes the full range. Colour becomes
    Rec. 601 luma. Bits above BitsStored, which may hold overlays, are ignored.

    Args:
      data: the whole file.
      allow_burned_in: also take images that say text is part of their pixels.

    Returns:
      u8[H, W] up to 8 bits stored, else u16[H, W].

    Raises:
      DicomError: for whatever reason it cannot; see its `reason`.
    """
    return guarded(lambda: _decode(data, allow_burned_in))


def read(path: str | os.PathLike[str], *, allow_burned_in: bool = False) -> np.ndarray:
    """Reads and decodes a file as `decode` does: u8[H, W] or u16[H, W], or a DicomError."""
    return decode(_load(path), allow_burned_in=allow_burned_in)


def load_file(root: str, relative: str, allow_burned_in: bool = False) -> np.ndarray:
    """Reads `relative` under `root`; with functools.partial, the `load` of an ImageRef."""
    return read(os.path.join(root, relative), allow_burned_in=allow_burned_in)


def check_file(path: str | os.PathLike[str], *, allow_burned_in: bool = False) -> Header:
    """Checks all of a file that can be without decoding its pixels, and returns its header.

    Finds a wrong header, pixel data cut short or of another size, and damaged lookup tables. The
    header has no pseudonyms.

    Raises:
      DicomError: as `decode`, except for damage within compressed data.
    """

    def check(file: DicomFile) -> Header:
        layout = _layout(file, allow_burned_in)
        dicom_pixels.check(file, layout)
        if layout.samples == 1:
            dicom_pixels.grey_table(file, layout)
        return _header(file, None)

    data = _load(path)
    return guarded(lambda: check(DicomFile(data)))


def inspect(data_or_path: bytes | str | os.PathLike[str], key: bytes | None) -> Header:
    """Reads the header, for images with burned-in text too, without looking at the pixels.

    Args:
      data_or_path: the whole file, or where it is.
      key: of the pseudonyms, see `load_key`; None leaves them "".

    Raises:
      DicomError: no image, several frames, too many pixels, or a damaged header.
      InputError: a key that is too short or too long.
    """
    if key is not None:
        _check_key(key)
    data = data_or_path if isinstance(data_or_path, bytes) else _load(data_or_path)
    return guarded(lambda: _header(DicomFile(data), key))


def pseudonym(key: bytes, value: str, kind: str) -> str:
    """Replaces an identifier by 32 hexadecimal digits that only holders of the key can link.

    Keyed BLAKE2b (RFC 7693) of the value without padding, with `kind` as its personalisation: the
    same text as a patient's and as a study's identifier gives unrelated pseudonyms.

    Args:
      key: 32 to 64 secret bytes.
      value: the identifier, not blank.
      kind: patient, study, series, instance or the like, at most 16 ASCII characters.

    Raises:
      InputError: a key of another length, a blank value, a kind that is blank or too long.
    """
    _check_key(key)
    value = value.strip("\0 ")
    if not value:
        raise InputError(f"blank {kind} identifier; expected text to hash")
    if not re.fullmatch("[a-z_]{1,16}", kind):
        raise InputError(f"pseudonym kind {kind!r}; expected 1 to 16 small letters")
    text = value.encode("utf-8", "surrogatepass")
    return hashlib.blake2b(text, digest_size=16, key=key, person=kind.encode()).hexdigest()


def load_key(path: str | os.PathLike[str]) -> bytes:
    """Reads a key of 32 to 64 bytes, raw or as hexadecimal digits.

    Raises:
      InputError: no such file, one that all users may read or write, or a key that is too short,
        too long or plainly not random.
    """
    name = os.fspath(path)
    problem, data = "", b""
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(4096)
    except OSError as error:
        raise InputError(f"key file {name}: {error.strerror}") from error
    if not stat.S_ISREG(mode):
        problem = "not a plain file"
    elif mode & 0o007:
        problem = f"mode {stat.S_IMODE(mode):04o} lets every user in; expected 0600"
    if problem:
        raise InputError(f"key file {name}: {problem}")
    text = data.strip()
    key = bytes.fromhex(text.decode()) if re.fullmatch(rb"(?:[0-9A-Fa-f]{2})+", text) else data
    low, high = _KEY_BYTES
    if not low <= len(key) <= high:
        raise InputError(f"key file {name}: {len(key)} bytes; expected {low} to {high}")
    if len(set(key)) < _DISTINCT:
        raise InputError(f"key file {name}: {len(set(key))} distinct bytes; expected random ones")
    return key


def new_key(path: str | os.PathLike[str]) -> None:
    """Writes a fresh random key of 32 bytes that only its owner may read.

    Raises:
      InputError: the file is there already, or cannot be written.
    """
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(secrets.token_hex(_KEY_BYTES[0]) + "\n")
    except OSError as error:
        raise InputError(f"key file {os.fspath(path)}: {error.strerror}") from error


def _load(path: str | os.PathLike[str]) -> bytes:
    """Returns the bytes of a plain file that is not too large; errors do not name it."""
    try:
        if not os.path.isfile(path):
            problem, reason = "no such file", "unreadable_image"
        elif (size := os.path.getsize(path)) > MAX_BYTES:
            problem, reason = f"{size} bytes; expected at most {MAX_BYTES}", "too_large"
        else:
            with open(path, "rb") as file:
                return file.read()
    except (OSError, ValueError) as error:
        problem = getattr(error, "strerror", None) or "no such file"
        reason = "unreadable_image"
    raise DicomError(problem, reason)  # not within `except`: the cause names the file


def _decode(data: bytes, allow_burned_in: bool) -> np.ndarray:
    file = DicomFile(data)
    return dicom_pixels.decode(file, _layout(file, allow_burned_in))


def _layout(file: DicomFile, allow_burned_in: bool) -> dicom_pixels.Layout:
    if not allow_burned_in and file.text("BurnedInAnnotation").upper() == "YES":
        raise DicomError(
            "burned_in_annotation: the file says that its pixels hold text, perhaps a name",
            "burned_in_annotation",
        )
    return file.layout()


def _header(file: DicomFile, key: bytes | None) -> Header:
    layout = file.layout()

    def hashed(value: str, kind: str) -> str:
        return pseudonym(key, value, kind) if key is not None and value else ""

    laterality = file.text("ImageLaterality") or file.text("Laterality")
    position = file.text("ViewPosition")
    return Header(
        height=layout.height,
        width=layout.width,
        bits_stored=layout.stored,
        photometric=_known(layout.photometric, _PHOTOMETRICS, "OTHER"),
        projection="LATERAL" if position.upper() == "RL" else projection_name(position),
        modality=_known(file.text("Modality"), _MODALITIES, "OTHER"),
        spacing=_spacing(file, "PixelSpacing") or _spacing(file, "ImagerPixelSpacing"),
        laterality=_known(laterality, frozenset("LRUB")),
        sex=_known(file.text("PatientSex"), frozenset("MFO")),
        age=_age(file.text("PatientAge")),
        patient_position=_known(file.text("PatientPosition"), _POSITIONS, "OTHER"),
        body_part=_known(file.text("BodyPartExamined"), _BODY_PARTS, "OTHER"),
        burned_in=_known(file.text("BurnedInAnnotation"), frozenset(("YES", "NO"))),
        transfer_syntax=_known(file.syntax, frozenset(uid.UID_dictionary), "OTHER"),
        patient=hashed(file.patient(), "patient"),
        study=hashed(file.text("StudyInstanceUID"), "study"),
        series=hashed(file.text("SeriesInstanceUID"), "series"),
        instance=hashed(file.text("SOPInstanceUID"), "instance"),
    )


def _known(value: str, terms: frozenset[str], other: str = "") -> str:
    """Returns a value that is one of `terms`, "" for a blank one, `other` for any else."""
    value = value.upper()
    return value if value in terms or not value else other


def _spacing(file: DicomFile, keyword: str) -> tuple[float, float] | None:
    try:
        row, column = file.number(keyword, 0), file.number(keyword, 1)
    except DicomError:
        return None
    if row is None or column is None or not (0 < row < 100 and 0 < column < 100):
        return None
    return row, column


def _age(text: str) -> float | None:
    """Reads 058Y, 012M, 03W or 9D (PS3.5 6.2, AS); some writers leave the Y out."""
    found = re.fullmatch("([0-9]{1,3})([DWMY]?)", text.upper())
    age = int(found[1]) * _DAYS[found[2]] / _DAYS["Y"] if found else None
    return age if age is not None and age <= MAX_AGE else None


def _check_key(key: bytes) -> None:
    low, high = _KEY_BYTES
    if not low <= len(key) <= high:
        raise InputError(f"a key of {len(key)} bytes; expected {low} to {high}")
