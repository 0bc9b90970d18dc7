"""Precision and recall of the entities that `mmrl.data.entities` finds in reports.

    python -m benchmarks.entities --out=docs/results/entities.md
    python -m benchmarks.entities --truth=FILE --out=docs/results/entities.md
    python -m benchmarks.entities --sample=21

The first command judges the sentences of phantom studies, whose truth is exact. `--truth` adds the
real part: a JSON file of what was read in the sentences that `--sample=SEED` prints, which are
drawn from the Open-i reports under MMRL_REAL_DATA:

    {"seed": 21, "frozen": commit of the extractor before the reading, "notes": [lines of the page],
     "sentences": [{"id": ..., "read": [{"text": part of the sentence, "nth": 0, "side": "",
                    "severity": "", "negated": false, "uncertain": false}]}]}

Neither the file nor any sentence belongs into this repository: the licence of the reports
(CC BY-NC-ND) does not allow parts of them to be published.
"""

import argparse
import csv
import dataclasses
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from mmrl.data.entities.extract import Entity, extract
from mmrl.data.phantom import study as phantom
from mmrl.data.text.reports import normalise, split_sentences
from mmrl.types import InputError

COUNT = 100  # real sentences


@dataclasses.dataclass(frozen=True)
class Read:
    """What a sentence says of one finding or device, as truth or as found.

    Attributes:
      key: equal in truth and finding if they are of one thing.
      severity: without the ending of an adverb.
    """

    key: Any
    side: str = ""
    severity: str = ""
    negated: bool = False
    uncertain: bool = False


class Tally:
    """Counts of one property: how many were right, found and true."""

    def __init__(self) -> None:
        self.right = self.found = self.true = 0
        self.errors: Counter[str] = Counter()

    def row(self, name: str) -> str:
        """A row of the table: precision and recall, each with its count and Wilson interval."""
        return f"| {name} | {_share(self.right, self.found)} | {_share(self.right, self.true)} |"


def _share(right: int, of: int) -> str:
    if not of:
        return "none"
    low, high = stats.binomtest(right, of).proportion_ci(method="wilson")
    return f"{right / of:.3f} ({low:.3f} to {high:.3f}), {right} of {of}"


PROPERTIES = ("mention", "side", "severity", "negation", "uncertainty")


def judge(pairs: Iterable[tuple[Sequence[Read], Sequence[Read]]]) -> dict[str, Tally]:
    """Tallies over (truth, found) of sentences.

    Attributes are judged on the mentions that are in both; each property counts where it is stated.
    """
    tallies = {name: Tally() for name in PROPERTIES}
    for truth, found in pairs:
        matched, rest = _match(truth, found)
        mention = tallies["mention"]
        mention.true += len(truth)
        mention.found += len(found)
        mention.right += len(matched)
        mention.errors["missed"] += len(truth) - len(matched)
        mention.errors["not in the truth"] += len(rest)
        for true, one in matched:
            for name, wanted, got in (
                ("side", true.side, one.side),
                ("severity", true.severity, one.severity),
                ("negation", true.negated, one.negated),
                ("uncertainty", true.uncertain, one.uncertain),
            ):
                tally = tallies[name]
                tally.true += bool(wanted)
                tally.found += bool(got)
                tally.right += bool(wanted) and wanted == got
                if wanted != got:
                    kind = "missed" if not got else "not in the truth" if not wanted else "another"
                    tally.errors[kind] += 1
    return tallies


def _match(
    truth: Sequence[Read], found: Sequence[Read]
) -> tuple[list[tuple[Read, Read]], list[Read]]:
    """Pairs of equal key, those with equal attributes first; and what is left of `found`."""
    matched, left, rest = [], list(truth), list(found)
    for same in (
        lambda a, b: (a.key, a.side, a.severity) == (b.key, b.side, b.severity),
        lambda a, b: (a.key, a.side) == (b.key, b.side),
        lambda a, b: a.key == b.key,
    ):
        for true in list(left):
            one = next((one for one in rest if same(true, one)), None)
            if one is not None:
                matched.append((true, one))
                left.remove(true)
                rest.remove(one)
    return matched, rest


