"""All forms that `benchmarks.step` compares have equal loss and gradients."""

import functools
import importlib.util
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx

from benchmarks import step as benchmark
from benchmarks.step_forms import workload
from benchmarks.step_forms.base import Cost
from benchmarks.step_forms.jax_forms import JaxForm
from benchmarks.step_forms.published import PublishedStep, apart
from mmrl.devices import flops, sharding
from mmrl.models.image.resnet import Resnet
from mmrl.training.step import TrainStep
from mmrl.types import InputError
from tests.conftest import ROOT

pytestmark = pytest.mark.optax
NO_TORCH = importlib.util.find_spec("torch") is None

TINY = ["--phantom", "--encoder=tiny", "--text=1x16", "--batch=3", "--copies=2", "--dim=8"]
TINY += ["--length=64", "--rounds=1"]


def given(*more):
    return benchmark._parse([*TINY, *more])


def make(count, *more):
    """A workload with an empty report and different lengths, and a mesh of one device."""
    chosen = given(*more)
    work = workload.make(chosen, count)
    work.config.towers.image.depth = 1
    work.batches[0]["text.mask"][1, 2:] = False
    work.batches[0]["perturbed.valid"][2] = False
    axes = {"data": 1, "fsdp": 1, "tensor": 1}
    return chosen, work, sharding.make_mesh(axes, devices=jax.devices()[:1])


@functools.cache
def ours():
    """(workload, mesh, first parameters, jax-fused after one update) of the tiny encoder."""
    _, work, mesh = make(1, "--scan-layers")
    step = TrainStep(work.config, mesh, work.batches[0])
    params = jax.device_get(step.init()["params"])
    form = JaxForm("jax-fused", step)
    form.run(form.place(work.batches[0]))
    return work, mesh, params, form


@pytest.mark.exhaustive
def test_published_step_has_our_loss_and_gradients_and_costs_more():
    work, mesh, _, fused = ours()
    batch = work.batches[0]
    step = PublishedStep(work.config, mesh, apart(batch))
    published = JaxForm("jax-published", step, adapt=apart)
    published.run(published.place(batch))
    assert published.values() == pytest.approx(fused.values(), rel=1e-5)
    # The first momentum is the gradient and its decay, which needs no gradient.
    leaves = jax.tree_util.tree_leaves_with_path(fused.state["opt_state"])
    largest = max(np.abs(leaf).max() for _, leaf in leaves)
    for (path, one), two in zip(leaves, jax.tree.leaves(published.state["opt_state"]), strict=True):
        assert np.abs(one - two).max() <= 1e-5 * largest, jax.tree_util.keystr(path)
    # 5 text passes and 3 image passes, against 3 texts in one pass and 1 image pass.
    assert 1.4 < published.cost.flops / fused.cost.flops < 3.2
    assert published.cost.compile_seconds > 0 and published.cost.temporary_bytes > 0


@pytest.mark.exhaustive
def test_packing_costs_less_where_its_rows_suffice():
    # Rows of 128 leave half of the positions empty.
    _, work, mesh = make(1, "--length=128", "--copies=4", "--text=3x32")
    batch = work.batches[0]
    packed = workload.packed(work.config, workload.packing_budget(work.batches))
    costs = []
    for config in (packed, work.config):
        step = TrainStep(config, mesh, batch)
        costs.append(flops.of_jaxpr(step.traced.jaxpr.jaxpr, min))
    assert costs[0] < 0.9 * costs[1]


def test_batches_are_reports_with_their_copies():
    chosen, work, _ = make(2)
    first, second = work.batches
    assert first["perturbed.tokens"].shape == (3, 2, 64)
    assert first["image.pixels"].shape == (3, 32, 32, 1)
    assert not np.array_equal(first["text.tokens"], second["text.tokens"])
    copies = second["perturbed.tokens"] != second["text.tokens"][:, None]
    np.testing.assert_array_equal(copies.any(axis=2), second["perturbed.valid"])
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


@pytest.mark.exhaustive
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


