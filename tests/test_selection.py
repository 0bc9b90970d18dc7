"""The best checkpoint, early stop, and epochs: interrupted runs select and stop as others do."""

import json
import math
import os
import shutil
import signal

import jax
import numpy as np
import pytest

from mmrl.devices import distributed
from mmrl.evaluators.base import Estimate, Evaluator, Results
from mmrl.training import checkpoint, initial, run
from mmrl.training.console import Console
from mmrl.training.selection import Selection
from mmrl.types import InputError
from tests import commands, stubs, toys


def chosen(values, **options):
    """The selection after evaluations at steps 1, 2, ..."""
    found = Selection(metric="a/b", **options)
    for step, value in enumerate(values, start=1):
        found = found.after(step, {"a/b": value})
    return found


@pytest.mark.parametrize(
    ("values", "options", "step", "waited"),
    [
        ([0.1, 0.3, 0.2], {}, 2, 1),
        ([0.1, 0.3, 0.2], {"mode": "min"}, 1, 2),
        ([0.3, 0.3, 0.3], {}, 1, 2),  # of a tie the first one is kept
        ([0.3, math.nan, 0.4], {}, 3, 0),
        ([math.nan, math.nan], {}, None, 2),
        ([math.nan, 0.1], {"mode": "min"}, 2, 0),
        ([0.5, 0.75, 0.625], {"min_delta": 0.25}, 1, 2),  # better by exactly min_delta is a tie
        ([0.5, 0.875, 1.0], {"min_delta": 0.25}, 2, 1),
        ([0.1, math.inf, 1.0], {}, 2, 1),
    ],
)
def test_the_best_evaluation_is_the_first_one_that_no_other_exceeds(values, options, step, waited):
    found = chosen(values, **options)
    assert (found.step, found.waited) == (step, waited)
    assert found.value == (None if step is None else values[step - 1])


def test_training_stops_after_as_many_evaluations_as_patience_says():
    values = [0.1, 0.3, 0.2, 0.3, 0.1]
    for patience, stopped in ((1, [3]), (2, [4]), (3, [5]), (4, []), (0, [])):
        counts = range(1, len(values) + 1)
        found = [n for n in counts if chosen(values[:n], patience=patience).stopped]
        assert found[:1] == stopped


def test_a_state_continues_bit_for_bit_and_that_of_another_metric_does_not():
    options = {"metric": "a/b", "mode": "max", "min_delta": 0.0, "patience": 3}
    before = chosen([0.1, 0.1 + 2**-40, 0.0], patience=3)
    state = json.loads(json.dumps(before.state()))
    assert Selection.of(options, state) == before
    assert Selection.of({**options, "patience": 1}, state).stopped
    for change in ({"metric": "a/c"}, {"mode": "min"}):
        assert Selection.of({**options, **change}, state).step is None


def test_all_processes_decide_by_the_value_of_the_first(monkeypatch):
    first = np.frombuffer(np.float64(0.75).tobytes(), np.uint8)
    monkeypatch.setattr(distributed.gather, "of_processes", lambda own: np.stack([first, own]))
    assert chosen([0.5, 0.25]) == chosen([0.75, 0.75])
    assert chosen([0.5, 0.25]).waited == 1


def test_an_unknown_value_is_refused_with_those_there_are():
    with pytest.raises(InputError, match=r"'a/b' \(did you mean 'a/bc'\?\); choices: a/bc, x/y"):
        Selection(metric="a/b").after(1, {"a/bc": 1.0, "x/y": 0.0})


