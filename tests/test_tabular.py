"""Tables as text: what no file may do to the memory, and lines of files that are no table."""

import gzip

import pytest

from mmrl.data.reading import tabular, text_files
from mmrl.types import InputError


def test_lines_end_at_line_feeds_only(tmp_path):
    path = tmp_path / "captions.txt"
    path.write_bytes("\ufeffa\u2028b\x0bc\r\n\nd\re".encode() + b"\nx\xff\nlast")
    expected = [
        (1, "a\u2028b\x0bc", ""),
        (2, "", ""),
        (3, "d\re", ""),
        (4, "", "not UTF-8: invalid start byte"),
        (5, "last", ""),
    ]
    assert list(tabular.lines(str(path))) == expected
    packed = tmp_path / "captions.txt.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert list(tabular.lines(str(packed))) == expected
    with pytest.raises(InputError, match="no such file"):
        tabular.lines(str(tmp_path / "gone.txt"))


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("suffix", [".csv.gz", ".jsonl.gz", ".tsv.gz"])
def test_a_bomb_is_refused_before_it_fills_the_memory(tmp_path, suffix):
    path = tmp_path / f"table{suffix}"
    path.write_bytes(gzip.compress(b'{"a":1}\n' * 2**19))
    assert path.stat().st_size < 2**14
    with pytest.raises(InputError, match="unpacks to more than 100 times its size"):
        names = tabular.columns(str(path))
        list(tabular.rows(str(path), names))


def test_a_small_table_may_pack_well(tmp_path):
    path = tmp_path / "table.csv.gz"
    path.write_bytes(gzip.compress(b"a,b\n" + b"1,1\n" * 2**17))
    assert path.stat().st_size * 100 < 2**19
    assert sum(1 for _ in tabular.rows(str(path), ["b"])) == 2**17


def test_a_bomb_is_noticed_as_it_begins(tmp_path):
    path = tmp_path / "table.csv.gz"
    member = gzip.compress(b"a\n" * 2**22)
    path.write_bytes(gzip.compress(b"a\n1\n") + member * 100)
    rows = tabular.rows(str(path), ["a"])
    with pytest.raises(InputError, match="unpacks to more than 100 times its size"):
        for number, _, _ in rows:
            assert number < 2**23


def test_a_table_of_rows_that_do_not_fit_is_refused(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("a,b\n" + "1,1\n" * 20_000 + "1\n" * 20_000)
    assert sum(bool(problem) for _, _, problem in tabular.rows(str(path), ["a"])) == 20_000
    path.write_text("a,b\n1,1\n" + "1\n" * 20_000)
    with pytest.raises(InputError, match="10001 of 10002 rows do not fit, the first is row 2: 1 "):
        list(tabular.rows(str(path), ["a"]))


def test_an_endless_line_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "LONGEST_LINE", 2**10)
    for name in ("table.csv", "table.jsonl", "captions.txt"):
        path = tmp_path / name
        path.write_bytes(b"a\n" + b"x" * 2**11)
        with pytest.raises(InputError, match=r"a line of more than 1024 characters"):
            list(tabular.lines(str(path)) if ".txt" in name else tabular.rows(str(path), ["a"]))
