"""Nearest neighbours among exported embeddings: exact, of FAISS, and the command."""

import gc
import json
import tracemalloc

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmrl import approximate, index
from mmrl.encoder import Encoder
from mmrl.exports import weights
from mmrl.index import Index
from mmrl.types import InputError
from tests import commands, test_encoder, toys

WIDTH = 8


def rows(count, seed=0, width=WIDTH):
    return np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)


def stored(folder, images, texts=None, *, per_shard=10, kind="parquet", absent=(), **changes):
    """An export of these embeddings, with ids r0, r1, ...; not a number where a row is absent."""
    folder.mkdir(exist_ok=True)
    images = images.copy()
    images[list(absent)] = np.nan
    parts = {"image_embedding": images, **({} if texts is None else {"text_embedding": texts})}
    shards = []
    for start in range(0, len(images), per_shard):
        part = slice(start, start + per_shard)
        numbers = range(len(images))[part]
        name = f"test-{len(shards):05d}.{kind}"
        columns = {"id": [f"r{n}" for n in numbers], "split": ["test"] * len(numbers)}
        if kind == "npz":
            arrays = {k: np.asarray(v) for k, v in columns.items()}
            np.savez(folder / name, **arrays, **{k: v[part] for k, v in parts.items()})
        else:
            for key, value in parts.items():
                flat = pa.array(value[part].ravel())
                columns[key] = pa.FixedSizeListArray.from_arrays(flat, value.shape[1])
            pq.write_table(pa.table(columns), folder / name)
        shards.append({"file": name, "records": len(numbers), "sha256": str(start)})
    manifest = {
        "columns": {name: name.replace("_", ".") for name in parts},
        "checkpoint": {"step": None, "weights_sha256": "0" * 64},
        "shards": shards,
        "complete": True,
        **changes,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def reference(queries, known, k):
    """(scores, rows) from all cosines in float64, ties by row."""
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in map(np.float64, (queries, known))]
    scores = (unit[0] @ unit[1].T).astype(np.float32)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, 1), order


@pytest.mark.parametrize("kind", ["parquet", "npz"])
@pytest.mark.parametrize("chunk", [2**26, 8 * 1024 * 7, 1])
def test_chunks_find_what_one_comparison_finds(tmp_path, monkeypatch, kind, chunk):
    known, queries = rows(53), rows(5, 1) * 9
    known[[7, 30, 31, 52]] = known[3]  # equal rows in several chunks
    monkeypatch.setattr(index, "CHUNK", chunk)
    found = Index.open(stored(tmp_path, known, kind=kind))
    for k in (1, 3, 10, 53):
        hits = found.nearest(queries, k)
        scores, order = reference(queries, known, k)
        np.testing.assert_array_equal(hits.rows, order)
        np.testing.assert_array_equal(hits.scores, scores)
    assert found.nearest(known[3:4], 4).rows.tolist() == [[3, 7, 30, 31]]
    assert found.nearest(queries, 60).rows.shape == (5, 53) and len(found) == 53
    assert found.nearest(queries[:0], 3).rows.shape == (0, 3)


