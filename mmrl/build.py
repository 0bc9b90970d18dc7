"""Names to modules: "vit" is `mmrl.models.image.vit.Vit`; an unknown name lists the choices.

A name in a config is the name of a file, and the class in that file is the name in CamelCase, so
grep finds both. To add an objective, an encoder, an evaluator or a corpus, add a file.
"""

import ast
import difflib
import functools
import importlib
import inspect
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from mmrl import values
from mmrl.types import InputError
from mmrl.values import Option, type_of

# Where the modules of each kind are.
_ROOMS: dict[str, tuple[str, ...]] = {
    "objective": ("mmrl.objectives",),
    "evaluator": ("mmrl.evaluators",),
    "source": ("mmrl.data.sources",),
    "input": ("mmrl.data.inputs",),
    "tower": ("mmrl.models.towers",),
    "encoder": ("mmrl.models.image", "mmrl.models.text", "mmrl.models.vector"),
    "pooler": ("mmrl.models.pool",),
    "derived": ("mmrl.models.derived",),
    "fusion": ("mmrl.models.fusion",),
    "tracker": ("mmrl.training.trackers",),
}

# Files of these folders that hold a part of another module, which no config names.
_PARTS = {"pooler": ("temporal",)}


@functools.cache
def choices(kind: str) -> tuple[str, ...]:
    """Names available for `kind`, sorted: the files of its folder that define the class they name.

    Files are searched, not imported: importing all of them would take seconds.
    """
    return tuple(sorted(_files(kind)))


@functools.cache
def _files(kind: str) -> dict[str, tuple[str, pathlib.Path]]:
    """Name -> (package, file) of all modules of a kind."""
    found = {}
    for package in _ROOMS[kind]:
        (folder,) = importlib.import_module(package).__path__
        for file in sorted(pathlib.Path(folder).glob("*.py")):
            if file.stem in _PARTS.get(kind, ()):
                continue
            pattern = rf"^class {_class_name(file.stem)}\b"
            if re.search(pattern, file.read_text("utf-8"), re.MULTILINE):
                found[file.stem] = package, file
    return found


def module_of(kind: str, name: str) -> str:
    """The module behind `name`: a file of the folder of `kind`, or PACKAGE.MODULE of another one.

    Raises:
      InputError: no such name; the message lists the choices.
    """
    if "." in name:
        return name
    offered = _files(kind)
    if name not in offered:
        raise InputError(unknown(kind, name, choices(kind)))
    return f"{offered[name][0]}.{name}"


def find(kind: str, name: str) -> type:
    """The class behind `name`, see `module_of`.

    Raises:
      InputError: no such name; the message lists the choices. A module of another package that
        cannot be imported, or without the class that its name promises.
    """
    module, expected = module_of(kind, name), _class_name(name.rpartition(".")[2])
    try:
        return getattr(importlib.import_module(module), expected)
    except (ImportError, AttributeError) as error:
        if "." not in name:
            raise
        raise InputError(
            f"{kind} {name!r}: {error}; expected a module with a class {expected}, or one of: "
            f"{', '.join(choices(kind))}"
        ) from error


def document(kind: str, name: str) -> str:
    """The docstring of the file of a module, which is not imported."""
    return ast.get_docstring(ast.parse(_files(kind)[name][1].read_text("utf-8"))) or ""


def _class_name(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))


@functools.cache
def options(target: type) -> dict[str, Option]:
    """The keyword-only options that a class takes, by name.

    A constructor that hands **others on to its base takes the options of that, too. The sentence
    of an option is its entry in the Args section of the docstring of the class, or of a base.
    """
    found: dict[str, Option] = {}
    texts: dict[str, str] = {}
    for one in target.__mro__:
        for name, text in _described(one).items():
            texts.setdefault(name, text)
    # Of __init__: the metaclass of nnx modules hides the signature of the class itself.
    for one in (c for c in target.__mro__ if "__init__" in vars(c)):
        parameters = _signature(one.__dict__["__init__"]).parameters.values()
        for p in parameters:
            if p.kind is inspect.Parameter.KEYWORD_ONLY and p.name not in found:
                accepts = type_of(p.default) if _unknown_type(p.annotation) else p.annotation
                found[p.name] = Option(p.default, accepts, texts.get(p.name, ""), one)
        if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
            break
    return found


