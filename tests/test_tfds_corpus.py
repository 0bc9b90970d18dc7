"""Corpora as TFDS data sets: prepared plainly and on Beam, read back without TensorFlow."""

import dataclasses
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from mmrl import build
from mmrl.data.sources.tfds import Tfds
from mmrl.preparation import inventory, tfds_corpus
from mmrl.preparation.job import Settings
from mmrl.preparation.storage import Storage
from mmrl.types import InputError, Record, Reject
from tests.test_prepare import LABELS, Rich, folder, rich
from tests.test_prepare_command import run

__all__ = ["folder", "rich"]  # fixtures

SETTINGS = Settings(Storage(size=64, format="png"), max_reject_fraction=0.75)
READ: dict[str, Any] = {
    "report_features": {
        "findings": "section_findings",
        "impression": "section_impression",
        "caption": "section_caption",
    },
    "patient_feature": "patient_id",
    "study_feature": "study_id",
    "projection_feature": "projection",
    "id_feature": "id",
    "split_feature": "split",
    "label_features": [f"label_{name}" for name in LABELS],
    "license_feature": "license",
}


def prepare(folder: Path, data_dir: Path, **changes: Any) -> Any:
    """Rich as a data set; quietly, for what building prints and warns of is TFDS's."""
    tfds_corpus._source.cache_clear()
    given = {"path": str(folder), "verify": "exists"}
    found = inventory.take("rich", given)
    settings = changes.pop("settings", SETTINGS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tfds_corpus.prepare(found, given, settings, data_dir, **changes)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def read(builder: Any, data_dir: Path, split: str) -> list[Record]:
    path = f"{builder.name}/{builder.builder_config.name}:2.0.0"
    source = Tfds(split=split, tfds_split=split, path=path, data_dir=str(data_dir), **READ)
    assert source.rejects == []
    return [source[index] for index in range(len(source))]


def test_vectors_are_refused(tmp_path: Path) -> None:
    given = {"length": 20, "vector": 4}
    found = inventory.take("phantom", given)
    with pytest.raises(InputError, match="phantom has records with vectors, which --tfds does not"):
        tfds_corpus.prepare(found, given, SETTINGS, tmp_path / "tfds")


def test_records_are_read_back(folder: Path, tmp_path: Path) -> None:
    builder = prepare(folder, tmp_path / "tfds")
    assert "tensorflow" not in sys.modules
    source = Rich(split="all", path=str(folder), verify="exists")
    (made,) = read(builder, tmp_path / "tfds", "val")
    original = source[0]
    assert made.id == "tfds:rich:a"
    for name in ("patient_id", "study_id", "split", "sections", "labels", "license"):
        assert getattr(made, name) == getattr(original, name), name
    assert made.images[0].projection == "PA"
    reduced = cv2.resize(original.images[0].load(), (64, 32), interpolation=cv2.INTER_AREA)
    np.testing.assert_array_equal(made.images[0].load(), reduced)
    (second,) = read(builder, tmp_path / "tfds", "train")
    assert second.sections == {"caption": "Plain."} and second.labels == (-2, -2)
    deep = second.images[0].load()
    assert deep.dtype == np.uint16
    np.testing.assert_array_equal(deep, source[1].images[0].load())


def test_examples_hold_all_of_a_record(folder: Path, tmp_path: Path) -> None:
    builder = prepare(folder, tmp_path / "tfds")
    (example,) = builder.as_data_source(split="val")
    assert len(example["more_images"]) == 1
    assert example["image"].shape == (32, 64, 1)
    assert np.ravel(example["sizes"]).tolist() == [40, 80, 60, 30]
    assert [name.decode() for name in example["projections"]] == ["PA", "LATERAL"]
    assert example["time"] == 86_400 and bool(example["leakage_unit_known"])
    assert json.loads(example["attributes"]) == {"sex": "F", "age": "57"}
    assert json.loads(example["spacings"]) == [[0.143, 0.2], []]
    assert json.loads(example["masks"])[0] == ["effusion", 40, 80, [0, 40, 200, 5]]
    boxes = json.loads(example["boxes"])
    assert boxes[0] == [[1.5, 2.0, 40.0, 30.0], "effusion", 1, 0, 2] and len(boxes) == 2
    listed = [
        Reject(**json.loads(line))
        for name in ("rejects.jsonl", "rejects-train.jsonl", "rejects-val.jsonl")
        for line in (Path(builder.data_dir) / name).read_text().splitlines()
    ]
    assert [(reject.id, reject.reason) for reject in listed] == [
        ("rich:row 9", "bad_row"),
        ("rich:c", "unreadable_image"),
        ("rich:a#cut.png", "unreadable_image"),
    ]
    assert listed[1].detail.startswith("cut.png: truncated PNG")


def test_text_without_images_has_no_bytes(folder: Path) -> None:
    record = dataclasses.replace(Rich(split="val", path=str(folder))[0], images=(), masks=None)
    work = tfds_corpus.Work("rich", "{}", Storage(), LABELS, ("findings", "other"), 1)
    ((key, example),) = tfds_corpus.examples(work, [record])
    assert key == "rich:a" and example["image"].getvalue() == b"" and example["more_images"] == []
    assert (example["section_findings"], example["section_other"]) == ("Kleiner Erguß.", "")


def test_too_many_refusals_leave_no_data_set(folder: Path, tmp_path: Path) -> None:
    strict = dataclasses.replace(SETTINGS, max_reject_fraction=0.4)
    with pytest.raises(InputError, match=r"--max-reject-fraction=0\.4 allows 1"):
        prepare(folder, tmp_path / "tfds", settings=strict)
    assert not list((tmp_path / "tfds").rglob("dataset_info.json"))


def test_a_worker_that_sees_another_corpus_stops(folder: Path) -> None:
    given = json.dumps({"path": str(folder), "verify": "exists"})
    work = tfds_corpus.Work("rich", given, Storage(), LABELS, (), 1)
    tfds_corpus._source.cache_clear()
    (record,) = tfds_corpus.records_of(work, json.dumps(["all", [1], "rich:b"]))
    assert record.id == "rich:b"
    with pytest.raises(
        InputError, match="record 1 is 'rich:b' on this worker and 'rich:z' where the work"
    ):
        list(tfds_corpus.records_of(work, json.dumps(["all", [1], "rich:z"])))


@pytest.mark.exhaustive
@pytest.mark.slow
def test_beam_makes_the_same_data_set(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("apache_beam")
    plain = prepare(folder, tmp_path / "plain")
    beam = prepare(folder, tmp_path / "beam", runner="DirectRunner")
    assert "tensorflow" not in sys.modules
    made, expected = contents(Path(beam.data_dir)), contents(Path(plain.data_dir))
    assert made.pop("rejects-train.jsonl").strip() == expected.pop("rejects-train.jsonl").strip()
    assert made == expected
    # TFDS calls this when the pipeline has ended, and keeps nothing when it raises.
    beam._settings = dataclasses.replace(SETTINGS, max_reject_fraction=0.4)
    with pytest.raises(InputError, match=r"--max-reject-fraction=0\.4 allows 1"):
        beam._process_pipeline_result(None)


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["phantom", f"--output={tmp_path / 'tfds'}", "--size=32", "--tfds"]
    given += ["--option=length=12", "--option=render_size=32"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert run(monkeypatch, *given) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    total = sum(int(part.rpartition(" ")[2]) for part in last.rpartition(": ")[2].split(", "))
    assert last.startswith("mmrl_corpus/phantom-32-jpeg-95-") and total == 12
    assert run(monkeypatch, "phantom", "--beam-runner=DirectRunner") == 2
    assert "--beam-runner needs --tfds" in capsys.readouterr().err
    key = ["--beam-runner=DirectRunner", f"--key-file={tmp_path / 'key'}"]
    assert run(monkeypatch, *given, *key) == 2
    assert "would send the key to every worker" in capsys.readouterr().err
    assert "phantom" in build.choices("source")
