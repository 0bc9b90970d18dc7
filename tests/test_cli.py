"""The commands as a user runs them, on the shipped smoke config.

What is compared bit for bit runs in a process of its own. Refusals, and what needs no encoder in
particular, run in this one, which has imported everything already.
"""

import contextlib
import io
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time

import cv2
import jax
import numpy as np
import pyarrow.parquet as pq
import pytest

import mmrl
from mmrl import checkpoint, run
from tests import stubs
from tests.conftest import QUICK_XLA_FLAGS, ROOT

pytestmark = [
    pytest.mark.slow,
    # From ml_collections, which loads the config file.
    pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning"),
]


# Commands run one after the other here, so they can share what they compiled.
_COMPILATIONS = tempfile.TemporaryDirectory()
# Small batches, where the machinery is tested.
SMALL = ("--config.batch_size=8",)


def train_command(workdir, *extra, variant="smoke"):
    """Arguments that train the smoke config into a workdir."""
    return (
        "mmrl.main",
        f"--config=configs/pretrain.py:{variant}",
        f"--workdir={workdir}",
        f"--config.compile_cache={_COMPILATIONS.name}",
        *extra,
    )


def environment(devices=1):
    flags = f"{QUICK_XLA_FLAGS} --xla_force_host_platform_device_count={devices}"
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": flags,
        "NPROC": "64",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": _COMPILATIONS.name,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def command(*arguments, devices=1, code=0):
    """Runs python -m ARGUMENTS in the repository; returns (stdout, stderr)."""
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:mmrl", "-m", *map(str, arguments)],
        cwd=ROOT,
        env=environment(devices),
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == code, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout, done.stderr


def run_here(module, *arguments):
    """Runs python -m MODULE ARGUMENTS in this process; returns its exit status."""
    cache = jax.config.jax_compilation_cache_dir
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr(sys, "argv", [module, *map(str, arguments)])
        patch.delitem(sys.modules, module, raising=False)
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as stop:
            return stop.code
        finally:
            jax.config.update("jax_compilation_cache_dir", cache)
    return 0


@pytest.fixture
def refusal(capsys):
    """Runs python -m MODULE ARGUMENTS in this process; returns the one line that it ends with."""

    def run_module(module, *arguments):
        code = run_here(module, *arguments)
        err = capsys.readouterr().err
        assert code == 2 and err.startswith("error: ") and err.count("\n") == 1
        return err

    return run_module


# Of the smoke config, with encoders and an objective that compile in no time.
TINY = """
from configs import pretrain

def get_config(variant):
    config = pretrain.get_config(variant)
    config.total_steps, config.log_every, config.eval_every, config.checkpoint.every = 4, 1, 2, 2
    config.optimizer.warmup_steps, config.batch_size = 1, 8
    config.model.image = config.model.text = {"name": "stub"}
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
        return run_here("mmrl.main", config, f"--workdir={workdir}", "--noreport", *extra)

    with stubs.registered():
        yield train


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A complete smoke run and what it printed."""
    workdir = tmp_path_factory.mktemp("runs") / "smoke"
    out, _ = command(*train_command(workdir))
    return workdir, out


def weights(workdir) -> str:
    return run.restore(workdir).weights_sha256()


def test_a_run_leaves_everything_the_design_promises(finished):
    workdir, out = finished
    for name in (
        "config.json",
        "metrics.jsonl",
        "timing.jsonl",
        "rejects.jsonl",
        "tokenizer.model",
        "parameters.txt",
        "report.html",
        "results/00000020.json",
        "figures/loss.png",
        "figures/retrieval.png",
        "figures/structure_order-10way_v1.png",
        "figures/structure_clinical_v1.png",
        "figures/attention.png",
    ):
        assert (workdir / name).exists(), name
    assert list((workdir / "tensorboard").iterdir())
    for text in ("phantom/train: records", "truncated reports", "parameters:", "step     20/20"):
        assert text in out
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["kind"]) for line in lines] == [
        (5, "train"),
        (10, "train"),
        (10, "eval"),
        (15, "train"),
        (20, "train"),
        (20, "eval"),
    ]
    assert "structure/clinical@1/grounded_gain/low" in lines[-1]
    assert lines[0]["perturbed/reverse_words/share"] > 0