def test_many_queries_are_compared_in_parts(tmp_path, monkeypatch):
    known, queries = rows(40), rows(30, 1)
    monkeypatch.setattr(index, "_QUERIES", 7)
    hits = Index.open(stored(tmp_path, known)).nearest(queries, 5)
    np.testing.assert_array_equal(hits.rows, reference(queries, known, 5)[1])


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("kind", ["parquet", "npz"])
def test_an_index_larger_than_a_chunk_is_never_held(tmp_path, monkeypatch, kind):
    known = rows(80_000, width=32)  # 10 MB in one shard
    found = Index.open(stored(tmp_path, known, kind=kind, per_shard=len(known)))
    monkeypatch.setattr(index, "CHUNK", 2**20)
    monkeypatch.setattr(index, "_QUERIES", 64)
    gc.collect()  # what other tests left must not be freed meanwhile
    pa.default_memory_pool().release_unused()
    before = pa.total_allocated_bytes()
    tracemalloc.start()
    hits = found.nearest(known[[5, 79_999]], 3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5 * 2**20 and pa.total_allocated_bytes() <= before
    assert hits.rows[:, 0].tolist() == [5, 79_999]


@pytest.mark.parametrize("kind", ["parquet", "npz"])
def test_rows_without_an_embedding_are_never_found(tmp_path, kind):
    known = rows(12)
    found = Index.open(stored(tmp_path / "nan", known, kind=kind, absent=(2, 11)))
    hits = found.nearest(known[2:3], 12)
    assert 2 not in hits.rows and 11 not in hits.rows
    assert hits.rows[0, -2:].tolist() == [-1, -1] and np.isneginf(hits.scores[0, -2:]).all()
    known[5, 2] = np.inf
    with pytest.raises(InputError, match="row 5 is not finite"):
        Index.open(stored(tmp_path / "inf", known, kind=kind)).nearest(rows(1), 3)


@pytest.mark.parametrize("kind", ["parquet", "npz"])
def test_rows_have_ids_and_vectors(tmp_path, kind):
    known, texts = rows(25), rows(25, 1, 5)
    found = Index.open(stored(tmp_path, known, texts, kind=kind))
    asked = [24, 0, 13, 0]
    assert found.ids(asked) == ["r24", "r0", "r13", "r0"]
    assert found.values("split", [3]) == ["test"]
    np.testing.assert_array_equal(found.vectors(asked), known[asked])
    np.testing.assert_array_equal(found.vectors(asked, "text"), texts[asked])
    assert found.row("r13") == 13 and found.ids([]) == []
    assert found.columns == {"image_embedding": 8, "text_embedding": 5}
    with pytest.raises(InputError, match="no record with the id 'r25'"):
        found.row("r25")
    for wrong in (-1, 25):
        with pytest.raises(InputError, match=f"row {wrong} of .*; expected 0 to 24"):
            found.ids([0, wrong])
    with pytest.raises(InputError, match=r"unknown embedding .*'imag'.*choices: image, text"):
        found.nearest(known, 1, "imag")


@pytest.mark.parametrize(
    ("queries", "k", "message"),
    [
        (np.ones((1, 7)), 1, r"queries of shape \[1, 7\]; expected \[Q, 8\]"),
        (np.ones(8), 1, r"queries of shape \[8\]"),
        (np.full((1, 8), np.nan), 1, "not finite"),
        (np.ones((1, 8)), 0, "k=0; expected at least 1"),
    ],
)
def test_bad_queries_are_refused(tmp_path, queries, k, message):
    with pytest.raises(InputError, match=message):
        Index.open(stored(tmp_path, rows(3))).nearest(queries, k)


def test_folders_that_hold_no_export_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"holds no embeddings \(manifest.json: No such file"):
        Index.open(tmp_path)
    for text in ("{", "[]", "null", "{}", '{"shards": 3, "complete": true, "columns": {}}'):
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(InputError, match=r"is no manifest of python -m mmrl\.export"):
            Index.open(tmp_path)
    with pytest.raises(InputError, match="is not complete; start it again"):
        Index.open(stored(tmp_path, rows(3), complete=False))
    with pytest.raises(InputError, match=r"holds image\.pooled and no embedding"):
        Index.open(stored(tmp_path, rows(3), columns={"image_pooled": "image.pooled"}))


def test_shards_lie_in_the_folder_and_are_whole(tmp_path):
    other = stored(tmp_path / "other", rows(3))
    folder = stored(tmp_path / "own", rows(12))
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in ("../other/test-00000.parquet", str(other / "test-00000.parquet"), "none.parquet"):
        changed = [{**manifest["shards"][0], "file": name}]
        (folder / "manifest.json").write_text(json.dumps({**manifest, "shards": changed}))
        with pytest.raises(InputError, match="which is no file of"):
            Index.open(folder)
    for kind in ("parquet", "npz"):
        damaged = stored(tmp_path / kind, rows(12), kind=kind)
        found = Index.open(damaged)
        file = damaged / f"test-00001.{kind}"
        file.write_bytes(file.read_bytes()[:-40])
        with pytest.raises(InputError, match=f"cannot read image_embedding of .*00001.{kind}: "):
            found.nearest(rows(1), 2)


# --- FAISS ----------------------------------------------------------------------------------------


