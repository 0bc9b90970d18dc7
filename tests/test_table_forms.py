"""Tables as other programs write them: each is read as meant, or refused in true words."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmrl.data.reading import tabular
from mmrl.data.sources.table import Table
from mmrl.types import InputError

HEADER = ("image", "report", "patient")
ROWS = [("0.png", "Kein Erguss, größer.", "p0"), ("1.png", "Klar.", "p1")]


def text(delimiter: str = ",", header: tuple[str, ...] = HEADER) -> str:
    quoted = [tuple(f'"{cell}"' if delimiter in cell else cell for cell in row) for row in ROWS]
    return "".join(delimiter.join(row) + "\r\n" for row in [header, *quoted])


def sheet(tmp_path: Path, content: str | bytes, name: str = "t.csv", **options: Any):
    """The open table, and its rows."""
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    found = tabular.open_table(str(path), **options)
    return found, list(found.rows(found.columns))


def refusal(tmp_path: Path, content: str | bytes, name: str = "t.csv", **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        sheet(tmp_path, content, name, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(f"{tmp_path / name}: ")


def cells(rows: list[Any]) -> list[tuple[str, ...]]:
    assert not any(problem for _, _, problem in rows)
    return [tuple(row.values()) for _, row, _ in rows]


# --- delimiters


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_the_only_delimiter_of_a_header_is_taken_and_said(tmp_path, delimiter):
    found, rows = sheet(tmp_path, text(delimiter))
    assert (found.columns, cells(rows)) == (list(HEADER), ROWS)
    assert found.notes == (f"t.csv: cells are divided by {delimiter!r}, as in its header",)
    # Quotes may hide others, and the suffix .tsv is no better than .csv.
    quoted = text(delimiter, ("image", '"report, all; of|it\t"', "patient"))
    assert sheet(tmp_path, quoted)[0].columns[0] == "image"
    if delimiter != "\t":
        assert cells(sheet(tmp_path, text(delimiter), "t.tsv")[1]) == ROWS


def test_a_delimiter_is_never_guessed(tmp_path):
    found, rows = sheet(tmp_path, text())
    assert (found.notes, found.hint, cells(rows)) == ((), "", ROWS)
    found, _ = sheet(tmp_path, "image;report|all;patient\n1;2;3\n")
    assert found.columns == ["image;report|all;patient"] and found.notes == ()
    hint = "; cells are divided by ',', and the header has ';' and '|': data.delimiter states"
    assert found.hint.startswith(hint)
    (tmp_path / "0.png").touch()
    with pytest.raises(InputError) as caught:
        Table(split="train", path=str(tmp_path / "t.csv"), verify="exists")
    message = "t.csv: no column 'image', 'report'; present: 'image;report|all;patient'; cells are"
    assert message in str(caught.value)
    table = Table(
        split="train",
        path=str(tmp_path / "t.csv"),
        delimiter=";",
        report_columns="report|all",
        root=str(tmp_path),
        verify="exists",
        fractions=(1, 0, 0),
    )
    assert table.total == 1
    assert cells(sheet(tmp_path, text("\t"), delimiter=r"\t")[1]) == ROWS
    assert "delimiter=';;'; expected one character" in refusal(tmp_path, text(), delimiter=";;")


def test_the_first_line_of_excel_states_the_delimiter(tmp_path):
    found, rows = sheet(tmp_path, "sep=;\r\n" + text(";") + "x;y\r\n")
    assert found.columns == list(HEADER)
    assert [problem for *_, problem in rows] == ["", "", "2 fields, expected 3 (line 5)"]
    assert found.notes == ("t.csv: cells are divided by ';', as its first line says",)
    odd = text("~").replace("~", "^")
    assert cells(sheet(tmp_path, '"SEP=^"\n' + odd)[1]) == ROWS


def test_decimal_commas_are_no_numbers(tmp_path):
    (tmp_path / "0.png").touch()
    path = tmp_path / "t.csv"
    path.write_text("image;report;gene;sure\n0.png;Clear.;1,5;1\n")
    given: dict[str, Any] = {"split": "train", "path": str(path), "fractions": (1, 0, 0)}
    table = Table(vector_columns="gene", verify="exists", **given)
    assert table.rejects[0].detail.endswith("'1,5' in 'gene'; expected a number, or all columns"
                                            " blank; with a decimal point: 1.5")  # fmt: skip
    path.write_text(path.read_text().replace(";1\n", ";1,0\n"))
    with pytest.raises(InputError, match=r"label '1,0' in 'sure'.*with a decimal point: 1\.0"):
        Table(label_columns="sure", verify="exists", **given)


# --- encodings


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32", "utf-8-sig"])
@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.csv.gz"])
def test_a_byte_order_mark_states_the_encoding(tmp_path, encoding, name):
    content = text()
    if "jsonl" in name:
        lines = (dict(zip(HEADER, row, strict=True)) for row in ROWS)
        content = "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines)
    data = content.encode(encoding)
    if encoding == "utf-16-be":
        data = b"\xfe\xff" + data
    found, rows = sheet(tmp_path, gzip.compress(data) if "gz" in name else data, name)
    assert (found.columns, cells(rows)) == (list(HEADER), ROWS)
    said = {"utf-16": "UTF-16-LE", "utf-16-be": "UTF-16-BE", "utf-32": "UTF-32-LE"}
    wide = f"{name}: it is read as {said.get(encoding)}, as its byte-order mark says"
    assert found.notes == ((wide,) if encoding in said else ())
    assert cells(sheet(tmp_path, content.encode(encoding), "t.csv", encoding=encoding)[1]) == ROWS


@pytest.mark.parametrize(
    ("encoding", "likely", "place"),
    [
        ("cp1252", "cp1252", "row 1 is not UTF-8: byte 0xF6 at offset 44"),
        ("utf-16-le", "utf-16-le", "the header is not UTF-8: byte 0x00 at offset 1"),
        ("utf-16-be", "utf-16-be", "the header is not UTF-8: byte 0x00 at offset 0"),
        ("gb18030", "", "row 1 is not UTF-8: byte 0x81 at offset 44"),
    ],
)
def test_other_encodings_are_refused_by_row_and_byte_unless_stated(
    tmp_path, encoding, likely, place
):
    data = text().encode(encoding)
    said = f"data.encoding={likely or 'NAME'}"
    message = refusal(tmp_path, data)
    if likely:
        said += f" or convert it: iconv -f {likely} -t utf-8"
        assert f"the file is likely {likely}" in message
    assert message.startswith(place) and message.endswith(said)
    assert cells(sheet(tmp_path, data, encoding=encoding)[1]) == ROWS
    late = b"image,report,patient\n" + b"0.png,x,p\n" * 9000 + data.splitlines()[1] + b"\n"
    if "utf" not in encoding:
        assert refusal(tmp_path, late).startswith("row 9001 is not UTF-8: byte 0x")
        assert refusal(tmp_path, gzip.compress(late), "t.csv.gz").startswith("row 9001 is not")


def test_rows_of_several_lines_count_once_where_a_byte_is_wrong(tmp_path):
    data = b'image,report\n0.png,"a\nb\n\nc"\n1.png,caf\xe9\n'
    place = f"row 2 is not UTF-8: byte 0xE9 at offset {data.index(0xE9)}"
    assert refusal(tmp_path, data).startswith(place)
    lines = b'\n{"image": "a"}\n\n{"image": "caf\xe9"}\n'
    assert refusal(tmp_path, lines, "t.jsonl").startswith("row 2 is not UTF-8: byte 0xE9 at offset")
    assert refusal(tmp_path, b"caf\xe9,b\n1,2\n").startswith("the header is not UTF-8: byte 0xE9")
    assert "is not UTF-16-LE: byte" in refusal(tmp_path, text().encode("utf-16")[:-1])


@pytest.mark.parametrize("encoding", ["klingon", "zip", "rot13", "", "hex"])
def test_no_such_encoding(tmp_path, encoding):
    if encoding:
        message = (
            f"data.encoding={encoding!r} is no encoding of text; expected a name such as utf-8"
        )
        assert refusal(tmp_path, text(), encoding=encoding).startswith(message)
    else:
        assert cells(sheet(tmp_path, text(), encoding=encoding)[1]) == ROWS
    wide = "data.encoding=utf-16, but it has no byte-order mark; expected utf-16-le or utf-16-be"
    assert refusal(tmp_path, text().encode("utf-16-be"), encoding="UTF_16") == wide
    assert "cannot be decoded: " in refusal(tmp_path, text(), encoding="undefined")


# --- names of columns


def test_blanks_around_names_are_not_part_of_them(tmp_path):
    spaced = 'image, report, patient\n0.png, "Kein Erguss, größer.", p0\n1.png, Klar., p1\n'
    found, rows = sheet(tmp_path, spaced)
    assert (found.columns, cells(rows)) == (list(HEADER), ROWS)
    assert found.notes == ("t.csv: blanks after delimiters are not part of the cells",)
    found, rows = sheet(tmp_path, text(header=("image", " report", "patient ")))
    assert (found.columns, cells(rows)) == (list(HEADER), ROWS)
    assert found.notes == ("t.csv: blanks around column names are not part of them",)
    found, rows = sheet(tmp_path, '{" image": "0.png", "report\\t": "x"}\n', "t.jsonl")
    assert (found.columns, cells(rows)) == (["image", "report"], [("0.png", "x")])
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"image ": ["0.png"], "report": ["x"]}), path)
    found = tabular.open_table(str(path))
    assert found.columns == ["image", "report"]
    assert cells(list(found.rows(["report", "image"]))) == [("x", "0.png")]
    # Two names that would be equal stay as they are.
    found, rows = sheet(tmp_path, "image,image ,report\n1,2,3\n")
    assert found.columns == ["image", "image ", "report"] and found.notes == ()


def test_last_columns_without_a_name_are_those_of_excel(tmp_path):
    found, rows = sheet(tmp_path, "a,b,,\n1,2,,\n3,4, ,\n5,6\n7,8,,,,\n")
    assert found.columns == ["a", "b"] and found.notes == ()
    assert cells(rows) == [("1", "2"), ("3", "4"), ("5", "6"), ("7", "8")]
    # A report that a delimiter divides must not be cut there.
    _, rows = sheet(tmp_path, "image,report,,\n0.png,There is, no effusion,\n1.png,x,,,y\n")
    assert [problem for *_, problem in rows] == [
        "' no effusion' in column 3, which has no name (line 2)",
        "5 fields, expected 4 (line 3)",
    ]
    # The column of row numbers that pandas writes.
    found, rows = sheet(tmp_path, ",a,b\n0,1,2\n")
    assert found.columns == ["a", "b"] and cells(rows) == [("1", "2")]
    found, rows = sheet(tmp_path, "a,b\n1,2,,\n3,4,5\n")
    assert [problem for *_, problem in rows] == ["", "3 fields, expected 2 (line 3)"]
    # Empty rows between and below the others.
    _, rows = sheet(tmp_path, "a,b,\n1,2,\n,,\n3,4,\n , \n,,\n")
    assert cells(rows) == [("1", "2"), ("3", "4")] and [row[0] for row in rows] == [1, 3]
    assert refusal(tmp_path, ",,\n1,2,3\n") == "the header names no column"


def test_a_missing_column_names_what_is_like_it(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("Image,Reports,a b\n1,2,3\n")
    with pytest.raises(InputError) as caught:
        Table(split="train", path=str(path))
    assert str(caught.value) == (
        f"{path}: no column 'image', 'report' (did you mean 'Image', 'Reports'?);"
        " present: 'Image', 'Reports', 'a b'; options such as image_column, report_columns and"
        " patient_column name the columns:"
        " --config.data.image_column=NAME in training, --option=image_column=NAME to prepare"
    )
    path.write_text(",".join(f"g{number}" for number in range(1000)) + "\n")
    with pytest.raises(InputError, match=r"'g29' and 970 more; options such as"):
        Table(split="train", path=str(path))


# --- content that is not what the suffix says


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.jsonl", '[\n {\n  "image": "0.png"\n }\n]', "it is a JSON array; expected one JSON"),
        ("t.jsonl", '[{"image": "0.png"}]', "it is a JSON array; expected one JSON object"),
        ("t.csv", '[{"image": "0.png"}]', "it is a JSON array; expected one JSON object"),
        ("t.json", '[{"image": "0.png"}]', "a table of type '.json'; choices: .csv, .tsv, .jsonl"),
        ("t.jsonl", '{\n"image": "0.png"\n}', "no line is a JSON object; row 1: not JSON: Expect"),
        ("t.jsonl", "[1]\n[2]\n", "no line is a JSON object; row 1: list, expected an object"),
        ("t.jsonl", "\n", "empty; expected one JSON object per line"),
        ("t.csv", "<!DOCTYPE html>\n<html>", "it is an HTML page, such as that of a login"),
        ("t.csv", "\ufeff  <HTML lang='en'>", "it is an HTML page, such as that of a login"),
        ("t.csv", b"PK\x03\x04" + bytes(60), "it is a zip file, such as an Excel workbook; save"),
        ("t.tsv", b"\xd0\xcf\x11\xe0\xa1\xb1", "it is an old Excel workbook (.xls); save the"),
        (
            "t.csv.gz",
            gzip.compress(b"PAR1" + bytes(20), mtime=0),
            "a gzipped Parquet file; unpack it first",
        ),
        ("t.csv", b"BZh91AY&SY", "it is compressed with bzip2; unpack it first"),
    ],
)
def test_other_content_is_refused_in_true_words(tmp_path, name, content, message):
    found = refusal(tmp_path, content, name)
    assert found.startswith(message)
    if "JSON array" in found or ".json" in name[-5:]:
        assert found.endswith("convert it: jq -c '.[]' OLD.json > NEW.jsonl")


def test_content_that_is_certain_is_read_whatever_the_suffix(tmp_path):
    found, rows = sheet(tmp_path, gzip.compress(text().encode()))
    assert cells(rows) == ROWS and found.notes == ("t.csv: it is gzipped, and is read as such",)
    found, rows = sheet(tmp_path, text(), "t.csv.gz")
    assert cells(rows) == ROWS
    assert found.notes == ("t.csv.gz: it is not gzipped, and is read as such",)
    pq.write_table(
        pa.table(dict(zip(HEADER, zip(*ROWS, strict=True), strict=True))), tmp_path / "p"
    )
    found, rows = sheet(tmp_path, (tmp_path / "p").read_bytes())
    assert cells(rows) == ROWS
    assert found.notes == ("t.csv: it is a Parquet file, and is read as such",)
    found, rows = sheet(tmp_path, '{"image": "0.png", "report": "x"}\n')
    assert cells(rows) == [("0.png", "x")]
    assert found.notes == ("t.csv: it has JSON objects, and is read as JSONL",)
