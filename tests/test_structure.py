"""The structure of the repository: the direction of imports."""

import ast
import graphlib
import re
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

SOURCES = sorted((ROOT / "mmrl").rglob("*.py"))
COMMANDS = [*SOURCES, *sorted((ROOT / "benchmarks").rglob("*.py"))]

# What each folder, and each file beside them, may import besides itself. Data flows one way:
# data -> models -> objectives -> training -> evaluators -> export.
BASE = {
    "types",
    "values",
    "build",
    "chunks",
    "context",
    "durations",
    "encoder_folder",
    "extras",
    "files",
    "interrupts",
    "locks",
    "masks",
    "remote",
    "schedules",
    "sequences",
    "starts",
    "streams",
    "vectors",
    "version",
    "wiring",
}
AXES = {"devices.axes"}
READING = {"data.reading", "data.image"}
# What draws on plain data alone, so that an evaluator can bring its figures.
DRAWING = {
    f"reporting.{name}"
    for name in ("figures", "bars", "attention", "answers", "scatter", "intervals")
}
TRAINING = BASE | {"config", "data", "devices", "evaluators", "models", "objectives"}
MAY_IMPORT = {
    "version": set(),
    "commands": set(),
    "extras": set(),
    "durations": set(),
    "interrupts": set(),
    "files": {"types"},
    "locks": {"types"},
    "remote": {"types", "files", "locks"},
    "types": set(),
    "streams": set(),
    "vectors": set(),
    "chunks": {"vectors"} | AXES,
    "masks": set(),
    "values": {"types"},
    "build": {"types", "values"},
    "context": set(),
    "sequences": {"types"},
    "hub": {"types", "extras"},
    "approximate": {"types", "files", "extras"},
    "index": {"types", "build", "approximate"},
    "wiring": {"types", "build"},
    "starts": {"types", "build", "wiring", "encoder_folder"},
    "schedules": {"types", "build"},
    "config": BASE | {"data.inputs", "data.settings"},
    "origins": BASE | {"config"},
    "presets": BASE | {"config"},
    "cli": BASE | {"commands", "config", "devices", "presets"},
    "devices": BASE,
    "data": BASE,
    "models": BASE | AXES,
    "objectives": BASE | AXES,
    # Of models, the decoder alone, which an evaluator trains on frozen regions.
    "evaluators": BASE | {"data", "models.decoder"} | DRAWING,
    "training": TRAINING,
    "planning": TRAINING | {"training"},
    "reporting": TRAINING | {"training"},
    **dict.fromkeys(DRAWING, BASE | DRAWING),
    "web": TRAINING | {"training", "encoder", "index"},
    "exports": TRAINING | {"training"},
    "preparation": BASE | {"config", "data", "reporting"},
}
# The folders within `data`, in the order in which data flows through them.
WITHIN_DATA = {
    "counter": set(),
    "curation": set(),
    "stall": set(),
    "triplets": set(),
    "labels": set(),
    "draws": {"labels"},
    "sampling": set(),
    "text": set(),
    "image": {"reading"},
    "image.load": {"corpus", "image.channels", "image.images", "stall"},
    "reading": {"image", "text"},
    "phantom": {"image.images"},
    "overlap": {"image.images", "text"},
    "perturb": {"counter", "text"},
    "entities": {"perturb", "text"},
    "sources": {"corpus", "image", "overlap", "phantom", "reading", "text", "views"},
    "views": {"reading"},
    "priors": set(),
    "corpus": {"image.channels", "overlap", "priors", "reading", "text", "views"},
    "inputs": {"corpus", "counter", "entities", "image", "labels", "perturb", "stall", "text"},
    "batches": {
        "corpus",
        "counter",
        "image.images",
        "inputs",
        "labels",
        "sampling",
        "stall",
        "text",
    },
    "settings": {"draws", "image.channels", "labels", "overlap", "sampling", "text", "views"},
}


def module_of(path: Path) -> str:
    """mmrl/data/image/dicom.py -> "data.image.dicom"; a package is its folder."""
    parts = path.relative_to(ROOT / "mmrl").with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def imports(path: Path) -> set[str]:
    """The files and folders of mmrl that a file imports, and "configs" for anything there."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            first, _, rest = name.partition(".")
            if first == "configs":
                found.add("configs")
            elif first == "mmrl":
                while rest and rest not in MODULES:  # a name within a module
                    rest = rest.rpartition(".")[0]
                found.add(rest or "__init__")
    return found - {module_of(path)}


MODULES = {module_of(path) for path in SOURCES}
IMPORTS = {module_of(path): imports(path) for path in SOURCES}


def is_allowed(module: str, allowed: set[str]) -> bool:
    return any(module == one or module.startswith(one + ".") for one in allowed)


@pytest.mark.parametrize("module", sorted(IMPORTS))
def test_imports_point_one_way(module):
    folder = module if module in MAY_IMPORT else module.partition(".")[0]
    assert "configs" not in IMPORTS[module]
    if folder in MAY_IMPORT:
        allowed = MAY_IMPORT[folder] | {folder}
        wrong = sorted(one for one in IMPORTS[module] if not is_allowed(one, allowed))
        assert not wrong, f"mmrl.{folder} must not import {wrong}"


@pytest.mark.parametrize("module", sorted(m for m in IMPORTS if m.startswith("data.")))
def test_imports_within_data_point_one_way(module):
    own = module.removeprefix("data.")
    folder = own if own in WITHIN_DATA else own.partition(".")[0]
    allowed = {f"data.{one}" for one in WITHIN_DATA[folder] | {folder}}
    wrong = [one for one in IMPORTS[module] if one.startswith("data.")]
    wrong = sorted(one for one in wrong if not is_allowed(one, allowed))
    assert not wrong, f"mmrl.data.{folder} must not import {wrong}"


def test_no_file_imports_itself_through_others():
    """A circle would mean that neither file can be understood without the other."""
    order = graphlib.TopologicalSorter({m: found & MODULES for m, found in IMPORTS.items()})
    order.prepare()  # raises CycleError, which names the files


def test_only_one_file_knows_orbax():
    users = [p.name for p in SOURCES if re.search(r"^(import|from) orbax", p.read_text(), re.M)]
    assert users == ["checkpoint.py"]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_from_a_file_is_executed(path):
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    called = {
        node.func.id if isinstance(node.func, ast.Name) else node.func.attr
        for node in nodes
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute)
    }
    assert not called & {"eval", "exec", "loads_pickle", "Unpickler"}
    imported = {name.name for node in nodes if isinstance(node, ast.Import) for name in node.names}
    imported |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    # pickletools lists the opcodes of a pickle and carries none out.
    assert not imported & {"pickle", "_pickle", "dill", "cloudpickle", "joblib", "torch"}


@pytest.mark.parametrize("path", COMMANDS, ids=lambda p: str(p.relative_to(ROOT)))
def test_text_files_state_their_encoding(path):
    """By default that is the one of the terminal."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call) or any(one.arg == "encoding" for one in node.keywords):
            continue
        is_method = isinstance(node.func, ast.Attribute)
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        # Before the encoding stand: nothing in read_text, a text in write_text, the mode in open.
        given = [one.value for one in node.args if isinstance(one, ast.Constant)]
        if name in ("read_text", "write_text"):
            assert len(node.args) > (name == "write_text"), f"line {node.lineno} of {path}"
        elif name == "open" and (not is_method or given[:1] in (["r"], ["w"], ["a"])):
            mode = given[-1] if given else "r"
            assert "b" in str(mode), f"line {node.lineno} of {path}"


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
