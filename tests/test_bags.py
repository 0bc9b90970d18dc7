"""Bags of features: files of every kind, tables with a column of them, prepared corpora."""

import dataclasses
import functools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from mmrl.data.corpus import read_corpus
from mmrl.data.reading import bags, shards
from mmrl.data.sources.prepared import Prepared
from mmrl.data.sources.table import Table
from mmrl.preparation import encode, pseudonyms
from mmrl.preparation.storage import Storage
from mmrl.types import DamageError, InputError
from tests import toys
from tests.test_inputs import features

BAG = np.arange(12, dtype=np.float16).reshape(4, 3)


def write(path: Path, array: Any, name: str = "features", **more: np.ndarray) -> Path:
    arrays = {name: array, **more}
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".npz":
        np.savez(path, **arrays)
    elif path.suffix == ".safetensors":
        safetensors.numpy.save_file(arrays, path)
    else:
        h5py = pytest.importorskip("h5py", reason="needs the package h5py")
        with h5py.File(path, "w") as file:
            for key, value in arrays.items():
                file[key] = value
    return path


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors", ".h5"])
@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_every_kind_of_file_is_read(tmp_path, suffix, kind):
    path = write(tmp_path / f"a{suffix}", BAG.astype(kind))
    found = bags.load(str(tmp_path), path.name)
    assert found.dtype == kind
    np.testing.assert_array_equal(found, BAG)
    if suffix != ".npy":  # among several arrays, the one of that name; another name, alone
        write(path, BAG, coords=np.zeros((4, 2), np.int32))
        np.testing.assert_array_equal(bags.load(str(tmp_path), path.name), BAG)
        write(path, BAG, "embeddings")
        np.testing.assert_array_equal(bags.load(str(tmp_path), path.name), BAG)
        write(path, BAG, "one", two=BAG)
        message = r"arrays one, two; expected one, or one called 'features'"
        with pytest.raises(InputError, match=message):
            bags.load(str(tmp_path), path.name)


class Evil:
    def __reduce__(self):
        return (pytest.fail, ("a file was unpickled",))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (BAG[0], r"features float16\[3\]; expected float16 or float32 \[S, F\]"),
        (BAG[:0], r"features float16\[0, 3\]; expected float16 or float32 \[S, F\]"),
        (BAG.astype(int), r"features int64\[4, 3\]; expected float16 or float32 \[S, F\]"),
        (BAG * np.nan, r"features \[4, 3\] with values that are not finite"),
        (np.array([[Evil()]], object), "it cannot be read: .*allow_pickle"),
    ],
)
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_other_arrays_are_refused_and_nothing_is_unpickled(tmp_path, suffix, array, message):
    path = write(tmp_path / f"a{suffix}", array)
    with pytest.raises(InputError, match=re.escape(str(path)) + ": " + message) as caught:
        bags.load(str(tmp_path), path.name)
    assert "\n" not in str(caught.value)


def test_damaged_and_missing_files_are_refused_in_one_line(tmp_path):
    for suffix in (".npy", ".npz", ".safetensors"):
        path = write(tmp_path / f"a{suffix}", BAG)
        for data in (b"", path.read_bytes()[:60], b"\x80\x04K\x01."):
            path.write_bytes(data)
            with pytest.raises(InputError, match="it cannot be read") as caught:
                bags.load(str(tmp_path), path.name)
            assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"none\.npy: no such file"):
        bags.load(str(tmp_path), "none.npy")
    message = r"a\.pt: a bag of features as \.pt; choices: \.npy, \.npz, \.safetensors, \.h5"
    with pytest.raises(InputError, match=message):
        bags.load(str(tmp_path), "a.pt")


def table(folder: Path, cells: dict[str, str], **options: Any) -> Table:
    lines = ["id,report,patient,bag,when"]
    lines += [f"{name},Nodule {name}.,{name[0]},{cell}" for name, cell in cells.items()]
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    given = {
        **{"image_column": "", "id_column": "id", "patient_column": "patient"},
        **{"bag_column": "bag", "time_column": "when", "fractions": (1, 0, 0)},
    }
    return Table(split="train", path=str(folder / "table.csv"), **{**given, **options})


