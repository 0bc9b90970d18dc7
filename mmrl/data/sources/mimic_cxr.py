"""MIMIC-CXR: the JPEG images and tables of MIMIC-CXR-JPG with the reports of MIMIC-CXR.

`path` is the folder of MIMIC-CXR-JPG 2.0.0 or 2.1.0. It holds
`files/p10/p10000032/s50414267/{dicom}.jpg` and the tables
`mimic-cxr-2.0.0-{metadata,split,chexpert,negbio}.csv.gz`, which may be unpacked. Reports are part
of MIMIC-CXR: `mimic-cxr-reports.zip`, or the folder to which it unpacks.

Licence: PhysioNet Credentialed Health Data License 1.5.0; access is credentialed and redistribution
is not permitted. Paper: Johnson et al., Scientific Data 2019, doi:10.1038/s41597-019-0322-0.
Official split by patient: train, validate (val), test.

There is one record per study with all its images: PA first, then AP, unknown, others, lateral. Also
handled:
  * `mmrl.data.text.mimic_reports` divides reports into sections. It keeps parts that the published
    parser loses: a header in the first line or without indentation, an impression right below
    "FINDINGS:", headers with digits, addenda, and sections that occur twice.
  * ViewPosition may be blank: then ViewCodeSequence_CodeMeaning states the projection, or it is
    UNKNOWN.
  * Numbers of studies are not in temporal order. `time` and `prior_id` follow StudyDate and
    StudyTime, which is a number without leading zeros (81530.5 is 08:15:30). Of studies with the
    same time, neither is the prior of the other. A prior may be a refused study.
  * The label tables have another order than CheXpert's. Studies that they lack have no labels.
    Blank is -2, even if all fourteen labels are blank.
  * The radiologist's labels of the test set (2.1.0) refer to studies. They call Lung Opacity
    "Airspace Opacity", and, on the page of the corpus, No Finding "No Findings".
  * The owner has inverted pixels where necessary and equalised histograms.
"""

import dataclasses
import datetime
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from mmrl.data.reading.chexpert_labels import LABELS, read_labels
from mmrl.data.reading.drafts import Draft, Facts, ImageFile
from mmrl.data.reading.listing import Listing
from mmrl.data.reading.paths import OutsideError, Root
from mmrl.data.text.mimic_reports import parse_report
from mmrl.types import InputError, Reject

LABELLERS = ("chexpert", "negbio", "none")
_SPLITS = {"train": "train", "validate": "val", "test": "test"}
_TABLE = "mimic-cxr-2.0.0-{}.csv"
_TEST_LABELS = "mimic-cxr-2.1.0-test-set-labeled.csv"
_OTHER_NAMES = {"Airspace Opacity": "Lung Opacity", "No Findings": "No Finding"}  # in that table
_METADATA = ("dicom_id", "subject_id", "study_id", "ViewPosition", "StudyDate", "StudyTime")
_CODE, _PROCEDURE = "ViewCodeSequence_CodeMeaning", "PerformedProcedureStepDescription"
_MAX_REPORT = 2**20  # bytes; the longest have a few thousand
_UNREADABLE = (
    UnicodeDecodeError, zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError,
    RuntimeError,  # raised by the zip module for an encrypted member
)  # fmt: skip
_ORDER = ("PA", "AP", "UNKNOWN", "OTHER", "LATERAL")


@dataclasses.dataclass
class _Study:
    subject: str
    images: list[ImageFile] = dataclasses.field(default_factory=list)
    moment: datetime.datetime | None = None
    procedure: str = ""
    split: str = ""
    time: int | None = None
    prior: str = ""


