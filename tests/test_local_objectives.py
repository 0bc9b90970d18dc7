"""Candidates of `benchmarks.local_objectives`: all are valid, and the page by hand."""

import pytest

from benchmarks import local_objectives
from benchmarks.local_objectives import CANDIDATES, MEASURES, POINTING
from mmrl import config as configs
from mmrl import presets


@pytest.mark.parametrize("name", CANDIDATES)
def test_every_candidate_is_a_valid_change_that_can_be_judged(name):
    candidate = CANDIDATES[name]
    config = presets.load(f"configs/compare.py:{candidate.variant}")
    changes = [option.removeprefix("--config.").split("=", 1) for option in candidate.options]
    assert not presets.change(config, [(key, text) for key, text in changes])
    configs.validate(config)
    assert not candidate.pointing or candidate.pointing in config.evaluators


def test_page_by_hand():
    results = {}
    for place, name in enumerate(("recipe", "none", "gloria")):
        pointing = CANDIDATES[name].pointing
        results[name, 0] = {measure.evaluator: {"values": {}} for measure in (*MEASURES,)} | {
            "pointing": {"values": {}},
            "sentence_pointing": {"values": {}},
        }
        for measure in MEASURES:
            results[name, 0][measure.evaluator]["values"][measure.key] = {"value": 0.5 + place / 10}
        for _, key in POINTING if pointing else ():
            results[name, 0][pointing]["values"][key] = {"value": 0.25, "chance": 0.125}
    page = local_objectives.write_page(results, [0])
    assert "chance 0.125" in page
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    assert rows[2] == "| no local objective |" + " 0.600 |" * 5 + " none |" * 3
    assert rows[3] == "| GLoRIA's local loss |" + " 0.700 |" * 5 + " 0.250 |" * 3
    assert "`--config=configs/compare.py:gloria`" in page
