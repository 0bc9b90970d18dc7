"""The forms that `benchmarks.step` compares are one step: equal loss and equal gradients."""

import importlib.util
import json

import jax
import numpy as np
import pytest

from benchmarks import step as benchmark
from benchmarks.step_forms import workload
from benchmarks.step_forms.base import Cost
from benchmarks.step_forms.published import PublishedStep, apart
from mmrl import flops, sharding
from mmrl.step import TrainStep
from mmrl.types import InputError

pytestmark = pytest.mark.optax
NO_TORCH = importlib.util.find_spec("torch") is None

TINY = ["--phantom", "--encoder=tiny", "--text=1x16", "--batch=3", "--copies=2", "--dim=8"]
TINY += ["--length=64", "--rounds=1"]


def given(*more):
    return benchmark._arguments([*TINY, *more])


def make(count, *more):
    """A workload with one empty report and ragged lengths, and a mesh of one device."""
    chosen = given(*more)
    work = workload.make(chosen, count)
    if work.config.model.image.name == "vit":
        work.config.model.image.depth = 1
    work.batches[0]["token_mask"][1, 2:] = False
    work.batches[0]["perturbed_valid"][2] = False
    axes = {"data": 1, "fsdp": 1, "tensor": 1}
    return chosen, work, sharding.make_mesh(axes, devices=jax.devices()[:1])


def assert_close(one, two, tolerance):
    """Largest difference of a leaf relative to the largest entry of all leaves."""
    leaves = jax.tree_util.tree_leaves_with_path(one)
    largest = max(np.abs(leaf).max() for _, leaf in leaves)
    for (path, a), b in zip(leaves, jax.tree.leaves(two), strict=True):
        assert np.abs(a - b).max() <= tolerance * largest, jax.tree_util.keystr(path)


def test_published_step_has_our_loss_and_gradients_and_costs_more():
    _, work, mesh = make(1)
    batch = work.batches[0]
    ours = TrainStep(work.config, work.vocab_size, mesh, batch)
    theirs = PublishedStep(work.config, work.vocab_size, mesh, apart(batch))
    state = ours.init()
    one, gradients = ours.loss_and_gradients(state, batch)
    two, others = theirs.loss_and_gradients(state, apart(batch))
    np.testing.assert_allclose(one, two, rtol=1e-5)
    assert_close(gradients, others, 1e-5)

    def count(step, batch):
        return flops.count(step.loss_and_gradients, state, batch)

    # 5 text passes and 3 image passes, against 3 texts in one pass and 1 image pass.
    assert 1.4 < count(theirs, apart(batch)) / count(ours, batch) < 3.2


def test_batches_are_reports_with_their_copies():
    chosen, work, _ = make(2)
    first, second = work.batches
    assert first["perturbed_tokens"].shape == (3, 2, 64)
    assert first["image"].shape == (3, 32, 32, 1)
    assert not np.array_equal(first["tokens"], second["tokens"])
    copies = second["perturbed_tokens"] != second["tokens"][:, None]
    np.testing.assert_array_equal(copies.any(axis=2), second["perturbed_valid"])
    assert 0.1 < workload.filled(work.batches) < 1
    assert 0.1 < workload.packing_budget(work.batches) <= 1
    assert chosen.packing == 0


class Fake:
    """A form that takes no time."""

    device = "cpu"

    def __init__(self, name, loss, norm):
        self.name, self._values = name, (loss, norm)
        self.cost = Cost(2 * 10**9, 1.5, 2**20)
        self.ran = []

    def place(self, batch):
        return batch

    def run(self, placed):
        self.ran.append(placed["index"].tolist())

    def values(self):
        return self._values


def test_forms_that_differ_are_not_compared():
    _, work, _ = make(1)
    forms = [Fake("jax-fused", 2.0, 3.0), Fake("jax-published", 2.0, 3.001)]
    with pytest.raises(
        InputError, match=r"grad_norm of jax-fused is 3\.0, of jax-published 3\.001"
    ):
        benchmark.first_steps(forms, work, "float32")
    assert len(benchmark.first_steps(forms, work, "bfloat16")) == 2
    forms[1] = Fake("jax-published", float("nan"), 3.0)
    with pytest.raises(InputError, match=r"loss of jax-fused is 2\.0, of jax-published nan"):
        benchmark.first_steps(forms, work, "bfloat16")