@pytest.mark.exhaustive
def test_the_same_command_again_says_it_is_complete(finished):
    workdir, _ = finished
    before = (workdir / "metrics.jsonl").read_bytes()
    out, _ = command(*train_command(workdir, "--noreport"))
    assert "already complete at step 20" in out
    assert (workdir / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("devices", [1, pytest.param(8, marks=pytest.mark.exhaustive)])
def test_killed_and_resumed_equals_never_killed(devices, finished, tmp_path):
    """SIGKILL at a random moment after a checkpoint: same bits, same metrics lines."""
    extra = ["--noreport"]
    if devices == 1:
        whole = finished[0]
    else:
        extra += SMALL
        whole = tmp_path / "whole"
        command(*train_command(whole, *extra), devices=devices)
    broken = tmp_path / "broken"
    process = subprocess.Popen(
        [sys.executable, "-m", *train_command(broken, *extra)],
        cwd=ROOT,
        env=environment(devices),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 300
    while not list(broken.glob("checkpoints/[0-9]*[0-9]")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(float(np.random.default_rng().uniform(0, 1.0)))
    assert process.poll() is None, "the run ended before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait()
    out, _ = command(*train_command(broken, *extra), devices=devices)
    assert "resumed from step" in out
    assert (broken / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert weights(broken) == weights(whole)


@pytest.mark.optax
def test_a_run_can_be_extended_and_that_is_recorded(tiny, capsys, tmp_path):
    assert tiny("smoke", tmp_path) == 0
    capsys.readouterr()
    assert tiny("smoke", tmp_path, "--config.total_steps=5", "--config.eval_every=0") == 0
    out = capsys.readouterr().out
    assert "total_steps 4 -> 5" in out and "resumed from step 4" in out
    history = json.loads((tmp_path / "config_history.jsonl").read_text())
    assert history["changed"] == {"total_steps": [4, 5], "eval_every": [2, 0]}
    assert json.loads((tmp_path / "config.json").read_text())["total_steps"] == 5
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "train"] == [1, 2, 3, 4, 5]


def test_another_experiment_in_the_same_folder_is_refused(finished, refusal):
    workdir, _ = finished
    before = {p: p.stat().st_mtime_ns for p in workdir.rglob("*") if p.is_file()}
    err = refusal(*train_command(workdir, "--config.model.embed_dim=16"))
    assert "holds another experiment; differing keys: model.embed_dim: 32 -> 16" in err
    assert {p: p.stat().st_mtime_ns for p in workdir.rglob("*") if p.is_file()} == before


def test_evaluate_repeats_the_numbers_of_training(finished, refusal, tmp_path):
    workdir, _ = finished
    command("mmrl.evaluate", f"--workdir={workdir}", "--split=val", f"--out={tmp_path / 'out'}")
    again = json.loads((tmp_path / "out" / "results.json").read_text())
    before = json.loads((workdir / "results" / "00000020.json").read_text())
    assert again["results"] == before["results"]
    assert (tmp_path / "out" / "report.html").exists()
    err = refusal("mmrl.evaluate", f"--workdir={workdir}", "--split=dev")
    assert "--split=dev; choices: train, val, test" in err


def test_export_embeds_every_record_and_equals_load_and_evaluation(finished, refusal, tmp_path):
    workdir, _ = finished
    out = tmp_path / "out"
    arguments = ("mmrl.export", f"--workdir={workdir}", f"--out={out}", "--split=val")
    command(*arguments, "--shard_size=16", "--regions")
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["complete"] and manifest["embedding"]["dim"] == 32
    assert manifest["checkpoint"] == {"step": 20, "weights_sha256": weights(workdir)}
    tables = [pq.read_table(out / shard["file"]) for shard in manifest["shards"]]
    assert sum(table.num_rows for table in tables) == manifest["counts"]["val"]
    images = np.concatenate([np.stack(t["image_embedding"].to_numpy()) for t in tables])
    texts = np.concatenate([np.stack(t["text_embedding"].to_numpy()) for t in tables])
    np.testing.assert_allclose(np.linalg.norm(images, axis=1), 1, rtol=1e-5)
    assert len(tables[0]["regions"][0]) == 16 * 32

    trained = run.restore(workdir)
    corpus = run.load_corpus(trained.config.data, "val")
    examples = trained.examples(corpus)
    judged = trained.predict.images(trained.state, examples)["image.embedding"]
    np.testing.assert_allclose(images, judged, atol=1e-6)
    encoder = mmrl.load(str(workdir))
    arrays = [corpus.record(i).images[0].load() for i in range(5)]
    np.testing.assert_allclose(encoder.embed_images(arrays), judged[:5], atol=1e-6)
    np.testing.assert_allclose(encoder.embed_texts(list(corpus.texts[:5])), texts[:5], atol=1e-6)

    # Resume: a lost shard is made again, to the same bytes; the others stay.
    first, second = (out / shard["file"] for shard in manifest["shards"][:2])
    content, kept = second.read_bytes(), first.stat().st_mtime_ns
    second.unlink()
    printed, _ = command(*arguments, "--shard_size=16", "--regions")
    assert f"{first.name}: already there" in printed
    assert second.read_bytes() == content and first.stat().st_mtime_ns == kept
    err = refusal(*arguments, "--shard_size=8", "--regions")
    assert "holds another export; it differs in: options" in err


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


def on_table(path, workdir, *extra):
    return train_command(workdir, f"--config.data.path={path}", *extra, variant="table,smoke")


@pytest.fixture(scope="module")
def on_spoiled_table(tiny, tmp_path_factory):
    """A run on a table with one unreadable image, which is tolerated, and what it printed."""
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
    assert run_here(*export) == 0
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert sum(manifest["counts"].values()) == 39
    shards = [np.load(tmp_path / shard["file"], allow_pickle=False) for shard in manifest["shards"]]
    assert sum(len(shard["image_embedding"]) for shard in shards) == 39
    patients = [set(shard["patient_id"]) for shard in shards]
    assert not patients[0] & patients[1] and not patients[0] & patients[2]


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
        (rename, ("report", "image, text, patient_id")),
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
        (("--config.data.image_sise=3",), 'Did you mean "image_size"'),
        (("--config.objectives.siglp.weight=1",), "no key 'siglp'; keys of config.objectives:"),
        (("--config.model.image.name=vgg",), "unknown image encoder 'vgg'; choices: resnet, vit"),
        (("--config.total_steps=many",), "invalid literal for int()"),
        (("--wrkdir=x",), "Unknown command line flag 'wrkdir'"),
        (("extra",), "unexpected argument 'extra'"),
        (("--workdir=gs://bucket/run",), "gs://bucket/run is an address; expected a folder"),
    ],
)
def test_bad_command_lines_end_in_one_clear_line(arguments, text, refusal, tmp_path):
    assert text in refusal(*train_command(tmp_path / "run"), *arguments)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("mmrl.main", "--config=configs/none.py", "--workdir=x"), "cannot read the file of"),
        (("mmrl.main", "--config=configs/pretrain.py:smok", "--workdir=x"), "did you mean 'smoke'"),
        (("mmrl.main", "--workdir=x"), "missing --config"),
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
