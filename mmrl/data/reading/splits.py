"""Splits by hash: the key of a record alone decides its split.

    >>> split_of("patient 17", (0.8, 0.1, 0.1))
    'train'

The key must be the leakage unit (patient, article, video) and not the image, so that no unit is in
two splits.
"""

import hashlib
import math
from collections.abc import Mapping

from mmrl.types import InputError

SPLITS = ("train", "val", "test")

Fractions = Mapping[str, float] | tuple[float, ...]


def check_split(split: str) -> str:
    """Returns `split`; raises InputError unless it is one of `SPLITS`."""
    if split not in SPLITS:
        raise InputError(f"split is {split!r}, expected one of: {', '.join(SPLITS)}")
    return split


def check_fractions(fractions: Fractions) -> tuple[float, float, float]:
    """Checks the fractions of train, val and test, and returns them.

    Args:
      fractions: three numbers in the order of `SPLITS`, or a mapping from split to number. A split
        that is not in the mapping has fraction 0.

    Raises:
      InputError: other than three numbers, an unknown split, a number outside [0, 1], or a sum
        that differs from 1.
    """
    if isinstance(fractions, Mapping):
        unknown = sorted(set(fractions) - set(SPLITS))
        if unknown:
            raise InputError(
                f"fractions name {', '.join(map(repr, unknown))}, "
                f"expected only: {', '.join(SPLITS)}"
            )
        values = tuple(float(fractions.get(split, 0.0)) for split in SPLITS)
    else:
        values = tuple(float(value) for value in fractions)
    if len(values) != len(SPLITS):
        raise InputError(
            f"fractions has {len(values)} numbers, expected one for each of: {', '.join(SPLITS)}"
        )
    if not all(0.0 <= value <= 1.0 for value in values) or not math.isclose(
        sum(values), 1.0, abs_tol=1e-6
    ):
        raise InputError(f"fractions are {values}, expected three numbers in [0, 1] that sum to 1")
    return values[0], values[1], values[2]


def hash_unit(key: str, *, salt: str = "") -> float:
    """A number in [0, 1) that depends on `key` and `salt` only (BLAKE2b, 64 bits)."""
    digest = hashlib.blake2b(f"{salt}\0{key}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) * 2.0**-53


def split_of(key: str, fractions: Fractions, *, salt: str = "") -> str:
    """The split of `key`: train, val or test, the same on every machine and in every run.

    A key keeps its split when records are added to the corpus.

    Args:
      key: the leakage unit, for example a patient's id.
      fractions: see `check_fractions`.
      salt: another salt gives an independent division.

    Raises:
      InputError: see `check_fractions`.
    """
    train, val, test = check_fractions(fractions)
    unit = hash_unit(key, salt=salt)
    if unit < train or val == test == 0.0:
        return "train"
    return "val" if unit < train + val or test == 0.0 else "test"
