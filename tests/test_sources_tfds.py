"""Tfds: corpora prepared by TensorFlow Datasets, read without TensorFlow."""

import io
import sys
import warnings
from collections.abc import Iterator
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from mmrl.data.sources.tfds import Tfds
from mmrl.types import InputError, Record, Reject, Source

SPLITS = ("train", "val", "test")
EXAMPLES = 24
OPTIONS: dict[str, Any] = {
    "path": "tiny_radiographs:1.0.0",
    "report_features": {"findings": "report"},
    "patient_feature": "patient",
    "id_feature": "uid",
    "projection_feature": "view",
    "label_features": "effusion",
}
ONLY_TRAIN: dict[str, Any] = {**OPTIONS, "split": "train", "fractions": (1, 0, 0)}


def jpeg(level: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((8, 9), level, np.uint8)).save(file, "JPEG", quality=95)
    return file.getvalue()


class TinyRadiographs(tfds.core.GeneratorBasedBuilder):
    """Images, reports, and features of the kinds that must not get in the way."""

    VERSION = tfds.core.Version("1.0.0")
    # A builder in a package makes TFDS look for importlib_resources, which it does not require.
    __module__ = __name__.rpartition(".")[2]

    def _info(self) -> tfds.core.DatasetInfo:
        kinds = tfds.features
        return tfds.core.DatasetInfo(
            builder=self,
            features=kinds.FeaturesDict(
                {
                    "image": kinds.Image(shape=(None, None, 1), encoding_format="jpeg"),
                    "deep": kinds.Tensor(shape=(4, 5, 1), dtype=np.uint16),
                    "volume": kinds.Tensor(shape=(2, 4, 5), dtype=np.uint16),
                    "report": kinds.Text(),
                    "uid": np.str_,
                    "patient": np.int64,
                    "view": kinds.ClassLabel(names=["PA", "LATERAL"]),
                    "effusion": np.int32,
                    "boxes": kinds.Sequence({"box": kinds.BBoxFeature(), "name": kinds.Text()}),
                    "tags": kinds.Sequence(kinds.Text()),
                }
            ),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager
        return {"train": self._generate_examples(0, 20), "test": self._generate_examples(20, 24)}

    def _generate_examples(self, start: int, stop: int) -> Iterator[tuple[str, dict[str, Any]]]:
        for index in range(start, stop):
            data = jpeg(10 * index)
            yield (
                f"key{index}",
                {
                    "image": io.BytesIO(data[:-40] if index == 3 else data),
                    "deep": np.full((4, 5, 1), 1000 * index, np.uint16),
                    "volume": np.zeros((2, 4, 5), np.uint16),
                    "report": " " if index == 5 else f"Ünclear {index}.",
                    "uid": f"u{index}",
                    "patient": index // 3,
                    "view": index % 2,
                    "effusion": (1, 0, -1)[index % 3],
                    "boxes": [{"box": tfds.features.BBox(0.0, 0.0, 0.5, 0.5), "name": "x"}],
                    "tags": ["a"],
                },
            )


def every(source: Source) -> list[Record]:
    return [source[index] for index in range(len(source))]


def prepare(folder: Path, file_format: str) -> str:
    with warnings.catch_warnings():  # of building, which is none of our business
        warnings.simplefilter("ignore")
        TinyRadiographs(data_dir=str(folder), file_format=file_format).download_and_prepare()
    return str(folder)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    return prepare(tmp_path_factory.mktemp("tfds"), "array_record")


def test_records_of_a_prepared_corpus(data_dir: str) -> None:
    source = Tfds(data_dir=data_dir, tfds_split="train+test", **ONLY_TRAIN)
    assert isinstance(source, Source)
    assert "tensorflow" not in sys.modules
    assert (source.total, len(source), source.warnings) == (EXAMPLES, EXAMPLES - 2, [])
    by_id = {record.id: record for record in every(source)}
    told = {reject.id: (reject.reason, reject.detail) for reject in source.rejects}
    assert told.keys() == {"tfds:u3", "tfds:u5"}
    assert told["tfds:u5"][0] == "empty_report" and told["tfds:u5"][1].endswith("in 'report'")
    assert told["tfds:u3"][0] == "unreadable_image" and "truncated JPEG" in told["tfds:u3"][1]
    for index in {*range(EXAMPLES)} - {3, 5}:
        record = by_id[f"tfds:u{index}"]
        assert record.sections == {"findings": f"Ünclear {index}."}
        assert record.patient_id == record.leakage_unit == str(index // 3)
        assert record.study_id == f"{index // 3}/u{index}"
        assert record.label_names == ("effusion",) and record.labels == ((1, 0, -1)[index % 3],)
        assert record.images[0].projection == ("PA", "LATERAL")[index % 2]
        image = record.images[0].load()
        written = cv2.imdecode(np.frombuffer(jpeg(10 * index), np.uint8), cv2.IMREAD_GRAYSCALE)
        np.testing.assert_array_equal(image, written)


def test_patients_never_cross_splits(data_dir: str) -> None:
    fractions = {"train": 0.5, "val": 0.25, "test": 0.25}
    sources = {
        split: Tfds(split=split, data_dir=data_dir, fractions=fractions, **OPTIONS)
        for split in SPLITS
    }
    patients = [{record.leakage_unit for record in every(source)} for source in sources.values()]
    assert sum(map(len, patients)) == len(set.union(*patients)) == 7
    assert sum(source.total for source in sources.values()) == 20
    alone = Tfds(data_dir=data_dir, **{**ONLY_TRAIN, "patient_feature": None, "id_feature": None})
    assert alone.warnings[0].startswith("patient_feature is not set")
    assert {record.id for record in every(alone)} <= {f"tfds:{offset}" for offset in range(20)}


def test_pickles_small_and_loads_elsewhere(data_dir: str) -> None:
    source = Tfds(data_dir=data_dir, **ONLY_TRAIN)
    copy = ForkingPickler.loads(ForkingPickler.dumps(source))
    assert len(ForkingPickler.dumps(source)) < 8000
    np.testing.assert_array_equal(copy[4].images[0].load(), source[4].images[0].load())
    assert copy[4].sections == source[4].sections


def test_arrays_keep_their_bits(data_dir: str) -> None:
    source = Tfds(data_dir=data_dir, image_feature="deep", **ONLY_TRAIN)
    assert len(source) == 19
    for record in every(source):
        image = record.images[0].load()
        index = int(record.id.removeprefix("tfds:u"))
        assert image.dtype == np.uint16 and image.shape == (4, 5) and np.all(image == 1000 * index)


def test_verify_levels(data_dir: str) -> None:
    header = Tfds(data_dir=data_dir, verify="header", **ONLY_TRAIN)
    assert [reject.reason for reject in header.rejects].count("unreadable_image") == 1
    exists = Tfds(data_dir=data_dir, verify="exists", **ONLY_TRAIN)
    assert [reject.reason for reject in exists.rejects] == ["empty_report"]
    assert all(isinstance(reject, Reject) for reject in exists.rejects)
    damaged = next(record for record in every(exists) if record.id == "tfds:u3")
    with pytest.raises(InputError, match=r"tiny_radiographs:1\.0\.0 example \d+: truncated JPEG"):
        damaged.images[0].load()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": "no_such:1.0.0"}, r"no prepared TFDS corpus 'no_such:1.0.0' in '.*'; present:"),
        ({"path": "tiny_radiographs:2.0.0"}, r"present: .*tiny_radiographs"),
        ({"path": "not a name!"}, "no prepared TFDS corpus 'not a name!'"),
        ({"data_dir": "/no/such/folder"}, "in '/no/such/folder'; present: nothing"),
        ({"tfds_split": "dev"}, "has no split 'dev'; choices: train, test and slices of them"),
        ({"tfds_split": "train[oops"}, r"has no split 'train\[oops'"),
        (
            {"report_features": ("findings",), "projection_feature": "position"},
            "no feature 'findings', 'position'; present: 'boxes', 'deep', 'effusion'",
        ),
        ({"report_features": "tags"}, r"feature 'tags' is Sequence\(.*expected one text or number"),
        ({"report_features": "boxes"}, "feature 'boxes' is Sequence.*expected one text or number"),
        (
            {"image_feature": "volume"},
            r"'volume' is Tensor.*expected an Image, or a Tensor \[H, W\]",
        ),
        ({"image_feature": "report"}, "feature 'report' is Text.*expected an Image"),
        ({"label_features": "patient"}, "label '[2-6]' in 'patient'; expected 1 "),
        ({"id_feature": "patient"}, r"id '\d' in rows \d+ and \d+; expected every id once"),
        ({"module": "no_such_module_here"}, "data.module 'no_such_module_here': No module named"),
        ({"split": "dev"}, "split is 'dev', expected one of"),
        ({"verify": "md5"}, "data.verify 'md5'; choices: decode, header, exists"),
    ],
)
def test_refusals(data_dir: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Tfds(**{**ONLY_TRAIN, "data_dir": data_dir, **options})
    assert "\n" not in str(caught.value)


def test_a_module_is_imported_first(data_dir: str, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "features_of_mine.py").write_text("LOADED = True\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    source = Tfds(data_dir=data_dir, module="features_of_mine", **ONLY_TRAIN)
    assert len(source) == 18 and sys.modules["features_of_mine"].LOADED


@pytest.mark.parametrize("damage", ["overwritten", "cut", "empty", "gone"])
def test_damaged_shards_are_named(tmp_path: Path, damage: str) -> None:
    data_dir = prepare(tmp_path, "array_record")
    shard = next(tmp_path.rglob("*train.array_record*"))
    data = shard.read_bytes()
    place = data.index("Ünclear 7".encode())
    shard.unlink()
    if damage != "gone":
        kept = {"overwritten": data[:place] + b"xxxxx" + data[place + 5 :], "cut": data[:place]}
        shard.write_bytes(kept.get(damage, b""))
    with pytest.raises(InputError, match=r"tiny_radiographs:1\.0\.0 example \d+ cannot be read: ."):
        Tfds(data_dir=data_dir, **ONLY_TRAIN)


def test_a_form_without_random_access_is_refused(tmp_path: Path) -> None:
    data_dir = prepare(tmp_path, "array_record")
    info = next(tmp_path.rglob("dataset_info.json"))
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(InputError, match="is in tfrecord form, which has no random access"):
        Tfds(data_dir=data_dir, **ONLY_TRAIN)
