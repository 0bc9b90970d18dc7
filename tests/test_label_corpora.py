"""Corpora without reports and corpora without images: loading, training and evaluation."""

import csv
from collections.abc import Callable
from pathlib import Path

import cv2
import jax
import ml_collections
import numpy as np
import pytest

from configs import pretrain
from configs.systems import labels, text_text
from mmrl import presets, wiring
from mmrl.data.batches.pipeline import Examples
from mmrl.data.corpus import read_corpus
from mmrl.data.reading.chexpert_labels import LABELS
from mmrl.data.sources.table import Table
from mmrl.devices import sharding
from mmrl.preparation import job
from mmrl.preparation.audit import audit
from mmrl.preparation.storage import Storage
from mmrl.training import learner, run, scalars
from mmrl.training.predict import Predict
from mmrl.training.train import Trainer
from mmrl.types import InputError
from tests import toys
from tests.corpus_files import write_csv, write_dicom, write_image, write_jsonl, write_lines

COUNT = 36  # images of a corpus; every third one shows the finding, as a bright square
SHOWN = [number % 3 == 0 for number in range(COUNT)]


def pixels(number: int, size: int = 28) -> np.ndarray:
    """Smooth noise, with a bright square where the finding is."""
    coarse = np.random.default_rng(number).integers(0, 100, (5, 5)).astype(np.uint8)
    image = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_LINEAR)
    if SHOWN[number]:
        image[size // 4 : size // 2, size // 4 : size // 2] += 150
    return image


def nih14(folder: Path) -> dict[str, str]:
    names = [f"{number:08}_000.png" for number in range(COUNT)]
    rows = [
        (name, "Edema|Mass" if shown else ("No Finding", "Mass")[number % 2], number, "M", "PA")
        for number, (name, shown) in enumerate(zip(names, SHOWN, strict=True))
    ]
    header = ("Image Index", "Finding Labels", "Patient ID", "Patient Sex", "View Position")
    write_csv(folder / "Data_Entry_2017_v2020.csv", header, rows)
    write_lines(folder / "train_val_list.txt", *names[:-4])
    write_lines(folder / "test_list.txt", *names[-4:])
    for number, name in enumerate(names):
        write_image(folder / "images" / name, pixels(number))
    return {"val_fraction": "0.3", "label_names": "Edema,Mass"}


def chexpert(folder: Path) -> dict[str, str]:
    header = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *LABELS)
    rows: dict[str, list[tuple]] = {"train": [], "valid": []}
    for number, shown in enumerate(SHOWN):
        part = "train" if number < 24 else "valid"
        path = f"{part}/patient{number:05}/study1/view1_frontal.jpg"
        # Uncertain in every fifth image, and blank for most labels, as in the corpus.
        edema = "-1.0" if number % 5 == 0 else f"{shown:.1f}"
        stated = {"Edema": edema, "Cardiomegaly": f"{number % 2:.1f}"}
        cells = (stated.get(name, "") for name in LABELS)
        rows[part].append((f"CheXpert-v1.0-small/{path}", "Female", 68, "Frontal", "AP", *cells))
        write_image(folder / path, pixels(number))
    for part, of_part in rows.items():
        write_csv(folder / f"{part}.csv", header, of_part)
    return {"label_names": "Edema,Cardiomegaly", "label_policy.preset": "u_ignore"}


def medmnist(folder: Path) -> dict[str, str]:
    arrays = {}
    for split, part in (("train", range(20)), ("val", range(20, 32)), ("test", range(32, COUNT))):
        arrays[f"{split}_images"] = np.stack([pixels(number) for number in part])
        arrays[f"{split}_labels"] = np.array([[SHOWN[number]] for number in part], np.uint8)
    np.savez_compressed(folder / "pneumoniamnist.npz", **arrays)
    return {"flag": "pneumoniamnist", "label_names": "pneumonia,normal"}


def rsna_pneumonia(folder: Path) -> dict[str, str]:
    boxes, classes = [], []
    for number, shown in enumerate(SHOWN):
        name = f"image-{number}"
        boxes.append((name, *((7, 7, 7, 7) if shown else ("",) * 4), int(shown)))
        other = ("Normal", "No Lung Opacity / Not Normal")[number % 2]
        classes.append((name, "Lung Opacity" if shown else other))
        write_dicom(folder / f"stage_2_train_images/{name}.dcm", pixels(number))
    header = ("patientId", "x", "y", "width", "height", "Target")
    write_csv(folder / "stage_2_train_labels.csv", header, boxes)
    write_csv(folder / "stage_2_detailed_class_info.csv", ("patientId", "class"), classes)
    return {"fractions": "0.6,0.4,0.0", "label_names": "Pneumonia,Normal"}


