"""The planner: plans of training steps, searches, and the command with its errors."""

import dataclasses
import importlib.util
import json
import subprocess
import sys

import jax
import pytest

from mmrl import plan, wiring
from mmrl.data.batches.pipeline import batch_shapes
from mmrl.data.inputs import base as inputs
from mmrl.planning import measure, search, terminal, topology
from mmrl.types import InputError
from tests import toys
from tests.conftest import ROOT


def test_shortages_are_read_out_of_the_compiler_s_refusal():
    message = (
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space "
        "hbm. Used 23.50G of 15.75G hbm. Exceeded hbm capacity by 7.75G."
    )
    assert measure.read_shortage(message) == measure.Shortage(23.5 * 2**30, 15.75 * 2**30)
    assert measure.read_shortage("RESOURCE_EXHAUSTED: too many requests") is None


def test_batch_shapes_are_those_of_the_pipeline():
    for objectives in ({"global_contrastive": {}}, toys.config().objectives):
        config = toys.config(objectives=objectives)
        (batch,) = toys.batches(config)
        real = {name: (array.shape, array.dtype) for name, array in batch.items()}
        shapes = batch_shapes(inputs.make(config, wiring.wire(config)[0]), 8)
        assert {name: (s.shape, s.dtype) for name, s in shapes.items()} == real


@pytest.fixture(scope="module")
def planned():
    """The plan of a small step on a mesh that does not divide all parameters."""
    config = toys.config(data__num_workers=0)
    config.towers.text.width = 36
    config.towers.image.num_heads = config.towers.text.num_heads = 2
    config.mesh.data, config.mesh.fsdp = 1, 8
    return measure.make_plan(config, topology.find("cpu:8"))


def test_a_plan_adds_up(planned):
    assert planned.mesh == {"data": 1, "fsdp": 8, "tensor": 1}
    assert planned.fits is None and planned.roofline is None and planned.utilisation is None
    assert planned.memory.arguments > sum(planned.state.values())
    assert planned.memory.peak >= planned.memory.arguments
    assert planned.executed_flops >= planned.model_flops > 0
    assert planned.loops_known
    # Adam keeps two numbers for each parameter, and a few counters.
    assert 2 <= planned.state["opt_state"] / planned.state["params"] < 2.1
    # Every gradient of a parameter that is spread over the batch is reduced.
    moved = sum(planned.collectives[kind].bytes for kind in planned.collectives)
    assert moved > 4 * sum(planned.parameters.values()) * 7 / 8


def test_undivided_dimensions_are_listed(planned):
    """A width of 36 is not a multiple of 8; the 32 of the image encoder is."""
    assert planned.replicated
    assert all("towers/text/" in line for line in planned.replicated)
    assert (
        "towers/text/encoder/position [24, 36]: dimension 1 (36) is not a multiple of fsdp=8"
        in planned.replicated
    )


def test_text_of_a_plan(planned):
    whole = "\n".join(terminal.lines(planned))
    assert "mesh data 1, fsdp 8, tensor 1; global batch 8" in whole
    assert "the memory of these devices is not known" in whole
    chip = dataclasses.replace(planned, capacity=2.0 * planned.memory.peak)
    assert "FITS in" in "\n".join(terminal.lines(chip)) and "(50% of it)" in "\n".join(
        terminal.lines(chip)
    )
    short = dataclasses.replace(
        chip, shortage=measure.Shortage(3 * 2**30, 2**30), memory=None, collectives=None
    )
    assert short.fits is False
    assert "3.00 GiB on each device" in "\n".join(terminal.lines(short))
    rows = list(terminal.table({"one": chip, "two": short, "three": "refused"}))
    assert [" yes " in rows[1], " no" in rows[2], rows[3]] == [True, True, "three  refused"]


class Pretend:
    """A planner that compiles nothing; its plans fit up to a number of pairs."""

    def __init__(self, plan, limit):
        self.plan, self.limit, self.asked = plan, limit, []

    def __call__(self, config, topology):
        self.asked.append(config.batch_size)
        peak = config.batch_size / self.limit
        memory = measure.Memory(0, 0, 0, peak)
        return dataclasses.replace(
            self.plan, batch_size=config.batch_size, memory=memory, capacity=1.0
        )


@pytest.mark.parametrize(("limit", "expected"), [(8 * 37, 8 * 37), (8, 8), (20, 16), (7, None)])
def test_the_largest_batch_that_fits(planned, limit, expected):
    config = toys.config()
    pretend = Pretend(planned, limit)
    said = []
    first = pretend(config, None)
    found = search.largest_batch(config, None, first, say=said.append, planner=pretend)
    assert (found and found.batch_size) == expected
    assert all(size % 8 == 0 for size in pretend.asked)
    assert len(said) == len(pretend.asked) - 1 <= 12


def test_the_unit_of_a_batch_keeps_shards_and_packed_groups_whole():
    mesh = {"data": 2, "fsdp": 3, "tensor": 2}
    config = toys.config(gradient_cache=2)
    assert search.batch_unit(config, mesh) == 12
    config.towers.text.packing, config.towers.text.packing_group = 0.5, 4
    assert search.batch_unit(config, mesh) == 24


