"""Options and their values: what an option accepts, and how a text becomes a value.

The command line gives texts: `--config.KEY=TEXT` of every command and `--option=KEY=TEXT` of
`mmrl.prepare`. Both are read here, by the type that the option accepts.
"""

import ast
import collections.abc
import inspect
import types
import typing
from collections.abc import Mapping
from typing import Any, NamedTuple

from mmrl.types import InputError

REQUIRED = inspect.Parameter.empty
"""The default of an option that has none."""

_WORDS = {"true": True, "false": False, "none": None}
_SEQUENCES = (collections.abc.Sequence, list, tuple)
_MAPPINGS = (collections.abc.Mapping, dict)


class Option(NamedTuple):
    """One option.

    Attributes:
      default: its value unless another is given, or `REQUIRED`.
      accepts: the type of its values.
      text: what it does, in a sentence; "" where the module does not describe it.
      owner: the class whose constructor takes it; None for keys of the config itself.
    """

    default: Any
    accepts: Any
    text: str
    owner: type | None = None

    @property
    def required(self) -> bool:
        """Whether a value must be given."""
        return self.default is REQUIRED


def setting(default: Any, text: str, accepts: Any = None) -> Option:
    """A key of the config; its type is that of the default, unless `accepts` gives another."""
    return Option(default, type_of(default) if accepts is None else accepts, text)


