"""The input benchmark tells the rate of each stage and of the whole."""

import json

from benchmarks import input as benchmark
from tests.conftest import ROOT


def test_all_stages_are_told(tmp_path, capsys):
    file = tmp_path / "input.json"
    arguments = [f"--config={ROOT}/configs/pretrain.py:smoke", "--examples=32", f"--json={file}"]
    benchmark.main(arguments)
    found = json.loads(file.read_text())
    stages = ["read", "preprocess", "augment", "tokenise", "perturb, first", "perturb", "batch"]
    assert list(found["stages"]) == stages
    # One core cannot be faster than its slowest stage.
    usual = [rate for name, rate in found["stages"].items() if name != "perturb, first"]
    assert 0 < found["sum_of_stages"] < min(usual)
    assert found["pipeline_first"] > 0 and found["pipeline_again"] > 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in [*stages, "sum of stages", "pipeline, again"])
