"""Tables with classes, lists of labels, attributes, masks and boxes."""

import json
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from mmrl.data.corpus import read_corpus
from mmrl.data.reading.rejects import summarise
from mmrl.data.sources.prepared import Prepared
from mmrl.data.sources.table import Table
from mmrl.preparation import job
from mmrl.preparation.encode import Storage
from mmrl.preparation.pseudonyms import Pseudonymised
from mmrl.types import Box, InputError
from tests import corpus_files

SPLITS = ("train", "val", "test")
HEIGHT, WIDTH = 12, 16


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six images, and a mask of each whose first row of `number` pixels is inside."""
    for number in range(6):
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.full((HEIGHT, WIDTH), number, np.uint8))
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        mask[0, :number] = 1 if number % 2 else 255
        cv2.imwrite(str(tmp_path / f"mask{number}.png"), mask)
    return tmp_path


def write_csv(path: Path, header: tuple[str, ...], rows: list[tuple[Any, ...]]) -> Path:
    corpus_files.write_csv(path, header, rows)
    return path


def table(
    folder: Path, header: tuple[str, ...], rows: list[tuple[Any, ...]], **options: Any
) -> Table:
    path = write_csv(folder / "t.csv", ("image", *header), rows)
    given = {"split": "train", "fractions": (1, 0, 0), "report_columns": (), **options}
    return Table(path=str(path), **given)


def images(*columns: list[Any]) -> list[tuple[Any, ...]]:
    return [(f"{number}.png", *cells) for number, cells in enumerate(zip(*columns, strict=True))]


# --- labels


def test_a_rule_reads_the_class_in_the_reports(folder: Path) -> None:
    reports = ["Chest CT.", "Axial MRI of the knee.", "CT and MRI.", "A lesion.", "CT scan."]
    rows = images(reports, ["a", "b", "", "", "sonogram"])
    options = {"report_columns": ("report", "more"), "class_rule": "modality@1"}
    chosen = table(folder, ("report", "more"), rows, **options)
    assert chosen[0].label_names == ("CT", "MRI")
    found = [chosen[index].labels for index in range(len(chosen))]
    # Texts that name no modality, or several in any column, state none.
    assert found == [(1, 0), (0, 1), (-2, -2), (-2, -2), (-2, -2)]
    assert chosen[0].sections == {"report": "Chest CT.", "more": "a"}


def test_mistakes_in_rules_of_classes(folder: Path) -> None:
    rows = images(["Chest CT."], ["x"])
    header = ("report", "class")
    with pytest.raises(InputError, match=r"unknown class_rule 'modality@2'.*choices: modality@1"):
        table(folder, header, rows, report_columns="report", class_rule="modality@2")
    with pytest.raises(InputError, match="class_rule 'modality@1' has no column of reports"):
        table(
            folder,
            ("report", "sure"),
            images(["CT."], [1]),
            class_rule="modality@1",
            label_columns="sure",
        )
    with pytest.raises(InputError, match="has class_column 'class' beside it"):
        options = {"class_column": "class", "class_rule": "modality@1"}
        table(folder, header, rows, report_columns="report", **options)


def test_classes_are_labels_of_every_split(folder: Path) -> None:
    classes = ["nv", "mel", "", " nv ", "bcc", "mel"]
    splits = ["train", "train", "train", "val", "val", "test"]
    header, rows = ("class", "part"), images(classes, splits)
    tables = {
        split: table(folder, header, rows, class_column="class", split_column="part", split=split)
        for split in SPLITS
    }
    found = {
        split: [tables[split][i].labels for i in range(len(tables[split]))] for split in SPLITS
    }
    assert found == {
        "train": [(0, 0, 1), (0, 1, 0), (-2, -2, -2)],
        "val": [(0, 0, 1), (1, 0, 0)],
        "test": [(0, 1, 0)],
    }
    assert {tables[split][0].label_names for split in SPLITS} == {("bcc", "mel", "nv")}


def test_lists_of_labels_stand_in_one_cell(folder: Path) -> None:
    cells = ["Mass", "Effusion|Mass", "No Finding", "", "Mass| Edema |Mass|", "|"]
    chosen = table(folder, ("labels",), images(cells), labels_column="labels")
    assert chosen[0].label_names == ("Edema", "Effusion", "Mass", "No Finding")
    assert [chosen[number].labels for number in range(6)] == [
        (0, 0, 1, 0),
        (0, 1, 1, 0),
        (0, 0, 0, 1),
        (-2, -2, -2, -2),
        (1, 0, 1, 0),
        (-2, -2, -2, -2),
    ]
    cells = ["a|b; c", "c", "c", "c", "c", "c"]
    other = table(folder, ("l",), images(cells), labels_column="l", labels_separator=";")
    assert other[0].label_names == ("a|b", "c")


def test_all_forms_of_labels_stand_together(folder: Path) -> None:
    rows = images(["1", "-1", "", "0", "0", "0"], list("bbaaab"), ["x"] * 5 + ["x|y"])
    options = {"label_columns": "sure", "class_column": "class", "labels_column": "list"}
    chosen = table(folder, ("sure", "class", "list"), rows, **options)
    assert chosen[0].label_names == ("sure", "a", "b", "x", "y")
    assert chosen[1].labels == (-1, 0, 1, 1, 0) and chosen[5].labels == (0, 0, 1, 1, 1)
    with pytest.raises(InputError, match="the label 'b' comes from two columns; expected every"):
        table(folder, ("b", "class", "list"), rows, **{**options, "label_columns": "b"})


def test_a_class_of_a_refused_row_counts_and_ids_are_no_classes(folder: Path) -> None:
    rows = [*images(list("aabbab")), ("none.png", "c")]
    chosen = table(folder, ("class",), rows, class_column="class")
    assert summarise(chosen.rejects) == {"missing_image": 1}
    assert chosen[0].label_names == ("a", "b", "c") and chosen[0].labels == (1, 0, 0)
    many = [("0.png", f"row {number}") for number in range(1001)]
    with pytest.raises(InputError, match="'class' names more than 1,000 labels; expected a column"):
        table(folder, ("class",), many, class_column="class")


# --- attributes, names and rows to leave out


def test_attributes_are_text_without_blanks(folder: Path) -> None:
    rows = images(["F", "M", "", "F", "F", "F"], ["57.0", " ", "", "1", "2", "3"])
    chosen = table(
        folder,
        ("gender", "age"),
        rows,
        attribute_columns={"sex": "gender", "age": "age"},
        class_column="age",
    )
    assert [dict(chosen[number].attributes) for number in range(3)] == [
        {"sex": "F", "age": "57.0"},
        {"sex": "M"},
        {},
    ]
    plain = table(folder, ("gender", "age"), rows, attribute_columns="age", class_column="age")
    assert dict(plain[0].attributes) == {"age": "57.0"}


def test_rows_are_left_out_and_counted(folder: Path) -> None:
    rows = images(list("abcabc"), ["1"] * 6)
    chosen = table(
        folder,
        ("class", "label"),
        rows,
        label_columns="label",
        class_column="class",
        leave_out={"class": "b", "image": ("5.png",)},
        patient_column="image",
        notes="Known flaw.",
    )
    assert [record.id for record in map(chosen.__getitem__, range(len(chosen)))] == [
        "table:1",
        "table:3",
        "table:4",
    ]
    assert chosen[0].label_names == ("label", "a", "c") and chosen.total == 3
    assert chosen.warnings == [
        "Known flaw.",
        "2 rows are left out, with 'b' in 'class'",
        "1 rows are left out, with '5.png' in 'image'",
    ]
    corpus = read_corpus("table/train", chosen, sections=(), need_texts=False)
    assert corpus.warnings == tuple(chosen.warnings)
    with pytest.raises(InputError, match="no rows; expected at least one"):
        table(folder, ("class",), images(["a"] * 6), class_column="class", leave_out={"class": "a"})


def test_the_name_of_a_corpus_begins_its_ids(folder: Path) -> None:
    rows = [*images(list("ababab")), ("none.png", "a")]
    chosen = table(folder, ("class",), rows, class_column="class", name="nih14")
    assert (chosen[0].id, chosen[0].source, chosen.rejects[0].id) == ("nih14:1", "nih14", "nih14:7")
    corpora = {}
    for name in ("one", "two"):
        chosen = table(folder, ("class",), rows, class_column="class", name=name)
        corpora[name] = read_corpus(name, chosen, sections=(), need_texts=False)
    keys = {name: set(c.fingerprint.keys["patient"].tolist()) for name, c in corpora.items()}
    assert len(keys["one"]) == 6 and not keys["one"] & keys["two"]
    for bad in ("", "a:b", "a b"):
        with pytest.raises(InputError, match="expected letters, digits"):
            table(folder, ("class",), rows, class_column="class", name=bad)
    with pytest.raises(InputError, match="labels_separator is blank"):
        table(folder, ("class",), rows, labels_column="class", labels_separator="")


# --- masks


def test_masks_are_read_on_demand(folder: Path) -> None:
    paths = [f"mask{number}.png" for number in range(5)] + [" "]
    shown = ["cyst", "", "tumour", "", "", ""]
    chosen = table(
        folder,
        ("mask", "what"),
        images(paths, shown),
        mask_column="mask",
        mask_label="lesion",
        mask_label_column="what",
    )
    for number, label in enumerate(["cyst", "lesion", "tumour", "lesion", "lesion"]):
        masks = chosen[number].masks
        assert masks is not None
        ((name, mask),) = masks().items()
        assert name == label and mask.dtype == bool and mask.shape == (HEIGHT, WIDTH)
        assert mask.sum() == number and mask[0, :number].all()
    assert chosen[5].masks is None and not chosen.rejects
    assert len(ForkingPickler.dumps(chosen[1].masks)) < 500


def test_bad_masks_refuse_their_row(folder: Path) -> None:
    cv2.imwrite(str(folder / "small.png"), np.zeros((HEIGHT, WIDTH - 1), np.uint8))
    cv2.imwrite(str(folder / "lossy.jpg"), np.zeros((HEIGHT, WIDTH), np.uint8))
    data = (folder / "mask1.png").read_bytes()
    (folder / "cut.png").write_bytes(data[: len(data) // 2])
    masks = ["mask0.png", "small.png", "lossy.jpg", "cut.png", "no.png", ""]
    rows = images(masks)
    chosen = table(folder, ("mask",), rows, mask_column="mask")
    assert [chosen[i].id for i in range(len(chosen))] == ["table:1", "table:6"]
    assert [(reject.id, reject.reason) for reject in chosen.rejects] == [
        *((f"table:{number}", "bad_mask") for number in (2, 3, 4)),
        ("table:5", "missing_mask"),
    ]
    details = [reject.detail for reject in chosen.rejects]
    assert "small.png: a mask of 15 x 12 pixels; expected 16 x 12 as its image" in details[0]
    assert "a mask as JPEG, which changes pixels; expected PNG" in details[1]
    assert details[3] == "row 5: no file 'no.png'"
    unchecked = table(folder, ("mask",), rows, mask_column="mask", verify="exists")
    assert summarise(unchecked.rejects) == {"missing_mask": 1}
    masks_of = unchecked[1].masks
    assert masks_of is not None
    with pytest.raises(InputError, match="expected 16 x 12 as its image"):
        masks_of()


def test_masks_have_a_root_of_their_own_and_stay_inside(folder: Path) -> None:
    (folder / "masks").mkdir()
    (folder / "masks/0.png").write_bytes((folder / "mask3.png").read_bytes())
    options = {"mask_column": "mask", "mask_root": str(folder / "masks")}
    chosen = table(folder, ("mask",), [("0.png", "0.png")], **options)
    masks = chosen[0].masks
    assert masks is not None and masks()["mask"].sum() == 3
    for path in ("../mask0.png", str(folder / "mask0.png")):
        with pytest.raises(InputError, match=r"row 1: mask path '.*' leads outside root"):
            table(folder, ("mask",), [("0.png", path)], **options)
    with pytest.raises(InputError, match=r"mask_root '.*no' is not a folder"):
        table(
            folder, ("mask",), [("0.png", "0.png")], **{**options, "mask_root": str(folder / "no")}
        )


# --- boxes

BOXES = ("image", "label", "x", "y", "w", "h")


def boxed(folder: Path, rows: list[tuple[Any, ...]], **options: Any) -> Table:
    path = write_csv(folder / "boxes.csv", BOXES, rows)
    cells = images(list("aabbab"), ["train"] * 5 + ["test"])
    options = {"boxes": str(path), "class_column": "c", "split_column": "part", **options}
    return table(folder, ("c", "part"), cells, **options)


def test_boxes_of_a_second_table(folder: Path) -> None:
    chosen = boxed(
        folder,
        [
            ("1.png", "mass", 1, 2.5, 3, 4),
            ("5.png", "mass", 0, 0, 1, 1),
            ("./0.png", "nodule", 0, 0, WIDTH, HEIGHT),
            ("1.png", "cyst", -0.5, 0, WIDTH + 1.2, 1),
            ("2.png", "", "", "", "", ""),
        ],
    )
    assert chosen[0].boxes == (Box((0, 0, WIDTH, HEIGHT), "nodule"),)
    assert chosen[1].boxes == (Box((1, 2.5, 4, 6.5), "mass"), Box((0, 0, WIDTH, 1), "cyst"))
    assert chosen[-1].boxes == chosen[4].boxes == () and not chosen.rejects
    assert "1 boxes leave their image by at most a pixel and are cut off there" in chosen.warnings
    assert chosen[1].masks is None
    test = boxed(folder, [("5.png", "mass", 0, 0, 1, 1)], split="test")
    assert test[0].boxes == (Box((0, 0, 1, 1), "mass"),)


def test_bad_boxes_are_refused_and_their_records_kept(folder: Path) -> None:
    rows = [
        ("0.png", "mass", 10, 0, 8, 1),  # ends at 18 of 16
        ("0.png", "mass", -2, 0, 8, 1),
        ("0.png", "mass", 0, 0, 0, 1),
        ("0.png", "mass", 0, 0, "wide", 1),
        ("0.png", "mass", 0, 0, "nan", 1),
        ("0.png", "mass", 0, "", 1, 1),
        ("0.png", "", 0, 0, 1, 1),
        ("9.png", "mass", 0, 0, 1, 1),
        ("0.png", "mass", 0, 0, 1, 1),
    ]
    chosen = boxed(folder, rows)
    assert len(chosen) == chosen.total == 5 and len(chosen[0].boxes) == 1
    assert summarise(chosen.rejects) == {"bad_box": 7, "unknown_image": 1}
    found = {reject.id: reject.detail for reject in chosen.rejects}
    where = "corners 10, 0, 18, 1 in an image of 16 x 12 pixels"
    assert found["table:1#boxes.csv row 1"] == f"boxes.csv row 1: {where}"
    assert "expected four numbers and an area" in found["table:1#boxes.csv row 3"]
    assert found["table:1#boxes.csv row 7"] == "boxes.csv row 7: blank label"
    assert "no record has the image '9.png'" in found["table:boxes#boxes.csv row 8"]


def test_several_tables_of_boxes_with_other_columns(folder: Path) -> None:
    header = ("file", "what", "x", "y", "wide", "high")
    paths = [
        str(write_csv(folder / f"{label}.csv", header, [("0.png", label, 0, 0, 1, 1)]))
        for label in ("one", "two")
    ]
    columns = {"image": "file", "label": "what", "w": "wide", "h": "high"}
    chosen = boxed(folder, [], boxes=paths, box_columns=columns)
    assert [box.label for box in chosen[0].boxes] == ["one", "two"]
    with pytest.raises(InputError, match=r"no column 'image', 'label', 'w', 'h'; present: 'file'"):
        boxed(folder, [], boxes=paths)
    with pytest.raises(InputError, match="unknown field in box_columns 'width'"):
        boxed(folder, [], boxes=paths, box_columns={"width": "wide"})


def test_boxes_follow_the_rows_that_are_kept(folder: Path) -> None:
    (folder / "1.png").unlink()
    rows = [(f"{number}.png", f"box {number}", 0, 0, 1, 1) for number in range(6)]
    chosen = boxed(folder, rows)
    assert [[box.label for box in chosen[i].boxes] for i in range(len(chosen))] == [
        [f"box {number}"] for number in (0, 2, 3, 4)
    ]
    assert summarise(chosen.rejects) == {"missing_image": 1}


def test_a_table_with_everything_pickles_small(folder: Path) -> None:
    rows = [(f"{number % 6}.png", f"mask{number % 6}.png", "a|b", "F") for number in range(2000)]
    write_csv(folder / "boxes.csv", BOXES, [(f"{n}.png", "box", 0, 0, 1, 1) for n in range(6)])
    chosen = table(
        folder,
        ("mask", "labels", "sex"),
        rows,
        mask_column="mask",
        labels_column="labels",
        attribute_columns="sex",
        boxes=str(folder / "boxes.csv"),
        verify="exists",
    )
    assert len(chosen) == 2000 and chosen[1999].boxes and chosen[1999].labels == (1, 1)
    assert len(ForkingPickler.dumps(chosen)) < 300 * len(chosen)


def test_annotations_are_prepared_and_hidden_faults_name_no_file(folder: Path) -> None:
    rows = [(f"{n}.png", f"mask{n}.png", "ab"[n % 2], "F", f"p{n}") for n in range(6)]
    write_csv(folder / "t.csv", ("image", "mask", "class", "sex", "patient"), rows)
    write_csv(folder / "boxes.csv", BOXES, [(f"{n}.png", "box", n, 1, 2, 3) for n in range(6)])
    options = {
        "path": str(folder / "t.csv"),
        "report_columns": (),
        "class_column": "class",
        "attribute_columns": "sex",
        "mask_column": "mask",
        "boxes": str(folder / "boxes.csv"),
        "patient_column": "patient",
        "fractions": (1, 0, 0),
    }
    settings = job.Settings(Storage(WIDTH, "png", 95))
    manifest = job.prepare("table", options, folder / "out", settings)
    assert str(folder) not in json.dumps(manifest)
    stored, source = (
        Prepared(path=str(folder / "out"), split="train"),
        Table(split="train", **options),
    )
    by_id = {record.id: record for record in map(stored.__getitem__, range(len(stored)))}
    assert len(by_id) == 6
    for index in range(6):
        record, again = source[index], by_id[source[index].id]
        assert (again.labels, again.attributes) == (record.labels, {"sex": "F"})
        assert again.label_names == ("a", "b") and tuple(again.boxes) == tuple(record.boxes)
        assert record.masks is not None
        expected = record.masks()["mask"]
        if index:
            assert again.masks is not None
            np.testing.assert_array_equal(again.masks()["mask"], expected)
    hidden = Pseudonymised(Table(split="train", **options), bytes(range(32)))
    masks = hidden[1].masks
    assert masks is not None and masks()["mask"].sum() == 1
    (folder / "mask1.png").unlink()
    with pytest.raises(InputError) as caught:
        masks()
    assert "mask1" not in str(caught.value) and str(folder) not in str(caught.value)
