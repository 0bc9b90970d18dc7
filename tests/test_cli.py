"""The commands in separate processes, with the shipped smoke config."""

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet as pq
import pytest

import mmrl
from mmrl.training import run
from tests import commands
from tests.commands import COMPILATIONS, train_command
from tests.conftest import QUICK_XLA_FLAGS, ROOT

pytestmark = pytest.mark.slow

# Small batches, where the machinery is tested.
SMALL = ("--config.batch_size=8", "--config.towers.text.packing_group=8")


def environment(devices=1):
    flags = f"{QUICK_XLA_FLAGS} --xla_force_host_platform_device_count={devices}"
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": flags,
        "NPROC": "64",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": COMPILATIONS.name,
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


@pytest.fixture
def refusal(capsys):
    return functools.partial(commands.refusal, capsys)


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
        "figures/sentence_attention.png",
    ):
        assert (workdir / name).exists(), name
    assert list((workdir / "tensorboard").iterdir())
    for text in ("phantom/train: records", "truncated texts", "parameters:", "step     20/20"):
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
    assert lines[0]["perturbed_discrimination/reverse_words/share"] > 0


@pytest.mark.exhaustive
def test_a_second_run_elsewhere_compiles_nothing(finished, tmp_path):
    """Every program that is not found in the cache is added to it; the cache may move."""
    moved = tmp_path / "moved"
    shutil.copytree(COMPILATIONS.name, moved)
    before = sorted(path.name for path in moved.iterdir())
    extra = ("--nosummary", f"--config.compile_cache={moved}")
    command(*train_command(tmp_path / "again", *extra))
    assert sorted(path.name for path in moved.iterdir()) == before and before
    assert weights(tmp_path / "again") == weights(finished[0])


@pytest.mark.exhaustive
def test_the_same_command_again_says_it_is_complete(finished):
    workdir, _ = finished
    before = (workdir / "metrics.jsonl").read_bytes()
    out, _ = command(*train_command(workdir, "--nosummary"))
    assert "already complete at step 20" in out
    assert (workdir / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("devices", [1, pytest.param(8, marks=pytest.mark.exhaustive)])
def test_killed_and_resumed_equals_never_killed(devices, finished, tmp_path):
    """SIGKILL at a random moment after a checkpoint: same bits, same metrics lines."""
    extra = ["--nosummary"]
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


def test_another_experiment_in_the_same_folder_is_refused(finished, refusal):
    workdir, _ = finished
    before = {p: p.stat().st_mtime_ns for p in workdir.rglob("*") if p.is_file()}
    err = refusal(*train_command(workdir, "--config.towers.text.heads.sentence=16"))
    key = "towers.text.heads.sentence"
    assert f"holds another experiment; differing keys: {key}: 32 -> 16" in err
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
    names = "--names=image.embedding,text.embedding,image.regions"
    command(*arguments, "--shard_size=16", names)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["complete"] and manifest["towers"]["image"]["heads"]["embedding"] == 32
    assert manifest["columns"]["image_regions"] == "image.regions"
    assert manifest["grids"] == {"image": [4, 4]}
    assert manifest["checkpoint"] == {"step": 20, "weights_sha256": weights(workdir)}
    tables = [pq.read_table(out / shard["file"]) for shard in manifest["shards"]]
    assert sum(table.num_rows for table in tables) == manifest["counts"]["val"]
    images = np.concatenate([np.stack(t["image_embedding"].to_numpy()) for t in tables])
    texts = np.concatenate([np.stack(t["text_embedding"].to_numpy()) for t in tables])
    np.testing.assert_allclose(np.linalg.norm(images, axis=1), 1, rtol=1e-5)
    assert len(tables[0]["image_regions"][0]) == 16 * 32

    trained = run.restore(workdir)
    corpus = run.load_corpus(trained.config, "val")
    examples = trained.examples(corpus)
    name = "image.embedding"
    encoded = trained.predict.encode(trained.state, examples, [name])
    assert encoded["present"].all()
    judged = encoded[name]
    np.testing.assert_allclose(images, judged, atol=1e-6)
    encoder = mmrl.load(str(workdir))
    arrays = [corpus.record(i).images[0].load() for i in range(5)]
    np.testing.assert_allclose(encoder.embed_images(arrays), judged[:5], atol=1e-6)
    np.testing.assert_allclose(encoder.embed_texts(list(corpus.texts[:5])), texts[:5], atol=1e-6)

    # Resume: a lost shard is made again, to the same bytes; the others stay.
    first, second = (out / shard["file"] for shard in manifest["shards"][:2])
    content, kept = second.read_bytes(), first.stat().st_mtime_ns
    second.unlink()
    printed, _ = command(*arguments, "--shard_size=16", names)
    assert f"{first.name}: already complete" in printed
    assert second.read_bytes() == content and first.stat().st_mtime_ns == kept
    err = refusal(*arguments, "--shard_size=8", names)
    assert "holds another export; it differs in: options" in err
    err = refusal(*arguments, "--names=image.embeding")
    assert "unknown encoding 'image.embeding' (did you mean 'image.embedding'?); choices: " in err