def siim_pneumothorax(folder: Path) -> dict[str, str]:
    rows = [(f"1.2.{n}", "300 30 1000 24" if shown else " -1") for n, shown in enumerate(SHOWN)]
    write_csv(folder / "train-rle.csv", ("ImageId", " EncodedPixels"), rows)
    for number in range(COUNT):
        write_dicom(folder / f"dicom-images-train/s/t/1.2.{number}.dcm", pixels(number))
    return {"val_fraction": "0.3", "label_names": "Pneumothorax"}


@pytest.fixture(autouse=True)
def mesh(monkeypatch: pytest.MonkeyPatch) -> jax.sharding.Mesh:
    """Programs for one device compile faster than those for all fake ones."""
    mesh = toys.one_device()
    monkeypatch.setattr(sharding, "make_mesh", lambda sizes: mesh)
    return mesh


def on(
    config: ml_collections.ConfigDict, source: str, path: Path, options: dict[str, str]
) -> ml_collections.ConfigDict:
    """The preset on other data, changed as --config.data.KEY=TEXT does, for three steps."""
    given = {"source": source, "path": str(path), **options}
    presets.change(config, [(f"data.{key}", text) for key, text in given.items()])
    config.update({"total_steps": 3, "batch_size": 16, "log_every": 1, "eval_every": 0})
    config.update({"compile_cache": "", "tensorboard": False})
    config.optimizer.warmup_steps = 1
    return config


def on_labels(source: str, path: Path, options: dict[str, str]) -> ml_collections.ConfigDict:
    config = on(labels.get_config("smoke"), source, path, options)
    config.towers.image.heads.labels = len(config.data.label_names)
    return config


def trained(
    config: ml_collections.ConfigDict, workdir: Path
) -> tuple[Trainer, run.Trained, dict[str, run.Results]]:
    """Trains; checks that the losses are finite and that parameters moved."""
    config.optimizer.learning_rate = 3e-3
    with jax.numpy_dtype_promotion("standard"):  # optax relies on it
        trainer = Trainer(config, workdir)
        before = jax.device_get(trainer.step.init()["params"])
        done, results = trainer.run()
    after = jax.device_get(done.state["params"])
    moved = [
        bool((old != new).any())
        for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    ]
    assert sum(moved) > len(moved) / 2
    assert not any(corpus.rejects for corpus in trainer.corpora.values())
    return trainer, done, results


def losses(workdir: Path) -> list[float]:
    """The total loss of each step."""
    lines = scalars.read_lines(workdir / "metrics.jsonl")
    return [line["loss"] for line in lines if line["kind"] == "train"]


SOURCES = (nih14, chexpert, medmnist, rsna_pneumonia, siim_pneumothorax)