@pytest.mark.exhaustive
def test_what_was_measured_is_written_as_json(tmp_path, capsys, monkeypatch):
    forms = [Fake("jax-fused", 2.0, 3.0), Fake("jax-published", 2.0, 3.0)]
    monkeypatch.setattr(benchmark, "build", lambda names, work, chosen: forms)
    path = tmp_path / "step.json"
    benchmark.measure([*TINY, f"--json={path}"])
    found = json.loads(path.read_text())
    assert [row["form"] for row in found["rows"]] == ["jax-fused", "jax-published"]
    for row in found["rows"]:
        assert (row["loss"], row["grad_norm"], row["gigaflop"]) == (2.0, 3.0, 2.0)
        assert row["median_seconds"] == row["seconds"][0] > 0
    assert found["corpus"] == "phantom reports" and found["settings"]["batch"] == 3
    said = capsys.readouterr().out
    assert "jax-published" in said and "first step: loss 2, grad norm 3" in said


@pytest.mark.exhaustive
def test_peak_memory_is_that_of_a_process_of_its_own(monkeypatch):
    ballast = np.ones(2**27, np.uint8)  # of this process, not of the one that is started
    seen = []

    def run(command, **options):
        seen.append(command)
        code = "from benchmarks.step import _own_peak as p; print('said'); x = bytes(2**24);"
        code += "import json; print(json.dumps({'compiled': 1, 'peak': p()}))"
        return subprocess_run([sys.executable, "-c", code], cwd=ROOT, **options)

    subprocess_run = subprocess.run
    monkeypatch.setattr(subprocess, "run", run)
    row = benchmark.Row("jax-fused", 1.0, 1.0, 1.0, 1.0, None)
    benchmark.peak_memory(row, TINY, "--packing=0.5")
    assert seen[0][-4:] == ["--forms=jax-fused", "--rounds=1", "--only-memory", "--packing=0.5"]
    assert row.compiled_rss_bytes == 1
    assert 2**24 < row.peak_rss_bytes < benchmark._own_peak() - ballast.nbytes // 2
    monkeypatch.setattr(sys, "executable", "false")
    monkeypatch.setattr(subprocess, "run", subprocess_run)
    with pytest.raises(InputError, match="jax-fused alone ended with status 1: no output"):
        benchmark.peak_memory(row, TINY)


@pytest.mark.slow
@pytest.mark.skipif(NO_TORCH, reason="needs PyTorch")
def test_pytorch_forms_have_our_loss_and_gradients():
    from benchmarks.step_forms.torch_forms import TorchForm

    work, _, params, fused = ours()
    batch = work.batches[0]
    for published in (False, True):
        form = TorchForm("torch", params, work.config, batch, published, compiles=False)
        form.run(form.place(batch))
        assert form.values() == pytest.approx(fused.values(), rel=1e-4)
        assert form.cost.flops > 0


@pytest.mark.skipif(NO_TORCH, reason="needs PyTorch")
@pytest.mark.parametrize("depth", [18, 50])
def test_pytorch_resnet_is_ours(depth):
    import torch

    from benchmarks.step_forms.torch_model import Resnet as Peer

    resnet = Resnet(image_size=32, depth=depth, width=4, region_stage=3, rngs=nnx.Rngs(0))
    # A scale of 0 would hide the convolutions of every block.
    graphdef, *parts = nnx.split(resnet, nnx.Param, ...)
    params, rest = map(nnx.to_pure_dict, parts)
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)
    image = np.random.default_rng(0).normal(size=(4, 32, 32, 1)).astype(np.float32)
    apply = jax.jit(lambda params, image: nnx.merge(graphdef, params, rest)(image, train=True))
    pooled, local, _ = apply(params, image)
    found = Peer(jax.device_get(params), region_stage=3)(torch.tensor(image.transpose(0, 3, 1, 2)))
    for one, two in zip((pooled, local), found, strict=True):
        np.testing.assert_allclose(two.detach().numpy(), one, rtol=1e-3, atol=1e-4)
