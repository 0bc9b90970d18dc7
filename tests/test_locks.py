"""Locks: one owner at a time, known by name; the lock of a dead one is taken over, and said."""

import errno
import fcntl
import json
import os
import subprocess
import sys
import threading
import time

import pytest

from mmrl import locks
from mmrl.types import BusyError, MachineError
from tests.conftest import ROOT

HOLD = """
import sys, time
from pathlib import Path
from mmrl import locks
lock = locks.Lock(Path(sys.argv[1]), "the run")
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(locks, "PATIENCE", 0.2)
    monkeypatch.setattr(locks, "BEAT", 0.05)
    monkeypatch.setattr(locks, "SILENCE", 0.6)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / locks.NAME


@pytest.fixture
def holder(path):
    """Another process that holds the lock."""
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def state(path, **changes):
    """Writes what another owner left behind."""
    owner = {**vars(locks.Owner.here()), "token": "other", "pid": 7, **changes}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(owner))


def without_flock(monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)


def test_a_second_owner_is_told_in_one_line_who_holds_the_lock(path, holder):
    with pytest.raises(BusyError) as error:
        locks.Lock(path, "the run in 'runs/a'")
    text = str(error.value)
    assert text.startswith(f"the run in 'runs/a' is used by process {holder.pid} on ")
    assert " since 20" in text and "\n" not in text
    assert json.loads(path.read_text())["pid"] == holder.pid  # the refused start changed nothing


def test_the_lock_of_a_killed_process_is_taken_over_at_once_and_said(path, holder):
    holder.kill()
    holder.wait()
    said = []
    began = time.monotonic()
    lock = locks.Lock(path, "the run", said.append)
    assert time.monotonic() - began < 0.5
    (line,) = said
    assert f"takes over the lock of process {holder.pid} on " in line
    lock.check()
    lock.release()
    assert not path.exists()


def test_a_released_lock_leaves_nothing_behind(path):
    said = []
    locks.Lock(path, "the run", said.append).release()
    assert not path.parent.exists() and not said
    path.parent.mkdir()
    lock = locks.Lock(path, "the run", said.append)
    lock.release()
    lock.release()
    assert path.parent.is_dir() and not path.exists() and not said


def test_an_owner_that_is_about_to_end_is_awaited(path, monkeypatch):
    monkeypatch.setattr(locks, "PATIENCE", 10.0)
    first = locks.Lock(path, "the run")
    threading.Timer(0.2, first.release).start()
    locks.Lock(path, "the run").release()


def test_the_lock_of_another_machine_is_taken_over_only_when_it_is_silent(path):
    state(path, machine="other", host="far")
    said = []
    locks.Lock(path, "the run", said.append).release()
    assert "locked by process 7 on far" in said[0] and "takes over the lock" in said[1]

    state(path, machine="other", host="far")
    alive = threading.Timer(0.2, os.utime, [path])
    alive.start()
    with pytest.raises(BusyError, match="is used by process 7 on far"):
        locks.Lock(path, "the run")


@pytest.mark.parametrize("hours", [-5, 5])
def test_a_clock_that_jumped_does_not_make_a_living_owner_dead(path, hours):
    """The time of the last sign of life lies far in the past or in the future."""
    state(path, machine="other", host="far")
    os.utime(path, (time.time() + 3600 * hours,) * 2)
    alive = threading.Timer(0.1, os.utime, [path])
    alive.start()
    with pytest.raises(BusyError):
        locks.Lock(path, "the run")


def test_the_clock_of_this_process_counts_for_nothing(path, holder, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 0.0)
    with pytest.raises(BusyError):
        locks.Lock(path, "the run")


def test_without_flock_signs_of_life_decide(path, monkeypatch):
    without_flock(monkeypatch)
    monkeypatch.setattr(time, "sleep", lambda seconds, real=time.sleep: real(seconds / 20))
    said = []
    lock = locks.Lock(path, "the run", said.append)
    assert "has no locks" in said[0]
    with pytest.raises(BusyError, match=f"used by process {os.getpid()} "):
        locks.Lock(path, "the run")
    lock.check()
    lock.release()


def test_an_owner_notices_that_it_lost_the_lock_or_the_folder(path):
    lock = locks.Lock(path, "the run")
    lock.check()
    state(path)
    with pytest.raises(BusyError, match="the run was taken over by process 7 "):
        lock.check()
    path.unlink()
    path.parent.rmdir()
    with pytest.raises(MachineError, match="was removed or renamed") as error:
        lock.check()
    assert error.value.status == 74
    lock.release()


def test_workers_share_a_lock_and_are_awaited(tmp_path):
    path = tmp_path / "workers.lock"
    held = [locks.share(path), locks.share(path)]
    with pytest.raises(BusyError, match="workers of an earlier process still use 'out'"):
        locks.await_free(path, "'out'", patience=0.1)
    for file in held:
        file.close()
    locks.await_free(path, "'out'", patience=0.1)


def test_damaged_content_of_a_lock_is_no_obstacle(path):
    path.parent.mkdir()
    path.write_bytes(b"\0" * 64)
    locks.Lock(path, "the run").release()


def test_a_file_that_changes_its_number_can_be_locked(path, monkeypatch):
    """As in mounted buckets."""
    monkeypatch.setattr(os.path, "samestat", lambda *_: False)
    lock = locks.Lock(path, "the run")
    lock.check()
    lock.release()
