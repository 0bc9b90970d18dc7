"""Report texts to measure on: of a prepared corpus, else real ones where they are, or phantoms."""

import argparse
import csv
import os
from pathlib import Path

from mmrl.data.corpus import read_corpus
from mmrl.data.reports import compose
from mmrl.data.sources.phantom import Phantom
from mmrl.data.sources.prepared import Prepared

OPENI = "Open-i findings"


def add_options(parser: argparse.ArgumentParser) -> None:
    """--prepared and --sections, for `chosen`."""
    parser.add_argument("--prepared", help="read the reports of this prepared corpus")
    parser.add_argument("--sections", default="findings,impression", help="of a prepared corpus")
    parser.add_argument("--split", default="train", help="of a prepared corpus")


def chosen(given: argparse.Namespace) -> tuple[str, list[str]]:
    """(name, reports) of the corpus that the options name; without one, as `texts`."""
    if not given.prepared:
        return texts()
    source = Prepared(split=given.split, path=given.prepared)
    name = f"{Path(given.prepared).name}/{given.split}"
    sections = tuple(given.sections.split(","))
    return name, list(read_corpus(name, source, sections=sections, need_images=False).texts)


def texts(*, real: bool = True, count: int = 3000) -> tuple[str, list[str]]:
    """(name, reports): the findings of Open-i under MMRL_REAL_DATA, or `count` phantom reports."""
    folder = Path(os.environ.get("MMRL_REAL_DATA", "../shared/data"))
    path = folder / "openi" / "indiana_reports.csv"
    if real and path.is_file():
        with path.open(newline="", encoding="utf-8") as file:
            found = [row["findings"] for row in csv.DictReader(file) if row["findings"].strip()]
        return OPENI, found
    source = Phantom(split="train", length=count, fractions=(1.0, 0.0, 0.0))
    reports = [
        compose(source[index].sections, ("findings", "impression")) for index in range(len(source))
    ]
    return "phantom reports", reports