def defaults(keys: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults of keys that are nested in mappings, nested in the same way."""
    return {
        name: one.default if isinstance(one, Option) else defaults(one)
        for name, one in keys.items()
    }


def parse(what: str, text: str, accepts: Any) -> Any:
    """The value of type `accepts` that a text stands for.

    A text needs no quotes; numbers, tuples, lists and mappings are written as in Python:
    `0.5`, `(0.8, 1.0)`, `{"Edema": "ones"}`. A list of texts may also be written as `a,b,c`,
    also where a single text is accepted; one text with a comma is then written as `("a,b",)`.
    Whole numbers become floats where the type says so.

    Args:
      what: the option as it was given, for the message.

    Raises:
      InputError: the text is no value of that type; names the type.
    """
    for value in _readings(text, accepts):
        try:
            return _convert(value, accepts)
        except TypeError:
            continue
    raise InputError(f"{what}; expected {name(accepts)}")


def check(what: str, value: Any, accepts: Any) -> Any:
    """A value, converted to the type `accepts` as `parse` does.

    Raises:
      InputError: a value of another type.
    """
    try:
        return _convert(value, accepts)
    except TypeError:
        raise InputError(f"{what}; expected {name(accepts)}") from None


def literal(text: str) -> Any:
    """A word, number, tuple, list or mapping as written in Python; any other text is itself."""
    if text.strip().lower() in _WORDS:
        return _WORDS[text.strip().lower()]
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def show(value: Any) -> str:
    """A value as it is written on the command line, without quoting for the shell."""
    value = value.to_dict() if hasattr(value, "to_dict") else value
    if isinstance(value, str):
        return value
    return repr(value)


def default_sentence(option: Option) -> str:
    """The default of an option, as a sentence."""
    if option.required:
        return "Required."
    return f"Default: {show(option.default)}." if option.default != "" else "Default: empty."


def type_of(default: Any) -> Any:
    """The type that values of an option with this default have."""
    if default is None or default is REQUIRED:
        return Any
    if isinstance(default, Mapping):
        return Mapping[str, Any]
    if isinstance(default, tuple):
        kinds = {type_of(item) for item in default}
        return types.GenericAlias(tuple, (kinds.pop() if len(kinds) == 1 else Any, ...))
    return type(default)


def members(accepts: Any) -> tuple[Any, ...]:
    """The types that a union joins; of another type, itself."""
    if typing.get_origin(accepts) in (types.UnionType, typing.Union):
        return tuple(part for one in typing.get_args(accepts) for part in members(one))
    return (accepts,)


def mapping_of(accepts: Any) -> Any | None:
    """The type of the values of a mapping, where the type accepts mappings; else None."""
    for part in members(accepts):
        if part in _MAPPINGS:
            return Any
        if typing.get_origin(part) in _MAPPINGS:
            return typing.get_args(part)[1]
    return None


_PLAIN: Mapping[Any, str] = {int: "whole number", float: "number", str: "text"}


def name(accepts: Any) -> str:
    """The type in words: "a whole number", "a list of texts" or "one of none, full, dots"."""
    return _named(accepts, many=False)


def _named(accepts: Any, *, many: bool) -> str:
    """A value of the type in words, or `many` of them: "a number", "numbers"."""
    parts = members(accepts)
    if len(parts) > 1:
        return " or ".join(dict.fromkeys(_named(part, many=many) for part in parts))
    origin, inner = typing.get_origin(accepts) or accepts, typing.get_args(accepts)
    if accepts in (Any, REQUIRED):
        return "values" if many else "a value"
    if accepts in (None, type(None)):
        return "none"
    if origin is typing.Literal:
        return f"one of {', '.join(map(show, inner))}"
    if accepts is bool:
        return "true or false"
    of = ""
    if origin in _MAPPINGS:
        noun = "mapping"
        of = f" to {_named(inner[1], many=True)}" if inner and inner[1] is not Any else ""
    elif origin in _SEQUENCES:
        if origin is tuple and inner and inner[-1] is not Ellipsis:
            return f"({', '.join(map(name, inner))})"
        noun = "list"
        of = f" of {_named(inner[0], many=True)}" if inner and inner[0] is not Any else ""
    else:
        noun = _PLAIN.get(accepts, str(getattr(accepts, "__name__", accepts)))
    return f"{noun}s{of}" if many else f"a {noun}{of}"


def _readings(text: str, accepts: Any) -> list[Any]:
    """What a text may stand for, the likeliest first."""
    read: list[Any] = []
    if not all(_is_text(part) for part in members(accepts)):
        read.append(literal(text))
    elif text.strip().lower() == "none":
        read.append(None)
    read.append(text)
    if not set(text) & set("()[]{}'\""):
        parts = tuple(part.strip() for part in text.split(",") if part.strip())
        first = "," in text and str in members(accepts) and _takes_texts(accepts)
        read.insert(0 if first else len(read), parts)
    return read


def _takes_texts(accepts: Any) -> bool:
    """Whether a type accepts lists of texts."""
    return any(
        typing.get_origin(part) in _SEQUENCES and typing.get_args(part)[0] is str
        for part in members(accepts)
    )


def _is_text(accepts: Any) -> bool:
    """Whether the values of a type are texts or None, so that "17" is no number."""
    if typing.get_origin(accepts) is typing.Literal:
        return all(isinstance(choice, str) for choice in typing.get_args(accepts))
    return accepts in (str, None, type(None))


def _convert(value: Any, accepts: Any) -> Any:
    """The value as one of type `accepts`; raises TypeError when it is none."""
    parts = members(accepts)
    if len(parts) > 1:
        return _convert_one_of(value, parts)
    origin, inner = typing.get_origin(accepts) or accepts, typing.get_args(accepts)
    if accepts in (Any, REQUIRED):
        return value
    if accepts in (None, type(None)):
        fits = value is None
    elif origin is typing.Literal:
        fits = value in inner
    elif origin in _MAPPINGS:
        return _convert_mapping(value, inner)
    elif origin in _SEQUENCES:
        return _convert_sequence(value, origin, inner)
    elif accepts is float:
        fits = isinstance(value, int | float) and not isinstance(value, bool)
        value = float(value) if fits else value
    elif accepts is int:
        fits = isinstance(value, int) and not isinstance(value, bool)
    else:
        fits = isinstance(accepts, type) and isinstance(value, accepts)
    if not fits:
        raise TypeError
    return value


def _convert_one_of(value: Any, parts: tuple[Any, ...]) -> Any:
    if type(value) in parts:
        return value
    for part in parts:
        try:
            return _convert(value, part)
        except TypeError:
            continue
    raise TypeError


def _convert_mapping(value: Any, inner: tuple[Any, ...]) -> dict[Any, Any]:
    if not isinstance(value, Mapping):
        raise TypeError
    keys, values = inner or (Any, Any)
    return {_convert(key, keys): _convert(item, values) for key, item in value.items()}


def _convert_sequence(value: Any, origin: Any, inner: tuple[Any, ...]) -> Any:
    if not isinstance(value, list | tuple):
        raise TypeError
    fixed = origin is tuple and inner and inner[-1] is not Ellipsis
    kinds = inner if fixed else (inner[0] if inner else Any,) * len(value)
    if len(value) != len(kinds):
        raise TypeError
    return type(value)(_convert(item, kind) for item, kind in zip(value, kinds, strict=True))
