"""Table and plot of `benchmarks.curves`, on invented results."""

import json

from PIL import Image

from benchmarks import curves
from configs import compare as experiment
from mmrl import config as configs
from mmrl import presets


def made_up(seeds=(0, 1, 2)):
    """At step s, variant number v with seed k scores s / 1000 + v / 10 + k / 100 everywhere."""
    found = {}
    for place, variant in enumerate(curves.NAMES):
        for seed in seeds:
            found[variant, seed] = {}
            for step in (100, 200):
                results = found[variant, seed].setdefault(step, {})
                for measure in curves.MEASURES:
                    score = step / 1000 + place / 10 + seed / 100
                    evaluator = measure.evaluator
                    if evaluator == "sentence_pointing":
                        evaluator = curves.POINTING.get(variant, evaluator)
                    values = results.setdefault(evaluator, {"values": {}})["values"]
                    values[measure.key] = {"value": score, "chance": 0.25}
    return found


def test_page_and_plot_by_hand(tmp_path):
    found = made_up()
    page = curves.write_page(found, [0, 1, 2], 12.0, ["--config.total_steps=5"])
    assert "`python -m benchmarks.curves -- --config.total_steps=5`" in page
    assert "(chance 0.250)" in page
    # Variant 2 at step 200: 0.4, 0.41 and 0.42; GLoRIA's loss is the fifth and points with words.
    assert "| mean pool | 200 | 0.410 ± 0.010 |" in page
    last = [line for line in page.splitlines() if line.startswith("| GLoRIA")][-1]
    assert last == "| GLoRIA's local loss | 200 | " + " | ".join(["0.610 ± 0.010"] * 7) + " |"
    curves.draw(found, [0, 1, 2], tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as image:
        assert image.size == (1800, 975)


def test_every_evaluation_of_a_run_is_read(tmp_path):
    (tmp_path / "results").mkdir()
    for step in (5, 10):
        content = {"step": step, "results": {"retrieval": {"values": {}}}}
        (tmp_path / "results" / f"step_{step}.json").write_text(json.dumps(content))
    assert sorted(curves.read(tmp_path)) == [5, 10]


def test_every_variant_is_evaluated_on_the_way_and_points():
    for variant, preset in curves.PRESETS.items():
        config = presets.load(preset)
        configs.validate(config)
        assert 0 < config.eval_every < config.total_steps
        assert curves.POINTING.get(variant, "sentence_pointing") in config.evaluators
    assert set(experiment.CURVES) == set(curves.NAMES) - {"demo"}