@pytest.fixture
def faiss():
    return pytest.importorskip("faiss", reason="faiss-cpu is not installed")


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("kind", ["", "IVF4,Flat", "HNSW16"])
def test_an_index_of_faiss_finds_the_nearest(tmp_path, faiss, kind):
    known, queries = rows(300), rows(20, 1)
    known[40] = known[20]
    folder = stored(tmp_path, known, rows(300, 2), absent=(7,))
    made = Index.open(folder).build("image", kind)
    assert made["type"] == (kind or "Flat") and made["rows"] == 299
    found = Index.open(folder)
    assert found.how("image") == f"FAISS index {made['type']}"
    assert found.how("text") == "all rows are compared" and not found.warnings
    hits, true = found.nearest(queries, 10), found.nearest(queries, 10, exact=True)
    shared = [len({*a} & {*b}) for a, b in zip(hits.rows.tolist(), true.rows.tolist(), strict=True)]
    assert sum(shared) >= 0.9 * 200 and made["recall"] >= 0.95
    assert found.nearest(known[20:21], 2).rows.tolist() == [[20, 40]]
    np.testing.assert_allclose(found.nearest(known[20:21], 1).scores, 1, atol=1e-6)
    every = found.nearest(queries[:2], 300).rows  # more than a list holds
    assert (every[:, -1] == -1).all() and 7 not in every and (every[:, :-1] >= 0).all()


def test_an_index_of_faiss_belongs_to_its_export(tmp_path, faiss, monkeypatch):
    folder = stored(tmp_path, rows(30))
    Index.open(folder).build("image")
    monkeypatch.setattr(approximate, "available", lambda: False)
    without = Index.open(folder)
    assert without.how("image") == "all rows are compared"
    assert "has an index of FAISS, but faiss-cpu is not installed" in without.warnings[0]
    monkeypatch.undo()
    (folder / "image_embedding.faiss").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"search\.json: "):
        Index.open(folder)
    Index.open(folder, exact=True).build("image")
    stored(tmp_path, rows(31))
    with pytest.raises(InputError, match="was built of another export; build it again with"):
        Index.open(folder)
    assert len(Index.open(folder, exact=True)) == 31


def test_types_that_faiss_does_not_know_are_refused(tmp_path, faiss):
    found = Index.open(stored(tmp_path, rows(30)))
    for wrong in ("Foo", "IVF31,Flat"):
        with pytest.raises(InputError, match=f"FAISS cannot make an index '{wrong}' of 30 rows"):
            found.build("image", wrong)
    assert [path.name for path in tmp_path.glob("*.faiss")] == []


