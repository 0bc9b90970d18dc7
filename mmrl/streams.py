"""One seed, many named streams: init, dropout, data... never share random numbers."""

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import jax


def number(name: str) -> int:
    """A stable 31-bit number for a stream's name."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest(), "big") >> 1


def key(seed: int, name: str) -> "jax.Array":
    """The jax key of a stream; fold in the step where a stream is used at each step.

    Imports jax on call: processes that only read data take integers and start without it.
    """
    import jax

    return jax.random.fold_in(jax.random.key(seed), number(name))


def host_seed(seed: int, name: str) -> int:
    """The same idea for libraries that want an integer seed."""
    return number(f"{seed}/{name}")
