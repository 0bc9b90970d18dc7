"""DICOM to grey levels: values against the standard's formulas in float64, and refusals."""

import logging
import struct
import threading
import tracemalloc
import warnings
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import openjpeg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import uid

from mmrl.data.image import dicom, dicom_pixels, kinds, readers
from mmrl.data.image.dicom_pixels import decode
from mmrl.types import InputError
from tests import dicoms
from tests.corpora_images import FILES

SAMPLES = dicoms.samples()
DAMAGED = {name: data for name, (data, _) in SAMPLES.items()} | {
    name: data for name, data in FILES.items() if name.endswith(".dcm")
}
TWELVE = dicoms.ramp(12)
SIGNED = (TWELVE.astype(int) - 2048).astype(np.int16)


def spread(share: Any, top: int = 65535) -> np.ndarray:
    return np.rint(np.clip(np.asarray(share, np.float64), 0, 1) * top)


def windowed(x: np.ndarray, centre: float, width: float, function: str = "LINEAR") -> np.ndarray:
    """PS3.3 C.11.2.1.2.1 and C.11.2.1.3, pixel by pixel, with ymin 0 and ymax 1."""
    x = np.asarray(x, np.float64)
    if function == "SIGMOID":
        return 1 / (1 + np.exp(np.minimum(-4 * (x - centre) / width, 700)))
    if function == "LINEAR_EXACT":
        y = (x - centre) / width + 0.5
        return np.where(x <= centre - width / 2, 0, np.where(x > centre + width / 2, 1, y))
    low, high = centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2
    y = (x - (centre - 0.5)) / max(width - 1, 1e-9) + 0.5
    return np.where(x <= low, 0, np.where(x > high, 1, y))


def refused(data: bytes, reason: str, message: str = "", **options: Any) -> None:
    with pytest.raises(dicom.DicomError, match=message) as caught:
        decode(data, **options)
    assert caught.value.reason == reason and "\n" not in str(caught.value)
    again = ForkingPickler.loads(ForkingPickler.dumps(caught.value))
    assert again.reason == reason and str(again) == str(caught.value)


@pytest.mark.parametrize("name", SAMPLES)
def test_every_transfer_syntax_gives_its_values(name: str, tmp_path: Path) -> None:
    data, stored = SAMPLES[name]
    (tmp_path / "one").write_bytes(data)
    grey = readers.read(tmp_path / "one")
    header = dicom_pixels.check(data)
    assert grey.dtype == (np.uint8 if header.bits_stored <= 8 else np.uint16)
    top = np.iinfo(grey.dtype).max
    np.testing.assert_array_equal(grey, spread(stored / (2.0**header.bits_stored - 1), top))
    assert (header.height, header.width) == grey.shape == (36, 40)
    assert header == readers.header(str(tmp_path), "one")
    assert uid.UID(header.transfer_syntax).is_transfer_syntax