def test_forms_take_turns_on_the_same_batches_and_fill_a_table():
    chosen, work, _ = make(3)
    forms = [Fake("jax-fused", 2.0, 3.0), Fake("jax-published", 2.0, 3.0)]
    rows = benchmark.first_steps(forms, work, "float32")
    benchmark.take_turns(forms, rows, work)
    assert forms[0].ran == forms[1].ran == [b["index"].tolist() for b in work.batches]
    rows[0].seconds, rows[1].seconds = [1.0, 9.0, 2.0], [5.0, 5.0, 6.0]
    benchmark.derive(rows, 3, "NVIDIA H200", "bfloat16")
    assert (rows[0].speedup, rows[1].speedup) == (2.5, 1.0)
    assert rows[0].examples_per_second == 1.5
    assert rows[0].mfu == pytest.approx(1e9 / 989e12)
    lines = benchmark.table(rows, chosen).splitlines()
    assert lines[1].split()[-2:] == ["2.50", "x"] and lines[1].startswith("jax-fused ")
    benchmark.derive(rows, 3, "cpu", "float32")
    assert rows[0].mfu is None


def test_wrong_options_are_told_in_one_line(monkeypatch, capsys):
    for options, message in (
        (["--encoder=vit_x16@32"], "--encoder=vit_x16@32; expected one of: tiny"),
        (["--text=large"], "--text=large; expected <layers>x<width>"),
        (["--forms=jax-fused-packed"], "choices with these options: jax-fused, jax-published"),
        (["--threads=4096"], "--threads=4096"),
        (["--rounds=0"], "must be 1 or more"),
    ):
        monkeypatch.setattr("sys.argv", ["step", *TINY, *options])
        with pytest.raises(SystemExit) as ended:
            benchmark.main()
        assert ended.value.code == 2
        said = capsys.readouterr().err
        assert message in said and said.count("\n") == 1


def test_a_peer_without_pytorch_is_one_line(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install torch"):
        benchmark.chosen_forms(given("--peer"))


@pytest.mark.slow
def test_the_whole_benchmark_runs_and_writes_json(tmp_path, capsys):
    path = tmp_path / "step.json"
    # Rows of 128 leave half of the positions empty.
    arguments = [*TINY, "--length=128", "--packing"]
    benchmark.measure([*arguments, "--forms=jax-fused,jax-fused-packed", f"--json={path}"])
    found = json.loads(path.read_text())
    fused, packed = found["rows"]
    assert fused["loss"] == pytest.approx(packed["loss"], rel=1e-5)
    assert 0 < packed["gigaflop"] < fused["gigaflop"]
    assert 0 < found["settings"]["packing"] <= 1
    assert "jax-fused-packed" in capsys.readouterr().out


@pytest.mark.skipif(NO_TORCH, reason="needs PyTorch")
@pytest.mark.parametrize("encoder", ["tiny", "resnet18@32"])
def test_pytorch_forms_have_our_loss_and_gradients(encoder):
    from benchmarks.step_forms.torch_forms import TorchForm

    _, work, mesh = make(1, f"--encoder={encoder}")
    batch = work.batches[0]
    ours = TrainStep(work.config, work.vocab_size, mesh, batch)
    state = ours.init()
    loss, gradients = jax.device_get(ours.loss_and_gradients(state, batch))
    norm = np.sqrt(sum(np.sum(leaf**2) for leaf in jax.tree.leaves(gradients)))
    params = jax.device_get(state["params"])
    for published in (False, True):
        form = TorchForm("torch", params, work.config, batch, published, compiles=False)
        form.run(form.place(batch))
        assert form.values() == pytest.approx((loss, norm), rel=1e-4)
        assert form.cost.flops > 0
