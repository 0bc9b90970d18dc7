"""Any CSV, TSV, JSONL or Parquet table with one image path and a report or labels per row.

Given `pairs.csv` and, in the same folder, `images/`

    image,report,patient_id,view
    images/0.jpg,No focal consolidation.,17,PA
    images/1.jpg,Effusion on the left.,18,AP

`Table(split="train", path="pairs.csv", patient_column="patient_id", projection_column="view")`
yields records such as id "table:1", patient "17", sections {"report": "No focal consolidation."}.
Masks are files that a column names; boxes are rows of a second table, `image,label,x,y,w,h`.
"""

import dataclasses
import functools
import operator
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from mmrl import build
from mmrl.data.image import readers
from mmrl.data.image.channels import check as check_channels
from mmrl.data.reading import bags, tabular
from mmrl.data.reading.boxes import Boxes, check_columns
from mmrl.data.reading.paths import OutsideError, Root
from mmrl.data.reading.rows import (
    Columns,
    Fault,
    Row,
    Rows,
    check_verify,
    explained,
    find_faults,
    named_columns,
    section_columns,
)
from mmrl.data.reading.splits import Fractions
from mmrl.data.text import blanks, class_rules
from mmrl.types import InputError, Record, Reject


class Table:
    """Records of one split of a table; a Source.

    Rows are numbered from 1; the header and blank lines are not counted, and rows without content
    are left out. Without `id_column` the id of a row is its number. Without `study_column` each row
    is a study, "{patient}/{id}". Without `patient_column` each row is a patient, and a warning says
    so. Cells are text: numbers are converted to text, null and NaN are blank. Blank is also, in
    every column, a cell without characters and one of the texts of `blank`: an id or patient "NA"
    is none, and its row is refused. The text of sections is not changed; sections that are blank,
    or have no letter or digit beside headings and marks of de-identification ("FINDINGS: ___"), are
    left out.

    A table is read as other programs write it. What is decided for the user is a warning:

      * Content that is certainly Parquet, gzip or JSONL is read as such, whatever the suffix. A
        JSON array, a workbook and an HTML page are refused in these words.
      * Blanks around column names are not part of them; if they follow every delimiter of the
        header, they are not part of cells either. Of columns without a name, the last ones may be
        blank, as Excel writes them; a row with content there is refused. Others are not read.
      * In paths of images and masks, backslashes are separators where no file has such a name, and
        letters are equal in all normal forms of Unicode. Paths may be absolute below `root`.
        Otherwise names must agree in every letter; what is near to a missing file is named.

    Args:
      split: train, val or test.
      path: the table. Its suffix states the format: .csv or .tsv (both quoted as in RFC 4180),
        .jsonl, each also with .gz, or .parquet.
      encoding: encoding of the text, such as cp1252. None: as the byte-order mark says (UTF-8,
        UTF-16 or UTF-32), and UTF-8 without one.
      delimiter: the character between cells. None: that of a first line "sep=;"; the comma of .csv
        and the tab of .tsv; or, where the header has none, the only one of , ; tab | that it has.
      blank: the texts that stand for a blank cell, compared in lower case; by default those that
        pandas reads as missing. A report that is one of the default texts has no content in any
        case.
      root: folder to which image paths are relative; the folder of the table by default.
      follow_links: folders outside `root` into which symbolic links may lead, such as the folder
        `blobs` of a Hugging Face cache.
      image_column: path of the image, relative to `root`: JPEG, PNG, or DICOM (.dcm, .dicom).
        DICOM images whose header says that text is burned into the pixels are rejected. "": the
        table has texts alone.
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
      class_column: column of classes that exclude each other. Every class of the table, also of the
        other splits, is a label: 1 for that of the row, 0 for all others. A row whose cell is blank
        states none of them.
      class_rule: rule that reads the class in the text of the report instead, such as modality@1,
        see `mmrl/data/text/class_rules.py`.
      labels_column: column of labels, several in a cell, such as "Effusion|Mass". Those in the cell
        are 1, all others of the table 0; a row whose cell is blank states none of them.
      labels_separator: what divides the labels of such a cell.
      attribute_columns: attribute -> column, or columns whose names are also the attributes: facts
        that identify nobody. Results by subgroup read "sex", "age" and "source". Blank cells are
        left out.
      mask_column: path of the mask of an image, relative to `mask_root`: a PNG of the size of the
        image, not 0 inside. A row whose cell is blank has no mask.
      mask_root: folder to which paths of masks are relative; `root` by default.
      mask_label: what masks show.
      mask_label_column: what the mask of a row shows, instead; `mask_label` where it is blank.
      boxes: a table, or several, with a box per row: the image as in `image_column`, a label, the
        upper left corner x, y and the size w, h in pixels of the image. Rows without numbers are
        no boxes. Boxes that leave the image by at most a pixel are cut off there.
      box_columns: names of its columns where they differ: image, label, x, y, w, h -> column.
      leave_out: column -> cells; the rows with one of them are left out, and a warning counts them.
      channels: 1 reads images as grey, 3 in red, green and blue; see config.data.colour.
      name: name of the corpus: the prefix of ids, and `Record.source`. Only records of corpora of
        equal name are compared by patient in the leak check. The name of a source, such as nih14,
        states that the rows come from that corpus and have its patient ids.
      notes: lines to add to the warnings, such as known flaws of the corpus.
      vector_columns: columns of numbers that make up the vector of a record, such as an expression
        profile. A row whose cells are all blank has no vector.
      bag_column: path of a file with a bag of features, relative to `bag_root`: .npy, .npz,
        .safetensors or .h5 with an array [S, F] of float16 or float32, see
        `mmrl/data/reading/bags.py`. A row whose cell is blank has no bag.
      bag_root: folder to which paths of bags are relative; `root` by default.
      time_column: when the study was: seconds, or a date such as 2019-04-30 or 2019-04-30T08:15.
        The latest earlier study of a patient is the prior of a study. Blank: not known.
      language: ISO 639-1 code of the reports. Rules for English words are off for all but "en".
      fractions: shares of train, val and test without `split_column`, in this order or by name,
        see `split_of`.
      split_salt: name of that division; another name gives another division.
      verify: "decode" decodes every image of the split once, and reads every bag; "header" reads
        every image and finds those cut short; "exists" only checks that the file is there.
      num_threads: threads that verify images.

    Attributes:
      rejects: the refused rows of the split. Reasons are missing_image, unreadable_image,
        empty_report, bad_vector (a cell that is not a number, or some blank cells), missing_mask,
        bad_mask (it cannot be read, or has not the size of its image), missing_bag, bad_bag (it
        cannot be read, or is no array [S, F]), bad_time, and bad_row (fields that do not fit the
        header, a blank id or patient). Refused boxes, whose records are kept, are
        bad_box (not four numbers, no area, no label, or outside of the image) and unknown_image.
      total: number of rows of the split before rejection.
      warnings: lines that a user should read before trusting the split.

    Raises:
      InputError: the table cannot be used, or the path of an image or mask leads outside its root,
        as written or by a symbolic link. A table with such a path is refused as a whole, since it
        should not be trusted.
    """

    def __init__(
        self,
        *,
        split: str,
        path: str,
        encoding: str | None = None,
        delimiter: str | None = None,
        blank: Sequence[str] | str = blanks.BLANK,
        root: str | None = None,
        follow_links: Sequence[str] | str = (),
        image_column: str = "image",
        report_columns: Mapping[str, str] | Sequence[str] | str = ("report",),
        patient_column: str | None = None,
        study_column: str | None = None,
        projection_column: str | None = None,
        id_column: str | None = None,
        split_column: str | None = None,
        label_columns: Sequence[str] | str = (),
        vector_columns: Sequence[str] | str = (),
        bag_column: str | None = None,
        bag_root: str | None = None,
        time_column: str | None = None,
        class_column: str | None = None,
        class_rule: str | None = None,
        labels_column: str | None = None,
        labels_separator: str = "|",
        attribute_columns: Mapping[str, str] | Sequence[str] | str = (),
        mask_column: str | None = None,
        mask_root: str | None = None,
        mask_label: str = "mask",
        mask_label_column: str | None = None,
        boxes: Sequence[str] | str = (),
        box_columns: Mapping[str, str] | None = None,
        leave_out: Mapping[str, Sequence[str] | str] | None = None,
        license_column: str | None = None,
        language: str = "en",
        fractions: Fractions = (0.8, 0.1, 0.1),
        split_salt: str = "",
        verify: str = "decode",
        num_threads: int = 2,
        channels: int = 1,
        name: str = "table",
        notes: Sequence[str] | str = (),
    ) -> None:
        labels, vector = _several(label_columns), _several(vector_columns)
        others = (class_column, labels_column, mask_column, bag_column)
        stated = (*labels, *vector, *filter(None, others))
        reports = section_columns(report_columns, stated)
        _check_rule(class_rule, class_column, reports)
        columns = Columns(
            image=image_column or None,
            reports=reports,
            patient=patient_column,
            study=study_column,
            projection=projection_column,
            id=id_column,
            split=split_column,
            license=license_column,
            labels=labels,
            vector=vector,
            classes=class_rule or class_column,
            lists=labels_column,
            separator=labels_separator,
            attributes=named_columns(attribute_columns),
            mask=mask_column,
            mask_label=mask_label_column,
            bag=bag_column,
            time=time_column,
            leave_out={column: _several(cells) for column, cells in (leave_out or {}).items()},
        )
        if columns.image is None and (mask_column or boxes):
            raise InputError("image_column '' with masks or boxes, which belong to images")
        check_verify(verify, num_threads)
        self.channels = check_channels("channels", channels)
        check_columns(box_columns or {})
        _check_names(name, labels_separator)
        sheet = tabular.open_table(path, encoding=encoding, delimiter=delimiter)
        present = sheet.columns
        if class_rule and class_rule not in present:
            present = [*present, class_rule]  # its cells are written as rows are read
        self._path, self._mask_label, self._language = path, mask_label, language
        self._root = os.path.dirname(path) or "." if root is None else root
        self._mask_root = self._root if mask_root is None else mask_root
        self._bag_root = self._root if bag_root is None else bag_root
        roots = {"root": self._root, "mask_root": self._mask_root, "bag_root": self._bag_root}
        for option, folder in roots.items():
            if not os.path.isdir(folder):
                raise InputError(f"{path}: {option} '{folder}' is not a folder")
        self._images = Root(self._root, follow_links)
        self._mask_files = Root(self._mask_root, follow_links)
        self._bag_files = Root(self._bag_root, follow_links)
        named = (
            "; options such as image_column, report_columns and patient_column name the columns: "
            "--config.data.image_column=NAME in training, --option=image_column=NAME to prepare"
        )
        columns.check(present, path, hint=sheet.hint or named)
        known: set[str] = set()  # images, only read by boxes
        read: Iterable[Row] = sheet.rows([name for name in columns.names() if name != class_rule])
        if class_rule:
            read = _ruled(read, class_rule, list(reports.values()))
        self._rows = Rows(
            self._confined(read, columns, known if boxes else None),
            columns,
            source=name,
            where=path,
            split=split,
            fractions=fractions,
            salt=split_salt,
            blank=blank,
        )
        self._has_masks = mask_column is not None
        self._check_files(columns, verify, num_threads)
        self.rejects: list[Reject] = self._rows.rejects
        self.total: int = self._rows.total
        self.warnings = [*patient_warnings("patient_column", patient_column), *_several(notes)]
        self.warnings += [*sheet.notes, *self._rows.notes]
        self.warnings += [*self._images.notes("images"), *self._mask_files.notes("masks")]
        self.warnings += self._bag_files.notes("bags")
        self.warnings += [
            f"{count:,} rows are left out, with {' or '.join(map(repr, cells))} in {column!r}"
            for (column, cells), count in zip(
                columns.leave_out.items(), self._rows.left_out.values(), strict=True
            )
        ]
        self._boxes: Boxes | None = None
        if boxes:
            self._boxes = Boxes(
                _several(boxes),
                box_columns or {},
                images=self._rows.column("image"),
                ids=[f"{name}:{native}" for native in self._rows.column("id")],
                known=known,
                find=self._images.find,
                blank=blanks.Blanks(blank),
                size=functools.lru_cache(maxsize=1)(functools.partial(readers.size, self._root)),
                source=name,
            )
            self.rejects += self._boxes.rejects
            self.warnings += self._boxes.notes

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Record:
        record = self._rows.record(index, self._loader)
        record = dataclasses.replace(record, language=self._language)
        position = operator.index(index) % len(self)
        if self._has_masks:
            record = dataclasses.replace(record, masks=self._masks(position))
        if relative := self._rows.cell("bag", position):
            bag = functools.partial(bags.load, self._bag_root, relative)
            record = dataclasses.replace(record, bag=bag)
        if self._boxes is not None:
            record = dataclasses.replace(record, boxes=self._boxes[position])
        return record

    def _check_files(self, columns: Columns, verify: str, num_threads: int) -> None:
        """Refuses the rows whose image, mask or bag of features cannot be used."""
        if columns.image is not None:
            fault = functools.partial(readers.fault, self._root, verify=verify)
            self._drop(
                "image", self._images, find_faults(fault, self._rows.column("image"), num_threads)
            )
        if columns.mask is not None:
            bad = functools.partial(readers.mask_fault, self._mask_root, self._root, verify)
            pairs = zip(self._rows.column("mask"), self._rows.column("image"), strict=True)
            self._drop("mask", self._mask_files, find_faults(bad, list(pairs), num_threads))
        if columns.bag is not None:
            paths = self._rows.column("bag")
            bags.check_readable(paths)
            bad_bag = functools.partial(bags.fault, self._bag_root, verify)
            self._drop("bag", self._bag_files, find_faults(bad_bag, paths, num_threads))

    def _drop(self, column: str, root: Root, faults: Sequence[Fault | None]) -> None:
        """Refuses the rows with a fault, and says what paths of missing files probably mean."""
        paths = self._rows.column(column)
        self._rows.drop([explained(root, *pair) for pair in zip(paths, faults, strict=True)])

    def _loader(self, relative: str) -> Callable[[], np.ndarray]:
        return readers.loader(self._root, relative, channels=self.channels)

    def _masks(self, position: int) -> Callable[[], dict[str, np.ndarray]] | None:
        mask, image = self._rows.cell("mask", position), self._rows.cell("image", position)
        label = self._rows.cell("mask_label", position) or self._mask_label
        if not mask:
            return None
        return functools.partial(readers.load_mask, self._mask_root, mask, self._root, image, label)

    def _confined(
        self, rows: Iterable[Row], columns: Columns, images: set[str] | None
    ) -> Iterator[Row]:
        """Yields the rows with paths as they are on the disk, and adds images to `images`.

        Raises:
          InputError: a path that leads outside its root.
        """
        given = (
            ("image", columns.image, self._images),
            ("mask", columns.mask, self._mask_files),
            ("bag", columns.bag, self._bag_files),
        )
        places = [(what, column, root) for what, column, root in given if column is not None]
        for number, cells, problem in rows:
            for what, column, root in places:
                relative = cells.get(column, "").strip()
                if "\0" in relative:
                    problem = problem or f"the {what} path holds a null character"
                    continue
                try:
                    found = root.find(relative) if relative else relative
                except OutsideError as error:
                    raise InputError(
                        f"{self._path} row {number}: {what} path '{relative}' {error}"
                    ) from None
                if found != relative:
                    cells = {**cells, column: found}
            if images is not None and (relative := cells.get(columns.image or "", "").strip()):
                images.add(os.path.normpath(relative))
            yield number, cells, problem


