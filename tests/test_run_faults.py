"""Runs that are stopped, damaged or started twice: what is said, and that nothing is lost."""

import errno
import hashlib
import json
import os
import runpy
import shutil
import signal
from pathlib import Path

import cv2
import numpy as np
import pytest

from mmrl import files, locks
from mmrl.data.overlap.fingerprints import Fingerprint
from mmrl.training import checkpoint, run, train
from mmrl.training.scalars import JsonLines
from mmrl.types import BusyError, DamageError, InputError, MachineError, PreemptedError
from tests import stubs
from tests.conftest import ROOT

pytestmark = pytest.mark.optax
EXHAUSTIVE = pytest.mark.exhaustive


@pytest.fixture(scope="module")
def trainer():
    """Builds the trainer of a run of eight steps, with a checkpoint every two."""
    get_config = runpy.run_path(str(ROOT / "configs" / "pretrain.py"))["get_config"]

    def build(workdir, table=None, **options):
        config = get_config("paper,smoke" if table is None else "paper,table,smoke")
        if table is None:
            config.data.length = 80
        else:
            config.data.path, config.data.cache_images = str(table), False
        config.total_steps, config.log_every, config.eval_every = 8, 1, 4
        config.checkpoint.every, config.checkpoint.keep, config.optimizer.warmup_steps = 2, 2, 1
        config.batch_size, config.tensorboard, config.compile_cache = 8, False, ""
        stubs.use(config)
        config.objectives = {"global_contrastive": {"weight": 1.0}}
        config.evaluators = {"retrieval": {"max_pairs": 16}}
        return train.Trainer(config, workdir, **options)

    with stubs.registered():
        yield build


@pytest.fixture(scope="module")
def finished(trainer, tmp_path_factory):
    """A run that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    trainer(workdir).run()
    assert not (workdir / locks.NAME).exists()
    return workdir


@pytest.fixture
def workdir(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "run"))


def content(workdir):
    """All that the computation determines: logs, results, and the weights of the last step."""
    saved = checkpoint.Checkpoints(workdir, read_only=True)
    arrays = saved.read_arrays(["params", "opt_state", "step"])
    results = {path.name: path.read_text() for path in (workdir / "results").iterdir()}
    return (workdir / "metrics.jsonl").read_text(), results, checkpoint.digest(arrays)


def spoil(workdir, step):
    path = next((workdir / "checkpoints" / str(step) / "state" / "d").iterdir())
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 64] = bytes(64)
    path.write_bytes(data)


def snapshot(folder):
    """Path -> digest of every file, to show that nothing was touched."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


# Two starts.


def test_a_second_start_changes_nothing(trainer, workdir, monkeypatch):
    held = locks.Lock(workdir / locks.NAME, "the run")
    monkeypatch.setattr(locks, "PATIENCE", 0.1)
    before = snapshot(workdir)
    with pytest.raises(BusyError) as error:
        trainer(workdir)
    assert f"the run in '{workdir}' is used by process {os.getpid()} on " in str(error.value)
    assert snapshot(workdir) == before
    held.release()


def test_a_refused_start_releases_the_lock(trainer, workdir):
    (workdir / "checkpoints" / "8" / "meta" / "metadata").write_text("")
    for _ in range(2):
        with pytest.raises(DamageError):
            trainer(workdir)
    assert not (workdir / locks.NAME).exists()


def test_the_summary_is_written_under_the_lock(trainer, workdir, capsys):
    seen = []
    trainer(workdir).run(lambda *_: seen.append((workdir / locks.NAME).exists()))
    assert seen == [True] and not (workdir / locks.NAME).exists()


def test_what_a_killed_first_start_leaves_is_no_obstacle(trainer, tmp_path, capsys):
    """It may end before config.json is written, and in the middle of any file."""
    workdir = tmp_path / "run"
    workdir.mkdir()
    for name in ("rejects.jsonl", "init.json", ".config.json.7.tmp", locks.NAME):
        (workdir / name).write_text("")
    begun = trainer(workdir)
    assert begun.saved.latest() is None and not list(workdir.rglob("*.tmp"))
    begun.release()
    assert not (workdir / locks.NAME).exists()


# Damage.


def test_a_run_falls_back_to_the_last_intact_step_bit_for_bit(trainer, workdir, finished, capsys):
    spoil(workdir, 8)
    with pytest.raises(DamageError) as error:
        trainer(workdir).run()
    assert "checkpoint 8 in " in str(error.value)
    assert "the last intact checkpoint is step 6, which --fall-back takes" in str(error.value)
    trainer(workdir, fall_back=True).run()
    out = capsys.readouterr().out
    assert f"moved to '{workdir / 'damaged' / '8'}'" in out and "resumed from step 6" in out
    assert content(workdir) == content(finished)


def test_encoders_of_a_damaged_run_are_refused_or_fall_back(workdir):
    spoil(workdir, 8)
    with pytest.raises(DamageError, match="checkpoint 8 in "):
        run.restore(workdir)
    said = []
    assert run.restore(workdir, fall_back=True, say=said.append).step == 6
    assert said[-1] == "falls back to the last intact checkpoint, step 6"
    with pytest.raises(InputError, match="--fall-back chooses the step, but --step=8 is given"):
        run.restore(workdir, step=8, fall_back=True)


