"""The report to read before training on a prepared corpus: terminal, page, numbers.

    audit(["corpora/openi"], out=None, lengths=(128,), batch_sizes=(64, 256))

reads the index (and pixels of 24 samples and of images that look alike), prints tables, and writes
audit.html, audit.json and figures into corpora/openi-audit; a prepared corpus itself is never
written to.
"""

import collections
import json
import os
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from mmrl import files
from mmrl.data.overlap import fingerprints, leaks
from mmrl.data.reading.splits import SPLITS
from mmrl.data.sources.prepared import Prepared
from mmrl.data.text.reports import normalise
from mmrl.preparation import audit_figures, cards, repeats, survey
from mmrl.preparation.audit_tables import Table, percent, tables
from mmrl.preparation.cautions import list_cautions
from mmrl.preparation.deidentification import count_marks
from mmrl.preparation.holdings import Holdings
from mmrl.preparation.lengths import choose_tokenizer, measure_lengths
from mmrl.reporting import page
from mmrl.types import InputError

PAGE, NUMBERS = "audit.html", "audit.json"
LENGTHS = (64, 96, 128, 256)
BATCH_SIZES = (32, 64, 256, 1024)
_WIDTH = 100  # columns of a log file, and at most of a terminal


def audit(
    folders: Sequence[str],
    *,
    out: str | None = None,
    lengths: Sequence[int] = LENGTHS,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    tokenizer: str = "",
    against: Sequence[str] = (),
    sections: Sequence[str] = (),
    waivers: leaks.Waivers = types.MappingProxyType({}),
) -> None:
    """Audits prepared corpora: prints tables, writes a page, its figures and all numbers.

    Args:
      folders: that `mmrl.prepare` wrote.
      out: folder for audit.html and audit.json; None: beside the first corpus, with "-audit"
        behind its name.
      lengths: values of config.data.text_length to judge, in tokens.
      batch_sizes: global, to judge.
      tokenizer: a file that `Tokenizer.save` wrote; "": trained on the train split as training
        does by default.
      against: prepared corpora to evaluate on; each is compared with each of `folders` by the leak
        gate.
      sections: of which the composed text is made; see `Holdings`.
      waivers: overlaps with `against` that are accepted, see `leaks.parse_waivers`.

    Raises:
      LeakError: after everything is written, an overlap with `against` that is not waived. What
        else is found wrong with a corpus is for the reader to judge.
      InputError: a folder is no complete prepared corpus, or an option is out of its range.
    """
    _check(folders, lengths, batch_sizes)
    target = Path(out) if out else Path(os.path.abspath(folders[0]) + "-audit")
    held = [Holdings(folder, sections=sections) for folder in folders]
    others = [Holdings(folder) for folder in against]
    _check_target(target, (*folders, *against))
    target.mkdir(parents=True, exist_ok=True)
    console = Console(highlight=False)
    console.width = min(console.width, _WIDTH) if console.is_terminal else _WIDTH
    corpora: dict[str, Any] = {}
    shown: list[str] = []
    found: list[tuple[str, list[leaks.Overlap]]] = []
    for one in held:
        name = one.name if one.name not in corpora else os.path.abspath(one.folder)
        chosen = [cards.make(one, row) for row in cards.choose(one)]
        measured = _measure(one, lengths, batch_sizes, tokenizer, chosen)
        compared = {other.folder: _compare(one, other) for other in others}
        found += [
            (f"{folder} against training on {one.folder}", result)
            for folder, (result, _) in compared.items()
        ]
        measured["against"] = {
            folder: _plain(result, missing, waivers)
            for folder, (result, missing) in compared.items()
        }
        corpora[name] = _without_arrays(measured)
        figures = _draw(one, measured, lengths, target, len(corpora))
        listed = [*tables(corpora[name]), *_against(corpora[name]["against"])]
        prefix = f"{name}: " if len(held) > 1 else ""
        _print(console, name, corpora[name]["cautions"], listed)
        shown += _sections(prefix, corpora[name], listed, figures, chosen)
    numbers = json.dumps({"corpora": corpora}, indent=1, ensure_ascii=False) + "\n"
    files.write(target / NUMBERS, numbers)
    title = f"Audit of {', '.join(corpora)}"
    page.write_page(target / PAGE, title=title, sections=shown, style=cards.STYLE)
    console.print(Text(f"Written: {target / PAGE} and {target / NUMBERS}"))
    for where, overlaps in found:
        leaks.check(overlaps, waivers, where, setting="--waive=")


