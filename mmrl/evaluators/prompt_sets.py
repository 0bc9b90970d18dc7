"""Prompts of zero-shot classification: published sets in versioned files, and templates.

A set is a JSON file of the folder `prompts` beside this file, named "{name}@{version}.json", or a
file of the user. Any change of its prompts needs a new version. Its keys:

  source, license: where the prompts come from, and under which terms. notes: optional.
  language: ISO 639-1 code of the prompts.
  classes: exclusive class -> its prompts; or
  tasks: task -> {"positive": prompts, "negative": prompts, "present": [finding, side]}, as of
    `zero_shot.Task`.

The prompts of a class are {"phrases": [...]} or {"product": [[...], [...], ...]}: every combination
of one entry of each list, joined by blanks, where "" adds nothing.
"""

import dataclasses
import functools
import itertools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mmrl import build, files, sequences
from mmrl.types import InputError

FOLDER = Path(__file__).parent / "prompts"

# Without articles, so that they fit countable and uncountable findings.
STATED = (
    "{finding}.",
    "{finding} is present.",
    "{finding} is seen.",
    "there is {finding}.",
    "findings consistent with {finding}.",
)
DENIED = (
    "no {finding}.",
    "there is no {finding}.",
    "no evidence of {finding}.",
    "no {finding} is seen.",
    "no signs of {finding}.",
)
SIDED = (
    "{side} {finding}.",
    "{side} {finding} is present.",
    "there is {side} {finding}.",
    "{finding} on the {side}.",
    "there is {finding} on the {side}.",
    "{side}-sided {finding}.",
)
_KEYS = ("source", "license", "notes", "language", "classes", "tasks")


def worded(templates: Iterable[str], name: str, side: str = "") -> tuple[str, ...]:
    """Fills and capitalises templates; name "Pleural_Effusion" becomes "pleural effusion"."""
    words = name.replace("_", " ").split()
    finding = " ".join(word if len(word) > 1 and word.isupper() else word.lower() for word in words)
    given = sequences.each(templates, "templates")
    filled = (template.format(finding=finding, side=side) for template in given)
    return tuple(text[0].upper() + text[1:] for text in filled)


@dataclasses.dataclass(frozen=True)
class PromptSet:
    """A set of prompts, with what a result must state of it.

    Attributes:
      name: "{name}@{version}", or the path of a file of the user.
      sha256: digest of the file.
      language: ISO 639-1 code.
      classes: class -> its prompts; empty in a set of tasks.
      tasks: task -> its fields, as in the file; empty in a set of classes.
      facts: source, license and notes.
    """

    name: str
    sha256: str
    language: str
    classes: Mapping[str, tuple[str, ...]]
    tasks: Mapping[str, Mapping[str, Any]]
    facts: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form for results, without the prompts."""
        counts = {name: len(prompts) for name, prompts in self.classes.items()}
        return {
            "name": self.name,
            "sha256": self.sha256,
            "language": self.language,
            **self.facts,
            **({"prompts_per_class": counts} if counts else {}),
        }


def names(kind: str) -> list[str]:
    """The sets of the package that have `kind`, "classes" or "tasks"."""
    return [name for name in sorted(_files()) if kind in _read(_files()[name])]


def load(name: str, kind: str, *, where: str) -> PromptSet:
    """A set of the package, or of a file that ends in .json.

    Args:
      kind: "classes" or "tasks", what the set must have.
      where: the option that names the set, for messages.

    Raises:
      InputError: an unknown name; a file that cannot be read or has another form.
    """
    own = name.endswith(".json")
    if not own and name not in names(kind):
        raise InputError(f"{build.unknown(where, name, names(kind))}, or a file FILE.json")
    path = Path(name) if own else _files()[name]
    given = _read(path)
    unknown = [key for key in given if key not in _KEYS]
    if unknown:
        raise InputError(build.unknown(f"key in {path}", unknown[0], _KEYS))
    for key in ("source", "license", "language", kind):
        if not given.get(key) or not isinstance(given[key], dict if key == kind else str):
            raise InputError(f"{path} has no {key!r}; expected source, license, language, {kind}")
    classes = {key: _prompts(path, key, one) for key, one in given.get("classes", {}).items()}
    if kind == "classes" and len(classes) < 2:
        raise InputError(f"{path} has the classes {list(classes)}; expected at least two")
    return PromptSet(
        name,
        files.sha256(path),
        given["language"],
        classes,
        given.get("tasks", {}),
        {key: given[key] for key in ("source", "license", "notes") if key in given},
    )


@functools.cache
def _files() -> dict[str, Path]:
    return {path.stem: path for path in FOLDER.glob("*.json")}


def _read(path: Path) -> dict[str, Any]:
    try:
        given = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(given, dict):
        raise InputError(f"{path} holds a {type(given).__name__}; expected an object")
    return given


def _prompts(path: Path, name: str, given: Any) -> tuple[str, ...]:
    """The prompts of a class, each once."""
    forms = list(given) if isinstance(given, dict) else []
    parts: Any = given[forms[0]] if forms in (["phrases"], ["product"]) else None
    lists = [parts] if forms == ["phrases"] else parts
    good = isinstance(lists, list) and all(
        isinstance(one, list) and one and all(isinstance(text, str) for text in one)
        for one in lists
    )
    if not (good and lists):
        raise InputError(
            f'{path}: class {name!r}: expected {{"phrases": [...]}} or {{"product": [[...], ...]}}'
            " of texts"
        )
    joined = (" ".join(filter(None, chosen)) for chosen in itertools.product(*lists))
    prompts = tuple(dict.fromkeys(filter(None, joined)))
    if not prompts:
        raise InputError(f"{path}: class {name!r} has empty prompts only")
    return prompts
