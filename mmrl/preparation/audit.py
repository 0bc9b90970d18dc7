"""Audits prepared corpora: prints tables and writes a page with figures, and all numbers.

    audit(["corpora/openi"], out=None, lengths=(128,), batch_sizes=(64, 256))

reads the index, the pixels of 24 samples and those of images that look alike. It prints tables, and
writes audit.html, audit.json and figures to corpora/openi-audit. The corpus itself is not changed.
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

from mmrl import files, sequences
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
_WIDTH = 100  # columns of a log file, and greatest number of columns in a terminal


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
    """Audits prepared corpora: prints tables, and writes a page with figures, and all numbers.

    Args:
      folders: folders that `mmrl.prepare` wrote.
      out: folder for audit.html and audit.json; None takes the name of the first corpus with
        "-audit" appended.
      lengths: lengths of a text tower, in tokens, whose truncation is computed.
      batch_sizes: global batch sizes whose false negatives are computed.
      tokenizer: a tokenizer.model or tokenizer.json; "" trains a tokenizer on the train split with
        the defaults of training.
      against: prepared corpora for evaluation. Each is checked for overlap with each of `folders`.
      sections: sections of the composed text, see `Holdings`.
      waivers: accepted overlaps with `against`, see `leaks.parse_waivers`.

    Raises:
      LeakError: after everything is written, for an overlap with `against` that is not waived.
      InputError: a folder is no complete prepared corpus, or an option is out of its range.
    """
    _check(folders, against, lengths, batch_sizes)
    target = Path(out) if out else Path(os.path.abspath(folders[0]) + "-audit")
    held = [Holdings(folder, sections=sections) for folder in folders]
    others = [Holdings(folder) for folder in against]
    _check_target(target, (*folders, *against))
    target.mkdir(parents=True, exist_ok=True)
    console = Console(highlight=False)
    console.width = min(console.width, _WIDTH) if console.is_terminal else _WIDTH
    corpora: dict[str, Any] = {}
    shown: list[page.Section] = []
    pictures = page.Pictures()
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
        shown += _sections(prefix, corpora[name], listed, figures, chosen, pictures)
    numbers = json.dumps({"corpora": corpora}, indent=1, ensure_ascii=False) + "\n"
    files.write(target / NUMBERS, numbers)
    title = f"Audit of {', '.join(corpora)}"
    page.write_page(target / PAGE, title=title, sections=shown)
    console.print(Text(f"Written: {target / PAGE} and {target / NUMBERS}"))
    for where, overlaps in found:
        leaks.check(overlaps, waivers, where, setting="--waive=")


def _check_target(target: Path, folders: Sequence[str]) -> None:
    for folder in folders:
        if Path(folder).resolve() in (target.resolve(), *target.resolve().parents):
            raise InputError(
                f"out '{target}' is in the prepared corpus '{folder}', which an audit does not"
                " change; expected another folder"
            )


def _compare(held: Holdings, other: Holdings) -> tuple[list[leaks.Overlap], list[str]]:
    """Overlaps of all splits of `other` with the train split of `held`, and what is not compared.

    Where `held` has no train split, all its records are compared.
    """
    trained = ("train",) if "train" in held.splits else SPLITS
    training, evaluated = _fingerprint(held, trained), _fingerprint(other, SPLITS)
    return leaks.compare(training, evaluated), leaks.not_compared(training, evaluated)


def _plain(
    overlaps: Sequence[leaks.Overlap], missing: list[str], waivers: leaks.Waivers
) -> dict[str, Any]:
    """The result of `_compare` as JSON values, with the reasons of waivers."""
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


def _check(
    folders: Sequence[str],
    against: Sequence[str],
    lengths: Sequence[int],
    batch_sizes: Sequence[int],
) -> None:
    sequences.of(against, "against", sequences.PATHS)
    if not sequences.of(folders, "folders", sequences.PATHS):
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
    """All numbers of one corpus. Names with a leading "_" are arrays that only figures read."""
    chosen_tokenizer, described = choose_tokenizer(held, tokenizer)
    texts, near = repeats.texts(held)
    bits = collections.Counter(f"{card.bits} bit" for card in chosen if card.bits)
    found: dict[str, Any] = {
        "folder": held.folder,
        "composed_of": list(held.sections),
        "origin": survey.origin(held),
        "counts": survey.counts(held),
        "sections": survey.sections(held),
        "provenance": survey.provenance(held),
        "images": survey.images(held) | {"stored_bits": dict(bits), "pixels": survey.pixels(held)},
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
    """Draws all figures for which there are data: topic -> title, file, caption."""
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
        drawn["Images"] = ("Sizes and projections", path, "Sizes as distributed by the owner.")
    return drawn


def _against(compared: Mapping[str, Any]) -> list[Table]:
    """The overlaps with each corpus of `against`, one table per corpus."""
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
                f"Records of {folder} that are also in the train split",
                ("kind", "records", "share", "such as; note"),
                rows,
                (1, 2),
                f"{missing[0].upper()}{missing[1:]}." if missing else "",
            )
        )
    return made


def _print(console: Console, name: str, warnings: Sequence[str], listed: Sequence[Table]) -> None:
    """Prints tables as plain text; markup and control codes in reports are not interpreted."""
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
            # Two spaces before a name mark a detail of the row above.
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
    pictures: page.Pictures,
) -> list[page.Section]:
    """The sections of the page for one corpus."""
    points = [page.Points(found["cautions"])] if found["cautions"] else []
    made = [page.Section(f"{prefix}What to look at first", points)]
    for topic in dict.fromkeys(one.topic for one in listed):
        parts: list[page.Part] = []
        if topic in figures:
            parts += pictures.part(*figures[topic])
        for one in listed:
            if one.topic == topic:
                shown = page.table(one.header, one.rows, numbers=list(one.numbers))
                parts += [page.Heading(one.title), *shown]
                parts += [page.Note(one.note)] if one.note else []
        made.append(page.Section(f"{prefix}{topic}", parts))
    note = (
        f"{len(chosen)} of {found['counts']['all']['records']:,} records, chosen by a hash of their"
        " ids: half of train, a quarter of each other split; up to a third have boxes or masks."
    )
    samples = [page.Note(note), *cards.as_parts(chosen)]
    return [*made, page.Section(f"{prefix}Samples", samples)]
