"""Cells that stand for nothing: one rule for every column."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from mmrl.data.corpus import read_corpus
from mmrl.data.reading.drafts import Draft, Facts
from mmrl.data.reading.listing import Listing
from mmrl.data.sources.table import Table
from mmrl.data.text import blanks, reports
from mmrl.types import InputError
from tests.corpus_files import every, write_csv

# As pandas 3 lists them: pandas._libs.parsers.STR_NA_VALUES.
PANDAS = (
    " #N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN",
    "<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null", "", "#N/A",
)  # fmt: skip


def table(folder: Path, rows: list[tuple[Any, ...]], header: tuple[str, ...], **options: Any):
    """A table of texts, in one split."""
    write_csv(folder / "t.csv", header, rows)
    given = {"split": "train", "fractions": (1, 0, 0), "image_column": "", **options}
    return Table(path=str(folder / "t.csv"), **given)


def test_the_rule_is_that_of_pandas():
    assert all(map(blanks.is_blank, PANDAS))
    assert all(map(blanks.is_blank, ("  ", "\u00a0", " none\n", "Not available", "NOT GIVEN")))
    kept = ("0", "n", "None.", "na na", "nano", "-", "x" * 5000, "nan" * 9)
    assert not any(map(blanks.is_blank, kept))
    own = blanks.Blanks(("missing", " Unknown "))
    assert own("MISSING") and own("unknown") and own(" ") and not own("NA")


@pytest.mark.parametrize("word", ["nan", "NA", "None", "null", "<NA>", "#N/A", " n/a "])
@pytest.mark.parametrize("column", ["patient", "uid"])
def test_people_without_a_name_are_not_one_person(tmp_path, word, column):
    rows = [(f"Clear {n}.", f"p{n}", f"u{n}") for n in range(4)]
    place = ("report", "patient", "uid").index(column)
    rows += [tuple(word if at == place else cell for at, cell in enumerate(row)) for row in rows]
    rows[4:] = [(f"Mass {n}.", *row[1:]) for n, row in enumerate(rows[4:])]
    rows[4:] = [
        (report, patient if column == "patient" else f"q{n}", uid if column == "uid" else f"v{n}")
        for n, (report, patient, uid) in enumerate(rows[4:])
    ]
    options = {"patient_column": "patient", "id_column": "uid"}
    found = table(tmp_path, rows, ("report", "patient", "uid"), **options)
    assert len(found) == 4 and found.total == 8
    assert Counter(r.reason for r in found.rejects) == {"bad_row": 4}
    assert found.rejects[0].detail == f"row 5: blank {column!r}: {word.strip()!r}"
    assert found.warnings == [
        f"cells read as blank: {word.strip()!r} in {column!r} (4);"
        " data.blank states which texts are blank"
    ]


def test_a_patient_who_is_called_so(tmp_path):
    rows = [("Clear.", "NA"), ("Mass.", "nan"), ("Effusion.", " ")]
    found = table(tmp_path, rows, ("report", "patient"), patient_column="patient", blank=("nan",))
    assert [record.patient_id for record in every(found)] == ["NA"]
    assert [reject.detail for reject in found.rejects] == [
        "row 2: blank 'patient': 'nan'",
        "row 3: blank 'patient'",
    ]


def test_one_rule_for_every_column(tmp_path):
    header = ("report", "more", "study", "licence", "view", "sure", "class", "list", "sex", "gene")
    rows: list[tuple[Any, ...]] = [
        ("Clear.", "N/A", *["nan", "NULL", "NA", "None", "#N/A", "<NA>", "n/a", "NaN"]),
        ("Mass.", "All of it.", "s", "CC0", "PA", 1, "a", "x|y", "F", 2.5),
    ]
    options = {
        "report_columns": ("report", "more"),
        "study_column": "study",
        "license_column": "licence",
        "projection_column": "view",
        "label_columns": "sure",
        "class_column": "class",
        "labels_column": "list",
        "attribute_columns": "sex",
        "vector_columns": "gene",
    }
    first, second = every(table(tmp_path, rows, header, **options))
    assert dict(first.sections) == {"report": "Clear."} and first.study_id == "1/1"
    assert (first.license, first.attributes, first.vector) == ("", {}, None)
    assert first.labels == (-2, -2, -2, -2) and first.label_names == ("sure", "a", "x", "y")
    assert second.labels == (1, 1, 1, 1) and second.vector == (2.5,)
    plain = table(tmp_path, [("", *row[1:]) for row in rows], header, **options)
    assert [reject.reason for reject in plain.rejects] == ["empty_report"]
    kept = table(tmp_path, rows[:1], header, blank=(), **{**options, "label_columns": ()} | {
        "vector_columns": ()})[0]  # fmt: skip
    assert kept.attributes == {"sex": "n/a"} and kept.license == "NULL"
    with pytest.raises(InputError, match="label 'None' in 'sure'"):
        table(tmp_path, rows, header, blank=(), **options)


WORDLESS = (
    "___", "...", "-", "FINDINGS:", "FINDINGS:\nIMPRESSION:", "XXXX XXXX.", "[**Name**] ___",
    " FINAL REPORT\n EXAMINATION:  ___\n\n INDICATION:  ___", "LUNGS:\nHEART: ", "[REDACTED]",
    "Impression: none.", "\u2022 \u2022", "nan", "None.",
)  # fmt: skip
WORDS = ("1.", "ok", "IMPRESSION: Normal.", "FINDINGS: Mass.\nIMPRESSION: ___", "XXX.", "正常")


def test_reports_without_a_word_are_empty(tmp_path):
    rows = [(text, f"p{n}") for n, text in enumerate((*WORDLESS, *WORDS))]
    found = table(tmp_path, rows, ("report", "patient"), patient_column="patient")
    corpus = read_corpus("t/train", found, sections=("report",), need_images=False)
    assert len(corpus) == len(WORDS) and corpus.total == len(rows)
    assert {reject.reason for reject in corpus.rejects} == {"empty_report"}
    assert corpus.rejects[0].detail == "row 1: nothing in 'report' but '___'"
    assert all(map(reports.is_blank, WORDLESS)) and not any(map(reports.is_blank, WORDS))
    # No one of them counts as the report of another.
    assert len(set(corpus.groups.tolist())) == len(WORDS)


class Toy(Listing):
    facts = Facts("toy", "", "CC0")

    def scan(self):
        names = ("a", "nan", "b", "c")
        for name, patient in zip(names, ("NA", "p", "NA", "q"), strict=True):
            attributes = {"sex": "F", "age": "null"}
            yield Draft(name, patient, "none", attributes=attributes, sections={"full": "None"})


def test_corpora_of_others_follow_the_same_rule(tmp_path):
    toy = Toy(split="all", path=str(tmp_path))
    assert [(r.patient_id, r.leakage_unit_known) for r in every(toy)] == [
        ("a", False),
        ("b", False),
        ("q", True),
    ]
    assert toy[0].attributes == {"sex": "F"} and toy[0].study_id == "a/a"
    assert toy[0].sections == {"full": "None"}  # texts are judged when they are read
    assert [(r.id.partition(":")[2], r.reason, r.detail) for r in toy.rejects] == [
        ("nan", "bad_row", "blank id")
    ]
    own = Toy(split="all", path=str(tmp_path), blank=())
    assert own[0].patient_id == "NA" and len(own) == 4