def _check_target(target: Path, folders: Sequence[str]) -> None:
    for folder in folders:
        if Path(folder).resolve() in (target.resolve(), *target.resolve().parents):
            raise InputError(
                f"out '{target}' lies in the prepared corpus '{folder}', which is never written"
                " to; expected another folder"
            )


def _compare(held: Holdings, other: Holdings) -> tuple[list[leaks.Overlap], list[str]]:
    """What the leak gate finds of the records of `other`, all splits, in the train split of `held`.

    All records of `held` where it has no train split. Then what could not be compared.
    """
    trained = ("train",) if "train" in held.splits else SPLITS
    training, evaluated = _fingerprint(held, trained), _fingerprint(other, SPLITS)
    return leaks.compare(training, evaluated), leaks.not_compared(training, evaluated)


def _plain(
    overlaps: Sequence[leaks.Overlap], missing: list[str], waivers: leaks.Waivers
) -> dict[str, Any]:
    """The same as JSON, with the reason of what is waived."""
    return {
        "overlaps": [
            {
                "kind": found.kind,
                "records": found.count,
                "of": found.total,
                "share": found.share,
                "examples": list(found.examples),
                "note": found.note,
                "allowed": found.allowed,
                "waived": waivers[found.kind][1] if found.kind in waivers else "",
            }
            for found in overlaps
        ],
        "not_compared": missing,
    }


def _fingerprint(held: Holdings, splits: Sequence[str]) -> fingerprints.Fingerprint:
    collector = fingerprints.Collector(held.name)
    texts: list[str] = []
    for split in splits:
        for record in Prepared(split=split, path=held.folder):
            collector.add(record)
        texts += [held.composed[row] for row in held.splits.get(split, ())]
    return collector.finish(texts)


def _check(folders: Sequence[str], lengths: Sequence[int], batch_sizes: Sequence[int]) -> None:
    if not folders:
        raise InputError("no folder to audit; expected one or more that mmrl.prepare wrote")
    for name, values, least in (("lengths", lengths, 3), ("batch sizes", batch_sizes, 2)):
        if not values or min(values) < least:
            raise InputError(f"{name} {list(values)}; expected one or more of at least {least}")


def _measure(
    held: Holdings,
    limits: Sequence[int],
    batch_sizes: Sequence[int],
    tokenizer: str,
    chosen: Sequence[cards.Card],
) -> dict[str, Any]:
    """All numbers of one corpus; those under names with "_" first are for figures only."""
    chosen_tokenizer, described = choose_tokenizer(held, tokenizer)
    texts, near = repeats.texts(held)
    bits = collections.Counter(f"{card.bits} bit" for card in chosen if card.bits)
    found: dict[str, Any] = {
        "folder": held.folder,
        "composed_of": list(held.sections),
        "origin": survey.origin(held),
        "counts": survey.counts(held),
        "sections": survey.sections(held),
        "images": survey.images(held) | {"stored_bits": dict(bits)},
        "attributes": survey.attributes(held),
        "labels": survey.labels(held),
        "tokenizer": described,
        "lengths": measure_lengths(held, chosen_tokenizer, limits),
        "repeats": {
            "images": repeats.images(held),
            "texts": texts,
            "sentences": repeats.sentences(held),
        },
        "false_negatives": repeats.false_negatives(held, near, batch_sizes),
        "deidentification": count_marks(held),
        "crossing": survey.crossing(held),
        "samples": [card.id for card in chosen],
    }
    found["cautions"] = list_cautions(found)
    return found


def _without_arrays(numbers: Any) -> Any:
    """Leaves out the arrays that only figures read, whose names begin with "_"."""
    if isinstance(numbers, dict):
        kept = {name: value for name, value in numbers.items() if not name.startswith("_")}
        return {name: _without_arrays(value) for name, value in kept.items()}
    return numbers


