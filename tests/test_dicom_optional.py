"""Optional attributes of DICOM that say nothing, and padding, do not condemn an image."""

from typing import Any

import cv2
import numpy as np
import openjpeg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset, uid
from pydicom.sequence import Sequence

from mmrl.data.image import dicom, dicom_pixels
from mmrl.data.image.dicom_pixels import decode
from tests import dicoms
from tests.test_dicom import TWELVE, spread, windowed

ENTRIES = [65535 - index * 16 for index in range(4096)]
LUT = dicoms.lut(0, 16, ENTRIES)


def halves() -> dict[str, Sequence]:
    """Sequences of a lookup table that hold none."""
    described, filled, blank = Dataset(), Dataset(), Dataset()
    described.add_new("LUTDescriptor", "US", [4096, 0, 16])
    filled.add_new("LUTData", "US", ENTRIES)
    blank.add_new("LUTDescriptor", "US", None)
    blank.add_new("LUTData", "OW", b"")
    items = {"empty": Dataset(), "descriptor": described, "entries": filled, "blank": blank}
    return {"none": Sequence(), **{name: Sequence([item]) for name, item in items.items()}}


HALVES = halves()
NOTHING = st.sampled_from([None, *HALVES.values()])
BLANK = st.sampled_from([None, ""])
# Keyword -> values that are absent, empty or half of one.
SILENT: dict[str, st.SearchStrategy[Any]] = {
    "VOILUTSequence": NOTHING,
    "ModalityLUTSequence": NOTHING,
    **dict.fromkeys(
        ("NumberOfFrames", "RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth"),
        BLANK,
    ),
    **dict.fromkeys(("VOILUTFunction", "PresentationLUTShape", "BurnedInAnnotation"), BLANK),
    **dict.fromkeys(("Modality", "PatientSex", "PatientAge", "ViewPosition"), BLANK),
    "BodyPartExamined": st.sampled_from([None, "", "X" * 2000]),
    "PixelSpacing": st.sampled_from([None, "", [0.1], ["", ""]]),
}
STATED = {
    "RescaleSlope": -2,
    "RescaleIntercept": 100,
    "WindowCenter": -4000,
    "WindowWidth": 3000,
    "VOILUTFunction": "SIGMOID",
    "PresentationLUTShape": "INVERSE",
    "ModalityLUTSequence": LUT,
    "VOILUTSequence": LUT,
}


def expected(fields: dict[str, Any]) -> np.ndarray:
    """The grey levels that the standard asks for, pixel by pixel."""
    stated = {keyword: value for keyword, value in fields.items() if keyword in STATED}
    slope, intercept = stated.get("RescaleSlope", 1), stated.get("RescaleIntercept", 0)
    levels = TWELVE * float(slope) + intercept
    low, high = sorted((intercept, 4095.0 * slope + intercept))
    if "ModalityLUTSequence" in stated:
        levels, low, high = np.array(ENTRIES)[TWELVE].astype(float), 0, 65535
    share = (levels - low) / (high - low)
    if "VOILUTSequence" in stated:
        index = np.clip(levels.astype(int), 0, 4095)
        share = np.array(ENTRIES)[index] / 65535
    elif "WindowCenter" in stated and "WindowWidth" in stated:
        share = windowed(levels, -4000, 3000, stated.get("VOILUTFunction", "LINEAR"))
    return spread(1 - share if "PresentationLUTShape" in stated else share)


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(
    st.fixed_dictionaries(SILENT),
    st.sets(st.sampled_from(sorted(STATED))),
    st.sampled_from([uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian]),
)
def test_what_says_nothing_leaves_the_rest_in_force(
    silent: dict[str, Any], kept: set[str], syntax: str
) -> None:
    stated = {keyword: STATED[keyword] for keyword in kept}
    fields = {keyword: value for keyword, value in silent.items() if value is not None} | stated
    ds = dicoms.dataset(TWELVE, 12)
    for keyword, value in fields.items():
        if keyword == "BodyPartExamined":
            ds.add_new(keyword, "UT", value)  # too long for its own kind
        else:
            setattr(ds, keyword, value)
    data = dicoms.write(ds, syntax)
    np.testing.assert_array_equal(decode(data), expected(stated))
    header = dicom_pixels.check(data)
    assert header.spacing is None and header.modality == header.sex == header.body_part == ""


