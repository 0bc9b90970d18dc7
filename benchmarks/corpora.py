"""Report texts to measure on: real ones where they are, phantoms elsewhere."""

import csv
import os
from pathlib import Path

from mmrl.data.reports import compose
from mmrl.data.sources.phantom import Phantom


def texts(*, real: bool = True, count: int = 3000) -> tuple[str, list[str]]:
    """(name, reports): the findings of Open-i under MMRL_REAL_DATA, or `count` phantom reports."""
    folder = Path(os.environ.get("MMRL_REAL_DATA", "../shared/data"))
    path = folder / "openi" / "indiana_reports.csv"
    if real and path.is_file():
        with path.open(newline="", encoding="utf-8") as file:
            found = [row["findings"] for row in csv.DictReader(file) if row["findings"].strip()]
        return "Open-i findings", found
    source = Phantom(split="train", length=count, fractions=(1.0, 0.0, 0.0))
    reports = [
        compose(source[index].sections, ("findings", "impression")) for index in range(len(source))
    ]
    return "phantom reports", reports
