"""Clinical kinds: one fact of the report is reworded so that it contradicts the image.

Each kind is a file with a function

    candidates(report: ParsedReport) -> list[Edits]

that lists all changes which the kind can make to a report. Each entry is one change: edits that
together turn the report into a fluent, false one. A change is left out if the result might read
badly or might still be true of the image.
"""

from collections.abc import Callable

import numpy as np

from mmrl.data.perturb import (
    flip_negation,
    swap_device,
    swap_finding,
    swap_laterality,
    swap_severity,
    swap_temporal,
    swap_zone,
)
from mmrl.data.perturb.edits import Edits, edited
from mmrl.data.perturb.report import Kind, ParsedReport

_CANDIDATES: dict[str, Callable[[ParsedReport], list[Edits]]] = {
    "swap_laterality": swap_laterality.candidates,
    "flip_negation": flip_negation.candidates,
    "swap_severity": swap_severity.candidates,
    "swap_zone": swap_zone.candidates,
    "swap_finding": swap_finding.candidates,
    "swap_temporal": swap_temporal.candidates,
    "swap_device": swap_device.candidates,
}


def candidates(report: ParsedReport, kind: str) -> list[Edits]:
    """All changes that `kind` can make to the report; computed once per report."""
    known: dict[str, list[Edits]] = report.candidates
    if kind not in known:
        known[kind] = _CANDIDATES[kind](report)
    return known[kind]


def _draw(kind: str) -> Kind:
    def draw(report: ParsedReport, rng: np.random.Generator) -> str | None:
        found = candidates(report, kind)
        if not found:
            return None
        return edited(report.text, found[int(rng.integers(len(found)))])

    return draw


KINDS: dict[str, Kind] = {name: _draw(name) for name in _CANDIDATES}
