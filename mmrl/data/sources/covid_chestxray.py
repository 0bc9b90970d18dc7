"""COVID-19 image data collection: radiographs from publications, with clinical notes and findings.

Layout, as in https://github.com/ieee8023/covid-chestxray-dataset:

    metadata.csv
    images/{filename}      and volumes/ with CT, which is not read

Licence: each image has its own, in the column `license`, which may be blank. Access: open. Official
split: none. Paper: Cohen et al. 2020, arXiv:2006.11988.

Also handled:
  * Early snapshots have columns `Patientid`, ` url` and `notes`, lack `modality` and `folder`, and
    name a finding ("COVID-19") where later ones state its path ("Pneumonia/Viral/COVID-19").
  * Patients are numbers in most rows and words in others; both are text here.
  * CT slices among the radiographs are refused as not_radiograph. They are recognised by modality,
    or by the values Axial, Coronal and CT in the column `view`.
  * Where the finding is "todo", "Unknown" or blank, every label is -2.
  * File names end in .jpg, .JPG, .jpeg or .png; the unchanged name is the id.
  * The leakage unit is the patient, who may have several images, often with the same note.
"""

import math
from collections.abc import Iterator

from mmrl.data.reading.drafts import Draft, Facts, ImageFile
from mmrl.data.reading.listing import Listing
from mmrl.data.reading.rows import projection_name
from mmrl.types import Reject

_DAY = 86400  # seconds

# Findings by path, as in the last snapshot, and two of early snapshots.
_PATHS = (
    "No Finding",
    "Pneumonia",
    "Pneumonia/Viral",
    "Pneumonia/Viral/COVID-19",
    "Pneumonia/Viral/SARS",
    "Pneumonia/Viral/MERS-CoV",
    "Pneumonia/Viral/Varicella",
    "Pneumonia/Viral/Influenza",
    "Pneumonia/Viral/Influenza/H1N1",
    "Pneumonia/Viral/Herpes",
    "Pneumonia/Bacterial",
    "Pneumonia/Bacterial/Streptococcus",
    "Pneumonia/Bacterial/Klebsiella",
    "Pneumonia/Bacterial/Legionella",
    "Pneumonia/Bacterial/Mycoplasma",
    "Pneumonia/Bacterial/Chlamydophila",
    "Pneumonia/Bacterial/E.Coli",
    "Pneumonia/Bacterial/Nocardia",
    "Pneumonia/Bacterial/Staphylococcus",
    "Pneumonia/Bacterial/Staphylococcus/MRSA",
    "Pneumonia/Fungal",
    "Pneumonia/Fungal/Pneumocystis",
    "Pneumonia/Fungal/Aspergillosis",
    "Pneumonia/Lipoid",
    "Pneumonia/Aspiration",
    "Tuberculosis",
    "ARDS",
)
_PATHS_OF = {path.rpartition("/")[2].casefold(): (path,) for path in _PATHS} | {
    "mycoplasma bacterial pneumonia": (  # of early snapshots
        "Pneumonia",
        "Pneumonia/Bacterial",
        "Pneumonia/Bacterial/Mycoplasma",
    )
}
_NOT_STATED = frozenset({"", "todo", "unknown"})
_NOT_RADIOGRAPHS = frozenset({"CT", "AXIAL", "CORONAL", "SAGITTAL"})
_ATTRIBUTES = (
    *("sex", "age", "finding", "RT_PCR_positive", "survival", "intubated", "intubation_present"),
    *("went_icu", "in_icu", "needed_supplemental_O2", "extubated", "temperature"),
    *("pO2_saturation", "leukocyte_count", "neutrophil_count", "lymphocyte_count", "doi", "url"),
    "other_notes",
)
_OPTIONAL = (
    *_ATTRIBUTES,
    *("offset", "view", "modality", "folder", "license", "clinical_notes", "notes"),
)