@pytest.mark.parametrize("name", HALVES)
def test_an_empty_table_beside_a_window_leaves_the_window(name: str) -> None:
    window = {"WindowCenter": 1000, "WindowWidth": 500}
    data = dicoms.image(TWELVE, 12, VOILUTSequence=HALVES[name], **window)
    np.testing.assert_array_equal(decode(data), spread(windowed(TWELVE, 1000, 500)))
    both = Sequence([*HALVES[name], *LUT])
    data = dicoms.image(TWELVE, 12, VOILUTSequence=both, **window)
    np.testing.assert_array_equal(decode(data), np.array(ENTRIES)[TWELVE])


def test_the_first_whole_window_counts() -> None:
    fields = {"WindowCenter": ["", 300, 1000], "WindowWidth": [70, "", 500]}
    data = dicoms.image(TWELVE, 12, **fields)
    np.testing.assert_array_equal(decode(data), spread(windowed(TWELVE, 1000, 500)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"VOILUTSequence": dicoms.lut(0, 16, [1, 2])}, "fewer entries than its descriptor"),
        ({"VOILUTSequence": dicoms.lut(0, 20, ENTRIES)}, "VOILUTSequence of 20 bits"),
        ({"RescaleSlope": 0}, "RescaleSlope is 0"),
        ({"WindowCenter": 5, "WindowWidth": 0}, "WindowWidth is too small"),
        ({"WindowCenter": 5, "WindowWidth": 9, "VOILUTFunction": "LOG"}, "unknown VOILUTFunction"),
        ({"PhotometricInterpretation": ""}, "of unknown kind"),
        ({"BitsAllocated": None}, "BitsAllocated: absent"),
    ],
)
def test_what_is_damaged_or_required_is_still_refused(fields: dict, message: str) -> None:
    ds = dicoms.dataset(TWELVE, 12, **fields)
    if message.startswith("fewer"):
        ds.VOILUTSequence[0].LUTDescriptor = [4096, 0, 16]
    with pytest.raises(dicom.DicomError, match=message):
        decode(dicoms.write(ds))


EIGHT = dicoms.ramp(8)
J2K = openjpeg.encode(TWELVE, bits_stored=12)
BASELINE = cv2.imencode(".jpg", EIGHT)[1].tobytes()
CODES = {
    "JPEG 2000": (uid.JPEG2000Lossless, TWELVE, 12, J2K),
    "lossless JPEG": (uid.JPEGLosslessSV1, TWELVE, 12, dicoms.lossless_jpeg(TWELVE, 12)),
    "JPEG": (uid.JPEGBaseline8Bit, EIGHT, 8, BASELINE),
}


@pytest.mark.parametrize("padding", [b"\xff", b"\0", b"\xff\xff", b"\0" * 5, b"\xff\0\xff"])
@pytest.mark.parametrize("name", CODES)
def test_what_pads_a_fragment_is_not_data(name: str, padding: bytes) -> None:
    syntax, pixels, bits, code = CODES[name]
    ds = dicoms.dataset(pixels, bits)
    plain = decode(dicoms.compressed(ds, syntax, code))
    np.testing.assert_array_equal(decode(dicoms.compressed(ds, syntax, code + padding)), plain)
    for lost in (2, 3, 40):
        data = dicoms.compressed(ds, syntax, code[:-lost] + padding)
        with pytest.raises(dicom.DicomError, match=r"truncated|damaged"):
            decode(data)


def with_tile_style(code: bytes, *styles: bytes) -> bytes:
    """A JPEG 2000 whose first tile-part has coding styles of its own (ITU-T T.800, A.6.2)."""
    start = code.index(b"\xff\x90")
    added = b"".join(b"\xff\x53" + (len(style) + 2).to_bytes(2) + style for style in styles)
    length = int.from_bytes(code[start + 6 : start + 10]) + len(added)
    head = code[start : start + 6] + length.to_bytes(4) + code[start + 10 : start + 12]
    return code[:start] + head + added + code[start + 12 :]


def test_a_tile_may_have_a_coding_style_of_its_own() -> None:
    at = J2K.index(b"\xff\x52") + 4
    style = b"\0" + J2K[at : at + 1] + J2K[at + 5 : at + 10]
    ds = dicoms.dataset(TWELVE, 12)
    data = dicoms.compressed(ds, uid.JPEG2000Lossless, with_tile_style(J2K, style))
    np.testing.assert_array_equal(decode(data), spread(TWELVE / 4095))
    tiny = b"\0\1" + J2K[at + 5 : at + 10] + b"\0" * (J2K[at + 5] + 1)  # precincts of one pixel
    greedy = dicoms.compressed(ds, uid.JPEG2000Lossless, with_tile_style(J2K, *[tiny] * 40))
    with pytest.raises(dicom.DicomError, match=r"JPEG 2000 of [0-9]{5,} precincts"):
        decode(greedy)
