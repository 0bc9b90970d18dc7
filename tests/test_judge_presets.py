"""The presets of real sets: what they read."""

import pytest

from benchmarks import real_tables
from configs import judge
from mmrl import config as configs
from mmrl import presets
from mmrl.training import run
from mmrl.types import InputError
from tests.conftest import ROOT

SPLITS = ("train", "val", "test")
COUNTS = {
    "nih": (196, 51, 79),
    "busi": (315, 84, 136),
    "ham10000": (754, 191, 323),
    "lungs": (49, 11, 23),
    "roco": (2470, 0, 575),
    "covid": (108, 50, 38),
}
LABELS = {"nih": 17, "busi": 3, "ham10000": 7, "lungs": 0, "roco": 4, "covid": 0}


@pytest.mark.parametrize("variant", judge.VARIANTS)
def test_presets_are_valid(variant):
    config = judge.get_config(variant)
    configs.validate(config)
    assert config.data.source == "table" and config.data.path.endswith(".csv")


def test_exactly_one_set_is_judged_on():
    with pytest.raises(InputError, match="config variants busi, nih; expected one of: nih, busi"):
        judge.get_config("nih,busi")
    with pytest.raises(InputError, match="config variants none; expected one of"):
        judge.get_config("")


@pytest.mark.real_data
@pytest.mark.parametrize("variant", judge.VARIANTS)
def test_real_sets_are_read_whole_and_divided_by_group(variant, real_data, monkeypatch):
    monkeypatch.setenv("MMRL_REAL_DATA", str(real_data))
    config = presets.load(f"{ROOT / 'configs/judge.py'}:{variant}")
    config.data.verify = "exists"
    corpora = {
        split: run.load_corpus(config, split, encodings=("image.pooled",), allow_empty=True)
        for split in SPLITS
    }
    assert tuple(len(corpora[split]) for split in SPLITS) == COUNTS[variant]
    assert not any(corpus.rejects for corpus in corpora.values())
    patients = [set(corpus.patients) for corpus in corpora.values()]
    assert len(set.union(*patients)) == sum(map(len, patients))
    test = corpora["test"]
    assert len(test.label_names) == LABELS[variant]
    assert set(judge.DATA[variant]["notes"]) <= set(test.warnings)
    records = [test.record(index) for index in range(len(test))]
    if variant in ("busi", "ham10000", "lungs"):
        assert all(list(record.masks()) == [config.data.mask_label] for record in records[:10])
    if variant in ("ham10000", "lungs"):
        assert all(record.boxes for record in records)
    if variant == "nih":
        assert "No Finding" not in test.label_names
        labels = {box.label for record in records for box in record.boxes}
        assert labels == {"Pneumonia", "Lung Opacity"}


@pytest.mark.real_data
def test_figures_are_judged_on_the_articles_that_training_holds_out(
    real_data, monkeypatch, tmp_path
):
    monkeypatch.setenv("MMRL_REAL_DATA", str(real_data))
    judged = presets.load(f"{ROOT / 'configs/judge.py'}:roco")
    trained = presets.load(f"{ROOT / 'configs/real.py'}:roco,zones")
    real_tables.write("roco", tmp_path / "roco.csv")
    trained.data.update(path=str(tmp_path / "roco.csv"), root=str(real_tables.folder("roco")))
    trained.data.verify = judged.data.verify = "exists"
    test = run.load_corpus(judged, "test", encodings=("image.pooled",))
    held_out = run.load_corpus(trained, "val", encodings=("image.pooled",))
    assert list(test.texts) == list(held_out.texts)
    assert list(test.patients) == list(held_out.patients)
    # The rule of the package and the column of the table state the same modalities.
    assert test.label_names == held_out.label_names
    for index in range(len(test)):
        assert test.record(index).labels == held_out.record(index).labels