class MimicCxr(Listing):
    """Records of MIMIC-CXR; a Source.

    Args:
      labels: chexpert or negbio, the labeller whose table is read, or none.
      radiologist_test: use a radiologist's labels for the studies that have them in version 2.1.0.
        attributes["labels"] of a record states the labeller.
      reports: folder or zip file of the reports, absolute or relative to `path`; "" looks for
        mimic-cxr-reports.zip, mimic-cxr-reports/ and text files beside the images.
      others: see `Listing`.

    Attributes:
      rejects: reasons are those of `Listing`, bad_row, and for whole studies bad_label, bad_split
        (its images are in several splits), missing_report and unreadable_report. If there are no
        reports at all, records have labels only, and a warning says so.

    Raises:
      InputError: an unknown labeller, a missing table, no reports at the place `reports`.
    """

    facts = Facts(
        title="MIMIC-CXR-JPG and MIMIC-CXR",
        url="https://physionet.org/content/mimic-cxr-jpg/",
        license="PhysioNet Credentialed Health Data License 1.5.0",
        access="credentialed",
        expected={
            "records": 227_835,
            "images": 377_110,
            "patients": 65_379,
            "images/train": 368_960,
            "images/val": 2_991,
            "images/test": 5_159,
        },
    )
    label_names = LABELS

    def __init__(
        self,
        *,
        labels: str = "chexpert",
        radiologist_test: bool = False,
        reports: str = "",
        **others: Any,
    ) -> None:
        if labels not in LABELLERS:
            raise InputError(f"mimic_cxr: labels is {labels!r}; choices: {', '.join(LABELLERS)}")
        self._labels, self._radiologist, self._reports = labels, radiologist_test, reports
        super().__init__(**others)

    def scan(self) -> Iterator[Draft | Reject]:
        """Yields the studies in the order of patients and numbers."""
        later = os.path.exists(os.path.join(self.path, _TEST_LABELS))  # came with 2.1.0
        self.facts = dataclasses.replace(self.facts, version="2.1.0" if later else "2.0.0")
        studies: dict[str, _Study] = {}
        refused: dict[str, Reject] = {}
        yield from self._read_images(studies, refused)
        yield from self._read_splits(studies, refused)
        labels: dict[str, tuple[str, tuple[int, ...]]] = {}
        yield from self._read_labels(labels, refused)
        _put_in_time(studies, self.name())
        reports = _Reports(self.path, self._reports, self.root)
        has_text = any(reports.has(study.subject, name) for name, study in studies.items())
        if not has_text:
            self.warnings.append(
                "mimic_cxr: no reports found, so records have labels only; set reports to"
                " mimic-cxr-reports.zip of MIMIC-CXR or the folder it unpacks to"
            )
        for name, study in sorted(studies.items(), key=lambda s: (int(s[1].subject), int(s[0]))):
            if name in refused:
                yield refused[name]
                continue
            try:
                text = reports.read(study.subject, name) if has_text else ""
            except _ReportError as error:
                yield Reject(f"mimic_cxr:{name}", *error.args)
                continue
            whose, values = labels.get(name, ("", ()))
            attributes = {"procedure": study.procedure, "labels": whose}
            yield Draft(
                name,
                patient=study.subject,
                study=name,
                split=study.split,
                images=tuple(
                    sorted(study.images, key=lambda image: _ORDER.index(image.projection))
                ),
                sections=parse_report(text),
                labels=values,
                prior_id=study.prior,
                time=study.time,
                attributes={key: value for key, value in attributes.items() if value},
            )

    def _read_images(
        self, studies: dict[str, _Study], refused: dict[str, Reject]
    ) -> Iterator[Reject]:
        table = self._table(_TABLE.format("metadata"))
        for row in self.rows(table, _METADATA, (_CODE, _PROCEDURE)):
            if isinstance(row, Reject):
                yield row
                continue
            number, cell = row
            subject, name, image = cell["subject_id"], cell["study_id"], cell["dicom_id"]
            if not (subject.isdecimal() and name.isdecimal() and image):
                detail = f"subject {subject!r}, study {name!r}, image {image!r}"
                yield Reject(f"mimic_cxr:metadata row {number}", "bad_row", detail)
                continue
            study = studies.setdefault(name, _Study(subject, procedure=cell[_PROCEDURE]))
            if study.subject != subject:
                detail = f"images of patients {study.subject} and {subject}"
                refused[name] = Reject(f"mimic_cxr:{name}", "bad_row", detail)
            projection = _projection(cell["ViewPosition"], cell[_CODE])
            path = f"files/p{subject[:2]}/p{subject}/s{name}/{image}.jpg"
            source = "" if projection == "UNKNOWN" else "metadata"
            study.images.append(ImageFile(path, projection, source))
            moment = _moment(cell["StudyDate"], cell["StudyTime"])
            if moment and (study.moment is None or moment < study.moment):
                study.moment = moment

    def _read_splits(
        self, studies: Mapping[str, _Study], refused: dict[str, Reject]
    ) -> Iterator[Reject]:
        for row in self.rows(self._table(_TABLE.format("split")), ("study_id", "split")):
            if isinstance(row, Reject):
                yield row
                continue
            name, given = row[1]["study_id"], row[1]["split"]
            if name not in studies:
                continue  # the folder holds a part of the corpus
            study, split = studies[name], _SPLITS.get(given, "")
            if not split or (study.split and study.split != split):
                detail = f"split {given!r} of an image, others are in {study.split or 'none'}"
                refused[name] = Reject(f"mimic_cxr:{name}", "bad_split", detail)
            study.split = split
        without = sum(not study.split for name, study in studies.items() if name not in refused)
        if without:
            self.warnings.append(f"mimic_cxr: {without:,} studies are in no official split")

    def _read_labels(
        self, labels: dict[str, tuple[str, tuple[int, ...]]], refused: dict[str, Reject]
    ) -> Iterator[Reject]:
        tables: list[tuple[str, str, tuple[str, ...], tuple[str, ...]]] = []
        if self._labels != "none":
            tables.append((self._labels, self._table(_TABLE.format(self._labels)), LABELS, ()))
        if self._radiologist:
            others = (*LABELS, *_OTHER_NAMES)
            tables.append(("radiologist", self._table(_TEST_LABELS), (), others))
        for whose, table, required, optional in tables:
            for row in self.rows(table, ("study_id", *required), optional):
                if isinstance(row, Reject):
                    yield row
                    continue
                number, cell = row
                for other, label in _OTHER_NAMES.items():
                    cell[label] = cell[label] or cell.get(other, "")
                try:
                    labels[cell["study_id"]] = whose, read_labels(cell)
                except ValueError as error:
                    name = cell["study_id"]
                    detail = f"{os.path.basename(table)} row {number}: {error}"
                    refused[name] = Reject(f"mimic_cxr:{name}", "bad_label", detail)

    def _table(self, name: str) -> str:
        return self.find(f"{name}.gz", name)