def test_the_largest_batch_needs_a_known_memory(planned):
    with pytest.raises(InputError, match="needs devices of known memory, not those of cpu:8"):
        search.largest_batch(toys.config(), None, planned, say=print)


def test_sweeps_change_only_what_they_name():
    config = toys.config()
    names = [name for name, _ in search.alternatives(config, 16, "all")]
    assert names == [
        "as configured", "data rest", "data rest, fsdp 4", "fsdp rest",
        "data rest, fsdp 4, tensor 2", "remat none", "remat dots", "remat full",
        "gradient_cache 2",
    ]  # fmt: skip
    changed = dict(search.alternatives(config, 16, "all"))
    sizes = changed["fsdp rest"].mesh
    assert (sizes.data, sizes.fsdp, sizes.tensor) == (1, -1, 1)
    assert changed["remat dots"].towers.text.remat == "dots"
    assert "remat" not in config.towers.text and config.mesh.fsdp == 1

    def refuse(config, topology):
        raise InputError(f"no mesh {config.mesh.fsdp}")

    found = search.sweep(config, topology.find("cpu:8"), "mesh", say=lambda _: None, planner=refuse)
    assert found["data rest, fsdp 2"] == "no mesh 2"


def command(monkeypatch, capsys, *arguments):
    """Runs the command in this process; returns (exit status, stdout, stderr)."""
    for flag in plan._FLAGS:
        plan._FLAGS[flag].unparse()
    plan._FLAGS.unparse_flags()
    monkeypatch.setattr(sys, "argv", ["plan", *arguments])
    status = 0
    try:
        plan.cli.run(plan.main, plan._FLAGS, plan.__doc__)
    except SystemExit as stop:
        status = stop.code
    said = capsys.readouterr()
    return status, said.out, said.err


CONFIG = f"--config={ROOT / 'configs' / 'pretrain.py'}:smoke"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([CONFIG], "missing --topology=...; see --help"),
        (
            ["--topology=cpu:8"],
            "--config is required, for example --config=configs/pretrain.py; presets: ",
        ),
        (
            [CONFIG, "--topology=v5e16"],
            "unknown topology in --topology 'v5e16' (did you mean 'v5e:16x16'?); choices: "
            "v4:4x4x4, v5e:16x16, v5p:4x4x4, v6e:16x16, cpu:8",
        ),
        ([CONFIG, "--topology=v5e:4x4x4"], "expected v5e: and 2 sizes, such as v5e:16x16"),
        ([CONFIG, "--topology=cpu:0"], "expected cpu:N with a number of devices, such as cpu:8"),
        ([CONFIG, "--topology=cpu:9"], "this process has started with 8 CPU devices"),
        ([CONFIG, "--topology=cpu:8", "--batch=12"], "not a multiple of the 8 devices"),
        ([CONFIG, "--topology=cpu:8", "--batch=0"], "--batch=0 must be at least 1"),
        ([CONFIG, "--topology=cpu:8", "--sweep=size"], "--sweep=size; choices: all, mesh, remat"),
    ],
)
def test_errors_are_one_line(monkeypatch, capsys, arguments, expected):
    assert len(jax.devices()) == 8  # this process has started
    status, _, error = command(monkeypatch, capsys, *arguments)
    assert status == 2
    assert expected in error and error.count("\n") == 1


def test_a_topology_without_libtpu_names_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs libtpu, .* pip install 'jax\[tpu\]'"):
        topology.find("v5e:2x2")


def test_the_command_prints_and_writes_its_plan(monkeypatch, capsys, tmp_path, planned):
    monkeypatch.setattr(plan, "make_plan", lambda config, topology: planned)
    file = tmp_path / "plan.json"
    status, out, _ = command(
        monkeypatch, capsys, CONFIG, "--topology=cpu:8", "--batch=16", f"--json={file}"
    )
    assert status == 0
    written = json.loads(file.read_text())
    assert written["memory"]["peak"] == planned.memory.peak
    assert terminal.size(planned.memory.peak) in out


def test_a_sweep_may_be_asked_for_without_a_name(monkeypatch, capsys, planned):
    monkeypatch.setattr(plan.search, "make_plan", None)
    kinds = []

    def pretend(config, topology, kind, *, say):
        kinds.append(kind)
        return {"as configured": planned}

    monkeypatch.setattr(plan.search, "sweep", pretend)
    for flag in ("--sweep", "--sweep=remat"):
        status, out, _ = command(monkeypatch, capsys, CONFIG, "--topology=cpu:8", flag)
        assert status == 0 and "as configured" in out
    assert kinds == ["all", "remat"]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_a_shrunken_recipe_compiles_for_a_tpu(tmp_path):
    file = tmp_path / "plan.json"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mmrl.plan", "--topology=v5e:2x2", f"--json={file}"),
            f"--config={ROOT / 'configs' / 'recipes' / 'vit_b16.py'}:smoke",
            # Packing texts would double the time of the compilation.
            *("--config.towers.text.packing=0.0", "--config.towers.text.depth=1"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    written = json.loads(file.read_text())
    assert written["fits"] and written["device"] == "TPU v5 lite"
    assert 0 < written["utilisation"] < 1
    assert written["loops_known"]
    assert written["collectives"]["all-reduce"]["bytes"] > 0