def _signature(constructor: Any) -> inspect.Signature:
    """The signature, with annotations that are texts resolved where that is possible."""
    try:
        return inspect.signature(constructor, eval_str=True)
    except Exception:  # an annotation may name what exists for the type checker only
        return inspect.signature(constructor)


def _unknown_type(annotation: Any) -> bool:
    return annotation is inspect.Parameter.empty or isinstance(annotation, str)


def _described(target: type) -> dict[str, str]:
    """Entries of the Args section of a class: name -> text, one line, as a sentence.

    An entry is "name: text" or "name, other: text"; its further lines are indented deeper.
    """
    doc = inspect.cleandoc(vars(target).get("__doc__") or "")
    _, _, section = f"\n{doc}\n".partition("\nArgs:\n")
    entries: list[tuple[list[str], list[str]]] = []
    for line in section.splitlines():
        if line.strip() and not line.startswith("  "):
            break
        entry = re.match(r"  (\w+(?:, \w+)*): (.*)", line)
        if entry:
            entries.append((entry[1].split(", "), [entry[2]]))
        elif line.startswith("    ") and entries:
            entries[-1][1].append(line.strip())
        elif not line.strip():
            break
    return {name: _sentence(" ".join(lines).strip()) for names, lines in entries for name in names}


def _sentence(text: str) -> str:
    """The text with a capital letter and a full stop; "png or dcm, ..." keeps its letters."""
    choices_first = re.match(r"\w+(, [\w-]+)* or [\w-]+[,:;.]", text)
    first = text[:1] if choices_first else text[:1].upper()
    return first + text[1:] + ("" if text.endswith(".") else ".")


def check_options(
    where: str, target: type, given: Mapping[str, Any], *, supplied: Iterable[str] = ()
) -> None:
    """Refuses options that `target` does not take, or that it needs and did not get.

    Args:
      where: the config key to name in the message, such as "config.objectives.siglip".
      supplied: options which the caller fills in itself; a config may not set them.

    Raises:
      InputError: names the option and lists those allowed.
    """
    allowed = {name: one for name, one in options(target).items() if name not in set(supplied)}
    for name, value in given.items():
        if name not in allowed:
            raise InputError(unknown(f"option in {where}", name, sorted(allowed)))
        if value is not None:
            plain = value.to_dict() if hasattr(value, "to_dict") else value
            values.check(f"{where}.{name}={plain!r}", plain, allowed[name].accepts)
    missing = [name for name, one in allowed.items() if one.required and given.get(name) is None]
    if missing:
        flag = f"; such as --{where}.{missing[0]}=VALUE" if where.startswith("config.") else ""
        raise InputError(f"{where} needs a value for: {', '.join(missing)}{flag}")


def unknown(kind: str, name: str, offered: Iterable[str]) -> str:
    """One line: what was given, the nearest match if any, and all choices."""
    offered = list(offered)
    choices = ", ".join(offered) or "none"
    return f"unknown {kind} {name!r}{meant(str(name), offered)}; choices: {choices}"


def meant(name: str, offered: Iterable[str]) -> str:
    """The question whether the offered name most like `name` was meant; "" if none is like it."""
    close = difflib.get_close_matches(name, list(offered), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def no_folder(path: pathlib.Path) -> str:
    """Says that there is no such folder, with the name beside it that was perhaps meant."""
    above = path.parent
    beside = [one.name for one in above.iterdir()] if above.is_dir() else []
    return f"there is no such folder{meant(path.name, beside)}"


def check_known(kind: str, names: Iterable[str], offered: Iterable[str]) -> None:
    """Refuses names that are not offered.

    Raises:
      InputError: the first of them, see `unknown`.
    """
    offered = tuple(offered)
    for name in names:
        if name not in offered:
            raise InputError(unknown(kind, name, offered))


def check_distinct(what: str, names: Iterable[str]) -> None:
    """Refuses a name that is given twice.

    Args:
      what: the names are of, for the message.

    Raises:
      InputError: names the first one.
    """
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise InputError(f"{what}: {name!r} is given twice; expected every name once")
        seen.add(name)
