"""Options of a source as text: what `--option=KEY=VALUE` means."""

import ast
import collections.abc
import inspect
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from mmrl import build
from mmrl.types import InputError

_WORDS = {"true": True, "false": False, "none": None}


def parse(name: str, given: Sequence[str]) -> dict[str, Any]:
    """Options of source `name`, each of the type that it takes.

    A text needs no quotes; numbers, lists and mappings are written as in Python:
    `length=20000`, `label_columns=["effusion", "nodule"]`.

    Raises:
      InputError: no such option, given twice, or a value of another type.
    """
    allowed = build.options(build.find("source", name))
    parsed: dict[str, Any] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--option={text}; expected --option=KEY=VALUE")
        if key not in allowed or key == "split":
            offered = sorted(set(allowed) - {"split"})
            raise InputError(build.unknown(f"option of source {name}", key, offered))
        if key in parsed:
            raise InputError(f"--option={key}=... is given twice")
        parsed[key] = _value(f"--option={text}", value, allowed[key].annotation)
    return parsed


def _value(what: str, text: str, wanted: Any) -> Any:
    """The text as a value of type `wanted`."""
    if wanted is inspect.Parameter.empty:
        wanted = Any
    if not _only_text(wanted):
        value = _literal(text)
        if _fits(value, wanted):
            return value
    elif text.lower() == "none" and _fits(None, wanted):
        return None
    if _fits(text, wanted):
        return text
    raise InputError(f"{what}; expected {_name(wanted)}")


def _literal(text: str) -> Any:
    """A word, number, list or mapping; any other text is itself."""
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def _fits(value: Any, wanted: Any) -> bool:
    """Whether a value is of the type that an annotation names."""
    origin, parts = typing.get_origin(wanted), typing.get_args(wanted)
    if wanted is Any:
        return True
    if origin in (types.UnionType, typing.Union):
        return any(_fits(value, part) for part in parts)
    if wanted in (None, type(None)):
        return value is None
    if origin is collections.abc.Mapping or origin is dict:
        items = value.items() if isinstance(value, Mapping) else ()
        return isinstance(value, Mapping) and all(
            _fits(k, parts[0]) and _fits(v, parts[1]) for k, v in items
        )
    if origin is typing.Literal:
        return value in parts
    if origin in (collections.abc.Sequence, list, tuple):
        sequence = isinstance(value, list | tuple)
        if not sequence or origin is not tuple or not parts or parts[-1] is Ellipsis:
            return sequence and all(_fits(item, parts[0]) for item in value)
        return len(value) == len(parts) and all(map(_fits, value, parts))
    if wanted is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if wanted is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(wanted, type) and isinstance(value, wanted)


def _only_text(wanted: Any) -> bool:
    parts = typing.get_args(wanted) or (wanted,)
    return all(part in (str, None, type(None)) for part in parts)


def _name(wanted: Any) -> str:
    return wanted.__name__ if isinstance(wanted, type) else str(wanted).replace("typing.", "")
