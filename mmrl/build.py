"""Names to modules: "vit" is `mmrl.models.image.vit.Vit`; an unknown name lists the choices.

A name in a config is the name of a file, and the class in that file is the name in CamelCase, so
grep finds both. To add an objective, an encoder, an evaluator or a corpus, add a file.
"""

import difflib
import functools
import importlib
import inspect
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from mmrl.types import InputError

# Where the modules of each kind are.
_ROOMS = {
    "objective": "mmrl.objectives",
    "evaluator": "mmrl.evaluators",
    "source": "mmrl.data.sources",
    "image encoder": "mmrl.models.image",
    "text encoder": "mmrl.models.text",
}


@functools.cache
def choices(kind: str) -> tuple[str, ...]:
    """Names available for `kind`, sorted: the files of its folder that define the class they name.

    Files are searched, not imported: importing all of them would take seconds.
    """
    (folder,) = importlib.import_module(_ROOMS[kind]).__path__
    return tuple(
        file.stem
        for file in sorted(pathlib.Path(folder).glob("*.py"))
        if re.search(rf"^class {_class_name(file.stem)}\b", file.read_text("utf-8"), re.MULTILINE)
    )


def find(kind: str, name: str) -> type:
    """The class behind `name`.

    Raises:
      InputError: no such name; the message lists the choices.
    """
    offered = choices(kind)
    if name not in offered:
        raise InputError(unknown(kind, name, offered))
    return getattr(importlib.import_module(f"{_ROOMS[kind]}.{name}"), _class_name(name))


def _class_name(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))


def options(target: type) -> dict[str, inspect.Parameter]:
    """The keyword-only options that a class takes, by name.

    A constructor that hands **others on to its base takes the options of that, too.
    """
    found: dict[str, inspect.Parameter] = {}
    # Of __init__: the metaclass of nnx modules hides the signature of the class itself.
    for constructor in (c.__dict__["__init__"] for c in target.__mro__ if "__init__" in vars(c)):
        parameters = inspect.signature(constructor).parameters.values()
        for p in parameters:
            if p.kind is inspect.Parameter.KEYWORD_ONLY:
                found.setdefault(p.name, p)
        if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
            break
    return found


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
    allowed = {name: p for name, p in options(target).items() if name not in set(supplied)}
    for name in given:
        if name not in allowed:
            raise InputError(unknown(f"option in {where}", name, sorted(allowed)))
    missing = [
        name
        for name, parameter in allowed.items()
        if parameter.default is inspect.Parameter.empty and given.get(name) is None
    ]
    if missing:
        raise InputError(f"{where} needs a value for: {', '.join(missing)}")


def unknown(kind: str, name: str, offered: Iterable[str]) -> str:
    """One line: what was given, the nearest match if any, and all choices."""
    offered = list(offered)
    close = difflib.get_close_matches(str(name), offered, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    return f"unknown {kind} {name!r}{hint}; choices: {', '.join(offered) or 'none'}"
