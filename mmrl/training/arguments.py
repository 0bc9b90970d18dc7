"""What modules get as arguments: encodings and arrays, by the names that they read."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mmrl import build, wiring
from mmrl.types import Encoded, InputError, first_line
from mmrl.wiring import Graph, Name, Wiring


def arrays_of(graph: Graph, name: str, given: Encoded) -> dict[str, jax.Array]:
    """The arrays of one input, those that it carries on included: "text.tokens" -> "tokens"."""
    start, derived = f"{name}.", graph.input(name)
    carried = {} if derived is None else arrays_of(graph, derived.of, given)
    if derived is not None and derived.selects:
        rows = given[f"{name}.rows"]
        carried = {key: jnp.take(value, rows, axis=0) for key, value in carried.items()}
    own = {key.removeprefix(start): value for key, value in given.items() if key.startswith(start)}
    return {**carried, **own}


def taken(graph: Graph, arrays: Iterable[tuple[str, str]], given: Encoded) -> dict[str, jax.Array]:
    """(argument, array of the batch or of a derived input) pairs -> argument -> array.

    Raises:
      InputError: an array that its input does not have.
    """
    found = {}
    for argument, name in arrays:
        own = name.partition(".")[0]
        there = given if name in given else named(own, arrays_of(graph, own, given))
        if name not in there:
            raise InputError(build.unknown("array", name, sorted(there) or wiring.COMMON))
        found[argument] = there[name]
    return found


def read(reads: Iterable[tuple[str, Name]], encoded: Encoded) -> dict[str, jax.Array]:
    """(argument, encoding) pairs -> argument -> array."""
    return {argument: encoded[str(name)] for argument, name in reads}


@contextlib.contextmanager
def fitting(
    kind: str,
    name: str,
    module: Any,
    wired: Wiring,
    reads: Iterable[tuple[str, Name | str]],
    given: Mapping[str, Any],
) -> Iterator[None]:
    """Tells in one line why a module cannot take what a config makes it read.

    Args:
      module: the module, or its class.
      reads: (argument, encoding or array) pairs. given: argument -> the array or its width.

    Raises:
      InputError: for an error of a module that reads anything but what it does by default.
    """
    try:
        yield
    except (ArithmeticError, TypeError, ValueError) as error:
        pairs = dict(reads)
        defaults = wiring.redirected("reads", {**module.batch, **module.reads}, None)
        moved = [key for key in pairs if not _is_default(wired.graph, defaults[key], pairs[key])]
        if isinstance(error, InputError) or not moved:
            raise
        shown = ", ".join(f"{key} {_shown(pairs[key], given.get(key))}" for key in moved)
        where = f"config.{wiring.PLACES[kind]}.{name}.reads"
        raise InputError(
            f"{where}: {shown}; expected what is shaped as "
            f"{', '.join(defaults[key] for key in moved)} ({first_line(error)})"
        ) from error


def _is_default(graph: Graph, default: str, name: Name | str) -> bool:
    if isinstance(name, str):
        return name == default
    try:
        return graph.resolve(default) == name
    except InputError:  # of a tower that does not exist here
        return False


def _shown(name: Name | str, given: jax.Array | int | None) -> str:
    """An encoding, or an array, with its shape, or with its width."""
    size = list(given.shape) if isinstance(given, jax.Array) else given and f"of width {given}"
    return f"{name} {size}" if size else str(name)


def named(name: str, arrays: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """The arrays of one input by their full names: "tokens" -> "text.tokens"."""
    return {f"{name}.{key}": array for key, array in arrays.items()}
