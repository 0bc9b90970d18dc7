"""Relative paths of a run, read by commands that are started elsewhere."""

import json
import shutil
from types import SimpleNamespace

import pytest

from mmrl import cli, config, opening, origins, presets
from mmrl.training import run
from mmrl.types import InputError
from tests.conftest import ROOT


def settings(path="pairs.csv", **options):
    found = presets.load(f"{ROOT}/configs/pretrain.py:table,smoke")
    with found.unlocked(), found.ignore_type():
        found.data.update({"path": path, **options})
        found.evaluators = {"zero_shot": {"tasks": ["findings", "own.json"]}}
    return found.lock()


@pytest.fixture
def started(tmp_path, monkeypatch):
    """A run that was started in a folder with data; the current folder is another one."""
    chosen = settings()
    home, other = tmp_path / "home", tmp_path / "other"
    for folder in (home / "images", home / "runs" / "a", other):
        folder.mkdir(parents=True)
    (home / "pairs.csv").write_text("image,report\n")
    (home / "own.json").write_text("{}")
    monkeypatch.chdir(home)
    origins.record(home / "runs" / "a", ["--config=a.py", "--workdir=runs/a b"], 20)
    monkeypatch.chdir(other)
    return SimpleNamespace(home=home, run=home / "runs" / "a", config=chosen, said=[])


def resolve(started, chosen=None, run=None, **options):
    return origins.resolve(
        chosen or started.config, run or started.run, started.said.append, **options
    )


def test_paths_are_found_from_where_the_run_was_started(started):
    found = resolve(started, needed=True)
    assert found.data.path == str(started.home / "pairs.csv")
    assert found.evaluators.zero_shot.tasks == ["findings", str(started.home / "own.json")]
    assert started.config.data.path == "pairs.csv"  # as typed
    assert started.said[0] == (
        f"config.data.path=pairs.csv is taken from '{started.home}', where the run was started"
    )
    assert len(started.said) == 2
    config.check_resumable(config.plain(started.config), config.plain(found))


def test_a_path_that_is_here_is_taken_from_here(started, tmp_path):
    (tmp_path / "other" / "pairs.csv").touch()
    (tmp_path / "other" / "own.json").touch()
    assert resolve(started).to_dict() == started.config.to_dict() and not started.said


def test_a_run_that_was_moved_with_its_data(started, tmp_path):
    shutil.move(started.home, tmp_path / "new")
    moved = tmp_path / "new" / "runs" / "a"
    assert resolve(started, run=moved).data.path == str(tmp_path / "new" / "pairs.csv")


def test_a_run_that_was_moved_alone(started, tmp_path):
    shutil.move(started.run, tmp_path / "elsewhere")
    found = resolve(started, run=tmp_path / "elsewhere")
    assert found.data.path == str(started.home / "pairs.csv")


@pytest.mark.parametrize("option", ["path", "root"])
def test_data_that_are_nowhere(option, started, tmp_path):
    chosen = settings(**{option: "lost"})
    with pytest.raises(InputError) as error:
        resolve(started, chosen, needed=True)
    assert str(error.value) == (
        f"config.data.{option}=lost is neither in '{tmp_path / 'other'}' nor in "
        f"'{started.home}', where the run was started; if the data were moved, give "
        f"--config.data.{option}=..."
    )
    assert resolve(started, chosen).data[option] == "lost"  # the data are not read


def test_parts_of_a_mixture(started):
    parts = ({"source": "table", "path": "pairs.csv"}, {"source": "tfds", "path": "pairs.csv"})
    found = resolve(started, settings(parts=parts))
    assert [one["path"] for one in found.data.parts] == [
        str(started.home / "pairs.csv"),
        "pairs.csv",  # the name of a data set
    ]


@pytest.mark.parametrize("content", [None, "", "[]", '{"folder": 3}', '{"folder": "/a"'])
def test_runs_that_do_not_say_where_they_were_started(content, started):
    file = started.run / origins.NAME
    file.unlink() if content is None else file.write_text(content)
    assert origins.read(started.run) is None
    assert resolve(started, needed=True) is started.config


def test_how_to_continue(started, monkeypatch):
    origin = origins.read(started.run)
    typed = "python -m mmrl.main --config=a.py '--workdir=runs/a b'"
    assert origin.command == f"cd {started.home} && {typed}"
    monkeypatch.chdir(started.home)
    assert origin.command == typed


def test_commands_read_the_data_of_a_run_from_elsewhere(started, monkeypatch):
    trained = run.Trained(started.run, started.config, {}, {}, None, {}, 4)
    monkeypatch.setattr(run, "restore", lambda *args, **options: trained)
    flags = cli.new_flags()
    encoders = opening.Encoders(flags, "to use", "")
    arguments = [f"--workdir={started.run}"]
    cli._parse(arguments, flags)
    opened = encoders.open()
    assert opened.chosen.data.path == opened.trained.config.data.path
    assert opened.chosen.data.path == str(started.home / "pairs.csv")
    (started.home / "pairs.csv").rename(started.home.parent / "moved.csv")
    with pytest.raises(InputError, match=r"give --config\.data\.path="):
        encoders.open()
    cli._parse([*arguments, f"--config.data.path={started.home.parent / 'moved.csv'}"], flags)
    assert encoders.open().chosen.data.path == str(started.home.parent / "moved.csv")


def test_a_start_is_recorded_whole(started):
    content = json.loads((started.run / origins.NAME).read_text())
    assert content == {
        "folder": str(started.home),
        "folder_from_run": "../..",
        "arguments": ["--config=a.py", "--workdir=runs/a b"],
        "steps": 20,
    }
