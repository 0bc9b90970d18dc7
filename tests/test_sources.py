"""Table and its rejects: what it yields, what it refuses and in which words."""

import csv
import json
import os
from collections import Counter
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmrl import presets
from mmrl.data.reading.rejects import check_fraction, summarise, write_rejects
from mmrl.data.sources.table import Table
from mmrl.training import run
from mmrl.types import InputError, Record, Reject, Source

REAL_DATA = Path(
    os.environ.get("MMRL_REAL_DATA", Path(__file__).parent.parent / "../shared/data")
).resolve()
SPLITS = ("train", "val", "test")


def pixels(level: int) -> np.ndarray:
    return np.full((12, 16), level, np.uint8)


def example_rows(number: int = 40) -> list[dict[str, str]]:
    return [
        {
            "image": f"images/{index}.png",
            "findings": f'Lungs are clear, "image {index}".\nHeart ünlarged.\tEnd.',
            "impression": "" if index % 3 else f"Normal {index}.",
            "who": f"p{index // 2}",
            "view": ("PA", "AP Supine", "L", "", "oblique")[index % 5],
            "effusion": ("1", "0", "-1", "", "1.0")[index % 5],
            "licence": "CC0",
        }
        for index in range(number)
    ]


def write_images(folder: Path, number: int = 40) -> None:
    (folder / "images").mkdir()
    for index in range(number):
        cv2.imwrite(str(folder / f"images/{index}.png"), pixels(index))