class Scripted(Evaluator):
    """Gives values that were written down, by step."""

    values = (0.0, 0.2, 0.5, 0.5, 0.1, 0.4, 0.3, 0.9)

    def __init__(self, predict, data, *, reads=None):
        super().__init__(predict, data, reads=reads)

    def run(self, state):
        value = self.values[int(state["step"]) // 2]
        about = {"name": self.data.name, "sha256": self.data.sha256}
        return Results("scripted@1", {"score": Estimate(value)}, 1, about, {})


# Evaluates every second step; the fifth evaluation is the third one after the best.
CONFIG = """
from configs import pretrain
from tests import stubs

def get_config(variant=""):
    config = pretrain.get_config("paper,smoke")
    config.total_steps, config.log_every, config.eval_every, config.checkpoint.every = 14, 3, 2, 3
    config.optimizer.warmup_steps, config.batch_size, config.checkpoint.keep = 1, 8, 1
    config.data.length, config.tensorboard = 200, False
    stubs.use(config, dropout=0.1)
    config.objectives = {"global_contrastive": {"weight": 1.0}}
    config.evaluators = {"scripted": {}}
    config.best = {"metric": "scripted/score", "mode": "max", "min_delta": 0.0, "patience": 3}
    config.validation_loss = True
    return config
"""


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """Trains stubs in this process: (workdir, arguments) to the exit status."""
    file = tmp_path_factory.mktemp("config") / "scripted.py"
    file.write_text(CONFIG)

    def start(workdir, *extra):
        cache = f"--config.compile_cache={commands.COMPILATIONS.name}"
        arguments = (f"--config={file}", f"--workdir={workdir}", "--nosummary", cache, *extra)
        return commands.run_here("mmrl.main", *arguments)

    with stubs.registered(scripted=Scripted):
        yield start


@pytest.fixture(scope="module")
def uninterrupted(train, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "one"
    with jax.numpy_dtype_promotion("standard"):
        assert train(folder) == 0
    return folder


def content(workdir):
    """All that must not depend on interruptions: the log, results, steps kept, selection, bits."""
    saved = checkpoint.Checkpoints(workdir, read_only=True)
    try:
        arrays = saved.read_arrays(("params", "variables", "opt_state"))
        best = saved.read_arrays(("params",), "best")
        return (
            (workdir / "metrics.jsonl").read_text(),
            {path.name: path.read_text() for path in sorted((workdir / "results").iterdir())},
            saved.steps(),
            saved.best(),
            checkpoint.digest(arrays),
            checkpoint.digest(best),
        )
    finally:
        saved.close()


@pytest.mark.optax
def test_a_run_stops_and_keeps_the_best_checkpoint_beside_the_last(uninterrupted):
    log, results, steps, best, last_digest, best_digest = content(uninterrupted)
    assert (steps, best) == ([4, 10], 4)
    assert last_digest != best_digest
    assert list(results) == [f"{step:08d}.json" for step in (2, 4, 6, 8, 10)]
    lines = [json.loads(line) for line in log.splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "train"] == [3, 6, 9, 10]
    evaluated = {line["step"]: line for line in lines if line["kind"] == "eval"}
    assert [evaluated[s]["scripted/score"] for s in evaluated] == [0.2, 0.5, 0.5, 0.1, 0.4]
    assert all(np.isfinite(evaluated[s]["val/loss"]) for s in evaluated)
    losses = json.loads(results["00000010.json"])["losses"]
    assert losses["val/loss"] == evaluated[10]["val/loss"]


@pytest.mark.optax
@pytest.mark.parametrize(
    ("preempt", "at"),
    [
        pytest.param(False, 5, marks=pytest.mark.exhaustive),
        (True, 4),
        pytest.param(True, 8, marks=pytest.mark.exhaustive),
    ],
)
def test_an_interrupted_run_selects_and_stops_as_an_uninterrupted_one(
    preempt, at, train, uninterrupted, tmp_path, monkeypatch
):
    advance = Console.advance

    def interrupt(self, step):
        if step == at:
            if preempt:
                os.kill(os.getpid(), signal.SIGTERM)
            else:
                raise RuntimeError("killed")
        advance(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(Console, "advance", interrupt)
        if preempt:
            assert train(tmp_path) == 75
        else:
            with pytest.raises(RuntimeError, match="killed"):
                train(tmp_path)
    assert train(tmp_path) == 0
    assert content(tmp_path) == content(uninterrupted)


@pytest.mark.exhaustive
@pytest.mark.optax
def test_a_stopped_run_is_complete_until_patience_grows(train, uninterrupted, tmp_path, capsys):
    folder = tmp_path / "copy"
    shutil.copytree(uninterrupted, folder)
    before = content(folder)
    assert train(folder) == 0
    assert "already complete at step 10; increase config.best.patience" in capsys.readouterr().out
    assert content(folder) == before
    assert train(folder, "--config.best.patience=5") == 0
    out = capsys.readouterr().out
    assert "best checkpoint: step 14, scripted/score 0.9000" in out
    assert content(folder)[2:4] == ([14], 14)


@pytest.mark.optax
def test_commands_and_config_init_take_the_best_checkpoint(train, uninterrupted, tmp_path, capsys):
    *_, best = content(uninterrupted)
    trained = run.restore(uninterrupted, step="best")
    assert trained.step == 4
    assert checkpoint.digest({"params": trained.state["params"]}) == best
    export = ("mmrl.export", f"--workdir={uninterrupted}", f"--out={tmp_path}", "--weights")
    assert commands.run_here(*export, "--step=best") == 0
    assert json.loads((tmp_path / "encoder.json").read_text())["source"]["step"] == 4
    config = stubs.use(toys.config())
    entry = {"from": str(uninterrupted), "match": "towers/.*", "step": "best"}
    with config.unlocked():
        config.init = (entry,)
    arrays = initial._arrays_of(uninterrupted, "best")
    assert {path for path in arrays if path.startswith("towers/")}
    for path, array in initial.by_path(trained.state["params"]).items():
        np.testing.assert_array_equal(arrays[path], array)
    assert initial.entries(config) == [entry]
    evaluate = ("mmrl.evaluate", f"--workdir={uninterrupted}", "--step=first")
    capsys.readouterr()
    refused = commands.refusal(capsys, *evaluate)
    assert "--step=first; expected the number of a step, or best" in refused


def test_a_run_without_a_metric_has_no_best_checkpoint(tmp_path):
    saved = checkpoint.Checkpoints(tmp_path)
    saved.save(3, {"params": np.zeros(2, np.float32)}, {"global_next_index": 0}, {})
    saved.wait()
    with pytest.raises(InputError, match=r"chose no best checkpoint up to step 3; .*steps: \[3\]"):
        saved.best()
    saved.close()


@pytest.mark.exhaustive
@pytest.mark.optax
def test_epochs_decide_the_number_of_steps(train, tmp_path, capsys):
    arguments = ("--config.epochs=2", "--config.best.patience=0", "--config.total_steps=1")
    tiny = ("--config.data.length=60", "--config.eval_every=0", "--config.checkpoint.every=100")
    Scripted.values, kept = (0.5,) * 100, Scripted.values
    try:
        assert train(tmp_path, *arguments, *tiny) == 0
    finally:
        Scripted.values = kept
    out = capsys.readouterr().out
    trained = run.restore(tmp_path)
    examples = len(run.load_corpus(trained.config, "train"))
    assert trained.step == -(-2 * examples // 8)
    assert f"epochs: 2 of {examples} examples in batches of 8 take {trained.step} steps" in out
    assert trained.config.total_steps == 1


@pytest.mark.default_cases(3)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.best.metric=scripted"], "a metric is EVALUATOR/VALUE"),
        (["--config.best.metric=retrieval/x"], "choices: scripted, val"),
        (["--config.best.metric=val/los"], "did you mean 'val/loss'"),
        (["--config.best.metric=val/loss", "--config.validation_loss=false"], "validation_loss=tr"),
        (["--config.best.mode=most"], "choices: max, min"),
        (["--config.best.metric=val/loss"], "set config.best.mode=min"),
        (["--config.best.patience=-1"], "config.best.patience=-1 must be at least 0"),
        (["--config.best.metric="], "config.best.patience=3 needs config.best.metric"),
        (["--config.eval_every=0"], "config.best.patience=3 counts evaluations"),
        (["--config.epochs=-1"], "config.epochs=-1 must be at least 0"),
        (["--config.data.train_fraction=2"], "config.data.train_fraction=2"),
        (["--config.data.train_fraction=0.01"], "the draw from phantom/train has"),
    ],
)
def test_what_cannot_be_selected_is_refused_before_training(
    arguments, message, train, tmp_path, capsys
):
    assert train(tmp_path / "run", *arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run" / "config.json").exists()
