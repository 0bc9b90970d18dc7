"""The command that judges encoders on real sets: its arguments, its page, frozen features."""

import copy
import json

import numpy as np
import pytest

from benchmarks import frozen, real_page, real_sets
from configs import judge
from mmrl.evaluators import stored
from mmrl.evaluators.base import Estimate, Results
from mmrl.types import InputError

DRAWS = np.linspace(-0.1, 0.1, 101)
EVALUATORS = ("classes", "segmentation")


def evaluation(
    folder, value, *, pixels=0.4, evaluators=EVALUATORS, protocol="probe@1", digest="ab"
):
    """Invented results on busi: the draws of every value lie evenly within 0.1 of it."""
    results = {}
    for evaluator in evaluators:
        values = {}
        for measure in real_page.MEASURES["busi"]:
            if measure.evaluator != evaluator:
                continue
            named = {"": value, "_images_permuted": 0.5, "_raw_pixels": pixels}
            for row, one in {**named, f"_{measure.constant or 'none'}": 0.25}.items():
                # Pixels and the encoder vary together, so that their difference does not vary.
                draws = one + (DRAWS if row in ("", "_raw_pixels") else -DRAWS)
                low, high = np.quantile(draws, [0.025, 0.975])
                values[measure.key + row] = Estimate(one, float(low), float(high), 40, 0.5, draws)
        values["linear_100%/subgroup/sex=F/macro_auroc"] = Estimate(value, 0.0, 1.0, 21)
        details = {"probes": {"linear_100%": {"prevalence": {"benign": 30, "normal": 10}}}}
        if evaluator == "segmentation":
            details = {"labels": {"lesion": {"pixels": 0.125, "empty_masks": 0.25}}}
        results[evaluator] = Results(
            protocol if evaluator == "classes" else "segmentation@1",
            values,
            40,
            {"name": "busi/test", "sha256": "c" * 64, "items_sha256": digest * 32},
            {"size": 64},
            {"no class is present": 2},
            details,
        )
    content = {
        "step": 1200,
        "weights_sha256": f"{value:.3f}".ljust(64, "0"),
        "leaks": {"training": "phantom/train"},
        "warnings": ["Patients are not known."],
    }
    stored.write(folder, content, results)
    return stored.read(folder)


@pytest.fixture
def encoders(tmp_path):
    return {
        "random": [evaluation(tmp_path / "r", 0.40)],
        "ours": [evaluation(tmp_path / f"o{n}", 0.60 + n / 10) for n in range(3)],
        "MobileNetV2": [evaluation(tmp_path / "m", 0.80, evaluators=("classes",))],
    }


def lines_of(page, start):
    return [line for line in page.splitlines() if line.startswith(f"| {start}")]


def test_values_and_differences_by_hand(encoders):
    page = real_page.write_page({"busi": encoders}, "the command", "the machine")
    assert "`the command`, the machine." in page and "- Patients are not known." in page
    value = lines_of(page, "classes, linear probe, mean AUROC |")[0]
    assert value == (
        "| classes, linear probe, mean AUROC | 40 | 0.500 | 0.250 | 0.400 [0.305, 0.495] | "
        "0.700 [0.605, 0.795] ± 0.100 | 0.800 [0.705, 0.895] |"
    )
    # The draws of the encoder and of its pixels move together: the difference is exact.
    assert lines_of(page, "classes, linear probe, mean AUROC — minus raw pixels") == [
        "| classes, linear probe, mean AUROC — minus raw pixels | +0.000 [+0.000, +0.000] | "
        "**+0.300 [+0.300, +0.300]** | **+0.400 [+0.400, +0.400]** |"
    ]
    # Those of permuted images move against it: twice the deviation, and 0 is inside for random.
    (permuted,) = lines_of(page, "classes, linear probe, mean AUROC — minus images permuted")
    assert permuted.split("|")[2:4] == [
        " -0.100 [-0.290, +0.090] ",
        " **+0.200 [+0.010, +0.390]** ",
    ]
    (base,) = lines_of(page, "classes, linear probe, mean AUROC — minus random")
    assert base.split("|")[2:4] == ["  ", " **+0.300 [+0.300, +0.300]** "]
    assert lines_of(page, "lesions, Dice |")[0].endswith("|  |")  # no masks from MobileNetV2


def test_page_states_what_figures_rest_on(encoders):
    page = real_page.write_page({"busi": encoders}, "the command", "the machine")
    assert "| random | none | 1,200 | 64 | 0.400 |" in page.replace("0000000", "")
    assert "- classes: test items: benign 30, normal 10." in page
    assert "- segmentation: lesion: 12.5% of the pixels, 25% of the masks are empty." in page
    assert f"classes: probe@1 on busi/test, {'ab' * 8}; left out: no class is present: 2." in page
    # Three runs without draws have a mean and no interval.
    (group,) = lines_of(page, "sex=F")
    assert group == "| sex=F | 21 | 0.400 [0.000, 1.000] | 0.700 | 0.800 [0.000, 1.000] |"
    assert lines_of(page, "ours")[-1].count("[") == 3  # every run, with its interval


def test_evaluations_that_do_not_compare_are_refused(encoders, tmp_path):
    for fact, change in {"protocol": {"protocol": "probe@2"}, "examples": {"digest": "cd"}}.items():
        other = {**encoders, "other": [evaluation(tmp_path / fact, 0.5, **change)]}
        with pytest.raises(InputError, match=f"busi, classes: {fact} of random is"):
            real_page.write_page({"busi": other}, "", "")


