"""The documentation: its links, its site, its notebooks, and what its templates name."""

import importlib.util
import itertools
import json
import os
import re
import subprocess
import sys

import pytest
import yaml

from mmrl.preparation import job
from mmrl.preparation.audit import audit
from mmrl.preparation.storage import Storage
from mmrl.version import __version__
from tests.conftest import ROOT

PAGES = [
    *(ROOT / "docs").rglob("*.md"),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "launch/README.md")),
]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
# Addresses that a browser requests by itself; links (`<a href>`) are followed by readers only.
REQUESTED = re.compile(
    r"<(?:script|img|iframe|source|video|audio)\b[^>]*?\bsrc=[\"']?(?P<src>[^\"' >]+)"
    r"|<link\b(?![^>]*rel=[\"']?(?:canonical|prev|next|edit))[^>]*?\bhref=[\"']?(?P<href>[^\"' >]+)"
    r"|(?:url\(|@import\s)[\"']?(?P<url>[^\"')]+)"
)


class Loader(yaml.SafeLoader):
    """Reads mkdocs.yml without making the objects that its tags name."""


Loader.add_multi_constructor("", lambda loader, suffix, node: suffix)


def without_code(text):
    return re.sub(r"^( *)```.*?^\1```|`[^`\n]*`", "", text, flags=re.M | re.S)


