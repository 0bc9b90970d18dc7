"""DICOM images of a palette, and of single bits: values against the tables in float64."""

import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydicom import uid
from pydicom.pixels.processing import _expand_segmented_lut

from mmrl.data.image import dicom
from mmrl.data.image.dicom_pixels import decode
from tests import dicoms

EIGHT, SHALLOW = dicoms.ramp(8), dicoms.ramp(5)
LUMA = np.array([0.299, 0.587, 0.114])
SYNTAXES = (uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian)


def tables(count: int, bits: int) -> np.ndarray:
    """Entries of red, green and blue, i64[3, count]."""
    return np.random.default_rng(bits).integers(0, 2**bits, (3, count))


def written(pixels: np.ndarray, stored: int, syntax: str, **fields: Any) -> bytes:
    """The file of an image that names its pixels in little-endian order."""
    ds = dicoms.dataset(pixels, stored, PhotometricInterpretation="PALETTE COLOR", **fields)
    if syntax == uid.ExplicitVRBigEndian and pixels.itemsize == 2:
        ds.PixelData = pixels.astype(pixels.dtype.newbyteorder(">")).tobytes()
    return dicoms.write(ds, syntax)


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize(("bits", "wide"), [(16, True), (8, True), (8, False)])
@pytest.mark.parametrize("count", [256, 201])
def test_palettes_give_the_luma_of_their_colours(
    syntax: str, bits: int, wide: bool, count: int
) -> None:
    entries = tables(count, bits)
    big = syntax == uid.ExplicitVRBigEndian
    data = written(EIGHT, 8, syntax, **dicoms.palette(entries, bits, wide=wide, big=big))
    grey = decode(data)
    expected = LUMA @ entries[:, np.minimum(EIGHT, count - 1)].reshape(3, -1)
    assert grey.dtype == (np.uint8 if bits == 8 else np.uint16)
    np.testing.assert_array_equal(grey, np.rint(expected).reshape(EIGHT.shape))


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("syntax", SYNTAXES[:2])
def test_palettes_begin_at_the_first_value_that_they_name(signed: bool, syntax: str) -> None:
    first, entries = (-9 if signed else 7), tables(16, 16)
    stored = SHALLOW.astype(int) - 16 * signed
    fields = dicoms.palette(entries, 16, first=first, signed=signed)
    data = written(stored.astype(np.int8 if signed else np.uint8), 5, syntax, **fields)
    index = np.clip(stored - first, 0, 15)
    expected = LUMA @ entries[:, index].reshape(3, -1)
    np.testing.assert_array_equal(decode(data), np.rint(expected).reshape(stored.shape))


def test_compressed_palettes_are_read() -> None:
    entries = tables(256, 8)
    ds = dicoms.dataset(EIGHT, 8, PhotometricInterpretation="PALETTE COLOR")
    for element in dicoms.palette(entries, 8).values():
        ds.add(element)
    plain = decode(dicoms.write(ds))
    ds.compress(uid.RLELossless, generate_instance_uid=False)
    np.testing.assert_array_equal(decode(dicoms.write(ds, uid.RLELossless)), plain)


PARTS = st.lists(
    st.one_of(
        st.tuples(st.just(0), st.lists(st.integers(0, 255), min_size=1, max_size=9)),
        st.tuples(st.just(1), st.integers(1, 40), st.integers(0, 255)),
    ),
    min_size=1,
    max_size=9,
)


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(PARTS, st.sampled_from([8, 16]), st.integers(0, 9))
def test_segments_expand_as_pydicom_expands_them(parts: list, bits: int, repeat: int) -> None:
    cells = [0, 1, 77]  # a linear segment follows another
    for part in parts:
        cells += [0, len(part[1]), *part[1]] if part[0] == 0 else list(part)
    if repeat:
        count = min(repeat, len(parts))
        cells += [2, count, 3, 0, 0, 0] if bits == 8 else [2, count, 6, 0]
    letter = "B" if bits == 8 else "H"
    plain = [*cells[:-4], cells[-4], cells[-3], 3, 0, 0, 0] if repeat and bits == 16 else cells
    try:
        # In "<H" it counts no bytes.
        expected = np.array(_expand_segmented_lut(tuple(plain), "<B"))
    except ValueError:  # it takes a last value of 0 for none
        assume(False)
    data = struct.pack(f"<{len(cells)}{letter}", *cells)
    fields = dicoms.palette(np.zeros((3, len(expected)), int), bits)
    for colour in dicoms.COLOURS:
        del fields[f"{colour}PaletteColorLookupTableData"]
        fields[f"Segmented{colour}PaletteColorLookupTableData"] = data + b"\0" * (len(data) % 2)
    for syntax in SYNTAXES[:2]:
        grey = decode(written(EIGHT, 8, syntax, **fields))
        index = np.minimum(EIGHT.astype(int), len(expected) - 1)
        # Three times the same is grey. Halves are rounded up or down.
        np.testing.assert_allclose(grey, expected[index], rtol=0, atol=1)