def test_the_type_of_an_index_follows_from_the_number_of_rows():
    assert approximate.default_kind(1000) == approximate.default_kind(50_000) == "Flat"
    assert approximate.default_kind(100_000) == "IVF1265,Flat"


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(encoder, its folder, preset of phantoms, exported embeddings)."""
    base = tmp_path_factory.mktemp("search")
    trained = test_encoder.made(toys.config())
    weights.write(trained, base / "encoder")
    preset = base / "data.py"
    preset.write_text(
        "from configs import pretrain\n\n"
        "def get_config():\n"
        "    config = pretrain.get_config('paper,smoke')\n"
        "    config.data.length = 40\n"
        "    return config\n"
    )
    arguments = (f"--encoder={base / 'encoder'}", f"--config={preset}", f"--out={base / 'out'}")
    assert commands.run_here("mmrl.export", *arguments) == 0
    return Encoder(trained), base / "encoder", preset, base / "out"


def searched(capsys, *arguments):
    capsys.readouterr()
    assert commands.run_here("mmrl.search", *arguments) == 0
    return capsys.readouterr().out


@pytest.mark.optax
def test_the_command_finds_and_draws(made, capsys, tmp_path):
    encoder, folder, preset, out = made
    given = (f"--index={out}", f"--encoder={folder}")
    found = Index.open(out)
    (query,) = found.ids([17])
    stated = json.loads(searched(capsys, f"--index={out}", f"--id={query}", "--k=3", "--json"))
    assert stated["query"] == {"id": query} and stated["search"] == "all rows are compared"
    (split,) = found.values("split", [17])
    assert stated["hits"][0] == {"rank": 1, "score": 1.0, "id": query, "split": split}
    text = "Small left effusion."
    shown = searched(capsys, *given, f"--text={text}", "--find=text", "--k=6").splitlines()
    hits = found.nearest(encoder.embed_texts([text]), 6, "text")
    assert [line.split()[-1] for line in shown[1:]] == found.ids(hits.rows[0])
    assert shown[0] == "6 of 40 records, text_embedding: all rows are compared"
    image, sheet = tmp_path / "a.png", tmp_path / "deep" / "sheet.png"
    PIL.Image.fromarray(toys.noise(0)).save(image)
    both = (*given, f"--image={image}", f"--text={text}", "--find=text", "--k=6", "--json")
    stated = json.loads(searched(capsys, *both))
    assert stated["query"] == {"text": text, "image": str(image)}
    units = [
        rows / np.linalg.norm(rows)
        for rows in (encoder.embed_texts([text]), encoder.embed_images([image]))
    ]
    hits = found.nearest(sum(units), 6, "text")
    assert [hit["id"] for hit in stated["hits"]] == found.ids(hits.rows[0])
    np.testing.assert_allclose([hit["score"] for hit in stated["hits"]], hits.scores[0], atol=1e-5)
    data = (f"--config={preset}", f"--sheet={sheet}")
    shown = searched(capsys, *given, *data, f"--image={image}", "--k=4").splitlines()
    hits = found.nearest(encoder.embed_images([image]), 4)
    assert [line.split()[-1] for line in shown[1:5]] == found.ids(hits.rows[0])
    assert shown[5] == f"sheet: {sheet}"
    with PIL.Image.open(sheet) as drawn:
        assert drawn.width > drawn.height > 300


@pytest.mark.optax
def test_the_command_refuses_what_does_not_fit(made, capsys, tmp_path):
    _, folder, preset, out = made
    index_flag, own = f"--index={out}", f"--encoder={folder}"
    cases = {
        (index_flag,): "expected --text, --image, both of these, or --id; given: none",
        (index_flag, "--text=a", "--id=b"): "given: --text, --id",
        (index_flag, "--text=a"): "expected --workdir=FOLDER or --encoder=FOLDER; given: neither",
        (index_flag, "--id=a", "--sheet=a.png"): "expected --workdir=FOLDER or --encoder=FOLDER",
        (index_flag, own, "--text=a", "--sheet=a.jpg"): "--sheet=a.jpg; expected a PNG file",
        (index_flag, own, "--text=a", "--sheet=a.png"): "--encoder needs --config=FILE",
        (index_flag, "--id=a", "--find=vector"): "unknown embedding of",
        (index_flag, "--id=a", "--type=Flat"): "--type=Flat is for --build",
        (index_flag, "--build", "--text=a"): "--build does not search; given with it: --text",
        (index_flag, "--workdir=runs/none", "--text=a"): "holds no trained run",
        (index_flag, own, "--step=3", "--text=a"): "was not trained here has no steps",
        (own, "--text=a"): "missing --index",
    }
    for arguments, message in cases.items():
        assert message in commands.refusal(capsys, "mmrl.search", *arguments)
    other = json.loads((out / "manifest.json").read_text())
    other["checkpoint"]["weights_sha256"] = "f" * 64
    foreign = stored(tmp_path / "foreign", rows(3), checkpoint=other["checkpoint"])
    message = commands.refusal(capsys, "mmrl.search", f"--index={foreign}", own, "--text=a")
    assert "and --index=" in message and "was made with ffffffffffff; expected the" in message
    elsewhere = (f"--config={preset}", "--config.data.length=41", f"--sheet={tmp_path / 's.png'}")
    message = commands.refusal(capsys, "mmrl.search", index_flag, own, "--text=a", *elsewhere)
    assert "are not those of --index=" in message


def test_the_command_builds_an_index(tmp_path, capsys, faiss, monkeypatch):
    folder = stored(tmp_path, rows(30), rows(30, 1))
    shown = searched(capsys, f"--index={folder}", "--build")
    assert shown == (
        "image_embedding: Flat of 30 rows; finds 100.0% of the 10 nearest rows of 30 queries\n"
        "text_embedding: Flat of 30 rows; finds 100.0% of the 10 nearest rows of 30 queries\n"
    )
    assert "FAISS index Flat" in searched(capsys, f"--index={folder}", "--id=r3")
    monkeypatch.setattr(approximate, "available", lambda: False)
    shown = searched(capsys, f"--index={folder}", "--id=r3")
    assert "warning: " in shown and "all rows are compared" in shown
    refused = commands.refusal(capsys, "mmrl.search", f"--index={folder}", "--build")
    assert refused == "error: --build needs faiss-cpu: pip install faiss-cpu\n"