def anchors(path):
    """The anchors that the code hosting page gives to headings, with numbers for repeated ones."""
    text = re.sub(r"^( *)```.*?^\1```", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    found = set()
    for heading in re.findall(r"^#+ +(.+)$", text, flags=re.M):
        base = re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")
        numbered = (f"{base}-{number}" for number in itertools.count(1))
        found.add(next(one for one in (base, *itertools.islice(numbered, 99)) if one not in found))
    return found


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files_and_headings_of_the_repository(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(path.read_text(encoding="utf-8"))):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        assert file.is_file(), f"{target}: no such file"
        assert ROOT in file.parents, f"{target}: outside the repository"
        if anchor:
            assert anchor in anchors(file), f"{target}: no such heading"


def nav_pages(entries):
    for entry in entries:
        value = next(iter(entry.values())) if isinstance(entry, dict) else entry
        if isinstance(value, str):
            yield value
        else:
            yield from nav_pages(value)


def test_every_page_of_docs_is_in_the_navigation_once():
    with (ROOT / "mkdocs.yml").open(encoding="utf-8") as file:
        listed = list(nav_pages(yaml.load(file, Loader)["nav"]))
    pages = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    pages |= {f"notebooks/{path.name}" for path in NOTEBOOKS}
    made = {"index.md", "launch.md", "contributing.md", "changelog.md"}
    assert sorted(listed) == sorted(pages | made)


def foreign(site):
    """Requests of the pages of a site for other hosts, as "FILE: ADDRESS"."""
    return [
        f"{path.relative_to(site)}: {address}"
        for path in sorted(site.rglob("*"))
        if path.suffix in (".html", ".css")
        for match in REQUESTED.finditer(path.read_text(encoding="utf-8"))
        for address in [next(filter(None, match.groups()))]
        if re.match(r"(https?:)?//", address)
    ]


def test_the_check_of_requests_finds_what_it_looks_for(tmp_path):
    (tmp_path / "a.html").write_text(
        "<script src=https://a.invalid/x></script><link rel='stylesheet' href='//b.invalid/y'>"
        "<img alt='' src='https://c.invalid/z'><a href='https://d.invalid'>link</a>"
        "<img src=own.png>"
    )
    (tmp_path / "b.css").write_text("@import 'https://e.invalid/f'; a{background:url(//g.invalid)}")
    hosts = [line.rpartition("//")[2][0] for line in foreign(tmp_path)]
    assert hosts == ["a", "b", "c", "e", "g"]


@pytest.mark.exhaustive  # `make docs` builds it too; it takes some 15 seconds
def test_the_site_builds_strictly_and_requests_no_other_host(tmp_path):
    for package in ("mkdocs", "material", "mkdocstrings", "mkdocs_jupyter"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed; see requirements-dev.txt")
    site = tmp_path / "site"
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", f"--site-dir={site}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    assert foreign(site) == []
    start = (site / "index.html").read_text(encoding="utf-8")
    assert 'src="phantoms.png"' in start and 'href="training.html#our-recipe"' in start
    assert (site / "source" / "configs" / "judge.py.html").is_file()
    encoders = (site / "api" / "encoders.html").read_text(encoding="utf-8")
    assert 'id="mmrl.encoder.Encoder.sentence_heatmap"' in encoders
    searched = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    assert any(one["location"].startswith("limits.html") for one in searched["docs"])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_stored_without_outputs(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert code and all(cell["outputs"] == [] for cell in code)
    assert all(cell["execution_count"] is None for cell in code)
    assert not re.search(r"/(home|root|work|Users|tmp)/", path.read_text(encoding="utf-8"))


@pytest.mark.exhaustive  # `make notebooks` executes them too
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run_from_top_to_bottom(path, tmp_path):
    for package in ("nbconvert", "ipykernel"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed; see requirements-dev.txt")
    command = ["-m", "nbconvert", "--to=notebook", "--execute", f"--output-dir={tmp_path}"]
    command.append("--ExecutePreprocessor.startup_timeout=300")  # of a kernel, on a busy machine
    ran = subprocess.run(
        [sys.executable, *command, str(path)],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert (tmp_path / path.name).is_file()


def headings(text):
    return re.findall(r"^## (.+)$", text, flags=re.M)


def test_the_template_of_model_cards_has_the_sections_of_written_ones():
    template = (ROOT / "docs" / "templates" / "model_card.md").read_text(encoding="utf-8")
    source = (ROOT / "mmrl" / "exports" / "card.py").read_text(encoding="utf-8")
    sections = source[source.index("sections = {") : source.index("head = {")]
    assert headings(template) == re.findall(r'^ +"([A-Z][^"]+)":', sections, flags=re.M)
    head = source[source.index("head = {") : source.index("lines = [")]
    front = template.split("---\n")[1]
    assert re.findall(r"^(\w+):", front, re.M) == re.findall(r'^ +"(\w+)":', head, re.M)
    for row in re.findall(r'yield "([^"]+)", ', source):
        assert f"| {row} |" in template or row == "licence"


def prepared_and_audited(folder):
    """The manifest of a prepared corpus, and the numbers of its audit."""
    given = {"length": 12, "render_size": 32}
    settings = job.Settings(Storage(size=32), workers=0)
    manifest = job.prepare("phantom", given, folder / "made", settings, say=lambda line: None)
    audit([str(folder / "made")], out=str(folder / "out"), lengths=(16,), batch_sizes=(2,))
    numbers = json.loads((folder / "out" / "audit.json").read_text(encoding="utf-8"))
    return manifest, next(iter(numbers["corpora"].values()))


def test_the_template_of_data_cards_names_what_a_preparation_and_an_audit_write(tmp_path):
    template = (ROOT / "docs" / "templates" / "data_card.md").read_text(encoding="utf-8")
    manifest, audited = prepared_and_audited(tmp_path)
    rows = re.findall(r"^\| [^|]+ \|  \| (.+) \|$|^\| [^|]+ \| \| (.+) \|$", template, flags=re.M)
    named = [one or two for one, two in rows]
    assert len(named) > 30
    for cell in named:
        for part in re.split(r"[;] ", cell):
            for key in re.findall(r"`([\w.]+)`", part):
                if key.endswith(".jsonl"):
                    continue
                held = audited if "audit" in part else manifest
                for name in key.split("."):
                    assert name in held, f"{key} is in neither: {cell}"
                    held = held[name]


def test_the_citation_states_the_version_and_what_cff_requires():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == __version__ and cited["license"] == "Apache-2.0"
    assert {"cff-version", "message", "title", "authors"} <= cited.keys()
    assert all({"type", "title", "authors"} <= one.keys() for one in cited["references"])
