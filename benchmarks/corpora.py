"""Report texts for benchmarks: of a prepared corpus, of Open-i, or of phantoms."""

import argparse
import csv
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mmrl.data.corpus import read_corpus, records
from mmrl.data.perturb.copies import Copies
from mmrl.data.perturb.mix import Mix
from mmrl.data.sources.phantom import Phantom
from mmrl.data.sources.prepared import Prepared
from mmrl.data.text.reports import compose
from mmrl.data.text.tokenizer import Tokenizer

OPENI = "Open-i findings"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that `chosen` reads."""
    parser.add_argument("--prepared", help="read the reports of this prepared corpus")
    parser.add_argument("--sections", default="findings,impression", help="of a prepared corpus")
    parser.add_argument("--split", default="train", help="of a prepared corpus")


def chosen(args: argparse.Namespace) -> tuple[str, list[str]]:
    """(name, reports) of the prepared corpus in the options; without one, as `texts`."""
    if not args.prepared:
        return texts()
    source = Prepared(split=args.split, path=args.prepared)
    name = f"{Path(args.prepared).name}/{args.split}"
    sections = tuple(args.sections.split(","))
    return name, list(read_corpus(name, source, sections=sections, need_images=False).texts)


class TextRows:
    """Makes the text arrays of a types.Batch as the training pipeline does.

    Args:
      tokenizer, length: of the texts.
      kinds: kinds of perturbation, which have equal weights.
      copies: K, perturbed copies per report.
    """

    def __init__(
        self, tokenizer: Tokenizer, length: int, kinds: Sequence[str], copies: int
    ) -> None:
        self._tokenizer, self._length, self._count = tokenizer, length, copies
        self._mix, self._copies = Mix.from_config(kinds), Copies(tokenizer, length)

    def __call__(self, reports: Sequence[str], seed: int) -> dict[str, np.ndarray]:
        """Arrays of the reports and their copies; without `perturbed` if K is 0."""
        tokens, mask, _ = self._tokenizer.encode_batch(reports, self._length)
        rows = {"text.tokens": tokens, "text.mask": mask}
        if self._count:
            seeds = np.random.default_rng(seed).integers(2**63, size=len(reports)).astype(np.uint64)
            kinds = self._mix.draw(0, self._count, seeds)
            made = self._copies(reports, tokens, mask, kinds, seeds)
            rows |= {f"perturbed.{name}": array for name, array in made.items()}
        return rows


def texts(*, real: bool = True, count: int = 3000) -> tuple[str, list[str]]:
    """(name, reports): Open-i findings if MMRL_REAL_DATA has them, else `count` phantom reports.

    Args:
      real: False for phantom reports in any case.
    """
    folder = Path(os.environ.get("MMRL_REAL_DATA", "../shared/data"))
    path = folder / "openi" / "indiana_reports.csv"
    if real and path.is_file():
        with path.open(newline="", encoding="utf-8") as file:
            found = [row["findings"] for row in csv.DictReader(file) if row["findings"].strip()]
        return OPENI, found
    source = Phantom(split="train", length=count, fractions=(1.0, 0.0, 0.0))
    reports = [compose(record.sections, ("findings", "impression")) for record in records(source)]
    return "phantom reports", reports
