"""Refused items: written to a file, counted by reason, and limited in number."""

import collections
import dataclasses
import json
import os
from collections.abc import Iterable, Mapping, Sequence

from mmrl import files
from mmrl.types import InputError, Reject

_LONGEST_EXAMPLE = 300  # characters


class UnusableError(InputError):
    """No record of a corpus can be used.

    Attributes:
      rejects: the refused items, which say why.
    """

    def __init__(self, message: str, rejects: Sequence[Reject]) -> None:
        super().__init__(message)
        self.rejects = tuple(rejects)


def write_rejects(path: str | os.PathLike[str], rejects: Iterable[Reject]) -> None:
    """Writes one JSON object per line with id, reason and detail, in the order given.

    Raises:
      InputError: the file cannot be written.
    """
    lines = (json.dumps(dataclasses.asdict(reject), ensure_ascii=False) for reject in rejects)
    try:
        files.write(path, "".join(f"{line}\n" for line in lines))
    except OSError as error:
        raise InputError(f"cannot write {os.fspath(path)}: {error.strerror}") from error


def summarise(rejects: Iterable[Reject]) -> dict[str, int]:
    """Counts rejects per reason, most frequent first, then by name."""
    counts = collections.Counter(reject.reason for reject in rejects)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def in_words(counts: Mapping[str, int]) -> str:
    """Counts per reason as text: "3 missing_image, 1 empty_report"; "" without any."""
    return ", ".join(f"{count:,} {reason}" for reason, count in counts.items())


def explain(rejects: Sequence[Reject]) -> str:
    """Counts rejects per reason, with the first of each: "3 missing_image (a:1: row 1: ...)"."""
    first: dict[str, Reject] = {}
    for reject in rejects:
        first.setdefault(reject.reason, reject)
    return ", ".join(
        f"{count:,} {reason} ({_example(first[reason])})"
        for reason, count in summarise(rejects).items()
    )


def _example(reject: Reject) -> str:
    text = " ".join(f"{reject.id}: {reject.detail}".split()).removesuffix(":")
    return text if len(text) <= _LONGEST_EXAMPLE else f"{text[:_LONGEST_EXAMPLE]}..."


def check_fraction(
    rejected: int,
    total: int,
    max_fraction: float,
    *,
    what: str,
    rejects: Sequence[Reject] = (),
    option: str = "--config.data.max_reject_fraction",
) -> None:
    """Raises InputError when more than `max_fraction` of the items were rejected.

    Args:
      rejected: number of rejected items.
      total: number of items before rejection.
      max_fraction: the share allowed, 0 to 1: at most floor(max_fraction * total) items.
      what: plural noun of the items for the message ("records").
      rejects: the rejected items, for the message.
      option: name of the option that sets the limit, for the message.

    Raises:
      InputError: above the limit; the message counts the reasons, with an example of each. A
        `max_fraction` outside 0 to 1.
    """
    if not 0 <= max_fraction <= 1:
        raise InputError(f"{option}={max_fraction}; expected 0 to 1")
    # The small term keeps 0.29 * 100 = 28.999999999999996 from allowing 28 instead of 29.
    allowed = int(max_fraction * total + 1e-9)
    if rejected <= allowed:
        return
    listed = explain(rejects)
    raise InputError(
        f"{rejected} of {total} {what} rejected ({100 * rejected / max(total, 1):.1f} %)"
        f"{': ' + listed if listed else ''}; {option}={max_fraction:g} allows"
        f" {allowed}; rejects.jsonl lists them: correct them, or allow more"
    )
