"""Tables of real image-text pairs, with labels that the text or the index states.

Both corpora lie under MMRL_REAL_DATA (default ../shared/data): 3,045 radiology figures with
captions (`roco_pairs`) and 196 chest radiographs with clinical notes (`covid_cxr`).
"""

import csv
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from mmrl.data.reading.splits import hash_unit
from mmrl.types import InputError

FOLDS = 3
"""Parts into which the patients of covid_cxr are divided; each is held out once."""

FOLDERS = {"roco": "roco_pairs", "covid": "covid_cxr"}
_INDEX = {"roco": "index.csv", "covid": "pairs.csv"}

_MODALITIES = {
    "CT": r"\b(?:CT|CTA|HRCT|MDCT|CBCT)\b|\bcompute(?:d|ri[sz]ed)\b[\w -]{0,20}tomogra",
    "MRI": r"\b(?:f?MRI|MRA|MRCP)\b|\bMR[- ](?:imag|scan|angio|chol|arthro|uro|entero|veno)|"
    r"\bmagnetic[- ]resonance\b",
    "X-ray": r"\bx[- ]?rays?\b|\bradiographs?\b|\broentgenogra|\bplain films?\b",
    "ultrasound": r"ultraso|sonogra|echocardiogra|\bdoppler\b",
}
_NUCLEAR = r"\b(?:PET|SPECT|positron)\b|scintigra"


def modality(caption: str) -> str:
    """The one modality that a caption names, a key of `configs.real.MODALITIES`; "" otherwise.

    Captions that name several, or nuclear imaging beside one, are left out.
    """
    named = [name for name, words in _MODALITIES.items() if re.search(words, caption, re.I)]
    return named[0] if len(named) == 1 and not re.search(_NUCLEAR, caption, re.I) else ""


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
    return list(_figures(rows) if corpus == "roco" else _radiographs(rows))


def _figures(rows: Sequence[Mapping[str, str]]) -> Iterator[dict[str, str]]:
    for row in rows:
        named = modality(row["report"])
        labels = {name: str(int(name == named)) if named else "" for name in _MODALITIES}
        yield {**{key: row[key] for key in ("image", "report", "article_id", "license")}, **labels}


def _radiographs(rows: Sequence[Mapping[str, str]]) -> Iterator[dict[str, str]]:
    patients = sorted({row["patient_id"] for row in rows}, key=hash_unit)
    part = {patient: place % FOLDS for place, patient in enumerate(patients)}
    for row in rows:
        lateral, own = is_lateral(row["view"]), part[row["patient_id"]]
        yield {
            **{key: row[key] for key in ("image", "report", "patient_id", "view", "license")},
            "lateral": "" if lateral is None else str(int(lateral)),
            **{f"fold-{n}": "val" if n == own else "train" for n in range(FOLDS)},
        }


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
