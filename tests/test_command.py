"""The command `mmrl`, and presets that are named without a clone."""

import os
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from mmrl import __main__ as command
from mmrl import presets
from mmrl.commands import COMMANDS, as_started
from mmrl.types import InputError
from mmrl.version import __version__
from tests.conftest import ROOT


@pytest.fixture(autouse=True)
def _handler():
    """The command arms SIGINT to end its process at once, which here is that of the tests."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


def call(*arguments, cwd=ROOT):
    return subprocess.run(
        [sys.executable, "-m", "mmrl", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )


def test_help_lists_every_command_with_its_purpose(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["mmrl"])
    command.main()
    shown = capsys.readouterr().out
    for name, (module, *_) in COMMANDS.items():
        assert (ROOT / "mmrl" / f"{module}.py").is_file()
        line = next(line for line in shown.splitlines() if line.startswith(f"  {name} "))
        assert line.endswith(".")


def test_all_modules_that_are_commands_have_a_name():
    files = (ROOT / "mmrl").glob("*.py")
    runnable = {f.stem for f in files if "\n    cli.run(" in f.read_text(encoding="utf-8")}
    assert runnable <= {module for module, *_ in COMMANDS.values()}


def test_version_and_unknown_commands(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["mmrl", "--version"])
    command.main()
    assert capsys.readouterr().out == f"mmrl {__version__}\n"
    monkeypatch.setattr(sys, "argv", ["mmrl", "trian"])
    with pytest.raises(SystemExit, match="2"):
        command.main()
    assert "unknown command 'trian' (did you mean 'train'?)" in capsys.readouterr().err


@pytest.mark.slow
def test_a_command_takes_its_flags_and_gives_its_exit_status(tmp_path):
    (tmp_path / "hospital.py").write_text("raise ImportError('of hospital')\n", encoding="utf-8")
    flag = "--config.objectives.far.name=hospital.far"
    done = call("train", "--config=pretrain:smoke", flag, "--workdir=x", cwd=tmp_path)
    assert done.returncode == 2 and "hospital" in done.stderr
    assert done.stderr.count("\n") == 1 and not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "given", ["recipes/vit_b16", "configs/recipes/vit_b16.py", "configs/recipes/vit_b16"]
)
def test_presets_are_found_by_name_from_every_folder(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert presets.find(given) == ROOT / "configs" / "recipes" / "vit_b16.py"
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "vit_b16").write_text("", encoding="utf-8")
    assert presets.find("recipes/vit_b16") == Path("recipes/vit_b16")  # files come first


@pytest.mark.parametrize(
    "given", ["../mmrl/config", "recipes/../../mmrl/config.py", "/pretrain", "__init__", ""]
)
def test_names_do_not_leave_the_folder_of_presets(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="there is no file"):
        presets.find(given)


def test_a_misspelt_preset_is_answered_with_the_nearest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        InputError,
        match=r"'pretrian' \(did you mean 'pretrain'\?\); `python -m mmrl.main --help` lists all$",
    ):
        presets.find("pretrian")


@pytest.mark.parametrize(
    ("started", "shown"),
    [
        (
            ("/somewhere/bin/mmrl", "train"),
            "mmrl train --config=pretrain:smoke; mmrl systems; python -m mmrl.none",
        ),
        (
            ("-m", "mmrl.main"),
            "python -m mmrl.main --config=configs/pretrain.py:smoke; python -m mmrl.systems; "
            "python -m mmrl.none",
        ),
        ((), None),
    ],
)
def test_commands_are_shown_as_the_process_was_started(started, shown, monkeypatch):
    text = "python -m mmrl.main --config=configs/pretrain.py:smoke; python -m mmrl.systems; "
    text += "python -m mmrl.none"
    monkeypatch.setattr(sys, "orig_argv", ["python", *started])
    assert as_started(text) == (shown or text)


OWN = """
from configs import pretrain

def get_config(variant=""):
    config = pretrain.get_config("smoke")
    config.total_steps = 7
    return config
"""


def test_a_file_elsewhere_builds_on_the_shipped_presets(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [one for one in sys.path if Path(one or ".") != ROOT])
    for name in [one for one in sys.modules if one.partition(".")[0] == "configs"]:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "mine.py").write_text(OWN, encoding="utf-8")
    before = list(sys.path)
    assert presets.load("mine.py").total_steps == 7
    assert sys.path == before


def test_a_package_of_the_user_with_the_same_name_does_not_hide_the_shipped_one(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "__init__.py").write_text("", encoding="utf-8")
    (tmp_path / "configs" / "sizes.py").write_text("STEPS = 9\n", encoding="utf-8")
    own = "from mmrl import config\nfrom configs import sizes\n\n\ndef get_config():\n"
    own += "    made = config.base()\n    made.total_steps = sizes.STEPS\n    return made\n"
    (tmp_path / "configs" / "mine.py").write_text(own, encoding="utf-8")
    assert presets.load("configs/mine.py").total_steps == 9
    assert presets.load("recipes/vit_b16").total_steps != 9
    assert presets.load("configs/mine.py").total_steps == 9
    for name in [one for one in sys.modules if one.partition(".")[0] == "configs"]:
        del sys.modules[name]


def test_the_wheel_holds_presets_and_everything_that_is_read(tmp_path):
    """What `setup.py` and the metadata name; CI installs the wheel itself, see .ci/try_wheel."""
    stated = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    data = stated["tool"]["setuptools"]["package-data"]
    kept = {
        file
        for package, patterns in data.items()
        for pattern in patterns
        for file in (ROOT / package.replace(".", "/")).glob(pattern)
        if file.is_file()
    }
    files = [one for one in (ROOT / "mmrl").rglob("*") if one.is_file()]
    assert {one for one in files if one.suffix not in (".py", ".pyc")} == kept
    for folder in (ROOT / "configs").rglob("*"):
        if folder.is_dir() and folder.name != "__pycache__":
            assert (folder / "__init__.py").is_file()


def test_an_installed_package_reads_its_own_presets(tmp_path, monkeypatch):
    """A wheel holds the presets in mmrl/shipped."""
    shipped = tmp_path / "mmrl" / "shipped"
    shutil.copytree(ROOT / "configs", shipped / "configs", ignore=shutil.ignore_patterns("__py*"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(presets, "_ROOT", shipped)
    assert presets.find("pretrain") == shipped / "configs" / "pretrain.py"
    assert [one.given for one in presets.shipped()][:2] == ["ceiling", "compare"]
