"""What leaves a DICOM header: a whitelist, and no planted name by any door."""

import functools
import logging
import random
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset, uid
from pydicom.datadict import dictionary_has_tag, dictionary_VM, dictionary_VR, keyword_dict
from pydicom.sequence import Sequence

from mmrl.data.image import dicom, dicom_pixels, readers
from mmrl.data.image.kinds import ImageError
from tests import dicoms

PIXELS = dicoms.ramp(12)
SECRET = "Xanthippe"  # a name that no message of ours contains
NUMBERS = "7351978462"
DATE, TIME = "19410309", "073519"
# What to write where the VR does not take a name; UIDs and numbers hold the digits.
BY_VR = {
    **dict.fromkeys(("LO", "LT", "PN", "ST", "UT", "UC"), f"{SECRET}^{NUMBERS}"),
    **dict.fromkeys(("AE", "CS", "SH"), SECRET.upper()),
    **{"DA": DATE, "DT": DATE, "TM": TIME, "UI": f"1.2.{NUMBERS}", "IS": NUMBERS[:9]},
    **{"DS": NUMBERS, "UR": f"urn:{SECRET}"},
}
SECRETS = (SECRET.lower(), NUMBERS, NUMBERS[:9], DATE, TIME)
# Values that must stay as they are for the file to be an image at all.
KEPT = {"PhotometricInterpretation", "NumberOfFrames", "BurnedInAnnotation", "VOILUTFunction"}
KEPT |= {"RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth", "SpecificCharacterSet"}


def planted() -> bytes:
    """An image with a secret in every text attribute of the patient, study and image groups."""
    ds = dicoms.dataset(PIXELS, 12)
    for keyword, tag in keyword_dict.items():
        if tag >> 16 not in (0x08, 0x10, 0x18, 0x20, 0x28, 0x32, 0x38, 0x40) or keyword in KEPT:
            continue
        if not dictionary_has_tag(tag) or dictionary_VM(tag) not in ("1", "1-n", "2"):
            continue
        if (value := BY_VR.get(dictionary_VR(tag))) is not None:
            ds.add_new(tag, dictionary_VR(tag), [value] * (1 + (dictionary_VM(tag) == "2")))
    item = Dataset()
    item.PatientName, item.CodeMeaning = f"{SECRET}^Nested", SECRET
    ds.RequestAttributesSequence = Sequence([item])
    ds.private_block(0x0009, f"{SECRET} Ltd", create=True).add_new(1, "LO", SECRET)
    ds.file_meta.PrivateInformationCreatorUID = f"1.2.{NUMBERS}"
    ds.file_meta.SourceApplicationEntityTitle = SECRET
    return dicoms.write(ds)


PLANTED = planted()


def assert_silent(text: str) -> None:
    found = [secret for secret in SECRETS if secret in text.lower()]
    assert not found, text[:300]


def outcome(use: Callable[[], Any]) -> str:
    """Returns all the text that a result or an error could show."""
    try:
        result = use()
    except ImageError as error:
        assert error.__cause__ is None and error.__context__ is None
        return f"{error!r} {error} {error.args} {''.join(traceback.format_exception(error))}"
    return repr(result) + str(result)