@pytest.mark.parametrize(
    "write",
    [nih14, *(pytest.param(one, marks=pytest.mark.exhaustive) for one in SOURCES if one != nih14)],
    ids=lambda write: write.__name__,
)
def test_a_corpus_of_labels_trains_and_is_evaluated(
    write: Callable[[Path], dict[str, str]], tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    options = write(tmp_path / "data")
    config = on_labels(write.__name__, tmp_path / "data", options)
    trainer, _, results = trained(config, tmp_path / "run")
    curve = losses(tmp_path / "run")
    assert len(curve) == 3 and np.isfinite(curve).all() and curve[-1] < curve[0]
    assert trainer.tokenizers == {} and set(trainer.inputs) == {"image", "labels"}
    values = results["classification"].values
    corpus = trainer.corpora["val"]
    assert values["macro_auroc"].n == len(corpus)
    for name in config.data.label_names:
        known = corpus.labels[:, corpus.label_names.index(name)]
        wanted = (known >= 0) if write is not chexpert else (known != -1)
        estimate = values[f"label/{name}/auroc"]
        assert 0 <= estimate.value <= 1 and estimate.n == wanted.sum() > 0


def pairs(count: int) -> list[tuple[str, str]]:
    """Sentences of the findings, each with its impression."""
    found = [(one, two) for one in KINDS for two in PLACES for _ in range(2)]
    grades = ("Small", "Large")
    return [
        (f"{grades[n % 2]} {one} in the {two} number {n}.", f"{one.capitalize()}, {two}, {n}.")
        for n, (one, two) in enumerate(found[:count])
    ]


KINDS = ("effusion", "nodule", "opacity", "pneumothorax", "consolidation", "mass")
PLACES = ("left lower zone", "right lower zone", "left upper zone", "right upper zone")


def mednli(folder: Path) -> dict[str, str]:
    kinds = ("entailment", "neutral", "contradiction")
    rows = [
        {"pairID": f"{n}", "gold_label": kinds[n % 3], "sentence1": first, "sentence2": second}
        for n, (first, second) in enumerate(pairs(48))
    ]
    for part, chosen in (("train", rows[:32]), ("dev", rows[32:]), ("test", rows[32:33])):
        write_jsonl(folder / f"mli_{part}_v1.jsonl", chosen)
    return {}


def openi(folder: Path) -> dict[str, str]:
    """The tables alone; the images were not downloaded."""
    header = ("uid", "MeSH", "Problems", "indication", "comparison", "findings", "impression")
    rows = [(n, "normal", "normal", "Pain.", "", *pair) for n, pair in enumerate(pairs(48))]
    write_csv(folder / "indiana_reports.csv", header, rows)
    named = [(n, f"{n}_IM-0001-1.dcm.png", "Frontal") for n in range(48)]
    write_csv(folder / "indiana_projections.csv", ("uid", "filename", "projection"), named)
    return {"allow_missing_images": "true", "fractions": "0.6,0.4,0.0"}


@pytest.mark.exhaustive
@pytest.mark.parametrize("write", [mednli, openi], ids=lambda write: write.__name__)
def test_a_corpus_of_texts_trains_and_is_evaluated(
    write: Callable[[Path], dict[str, str]], tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    options = write(tmp_path / "data")
    config = on(text_text.get_config("smoke"), write.__name__, tmp_path / "data", options)
    if write is mednli:
        config.inputs.findings.sections = ("premise",)
        config.inputs.impression.sections = ("hypothesis",)
    trainer, _, results = trained(config, tmp_path / "run")
    assert np.isfinite(losses(tmp_path / "run")).all()
    count = len(trainer.corpora["val"])
    values = results["retrieval"].values
    assert count > 8 and {"image_to_text/R@1", "text_to_image/R@1"} <= set(values)
    assert values["image_to_text/R@1"].n == count
    # The leak check compares the texts that are read, also of sections outside data.sections.
    assert trainer.corpora["train"].fingerprint.long_enough.all()


@pytest.mark.exhaustive
def test_a_prepared_corpus_of_labels_trains_on_the_same_records(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    options = nih14(tmp_path / "data")
    names = options.pop("label_names")
    output = tmp_path / "prepared"
    source = {"path": str(tmp_path / "data"), "val_fraction": 0.3}
    job.prepare("nih14", source, output, job.Settings(Storage()), say=lambda line: None)
    audit([str(output)], out=str(tmp_path / "audit"))
    config = on_labels("prepared", output, {"label_names": names})
    trainer, _, results = trained(config, tmp_path / "run")
    raw = on_labels("nih14", tmp_path / "data", {"val_fraction": "0.3", "label_names": names})
    for split, corpus in trainer.corpora.items():
        assert corpus.ids == run.load_corpus(raw, split).ids
    assert results["classification"].values["macro_auroc"].n == len(trainer.corpora["val"])


def test_an_image_text_model_is_evaluated_on_labels_alone(
    tmp_path: Path, mesh: jax.sharding.Mesh
) -> None:
    options = nih14(tmp_path)
    config = on(pretrain.get_config("paper,smoke"), "nih14", tmp_path, options)
    config.evaluators = {"zero_shot": {"tasks": "findings", "min_positives": 2, "bootstrap": 0}}
    with pytest.raises(InputError, match="if it has no texts, choose objectives and evaluators"):
        run.load_corpus(config, "val")
    corpus = run.load_corpus(config, "val", encodings=wiring.evaluated(config))
    assert len(corpus) == corpus.total > 4 and not any(corpus.texts)
    tokenizers = toys.tokenizers(config)
    layout = learner.layout(run.resolved(config, tokenizers), mesh)
    _, params, variables = learner.split(
        learner.make(run.resolved(config, tokenizers), jax.random.key(0))
    )
    state = {"step": np.zeros(()), "params": params, "variables": variables}
    predict = Predict(layout, mesh)
    made = run.make_evaluators(config.evaluators, predict, Examples(config, corpus, tokenizers))
    values = run.evaluate_all(made, state)["zero_shot"].values
    assert values["findings/auroc"].n == len(corpus)
    config.evaluators = {"retrieval": {}}
    with pytest.raises(InputError, match="no usable record"):
        run.load_corpus(config, "val", encodings=wiring.evaluated(config))


def test_another_number_of_labels_than_of_outputs_is_refused(tmp_path: Path) -> None:
    config = on_labels("nih14", tmp_path, nih14(tmp_path))
    config.towers.image.heads.labels = 5
    with pytest.raises(InputError, match="reads 5 logits for 2 labels; expected one for each"):
        Trainer(config, tmp_path / "run").run()


def test_a_table_of_labels_needs_no_report_column(tmp_path: Path) -> None:
    for number in range(4):
        write_image(tmp_path / f"{number}.png", pixels(number))
    rows = [(f"{number}.png", number % 2, "") for number in range(4)]
    write_csv(tmp_path / "t.csv", ("image", "edema", "report"), rows)
    chosen = {"path": str(tmp_path / "t.csv"), "fractions": (1, 0, 0), "label_columns": "edema"}
    table = Table(split="train", report_columns=(), **chosen)
    assert [table[number].labels for number in range(4)] == [(0,), (1,), (0,), (1,)]
    assert len(table) == table.total and not table[0].sections
    with pytest.raises(InputError, match="no column for the report given"):
        Table(split="train", path=chosen["path"], report_columns=())
    # A column of reports that is named must hold reports.
    assert len(Table(split="train", **chosen)) == 0
    corpus = read_corpus("table/train", table, sections=("report",), need_texts=False)
    other = read_corpus("table/train", table, sections=("report",), need_texts=False)
    assert corpus.sha256() == other.sha256() and len(corpus) == 4
    other.labels[0] = 1
    assert corpus.sha256() != other.sha256()
    with pytest.raises(InputError, match=r"rejected: 4 empty_report.*if it has no texts, choose"):
        read_corpus("table/train", table, sections=("report",))


@pytest.mark.real_data
def test_real_radiographs_with_labels_train(real_data: Path, tmp_path: Path) -> None:
    """Labels among the abnormal radiographs: patients without a finding are of another range."""
    with open(real_data / "nih_cxr" / "index.csv", encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["labels"] != "No Finding"]
    names = ("Atelectasis", "Edema", "Effusion", "Infiltration")
    table = (
        (row["image"], row["patient_id"], *(int(n in row["labels"].split("|")) for n in names))
        for row in rows
    )
    write_csv(tmp_path / "abnormal.csv", ("image", "patient_id", *names), table)
    options = {
        "root": str(real_data / "nih_cxr"),
        "report_columns": "()",
        "patient_column": "patient_id",
        "label_columns": ",".join(names),
        "label_names": ",".join(names),
        "fractions": "0.6,0.4,0.0",
        "verify": "header",
    }
    trainer, _, results = trained(
        on_labels("table", tmp_path / "abnormal.csv", options), tmp_path / "run"
    )
    sizes = {split: len(corpus) for split, corpus in trainer.corpora.items()}
    assert sum(sizes.values()) == len(rows) == 326 and min(sizes.values()) > 100
    assert results["classification"].values["macro_auroc"].n == sizes["val"]
    assert len(results["classification"].details["labels"]) == len(names)


def test_all_splits_of_an_evaluation_ask_the_same_of_their_records(tmp_path):
    """The encoders were trained on reports; a probe of images needs none, in any split."""
    places = ("train", "train", "val", "test")
    rows = [(f"{n}.png", split, n % 2) for n, split in enumerate(places)]
    for name, *_ in rows:
        write_image(tmp_path / name)
    write_csv(tmp_path / "t.csv", ("image", "split", "Edema"), [*rows, ("", "val", 1)])
    config = pretrain.get_config("table")
    config.data.path = str(tmp_path / "t.csv")
    config.data.report_columns, config.data.label_columns = (), ("Edema",)
    config.data.patient_column = config.data.projection_column = ""
    config.data.split_column, config.data.max_reject_fraction = "split", 0.6
    config.evaluators = {"probe": {}}
    of = run.splits(config, wiring.evaluated(config), tmp_path / "out")
    assert [len(of(split)) for split in ("val", "train", "test")] == [1, 2, 1]
    assert of("val") is of("val")
    assert "missing_image" in (tmp_path / "out" / "rejects.jsonl").read_text()
    whole = Examples(config, of("val"), {}, splits=of)
    assert whole.split("val").sha256 == whole.sha256
    config.data.max_reject_fraction = 0.1
    with pytest.raises(InputError, match="table/val"):
        run.splits(config, wiring.evaluated(config), tmp_path / "out")("val")
