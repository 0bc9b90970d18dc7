"""Reports of MIMIC-CXR cut into sections; every report here is invented."""

import random
import re

import pytest

from mmrl.data.text.mimic_reports import parse_report
from mmrl.data.text.reports import KNOWN_SECTIONS

USUAL = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)
 
 INDICATION:  ___F with cough  // eval for pneumonia
 
 TECHNIQUE:  Chest PA and lateral
 
 COMPARISON:  None.
 
 FINDINGS: 
 
 There is no mass of 2.5 cm.
 LUNGS: Clear.
 
 IMPRESSION: 
 
 1. No acute process.
 2. Unchanged at 10:30.
"""  # noqa: W291, W293


def test_the_usual_report():
    assert parse_report(USUAL) == {
        "examination": "CHEST (PA AND LAT)",
        "indication": "___F with cough  // eval for pneumonia",
        "technique": "Chest PA and lateral",
        "comparison": "None.",
        "findings": "There is no mass of 2.5 cm.\n LUNGS: Clear.",
        "impression": "1. No acute process.\n 2. Unchanged at 10:30.",
    }
    assert parse_report(USUAL.replace("\n", "\r\n")) == parse_report(USUAL)


# What the published parser loses or misplaces, and what it gets right: text and expected sections.
CASES = {
    "header at byte 0": ("IMPRESSION: Clear.", {"impression": "Clear."}),
    "swallowed impression": (
        " FINDINGS:\n IMPRESSION: No change.",
        {"impression": "No change."},
    ),
    "no indentation": (
        "FINAL REPORT\nFINDINGS: One.\nIMPRESSION: Two.",
        {"findings": "One.", "impression": "Two."},
    ),
    "digits and masks in a header": (
        "FINAL REPORT\n CHEST 2 VIEWS, ___:\n \n Clear lungs.",
        {"examination": "CHEST 2 VIEWS, ___", "findings": "Clear lungs."},
    ),
    "view header without an impression": (
        " HISTORY: Cough.\n PORTABLE CHEST: Clear.",
        {"history": "Cough.", "examination": "PORTABLE CHEST", "findings": "Clear."},
    ),
    "header that comes again": (
        " IMPRESSION: First.\n NOTE: Kept.\n IMPRESSION: Second.",
        {"impression": "First.\n NOTE: Kept.\nSecond."},
    ),
    "addendum before the report": (
        " FINAL ADDENDUM\n There is a nodule.\n FINAL REPORT\n FINDINGS: Clear.",
        {"addendum": "There is a nodule.", "findings": "Clear."},
    ),
    "addendum after it": (
        " IMPRESSION: Clear.\n ADDENDUM: A nodule.",
        {"impression": "Clear.", "addendum": "A nodule."},
    ),
    "wet read": (
        " WET READ: ___ 5:23 PM\n  No pneumothorax.\n FINAL REPORT\n IMPRESSION: Clear.",
        {"wet read": "___ 5:23 PM\n  No pneumothorax.", "impression": "Clear."},
    ),
    "last paragraph": (
        " FINAL REPORT\n INDICATION: Cough.\n \n Lungs clear.\n \n Heart normal.\n"
        " NOTIFICATION: Dr. ___ was told.",
        {
            "indication": "Cough.",
            "last_paragraph": "Lungs clear.\n \n Heart normal.",
            "notification": "Dr. ___ was told.",
        },
    ),
    "no blank line, no last paragraph": (
        " INDICATION: Cough. Lungs clear.",
        {"indication": "Cough. Lungs clear."},
    ),
    "no header at all": (
        "   FINAL REPORT\n Portable film.\n \n Lungs clear.",
        {"full": "Portable film.\n \n Lungs clear."},
    ),
    "headers within a line": (
        " HISTORY: Cough. COMPARISON: ___ FINDINGS: Clear. IMPRESSION: Normal.",
        {"history": "Cough.", "comparison": "___", "findings": "Clear.", "impression": "Normal."},
    ),
    "the end of a longer name is no header": (
        " COMPARISON: SEE OLD STUDY: none.\n FINDINGS: x",
        {"comparison": "SEE OLD STUDY: none.", "findings": "x"},
    ),
    "names alone on their line": (
        " FINDINGS\n Clear.\n IMPRESSION\n Normal.",
        {"findings": "Clear.", "impression": "Normal."},
    ),
    "misspelt and in small letters": (
        " FINDIGNS: Clear.\n Impresion: no.\n Impression: Normal.\n IMPESSION: Yes.",
        {"findings": "Clear.\n Impresion: no.", "impression": "Normal.\nYes."},
    ),
    "other names": (
        " REASON FOR EXAM: Fall.\n CONCLUSION: Normal.\n RECOMMENDATION(S): None.",
        {"indication": "Fall.", "impression": "Normal.", "recommendation": "None."},
    ),
    "both in one": (" FINDINGS AND IMPRESSION: Clear.", {"findings": "Clear."}),
    "organs open the findings": (
        " COMPARISON: None.\n \n LUNGS: Clear.\n HEART: Large.\n IMPRESSION: x",
        {"comparison": "None.", "findings": "LUNGS: Clear.\n HEART: Large.", "impression": "x"},
    ),
    "empty": (" FINAL REPORT\n FINDINGS:\n \n IMPRESSION:\n", {}),
    "nothing": ("", {}),
}


@pytest.mark.parametrize("name", CASES)
def test_what_a_header_is(name):
    text, expected = CASES[name]
    assert parse_report(text) == expected


def test_no_word_is_lost_and_none_is_doubled():
    chance = random.Random(0)
    headers = ("FINDINGS:", "IMPRESSION:", "LUNGS:", "PORTABLE CHEST:", "NOTE:", "ADDENDUM:", "")
    headers += ("COMPARISON:", "Indication:", "FINAL REPORT\n", "WET READ:", "CHEST 2 VIEWS ___:")
    for _ in range(300):
        words, text = [], ""
        for _ in range(chance.randrange(8)):
            body = [f"w{len(words) + k}x" for k in range(chance.randrange(5))]
            words += body
            blank = chance.choice([" ", "\n ", "\n \n ", "\n"])
            text += f"{chance.choice(['', ' ', '  '])}{chance.choice(headers)}{blank}"
            text += chance.choice([" ", ".\n "]).join(body) + ".\n"
        sections = parse_report(text)
        assert set(sections) <= set(KNOWN_SECTIONS)
        found = re.findall(r"w\d+x", " ".join(sections.values()))
        assert sorted(found) == sorted(words), text
        if any(part in sections for part in ("findings", "impression")):
            assert "last_paragraph" not in sections