def _projection(position: str, meaning: str) -> str:
    """The projection of an image by its ViewPosition, else by the meaning of its view code."""
    words = re.findall("[A-Z]+", position.upper())
    if words:
        if "LATERAL" in words or "LL" in words or "RL" in words:
            return "LATERAL"
        # "PA LLD" and "AP AXIAL" are no upright or supine frontal projections.
        return words[0] if words in (["PA"], ["AP"]) else "OTHER"
    folded = " ".join(re.findall("[a-z]+", meaning.lower()))
    if "lateral" in folded:
        return "LATERAL"
    return {"postero anterior": "PA", "antero posterior": "AP", "": "UNKNOWN"}.get(folded, "OTHER")


def _moment(date: str, time: str) -> datetime.datetime | None:
    """Date 21500102 and time 81530.5 as 2150-01-02 08:15:30; None where either is malformed."""
    clock = time.partition(".")[0].zfill(6)
    try:
        return datetime.datetime.strptime(f"{int(float(date)):08d} {clock}", "%Y%m%d %H%M%S")
    except (ValueError, OverflowError):
        return None


def _put_in_time(studies: Mapping[str, _Study], source: str) -> None:
    """Sets the time since the patient's first study, and the previous study, of each study."""
    patients: dict[str, list[tuple[datetime.datetime, int, str]]] = {}
    for name, study in studies.items():
        if study.moment is not None:
            patients.setdefault(study.subject, []).append((study.moment, int(name), name))
    for visits in patients.values():
        visits.sort()
        earlier, latest = "", visits[0]
        for visit in visits:
            if visit[0] > latest[0]:
                earlier = latest[2]
            latest = visit
            study = studies[visit[2]]
            study.time = int((visit[0] - visits[0][0]).total_seconds())
            study.prior = f"{source}:{earlier}" if earlier else ""


class _ReportError(Exception):
    """A report is missing or cannot be read; the arguments are reason and detail of a Reject."""


class _Reports:
    """The text files of MIMIC-CXR, in folders or in the zip file that holds them."""

    def __init__(self, path: str, given: str, root: Callable[[str], Root]) -> None:
        names = [given] if given else ["mimic-cxr-reports.zip", "mimic-cxr-reports", ""]
        places = [os.path.join(path, name) for name in names]
        if given and not os.path.exists(places[0]):
            raise InputError(f"mimic_cxr: no reports at '{places[0]}'; expected a folder or a zip")
        self._folders = [root(place) for place in places if os.path.isdir(place)]
        self._members: dict[str, str] = {}
        self._zip = None
        for place in filter(os.path.isfile, places):
            try:
                self._zip = zipfile.ZipFile(place)
            except (zipfile.BadZipFile, OSError) as error:
                raise InputError(f"{place}: not a zip file: {error}") from error
            for name in self._zip.namelist():
                # Members are found by the end of their names, and are not unpacked to disk.
                if found := re.search(r"(?:^|/)(files/p\d\d/p\d+/s\d+\.txt)$", name):
                    self._members.setdefault(found[1], name)

    def has(self, subject: str, study: str) -> bool:
        """Whether there is a report of a study; both are digits."""
        return self._member(subject, study) in self._members or bool(self._file(subject, study))

    def read(self, subject: str, study: str) -> str:
        """The text of the report of a study; _ReportError when there is none."""
        name = self._member(subject, study)
        try:
            if self._zip and name in self._members:
                info = self._zip.getinfo(self._members[name])
                size, data = info.file_size, b""
                if size <= _MAX_REPORT:
                    data = self._zip.read(info)
            elif place := self._file(subject, study):
                folder, relative = place
                folder.check(relative)
                where = os.path.join(folder.path, relative)
                size = os.path.getsize(where)
                with open(where, "rb") as file:
                    data = file.read(_MAX_REPORT)
            else:
                raise _ReportError("missing_report", f"no file '{name}'")
            if size > _MAX_REPORT:
                raise _ReportError("unreadable_report", f"'{name}' has {size} bytes")
            return data.decode("utf-8-sig")
        except OutsideError as error:
            raise _ReportError("unsafe_path", f"'{name}' {error}") from error
        except _UNREADABLE as error:
            raise _ReportError("unreadable_report", f"'{name}': {error}") from error

    @staticmethod
    def _member(subject: str, study: str) -> str:
        return f"files/p{subject[:2]}/p{subject}/s{study}.txt"

    def _file(self, subject: str, study: str) -> tuple[Root, str] | None:
        """Folder and relative path of the report of a study; None when there is no such file."""
        inner = self._member(subject, study)
        for folder in self._folders:
            for relative in (inner, inner.removeprefix("files/")):
                if os.path.isfile(os.path.join(folder.path, relative)):
                    return folder, relative
        return None
