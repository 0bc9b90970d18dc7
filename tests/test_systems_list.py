"""The list of published systems: complete, and true to what is in the repository."""

import json

import pytest

from benchmarks.systems import check
from mmrl import systems
from tests import commands
from tests.conftest import ROOT

SYSTEMS = systems.read()


def test_all_are_listed_once():
    assert [one.number for one in SYSTEMS] == list(range(1, 77))
    assert len({one.system for one in SYSTEMS}) == len(SYSTEMS)
    for one in SYSTEMS:
        assert one.how and one.domain in systems.DOMAINS and one.status in systems.STATUSES
        assert set(one.topics) <= set(systems.TOPICS)


def test_presets_exist_and_are_named_as_their_checks():
    names = [one.how for one in SYSTEMS if one.status == systems.PRESET]
    assert len(set(names)) == len(names)
    for one in SYSTEMS:
        if one.status == systems.PRESET:
            assert (ROOT / one.place).is_file(), one.place
            row = check.load(one.how.removeprefix("systems/"))
            assert one.number in row.NUMBERS


def test_what_is_not_open_is_checked_and_what_is_open_is_not():
    checked = {number for name in check.names() for number in check.load(name).NUMBERS}
    assert checked == {one.number for one in SYSTEMS if one.status != systems.OPEN}


def test_modules_that_are_named_exist():
    for one in SYSTEMS:
        for part in one.how.replace(",", " ").replace(":", " ").split():
            if "/" in part and one.status != systems.PRESET:
                folder, name = part.split("/")
                places = [folder, f"models/{folder}", f"data/{folder}"]
                if name not in ("rad_dino", "mae", "locked_towers"):
                    assert any((ROOT / "mmrl" / p / f"{name}.py").is_file() for p in places), part


def test_each_cell_of_the_coverage_names_what_there_is_or_a_gap():
    cells = systems.coverage(SYSTEMS)
    assert all(cell.has or cell.gaps for cell in cells.values())
    assert {topic for topic, _ in cells} == set(systems.TOPICS)
    named = {name for cell in cells.values() for name in (*cell.has, *cell.gaps)}
    for one in SYSTEMS:
        assert one.place in named or one.title in named


def test_the_command_prints(capsys):
    assert commands.run_here("mmrl.systems", "--status=preset", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert {one["status"] for one in printed} == {"preset"}
    assert commands.run_here("mmrl.systems") == 0
    assert capsys.readouterr().out.strip().endswith("open: not expressed")
    assert commands.run_here("mmrl.systems", "--coverage") == 0
    shown = capsys.readouterr().out.splitlines()
    assert "masked modelling" in shown and max(map(len, shown)) <= 100


def test_an_unknown_status_is_refused(capsys):
    assert commands.run_here("mmrl.systems", "--status=presets") == 2
    assert "did you mean 'preset'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    "one", [s for s in SYSTEMS if s.status == systems.COMMAND], ids=lambda one: one.number
)
def test_commands_that_are_named_exist(one):
    if one.how.startswith("python -m "):
        module = one.how.split()[2].replace(".", "/")
        assert (ROOT / f"{module}.py").is_file()