@pytest.mark.parametrize("at", np.linspace(0, 0.99, 12))
def test_a_damaged_fingerprint_is_named_or_reads_as_it_was(workdir, at):
    path = workdir / run.FINGERPRINT
    expected = Fingerprint.load(path)
    data = bytearray(path.read_bytes())
    start = int(at * len(data))
    data[start : start + 64] = bytes(len(data[start : start + 64]))
    path.write_bytes(data)
    try:
        found = Fingerprint.load(path)
    except DamageError as error:
        assert f"{path} is damaged" in str(error) and "\n" not in str(error)
    else:  # what a zip archive states twice, or not at all
        assert (found.hashes == expected.hashes).all() and found.records == expected.records


# The world outside.


def raise_full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    "where",
    [pytest.param("log", marks=EXHAUSTIVE), pytest.param("results", marks=EXHAUSTIVE), "save"],
)
def test_a_full_disk_is_one_line_and_the_run_continues_bit_for_bit(
    trainer, finished, tmp_path, monkeypatch, capsys, where
):
    workdir = tmp_path / "run"
    begun = trainer(workdir)
    with monkeypatch.context() as patch:
        if where == "log":
            real = JsonLines.write
            patch.setattr(
                JsonLines,
                "write",
                lambda self, line: raise_full() if line["step"] == 7 else real(self, line),
            )
        elif where == "results":
            real_json = files.write_json
            patch.setattr(
                files,
                "write_json",
                lambda path, value: raise_full() if path.name[0] == "0" else real_json(path, value),
            )
        else:
            real_save = checkpoint.Checkpoints.save
            patch.setattr(
                checkpoint.Checkpoints,
                "save",
                lambda self, step, *more: (
                    raise_full() if step == 4 else real_save(self, step, *more)
                ),
            )
        with pytest.raises(MachineError) as error:
            begun.run()
    text, status = str(error.value), error.value.status
    assert status == 74 and "\n" not in text
    assert text.startswith(f"training in '{workdir}' stopped: No space left on device ('")
    assert " MB free); the last checkpoint is step " in text
    assert text.endswith("; free some space and start the same command again")
    trainer(workdir).run()
    assert content(workdir) == content(finished)


def test_input_files_that_vanish_are_named(trainer, tmp_path, monkeypatch, capsys):
    images = tmp_path / "images"
    images.mkdir()
    rows = ["image,report,patient_id"]
    for number in range(40):
        pixels = np.random.default_rng(number).integers(0, 255, (64, 64), np.uint8)
        cv2.imwrite(str(images / f"{number}.png"), pixels)
        rows.append(f"images/{number}.png,No finding number {number}.,{number}")
    (tmp_path / "pairs.csv").write_text("\n".join(rows))
    workdir = tmp_path / "run"
    begun = trainer(workdir, table=tmp_path / "pairs.csv")
    real = JsonLines.write

    def write(self, line):
        if line["step"] == 3 and images.exists():
            images.rename(tmp_path / "away")
        real(self, line)

    monkeypatch.setattr(JsonLines, "write", write)
    with pytest.raises(MachineError) as error:
        begun.run()
    assert error.value.status == 74 and "\n" not in str(error.value)
    assert "record table:" in str(error.value) and "images/" in str(error.value)
    assert "; the last checkpoint is step " in str(error.value)


def test_a_removed_run_directory_is_named(trainer, tmp_path, monkeypatch, capsys):
    workdir = tmp_path / "run"
    begun = trainer(workdir)
    real = JsonLines.write

    def write(self, line):
        if line["step"] == 3 and workdir.exists():
            begun.saved.wait()  # Orbax makes the folders of a step that is being saved again
            workdir.rename(tmp_path / "elsewhere")
        real(self, line)

    monkeypatch.setattr(JsonLines, "write", write)
    with pytest.raises(MachineError, match=r"was removed or renamed while this process used it"):
        begun.run()
    assert not workdir.exists()


def test_a_run_that_another_machine_took_over_stops(trainer, tmp_path, monkeypatch, capsys):
    workdir = tmp_path / "run"
    begun = trainer(workdir)
    owner = {**vars(locks.Owner.here()), "token": "other", "host": "far", "pid": 7}
    (workdir / locks.NAME).write_text(json.dumps(owner))
    with pytest.raises(BusyError, match="was taken over by process 7 on far"):
        begun.run()
    assert (workdir / locks.NAME).exists() and begun.saved.latest() is None


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=EXHAUSTIVE)])
def test_a_signal_saves_the_step_and_the_run_continues_bit_for_bit(
    trainer, finished, tmp_path, monkeypatch, capsys, number
):
    workdir = tmp_path / "run"
    begun = trainer(workdir)
    real = JsonLines.write

    def write(self, line):
        if line["step"] == 3 and "loss" in line:
            signal.raise_signal(number)
        real(self, line)

    with monkeypatch.context() as patch:
        patch.setattr(JsonLines, "write", write)
        with pytest.raises(PreemptedError, match=r"step 4 is saved; start the same command again"):
            begun.run()
    assert ("press Ctrl-C again" in capsys.readouterr().out) == (number == signal.SIGINT)
    trainer(workdir).run()
    assert content(workdir) == content(finished)
