"""Fine-tuning: the preset, what it starts from, and shares of the training labels."""

import argparse
import json
import runpy
from pathlib import Path

import numpy as np
import pytest

from benchmarks import finetune
from mmrl import config as configs
from mmrl import streams, wiring
from mmrl.data.draws import draw_by_patient
from mmrl.data.inputs import base as inputs
from mmrl.data.phantom import study as phantom
from mmrl.training import draw, initial, learner, optim, run
from mmrl.types import InputError
from tests import commands, toys
from tests.conftest import ROOT

get_config = runpy.run_path(str(ROOT / "configs" / "finetune.py"))["get_config"]


def layout(variant):
    return learner.layout(get_config(variant), toys.one_device())


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("variant", ["labels", "sides", "scratch", "layers,sides", "smoke"])
def test_the_preset_has_one_output_for_each_label(variant):
    config = get_config(variant)
    config.towers.image.init = ""
    configs.validate(config)
    (head,) = config.towers.image.heads.values()
    assert head.width == len(config.data.label_names) == (24 if "sides" in variant else 10)
    names = {path for path in initial.by_path(layout(variant).params) if "/heads/" in path}
    inner = {path.removeprefix("towers/image/heads/labels/") for path in names}
    assert inner == {"norm/scale", "norm/bias", "out/kernel", "out/bias"}


def test_what_is_pretrained_has_a_tenth_of_the_rate_or_one_that_falls():
    def rates(variant):
        config, placed = get_config(variant), layout(variant)
        rules = optim.rules(config)
        assigned = initial.by_path(optim.assign_rules(placed.params, rules))
        decay = config.optimizer.layer_decay
        by_layer = initial.by_path(optim.layer_factors(placed.params, placed.layers, decay))
        return {
            path: (
                rules[n].get("learning_rate", 1.0) * by_layer[path],
                rules[n].get("weight_decay", 1.0),
            )
            for path, n in assigned.items()
        }

    tenth, scratch, falling = rates("labels"), rates("scratch"), rates("layers")
    assert {path: decay for path, (_, decay) in tenth.items()} == {
        path: decay for path, (_, decay) in scratch.items()
    }
    for path, (rate, _) in tenth.items():
        assert rate == (0.1 if path.startswith("towers/image/encoder/") else 1.0), path
    assert {rate for rate, _ in scratch.values()} == {1.0}
    assert {rate for rate, _ in falling.values()} == {0.75**layer for layer in range(6)}


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        ("labels,sides", "expected at most one of"),
        ("scratch,layers", "one of ('scratch', 'layers')"),
        ("label", "did you mean 'labels'"),
    ],
)
def test_variants_that_exclude_each_other_are_refused(variant, message):
    with pytest.raises(InputError) as refused:
        get_config(variant)
    assert message in str(refused.value)