class CovidChestxray(Listing):
    """One record per radiograph: its note as section "full", 27 labels, sex, age and course.

    The label of a named finding, and of all findings in its path, is 1. Labels of more specific
    findings are -2. Where a snapshot states no path, labels of more general findings are -2, too.
    All other labels are 0; "No Finding" makes all others 0.
    `time` counts from the earliest image of the patient that has an offset. Images of one patient
    with the same offset are one study. `attributes` hold the course of the disease and the source
    of the image, but no dates and places.

    Attributes:
      rejects: reasons are those of `Listing`, bad_row, not_radiograph (CT), and bad_label ("No
        Finding" together with a finding).

    Raises:
      InputError: no metadata.csv, or no columns patientid, finding and filename.
    """

    facts = Facts(
        title="COVID-19 image data collection",
        url="https://github.com/ieee8023/covid-chestxray-dataset",
        license="",  # of each image its own
        version="",  # it was extended daily, and no file states the snapshot
    )
    label_names = tuple(path.rpartition("/")[2] for path in _PATHS)

    def scan(self) -> Iterator[Draft | Reject]:
        """Yields the rows in their order."""
        table = self.find("metadata.csv", "metadata.csv.gz")
        rows = list(self.rows(table, ("patientid", "finding", "filename"), _OPTIONAL))
        first: dict[str, float] = {}
        for row in rows:
            if not isinstance(row, Reject):
                patient, offset = row[1]["patientid"], _number(row[1]["offset"])
                if offset is not None and not _is_other(row[1]):
                    first[patient] = min(offset, first.get(patient, offset))
        unknown: dict[str, int] = {}
        for row in rows:
            if isinstance(row, Reject):
                yield row
                continue
            number, cells = row
            named, others = _named(cells["finding"])
            if not cells["filename"]:
                place = f"{self.name()}:metadata.csv row {number}"
                yield Reject(place, "bad_row", "filename is blank")
            elif _is_other(cells):
                detail = f"modality {cells['modality']!r}, view {cells['view']!r}"
                yield Reject(f"{self.name()}:{cells['filename']}", "not_radiograph", detail)
            elif len(named) > 1 and "No Finding" in named:
                detail = f"finding {cells['finding']!r}"
                yield Reject(f"{self.name()}:{cells['filename']}", "bad_label", detail)
            else:
                for name in others:
                    unknown[name] = unknown.get(name, 0) + 1
                yield _draft(cells, first.get(cells["patientid"]))
        if unknown:
            listed = ", ".join(f"{name} ({count})" for name, count in sorted(unknown.items()))
            self.warnings.append(f"{self.name()}: findings without a label: {listed}")


def _draft(cells: dict[str, str], first: float | None) -> Draft:
    patient, offset = cells["patientid"], _number(cells["offset"])
    study, time = "", None
    if patient and offset is not None and first is not None:
        study, time = f"{patient}/{offset:g}", round((offset - first) * _DAY)
    projection = projection_name(cells["view"])
    note = cells["clinical_notes"] or cells["notes"]
    return Draft(
        cells["filename"],
        patient=patient,
        study=study,
        images=(
            ImageFile(
                f"{cells['folder'] or 'images'}/{cells['filename']}",
                projection,
                "metadata" if cells["view"] else "",
            ),
        ),
        sections={"full": note} if note else {},
        labels=_labels(cells["finding"]),
        time=time,
        attributes={name: cells[name] for name in _ATTRIBUTES if cells[name]},
        license=cells["license"],
    )


def _is_other(cells: dict[str, str]) -> bool:
    """Whether an image is no radiograph, by its modality or, in early snapshots, its view."""
    modality = cells["modality"].upper()
    other = modality not in ("", "X-RAY", "XRAY", "CXR", "CR", "DX")
    return other or cells["view"].upper() in _NOT_RADIOGRAPHS


def _named(finding: str) -> tuple[set[str], list[str]]:
    """The paths of the findings in a cell, and the names that have no label."""
    paths: set[str] = set()
    unknown = []
    for part in finding.replace("/", ",").split(","):
        name = part.strip()
        if name.casefold() in _PATHS_OF:
            paths.update(_PATHS_OF[name.casefold()])
        elif name.casefold() not in _NOT_STATED:
            unknown.append(name)
    return paths, unknown


def _labels(finding: str) -> tuple[int, ...]:
    """The label of each path: 1 if it is named, -2 if the cell leaves it open, else 0."""
    named, unknown = _named(finding)
    if not named:
        return (-2,) * len(_PATHS)
    if named == {"No Finding"}:
        return tuple(int(path == "No Finding") for path in _PATHS)
    labels = []
    for path in _PATHS:
        related = any(f"{other}/".startswith(f"{path}/") for other in named) or any(
            path.startswith(f"{other}/") and not _narrower(other, named) for other in named
        )
        open_ = related or (unknown and path != "No Finding")
        labels.append(1 if path in named else -2 if open_ else 0)
    return tuple(labels)


def _narrower(path: str, named: set[str]) -> bool:
    """Whether a cell also names a more specific finding than `path`."""
    return any(other.startswith(f"{path}/") for other in named)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