# --- phantoms ------------------------------------------------------------------------------------

_OF_PHANTOM = {"pleural effusion": "effusion"}
# The grammar writes these for a finding in sentences that do not name it.
_MEANS = {"airspace opacity": "consolidation", "sharp": "effusion"}


def _phantom_pairs(
    seed: int, count: int
) -> tuple[list[tuple[list[Read], list[Read]]], Counter[str]]:
    """(truth, found) of every sentence, and how many denials name no finding."""
    pairs, implied = [], Counter[str]()
    names = {_OF_PHANTOM.get(name, name) for name in phantom.LABELS}
    for index in range(count):
        study = phantom.study(seed, index)
        for sentence in study.sentences:
            found = _found_in(sentence.text, names)
            words = sentence.text.lower()
            truth = [_stated(study.findings[position], words) for position in sentence.states]
            if len(sentence.denies) > 1:  # "the lungs are clear" names none of what it denies
                implied["sentences"] += 1
                implied["denials"] += len(sentence.denies)
            else:
                truth += [
                    Read(_OF_PHANTOM.get(name, name), side, negated=True)
                    for name, side in sentence.denies
                ]
            pairs.append((truth, found))
    return pairs, implied


def _stated(finding: Any, words: str) -> Read:
    """A finding with those attributes that its sentence states."""
    side = finding.side
    both = re.search("bilateral|both", words) is not None
    if not both and (side == "bilateral" or side not in words):
        side = ""
    severity = finding.severity if finding.severity in words else ""
    return Read(_OF_PHANTOM.get(finding.name, finding.name), side, severity)


def _found_in(text: str, names: set[str]) -> list[Read]:
    """Findings of the phantom's kinds in a sentence; a bilateral effusion is one on each side."""
    entities = [one for one in extract(text) if one.kind in ("finding", "device")]
    present = {one.name for one in entities}
    found = []
    for one in entities:
        name = one.name
        meant = _MEANS.get(text[one.start : one.end].lower(), name)
        if meant not in present:
            name = meant
        if name in names:
            sides = (
                ("left", "right") if (name, one.side) == ("effusion", "bilateral") else (one.side,)
            )
            found += [dataclasses.replace(_read(one, name), side=side) for side in sides]
    return found


def _read(one: Entity, key: Any) -> Read:
    severity = re.sub(r"ly$", "", one.severity)
    return Read(key, one.side, severity, one.negated, one.uncertain)


# --- Open-i --------------------------------------------------------------------------------------


def sample(seed: int) -> list[tuple[str, str]]:
    """(id, sentence) of COUNT distinct sentences of findings and impressions.

    Raises:
      InputError: the reports are not there.
    """
    path = Path(os.environ.get("MMRL_REAL_DATA", "../shared/data")) / "openi/indiana_reports.csv"
    if not path.is_file():
        raise InputError(f"no {path}; set MMRL_REAL_DATA to the folder that holds openi")
    distinct: dict[str, str] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            for section in ("findings", "impression"):
                for number, text in enumerate(split_sentences(normalise(row[section] or ""))):
                    distinct.setdefault(text, f"{row['uid']}/{section}/{number}")
    texts = sorted(distinct)
    chosen = np.random.default_rng(seed).choice(len(texts), COUNT, replace=False)
    return [(distinct[texts[i]], texts[i]) for i in sorted(chosen.tolist())]


def _real_pairs(truth: dict[str, Any]) -> list[tuple[list[Read], list[Read]]]:
    """(truth, found) of the sentences; mentions are equal if their characters overlap.

    Raises:
      InputError: the file is of other sentences, or a text is not in its sentence.
    """
    read = {one["id"]: one["read"] for one in truth["sentences"]}
    pairs = []
    for name, sentence in sample(truth["seed"]):
        if name not in read:
            raise InputError(f"the truth lacks sentence {name}; expected those of --sample")
        entities = [one for one in extract(sentence) if one.kind in ("finding", "device")]
        true = []
        for one in read[name]:
            places = [m.start() for m in re.finditer(re.escape(one["text"]), sentence)]
            if len(places) <= one.get("nth", 0):
                raise InputError(f"the truth of {name} has a text that is not in its sentence")
            start = places[one.get("nth", 0)]
            end = start + len(one["text"])
            hit = next((e for e in entities if e.start < end and start < e.end), None)
            true.append(
                Read(
                    (hit.start, hit.end) if hit else (start, end, "missed"),
                    one.get("side", ""),
                    re.sub(r"ly$", "", one.get("severity", "")),
                    one.get("negated", False),
                    one.get("uncertain", False),
                )
            )
        pairs.append((true, [_read(one, (one.start, one.end)) for one in entities]))
    return pairs


