"""Names to modules: "vit" is `mmrl.models.vit.Vit`; unknown names and options list the choices.

The convention makes grep work: a name in a config is a file name, and the class in that file is
the name in CamelCase. Adding an objective, an encoder, an evaluator or a corpus is adding a file.
"""

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Iterable, Mapping
from typing import Any

from mmrl.types import InputError

# What a name of each kind stands for, and modules of that folder which are no such thing.
_MODEL_PARTS = frozenset({"layers", "stack", "packing", "splash", "heads", "dual_encoder"})
_ROOMS: dict[str, tuple[str, frozenset[str]]] = {
    "objective": ("mmrl.objectives", frozenset({"base", "chunks", "local_kernel", "pairs"})),
    "evaluator": (
        "mmrl.evaluators",
        frozenset({"base", "statistics", "questions", "language_model", "ranking"}),
    ),
    "source": ("mmrl.data.sources", frozenset()),
    "image encoder": ("mmrl.models", _MODEL_PARTS | {"text"}),
    "text encoder": ("mmrl.models", _MODEL_PARTS | {"vit", "resnet"}),
}


def choices(kind: str) -> list[str]:
    """Names available for `kind`, sorted."""
    package_name, not_offered = _ROOMS[kind]
    package = importlib.import_module(package_name)
    names = (module.name for module in pkgutil.iter_modules(package.__path__))
    return sorted(name for name in names if name not in not_offered)


def find(kind: str, name: str) -> type:
    """The class behind `name`.

    Raises:
      InputError: no such name; the message lists the choices.
    """
    offered = choices(kind)
    if name not in offered:
        raise InputError(unknown(kind, name, offered))
    module = importlib.import_module(f"{_ROOMS[kind][0]}.{name}")
    return getattr(module, "".join(part.capitalize() for part in name.split("_")))


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
