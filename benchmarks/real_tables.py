"""Tables of real pairs, with labels that the text or the index states.

The corpora lie under MMRL_REAL_DATA (default ../shared/data): 3,045 radiology figures with captions
(`roco_pairs`), 196 chest radiographs with clinical notes (`covid_cxr`), and 3,851 reports of chest
radiographs without images (`openi`).
"""

import csv
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from mmrl.data.overlap import duplicates
from mmrl.data.overlap.joins import connected_components
from mmrl.data.reading.splits import hash_unit
from mmrl.data.text import class_rules
from mmrl.types import InputError

FOLDS = 3
"""Parts into which the patients of covid_cxr are divided; each is held out once."""

_NEAR = 0.6  # shared 3-word shingles; below what the leak check calls nearly the same report

FOLDERS = {"roco": "roco_pairs", "covid": "covid_cxr", "openi": "openi"}
_INDEX = {"roco": "index.csv", "covid": "pairs.csv", "openi": "indiana_reports.csv"}


def is_lateral(view: str) -> bool | None:
    """Whether the view of a radiograph is lateral; None where the index does not tell."""
    return {"L": True, "PA": False, "AP": False, "AP Supine": False}.get(view)


def folder(corpus: str) -> Path:
    """The folder of a corpus.

    Raises:
      InputError: it is absent.
    """
    found = Path(os.environ.get("MMRL_REAL_DATA", "../shared/data")) / FOLDERS[corpus]
    if not (found / _INDEX[corpus]).is_file():
        raise InputError(
            f"no {_INDEX[corpus]} in {found}; set MMRL_REAL_DATA to the folder that holds "
            f"{FOLDERS[corpus]}"
        )
    return found


def read(corpus: str) -> list[dict[str, str]]:
    """The rows of a corpus with the columns that `configs/real.py` reads.

    A label is "1", "0", or "" where nothing is stated. `fold-N` is "val" for the rows that are held
    out from the run with seed N, "train" for all others.

    Raises:
      InputError: the corpus is absent.
    """
    with (folder(corpus) / _INDEX[corpus]).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return list({"roco": _figures, "covid": _radiographs, "openi": _reports}[corpus](rows))


def _figures(rows: Sequence[Mapping[str, str]]) -> Iterator[dict[str, str]]:
    for row in rows:
        named = class_rules.modality(row["report"])
        labels = {name: str(int(name == named)) if named else "" for name in class_rules.MODALITIES}
        yield {**{key: row[key] for key in ("image", "report", "article_id", "license")}, **labels}


def _radiographs(rows: Sequence[Mapping[str, str]]) -> Iterator[dict[str, str]]:
    for row, own in zip(rows, _parts(rows), strict=True):
        lateral = is_lateral(row["view"])
        yield {
            **{key: row[key] for key in ("image", "report", "patient_id", "view", "license")},
            "lateral": "" if lateral is None else str(int(lateral)),
            **{f"fold-{n}": "val" if n == own else "train" for n in range(FOLDS)},
        }


def _reports(rows: Sequence[Mapping[str, str]]) -> Iterator[dict[str, str]]:
    """Reports with findings and an impression, one of those that are nearly equal."""
    sections = ("findings", "impression")
    whole = [row for row in rows if all(row[name].strip() for name in sections)]
    kept: set[int] = set()
    for row, component in zip(whole, _alike([row["findings"] for row in whole]), strict=True):
        if component not in kept:
            kept.add(component)
            yield {key: row[key] for key in ("uid", *sections)}


def _alike(texts: Sequence[str], pairs: Iterable[tuple[int, int]] = ()) -> list[int]:
    """The component of each text; nearly equal texts, and `pairs` of positions, share one."""
    near = duplicates.near_texts(texts, threshold=_NEAR)
    joined = [*pairs, *zip(near.first.tolist(), near.second.tolist(), strict=True)]
    return connected_components(len(texts), joined).tolist()


def _parts(rows: Sequence[Mapping[str, str]]) -> list[int]:
    """The part of each row. Rows of one patient, or with nearly the same note, share a part."""
    first: dict[str, int] = {}
    pairs = [(first.setdefault(row["patient_id"], n), n) for n, row in enumerate(rows)]
    component = _alike([row["report"] for row in rows], pairs)
    order = sorted(set(component), key=lambda n: hash_unit(rows[n]["patient_id"]))
    part = {own: place % FOLDS for place, own in enumerate(order)}
    return [part[own] for own in component]


def write(corpus: str, path: Path) -> None:
    """Writes the rows of a corpus as a CSV table.

    Raises:
      InputError: the corpus is absent.
    """
    rows = read(corpus)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
