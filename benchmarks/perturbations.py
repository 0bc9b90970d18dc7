"""How often each kind of perturbation applies, with examples: writes docs/perturbations.md.

    python -m benchmarks.perturbations --out=docs/perturbations.md
    python -m benchmarks.perturbations --read=swap_zone --count=100 --seed=7

The first command counts how often each kind applies to the Open-i findings under MMRL_REAL_DATA, or
to the reports of --prepared=DIR, and to phantom reports, and shows a few random pairs of report and
copy. The second command prints many pairs of one kind for a manual review. The results of such
reviews are in `READ` and appear on the page.
"""

import argparse
import datetime
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks import corpora
from mmrl.data import perturb
from mmrl.data.text.reports import split_sentences

# Kind -> how many of 100 random pairs (--read=KIND --count=100 --seed=2026) are good English and
# contradict the original, by manual review.
READ: dict[str, int] = {
    "swap_laterality": 100,
    "flip_negation": 98,
    "swap_severity": 99,
    "swap_zone": 99,
    "swap_finding": 97,
    "swap_temporal": 99,
    "swap_device": 99,
}
_GROUPS = (
    ("Order of words, whole report", perturb.ORDER_KINDS),
    ("Order of words, each sentence by itself", perturb.SENTENCE_ORDER_KINDS),
    ("Lexical", perturb.LEXICAL_KINDS),
    ("Clinical", perturb.CLINICAL_KINDS),
    ("Control: keeps the meaning", perturb.CONTROL_KINDS),
)


_OPENI = (
    " of the Indiana University collection (Demner-Fushman et al. 2016, CC BY-NC-ND 4.0, "
    "de-identified by its owners: XXXX)"
)


def main() -> None:
    """Writes the page, or prints pairs for review."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/perturbations.md"))
    parser.add_argument("--read", choices=perturb.KINDS)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=2026)
    corpora.add_options(parser)
    args = parser.parse_args()
    name, reports = corpora.chosen(args)
    if args.read:
        for number, (before, after) in enumerate(
            sample(reports, args.read, args.count, args.seed), start=1
        ):
            print(f"{number:3d} - {before}\n    + {after}")
        return
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(page(name, reports, args.seed), encoding="utf-8")
    print(f"wrote {args.out}")


def apply(reports: Sequence[str], kind: str, seed: int) -> list[tuple[str, str]]:
    """(report, copy) for each report that the kind can change."""
    rng = np.random.default_rng(seed)
    copies = ((report, perturb.perturb(report, kind, rng)) for report in reports)
    return [(report, copy) for report, copy in copies if copy is not None]


def sample(reports: Sequence[str], kind: str, count: int, seed: int) -> list[tuple[str, str]]:
    """Random pairs (before, after) of the sentences that differ; `count` different pairs."""
    pairs = apply(reports, kind, seed)
    order = np.random.default_rng([seed, 1]).permutation(len(pairs))
    seen: dict[tuple[str, str], None] = {}
    for place in order.tolist():
        before, after = (split_sentences(text) for text in pairs[place])
        old = " ".join(s for s in before if s not in after) or "(nothing)"
        new = " ".join(s for s in after if s not in before) or "(nothing)"
        seen.setdefault((old, new) if kind not in perturb.CONTROL_KINDS else pairs[place])
        if len(seen) == count:
            break
    return list(seen)


def page(name: str, reports: Sequence[str], seed: int) -> str:
    """The Markdown page."""
    _, phantoms = corpora.texts(real=False)
    lines = [
        "# Kinds of perturbed copies: how often each applies, with examples",
        "",
        f"`python -m benchmarks.perturbations`, {datetime.date.today().isoformat()}. "
        f"{name}: {len(reports):,} reports{_OPENI if name == corpora.OPENI else ''}; "
        f"phantoms: {len(phantoms):,} reports. The tables give the share of reports that a kind "
        "can change. Below them, each pair of lines is a report and its copy, with only the "
        "sentences that differ. [perturbed_reports.md](perturbed_reports.md) explains the kinds.",
        "",
        "`read` is the result of a manual review: how many of 100 random pairs are good English "
        "and contradict the original (`python -m benchmarks.perturbations --read=KIND`).",
    ]
    for title, kinds in _GROUPS:
        header = f"| kind | {name} | phantoms | read |"
        lines += ["", f"## {title}", "", header, "|---|---|---|---|"]
        for kind in kinds:
            shares = [len(apply(r, kind, seed)) / len(r) for r in (reports, phantoms)]
            read = f"{READ[kind]} of 100" if kind in READ else ""
            lines.append(f"| `{kind}` | {shares[0]:.1%} | {shares[1]:.1%} | {read} |")
        for kind in kinds:
            lines += ["", f"`{kind}`"]
            for before, after in sample(reports, kind, 3, seed):
                lines += ["", f"- {_quoted(before)}", f"- {_quoted(after)}"]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return " ".join(text.split()).replace("_", r"\_").replace("*", r"\*")


if __name__ == "__main__":
    main()
