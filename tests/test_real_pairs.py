"""The comparison on real pairs: its tables, presets and pages, and intervals over several runs."""

import csv
import json

import cv2
import numpy as np
import pytest
from PIL import Image

from benchmarks import real_pairs, real_tables, results
from configs import real as experiment
from mmrl import config as configs
from mmrl.data.image import readers
from mmrl.data.overlap.duplicates import near_texts
from mmrl.data.text import class_rules
from mmrl.evaluators import statistics
from mmrl.types import InputError
from tests.commands import COMPILATIONS, run_here
from tests.corpus_files import write_csv
from tests.toys import WORDS, noise

SEEDS = [0, 1, 2]


# --- tables


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("Axial CT scan of the chest.", "CT"),
        ("Contrast-enhanced computerised axial tomography.", "CT"),
        ("PET/CT of the liver.", ""),
        ("CT and MRI of the brain.", ""),
        ("T2-weighted magnetic resonance image.", "MRI"),
        ("MR-angiography of the neck.", "MRI"),
        ("Echocardiography; MR = mitral regurgitation.", "ultrasound"),
        ("Transvaginal ultrasonography.", "ultrasound"),
        ("Chest X ray after surgery.", "X-ray"),
        ("Radiographic findings.", ""),
        ("Periapical radiographs.", "X-ray"),
        ("Product of the reaction.", ""),
    ],
)
def test_modality_is_the_only_one_that_the_caption_names(caption, expected):
    assert class_rules.modality(caption) == expected


def test_tables_of_the_real_corpora(real_data, monkeypatch, tmp_path):
    monkeypatch.setenv("MMRL_REAL_DATA", str(real_data))
    figures, notes = real_tables.read("roco"), real_tables.read("covid")
    assert (len(figures), len(notes)) == (3045, 196)
    for row in figures:
        labels = [row[name] for name in experiment.MODALITIES]
        assert labels == [""] * 4 or sorted(labels) == ["0", "0", "0", "1"]
    for part in range(real_tables.FOLDS):
        held_out = [row for row in notes if row[f"fold-{part}"] == "val"]
        others = [row for row in notes if row[f"fold-{part}"] == "train"]
        assert len(held_out) + len(others) == 196 and 50 < len(held_out) < 80
        assert not {r["patient_id"] for r in held_out} & {r["patient_id"] for r in others}
        given, other = ([row["report"] for row in part] for part in (held_out, others))
        assert not len(near_texts(given, other).first)
        assert min(sum(r["lateral"] == label for r in held_out) for label in "01") >= 5
    for row in notes:
        assert sorted(row[f"fold-{n}"] for n in range(3)) == ["train", "train", "val"]
    path = tmp_path / "covid.csv"
    real_tables.write("covid", path)
    with path.open(encoding="utf-8", newline="") as file:
        assert list(csv.DictReader(file)) == notes


def test_coloured_figures_are_read_as_grey(real_data, monkeypatch):
    monkeypatch.setenv("MMRL_REAL_DATA", str(real_data))
    folder = real_tables.folder("roco")
    with (folder / "index.csv").open(encoding="utf-8", newline="") as file:
        coloured = [row["image"] for row in csv.DictReader(file) if row["mode"] == "RGB"]
    for relative in coloured[::60]:
        pixels = readers.loader(str(folder), relative)()
        blue, green, red = (
            plane.astype(float) for plane in cv2.split(cv2.imread(folder / relative))
        )
        luma = 0.114 * blue + 0.587 * green + 0.299 * red
        assert pixels.ndim == 2 and pixels.dtype == np.uint8
        assert np.abs(pixels - luma).mean() < 1.5


def test_a_corpus_that_is_absent_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("MMRL_REAL_DATA", str(tmp_path))
    with pytest.raises(InputError, match="set MMRL_REAL_DATA to the folder that holds roco_pairs"):
        real_tables.read("roco")


# --- presets


@pytest.mark.parametrize("corpus", experiment.CORPORA)
def test_variants_of_a_corpus_differ_in_the_pool_alone(corpus):
    found = {}
    for pool in experiment.POOLS:
        config = experiment.get_config(f"{corpus},{pool}")
        config.data.path = "pairs.csv"
        configs.validate(config)
        found[pool] = configs.plain(config)
        assert found[pool]["towers"]["image"].pop("pool") == pool
    assert found["mean"] == found["zones"] == found["attention"]
    assert tuple(real_pairs.NAMES) == experiment.POOLS