def test_a_missing_value_is_an_error(encoders):
    content = copy.deepcopy(dict(encoders["random"][0].content))
    del content["results"]["classes"]["values"]["linear_100%/macro_auroc"]
    broken = stored.Evaluation(encoders["random"][0].path, content, encoders["random"][0].draws)
    with pytest.raises(InputError, match="has no value 'linear_100%/macro_auroc' of classes"):
        real_page.write_page({"busi": {"random": [broken]}}, "", "")


def test_stored_figures_are_those_of_every_run(encoders):
    kept = json.loads(json.dumps(real_page.stored({"busi": encoders})))
    assert [len(runs) for runs in kept["busi"].values()] == [1, 3, 1]
    first = kept["busi"]["ours"][1]["results"]["classes"]
    assert first["values"]["linear_100%/macro_auroc_raw_pixels"]["value"] == 0.4
    assert first["protocol"] == "probe@1" and first["n"] == 40


@pytest.mark.parametrize("name", judge.EVALUATORS)
def test_measures_are_of_evaluators_that_the_presets_run(name):
    asked = judge.EVALUATORS[name]
    measures = real_page.MEASURES.get(name, ())
    assert {measure.evaluator for measure in measures} in ({*asked}, set())
    ways = ("linear_100%", "knn_100%", *(f"simple_shot_{n}_shots" for n in (1, 4, 16)))
    for measure in measures:
        if asked[measure.evaluator].get("name") == "probe":
            assert measure.key.split("/")[0] in ways


# --- arguments


def run_folder(path):
    (path / "checkpoints").mkdir(parents=True)
    (path / "config.json").write_text("{}")
    return path


def test_encoders_are_named_runs(tmp_path):
    one, two = run_folder(tmp_path / "1"), run_folder(tmp_path / "2")
    found = real_sets.encoders([f"ours={one},{two}"], [0, 3], tmp_path / "w")
    assert found == {
        "random": (tmp_path / "w/random-0", tmp_path / "w/random-3"),
        "ours": (one, two),
    }


@pytest.mark.parametrize(
    ("given", "seeds", "message"),
    [
        ([], [], "no encoder; expected --encoder NAME=RUN"),
        ([], [1, 1], "--random 1 1 names a seed twice"),
        (["ours"], [], r"--encoder ours; expected NAME=RUN"),
        (["ours="], [], r"--encoder ours=; expected NAME=RUN"),
        (["random={run}"], [], "the name 'random' is taken"),
        (["MobileNetV2={run}"], [], "the name 'MobileNetV2' is taken"),
        (["a/b={run}"], [], "not a plain name"),
        (["ours={run}", "ours={run}"], [], "the name 'ours' is taken"),
        (["ours={run},{run}"], [], "names a run twice"),
        (["ours={run}/absent"], [], "absent holds no trained run"),
    ],
)
def test_mistakes_are_refused_before_any_work(tmp_path, given, seeds, message):
    run = run_folder(tmp_path / "run")
    with pytest.raises(InputError, match=message):
        real_sets.encoders([one.format(run=run) for one in given], seeds, tmp_path)


def test_sets_that_are_absent_are_refused(monkeypatch):
    monkeypatch.setitem(judge.DATA, "busi", {**judge.DATA["busi"], "path": "absent/index.csv"})
    with pytest.raises(InputError, match=r"no absent/index\.csv; set MMRL_REAL_DATA"):
        real_sets.check_sets(["busi"])


def test_evaluations_that_are_there_are_not_repeated(tmp_path, monkeypatch):
    executed = {}
    monkeypatch.setattr(
        real_sets.runs,
        "execute",
        lambda commands, workdir, at_once, module: executed.update({module: commands}),
    )
    (tmp_path / "busi/ours-0").mkdir(parents=True)
    (tmp_path / "busi/ours-0/results.json").write_text("{}")
    runs = {"ours": (tmp_path / "a", tmp_path / "b")}
    folders = real_sets.evaluate(runs, ["busi", "lungs"], tmp_path, 1, tmp_path / "weights")
    assert list(executed["mmrl.evaluate"]) == ["busi/ours-1", "lungs/ours-0", "lungs/ours-1"]
    assert executed["mmrl.evaluate"]["lungs/ours-1"] == [
        f"--workdir={tmp_path / 'b'}",
        "--config=configs/judge.py:lungs",
        f"--out={tmp_path / 'lungs/ours-1'}",
    ]
    assert list(executed["benchmarks.frozen"]) == ["busi/MobileNetV2"]  # lungs has no probe
    assert list(folders["lungs"]) == ["ours"]
    assert list(folders["busi"]) == ["ours", "MobileNetV2"]


# --- frozen features


def test_frozen_features_answer_by_id_alone():
    class Data:
        ids = ("b", "a")

    model = frozen.Frozen({"a": np.zeros(2), "b": np.ones(2)})
    (found,) = model.stream(None, Data, ["image.pooled"])
    assert found["image.pooled"].tolist() == [[1, 1], [0, 0]] and found["present"].all()
    with pytest.raises(InputError, match=r"image.regions: frozen features are image.pooled alone"):
        model.encode(None, Data, ["image.regions"])


def test_frozen_features_are_judged_by_probes_alone():
    asked = frozen.probes(judge.get_config("busi").evaluators)
    assert list(asked) == ["classes"]
    assert not frozen.probes(judge.get_config("lungs").evaluators)
