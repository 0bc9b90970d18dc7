"""DICOM files for tests, written by pydicom or, for lossless JPEG, by an encoder in this module."""

import io
from typing import Any

import cv2
import numpy as np
import openjpeg
from pydicom import DataElement, Dataset, FileDataset, dcmwrite, uid
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence

Sample = tuple[bytes, np.ndarray]
COLOURS = ("Red", "Green", "Blue")


def dataset(pixels: np.ndarray, stored: int, **fields: Any) -> FileDataset:
    """A one-frame image of u8, u16 or i16 [H, W] or [H, W, 3]; `fields` override or add."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = uid.DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    ds = FileDataset(None, {}, b"\0" * 128, meta)
    ds.SOPClassUID, ds.SOPInstanceUID = meta.MediaStorageSOPClassUID, "1.2.3.4"
    ds.Rows, ds.Columns = pixels.shape[:2]
    ds.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
    if pixels.ndim == 3:
        ds.PlanarConfiguration = 0
    ds.PhotometricInterpretation = "RGB" if pixels.ndim == 3 else "MONOCHROME2"
    ds.BitsAllocated = pixels.dtype.itemsize * 8
    ds.BitsStored, ds.HighBit = stored, stored - 1
    ds.PixelRepresentation = int(pixels.dtype.kind == "i")
    ds.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    ds["PixelData"].VR = "OW" if pixels.itemsize == 2 else "OB"
    for keyword, value in fields.items():
        if value is None:
            delattr(ds, keyword)
        elif isinstance(value, DataElement):
            ds.add(value)
        else:
            setattr(ds, keyword, value)
    return ds


def write(ds: FileDataset, syntax: str = uid.ExplicitVRLittleEndian) -> bytes:
    """Returns the bytes of the file; pixel data must already be encoded for `syntax`."""
    ds.file_meta.TransferSyntaxUID = uid.UID(syntax)
    file = io.BytesIO()
    dcmwrite(file, ds, enforce_file_format=True)
    return file.getvalue()


def image(pixels: np.ndarray, stored: int, **fields: Any) -> bytes:
    return write(dataset(pixels, stored, **fields))


def compressed(ds: FileDataset, syntax: str, *fragments: bytes) -> bytes:
    """Returns the file with its frame replaced by compressed fragments."""
    ds.PixelData = encapsulate([b"".join(fragments)], fragments_per_frame=len(fragments))
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True
    return write(ds, syntax)


def lut(first: int, bits: int, entries: list[int], signed: bool = False) -> Sequence:
    """A Modality or VOI LUT Sequence of one item."""
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if signed else "US", [len(entries), first, bits])
    item.add_new("LUTData", "US", entries)
    return Sequence([item])


def palette(
    entries: np.ndarray,
    bits: int,
    *,
    first: int = 0,
    signed: bool = False,
    wide: bool = True,
    big: bool = False,
) -> dict[str, Any]:
    """The fields of a palette.

    Args:
      entries: of red, green and blue, [3, N]. first: the stored value of the first entry.
      wide: whether entries of 8 bits take a word each.
      big: whether the file is big endian; bytes are then stored in swapped pairs.
    """
    fields: dict[str, Any] = {}
    descriptor = [entries.shape[1] % 2**16, first, bits]
    for colour, values in zip(COLOURS, entries, strict=True):
        element = DataElement(
            f"{colour}PaletteColorLookupTableDescriptor", "SS" if signed else "US", descriptor
        )
        fields[f"{colour}PaletteColorLookupTableDescriptor"] = element
        data = values.astype("<u2" if wide or bits > 8 else "u1").tobytes()
        data += b"\0" * (len(data) % 2)
        swapped = np.frombuffer(data, "<u2").astype(">u2" if big else "<u2").tobytes()
        keyword = f"{colour}PaletteColorLookupTableData"
        fields[keyword] = DataElement(keyword, "OW", swapped)
    return fields


def lossless_jpeg(pixels: np.ndarray, bits: int, predictor: int = 1) -> bytes:
    """Encodes [H, W] as ITU-T T.81 process 14 (annex H); every category has a code of 5 bits.

    Predictor 1 is the left neighbour, 2 the one above.
    """
    values = pixels.astype(int)
    expected = np.empty_like(values)
    expected[0, 0], expected[0, 1:] = 2 ** (bits - 1), values[0, :-1]
    expected[1:, 0] = values[:-1, 0]
    expected[1:, 1:] = values[1:, :-1] if predictor == 1 else values[:-1, 1:]
    written = []
    for difference in ((values - expected + 2**15) % 2**16 - 2**15).ravel().tolist():
        category = 16 if difference == -(2**15) else abs(difference).bit_length()
        written.append(f"{category:05b}")
        if 0 < category < 16:
            extra = difference if difference > 0 else difference - 1
            written.append(f"{extra % 2**category:0{category}b}")
    text = "".join(written)
    text += "1" * (-len(text) % 8)
    coded = int(text, 2).to_bytes(len(text) // 8).replace(b"\xff", b"\xff\0")
    height, width = (side.to_bytes(2) for side in pixels.shape)
    return b"".join(
        (
            b"\xff\xd8\xff\xc3\0\x0b" + bytes([bits]) + height + width + b"\1\1\x11\0",
            b"\xff\xc4\0\x24\0" + bytes([0, 0, 0, 0, 17, *[0] * 11, *range(17)]),
            b"\xff\xda\0\x08\1\1\0" + bytes([predictor, 0, 0]) + coded + b"\xff\xd9",
        )
    )


def ramp(bits: int, height: int = 36, width: int = 40, dtype: Any = None) -> np.ndarray:
    """Smooth rows with some noise, covering the whole range of `bits`."""
    noise = np.random.default_rng(1).normal(0, 2**bits / 40, (height, width))
    y, x = np.mgrid[:height, :width]
    values = (2**bits - 1) * (x + y) / (height + width - 2) + noise
    values = values.round().clip(0, 2**bits - 1)
    values[0, 0], values[-1, -1] = 0, 2**bits - 1
    return values.astype(dtype or (np.uint8 if bits <= 8 else np.uint16))


def samples() -> dict[str, Sample]:
    """One file of every transfer syntax, with its stored values."""
    twelve, eight, deep = ramp(12), ramp(8), ramp(16)
    plain = dataset(twelve, 12)
    found: dict[str, Sample] = {
        "explicit": (write(plain), twelve),
        "implicit": (write(dataset(twelve, 12), uid.ImplicitVRLittleEndian), twelve),
        "deflated": (write(dataset(twelve, 12), uid.DeflatedExplicitVRLittleEndian), twelve),
    }
    bits = ramp(1)
    packed = np.packbits(bits, bitorder="little").tobytes()
    found["single bits"] = (image(bits, 1, BitsAllocated=1, PixelData=packed), bits)
    big = dataset(twelve, 12, PixelData=twelve.astype(">u2").tobytes())
    found["big endian"] = (write(big, uid.ExplicitVRBigEndian), twelve)
    swapped = dataset(eight, 8, PixelData=eight.tobytes())
    swapped.PixelData = eight.view("<u2").astype(">u2").tobytes()
    swapped["PixelData"].VR = "OW"
    found["big endian 8"] = (write(swapped, uid.ExplicitVRBigEndian), eight)
    for name, pixels, bits in (("RLE", twelve, 12), ("RLE 8", eight, 8)):
        ds = dataset(pixels, bits)
        ds.compress(uid.RLELossless, generate_instance_uid=False)
        found[name] = (write(ds, uid.RLELossless), pixels)
    for name, pixels, bits in (("JPEG 2000", twelve, 12), ("JPEG 2000 8", eight, 8)):
        code = openjpeg.encode(pixels, bits_stored=bits)
        found[name] = (compressed(dataset(pixels, bits), uid.JPEG2000Lossless, code), pixels)
    for name, pixels, bits in (("lossless", twelve, 12), ("lossless 16", deep, 16)):
        code = lossless_jpeg(pixels, bits)
        found[name] = (compressed(dataset(pixels, bits), uid.JPEGLosslessSV1, code), pixels)
    code = lossless_jpeg(eight, 8, predictor=2)
    halves = code[:100], code[100:]
    found["lossless 8"] = (compressed(dataset(eight, 8), uid.JPEGLossless, *halves), eight)
    code = cv2.imencode(".jpg", eight, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()
    shown = cv2.imdecode(np.frombuffer(code, np.uint8), cv2.IMREAD_GRAYSCALE)
    found["baseline"] = (compressed(dataset(eight, 8), uid.JPEGBaseline8Bit, code), shown)
    return found