def _draw(
    held: Holdings, found: Mapping[str, Any], limits: Sequence[int], target: Path, number: int
) -> dict[str, tuple[str, Path, str]]:
    """Draws what there is to draw: topic -> title, file, caption."""
    drawn: dict[str, tuple[str, Path, str]] = {}
    text = found["lengths"]["text"]
    if len(text["_words"]):
        path = target / f"lengths-{number}.png"
        audit_figures.lengths(text["_words"], text["_tokens"], limits, path)
        drawn["Lengths"] = ("Lengths", path, "Records without text are left out.")
    if found["labels"]["all"]["labelled"]:
        path = target / f"labels-{number}.png"
        audit_figures.labels(found["labels"]["all"], path)
        drawn["Labels"] = ("Labels", path, "All splits together.")
    if found["images"]["projections"]:
        path = target / f"images-{number}.png"
        widths, heights = (np.asarray(held.flat(f"orig_{side}s")) for side in ("width", "height"))
        audit_figures.images(widths, heights, found["images"]["projections"], path)
        drawn["Images"] = ("Sizes and projections", path, "Before anything was made smaller.")
    return drawn


def _against(compared: Mapping[str, Any]) -> list[Table]:
    """What the leak gate found, one table for each corpus."""
    made = []
    for folder, result in compared.items():
        rows = [
            (
                found["kind"],
                f"{found['records']:,}",
                percent(found["share"]),
                "; ".join(
                    filter(None, (", ".join(found["examples"]), found["note"], found["waived"]))
                ),
            )
            for found in result["overlaps"]
        ] or [("none found", "", "", "")]
        missing = "; ".join(result["not_compared"])
        made.append(
            Table(
                "Leakage",
                f"Records of {folder} that the train split has seen",
                ("kind", "records", "share", "such as; note"),
                rows,
                (1, 2),
                f"Not compared: {missing}." if missing else "",
            )
        )
    return made


def _print(console: Console, name: str, warnings: Sequence[str], listed: Sequence[Table]) -> None:
    """Tables as plain text; what a report holds is never taken for markup or control codes."""
    console.print(Text(f"\n=== {normalise(name)} ==="))
    for line in warnings:
        console.print(Text(f"* {normalise(line)}"))
    for one in listed:
        drawn = RichTable(
            box=None,
            pad_edge=False,
            show_header=any(one.header),
            header_style="",
        )
        for number, head in enumerate(one.header):
            right = number in one.numbers
            drawn.add_column(
                Text(normalise(head)),
                justify="right" if right else "left",
                no_wrap=right,
                overflow="fold",
            )
        for row in one.rows:
            # Two blanks before a name make it part of the row above.
            drawn.add_row(
                *(Text(" " * (2 * cell.startswith("  ")) + normalise(cell)) for cell in row)
            )
        console.print(Text(f"\n{normalise(one.title)}"))  # as a title it would wrap to the table
        console.print(drawn)
        if one.note:
            console.print(Text(normalise(one.note)))


def _sections(
    prefix: str,
    found: Mapping[str, Any],
    listed: Sequence[Table],
    figures: Mapping[str, tuple[str, Path, str]],
    chosen: Sequence[cards.Card],
) -> list[str]:
    """The HTML sections of one corpus."""
    points = "".join(f"<li>{page.escaped(line)}</li>" for line in found["cautions"])
    made = [page.section(f"{prefix}What to look at first", f"<ul>{points}</ul>")]
    for topic in dict.fromkeys(one.topic for one in listed):
        parts: list[str] = []
        if topic in figures:
            parts.append(page.figure(*figures[topic]))
        for one in listed:
            if one.topic == topic:
                parts.append(f"<h3>{page.escaped(one.title)}</h3>")
                parts.append(page.table(one.header, one.rows, numbers=list(one.numbers)))
                parts.append(f'<p class="quiet">{page.escaped(one.note)}</p>' if one.note else "")
        made.append(page.section(f"{prefix}{topic}", *parts))
    note = (
        f"{len(chosen)} of {found['counts']['all']['records']:,} records, chosen by a digest of"
        " their ids: half from train, a quarter from each other split, those with boxes or masks"
        " first for a third of the places."
    )
    quiet = f'<p class="quiet">{page.escaped(note)}</p>'
    return [*made, page.section(f"{prefix}Samples", quiet, cards.as_html(chosen))]
