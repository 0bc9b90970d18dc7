"""Commands in the process of the test, which has imported everything already: what they refuse,
and what happens around the step, where no encoder in particular is needed.
"""

import contextlib
import functools
import io
import json
import shutil

import cv2
import jax
import numpy as np
import pytest

from mmrl.training import checkpoint, run
from tests import commands, stubs
from tests.commands import train_command
from tests.conftest import ROOT


@pytest.fixture
def refusal(capsys):
    return functools.partial(commands.refusal, capsys)


# Of the smoke config, with encoders and an objective that compile in no time.
TINY = """
from configs import pretrain
from tests import stubs

def get_config(variant):
    config = pretrain.get_config(f"paper,{variant}")
    config.total_steps, config.log_every, config.eval_every, config.checkpoint.every = 4, 1, 2, 2
    config.optimizer.warmup_steps, config.batch_size = 1, 8
    stubs.use(config)
    config.objectives = {"global_contrastive": {"weight": 1.0}}
    config.evaluators = {"retrieval": {"max_pairs": 16}}
    return config
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Trains stubs in this process: (variant, workdir, arguments) to the exit status."""
    file = tmp_path_factory.mktemp("config") / "tiny.py"
    file.write_text(TINY)

    def train(variant, workdir, *extra):
        config = f"--config={file}:{variant}"
        return commands.run_here("mmrl.main", config, f"--workdir={workdir}", "--nosummary", *extra)

    with stubs.registered():
        yield train


@pytest.mark.optax
def test_a_run_can_be_extended_and_that_is_recorded(tiny, capsys, tmp_path):
    assert tiny("smoke", tmp_path) == 0
    assert "\nforecast: memory " in capsys.readouterr().out
    assert tiny("smoke", tmp_path, "--config.total_steps=5", "--config.eval_every=0") == 0
    out = capsys.readouterr().out
    assert "total_steps 4 -> 5" in out and "resumed from step 4" in out
    history = json.loads((tmp_path / "config_history.jsonl").read_text())
    assert history["changed"] == {"total_steps": [4, 5], "eval_every": [2, 0]}
    assert json.loads((tmp_path / "config.json").read_text())["total_steps"] == 5
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "train"] == [1, 2, 3, 4, 5]


def write_pairs(folder):
    """A CSV of 40 image-report pairs with patients."""
    rng = np.random.default_rng(0)
    rows = ["image,report,patient_id"]
    for index in range(40):
        cv2.imwrite(str(folder / f"{index}.png"), rng.integers(0, 256, (40, 32), np.uint8))
        rows.append(f"{index}.png,Opacity number {index} in the left lung.,p{index // 2}")
    path = folder / "pairs.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


def on_table(path, workdir):
    return train_command(workdir, f"--config.data.path={path}", variant="table,smoke")


@pytest.fixture(scope="module")
def on_spoiled_table(tiny, tmp_path_factory):
    """A run on a table with one unreadable image, and its output."""
    folder = tmp_path_factory.mktemp("table")
    path = write_pairs(folder)
    corrupt(path)
    extra = (f"--config.data.path={path}", "--config.data.max_reject_fraction=0.1")
    out = io.StringIO()
    with contextlib.redirect_stdout(out), jax.numpy_dtype_promotion("standard"):
        assert tiny("table,smoke", folder / "run", *extra) == 0
    return folder / "run", out.getvalue()


def test_a_table_of_the_user_trains_and_exports_one_row_per_image(on_spoiled_table, tmp_path):
    workdir, _ = on_spoiled_table
    export = ("mmrl.export", f"--workdir={workdir}", f"--out={tmp_path}", "--format=npz")
    assert commands.run_here(*export) == 0
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert sum(manifest["counts"].values()) == 39
    shards = [np.load(tmp_path / shard["file"], allow_pickle=False) for shard in manifest["shards"]]
    assert sum(len(shard["image_embedding"]) for shard in shards) == 39
    assert {shard["text_embedding"].shape[1] for shard in shards} == {32}
    patients = [set(shard["patient_id"]) for shard in shards]
    assert not patients[0] & patients[1] and not patients[0] & patients[2]


@pytest.mark.optax
def test_a_run_continues_where_its_corpus_was_moved(tiny, on_spoiled_table, capsys, tmp_path):
    workdir, _ = on_spoiled_table
    moved = tmp_path / "moved"
    shutil.copytree(workdir.parent, moved)
    extra = (f"--config.data.path={moved / 'pairs.csv'}", "--config.data.max_reject_fraction=0.1")
    assert tiny("table,smoke", moved / "run", *extra) == 0
    told = capsys.readouterr().out
    assert f"data.path {workdir.parent / 'pairs.csv'} -> {moved / 'pairs.csv'}" in told
    started = json.loads((moved / "run" / "start.json").read_text())
    assert started["arguments"][-2] == extra[0] and started["folder"] == str(ROOT)


def test_a_tolerated_reject_is_counted_and_the_rest_trains(on_spoiled_table):
    workdir, out = on_spoiled_table
    assert "unreadable_image" in out
    (line,) = (workdir / "rejects.jsonl").read_text().splitlines()
    assert json.loads(line)["reason"] == "unreadable_image"


def corrupt(path):
    broken = path.parent / "3.png"
    broken.write_bytes(broken.read_bytes()[:-30])


def empty(path):
    path.write_text("image,report,patient_id\n")


def rename(path):
    path.write_text(path.read_text().replace("report", "text", 1))


