"""Derives independent random streams, such as init, dropout and data, from one seed."""

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import jax


def number(name: str) -> int:
    """Hashes a stream's name to a 31-bit number that never changes."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest(), "big") >> 1


def key(seed: int, name: str) -> "jax.Array":
    """The jax key of a stream; fold in the step if the stream is used at every step.

    Imports jax when called, because processes that only read data do not need it.
    """
    import jax

    return jax.random.fold_in(jax.random.key(seed), number(name))


def fold(key: "jax.Array", name: str) -> "jax.Array":
    """The key of a stream within that of another one, such as a parameter's path."""
    import jax

    return jax.random.fold_in(key, number(name))


def host_seed(seed: int, name: str) -> int:
    """An integer seed of a stream, for libraries without jax keys."""
    return number(f"{seed}/{name}")