def test_a_table_has_bags_and_times(tmp_path):
    write(tmp_path / "one.npy", BAG)
    (tmp_path / "bags").mkdir()
    write(tmp_path / "bags" / "two.npz", 2 * BAG)
    cells = {
        "a1": "one.npy,2019-04-30",
        "a2": "bags/two.npz,2019-05-01T06:00",
        "b1": ",7200",
        "b2": "one.npy,",
        "b3": "one.npy,3600.5",
        "c1": "gone.npy,1",
        "c2": "one.npy,soon",
        "c3": "table.csv,1",
    }
    source = table(tmp_path, cells)
    records = {record.id[6:]: record for record in map(source.__getitem__, range(len(source)))}
    assert {name: record.time for name, record in records.items()} == {
        **{"a1": 0, "a2": 30 * 3600, "b1": 3600, "b2": None, "b3": 0}
    }
    np.testing.assert_array_equal(records["a2"].bag(), 2 * BAG)
    assert records["b1"].bag is None
    assert [(reject.id[6:], reject.reason) for reject in source.rejects] == [
        ("c1", "missing_bag"),
        ("c2", "bad_time"),
        ("c3", "bad_bag"),
    ]
    assert "expected seconds, or a date such as 2019-04-30" in source.rejects[1].detail
    corpus = read_corpus("table/train", source, sections=("report",), need_images=False)
    assert corpus.bags.tolist() == [True, True, False, True, True]
    assert corpus.priors.tolist() == [-1, 0, 4, -1, -1]
    np.testing.assert_array_equal(corpus.bag(1), 2 * BAG)
    with pytest.raises(InputError, match="record table:b1: no bag of features"):
        corpus.bag(2)
    elsewhere = table(tmp_path, {"a1": "two.npz,0"}, bag_root=str(tmp_path / "bags"))
    np.testing.assert_array_equal(elsewhere[0].bag(), 2 * BAG)
    with pytest.raises(InputError, match=r"row 1: bag path '\.\./one\.npy' .*outside"):
        table(tmp_path, {"a1": "../one.npy,0"}, bag_root=str(tmp_path / "bags"))


def test_reading_h5_without_its_package_is_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(bags.importlib.util, "find_spec", lambda name: None)
    (tmp_path / "a.h5").touch()
    with pytest.raises(InputError, match=r"a\.h5: reading it needs h5py: pip install"):
        table(tmp_path, {"a1": "a.h5,0"})


class Bags(toys.ToySource):
    def __getitem__(self, index: int):
        made = {1: features, 2: lambda n: features(n).astype(float), 3: lambda n: features(n)[0]}
        bag = functools.partial(made[index], index) if index in made else None
        return dataclasses.replace(super().__getitem__(index), bag=bag)


def test_prepared_corpora_hold_bags(tmp_path):
    chunk = encode.encode_chunk(map(Bags(4).__getitem__, range(4)), Storage())
    assert [(reject.id, reject.reason) for reject in chunk.rejects] == [("toy:3#bag", "bad_bag")]
    assert [row["bag"] for row in chunk.rows] == [None, [2, 5], [3, 5], None]
    path = tmp_path / "a"
    writer = toys.ArrayRecordWriter(str(path), shards.WRITER_OPTIONS)
    for payload in chunk.payloads:
        writer.write(payload)
    writer.close()
    for index, kind in ((1, np.float16), (2, np.float32)):
        found = shards.load_bag(str(path), index)
        assert found.dtype == kind
        np.testing.assert_array_equal(found, features(index))
    with pytest.raises(DamageError, match="record 0: damaged record: KeyError"):
        shards.load_bag(str(path), 0)


def test_a_prepared_table_has_the_bags_of_the_table(tmp_path):
    from mmrl.preparation import job

    write(tmp_path / "one.npy", BAG)
    source = table(tmp_path, {"a1": "one.npy,5", "b1": ",6", "a2": ",7"})
    options = {
        **{"path": str(tmp_path / "table.csv"), "image_column": "", "bag_column": "bag"},
        **{"id_column": "id", "patient_column": "patient", "time_column": "when"},
        "fractions": (1, 0, 0),
    }
    settings = job.Settings(Storage())
    for name, key in (("plain", None), ("hidden", bytes(range(32)))):
        job.prepare("table", options, tmp_path / name, settings, say=lambda line: None, key=key)
        made = Prepared(split="train", path=str(tmp_path / name))
        assert [one.bag is not None for one in made] == [True, False, False]
        np.testing.assert_array_equal(made[0].bag(), source[0].bag())
        assert made[0].bag().dtype == np.float16
        corpus = read_corpus("a/train", made, sections=("report",), need_images=False)
        assert corpus.priors.tolist() == [-1, -1, 0]
    hidden = pseudonyms.Pseudonymised(Bags(4), bytes(range(32)))[3]
    with pytest.raises(InputError, match="5") as caught:
        bags.checked(hidden.bag())
    assert "toy" not in str(caught.value)