# --- the page ------------------------------------------------------------------------------------


def _table(tallies: dict[str, Tally]) -> list[str]:
    rows = ["| property | precision | recall |", "|---|---|---|"]
    rows += [tallies[name].row(name) for name in PROPERTIES]
    errors = [
        f"{name}: " + ", ".join(f"{kind} {count}" for kind, count in sorted(tally.errors.items()))
        for name, tally in tallies.items()
        if tally.errors.total()
    ]
    return [*rows, "", "Errors. " + ("; ".join(errors) + "." if errors else "None.")]


def main() -> None:
    """Judges, prints and writes the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", default="0,1,2", help="of the phantom corpora")
    parser.add_argument("--studies", type=int, default=1000, help="phantom studies of each seed")
    parser.add_argument("--truth", type=Path, help="JSON file of what was read in real sentences")
    parser.add_argument("--sample", type=int, help="print the real sentences of a seed and stop")
    parser.add_argument("--show", action="store_true", help="print phantom sentences with an error")
    parser.add_argument("--out", type=Path, help="write the page to this file")
    args = parser.parse_args()
    if args.sample is not None:
        sentences = [{"id": name, "sentence": text} for name, text in sample(args.sample)]
        print(json.dumps(sentences, indent=1))
        return
    lines = _page(args)
    print("\n".join(lines))
    if args.out:
        args.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _page(args: argparse.Namespace) -> list[str]:
    pairs, implied = [], Counter[str]()
    for seed in map(int, args.seeds.split(",")):
        more, unnamed = _phantom_pairs(seed, args.studies)
        pairs += more
        implied += unnamed
    if args.show:
        _show(pairs)
    lines = [
        "# Entities of reports",
        "",
        f"`python -m benchmarks.entities --seeds={args.seeds} --studies={args.studies}` judges "
        f"{len(pairs):,} sentences of phantom",
        "reports against their exact truth; 95 % intervals are Wilson's. A mention is a finding or",
        "device of the phantom's kinds, stated or denied; attributes are judged on mentions that",
        "are in both. The rules were written with the phantom's grammar at hand.",
        "",
        *_table(judge(pairs)),
        "",
        f'{implied["sentences"]:,} sentences ("The lungs are clear.") deny {implied["denials"]:,} '
        "findings without",
        "naming them; these denials are not part of the truth, but what is found in such sentences",
        "counts as an error.",
    ]
    if args.truth:
        lines += ["", *_real(json.loads(args.truth.read_text(encoding="utf-8")))]
    return lines


def _show(pairs: Sequence[tuple[Sequence[Read], Sequence[Read]]]) -> None:
    shown: Counter[str] = Counter()
    for truth, found in pairs:
        if sorted(map(str, truth)) != sorted(map(str, found)):
            shown[f"{truth}\n   found {found}"] += 1
    for text, count in shown.most_common(40):
        print(count, text)


def _real(truth: dict[str, Any]) -> list[str]:
    return [
        "## Real sentences",
        "",
        f"`python -m benchmarks.entities --truth=FILE` judges {COUNT} distinct sentences of",
        f"Open-i, drawn with seed {truth['seed']}. The author of the extractor read them after it",
        f"was frozen at commit {truth['frozen']}, and before any output on them was seen.",
        "A mention is any finding or device, stated or denied; truth and output agree if their",
        "characters overlap. The terms of `mmrl.data.perturb`, on which the extractor builds, were",
        "extended from Open-i reports, so these figures are not those of an unseen institution.",
        "",
        *_table(judge(_real_pairs(truth))),
        "",
        *truth.get("notes", ()),
    ]


if __name__ == "__main__":
    main()
