"""The list of runs: what each kind of folder is called, and how it is continued."""

import fcntl
import json
import os
import shutil
import subprocess
import sys

import pytest

from mmrl import durations, locks, origins, runs
from mmrl.types import InputError
from tests import commands
from tests.conftest import ROOT

RESULTS = {
    "step": 20,
    "results": {
        "retrieval": {"values": {"image_to_text/R@1": {"value": 0.5}, "rows": {"value": 3}}},
        "pointing": {"values": {"accuracy": {"value": 0.25}, "other": {"value": 0.75}}},
    },
    "headline": {"pointing": {"other": "what it means"}},
}


def make(folder, *, steps=(10, 20), total=20, begun=True, waited=None, **config):
    """A run directory as training leaves it, without arrays."""
    folder.mkdir(parents=True)
    config = {"towers": {"image": {}}, "total_steps": 20, "epochs": 0, **config}
    (folder / "config.json").write_text(json.dumps(config))
    for step in steps:
        for part in ("state", "data", "meta"):
            (folder / "checkpoints" / str(step) / part).mkdir(parents=True)
        best = {} if waited is None else {"best": {"step": 10, "waited": waited}}
        (folder / "checkpoints" / str(step) / "data" / "metadata").write_text(json.dumps(best))
    if begun:
        origins.record(folder, [f"--workdir={folder}"], total)
    return folder


def describe(folder):
    return runs.describe(folder)


def test_statuses(tmp_path):
    made = {
        "complete": make(tmp_path / "a"),
        "patient": make(tmp_path / "b", total=90, best={"patience": 2, "metric": ""}, waited=2),
        "stopped": make(tmp_path / "c", steps=(10,)),
        "in epochs": make(tmp_path / "d", epochs=3, total=40),
        "old": make(tmp_path / "e", begun=False),
        "old, in epochs": make(tmp_path / "f", begun=False, epochs=3),
        "new": make(tmp_path / "g", steps=()),
        "failed": make(tmp_path / "h", steps=(10,)),
        "recovered": make(tmp_path / "i"),
        "half": make(tmp_path / "j"),
        "cut": make(tmp_path / "k"),
        "foreign": make(tmp_path / "l"),
        "saving": make(tmp_path / "m", steps=(10,)),
    }
    for name in ("failed", "recovered"):
        (made[name] / "nonfinite.json").write_text('{"step": 13, "records": []}')
    shutil.rmtree(made["half"] / "checkpoints" / "20" / "state")
    (made["cut"] / "config.json").write_text('{"towers": {"im')
    (made["foreign"] / "config.json").write_text("[1]")
    (made["saving"] / "checkpoints" / "20.orbax-checkpoint-tmp-0").mkdir()
    found = {name: describe(folder) for name, folder in made.items()}
    assert {name: (run.status, run.step, run.steps) for name, run in found.items()} == {
        "complete": ("complete", 20, 20),
        "patient": ("complete", 20, 90),
        "stopped": ("stopped", 10, 20),
        "in epochs": ("stopped", 20, 40),
        "old": ("complete", 20, 20),
        "old, in epochs": ("stopped", 20, None),
        "new": ("new", None, 20),
        "failed": ("failed", 10, 20),
        "recovered": ("complete", 20, 20),
        "half": ("damaged", 20, 20),
        "cut": ("damaged", 20, 20),
        "foreign": ("damaged", 20, 20),
        "saving": ("stopped", 10, 20),
    }
    assert found["failed"].detail == "not finite at step 13"
    assert found["half"].detail == "checkpoint 20 has no state"
    assert found["half"].command.endswith(" --fall-back")
    assert found["patient"].best == 10
    assert found["complete"].command == "" != found["stopped"].command


def test_a_run_whose_lock_is_held(tmp_path):
    folder = make(tmp_path / "run", steps=(10,))
    lock = locks.Lock(folder / locks.NAME, "the run")
    try:
        found = describe(folder)
        assert (found.status, found.command) == ("running", "")
        assert f"process {os.getpid()} on " in found.detail
        # Of a process that was killed, the file stays and nothing holds it.
        left = make(tmp_path / "left", steps=(10,))
        shutil.copy(folder / locks.NAME, left)
        assert describe(left).status == "stopped"
        # Of another machine, the last sign of life decides.
        stated = json.loads((left / locks.NAME).read_text())
        (left / locks.NAME).write_text(json.dumps({**stated, "machine": "other", "host": "far"}))
        assert describe(left).status == "running" and "on far" in describe(left).detail
        os.utime(left / locks.NAME, (0, 0))
        assert describe(left).status == "stopped"
        with (left / locks.NAME).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # looking on took no lock
    finally:
        lock.release()


