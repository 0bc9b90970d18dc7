"""Ranges of pyproject.toml, the pins of requirements*.txt, and the page about both."""

import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from benchmarks import dependencies
from mmrl import extras
from tests.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
FILES = sorted(path.name for path in ROOT.glob("requirements*.txt"))
PYTHONS = ("3.11.7", "3.12.1", "3.13.0")
ONNX = "requirements-onnx.txt"  # an environment of its own


def pins(name: str, python: str) -> dict[str, str]:
    """Name -> version of what a file installs on Linux."""
    minor = ".".join(python.split(".")[:2])
    environment = {**default_environment(), "sys_platform": "linux"}
    environment |= {"python_full_version": python, "python_version": minor}
    found: dict[str, str] = {}
    for line in (ROOT / name).read_text().splitlines():
        if line and not line.startswith("#"):
            entry = Requirement(line)
            if entry.marker is None or entry.marker.evaluate(environment):
                (pin,) = entry.specifier
                assert pin.operator == "==" and entry.name not in found, line
                found[canonicalize_name(entry.name)] = pin.version
    return found


def direct(extra: str) -> list[Requirement]:
    """What pyproject.toml asks for; those of mmrl[a,b] are those of the extras a and b."""
    entries = PROJECT["dependencies"] + (EXTRAS[extra] if extra else [])
    found = [Requirement(entry) for entry in entries]
    within = [name for entry in found if entry.name == "mmrl" for name in sorted(entry.extras)]
    found += [Requirement(entry) for name in within for entry in EXTRAS[name]]
    return [entry for entry in found if entry.name != "mmrl"]


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("name", [name for name in FILES if name != ONNX])
def test_pins_lie_within_the_ranges(name: str, python: str) -> None:
    extra = name.removeprefix("requirements").removesuffix(".txt").removeprefix("-")
    found = pins(name, python)
    for entry in direct(extra):
        version = found.get(canonicalize_name(entry.name))
        assert version and entry.specifier.contains(version), f"{name}: {entry}, {version}"
    assert "pylibjpeg-libjpeg" not in found  # GPL; the extra gpl alone brings it


@pytest.mark.parametrize("python", PYTHONS)
def test_files_agree_and_hold_the_packages_of_training(python: str) -> None:
    base = pins("requirements.txt", python)
    seen: dict[str, str] = {}
    for name in FILES:
        found = pins(name, python)
        if name == ONNX:
            found.pop("orbax-checkpoint")  # jax2onnx wants an older one
        else:
            assert base.items() <= found.items(), name
        for package, version in found.items():
            assert seen.setdefault(package, version) == version, f"{name}: {package}"


def test_files_name_no_host_and_no_other_file() -> None:
    for name in FILES:
        lines = (ROOT / name).read_text().splitlines()
        kept = [line for line in lines if line and not line.startswith("#")]
        assert kept and not [line for line in kept if not re.match(r"[\w.-]+==\S+( ; |$)", line)]


def test_every_file_of_an_extra_is_written_by_make_lock() -> None:
    written = re.search(r"^EXTRAS := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert written and set(written[1].split()) <= set(EXTRAS)
    names = {f"requirements-{extra}.txt" for extra in written[1].split()}
    assert names | {"requirements.txt", ONNX} == set(FILES)


def test_no_package_of_training_is_under_the_gpl() -> None:
    for name in pins("requirements.txt", PYTHONS[0]):
        try:
            licence = dependencies.licence(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # of another platform
        assert not re.search(r"\bA?GPL", licence), f"{name}: {licence}"


def test_the_page_names_every_direct_dependency() -> None:
    page = (ROOT / dependencies.PAGE).read_text()
    assert set(dependencies.ENTRIES) == {*map(canonicalize_name, dependencies.direct())}
    for name in dependencies.ENTRIES:
        assert f"| {name} |" in page, name


def test_the_table_is_replaced_and_the_text_around_it_stays(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text(f"before\n\n{dependencies.BEGIN}\nold\n{dependencies.END}\n\nafter\n")
    dependencies.write(path, "new\n")
    assert path.read_text() == (
        f"before\n\n{dependencies.BEGIN}\nnew\n{dependencies.END}\n\nafter\n"
    )


def test_messages_name_the_packages_of_extras_as_pyproject_states_them() -> None:
    for extra, packages in extras.PACKAGES.items():
        stated = [Requirement(one) for one in EXTRAS[extra]]
        named = (one.name + (f"[{','.join(one.extras)}]" if one.extras else "") for one in stated)
        assert tuple(named) == packages, extra
    assert set(EXTRAS) - set(extras.PACKAGES) == {"docs", "gpl", "dev"}
    assert extras.command("tpu") == "pip install 'jax[tpu]'"


def test_nothing_installs_the_other_project_of_this_name() -> None:
    """The name mmrl on the Python package index is taken."""
    folders = ("mmrl", "configs", "launch", "docs", ".ci")
    files = [one for name in folders for one in (ROOT / name).rglob("*") if one.is_file()]
    for file in [ROOT / "README.md", ROOT / "Makefile", ROOT / "Dockerfile", *files]:
        if file.suffix in (".py", ".md", ".sh", ".ipynb", "") or "Docker" in file.name:
            text = file.read_text(encoding="utf-8")
            found = re.findall(r"pip install[^\n&#]*[ '\"]mmrl(?:\[\w+\])?['\"`.]?(?=\s|$)", text)
            allowed = file in (ROOT / "mmrl" / "extras.py", ROOT / "docs" / "dependencies.md")
            assert allowed or not found, (file, found)