def write_table(path: Path, rows: list[dict[str, str]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(
                file, rows[0].keys(), delimiter="\t" if path.suffix == ".tsv" else ","
            )
            writer.writeheader()
            writer.writerows(rows)
    return path


OPTIONS: dict[str, Any] = {
    "report_columns": {"findings": "findings", "conclusion": "impression"},
    "patient_column": "who",
    "projection_column": "view",
    "license_column": "licence",
    "label_columns": ("effusion",),
    "fractions": (0.6, 0.2, 0.2),
}
ONLY_TRAIN: dict[str, Any] = {**OPTIONS, "fractions": (1, 0, 0), "split": "train"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_images(tmp_path)
    return tmp_path


def every(source: Source) -> list[Record]:
    return [source[index] for index in range(len(source))]


def plain(record: Record) -> dict[str, Any]:
    fields = vars(record) | {"images": [(ref.key, ref.projection) for ref in record.images]}
    return fields | {"pixels": [ref.load().tolist() for ref in record.images]}


def refusal(path: Path, **options: Any) -> str:
    """The message of the InputError that building a Table raises."""
    with pytest.raises(InputError) as caught:
        Table(path=str(path), **{**ONLY_TRAIN, **options})
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_all_formats_yield_equal_records(folder: Path) -> None:
    rows = example_rows()
    yielded = {}
    for suffix in (".csv", ".tsv", ".jsonl", ".parquet"):
        path = write_table(folder / f"pairs{suffix}", rows)
        tables = [Table(split=split, path=str(path), **OPTIONS) for split in SPLITS]
        yielded[suffix] = [plain(record) for table in tables for record in every(table)]
    assert len(yielded[".csv"]) == 40
    for suffix in (".tsv", ".jsonl", ".parquet"):
        assert yielded[suffix] == yielded[".csv"], suffix
    by_id = {fields["id"]: fields for fields in yielded[".csv"]}
    first, second = by_id["table:1"], by_id["table:2"]
    assert first["sections"] == {
        "findings": 'Lungs are clear, "image 0".\nHeart ünlarged.\tEnd.',
        "conclusion": "Normal 0.",
    }
    assert list(second["sections"]) == ["findings"]
    assert (first["patient_id"], first["leakage_unit"], first["study_id"]) == ("p0", "p0", "p0/1")
    assert first["images"] == [("images/0.png", "PA")] and first["license"] == "CC0"
    projections = [by_id[f"table:{number}"]["images"][0][1] for number in range(1, 6)]
    assert projections == ["PA", "AP", "LATERAL", "UNKNOWN", "OTHER"]
    assert [by_id[f"table:{number}"]["labels"] for number in range(1, 6)] == [
        (1,), (0,), (-1,), (-2,), (1,),
    ]  # fmt: skip
    assert second["pixels"] == [pixels(1).tolist()] and second["label_names"] == ("effusion",)


def test_table_is_a_source_that_pickles_small(folder: Path) -> None:
    table = Table(path=str(write_table(folder / "t.csv", example_rows())), **ONLY_TRAIN)
    assert isinstance(table, Source)
    assert table.total == len(table) == 40 and table.rejects == [] and table.warnings == []
    copy = ForkingPickler.loads(ForkingPickler.dumps(table))
    assert plain(copy[7]) == plain(table[7]) == plain(table[-33])
    assert len(ForkingPickler.dumps(table)) < 40 * 300
    with pytest.raises(IndexError, match="record 40 of 40"):
        table[40]


def test_patients_never_cross_splits_and_the_salt_redraws(folder: Path) -> None:
    path = str(write_table(folder / "t.csv", example_rows()))
    tables = {split: Table(split=split, path=path, **OPTIONS) for split in SPLITS}
    patients = {split: {record.leakage_unit for record in every(tables[split])} for split in SPLITS}
    assert sum(map(len, tables.values())) == 40
    assert sum(map(len, patients.values())) == len(set.union(*patients.values())) == 20
    assert all(record.split == split for split in SPLITS for record in every(tables[split]))
    again = Table(split="train", path=path, **OPTIONS, split_salt="other")
    assert {record.leakage_unit for record in every(again)} != patients["train"]
    alone = Table(split="train", path=path, **{**OPTIONS, "patient_column": None})
    assert alone.warnings[0].startswith(
        "patient_column is not set: every row counts as its own patient"
    )
    assert alone[0].patient_id == alone[0].id.removeprefix("table:")


def test_split_column(folder: Path) -> None:
    names = ("train", "Validation", "TEST", "dev")
    rows = [row | {"fold": names[index // 2 % 4]} for index, row in enumerate(example_rows(8))]
    path = write_table(folder / "t.csv", rows)
    options = {**OPTIONS, "split_column": "fold"}
    sizes = [len(Table(split=split, path=str(path), **options)) for split in SPLITS]
    assert sizes == [2, 4, 2]
    rows[1]["fold"] = "test"
    assert "row 2: patient 'p0' is in train and in test; expected every patient in one" in refusal(
        write_table(path, rows), split_column="fold"
    )
    rows[1]["fold"] = "holdout"
    message = refusal(write_table(path, rows), split_column="fold")
    assert "row 2: 'holdout' in 'fold'; expected one of: train, val, valid, validate" in message


def test_bad_items_are_quarantined_in_order_of_the_table(folder: Path) -> None:
    rows = example_rows(9)
    rows[1]["findings"] = rows[1]["impression"] = "  "
    rows[3]["image"] = "images/none.png"
    rows[4]["image"] = "images"
    rows[5]["image"] = ""
    rows[6]["who"] = " "
    (folder / "images/7.png").write_bytes((folder / "images/7.png").read_bytes()[:-20])
    lines = write_table(folder / "t.csv", rows).read_text("utf-8")
    (folder / "t.csv").write_text(lines.replace("licence\n", "licence\nonly,two\n") + "x,y\n")
    table = Table(path=str(folder / "t.csv"), **ONLY_TRAIN)
    told = [(reject.id, reject.reason, reject.detail) for reject in table.rejects]
    assert told == [
        ("table:1", "bad_row", "row 1: 2 fields, expected 7 (line 2)"),
        ("table:3", "empty_report", "row 3: nothing in 'findings', 'impression'"),
        ("table:5", "missing_image", "row 5: no file 'images/none.png'"),
        ("table:6", "missing_image", "row 6: no file 'images'; it is a folder"),
        ("table:7", "missing_image", "row 7: the image cell is blank"),
        ("table:8", "bad_row", "row 8: blank 'who'"),
        ("table:9", "unreadable_image", told[6][2]),
        ("table:11", "bad_row", "row 11: 2 fields, expected 7 (line 20)"),
    ]
    assert told[6][2].startswith(f"row 9: {folder}/images/7.png: truncated PNG")
    assert table.total == 11 and [record.id for record in every(table)] == [
        "table:2",
        "table:4",
        "table:10",
    ]
    header = Table(path=str(folder / "t.csv"), **ONLY_TRAIN, verify="header", num_threads=1)
    assert header.rejects == table.rejects
    exists = Table(path=str(folder / "t.csv"), **ONLY_TRAIN, verify="exists")
    assert "unreadable_image" not in summarise(exists.rejects) and len(exists) == 4
    totals = [Table(split=s, path=str(folder / "t.csv"), **OPTIONS).total for s in SPLITS]
    assert sum(totals) == 11


def test_columns_of_numbers_make_the_vector(folder: Path) -> None:
    cells = [("1", "-2.5"), ("", " "), ("3e2", ""), ("4", "high"), ("nan", "1"), ("6", " 7.1 ")]
    rows = example_rows(7)
    for row, (a, b) in zip(rows, [*cells, ("1e39", "0")], strict=True):
        row |= {"gene_a": a, "gene_b": b}
    columns = {"vector_columns": ("gene_a", "gene_b")}
    for suffix in (".csv", ".parquet"):
        path = str(write_table(folder / f"t{suffix}", rows))
        table = Table(path=path, **ONLY_TRAIN, **columns)
        assert [(record.id, record.vector) for record in every(table)] == [
            ("table:1", (1.0, -2.5)),
            ("table:2", None),
            ("table:6", (6.0, float(np.float32(7.1)))),
        ]
        expected = "expected a number, or all columns blank"
        assert [(r.id, r.reason, r.detail) for r in table.rejects] == [
            ("table:3", "bad_vector", f"row 3: '' in 'gene_b'; {expected}"),
            ("table:4", "bad_vector", f"row 4: 'high' in 'gene_b'; {expected}"),
            ("table:5", "bad_vector", f"row 5: 'nan' in 'gene_a'; {expected}"),
            ("table:7", "bad_vector", f"row 7: '1e39' in 'gene_a'; {expected}"),
        ]
        assert all(record.vector is None for record in every(Table(path=path, **ONLY_TRAIN)))
    assert "no column 'gene_c'" in refusal(Path(path), vector_columns="gene_c")


def test_malformed_cells_condemn_their_row_only(folder: Path) -> None:
    rows = example_rows(5)
    path = write_table(folder / "t.jsonl", rows)
    odd = {"image": "images/0.png", "who": "p9", "view": "PA", "effusion": 1, "licence": None}
    lines = ["{bad", "[1]", json.dumps({**odd, "findings": ["a"]}), "", '{"findings": "\\ud800"}']
    lines.append(json.dumps({**odd, "image": "a\0b", "findings": "x"}))
    lines.append(json.dumps({**odd, "findings": "Fine.", "impression": float("nan")}))
    path.write_text(path.read_text() + "\n".join(lines) + "\n")
    table = Table(path=str(path), **ONLY_TRAIN)
    assert [reject.detail.partition(": ")[2].partition(":")[0] for reject in table.rejects] == [
        "not JSON",
        "list, expected an object",
        "a cell holds list; expected text or a number",
        "a cell holds an unpaired surrogate; expected characters",
        "the image path holds a null character",
    ]
    assert table[5].sections == {"findings": "Fine."} and table[5].labels == (1,)
    assert table[5].license == "" and table.total == 11


def test_an_unclosed_quote_says_how_far_it_reaches(folder: Path) -> None:
    rows = ["images/0.png,fine", 'images/1.png,"open', "images/2.png,fine", "images/3.png,fine"]
    path = folder / "t.csv"
    path.write_text("\n".join(["image,report", *rows]) + "\n")
    options: dict[str, Any] = {"report_columns": "report"}
    with pytest.raises(InputError, match=r"t\.csv row 2: a quote is never closed \(lines 3 to 5\)"):
        Table(split="train", path=str(path), fractions=(1, 0, 0), **options)
    rows[3] = 'images/3.png,fine",and,more'
    path.write_text("\n".join(["image,report", *rows, "images/4.png,fine"]) + "\n")
    table = Table(split="train", path=str(path), fractions=(1, 0, 0), **options)
    assert table.rejects[0].detail == "row 2: 4 fields, expected 2 (lines 3 to 5)"
    assert [record.images[0].key for record in every(table)] == ["images/0.png", "images/4.png"]


def test_refused_tables(folder: Path) -> None:
    rows = example_rows(4)
    path = write_table(folder / "t.csv", rows)
    text = path.read_text("utf-8")
    assert refusal(path, patient_column="mrn", projection_column="pos") == (
        f"{path}: no column 'mrn', 'pos'; present: 'image', 'findings', 'impression',"
        " 'who', 'view', 'effusion', 'licence'; options such as image_column, report_columns and"
        " patient_column name the columns:"
        " --config.data.image_column=NAME in training, --option=image_column=NAME to prepare"
    )
    assert refusal(folder / "no.csv").endswith("no.csv: no such table")
    choices = "choices: .csv, .tsv, .jsonl, .parquet (text also .gz)"
    assert refusal(folder / "t.xlsx").endswith(f"a table of type '.xlsx'; {choices}")
    assert refusal(path, split="dev").startswith("split is 'dev', expected one of: train, val")
    assert refusal(path, verify="md5") == "data.verify 'md5'; choices: decode, header, exists"
    assert refusal(path, num_threads=0) == "data.num_threads 0; expected at least 1"
    lone = {"report_columns": (), "label_columns": ()}
    assert refusal(path, **lone).startswith("no column for the report given")
    assert refusal(path, root=str(folder / "no")).endswith("no' is not a folder")
    assert "expected three numbers in [0, 1] that sum to 1" in refusal(path, fractions=(1, 1, 0))
    assert "id 'p0' in rows 1 and 2; expected every id once" in refusal(path, id_column="who")
    bad = write_table(folder / "l.csv", [*rows, rows[0] | {"effusion": "yes"}])
    assert f"{bad} row 5: label 'yes' in 'effusion'; expected 1 (present), 0" in refusal(bad)
    for content, message in (
        ("", "t.csv: empty; expected a header and at least one row"),
        (text.splitlines()[0] + "\n", "t.csv: no rows; expected at least one"),
        (text.replace("view", "who", 1), "column 'who' appears more than once; expected"),
        (text.splitlines()[0] + "\na,b\n", "no readable row; row 1: 2 fields, expected 7"),
    ):
        path.write_text(content, "utf-8")
        assert message in refusal(path)
    path.write_bytes(data := text.encode("latin-1"))
    assert refusal(path) == (
        f"{path}: row 1 is not UTF-8: byte 0xFC at offset {data.index(0xFC)}; the file is"
        " likely cp1252: state its encoding as data.encoding=cp1252 or convert it:"
        " iconv -f cp1252 -t utf-8"
    )
    path.write_text(text, "utf-8-sig")
    assert len(Table(path=str(path), **ONLY_TRAIN)) == 4
    jsonl = folder / "t.jsonl"
    jsonl.write_text('{"image": "a", "image": "b"}\n')
    assert "column 'image' appears more than once" in refusal(jsonl)
    jsonl.write_text("\n")
    assert "t.jsonl: empty; expected one JSON object per line" in refusal(jsonl)
    (folder / "t.parquet").write_bytes(b"PAR1 no")
    assert "t.parquet: not a Parquet file" in refusal(folder / "t.parquet")


def test_paths_that_leave_the_root_stop_the_run(folder: Path) -> None:
    root = folder / "inside"
    root.mkdir()
    (root / "to_file.png").symlink_to(folder / "images/0.png")
    (root / "to_folder").symlink_to(folder / "images")
    (root / "own.png").write_bytes((folder / "images/0.png").read_bytes())
    (root / "alias.png").symlink_to(root / "own.png")
    good = ["own.png", "alias.png", "./own.png", "no/../own.png"]
    for escape in ("../images/0.png", "no/../../images/0.png", "/etc/passwd"):
        rows = [{"image": name, "report": "x"} for name in [*good, escape]]
        path = write_table(folder / "t.csv", rows)
        with pytest.raises(InputError) as caught:
            Table(split="train", path=str(path), root=str(root), fractions=(1, 0, 0))
        assert str(caught.value) == (
            f"{path} row 5: image path '{escape}' leads outside root '{root}';"
            " expected a path inside it"
        )
    good = [*good[:3], str(root / "own.png")]  # absolute, and inside
    path = write_table(folder / "t.csv", [{"image": name, "report": "x"} for name in good])
    table = Table(split="train", path=str(path), root=str(root), fractions=(1, 0, 0))
    assert [record.images[0].key for record in every(table)] == [*good[:3], "own.png"]


def test_rejects_are_written_counted_and_limited(tmp_path: Path) -> None:
    rejects = [
        Reject("a:1", "unreadable_image", "é"),
        Reject("a:2", "empty_report"),
        Reject("a:3", "unreadable_image"),
    ]
    path = tmp_path / "run" / "rejects.jsonl"
    write_rejects(path, rejects)
    assert [json.loads(line) for line in path.read_text("utf-8").splitlines()] == [
        {"id": reject.id, "reason": reject.reason, "detail": reject.detail} for reject in rejects
    ]
    assert os.listdir(path.parent) == ["rejects.jsonl"]
    assert summarise(rejects) == {"unreadable_image": 2, "empty_report": 1}
    with pytest.raises(InputError) as caught:
        check_fraction(3, 196, 0.01, what="records", rejects=rejects)
    assert str(caught.value) == (
        "3 of 196 records rejected (1.5 %): 2 unreadable_image (a:1: é), 1 empty_report (a:2);"
        " --config.data.max_reject_fraction=0.01 allows 1; rejects.jsonl lists them: correct them,"
        " or allow more"
    )
    check_fraction(3, 196, 0.02, what="records", rejects=rejects)
    check_fraction(29, 100, 0.29, what="records")
    check_fraction(0, 0, 0.0, what="records")
    with pytest.raises(InputError, match="max_reject_fraction=2; expected 0 to 1"):
        check_fraction(0, 1, 2, what="records")
    with pytest.raises(InputError, match=r"cannot write .*: Not a directory|File exists"):
        write_rejects(path / "below", rejects)


def listed(workdir: Path) -> list[dict[str, str]]:
    """The rejects of a run."""
    return [json.loads(line) for line in (workdir / "rejects.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("cells", "reason", "example"),
    [
        (("images/{}.PNG", "Clear {}.", "p{}"), "missing_image", "there is 'images/0.png', with"),
        (("images/{}.png", "FINDINGS: ___", "p{}"), "empty_report", "but 'FINDINGS: ___'"),
        (("images/{}.png", "Clear {}.", "null"), "bad_row", "row 1: blank 'patient_id': 'null'"),
    ],
)
def test_where_no_record_is_usable_the_reason_is_listed_first(
    folder: Path, cells: tuple[str, ...], reason: str, example: str
) -> None:
    names = ("image", "report", "patient_id")
    rows = [
        dict(zip(names, (cell.format(index) for cell in cells), strict=True)) for index in range(40)
    ]
    config = presets.load("configs/pretrain.py:table")
    config.data.path = str(write_table(folder / "t.csv", rows))
    with pytest.raises(InputError, match=r"see rejects\.jsonl$") as caught:
        run.load_corpora(config, ("train", "val"), folder / "run")
    assert example in str(caught.value) and "\n" not in str(caught.value)
    found = listed(folder / "run")
    assert {one["reason"] for one in found} == {reason} and 20 < len(found) <= 40
    with pytest.raises(InputError, match=r"see rejects\.jsonl$"):
        run.splits(config, ["image.embedding"], folder / "other")("val")
    assert {one["reason"] for one in listed(folder / "other")} == {reason}


@pytest.mark.real_data
def test_real_radiographs() -> None:
    path = REAL_DATA / "covid_cxr/pairs.csv"
    if not path.exists():
        pytest.skip(f"no {path}")
    columns: dict[str, Any] = {
        "patient_column": "patient_id",
        "projection_column": "view",
        "license_column": "license",
    }
    tables = [Table(split=split, path=str(path), **columns) for split in SPLITS]
    records = [record for table in tables for record in every(table)]
    assert sum(table.total for table in tables) == 196
    assert len(records) == 196 and not any(table.rejects for table in tables)
    assert len({record.id for record in records}) == 196
    groups = [{record.leakage_unit for record in every(table)} for table in tables]
    assert not (groups[0] & groups[1] or groups[0] & groups[2] or groups[1] & groups[2])
    projections = Counter(record.images[0].projection for record in records)
    assert (
        projections.keys() <= {"PA", "AP", "LATERAL", "OTHER", "UNKNOWN"} and projections["PA"] > 50
    )
    for record in records[::20]:
        image = record.images[0].load()
        assert image.dtype == np.uint8 and image.ndim == 2 and max(image.shape) <= 512
        assert record.license


def test_a_table_may_have_texts_alone(tmp_path):
    path = tmp_path / "texts.csv"
    path.write_text("uid,findings,impression\n1,Clear lungs.,Normal.\n2,Effusion.,\n")
    given = {"path": str(path), "image_column": "", "report_columns": ("findings", "impression")}
    table = Table(split="train", patient_column="uid", fractions=(1.0, 0.0, 0.0), **given)
    assert [(one.images, dict(one.sections)) for one in table] == [
        ((), {"findings": "Clear lungs.", "impression": "Normal."}),
        ((), {"findings": "Effusion."}),
    ]
    with pytest.raises(InputError, match="image_column '' with masks or boxes"):
        Table(split="train", boxes=str(path), **given)


def test_a_config_may_leave_the_image_column_out(tmp_path):
    path = tmp_path / "texts.csv"
    rows = "".join(f"{n},Finding {n}.,Sum {n}.\n" for n in range(40))
    path.write_text(f"uid,findings,impression\n{rows}")
    config = presets.load("configs/real_text.py:openi")
    config.data.path = str(path)
    corpus = run.load_corpus(config, "train")
    assert corpus.total > 20 and not corpus.rejects
