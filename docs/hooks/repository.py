"""Links of the pages work on the site as they do in the repository.

A page may link to any file of the repository by a relative path. Some Markdown files outside docs/
become pages of the site (`PAGES`). Every other file that a page links to, such as a preset, becomes
a page below source/ that shows its text. A link to a file that does not exist stays as it is, and
the strict build refuses it.
"""

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files

# Markdown files of the repository, and the pages that they become.
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "launch/README.md": "launch.md",
}
# Languages of the highlighter by the ends of names; a Dockerfile has none.
_LANGUAGES = {".py": "python", ".sh": "bash", ".toml": "toml", ".yaml": "yaml", ".json": "json"}
_LINK = re.compile(r"(?<=\]\()(?P<target>[^)\s]+)(?=\))")
_FENCED = re.compile(r"^(?P<indent> *)(?P<mark>```+)[^\n]*\n.*?^ *(?P=mark) *$", re.M | re.S)


@event_priority(-100)  # after the plugin `offline`
def on_config(config: Any) -> Any:
    """Drops a script of another host, which lets a search work on pages opened as files."""
    config.extra["polyfills"] = []
    return config


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages that are made from files outside docs/."""
    root = _root(config)
    for name, page in PAGES.items():
        content = (root / name).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=content))
    for name in sorted({name for file in files for name in _linked(file, root)}):
        if files.get_file_from_path(_page(name)) is None:
            files.append(File.generated(config, _page(name), content=_shown(root, name)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turns links to files of the repository into links to the pages of the site."""
    where, root = page.file.src_uri, _root(config)

    def moved(match: re.Match[str]) -> str:
        target = match["target"]
        path, mark, anchor = target.partition("#")
        name = _named(where, path)
        if not path or not name or not (root / name).is_file():
            return target
        return posixpath.relpath(_page(name), posixpath.dirname(where) or ".") + mark + anchor

    head = _head(page.file) if page.meta else ""
    return head + "".join(
        part if is_code else _LINK.sub(moved, part) for part, is_code in _parts(markdown)
    )


def _root(config: Any) -> Path:
    return Path(config.config_file_path).parent


def _page(name: str) -> str:
    """The page of the site that shows a file of the repository, or the file of the site itself."""
    if name in PAGES:
        return PAGES[name]
    inside = name.removeprefix("docs/")
    return inside if inside != name else f"source/{name}.md"


def _named(page: str, path: str) -> str:
    """The file of the repository that a page links to; "" for an address or a path outside."""
    if "://" in path or path.startswith(("/", "mailto:")):
        return ""
    origins = {made: name for name, made in PAGES.items()}
    origin = origins.get(page, f"docs/{page}")
    name = posixpath.normpath(posixpath.join(posixpath.dirname(origin), path))
    return "" if name.startswith("..") else name


def _linked(file: File, root: Path) -> Iterator[str]:
    """The files of the repository that a page links to."""
    if file.src_uri.endswith(".md"):
        for part, is_code in _parts(file.content_string):
            for match in () if is_code else _LINK.finditer(part):
                name = _named(file.src_uri, match["target"].partition("#")[0])
                if name and not name.startswith("docs/") and (root / name).is_file():
                    yield name


def _parts(markdown: str) -> Iterator[tuple[str, bool]]:
    """The parts of a page, and whether each is a fenced block of code."""
    end = 0
    for match in _FENCED.finditer(markdown):
        yield markdown[end : match.start()], False
        yield match[0], True
        end = match.end()
    yield markdown[end:], False


def _shown(root: Path, name: str) -> str:
    """A page that shows the text of a file."""
    text = (root / name).read_text(encoding="utf-8")
    language = _LANGUAGES.get(Path(name).suffix, "text")
    return f"---\nsearch:\n  exclude: true\n---\n# {name}\n\n````{language}\n{text}````\n"


def _head(file: File) -> str:
    """The front matter of a template as text; other pages show none."""
    head = re.match(r"---\n.*?\n---\n", file.content_string, re.S)
    is_template = file.src_uri.startswith("templates/")
    return f"```yaml\n{head[0]}```\n\n" if head and is_template else ""