def test_planted_secrets_do_not_leave(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert PLANTED.lower().count(SECRET.lower().encode()) > 400
    header = dicom.inspect(PLANTED)
    assert_silent(repr(header) + str(header))
    assert header[4:7] == ("OTHER", "OTHER", None) and header.body_part == "OTHER"
    assert header.age is None and header.sex == header.laterality == ""
    path = tmp_path / f"{SECRET}-{NUMBERS}.dcm"
    assert_silent(outcome(lambda: readers.read(path)))
    path.write_bytes(PLANTED[: len(PLANTED) // 2])
    with caplog.at_level(logging.DEBUG):
        for use in (readers.read, functools.partial(readers.header, str(tmp_path))):
            assert_silent(outcome(functools.partial(use, path)))
        for verify in ("decode", "header"):
            found = readers.fault(str(tmp_path), path.name, verify)
            assert found
            assert_silent(found[1])
    assert_silent(caplog.text)


def test_damage_does_not_make_secrets_leave(capfd: pytest.CaptureFixture[str]) -> None:
    chance = random.Random(3)
    head = PLANTED.index(b"\xe0\x7f\x10\0")
    for trial in range(150):
        damaged = bytearray(PLANTED[: chance.randrange(132, head)] if trial % 3 == 0 else PLANTED)
        for _ in range(trial % 7):
            damaged[chance.randrange(132, min(head, len(damaged)))] = chance.randrange(256)
        assert_silent(outcome(lambda data=bytes(damaged): dicom.inspect(data)))
        assert_silent(outcome(lambda data=bytes(damaged): dicom_pixels.decode(data)))
    assert_silent("".join(capfd.readouterr()))


WANTED = ("Rows", "Columns", "BitsStored", "NumberOfFrames", "WindowCenter", "RescaleSlope")
WANTED += ("PhotometricInterpretation", "VOILUTFunction", "BurnedInAnnotation", "PixelSpacing")
WANTED += ("PatientAge", "PatientSex", "ViewPosition", "Modality", "PatientPosition", "PatientID")


@pytest.mark.parametrize("keyword", WANTED)
def test_text_in_a_wanted_attribute_does_not_leave(keyword: str) -> None:
    ds = dicoms.dataset(PIXELS, 12, WindowCenter=5, WindowWidth=9)
    ds.add_new(keyword, "LO", f"{SECRET}^{NUMBERS}")
    data = dicoms.write(ds)
    assert_silent(outcome(lambda: dicom.inspect(data)))
    assert_silent(outcome(lambda: dicom_pixels.decode(data)))


def test_header_says_what_the_file_says() -> None:
    data = dicoms.image(
        PIXELS,
        12,
        Modality="DX",
        ViewPosition="PA",
        PixelSpacing=[0.14, 0.15],
        ImagerPixelSpacing=[0.2, 0.2],
        ImageLaterality="R",
        PatientSex="F",
        PatientAge="058Y",
        PatientPosition="HFS",
        BodyPartExamined="CHEST",
        BurnedInAnnotation="NO",
    )
    header = dicom.inspect(data)
    assert header == dicom.Header(
        height=36,
        width=40,
        bits_stored=12,
        photometric="MONOCHROME2",
        projection="PA",
        modality="DX",
        spacing=(0.14, 0.15),
        laterality="R",
        sex="F",
        age=58.0,
        patient_position="HFS",
        body_part="CHEST",
        burned_in="NO",
        transfer_syntax=uid.ExplicitVRLittleEndian,
    )
    assert type(header.transfer_syntax) is str
    bare = dicom.inspect(dicoms.image(PIXELS, 12))
    assert bare[4:13] == ("UNKNOWN", "", None, "", "", None, "", "", "")


@pytest.mark.parametrize(
    ("text", "age"),
    [("058Y", 58), ("006M", 0.5), ("052W", 0.9966), ("10", 10), ("155Y", None), ("old", None)],
)
def test_ages_are_in_years(text: str, age: float | None) -> None:
    ds = dicoms.dataset(PIXELS, 12)
    ds.add_new("PatientAge", "LO", text)  # as AS, pydicom refuses to write the odd ones
    assert dicom.inspect(dicoms.write(ds)).age == (age and pytest.approx(age, abs=1e-4))


@pytest.mark.parametrize(
    ("text", "projection"), [("LL", "LATERAL"), ("RL", "LATERAL"), ("AP", "AP"), ("RLO", "OTHER")]
)
def test_projections_are_those_of_an_image_reference(text: str, projection: str) -> None:
    data = dicoms.image(PIXELS, 12, ViewPosition=text, ImagerPixelSpacing=[0.1, 0.1])
    header = dicom.inspect(data)
    assert header.projection == projection and header.spacing == (0.1, 0.1)
