"""Any CSV, TSV, JSONL or Parquet table with one image path and a report or labels per row.

Given `pairs.csv` and, in the same folder, `images/`

    image,report,patient_id,view
    images/0.jpg,No focal consolidation.,17,PA
    images/1.jpg,Effusion on the left.,18,AP

`Table(split="train", path="pairs.csv", patient_column="patient_id", projection_column="view")`
yields records such as id "table:1", patient "17", sections {"report": "No focal consolidation."}.
"""

import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from mmrl.data.image import readers
from mmrl.data.reading import tabular
from mmrl.data.reading.paths import is_inside
from mmrl.data.reading.rows import Columns, Row, Rows, check_verify, find_faults, section_columns
from mmrl.data.reading.splits import Fractions
from mmrl.types import InputError, Record, Reject


class Table:
    """Records of one split of a table; a Source.

    Rows are numbered from 1; the header and blank lines are not counted. Without `id_column` the id
    of a row is its number. Without `study_column` each row is a study, "{patient}/{id}". Without
    `patient_column` each row is a patient, and a warning says so. Cells are text: numbers are
    converted to text, null and NaN are blank. The text of sections is not changed; blank sections
    are left out.

    Args:
      split: train, val or test.
      path: the table. Its suffix states the format: .csv or .tsv (both quoted as in RFC 4180),
        .jsonl, each also with .gz, or .parquet. Text must be UTF-8, with or without byte-order
        mark.
      root: folder to which image paths are relative; the folder of the table by default.
      image_column: path of the image, relative to `root`: JPEG, PNG, or DICOM (.dcm, .dicom).
        DICOM images whose header says that text is burned into the pixels are rejected.
      report_columns: section name -> column, or columns whose names are also the section names; ()
        for a table of labels or vectors alone.
      patient_column: the leakage unit. No patient is in two splits.
      study_column: the study of a row; without it each row is a study.
      projection_column: projection of the image, such as PA or lateral.
      id_column: the id of a row; without it the number of the row.
      license_column: licence of the record.
      split_column: train, val (valid, validate, validation, dev) or test. Without it patients are
        divided by hash.
      label_columns: columns of 1, 0, -1, and blank or -2.
      vector_columns: columns of numbers that make up the vector of a record, such as an expression
        profile. A row whose cells are all blank has no vector.
      fractions: shares of train, val and test without `split_column`, in this order or by name,
        see `split_of`.
      split_salt: name of that division; another name gives another division.
      verify: "decode" decodes every image of the split once; "header" reads every file and finds
        those cut short; "exists" only checks that the file is there.
      num_threads: threads that verify images.

    Attributes:
      rejects: the refused rows of the split. Reasons are missing_image, unreadable_image,
        empty_report, bad_vector (a cell that is not a number, or some blank cells), and bad_row
        (fields that do not fit the header, a blank id or patient).
      total: number of rows of the split before rejection.
      warnings: lines that a user should read before trusting the split.

    Raises:
      InputError: the table cannot be used, or an image path leads outside `root`. A table with such
        a path is refused as a whole, since it should not be trusted.
    """

    def __init__(
        self,
        *,
        split: str,
        path: str,
        root: str | None = None,
        image_column: str = "image",
        report_columns: Mapping[str, str] | Sequence[str] | str = ("report",),
        patient_column: str | None = None,
        study_column: str | None = None,
        projection_column: str | None = None,
        id_column: str | None = None,
        split_column: str | None = None,
        label_columns: Sequence[str] | str = (),
        vector_columns: Sequence[str] | str = (),
        license_column: str | None = None,
        fractions: Fractions = (0.8, 0.1, 0.1),
        split_salt: str = "",
        verify: str = "decode",
        num_threads: int = 2,
    ) -> None:
        labels = (label_columns,) if isinstance(label_columns, str) else tuple(label_columns)
        vector = (vector_columns,) if isinstance(vector_columns, str) else tuple(vector_columns)
        columns = Columns(
            image=image_column,
            reports=section_columns(report_columns, (*labels, *vector)),
            patient=patient_column,
            study=study_column,
            projection=projection_column,
            id=id_column,
            split=split_column,
            license=license_column,
            labels=labels,
            vector=vector,
        )
        check_verify(verify, num_threads)
        present = tabular.columns(path)
        self._path = path
        self._root = os.path.dirname(path) or "." if root is None else root
        if not os.path.isdir(self._root):
            raise InputError(f"{path}: root '{self._root}' is not a folder")
        columns.check(present, path)
        self._rows = Rows(
            self._confined(tabular.rows(path, columns.names()), image_column),
            columns,
            source="table",
            where=path,
            split=split,
            fractions=fractions,
            salt=split_salt,
        )
        fault = functools.partial(readers.fault, self._root, verify=verify)
        self._rows.drop(find_faults(fault, self._rows.column("image"), num_threads))
        self.warnings = patient_warnings("patient_column", patient_column)
        self.rejects: list[Reject] = self._rows.rejects
        self.total: int = self._rows.total

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Record:
        return self._rows.record(index, self._loader)

    def _loader(self, relative: str) -> Callable[[], np.ndarray]:
        return readers.loader(self._root, relative)

    def _confined(self, rows: Iterable[Row], column: str) -> Iterator[Row]:
        """Yields the rows; InputError for an image path that leads outside the root."""
        realpath = functools.cache(os.path.realpath)
        for number, cells, problem in rows:
            relative = cells.get(column, "").strip()
            if "\0" in relative:
                problem = problem or "the image path holds a null character"
            elif not is_inside(self._root, relative, realpath):
                raise InputError(
                    f"{self._path} row {number}: image path '{relative}' leads outside root"
                    f" '{self._root}'; expected a path inside it"
                )
            yield number, cells, problem


def patient_warnings(option: str, given: str | None) -> list[str]:
    """A warning, in a list, when there is no column of patients."""
    if given is not None:
        return []
    return [
        f"{option} is not set: every row counts as its own patient, so rows of one person may"
        " fall into different splits"
    ]
