"""The input benchmark: rates of all stages and of the pipeline."""

import argparse
import dataclasses
import json

import pytest

from benchmarks import corpora
from benchmarks import input as benchmark
from tests import toys
from tests.conftest import ROOT

STAGES = ["crop and jitter", "tokenise, first", "perturb, first", "tokenise", "perturb"]


def found(file, *arguments):
    benchmark.main([*arguments, "--examples=32", "--ways=1x0", f"--json={file}"])
    return json.loads(file.read_text())


def test_all_stages_are_told(tmp_path, capsys):
    told = found(tmp_path / "input.json", f"--config={ROOT}/configs/pretrain.py:smoke")
    assert list(told["stages"]) == ["read", *STAGES]
    # One core cannot be faster than its slowest stage.
    usual = [rate for name, rate in told["stages"].items() if not name.endswith(", first")]
    assert 0 < told["sum_of_stages"] < min(usual)
    (way,) = told["pipeline"]
    assert way["clock"] > 0 and way["cpu"] > 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in ["read", *STAGES, "sum of stages", "one H200"])


def test_the_prepared_path_is_told_apart(tmp_path):
    records = [toys.ToySource(80)[index] for index in range(80)]
    folder = toys.prepare(tmp_path / "toy", records)
    told = found(
        tmp_path / "input.json",
        f"--config={ROOT}/configs/pretrain.py",
        f"--prepared={folder}",
        "--sections=findings",
        "--image-size=28",
        "--load-size=32",
        "--copies=4",
    )
    assert list(told["stages"]) == ["read", "decode", *STAGES]
    assert (told["records"], told["image_size"], told["load_size"], told["copies"]) == (
        80,
        28,
        32,
        4,
    )


def test_what_accelerators_take_follows_from_their_peak():
    needs = {
        (need["host"], need["recipe"]): need["examples_per_second"] for need in benchmark.needs()
    }
    # 0.4 x 989.5e12 / (1.738e15 / 4096); 8 x 0.4 x 197e12 / (1.07e15 / 4096).
    assert needs["one H200", "ViT-B/16"] == pytest.approx(933, rel=0.01)
    assert needs["a host of 8 TPU v5e", "ViT-B/16 without the local loss"] == pytest.approx(
        2413, rel=0.01
    )


def test_benchmarks_of_texts_read_prepared_corpora_without_images(tmp_path):
    records = [dataclasses.replace(toys.ToySource(9)[index], images=()) for index in range(9)]
    folder = toys.prepare(tmp_path / "blind", records)
    parser = argparse.ArgumentParser()
    corpora.add_options(parser)
    given = parser.parse_args([f"--prepared={folder}", "--sections=findings"])
    expected = [record.sections["findings"] for record in records]
    assert corpora.chosen(given) == ("blind/train", expected)
