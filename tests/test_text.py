"""Words, sentences, sections, composition and comparison of reports."""

import csv
import os
import pathlib
import re
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.data.text import reports

SETTINGS = settings(max_examples=300, deadline=None, database=None, derandomize=True)


def solid(text: str) -> str:
    return "".join(text.split())


# --- words and normal forms ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("No pleural effusion.", ["No", "pleural", "effusion"]),
        ("A 2.5 cm mass, 1,000 mL.", ["A", "2.5", "cm", "mass", "1,000", "mL"]),
        ("Well-expanded; x-XXXX at C7-T1.", ["Well-expanded", "x-XXXX", "at", "C7-T1"]),
        ("effusion/pneumothorax, patient's ___.", ["effusion/pneumothorax", "patient's", "___"]),
        ("1. Clear. 2. No change 3. ", ["Clear", "No", "change", "3"]),
        ("12. Clear\n3) No. 2.No", ["Clear", "No", "No"]),
        ("Dr. Smith, e.g. at 3 p.m.", ["Dr.", "Smith", "e.g.", "at", "3", "p.m."]),
        ("Dr.Smith apex.There", ["Dr", "Smith", "apex", "There"]),
        ("o\u0301dema \u0915\u093f", ["o\u0301dema", "\u0915\u093f"]),
        (" ... ", []),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert reports.WORD.findall(text) == words


@given(st.text(max_size=60))
@SETTINGS
def test_two_words_never_touch(text: str) -> None:
    frame = reports.WORD.split(text)
    assert all(frame[1:-1])


def test_normalise_values() -> None:
    text = "\ufeffNo\u00a0\u00a0acute\r\n\tﬁnding\u200b.\x00 "
    assert reports.normalise(text) == "No acute finding."


@given(st.text(max_size=60))
@SETTINGS
def test_normalise_is_idempotent_and_canonical_ignores_layout(text: str) -> None:
    once = reports.normalise(text)
    assert reports.normalise(once) == once
    assert once == once.strip() and "  " not in once
    key = reports.canonical(text)
    assert reports.canonical(f"  {once} .\n") == key
    assert all(unicodedata.category(c)[0] in "LNM" or c == " " for c in key)


def test_canonical_tells_the_same_report_from_another() -> None:
    key = reports.canonical("The heart is normal. No effusion.")
    assert key == "the heart is normal no effusion"
    for same in ("THE heart is normal;  no effusion", "the heart\nis normal.. No effusion."):
        assert reports.canonical(same) == key
    for other in ("No effusion. The heart is normal.", "The heart is normal. Effusion."):
        assert reports.canonical(other) != key
    assert reports.canonical("2.5 cm") != reports.canonical("25 cm")
    assert reports.canonical("O\u0301dema") == reports.canonical("ó\u0064ema")
    assert reports.canonical("\u0915\u093f") != reports.canonical("\u0915\u0940")


# --- sentences -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sentences",
    [
        ["A 2.5 cm mass.", "No effusion."],
        ["Dr. Smith was called.", "Clear."],
        ["Discussed with Dr. J. Smith at 3 p.m. XXXX/XXXX.", "Dr. XXXX agreed."],
        ["Seen at 9 a.m.", "Stable."],
        ["Opacity, e.g. pneumonia, i.e. infection.", "Right vs. left."],
        ["1. No effusion.", "2. Stable heart.", "3. 1.7 cm nodule at T5 and L2."],
        ["1) No effusion.", "2) Stable heart."],
        ["1.Severe emphysema.", "2.No change."],
        ["Disc disease at C7-T1.", "Normal chest x-XXXX.", "XXXX.", "___.", "XXXX XXXX."],
        ["The lungs ... are clear...", "No change.."],
        ["Stable silhouette. .", "No change . ."],
        ["Is it pneumonia?", "Cough, ? TB.", "Call!"],
        ["no pneumothorax.", "heart size is normal.", "see fig. 3 and no. 2 there."],
        ["Grew E. coli.", "History of hepatitis B.", "No change."],
        ['He said "normal."', "(Not seen.)", "Yes"],
        ["Smith et al. described it.", "Size approx. 3 cm."],
        ["No effusion"],
    ],
)
def test_sentences(sentences: list[str]) -> None:
    assert reports.split_sentences(" ".join(sentences)) == sentences


def test_sentences_across_lines() -> None:
    text = "The heart is\nnormal. Lungs\nclear\n\nNo effusion\n- item one\n2. item two.Next one"
    assert reports.split_sentences(text) == [
        "The heart is normal.",
        "Lungs clear",
        "No effusion",
        "- item one",
        "2. item two.",
        "Next one",
    ]
    glued = "Disc at T5.There is no.. No.The e.g.The Dr.Smith vs.Right v1.5a"
    assert len(reports.split_sentences(glued)) == 4