def _several(given: Sequence[str] | str) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


def _check_rule(rule: str | None, column: str | None, reports: Mapping[str, str]) -> None:
    """Raises InputError for an unknown rule, a column of classes beside it, or no report."""
    if not rule:
        return
    if rule not in class_rules.RULES:
        raise InputError(build.unknown("class_rule", rule, class_rules.RULES))
    if column or not reports:
        problem = f"class_column {column!r} beside it" if column else "no column of reports"
        raise InputError(f"class_rule {rule!r} has {problem}; expected reports, and one of the two")


def _ruled(rows: Iterable[Row], rule: str, reports: Sequence[str]) -> Iterator[Row]:
    """The rows with the class that a rule reads in their reports, as the cell of the rule."""
    for number, cells, problem in rows:
        text = "\n".join(cells.get(column, "") for column in reports)
        yield number, {**cells, rule: class_rules.RULES[rule](text)}, problem


def _check_names(name: str, separator: str) -> None:
    """Raises InputError for a name that ids cannot begin with, or a blank separator."""
    if not re.fullmatch(r"[\w.-]+", name):
        raise InputError(f"name {name!r}; expected letters, digits, _, . or -")
    if not separator:
        raise InputError("labels_separator is blank; expected what divides the labels of a cell")


def patient_warnings(option: str, given: str | None) -> list[str]:
    """A warning, in a list, when there is no column of patients."""
    if given is not None:
        return []
    return [
        f"{option} is not set: every row counts as its own patient, so rows of one person may"
        " fall into different splits"
    ]