@pytest.mark.parametrize("variant", ["roco,covid", "roco,mean,zones"])
def test_two_corpora_or_pools_are_refused(variant):
    with pytest.raises(InputError, match="expected at most one of them"):
        experiment.get_config(variant)


def test_prompts_of_a_task_are_not_those_of_another():
    tasks = experiment.modality_tasks()
    assert list(tasks) == list(experiment.MODALITIES)
    for name, task in tasks.items():
        others = {p for other in tasks if other != name for p in tasks[other]["positive"]}
        assert set(task["negative"]) == others and not others & set(task["positive"])
    assert "CT scan." in tasks["CT"]["positive"] and "Ultrasound image." in tasks["CT"]["negative"]
    (lateral,) = experiment.view_tasks().values()
    assert not set(lateral["positive"]) & set(lateral["negative"])


# --- intervals and pages


def judged(shift=0.0, *, patients=40, seed=0):
    rng = np.random.default_rng(seed)
    first = rng.random(patients) < 0.3 + shift
    rows = {key: first.astype(float) for key in ("image_to_text/R@1", "text_to_image/R@1")}
    drawn = 0.7 + shift + 0.01 * rng.standard_normal(500)
    values = {
        measure.key: {"value": 0.002, "low": None, "high": None, "n": patients, "chance": 0.025}
        for corpus in experiment.CORPORA
        for measure in real_pairs.measures(corpus)
        if measure.evaluator == "pairs"
    }
    owners = [f"p{i // 2}" for i in range(patients)]
    return real_pairs.Judged(owners, rows, {"tasks/auroc": drawn, "tasks/CT/auroc": drawn}, values)


def test_runs_over_the_same_pairs_are_resampled_together():
    own = [judged(seed=seed) for seed in SEEDS]
    key = "image_to_text/R@1"
    together = np.mean([one.hits[key] for one in own], axis=0)
    low, high = statistics.patient_bootstrap(together, own[0].patients)
    assert real_pairs.interval(own, key) == pytest.approx((float(low), float(high)), abs=1e-12)
    assert real_pairs.interval(own, key, own) == (0, 0)
    better = [judged(0.2, seed=seed) for seed in SEEDS]
    low, high = real_pairs.interval(better, key, own)
    gain = np.mean([a.hits[key] - b.hits[key] for a, b in zip(better, own, strict=True)])
    assert 0 < low < gain < high


def test_intervals_of_auroc_pair_the_draws_and_leave_out_those_without_a_class():
    own, better = [judged()], [judged(0.1)]
    # The same random numbers: the difference is 0.1 in every draw.
    assert real_pairs.interval(better, "tasks/auroc", own) == pytest.approx((0.1, 0.1))
    own[0].draws["tasks/auroc"][:100] = np.nan
    expected = np.quantile(own[0].draws["tasks/auroc"][100:], (0.025, 0.975))
    assert real_pairs.interval(own, "tasks/auroc") == pytest.approx(tuple(expected))
    assert real_pairs.interval(own, "constant/auroc") is None


def test_page_by_hand(monkeypatch):
    monkeypatch.setattr(real_pairs, "kept_sentences", lambda corpus: f"Sentences of {corpus}.")
    runs, judgements = {}, {}
    for place, pool in enumerate(real_pairs.NAMES):
        for seed in SEEDS:
            result = {
                name: {"values": {}, "n": 40, "protocol": f"{name}@1", "data": {}, "excluded": {}}
                for name in ("retrieval", "zero_shot")
            }
            for measure in real_pairs.measures("roco"):
                if measure.evaluator != "pairs":
                    value = (place + 1) / 10 + seed / 100
                    estimate = {"value": value, "n": 40, "chance": 0.025}
                    result[measure.evaluator]["values"][measure.key] = estimate
            runs["roco", pool, seed] = result
            judgements["roco", pool, seed] = judged(place / 10, seed=seed)
    tables = {"roco": real_pairs.tabulate("roco", SEEDS, runs, judgements)}
    page = real_pairs.write_page(tables, SEEDS, 12.3, ["--config.total_steps=5"], shown=True)
    assert "`python -m benchmarks.real_pairs -- --config.total_steps=5`" in page
    rows = {line.split("|")[1].strip(): line for line in page.splitlines() if "±" in line}
    of_mean = [judgements["roco", "mean", seed] for seed in SEEDS]
    low, high = real_pairs.interval(of_mean, "image_to_text/R@1")
    table, _, differences = page.partition("Pool minus mean pool")
    assert f"| image to text R@1 | 0.110 ± 0.010 [{low:.3f}, {high:.3f}] | 0.210 ± 0.010" in table
    assert (
        "| R@1 of a constant | 0.002 ± 0.000 | 0.002 ± 0.000 | 0.002 ± 0.000 | 0.025 | 40 |"
        in table
    )
    of_zones = [judgements["roco", "zones", seed] for seed in SEEDS]
    low, high = real_pairs.interval(of_zones, "text_to_image/R@1", of_mean)
    assert f"| text to image R@1 | +0.100 ± 0.000 [{low:+.3f}, {high:+.3f}] |" in differences
    assert "permuted" not in differences and "constant" not in differences
    assert {"zero-shot AUROC, CT", "zero-shot AUROC, mean over tasks"} <= set(rows)
    assert "](real_pairs.png)" in page and "Sentences of roco." in page
    kept = results.stored(tables["roco"].runs, real_pairs.measures("roco"))
    assert set(kept["zones-1"]) == {"retrieval", "zero_shot", "pairs"}
    json.dumps(kept, allow_nan=False)


