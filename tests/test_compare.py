"""Tables and figures of `benchmarks.compare`, on invented results."""

import math

import pytest
from PIL import Image

from benchmarks import compare
from configs import compare as experiment
from mmrl import config as configs
from mmrl.data import perturb


def made_up(seeds=(0, 1, 2)):
    """Variant v (0 to 4) with seed s scores (v + 1) / 10 + s / 100 everywhere."""
    runs = {}
    for place, variant in enumerate(compare.NAMES):
        for seed in seeds:
            results = {}
            for measure in (*compare.MEASURES, *compare.FIGURE):
                found = {"value": (place + 1) / 10 + seed / 100, "n": 1234, "chance": 0.25}
                entry = results.setdefault(measure.evaluator, {"values": {}, "n": 1234})
                entry["values"][measure.key] = found
            runs[variant, seed] = results
    return runs


def test_table_and_differences_by_hand(tmp_path):
    runs, variants, seeds = made_up(), list(compare.NAMES), [0, 1, 2]
    # Variant (c) gains 0.01 more with each seed than (a): 0.20, 0.21, 0.22.
    for seed in seeds:
        values = runs["discrimination", seed]["structure"]["values"]
        values["clinical@1/grounded_gain"]["value"] += seed / 100
    page = compare.write_page(runs, variants, seeds, 12.3, ["--config.total_steps=5"])
    assert (
        "12 minutes" in page and "`python -m benchmarks.compare -- --config.total_steps=5`" in page
    )
    assert "| image to report R@1 | 0.110 ± 0.010 | 0.210 ± 0.010 |" in page
    assert "| 0.250 | 1,234 |" in page
    assert "| +0.100 ± 0.000 | +0.210 ± 0.010 (+21.0 sd) | +0.300 ± 0.000 |" in page
    pointing = next(line for line in page.splitlines() if line.startswith("| pointing"))
    assert pointing.split("|")[2:5] == [" not trained ", " 0.210 ± 0.010 ", " not trained "]
    compare.draw(runs, variants, seeds, tmp_path / "figure.png")
    with Image.open(tmp_path / "figure.png") as image:
        assert image.size == (1650, 900)


def test_spread_is_the_sample_deviation():
    assert compare.spread([1.0, 2.0, 4.0]) == pytest.approx((7 / 3, math.sqrt(7 / 3)))
    assert compare.spread([5.0]) == (5.0, 0.0)


@pytest.mark.parametrize("variant", experiment.VARIANTS)
def test_variants_differ_in_objectives_alone_and_are_valid(variant):
    config = experiment.get_config(variant)
    configs.validate(config)
    assert tuple(config.objectives) == experiment.OBJECTIVES[variant]
    reference = configs.plain(experiment.get_config("paper"))
    plain = configs.plain(config)
    differing = {key for key in plain if plain[key] != reference[key]}
    assert differing <= {"objectives", "evaluators", "data"}
    data = {key for key in plain["data"] if plain["data"][key] != reference["data"][key]}
    assert data == ({"perturbations"} if variant == "clinical" else set())


def test_clinical_kinds_are_half_of_the_copies():
    assert set(experiment.CLINICAL_KINDS) == set(perturb.CLINICAL_KINDS)
    weights = experiment.get_config("clinical").data.perturbations
    of_paper = sum(weights[kind] for kind in perturb.PAPER_KINDS)
    assert of_paper == pytest.approx(sum(weights[k] for k in perturb.CLINICAL_KINDS))
