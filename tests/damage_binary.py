"""Damage to images, archives and XML that random changes of bytes would not produce.

Each keeps the container whole, with right checksums, and lies in one place of it.
"""

import io
import struct
import zipfile
import zlib

import cv2
import numpy as np

from tests.damage import SIZES, Place, operation

_PNG = b"\x89PNG\r\n\x1a\n"


def png(width: int, height: int, data: bytes, *, depth: int = 8, colour: int = 0) -> bytes:
    """A PNG of arbitrary chunks with correct checksums."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(data)), (b"IEND", b""))
    return _PNG + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


def tiff(pixels: np.ndarray, order: str = "<", **tags: int | list[int]) -> bytes:
    """A TIFF of one strip with the bytes of u8 or u16 [H, W] or [H, W, C]; `tags` such as t262=0
    override or add, as words or, from 2**16 on, as double words; [] removes.
    """
    samples = pixels.shape[2] if pixels.ndim == 3 else 1
    data = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    found: dict[int, int | list[int]] = {
        **{256: pixels.shape[1], 257: pixels.shape[0], 258: [pixels.itemsize * 8] * samples},
        **{259: 1, 262: 1 if samples == 1 else 2, 273: 8, 277: samples, 278: pixels.shape[0]},
        279: len(data),
    }
    found |= {int(name[1:]): value for name, value in tags.items()}
    found = {tag: value for tag, value in found.items() if value != []}
    data += b"\0" * (len(data) % 2)
    entries, more, at = b"", b"", 8 + len(data) + 2 + 12 * len(found) + 4
    for tag, value in sorted(found.items()):
        values = value if isinstance(value, list) else [value]
        letter = "H" if max(values) < 2**16 else "I"
        held = struct.pack(f"{order}{len(values)}{letter}", *values)
        entries += struct.pack(f"{order}HHI", tag, 3 if letter == "H" else 4, len(values))
        entries += held.ljust(4, b"\0") if len(held) <= 4 else struct.pack(f"{order}I", at)
        if len(held) > 4:
            more, at = more + held, at + len(held)
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8 + len(data))
    return head + data + struct.pack(f"{order}H", len(found)) + entries + b"\0\0\0\0" + more


@operation(".png", ".jpg", ".jpeg", ".tif", ".webp")
def image_size(at: Place) -> None:
    """Changes the size in the header: zero, too large, or more than the data."""
    width, height = SIZES[at.value % len(SIZES)]
    data = bytearray(at.path.read_bytes())
    frame = data.find(b"\xff\xc0")
    if data[:2] == b"\xff\xd8" and frame > 0 and at.first % 2:
        data[frame + 5 : frame + 9] = struct.pack(">HH", height % 65536, width % 65536)
    else:
        data[:] = png(width, height, bytes(at.second % 5000), depth=(8, 16, 1, 3)[at.second % 4])
    at.path.write_bytes(data)


@operation(".png", ".jpg", ".jpeg", ".tif", ".webp")
def image_mode(at: Place) -> None:
    """Replaces an image by a valid one of another mode, format or size."""
    grey = np.arange(48, dtype=np.uint8).reshape(6, 8)
    wide = np.zeros((2, 9000), np.uint8)
    images = (
        (".png", grey.astype(np.uint16) * 1000),
        (".png", np.dstack([grey] * 4)),
        (".png", grey[:1, :1]),
        (".png", wide),
        (".jpg", np.dstack([grey] * 3)),
        (".jpg", wide.T),
        (".bmp", grey),
        (".tiff", grey),
        (".webp", grey),
        (".png", np.zeros((4096, 4096), np.uint8)),
        (".tiff", grey.astype(np.uint16) * 1000),
        (".tiff", grey.astype(np.float32)),
        (".tiff", wide),
    )
    suffix, pixels = images[at.value % len(images)]
    at.path.write_bytes(cv2.imencode(suffix, pixels)[1].tobytes())


@operation(".tif", ".tiff")
def tiff_tag(at: Place) -> None:
    """Changes the tag, type, number or value of an entry of a TIFF directory."""
    data = bytearray(at.path.read_bytes())
    order = "<" if data[:2] == b"II" else ">"
    start = struct.unpack_from(f"{order}I", data.ljust(8, b"\0"), 4)[0]
    if start + 2 > len(data):
        return
    entries = struct.unpack_from(f"{order}H", data, start)[0]
    place = start + 2 + 12 * (at.first % max(entries, 1))
    values = (0, 1, 2, 3, 8, 16, 255, 4096, 65535, 2**16, 2**31 - 1, 2**32 - 1)
    value = values[at.value % len(values)]
    if place + 16 > len(data):
        return
    match at.second % 5:
        case 0:
            struct.pack_into(f"{order}H", data, place, value % 65536)
        case 1:
            struct.pack_into(f"{order}H", data, place + 2, value % 14)
        case 2:
            struct.pack_into(f"{order}I", data, place + 4, value)
        case 3:
            struct.pack_into(f"{order}I", data, place + 8, value)
        case 4:
            struct.pack_into(f"{order}H", data, place + 8, value % 65536)
    at.path.write_bytes(data)


@operation(".webp")
def webp_chunk(at: Place) -> None:
    """Changes the name, length or head of a chunk of a WebP, or its canvas."""
    data = bytearray(at.path.read_bytes().ljust(40, b"\0"))
    heads = (b"VP8 ", b"VP8L", b"VP8X", b"ANIM", b"ANMF", b"ALPH", b"EXIF")
    match at.second % 4:
        case 0:
            data[12:16] = heads[at.value % len(heads)]
        case 1:
            struct.pack_into("<I", data, (4, 16)[at.first % 2], at.value * 97 % 2**32)
        case 2:
            struct.pack_into("<H", data, 20 + at.first % 16, at.value)
        case 3:  # an extended file of a canvas
            sides = struct.pack("<I", at.value)[:3] + struct.pack("<I", at.first)[:3]
            extended = b"VP8X" + struct.pack("<IB3x", 10, at.first % 256) + sides
            data[12:12] = extended
            struct.pack_into("<I", data, 4, len(data) - 8)
    at.path.write_bytes(data)


@operation(".dcm", ".dicom")
def dicom_element(at: Place) -> None:
    """Changes, removes or retypes one element of a DICOM header."""
    data = bytearray(at.path.read_bytes())
    # Explicit little endian: group, element, two letters for the kind, two bytes of length.
    places = [
        place
        for tag in (
            *(b"\x10\x00", b"\x11\x00", b"\x02\x00", b"\x00\x01", b"\x01\x01", b"\x02\x01"),
            *(b"\x01\x11", b"\x01\x12", b"\x21\x12"),  # of a palette
        )
        if (place := data.find(b"\x28\x00" + tag)) > 0
    ]
    places += [place for place in (data.find(b"\xe0\x7f\x10\x00"),) if place > 0]
    if not places:
        return
    place = places[at.first % len(places)]
    values = (0, 1, 7, 16, 255, 4096, 65535)
    match at.second % 4:
        case 0:  # size, depth, or the first pixel
            data[place + 8 : place + 10] = struct.pack("<H", values[at.value % len(values)])
        case 1:
            data[place + 6 : place + 8] = struct.pack("<H", values[at.value % len(values)])
        case 2:
            data[place + 4 : place + 6] = (b"UL", b"OB", b"SQ", b"ZZ", b"\0\0")[at.value % 5]
        case 3:
            data[place : place + 8] = struct.pack("<4H", 0x28, 8, 0x5349, at.value % 9)
    at.path.write_bytes(data)


@operation(".xml")
def xml_entity(at: Place) -> None:
    """XML with expanding or external entities, unclosed elements, or invalid characters."""
    text = at.path.read_bytes().decode("utf-8", "replace")
    start = text.find("?>") + 2 if "?>" in text else 0
    grow = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 10))
    heads = (
        f'<!DOCTYPE x [<!ENTITY e0 "ha">{grow}]>',
        f'<!DOCTYPE x [<!ENTITY e9 SYSTEM "file://{at.outside}/secret.txt">]>',
        f'<!DOCTYPE x SYSTEM "{at.outside}/secret.txt">',
    )
    body = text[start:]
    place = body.find("</", at.first % (len(body) + 1))
    if place < 0:
        place = len(body)
    inserted = ("&e9;", "<a>" * 5000, "&#0;", "<a xmlns:b='c' b:d='e'/>", "&lt;", "<![CDATA[x]]>")
    body = body[:place] + inserted[at.value % len(inserted)] + body[place:]
    at.path.write_text(text[:start] + heads[at.second % len(heads)] + body, "utf-8")


def _header(shape: tuple[int, ...], kind: str) -> bytes:
    """The header of an .npy file, version 1.0."""
    text = repr({"descr": kind, "fortran_order": False, "shape": shape}).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


@operation(".npz")
def archive_member(at: Place) -> None:
    """Removes, duplicates or pickles a member, or gives it a hostile name, header or size."""
    try:
        with zipfile.ZipFile(at.path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
    except (zipfile.BadZipFile, OSError, NotImplementedError, zlib.error, EOFError):
        return
    name = sorted(members)[at.first % len(members)]
    pickled = io.BytesIO()
    np.save(pickled, np.array([{"a": 1}], object), allow_pickle=True)
    heads = (
        _header((10**6, 28, 28), "|u1"),
        _header((2**40, 28, 28), "|u1"),
        _header((-1, 28, 28), "|u1"),
        _header((4, 28, 28), "<f8") + bytes(4 * 28 * 28 * 8),
        _header((4, 1), "<i8") + struct.pack("<4q", 0, -1, 2**40, 10**18),
        _header((4,), "|S5") + b"hello" * 4,
        _header((), "|u1") + b"\0",
        _header((0, 28, 28), "|u1"),
        pickled.getvalue(),
        b"\x93NUMPY\x09\x00" + b"\xff" * 20,
        b"cos\nsystem\n(S'true'\ntR.",
        b"",
    )
    choice = at.value % (len(heads) + 3)
    if choice < len(heads):
        members[name] = heads[choice]
    elif choice == len(heads):
        del members[name]
    elif choice == len(heads) + 1:
        members["../../evil.npy"] = members.pop(name)
    else:
        members[name] = _header((2**20, 2**11), "|u1") + bytes(2**24)
    with zipfile.ZipFile(at.path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, data in members.items():
            archive.writestr(member, data)