# --- a run


@pytest.fixture(scope="module")
def invented(tmp_path_factory):
    """A folder with 36 radiographs of 18 patients, half of them lateral."""
    root = tmp_path_factory.mktemp("real")
    (root / "covid_cxr" / "images").mkdir(parents=True)
    header = ("image", "report", "patient_id", "view", "license")
    rows = []
    for i in range(36):
        rng = np.random.default_rng(i)
        text = " ".join(rng.choice(WORDS, 8)).capitalize() + ". Tube in place."
        cv2.imwrite(str(root / "covid_cxr" / "images" / f"{i}.png"), noise(i))
        rows.append((f"images/{i}.png", text, f"p{i // 2}", ("L", "PA")[i % 2], "CC0"))
    write_csv(root / "covid_cxr" / "pairs.csv", header, rows)
    return root


SMALL = {
    "total_steps": 2,
    "batch_size": 8,
    "checkpoint.every": 2,
    "optimizer.warmup_steps": 1,
    "towers.image.size": 32,
    "towers.image.width": 32,
    "towers.image.depth": 2,
    "towers.image.num_heads": 2,
    "towers.text.width": 32,
    "towers.text.num_heads": 2,
    "towers.text.packing": 0.0,
    "towers.text.length": 48,
    "compile_cache": COMPILATIONS.name,
}


@pytest.mark.exhaustive
@pytest.mark.optax
def test_a_run_is_judged_as_its_evaluators_judge_it(invented, monkeypatch, tmp_path):
    monkeypatch.setenv("MMRL_REAL_DATA", str(invented))
    real_tables.write("covid", tmp_path / "covid.csv")
    options = [f"--config.{key}={value}" for key, value in SMALL.items()]
    folder = tmp_path / "covid-zones-0"
    given = [*real_pairs.arguments("covid", "zones", 0, tmp_path), *options]
    assert run_here("mmrl.main", *given, f"--workdir={folder}", "--nosummary") == 0
    (path,) = (folder / "results").glob("*.json")
    result = json.loads(path.read_text())["results"]
    one = real_pairs.judge(folder, result, part=0)
    assert len(one.patients) == 12
    for evaluator, keys in (("retrieval", one.hits), ("zero_shot", one.draws)):
        stated = {key: result[evaluator]["values"].get(key) for key in keys if _BLIND not in key}
        for key, estimate in stated.items():
            assert real_pairs.interval([one], key) == pytest.approx(
                (estimate["low"], estimate["high"]), abs=1e-6
            )
            if key in one.hits:
                assert one.hits[key].mean() == pytest.approx(estimate["value"])
    table = real_pairs.tabulate(
        "covid", [0], {("covid", "zones", 0): result}, {("covid", "zones", 0): one}
    )
    assert table.runs["zones", 0]["pairs"]["values"]["constant/R@1"]["value"] == 0
    real_pairs.picture(folder, tmp_path / "picture.png")
    with Image.open(tmp_path / "picture.png") as image:
        assert image.size[1] > 6 * 300  # six figures, one below the other
    assert real_pairs.kept_sentences("covid").startswith("`affirms` keeps ")


_BLIND = "permuted"