def test_figures_are_those_that_evaluators_state_first(tmp_path):
    folder = make(tmp_path / "run", best={"metric": "pointing/other", "patience": 0})
    (folder / "results").mkdir()
    (folder / "results" / "00000010.json").write_text("{}")
    (folder / "results" / "00000020.json").write_text(json.dumps(RESULTS))
    (folder / "results" / "00000030.json").write_text('{"results": {"retr')  # being written
    assert list(describe(folder).figures.items()) == [
        ("pointing/other", 0.75),
        ("retrieval/image_to_text/R@1", 0.5),
    ]
    for broken in ("[]", '{"results": 3}', '{"results": {"a": {"values": {"b": 1}}}}'):
        (folder / "results" / "00000020.json").write_text(broken)
        assert describe(folder).figures == {}


def test_what_is_listed_and_in_which_order(tmp_path, monkeypatch):
    late, early = make(tmp_path / "x" / "late"), make(tmp_path / "early")
    make(late / "copy")  # within a run
    lost = make(tmp_path / "lost")
    (lost / "config.json").unlink()
    others = {
        "encoder": {"encoder.json": "{}", "weights.npz": ""},
        "other program": {"config.json": '{"model": "x"}'},
        "other list": {"config.json": "[]"},
        "first start": {"rejects.jsonl": "{}\n"},
        "text": {"config.json": "not JSON"},
    }
    for name, content in others.items():
        (tmp_path / name).mkdir()
        for file, text in content.items():
            (tmp_path / name / file).write_text(text)
    (tmp_path / "link").symlink_to(tmp_path)
    for folder, age in ((early, 9e8), (lost, 5e8)):
        for path, _, names in os.walk(folder):
            for name in names:
                os.utime(os.path.join(path, name), (age, age))
    unreadable = []
    found = runs.find(tmp_path, unreadable)
    assert [run.folder for run in found] == [late, early, lost] and not unreadable
    assert found[2].detail == "config.json is missing or not whole"
    assert [run.folder for run in runs.find(late, unreadable)] == [late]
    with pytest.raises(InputError, match=r"is no such folder \(did you mean 'early'\?\); expected"):
        runs.find(tmp_path / "earyl", unreadable)


def test_the_command(tmp_path, capsys):
    make(tmp_path / "runs" / "one[b]", steps=(10,))
    (tmp_path / "empty").mkdir()
    assert commands.run_here("mmrl.runs", tmp_path / "runs") == 0
    out = capsys.readouterr().out
    head, row, way = out.splitlines()
    folder = str(tmp_path / "runs" / "one[b]")
    assert head.split() == ["run", "status", "step", "size", "changed"]
    assert row.split()[:6] == [folder, "stopped", "10", "of", "20", "0.0"]
    assert row.index("stopped") == head.index("status")
    assert way == f"    to continue: python -m mmrl.main '--workdir={folder}'"
    assert commands.run_here("mmrl.runs", tmp_path / "runs", "--json") == 0
    (listed,) = json.loads(capsys.readouterr().out)
    assert listed["status"] == "stopped" and listed["step"] == 10 and listed["bytes"] > 0
    assert commands.run_here("mmrl.runs", tmp_path / "empty") == 0
    assert capsys.readouterr().out == f"no runs below {tmp_path / 'empty'}\n"
    assert "no folder was given" in commands.refusal(capsys, "mmrl.runs")


def test_it_starts_without_jax():
    code = "import sys, mmrl.runs; print({'jax', 'orbax', 'flax'} & {*sys.modules})"
    told = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert told.stdout == "set()\n"


def test_ages():
    ages = [-5, 40, 100, 5000, 6000, 50_000, 200_000]
    assert [durations.rough(age) for age in ages] == [
        "0 s", "40 s", "2 min", "83 min", "2 h", "14 h", "2 days",
    ]  # fmt: skip
