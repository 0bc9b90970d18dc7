"""Reports per second that one core processes: sections, K perturbed copies, tokens.

    python -m benchmarks.text --copies=9
    python -m benchmarks.text --copies=9 --prepared=DIR

Uses the reports of a prepared corpus, with or without images. Without --prepared, it uses the
Open-i findings under MMRL_REAL_DATA, or phantom reports. As in the training pipeline, each report
is split at its headers, the chosen sections are composed, K copies are made with random kinds of
perturbation, and report and copies are tokenised. "first" starts with empty caches, like the first
epoch. "again" is a second pass over the same reports with new random numbers.
"""

import argparse
import os
import time

from benchmarks import corpora
from mmrl.data import perturb
from mmrl.data.perturb import statements, tagger
from mmrl.data.text.reports import compose, parse_sections
from mmrl.data.text.tokenizer import Tokenizer

_SECTIONS = ("findings", "impression", "full")
_BATCH = 64


def one_pass(reports: list[str], rows: corpora.TextRows, seed: int) -> float:
    """Seconds for one pass over all reports."""
    began = time.perf_counter()
    for start in range(0, len(reports), _BATCH):
        batch = reports[start : start + _BATCH]
        rows([compose(parse_sections(report), _SECTIONS) for report in batch], seed + start)
    return time.perf_counter() - began


def main() -> None:
    """Measures the paper's kinds, the clinical kinds and both, and prints a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--copies", type=int, default=9)
    parser.add_argument("--length", type=int, default=96)
    corpora.add_options(parser)
    args = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    name, reports = corpora.chosen(args)
    tokenizer = Tokenizer.train(reports, vocab_size=2000)
    tagger.tag("zzz")  # reads the lexicon, which is not to be measured
    print(f"{name}: {len(reports):,} reports, one core, K = {args.copies}, L = {args.length}")
    print(f"{'kinds':32s} {'first':>10s} {'again':>10s}   reports/s")
    for title, kinds in (
        ("the paper's nine", perturb.PAPER_KINDS),
        ("clinical", perturb.CLINICAL_KINDS),
        ("all negatives", perturb.NEGATIVE_KINDS),
    ):
        for cache in (tagger.tag, statements.analyse, perturb.parse):
            cache.cache_clear()
        rows = corpora.TextRows(tokenizer, args.length, kinds, args.copies)
        passes = [one_pass(reports, rows, seed) for seed in (0, 1)]
        rates = "".join(f" {len(reports) / seconds:10,.0f}" for seconds in passes)
        print(f"{title:32s}{rates}")


if __name__ == "__main__":
    main()