@pytest.mark.parametrize("name", SAMPLES)
def test_every_truncation_is_found(name: str) -> None:
    data = SAMPLES[name][0]
    for length in [*range(0, len(data), len(data) // 40 + 1), len(data) - 9]:
        with pytest.raises(dicom.DicomError) as caught:
            decode(data[:length])
        assert caught.value.reason in ("unreadable_image", "no_pixel_data")
        with pytest.raises(dicom.DicomError):
            dicom_pixels.check(data[:length])


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID", None])
@pytest.mark.parametrize("window", [(1000, 500), (2047.5, 4096), (300.25, 1), (100, 9000)])
def test_windows_follow_the_standard(function: str | None, window: tuple) -> None:
    fields: dict[str, Any] = {"WindowCenter": window[0], "WindowWidth": window[1]}
    if function:
        fields["VOILUTFunction"] = function
    grey = decode(dicoms.image(TWELVE, 12, **fields))
    expected = windowed(TWELVE, *window, function or "LINEAR")
    np.testing.assert_array_equal(grey, spread(expected))
    fields["PhotometricInterpretation"] = "MONOCHROME1"
    np.testing.assert_array_equal(decode(dicoms.image(TWELVE, 12, **fields)), spread(1 - expected))


def test_the_first_of_several_windows_counts() -> None:
    data = dicoms.image(TWELVE, 12, WindowCenter=[1500, 40], WindowWidth=[700, 80])
    np.testing.assert_array_equal(decode(data), spread(windowed(TWELVE, 1500, 700)))
    blank = dicoms.image(TWELVE, 12, WindowCenter="", WindowWidth="")
    np.testing.assert_array_equal(decode(blank), spread(TWELVE / 4095))


@pytest.mark.parametrize("slope", [1.5, -2])
def test_signed_pixels_are_rescaled_before_the_window(slope: float) -> None:
    rescale = {"RescaleSlope": slope, "RescaleIntercept": -100}
    levels = SIGNED * float(slope) - 100
    grey = decode(dicoms.image(SIGNED, 12, WindowCenter=50, WindowWidth=2000, **rescale))
    np.testing.assert_array_equal(grey, spread(windowed(levels, 50, 2000)))
    ends = np.sort([-2048 * slope - 100, 2047 * slope - 100])
    grey = decode(dicoms.image(SIGNED, 12, **rescale))
    np.testing.assert_array_equal(grey, spread((levels - ends[0]) / (ends[1] - ends[0])))


def test_range_is_the_representable_one_not_the_images() -> None:
    dim = np.full((4, 6), 100, np.uint16)
    assert np.unique(decode(dicoms.image(dim, 12))) == spread(100 / 4095)
    assert np.unique(decode(dicoms.image(dim.astype(np.int16), 12))) == spread(2148 / 4095)
    five = np.arange(32, dtype=np.uint8).reshape(4, 8)
    np.testing.assert_array_equal(decode(dicoms.image(five, 5)), spread(five / 31, 255))
    eight = dicoms.ramp(8).astype(np.uint16)
    grey = decode(dicoms.image(eight, 8))
    assert grey.dtype == np.uint8
    np.testing.assert_array_equal(grey, eight)


@pytest.mark.parametrize("signed", [False, True])
def test_bits_outside_the_stored_ones_are_masked(signed: bool) -> None:
    codes = TWELVE ^ (0x800 if signed else 0)  # two's complement of 12 bits
    overlay = codes | (np.arange(codes.size).reshape(codes.shape) % 16 << 12).astype(np.uint16)
    data = dicoms.image(overlay, 12, PixelRepresentation=int(signed))
    np.testing.assert_array_equal(decode(data), spread(TWELVE / 4095))
    high = (TWELVE << 4) | 5
    np.testing.assert_array_equal(decode(dicoms.image(high, 12, HighBit=15)), spread(TWELVE / 4095))


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("shape", ["IDENTITY", "INVERSE"])
def test_inversion_happens_once(photometric: str, shape: str) -> None:
    fields = {"PhotometricInterpretation": photometric, "PresentationLUTShape": shape}
    share = TWELVE / 4095
    inverted = photometric == "MONOCHROME1" or shape == "INVERSE"
    grey = decode(dicoms.image(TWELVE, 12, **fields))
    np.testing.assert_array_equal(grey, spread(1 - share if inverted else share))


@pytest.mark.parametrize("bits", [8, 10, 16])
@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian])
def test_voi_lut_maps_and_clamps(bits: int, syntax: str) -> None:
    entries = [(index * 37 % 2**bits) for index in range(1000)]
    fields = {"VOILUTSequence": dicoms.lut(500, bits, entries), "WindowCenter": 1, "WindowWidth": 2}
    grey = decode(dicoms.write(dicoms.dataset(TWELVE, 12, **fields), syntax))
    index = np.clip(TWELVE.astype(int) - 500, 0, 999)
    np.testing.assert_array_equal(grey, spread(np.array(entries)[index] / (2**bits - 1)))


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian])
def test_modality_lut_of_signed_pixels_feeds_the_window(syntax: str) -> None:
    entries = [65535 - index * 16 for index in range(4096)]
    modality = dicoms.lut(-2048, 16, entries, signed=True)
    fields = {"ModalityLUTSequence": modality, "WindowCenter": 30000, "WindowWidth": 20000}
    data = dicoms.write(dicoms.dataset(SIGNED, 12, **fields), syntax)
    levels = np.array(entries)[SIGNED.astype(int) + 2048]
    np.testing.assert_array_equal(decode(data), spread(windowed(levels, 30000, 20000)))
    alone = dicoms.image(SIGNED, 12, ModalityLUTSequence=modality)
    np.testing.assert_array_equal(decode(alone), levels)