def test_a_run_must_say_what_it_starts_from(capsys, tmp_path):
    refused = commands.refusal(
        capsys, "mmrl.main", "--config=configs/finetune.py", f"--workdir={tmp_path / 'run'}"
    )
    assert "config.towers.image.init needs a value" in refused


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A folder of weights as a pretrained run exports them, with a head that is not kept."""
    config = runpy.run_path(str(ROOT / "configs" / "pretrain.py"))["get_config"]("smoke")
    _, params, _ = learner.split(learner.make(config, streams.key(7, "init")))
    folder = tmp_path_factory.mktemp("pretrained")
    arrays = {path: np.asarray(leaf) for path, leaf in initial.by_path(params).items()}
    np.savez(folder / initial.WEIGHTS, **arrays)
    return folder


@pytest.mark.optax
def test_a_pretrained_tower_is_fine_tuned_on_a_draw_and_its_best_checkpoint_judged(
    weights, tmp_path, capsys
):
    arguments = (
        "--config=configs/finetune.py:smoke",
        f"--workdir={tmp_path}",
        f"--config.towers.image.init={weights}",
        "--config.data.train_fraction=0.2",
        "--config.data.train_draw=1",
        "--config.total_steps=10",
        f"--config.compile_cache={commands.COMPILATIONS.name}",
        "--nosummary",
    )
    assert commands.run_here("mmrl.main", *arguments) == 0
    out = capsys.readouterr().out
    assert "draw from the training split: fraction 0.2, draw 1, patients 42" in out
    listed = json.loads((tmp_path / "init.json").read_text())
    assert all("/encoder/" in path for path in listed["read"][0]["copied"])
    assert any("/heads/embedding/" in path for path in listed["read"][0]["unused"])
    assert {path.split("/")[2] for path in listed["random"]} == {"heads"}
    last = json.loads((tmp_path / "results" / "00000010.json").read_text())
    assert last["draw"]["fraction"] == 0.2
    assert set(last["losses"]) >= {"val/loss", "val/label_classification/accuracy"}
    evaluate = ("mmrl.evaluate", f"--workdir={tmp_path}", "--split=val", "--step=best")
    assert commands.run_here(*evaluate, f"--out={tmp_path / 'best'}") == 0
    best = json.loads((tmp_path / "best" / "results.json").read_text())
    stored = json.loads((tmp_path / "results" / f"{best['step']:08d}.json").read_text())
    assert best["results"] == stored["results"]


@pytest.fixture(scope="module")
def labelled():
    """A config that reads labels, its training split and its inputs."""
    config = get_config("smoke,scratch")
    corpus = run.load_corpus(config, "train")
    return config, corpus, inputs.make(config, wiring.wire(config)[0])


def test_training_draws_by_the_labels_that_it_reads(labelled):
    config, corpus, made = labelled
    columns = [corpus.label_names.index(name) for name in phantom.LABELS]
    truth = corpus.labels[:, columns]
    for number in (0, 1):
        data = {**config.data, "train_fraction": 0.1, "train_draw": number}
        found = draw.training_rows(corpus, made, data)
        expected = draw_by_patient(corpus.patients, truth, 0.1, draw=number)
        np.testing.assert_array_equal(found.rows, expected)
        patients = np.asarray(corpus.patients)
        assert found.facts["patients"] == len(set(patients[expected]))
        assert found.facts["examples"] == len(expected)
        plain = set(patients[draw_by_patient(corpus.patients, None, 0.1, draw=number)])
        assert found.facts["taken_for_a_class"] == len(set(patients[expected]) - plain)
        present = truth[expected] == 1
        assert present.any(axis=0).all() and (truth[expected] == 0).any(axis=0).all()
    assert draw.training_rows(corpus, made, config.data) is None


def test_batches_hold_drawn_examples_alone_each_once_an_epoch(labelled):
    config, corpus, _ = labelled
    rows = np.arange(5, 5 + 3 * config.batch_size)
    feed = toys.feed(config, corpus, {}, drawn=rows)
    seen = np.concatenate([next(feed)["index"] for _ in range(3)])
    feed.close()
    np.testing.assert_array_equal(np.sort(seen), rows)
    with pytest.raises(InputError, match="the draw from phantom/train has 3 usable records"):
        toys.feed(config, corpus, {}, drawn=rows[:3])


def arguments_of(**changes):
    pretrained = [Path("a"), Path("b")]
    given = {"pretrained": pretrained, "fractions": [0.01, 1.0], "draws": 3, "options": ["--x"]}
    return argparse.Namespace(**given | changes)


def test_both_starts_of_a_draw_learn_from_the_same_patients():
    found = finetune.commands(arguments_of())
    assert len(found) == 12
    for name, given in found.items():
        start, fraction, number = name.split("-")
        text = " ".join(given)
        assert f"train_fraction={fraction} " in text and text.endswith("--x")
        assert f"config.seed={number} " in text and f"train_draw={number} " in text
        origin = f"image.init={'ab'[int(number) % 2]}"
        assert (origin in text) == (start == "pretrained") != ("scratch" in text)
    assert [name.split("-")[1] for name in found] == ["1"] * 6 + ["0.01"] * 6


def test_the_interval_of_paired_differences_is_that_of_scipy():
    from scipy import stats

    values = [0.1, 0.2, 0.4]
    test = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    np.testing.assert_allclose(finetune.interval(values), (test.low, test.high))
    assert finetune.interval([0.1]) is None


def test_the_page_states_values_and_paired_differences():
    def one(value, fraction):
        areas = {"findings": {"x": value, "y": value}, "laterality": {"x": value - 0.1}}
        sizes = {"patients": 40, "examples": 48} if fraction != "1" else {}
        return {"areas": areas, "draw": sizes, "data": {"n": 600, "sha256": "0" * 64}}

    results = {
        fraction: {
            "pretrained": [one(0.9, fraction), one(0.8, fraction)],
            "scratch": [one(0.6, fraction), one(0.6, fraction)],
        }
        for fraction in ("0.01", "1")
    }
    found = {
        "results": results,
        "settings": {"command": finetune.COMMAND, "jax": "0", "draws": 2},
    }
    page = finetune.write_page(found, 1.0, {"findings/auroc": "0.9", "laterality/auroc": "0.8"})
    assert "| 1% | 40 | 48 | pretrained | 0.850 ± 0.071 | 0.750 ± 0.071 |" in page
    assert "| 100% | all | all | scratch | 0.600 ± 0.000 | 0.500 ± 0.000 |" in page
    assert "| 1% | +0.250 ± 0.071 [-0.385, +0.885] | +0.250 ± 0.071 [-0.385, +0.885] |" in page
    assert "findings 0.9, left or right 0.8" in page