def test_sentences_of_wordless_text() -> None:
    assert (reports.split_sentences(" \n "), reports.split_sentences("..")) == ([], [".."])
    assert reports.split_sentences(". \n\n! Clear. ?") == [". ! Clear. ?"]


@given(st.text(alphabet="aB1.?!… \n-)(\"'X_é", max_size=60))
@SETTINGS
def test_sentence_spans_cover_every_character(text: str) -> None:
    spans = reports.sentence_spans(text)
    outside, last = "", 0
    for low, high in spans:
        assert last <= low < high
        outside += text[last:low]
        last = high
    assert not solid(outside + text[last:])
    assert solid("".join(pieces := reports.split_sentences(text))) == solid(text)
    assert all(re.search(r"\w", piece) for piece in pieces) or len(pieces) == 1


# --- sections ------------------------------------------------------------------------------------


def test_sections_of_a_report_with_line_headers() -> None:
    text = """                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  ___F with cough // ? pneumonia

 COMPARISON:

 FINDINGS:

 LUNGS: clear.
 The heart is
 normal.

 CONCLUSION:  No acute process.
 IMPRESSION: Stable.
"""
    assert reports.parse_sections(text) == {
        "preamble": "FINAL REPORT",
        "examination": "CHEST (PA AND LAT)",
        "indication": "___F with cough // ? pneumonia",
        "comparison": "",
        "findings": "LUNGS: clear.\n The heart is\n normal.",
        "impression": "No acute process.\nStable.",
    }


@pytest.mark.parametrize(
    ("text", "sections"),
    [
        ("Clinical history: cough. Technique: PA. Findings : Clear. Impression: Normal.", {
            "history": "cough.", "technique": "PA.", "findings": "Clear.", "impression": "Normal.",
        }),
        ("INDICATION: cough COMPARISON: none FINDINGS: ok", {
            "indication": "cough", "comparison": "none", "findings": "ok",
        }),
        ("COMPARISON: Findings: ok", {"comparison": "", "findings": "ok"}),
        ("FINDINGS AND IMPRESSION: ok", {"findings": "ok"}),
        ("Reason for  exam: cough", {"indication": "cough"}),
        ("Seen at PM Comparison: CT", {"full": "Seen at PM Comparison: CT"}),
        ("findings: in lower case", {"full": "findings: in lower case"}),
        ("Our impression: none", {"full": "Our impression: none"}),
        ("No FINDINGS here", {"full": "No FINDINGS here"}),
        ("", {"full": ""}),
    ],
)  # fmt: skip
def test_sections(text: str, sections: dict[str, str]) -> None:
    assert reports.parse_sections(text) == sections
    assert set(sections) <= set(reports.KNOWN_SECTIONS)


def test_compose_orders_and_closes_sections() -> None:
    sections = {"findings": " Clear lungs ", "impression": "Normal.", "history": "cough?"}
    compose = reports.compose
    assert compose(sections, ("findings", "impression")) == "Clear lungs. Normal."
    assert compose(sections, ("impression", "findings")) == "Normal. Clear lungs."
    assert compose(sections, ("history", "absent", "impression")) == "cough? Normal."
    assert compose(sections, ("absent",)) == compose(sections, ()) == ""
    assert compose({"a": '("ok.")', "b": "end"}, ("a", "b")) == '("ok.") end.'


@pytest.mark.parametrize(
    "marker", ["", "  ", "nan", "NaN", "None", "None.", "N/A", "Not given.", "null", "<NA>", "."]
)
def test_missing_values_are_blank(marker: str) -> None:
    sections = {"findings": marker, "impression": "Ok"}
    assert reports.is_blank(marker) and not reports.is_blank(f"{marker} seen")
    assert reports.compose(sections, ("findings",)) == ""
    assert reports.compose(sections, ("findings", "impression")) == "Ok."


@pytest.mark.real_data
def test_no_real_report_loses_a_character() -> None:
    path = pathlib.Path(os.environ.get("MMRL_REAL_DATA", "../shared/data"))
    path = path / "openi" / "indiana_reports.csv"
    if not path.is_file():
        pytest.skip(f"{path} is absent; set MMRL_REAL_DATA")
    with path.open(newline="", encoding="utf-8") as file:
        texts = [row[name] for row in csv.DictReader(file) for name in ("findings", "impression")]
    split = [reports.split_sentences(text) for text in texts]
    for text, sentences in zip(texts, split, strict=True):
        assert solid("".join(sentences)) == solid(text)
    # An independent count of this file (regular expression on ". ") gave 22,092.
    assert abs(sum(map(len, split)) - 22092) < 100
    assert sum(bool(reports.parse_sections(text).keys() - {"full"}) for text in texts) < 10