@pytest.mark.parametrize("planar", [0, 1])
@pytest.mark.parametrize("bits", [8, 12])
def test_colour_becomes_luma(planar: int, bits: int) -> None:
    one = dicoms.ramp(bits)
    colour = np.stack([one, one[::-1], one[:, ::-1]], -1)
    stored = np.ascontiguousarray(np.moveaxis(colour, -1, 0)) if planar else colour
    fields = {"PlanarConfiguration": planar, "PixelData": stored.tobytes()}
    top, full = 2**bits - 1, 255 if bits == 8 else 65535
    for photometric, weights in (("RGB", [0.299, 0.587, 0.114]), ("YBR_FULL", [1, 0, 0])):
        ds = dicoms.dataset(colour, bits, PhotometricInterpretation=photometric, **fields)
        expected = spread(colour @ np.array(weights) / top, full)
        np.testing.assert_array_equal(decode(dicoms.write(ds)), expected)
        if photometric == "RGB" and not planar:
            ds.compress(uid.RLELossless, generate_instance_uid=False)
            np.testing.assert_array_equal(decode(dicoms.write(ds, uid.RLELossless)), expected)


def test_compressed_and_subsampled_colour_becomes_luma() -> None:
    one = dicoms.ramp(8)
    colour = np.stack([one, one[::-1], one[:, ::-1]], -1)
    expected = spread(colour @ np.array([0.299, 0.587, 0.114]) / 255, 255)
    code = openjpeg.encode(colour, bits_stored=8, photometric_interpretation=1, use_mct=True)
    ds = dicoms.dataset(colour, 8, PhotometricInterpretation="YBR_RCT")
    np.testing.assert_array_equal(
        decode(dicoms.compressed(ds, uid.JPEG2000Lossless, code)), expected
    )
    even = np.stack([one[:, 0::2], one[:, 1::2], one[:, 0::2], one[:, 1::2]], -1)
    fields = {"PhotometricInterpretation": "YBR_FULL_422", "PixelData": even.tobytes()}
    np.testing.assert_array_equal(decode(dicoms.image(colour, 8, **fields)), one)
    jpeg = cv2.imencode(".jpg", colour[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
    luma = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_GRAYSCALE)
    ds = dicoms.dataset(colour, 8, PhotometricInterpretation="YBR_FULL_422")
    data = dicoms.compressed(ds, uid.JPEGBaseline8Bit, jpeg)
    np.testing.assert_array_equal(decode(data), luma)
    bare = jpeg[:2] + jpeg[4 + int.from_bytes(jpeg[4:6]) :]  # no JFIF: the file's word counts
    ds = dicoms.dataset(colour, 8)
    red, green, blue = cv2.split(
        cv2.cvtColor(
            cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2YCrCb
        ).astype(float)
    )
    taken_as_rgb = 0.299 * red + 0.587 * blue + 0.114 * green  # Y Cb Cr read as R G B
    grey = decode(dicoms.compressed(ds, uid.JPEGBaseline8Bit, bare))
    assert np.abs(grey - taken_as_rgb).mean() < 3
    assert np.abs(luma - taken_as_rgb).mean() > 20


REFUSALS: dict[str, tuple[dict[str, Any], str, str]] = {
    "frames": ({"NumberOfFrames": 12}, "multi_frame", "12 frames; expected one"),
    "burned in": ({"BurnedInAnnotation": "YES"}, "burned_in_annotation", "^burned_in_annotation"),
    "no pixels": ({"PixelData": None}, "no_pixel_data", "no pixel data"),
    "no rows": ({"Rows": None}, "no_pixel_data", "no Rows or Columns"),
    "zero": ({"Rows": 0}, "unreadable_image", "40 x 0 pixels"),
    "huge": ({"Rows": 60000, "Columns": 60000}, "too_large", "60000 x 60000 pixels; expected"),
    "short": ({"Rows": 37}, "unreadable_image", "2880 bytes of pixel data; the header .* 2960"),
    "long": ({"Rows": 18}, "unreadable_image", "2880 bytes of pixel data; the header .* 1440"),
    "palette": (
        {"PhotometricInterpretation": "PALETTE COLOR"},
        "unreadable_image",
        "no RedPaletteColorLookupTable",
    ),
    "strange": ({"PhotometricInterpretation": "DOE"}, "unsupported", "of unknown kind"),
    "32 bits": ({"BitsAllocated": 32}, "unsupported", "32 bits allocated"),
    "bits": ({"BitsStored": 14}, "unreadable_image", "14 bits stored up to bit 11 of 16"),
    "slope": ({"RescaleSlope": 0, "RescaleIntercept": 0}, "unreadable_image", "RescaleSlope is 0"),
    "window": ({"WindowCenter": 0, "WindowWidth": 0}, "unreadable_image", "WindowWidth is too"),
    "function": (
        {"WindowCenter": 1, "WindowWidth": 9, "VOILUTFunction": "DOE"},
        "unsupported",
        "unknown VOILUTFunction",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals_have_a_reason(name: str) -> None:
    fields, reason, message = REFUSALS[name]
    refused(dicoms.image(TWELVE, 12, **fields), reason, message)


def test_burned_in_text_is_taken_only_when_asked_for() -> None:
    data = dicoms.image(TWELVE, 12, BurnedInAnnotation="YES")
    np.testing.assert_array_equal(decode(data, allow_burned_in=True), spread(TWELVE / 4095))
    assert dicom.inspect(data).burned_in == "YES"
    with pytest.raises(dicom.DicomError, match=r"^burned_in_annotation"):
        dicom_pixels.check(data)
    assert dicom_pixels.check(data, allow_burned_in=True).burned_in == "YES"
    decode(dicoms.image(TWELVE, 12, BurnedInAnnotation="NO"))


def test_what_is_no_dicom_image_is_refused(tmp_path: Path) -> None:
    for data in (b"", b"\x89PNG", b"\0" * 5000):
        refused(data, "unreadable_image", "no DICM at byte 128; expected a DICOM file")
    refused(b"\0" * 128 + b"DICM", "unreadable_image", "no transfer syntax")
    video = dicoms.compressed(dicoms.dataset(TWELVE, 12), uid.MPEG2MPML, b"\0\0")
    refused(video, "unsupported", "transfer syntax 1.2.840.10008.1.2.4.100")
    with pytest.raises(InputError, match=r"^no such file$"):
        readers.read(tmp_path / "Doe^Jane.dcm")
    with (tmp_path / "large.dcm").open("wb") as file:
        file.truncate(kinds.MAX_BYTES + 1)
    found = readers.fault(str(tmp_path), "large.dcm", "header")
    assert found and found[0] == "too_large" and "expected at most" in found[1]
    load = readers.loader(str(tmp_path), "one.dcm")
    (tmp_path / "one.dcm").write_bytes(SAMPLES["explicit"][0])
    assert ForkingPickler.loads(ForkingPickler.dumps(load))().shape == (36, 40)


def lies() -> dict[str, tuple[bytes, str]]:
    """Small files that would grow to hundreds of MiB in the hands of a trusting decoder."""
    big = struct.pack(">HH", 20000, 20000)
    jpeg = dicoms.lossless_jpeg(TWELVE, 12).replace(struct.pack(">HH", 36, 40), big, 1)
    j2k = bytearray(openjpeg.encode(TWELVE, bits_stored=12))
    j2k_large, j2k_tiles = j2k.copy(), j2k.copy()
    j2k_large[8:16] = j2k_large[24:32] = struct.pack(">II", 20000, 20000)
    wide = dicoms.dataset(TWELVE, 12, Rows=8000, Columns=8000)
    j2k_tiles[8:16] = struct.pack(">II", 8000, 8000)
    j2k_tiles[24:32] = struct.pack(">II", 1, 1)
    coding = j2k_large.index(b"\xff\x52\0\x0c") + 2  # ask for precincts of 2 x 2 pixels
    styled = j2k_tiles[:coding] + b"\0\x12\1" + j2k_tiles[coding + 3 : coding + 12]
    styled += b"\x11" * 6 + j2k_tiles[coding + 12 :]
    styled[24:32] = struct.pack(">II", 8000, 8000)
    runs = struct.pack("<16I", 2, 64, 500_064, *[0] * 13) + b"\x81\0" * 500_000
    small = dicoms.dataset(np.zeros((4, 4), np.uint16), 12)
    small.add_new((0x7FE1, 0x1010), "OB", bytes(2**26))  # behind the pixels: never inflated
    bomb = dicoms.write(small, uid.DeflatedExplicitVRLittleEndian)
    small.add_new((0x0009, 0x1010), "OB", bytes(2**26))  # before them: given up
    early = dicoms.write(small, uid.DeflatedExplicitVRLittleEndian)
    ds = dicoms.dataset(TWELVE, 12)
    return {
        "JPEG": (dicoms.compressed(ds, uid.JPEGLosslessSV1, jpeg), "20000 x 20000 pixels of 1"),
        "JPEG 2000": (
            dicoms.compressed(ds, uid.JPEG2000Lossless, bytes(j2k_large)),
            "20000 x 20000 pixels of 1",
        ),
        "tiles": (
            dicoms.compressed(wide, uid.JPEG2000Lossless, bytes(j2k_tiles)),
            "JPEG 2000 of 64000000 tiles",
        ),
        "precincts": (
            dicoms.compressed(wide, uid.JPEG2000Lossless, bytes(styled)),
            "JPEG 2000 of [0-9]{8} precincts",
        ),
        "inflated before": (early, "no Rows or Columns|no pixel data"),
        "inflated behind": (bomb, ""),
        "RLE": (dicoms.compressed(ds, uid.RLELossless, runs), ""),
    }


def test_lying_headers_do_not_allocate() -> None:
    for name, (data, message) in lies().items():
        tracemalloc.start()
        try:
            if not message:
                assert not decode(data).any()  # the surplus is dropped
            else:
                with pytest.raises(dicom.DicomError, match=message):
                    decode(data)
            assert tracemalloc.get_traced_memory()[1] < 16 * 2**20, name
        finally:
            tracemalloc.stop()


def test_deep_nesting_is_an_error_not_a_crash() -> None:
    plain = dicoms.image(TWELVE, 12)
    at = plain.index(struct.pack("<HH2s", 0x28, 2, b"US"))
    opened = struct.pack("<HH2sHI", 0x18, 0x9999, b"SQ", 0, 2**32 - 1)
    opened += struct.pack("<HHI", 0xFFFE, 0xE000, 2**32 - 1)
    refused(plain[:at] + opened * 5000 + plain[at:], "unreadable_image", "RecursionError")


def test_threads_neither_warn_nor_log() -> None:
    before, heard = list(warnings.filters), []
    ear = logging.Handler()
    ear.emit = heard.append  # type: ignore[method-assign]
    logging.getLogger("pydicom").addHandler(ear)
    switched = SAMPLES["explicit"][0].replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2\0\0\0")
    faults: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(10):  # pydicom warns: explicit VR where implicit was announced
                decode(switched)
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    logging.getLogger("pydicom").removeHandler(ear)
    assert not faults and not heard and list(warnings.filters) == before


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.sampled_from(sorted(DAMAGED)), st.data())
def test_damaged_files_give_an_array_or_a_reason(name: str, data: st.DataObject) -> None:
    whole = DAMAGED[name]
    damaged = bytearray(whole[: data.draw(st.integers(120, len(whole)) | st.just(len(whole)))])
    places = st.tuples(st.integers(132, len(whole) - 1), st.integers(0, 255))
    for place, byte in data.draw(st.lists(places, max_size=6)):
        damaged[place : place + 1] = bytes([byte])
    if data.draw(st.booleans()):
        at = data.draw(st.integers(132, len(whole)))
        damaged[at:at] = data.draw(st.binary(max_size=40))
    for use in (decode, dicom.inspect):
        try:
            result = use(bytes(damaged))
        except dicom.DicomError as error:
            assert error.reason in dicom.REASONS and "\n" not in str(error)
            assert error.__cause__ is None and error.__context__ is None
        else:
            assert isinstance(result, dicom.Header) or (
                result.dtype in (np.uint8, np.uint16) and result.ndim == 2
            )
