"""The shape of the repository itself: which way imports point, and how large rooms grow."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

SOURCES = sorted((ROOT / "mmrl").rglob("*.py"))
EVERYTHING = [
    *SOURCES,
    *(p for folder in ("configs", "tests", "benchmarks") for p in (ROOT / folder).rglob("*.py")),
]

# Data flows one way; what each room may import of mmrl beside itself. types, build,
# streams and axes stand below all.
COMMON = {"types", "build", "streams", "axes"}
ROOMS = {
    "types": set(),
    "streams": set(),
    "axes": set(),
    "build": {"types"},
    "sharding": COMMON,
    "metrics": COMMON,
    "optim": COMMON,
    "gather": COMMON,
    "checkpoint": COMMON | {"__init__", "gather"},
    "rollcall": COMMON,
    "variables": set(),
    "distributed": COMMON | {"gather", "rollcall", "variables"},
    "config": COMMON | {"data"},
    "data": COMMON,
    "preparation": COMMON | {"__init__", "config", "data", "figures", "report"},
    "models": COMMON,
    "objectives": COMMON,
    "evaluators": COMMON | {"data"},
    "learner": COMMON | {"models", "objectives", "sharding"},
    "step": COMMON | {"data", "flops", "learner", "metrics", "optim", "sharding"},
    "hardware": set(),
    "flops": COMMON | {"hardware"},
    "clock": {"flops"},
    "prefetch": COMMON,
    "profile": COMMON,
    "predict": COMMON | {"evaluators", "gather", "learner", "models", "sharding"},
    "attention": COMMON | {"data", "evaluators"},
    "figures": COMMON | {"attention"},
    "bars": COMMON | {"figures"},
    "report": COMMON,
    "console": COMMON | {"evaluators"},
    "cli": COMMON | {"distributed", "rollcall", "variables"},
    "planning": COMMON | {"config", "data", "flops", "hardware", "learner", "sharding", "step"},
}


def room_of(path: Path) -> str:
    return path.relative_to(ROOT / "mmrl").parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Rooms of mmrl that a file imports, and "configs" for anything there."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "configs":
                rooms.add("configs")
            elif parts[0] == "mmrl":
                rooms.add(parts[1] if len(parts) > 1 and parts[1] != "__version__" else "__init__")
    return rooms


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path):
    room = room_of(path)
    rooms = imported(path) - {room}
    assert "configs" not in rooms
    if room in ROOMS:
        assert rooms <= ROOMS[room], f"{room} must not import {sorted(rooms - ROOMS[room])}"


def test_only_one_file_knows_orbax():
    users = [p.name for p in SOURCES if re.search(r"^(import|from) orbax", p.read_text(), re.M)]
    assert users == ["checkpoint.py"]


@pytest.mark.parametrize("path", EVERYTHING, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_stay_readable(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = node.end_lineno - node.lineno + 1
            assert lines <= 70, f"{node.name} has {lines} lines"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_from_a_file_is_executed(path):
    called = {
        node.func.id if isinstance(node.func, ast.Name) else node.func.attr
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute)
    }
    assert not called & {"eval", "exec", "loads_pickle", "Unpickler"}
    assert "import pickle" not in path.read_text(encoding="utf-8")


def test_no_machine_paths_or_leftovers():
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split()
    for name in listed:
        path = ROOT / name
        if path.suffix in {".py", ".md", ".toml", ".txt", ".sh", ".yaml"} and path.exists():
            text = path.read_text(encoding="utf-8")
            found = re.search(r"(?<![\w.])/(work|root|home|opt)/|\bTO" r"DO\b|\bFIX" r"ME\b", text)
            assert not found, f"{name}: {found.group(0) if found else ''}"
