"""Checks whether records of an evaluation were seen in training.

    overlaps = compare(training, held_out)
    check(overlaps, waivers, where)     # raises LeakError unless every overlap is waived

Records are compared by patient, study, leakage unit, image and report. Some public corpora share
records: the images of RSNA come from NIH ChestX-ray14, the sentences of RadNLI from MIMIC-CXR.
`Facts.within` and `Facts.namespace` of a source and `Record.aliases` state these relations. Where
two corpora are related but their records do not state which they share, an overlap cannot be
excluded, and is reported as the kind "relation".
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmrl import build
from mmrl.data.overlap import duplicates, signatures
from mmrl.data.overlap.fingerprints import KEYED, Fingerprint, namespace, source_facts
from mmrl.types import InputError

KINDS: Mapping[str, str] = {
    "patient": "of a patient of the training records",
    "study": "of a study of the training records",
    "leakage_unit": "of a leakage unit (patient, article, video) of the training records",
    "image": "with an image of the training records, pixel for pixel",
    "similar_image": "with an image that looks like one of the training records",
    "report": "with nearly the report of a training record",
    "relation": "of a corpus that shares unknown records with a training corpus",
}
Waivers = Mapping[str, tuple[float, str]]  # kind -> greatest accepted share of records, and reason
SETTING = "--config.data.waive_leaks="
RADIUS = 2  # bits of a hash that resizing and compressing an image change, see `duplicates`


class LeakError(InputError):
    """Evaluation records were seen in training, and no waiver accepts it."""


def _ancestors(source: str) -> set[str]:
    """The corpora from which records of a source come, their namespaces, and the source itself."""
    found, pending = {source, namespace(source)}, [source]
    while pending:
        facts = source_facts(pending.pop())
        for parent in facts.within if facts else ():
            if parent not in found:
                found |= {parent, namespace(parent)}
                pending.append(parent)
    return found


@dataclasses.dataclass(frozen=True)
class Overlap:
    """Evaluation records that were seen in training, for one kind of overlap.

    Attributes:
      kind: one of `KINDS`.
      count, total: number of affected evaluation records, and of all.
      examples: ids of some affected records.
      note: an explanation, or "".
      allowed: the overlap is no leak; `note` states why.
    """

    kind: str
    count: int
    total: int
    examples: tuple[str, ...] = ()
    note: str = ""
    allowed: bool = False

    @property
    def share(self) -> float:
        """Share of the evaluation records."""
        return self.count / self.total if self.total else 0.0

    def __str__(self) -> str:
        text = f"{self.kind}: {self.count:,} of {self.total:,} records ({self.share:.1%})"
        text += f" {KINDS[self.kind]}"
        if self.examples:
            text += f", such as {', '.join(self.examples)}"
        return text + (f" [{self.note}]" if self.note else "")


def compare(training: Fingerprint, held_out: Fingerprint) -> list[Overlap]:
    """All kinds of overlap that occur, in the order of `KINDS`."""
    found: dict[str, Overlap] = {}
    seen = {
        kind: held_out.rows[kind][np.isin(held_out.keys[kind], training.keys[kind])]
        for kind in KEYED
    }
    for kind, rows in seen.items():
        _note(found, kind, held_out, rows)
    alike = duplicates.near_hashes(held_out.hashes, training.hashes, radius=RADIUS).first
    # Records with an equal image are reported as that.
    _note(found, "similar_image", held_out, np.setdiff1d(held_out.hash_rows[alike], seen["image"]))
    match, _ = signatures.near(
        training.texts[training.long_enough], held_out.texts[held_out.long_enough]
    )
    rows = np.flatnonzero(held_out.long_enough)[match >= 0]
    templated = training.templated and held_out.templated
    note = "reports are made by a grammar, so equal ones are expected" if templated else ""
    _note(found, "report", held_out, rows, note=note, allowed=templated)
    _relations(found, training, held_out)
    return [found[kind] for kind in KINDS if kind in found]


def not_compared(training: Fingerprint, held_out: Fingerprint) -> list[str]:
    """What was not compared, in sentences with the reason; [] when everything was."""
    lacking = dict.fromkeys(one.name for one in (training, held_out) if not len(one.keys["image"]))
    if not lacking:
        return []
    return [
        f"images were not compared, because {' and '.join(lacking)}"
        f" {'have' if len(lacking) > 1 else 'has'} no image digests"
        " (python -m mmrl.prepare computes them)"
    ]


def check(
    overlaps: Sequence[Overlap], waivers: Waivers, where: str, setting: str = SETTING
) -> None:
    """Raises LeakError for overlaps that no waiver accepts.

    Args:
      waivers: see `parse_waivers`.
      where: the two compared splits, for the message.
      setting: the option that waives an overlap, for the message.

    Raises:
      LeakError: names every overlap that is not accepted, and how to waive it.
    """
    open_ones = [
        overlap
        for overlap in overlaps
        if not overlap.allowed and overlap.share > waivers.get(overlap.kind, (0.0, ""))[0]
    ]
    if not open_ones:
        return
    entries = "; ".join(
        f"{one.kind} {min(1.0, np.ceil(one.share * 100) / 100):g} WHY" for one in open_ones
    )
    raise LeakError(
        f"{where}: {'; '.join(map(str, open_ones))}. Divide the data otherwise, or accept the"
        f' overlap, which is then written into every result: {setting}"{entries}"'
    )


def parse_waivers(given: str, where: str = "config.data.waive_leaks") -> Waivers:
    """Parses config.data.waive_leaks, "KIND SHARE REASON; KIND SHARE REASON; ...".

    Returns:
      kind -> (greatest share, reason).

    Raises:
      InputError: another form, an unknown or repeated kind, a share outside (0, 1], no reason.
    """
    if not isinstance(given, str):
        raise InputError(f"{where}={given!r}; expected a text, KIND SHARE REASON")
    found: dict[str, tuple[float, str]] = {}
    for entry in filter(None, map(str.strip, given.split(";"))):
        try:
            kind, number, why = entry.split(None, 2)
            share = float(number)
        except ValueError:
            raise InputError(
                f"{where} holds {entry!r}; expected KIND SHARE REASON, such as"
                " 'report 0.25 normal reports repeat'"
            ) from None
        if kind not in KINDS:
            raise InputError(build.unknown(f"kind in {where}", kind, KINDS))
        if kind in found or not 0 < share <= 1 or why == "WHY":
            raise InputError(
                f"{where} {entry!r}: expected each kind once, a share above 0 and"
                " at most 1, and a reason"
            )
        found[kind] = (share, why)
    return found


def summary(
    training: Fingerprint,
    held_out: Fingerprint,
    overlaps: Sequence[Overlap],
    waivers: Waivers,
) -> dict[str, Any]:
    """The comparison as JSON values, for results."""
    return {
        "training": training.name,
        "held_out": held_out.name,
        "overlaps": {
            one.kind: {"records": one.count, "of": one.total, "note": one.note} for one in overlaps
        },
        "waived": {
            one.kind: {"up_to": waivers[one.kind][0], "why": waivers[one.kind][1]}
            for one in overlaps
            if one.kind in waivers and not one.allowed
        },
        "not_compared": not_compared(training, held_out),
    }


def _note(
    found: dict[str, Overlap],
    kind: str,
    held_out: Fingerprint,
    rows: np.ndarray,
    *,
    note: str = "",
    allowed: bool = False,
) -> None:
    """Adds an overlap to `found` if any record is affected."""
    rows = np.unique(rows)
    if len(rows):
        examples = tuple(held_out.ids[row] for row in rows[:3]) if held_out.ids else ()
        found[kind] = Overlap(kind, len(rows), held_out.records, examples, note, allowed)


def _relations(found: dict[str, Overlap], training: Fingerprint, held_out: Fingerprint) -> None:
    """Adds the overlap of related corpora whose records do not state which they share."""
    pairs, count = [], 0
    for theirs, number in held_out.sources.items():
        unknown = 0
        for ours, trained in training.sources.items():
            if ours == theirs:
                continue
            for space in _ancestors(ours) & _ancestors(theirs):
                known = min(
                    training.covered.get(f"{ours}>{space}", 0) / trained,
                    held_out.covered.get(f"{theirs}>{space}", 0) / number,
                )
                if known < 1:
                    pairs.append(f"{theirs} and {ours} share records of {space}")
                    missing = number - held_out.covered.get(f"{theirs}>{space}", 0)
                    unknown = max(unknown, missing or number)
        count += unknown
    if count:
        note = "; ".join(dict.fromkeys(pairs))
        found["relation"] = Overlap("relation", count, held_out.records, (), note)
