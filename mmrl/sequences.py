"""One check of what is given where a list is wanted: a lone text is no list of its letters."""

import os
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np

from mmrl.types import InputError

PATHS = (str, os.PathLike)
"""The kinds of a list of paths."""


def of(items: Any, what: str, kinds: tuple[type, ...] = (str,)) -> list[Any]:
    """The items as a list, each of which has one of the wanted types.

    A generator, an array of strings and a column of a table are lists, too.

    Args:
      what: the argument, for messages, such as "texts".
      kinds: the types that an item may have. Texts must be Unicode, without unpaired surrogates.
        With np.ndarray among them, an array that holds several arrays is a list: [N, H, W].

    Raises:
      InputError: a single item or a mapping in place of a list, a set, which has no order, or an
        item of another type; names the item by its index.
    """
    return list(each(items, what, kinds))


def each(items: Any, what: str, kinds: tuple[type, ...] = (str,)) -> Iterator[Any]:
    """As `of`, but the items are checked one by one as they are read; for long generators.

    Raises:
      InputError: as of `of`; at once where no list is given.
    """
    if _is_single(items, kinds):
        raise InputError(f"{what}: given a single {_named(items)}; expected a list of {_or(kinds)}")
    return _checked(items, what, kinds)


def text(given: Any, what: str) -> str:
    """One text, of Unicode characters.

    Raises:
      InputError: another type, or an unpaired surrogate.
    """
    _check(given, what, (str,))
    return given


def _is_single(items: Any, kinds: tuple[type, ...]) -> bool:
    """Whether something is not several items in an order."""
    if isinstance(items, (str, bytes, bytearray, memoryview, os.PathLike, Mapping, AbstractSet)):
        return True
    if not isinstance(items, Iterable):
        return True
    axes, shape = getattr(items, "ndim", 1), getattr(items, "shape", ())
    if np.ndarray not in kinds or axes == 1:
        return axes != 1  # a table of several columns would yield their names
    # One image may be [H, W], or [H, W, C] of 1, 3 or 4 channels.
    return axes - (shape[-1:] in ((1,), (3,), (4,))) < 3


def _checked(items: Iterable[Any], what: str, kinds: tuple[type, ...]) -> Iterator[Any]:
    for index, item in enumerate(items):
        # Most are ASCII texts; the others are looked at closely.
        if type(item) is not str or str not in kinds or not item.isascii():
            _check(item, f"{what}[{index}]", kinds)
        yield item


def _check(item: Any, where: str, kinds: tuple[type, ...]) -> None:
    if not isinstance(item, kinds):
        raise InputError(f"{where} is {_named(item)}; expected {_or(kinds)}")
    if isinstance(item, str):
        try:
            item.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"{where} has an unpaired surrogate, {item[error.start]!a}, at position "
                f"{error.start}; expected Unicode text"
            ) from None


def _named(given: Any) -> str:
    """The type of a value, with what it is where that is short."""
    name = type(given).__name__
    if isinstance(given, np.ndarray):
        return f"array {given.dtype}{list(given.shape)}"
    if isinstance(given, str | bytes | os.PathLike):
        shown = ascii(os.fspath(given))
        return f"{name} {shown if len(shown) <= 60 else shown[:57] + '...'}"
    return "None" if given is None else name


def _or(kinds: tuple[type, ...]) -> str:
    names = ["array" if kind is np.ndarray else kind.__name__ for kind in kinds]
    return " or ".join(names)
