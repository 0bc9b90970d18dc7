"""Tables and figures of `benchmarks.ablation`, on invented results."""

import argparse
import json
import math

import pytest
from PIL import Image

from benchmarks import ablation, results
from configs import compare as experiment
from mmrl import config as configs
from mmrl.data import perturb


def made_up(seeds=(0, 1, 2)):
    """Variant v (0 to 5) with seed s scores (v + 1) / 10 + s / 100 everywhere."""
    runs = {}
    for place, variant in enumerate(ablation.NAMES):
        for seed in seeds:
            of_run = {}
            for measure in (*ablation.MEASURES, *ablation.FIGURE, ablation.SENTENCES):
                found = {"value": (place + 1) / 10 + seed / 100, "n": 1234, "chance": 0.25}
                entry = of_run.setdefault(measure.evaluator, {"values": {}, "n": 1234})
                entry["values"][measure.key] = found
            runs[variant, seed] = of_run
    return runs


def test_table_and_differences_by_hand(tmp_path):
    runs, variants, seeds = made_up(), list(ablation.NAMES), [0, 1, 2]
    # Variant (c) gains 0.01 more with each seed than (a): 0.20, 0.21, 0.22.
    for seed in seeds:
        values = runs["discrimination", seed]["structure"]["values"]
        values["clinical@1/grounded_gain"]["value"] += seed / 100
    page = ablation.write_page(runs, variants, seeds, 12.3, ["--config.total_steps=5"])
    assert (
        "12 minutes" in page and "`python -m benchmarks.ablation -- --config.total_steps=5`" in page
    )
    assert "| image to report R@1 | 0.110 ± 0.010 | 0.210 ± 0.010 |" in page
    assert "| 0.250 | 1,234 |" in page
    assert "| +0.100 ± 0.000 | +0.210 ± 0.010 (+21.0 sd) | +0.300 ± 0.000 |" in page
    pointing = next(line for line in page.splitlines() if line.startswith("| pointing, words"))
    assert pointing.split("|")[2:5] == [" not trained ", " 0.210 ± 0.010 ", " not trained "]
    pointing = next(line for line in page.splitlines() if line.startswith("| pointing, sentences"))
    assert pointing.split("|")[6:8] == [" not trained ", " 0.610 ± 0.010 "]
    ablation.draw(runs, variants, seeds, tmp_path / "figure.png")
    with Image.open(tmp_path / "figure.png") as image:
        assert image.size == (1650, 900)


def test_an_ablation_ends_in_a_comparison_of_its_runs(tmp_path, monkeypatch):
    asked = {}

    def execute(commands, workdir, at_once, *, module):
        asked.update(commands, module=module)

    monkeypatch.setattr(ablation.runs, "execute", execute)
    options = ["--config.total_steps=5"]
    given = argparse.Namespace(
        workdir=tmp_path, variants=["global", "paper"], seeds=[3, 4], options=options
    )
    ablation.compare(given)
    assert asked.pop("module") == "mmrl.compare"
    (command,) = asked.values()
    assert command[:2] == [f"{name}={tmp_path / name}-3" for name in ("global", "paper")]
    assert f"--out={tmp_path / 'compared'}" in command and options[0] in command


def test_spread_is_the_sample_deviation():
    assert results.spread([1.0, 2.0, 4.0]) == pytest.approx((7 / 3, math.sqrt(7 / 3)))
    assert results.spread([5.0]) == (5.0, 0.0)


def test_the_supervised_ceiling_stands_in_a_column_of_its_own(tmp_path):
    areas = [
        {"findings": {"edema": 0.9 + seed / 100, "nodule": 0.7}, "laterality": {"nodule": 0.8}}
        for seed in range(3)
    ]
    stored = {"supervised": {"sides,zones": dict(zip("012", areas, strict=True))}}
    (tmp_path / "place.json").write_text(json.dumps(stored))
    found = ablation.ceiling(tmp_path / "place.json")
    assert found == {"findings/auroc": "0.805 ± 0.005", "laterality/auroc": "0.800 ± 0.000"}
    page = ablation.write_page(made_up(), list(ablation.NAMES), [0, 1, 2], 1.0, [], ceiling=found)
    rows = [line for line in page.splitlines() if line.startswith("| zero-shot")]
    assert [row.split("|")[-2].strip() for row in rows[:2]] == ["0.800 ± 0.000", "0.805 ± 0.005"]
    assert ablation.ceiling(tmp_path / "absent.json") == {}


@pytest.mark.parametrize("variant", experiment.OBJECTIVES)
def test_variants_of_the_comparison_differ_in_objectives_alone(variant):
    config = experiment.get_config(variant)
    configs.validate(config)
    assert set(config.objectives) == set(experiment.OBJECTIVES[variant])
    plain = configs.plain(config)
    reference = configs.plain(experiment.get_config("recommended"))
    differing = {key for key in plain if plain[key] != reference[key]}
    assert differing <= {"objectives", "evaluators", "data", "inputs", "towers", "eval_every"}
    data = {key for key in plain["data"] if plain["data"][key] != reference["data"][key]}
    assert data == (set() if variant in ("clinical", "recommended") else {"perturbations"})
    for tower in ("image", "text"):  # the encoders are the same but for where regions are taken
        mine, theirs = plain["towers"][tower], reference["towers"][tower]
        assert {key for key in theirs if mine[key] != theirs[key]} <= (
            {"heads", "packing", "region_layer"}
        )


@pytest.mark.parametrize(
    "variant", [name for name in experiment.VARIANTS if name not in experiment.OBJECTIVES]
)
def test_an_ablation_changes_one_part_of_our_recipe(variant):
    config = experiment.get_config(variant)
    configs.validate(config)
    ours = experiment.get_config("recommended")
    image, text = config.towers.image, config.towers.text
    changed = {
        "mean_pool": image.pool == "mean",
        "no_convolution": text.convolution == 0,
        "no_local": set(ours.objectives) - set(config.objectives) == {"sentence_contrastive"}
        and "local_contrastive" not in config.objectives,
        "gloria": "local_contrastive" in config.objectives,
    }
    assert [name for name, is_so in changed.items() if is_so] == [variant]


def test_clinical_kinds_are_half_of_the_copies():
    weights = experiment.get_config("clinical").data.perturbations
    of_paper = sum(weights[kind] for kind in perturb.PAPER_KINDS)
    assert of_paper == pytest.approx(sum(weights[k] for k in perturb.CLINICAL_KINDS))
