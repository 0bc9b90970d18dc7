"""Time and peak memory of judging many examples: retrieval, and probes of frozen features.

    python -m benchmarks.judging --out=docs/results/judging.md

Every case runs in a process of its own on made-up embeddings and features, so that its peak memory
(resident set) is its own. The table also has the memory after the arrays were made, before the
measurement, and what a matrix of all pairs would take.
"""

import argparse
import datetime
import json
import os
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mmrl.evaluators import linear, metrics, scoring
from mmrl.evaluators.retrieval import best_match_ranks
from mmrl.training.checkpoint import versions

COMMAND = "python -m benchmarks.judging"
LABELS = 10


def main() -> None:
    """Runs all cases one after the other and writes the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="the page; by default it is printed")
    parser.add_argument("--size", type=int, default=20_000, help="pairs, and training items")
    parser.add_argument("--held-out", type=int, default=2_000, help="items of val and of test")
    parser.add_argument("--width", type=int, default=768, help="features")
    parser.add_argument("--embedding", type=int, default=512, help="width of embeddings")
    parser.add_argument("--case", choices=list(CASES), help="measure one case; print JSON")
    args = parser.parse_args()
    if args.case:
        print(json.dumps(measure(args)))
        return
    rows = {}
    for case in CASES:
        command = [sys.executable, "-m", "benchmarks.judging", *sys.argv[1:], f"--case={case}"]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        rows[case] = json.loads(done.stdout)
        print(case, rows[case], file=sys.stderr)
    page = write_page(args, rows)
    if args.out:
        args.out.write_text(page, encoding="utf-8")
    print(page)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds, processor seconds, MiB before and at most, and the result of one case."""
    prepare, _ = CASES[args.case]
    work = prepare(args)
    before = _peak()
    began, processor = time.perf_counter(), time.process_time()
    result = work()
    return {
        "seconds": time.perf_counter() - began,
        "processor": time.process_time() - processor,
        "before": before,
        "peak": _peak(),
        "result": result,
    }


def _peak() -> float:
    """MiB, the largest resident set of this process so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


Work = Callable[[], str]


def retrieval(args: argparse.Namespace) -> Work:
    """Exact ranks of all pairs in both directions; two pairs share each report."""
    rng = np.random.default_rng(0)
    shape = (args.size, args.embedding)
    images, texts = (rng.standard_normal(shape, np.float32) for _ in range(2))
    texts += images / 8
    for one in (images, texts):
        one /= np.linalg.norm(one, axis=1, keepdims=True)
    groups = np.arange(args.size) // 2

    def work() -> str:
        both = ((images, texts), (texts, images))
        ranks = [best_match_ranks(one, two, groups) for one, two in both]
        return "R@1 " + " and ".join(f"{(rank <= 1).mean():.3f}" for rank in ranks)

    return work


def made_up(args: argparse.Namespace) -> tuple[linear.Items, linear.Items, linear.Items]:
    """Training, validation and test items: features of unequal variance that state 10 labels."""
    rng = np.random.default_rng(0)
    scale = (np.arange(1, args.width + 1) ** -0.5).astype(np.float32)
    weights = rng.standard_normal((args.width, LABELS), np.float32)
    found = []
    for size in (args.size, args.held_out, args.held_out):
        x = rng.standard_normal((size, args.width), np.float32) * scale
        values = x @ weights + rng.logistic(size=(size, LABELS)) > 2
        known = np.ones(values.shape, bool)
        found.append(linear.Items(x, linear.Targets("labels", values.astype(np.float32), known)))
    train, check, test = found
    return train, check, test


def linear_probe(args: argparse.Namespace) -> Work:
    """Strengths chosen on validation items for each label; no bootstrap."""
    train, check, test = made_up(args)

    def work() -> str:
        model = linear.choose(linear.logistic, [(train, check)], patience=2).model
        return f"macro AUROC {_macro(model(test.x), test):.3f}"

    return work


def neighbours(args: argparse.Namespace) -> Work:
    """Five nearest training items of every test item, for each label."""
    train, _, test = made_up(args)

    def work() -> str:
        columns = [
            metrics.neighbour_shares(train.x, values, test.x)[:, 1]
            for values in train.targets.values.T.astype(np.int64)
        ]
        return f"macro AUROC {_macro(np.stack(columns, axis=1), test):.3f}"

    return work


def intervals(args: argparse.Namespace) -> Work:
    """Measures of test items with 1,000 resamples of their patients, beside one other row."""
    *_, test = made_up(args)
    rng = np.random.default_rng(1)
    truth = test.targets.values.astype(np.int8)
    scores = linear.probabilities("labels", 2 * truth + rng.normal(size=truth.shape))
    patients = np.arange(len(truth)) // 2

    def work() -> str:
        names = tuple(f"label {column}" for column in range(LABELS))
        answers = scoring.Answers("labels", scores, truth, patients, names, 0.5, True)
        values, _ = scoring.report(answers, rows={"other": [scores[::-1]]})
        return f"macro AUROC {values['macro_auroc']}"

    return work


def _macro(scores: np.ndarray, test: linear.Items) -> float:
    columns = zip(scores.T, test.targets.values.T > 0.5, strict=True)
    return float(np.mean([metrics.auroc(*one) for one in columns]))


CASES: dict[str, tuple[Callable[[argparse.Namespace], Work], str]] = {
    "retrieval": (retrieval, "retrieval, both directions"),
    "linear": (linear_probe, "linear probe, six strengths"),
    "knn": (neighbours, "5 nearest neighbours"),
    "intervals": (intervals, "report, 1,000 resamples"),
}
"""Name -> what makes the work of a case, and the title of its row."""


def write_page(args: argparse.Namespace, rows: dict[str, dict[str, Any]]) -> str:
    """The Markdown page."""
    options = [one for one in sys.argv[1:] if not one.startswith("--out")]
    out = [f"--out={args.out}"] if args.out else []
    lines = [
        "# Judging many examples: time and memory",
        "",
        "```bash",
        shlex.join([*COMMAND.split(), *options, *out]),
        "```",
        "",
        f"{datetime.date.today().isoformat()}, {len(os.sched_getaffinity(0))} cores, numpy "
        f"{np.__version__}, jax {versions()['jax']}. {args.size:,} pairs of embeddings of width "
        f"{args.embedding}; {args.size:,} training and {args.held_out:,} validation and test items "
        f"with {args.width} features and {LABELS} labels, all made up, float32. Every row is a "
        "process of its own; processor seconds add up all threads, and do not count the time in "
        "which other programs had the cores.",
        "",
        "| case | seconds | processor seconds | memory before | peak memory | result |",
        "|---|---|---|---|---|---|",
    ]
    for case, row in rows.items():
        lines.append(
            f"| {CASES[case][1]} | {row['seconds']:.1f} | {row['processor']:.1f} | "
            f"{row['before']:,.0f} MiB | {row['peak']:,.0f} MiB | {row['result']} |"
        )
    pairs = args.size**2 * 4 / 2**20
    lines += [
        "",
        f"A float32 matrix of all pairs would take {pairs:,.0f} MiB; none is held. The features of "
        f"the training items take {args.size * args.width * 4 / 2**20:,.0f} MiB, and the linear "
        "probe makes a standardised copy.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