SEGMENTS = {
    "linear first": [1, 9, 9],
    "indirect first": [2, 1, 0, 0],
    "indirect within itself": [0, 1, 5, 2, 9, 3, 0],
    "beyond the end": [0, 1, 5, 2, 9, 600, 0],
    "empty": [0, 0, 0, 0, 0, 0, 0],
    "of another kind": [3, 1, 1],
    "too short": [0, 2, 1, 2],
    "cut": [0, 9, 1, 2],
}


@pytest.mark.parametrize("name", SEGMENTS)
def test_damaged_segments_are_refused(name: str) -> None:
    fields = dicoms.palette(tables(200, 16), 16)
    cells = SEGMENTS[name]
    for colour in dicoms.COLOURS:
        fields[f"{colour}PaletteColorLookupTableData"] = b""  # empty is absent
        data = struct.pack(f"<{len(cells)}H", *cells)
        fields[f"Segmented{colour}PaletteColorLookupTableData"] = data
    with pytest.raises(dicom.DicomError) as caught:
        decode(written(EIGHT, 8, uid.ExplicitVRLittleEndian, **fields))
    assert caught.value.reason == "unreadable_image"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"RedPaletteColorLookupTableDescriptor": None}, "no RedPaletteColorLookupTable;"),
        ({"BluePaletteColorLookupTableData": b""}, "no BluePaletteColorLookupTable;"),
        ({"GreenPaletteColorLookupTableData": b"12"}, "fewer entries than its descriptor"),
        ({"GreenPaletteColorLookupTableDescriptor": [256, 0, 12]}, "of 12 bits; expected 8 or 16"),
    ],
)
def test_palettes_without_their_tables_are_refused(change: dict, message: str) -> None:
    fields = {**dicoms.palette(tables(256, 16), 16), **change}
    fields = {keyword: value for keyword, value in fields.items() if value is not None}
    with pytest.raises(dicom.DicomError, match=message):
        decode(written(EIGHT, 8, uid.ExplicitVRLittleEndian, **fields))


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("width", [40, 37])  # 37: rows begin within a byte
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_single_bits_become_black_and_white(syntax: str, width: int, photometric: str) -> None:
    bits = np.random.default_rng(0).random((36, width)) < 0.3
    packed = np.packbits(bits, bitorder="little")
    packed = np.append(packed, np.zeros(len(packed) % 2, np.uint8))
    ds = dicoms.dataset(bits.astype(np.uint8), 1, BitsAllocated=1, PixelData=packed.tobytes())
    ds.PhotometricInterpretation = photometric
    if syntax == uid.ExplicitVRBigEndian:
        ds.PixelData, ds["PixelData"].VR = packed.view("<u2").astype(">u2").tobytes(), "OW"
    white = bits if photometric == "MONOCHROME2" else ~bits
    grey = decode(dicoms.write(ds, syntax))
    assert grey.dtype == np.uint8
    np.testing.assert_array_equal(grey, white * 255)


def test_single_bits_that_are_several_frames_or_compressed_are_refused() -> None:
    ds = dicoms.dataset(np.zeros((8, 8), np.uint8), 1, BitsAllocated=1, PixelData=b"\1" * 8)
    assert decode(dicoms.write(ds)).shape == (8, 8)
    ds.NumberOfFrames, ds.PixelData = 2, b"\1" * 16
    for change, reason in (({}, "multi_frame"), ({"NumberOfFrames": 1}, "unsupported")):
        for keyword, value in change.items():
            setattr(ds, keyword, value)
        data = dicoms.compressed(ds, uid.RLELossless, b"\1") if change else dicoms.write(ds)
        with pytest.raises(dicom.DicomError) as caught:
            decode(data)
        assert caught.value.reason == reason