def escape(path):
    path.write_text(path.read_text().replace("5.png", "../../5.png"))


def blank(path):
    path.write_text(path.read_text().replace("Opacity number 7 in the left lung.", " "))


@pytest.mark.parametrize(
    ("spoil", "texts"),
    [
        (corrupt, ("1 unreadable_image", "max_reject_fraction", "rejects.jsonl")),
        (blank, ("1 empty_report", "max_reject_fraction")),
        (empty, ("pairs.csv",)),
        (rename, ("report", "'image', 'text', 'patient_id'")),
        (escape, ("../../5.png",)),
    ],
)
def test_bad_tables_end_in_one_clear_line(spoil, texts, refusal, tmp_path):
    path = write_pairs(tmp_path)
    spoil(path)
    workdir = tmp_path / "run"
    err = refusal(*on_table(path, workdir))
    for text in texts:
        assert text in err
    assert not (workdir / "config.json").exists()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--config.data.load_sise=3",), "'load_sise' (did you mean 'load_size'?); choices: "),
        (
            ("--config.data.image_size=64",),
            "--config.data.image_size=64: config.data.image_size is now config.towers.image.size",
        ),
        (
            ("--config.objectives.siglp.weight=1",),
            "unknown objective 'siglp' (did you mean 'siglip'?); choices: class_classification, ",
        ),
        (
            ("--config.towers.image.name=vgg",),
            "unknown encoder 'vgg'; choices: mlp, resnet, transformer, vit",
        ),
        (("--config.total_steps=many",), "--config.total_steps=many; expected a whole number"),
        (
            ("--config.total_steps=5",),
            "config.optimizer.warmup_steps=5 must be less than the 5 steps of the run",
        ),
        (("--wrkdir=x",), "Unknown command line flag 'wrkdir'"),
        (("extra",), "unexpected argument 'extra'"),
        (("--workdir=hf://owner/run",), "hf://owner/run is an address of another kind; expected a"),
    ],
)
def test_bad_command_lines_end_in_one_clear_line(arguments, text, refusal, tmp_path):
    assert text in refusal(*train_command(tmp_path / "run"), *arguments)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            ("mmrl.main", "--config=configs/none.py", "--workdir=x"),
            "--config=configs/none.py: there is no file 'configs/none.py'; presets: "
            "configs/ceiling.py, configs/compare.py, configs/finetune.py, configs/judge.py, ",
        ),
        (("mmrl.main", "--config=configs/pretrain.py:smok", "--workdir=x"), "did you mean 'smoke'"),
        (
            ("mmrl.main", "--workdir=x"),
            "--config is required, for example --config=configs/pretrain.py; presets: configs/",
        ),
        (("mmrl.main", "--config=configs/none.py"), "missing --workdir=...; see --help"),
        (("mmrl.evaluate", "--workdir=/nonexistent"), "holds no trained run"),
        (("mmrl.export", "--workdir=/nonexistent", "--out=x"), "holds no trained run"),
    ],
)
def test_commands_without_their_inputs_say_so(arguments, text, refusal):
    assert text in refusal(*arguments)


def test_a_folder_of_something_else_is_left_alone(refusal, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    assert "is not empty and holds no config.json" in refusal(*train_command(tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("module", ["mmrl.main", "mmrl.evaluate", "mmrl.export"])
def test_runs_of_the_first_edition_are_refused_in_one_line(module, refusal, tmp_path):
    run_folder = tmp_path / "run"
    run_folder.mkdir()
    old = {"data": {"source": "phantom", "text_length": 72}, "model": {"embed_dim": 128}}
    (run_folder / "config.json").write_text(json.dumps(old))
    arguments = {
        "mmrl.main": train_command(run_folder)[1:],
        "mmrl.evaluate": (f"--workdir={run_folder}",),
        "mmrl.export": (f"--workdir={run_folder}", f"--out={tmp_path / 'out'}"),
    }
    assert refusal(module, *arguments[module]) == (
        f"error: --workdir={run_folder} holds a run of an earlier version of mmrl, which this one "
        "cannot read: config.data.text_length is now config.towers.text.length; train again in a "
        "new folder\n"
    )
    assert [path.name for path in run_folder.iterdir()] == ["config.json"]


@pytest.mark.optax
def test_embeddings_that_are_not_finite_stop_a_run_like_its_loss(
    tiny, capsys, tmp_path, monkeypatch
):
    def evaluate(evaluators, state):
        raise FloatingPointError("image embedding is not finite for 1 of 8 examples, first a:3")

    monkeypatch.setattr(run, "evaluate_all", evaluate)
    assert tiny("smoke", tmp_path, "--config.eval_every=1") == 3
    assert "error: evaluation at step 1: image embedding is not finite" in capsys.readouterr().err
    assert checkpoint.Checkpoints(tmp_path, read_only=True).latest() is None


@pytest.mark.optax
def test_a_diverging_run_stops_with_step_and_records(tiny, capsys, tmp_path):
    extra = ("--config.optimizer.learning_rate=1e30", "--config.optimizer.clip_norm=0.0")
    extra += ("--config.optimizer.warmup_steps=0", "--config.eval_every=0")
    assert tiny("smoke", tmp_path, *extra) == 3
    err = capsys.readouterr().err
    assert "not finite at step" in err and "phantom" in err
    report = json.loads((tmp_path / "nonfinite.json").read_text())
    assert len(report["records"]) == 8
    latest = checkpoint.Checkpoints(tmp_path, read_only=True).latest()
    assert latest is None or latest < report["step"]
