"""Small tables on which mmrl once failed; they lie in `cases` beside the folder of real data."""

import json

import pytest

from mmrl import presets
from mmrl.training import run
from mmrl.types import InputError

SPLITS = ("train", "val", "test")


@pytest.fixture(scope="module")
def cases(real_data):
    folder = real_data.parent / "cases"
    if not folder.is_dir():
        pytest.skip(f"no cases at {folder}")
    return folder


def read(cases, name, workdir, file="pairs.csv", **changes):
    """The splits of a case, read as training reads them."""
    config = presets.load("configs/pretrain.py:table,smoke")
    given = {"path": str(cases / name / file), **changes}
    presets.change(config, [(f"data.{key}", str(value)) for key, value in given.items()])
    return run.load_corpora(config, SPLITS, workdir)


@pytest.mark.parametrize(
    ("name", "count", "said"),
    [
        ("windows_paths", 80, "80 paths of images: backslashes are read as separators"),
        ("nfd_paths", 80, "letters are composed otherwise than in the names of the files"),
        ("dicom_nosuffix", 100, ""),
        ("voilut_empty", 100, ""),
        ("header_space", 80, "blanks after delimiters are not part of the cells"),
        ("csv_semicolon", 80, "cells are divided by ';'"),
        ("csv_utf16", 80, "it is read as UTF-16-LE, as its byte-order mark says"),
    ],
)
def test_tables_that_are_read(cases, tmp_path, name, count, said):
    found = read(cases, name, tmp_path)
    assert sum(map(len, found.values())) == count
    assert not (tmp_path / "rejects.jsonl").read_text()
    warnings = " ".join(found["train"].warnings)
    assert said in warnings
    for corpus in found.values():
        assert corpus.image(0).ndim == 2


def test_other_capital_letters_are_named_and_listed(cases, tmp_path):
    with pytest.raises(InputError) as error:
        read(cases, "case_mismatch", tmp_path)
    assert "no file 'images/0.png'; there is 'images/0.PNG'" in str(error.value)
    listed = [json.loads(line) for line in (tmp_path / "rejects.jsonl").read_text().splitlines()]
    assert {one["reason"] for one in listed} == {"missing_image"} and len(listed) > 50


def test_reports_without_a_word_are_counted(cases, tmp_path):
    with pytest.raises(InputError, match=r"rejected.*: 29 empty_report \(table:1: row 1: nothing"):
        read(cases, "deid_caps", tmp_path)
    found = read(cases, "deid_caps", tmp_path, max_reject_fraction=0.5)
    assert {one.reason for corpus in found.values() for one in corpus.rejects} == {"empty_report"}


def test_a_json_array_is_not_called_empty(cases, tmp_path):
    with pytest.raises(InputError, match="it is a JSON array; expected one JSON object per line"):
        read(cases, "json_array_as_jsonl", tmp_path, file="pairs.jsonl")
