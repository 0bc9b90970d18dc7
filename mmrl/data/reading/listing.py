"""The base class of sources that read a corpus as its owner distributes it.

A subclass states its `facts` and yields one `Draft` per record, and one `Reject` per item that it
refuses, from `scan`. The base class does what all corpora have in common: it assigns splits, checks
that ids are unique, that paths stay inside the folder, and that images exist and are complete,
compares counts with the published ones, and stores drafts compactly (a few hundred bytes a record
beside its text).
"""

import dataclasses
import functools
import operator
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from mmrl.data.image import readers
from mmrl.data.image.channels import check as check_channels
from mmrl.data.image.masks import decode_masks
from mmrl.data.reading import tabular
from mmrl.data.reading.drafts import Draft, Facts, ImageFile, pack, unpack, without_images
from mmrl.data.reading.paths import OutsideError, Root
from mmrl.data.reading.rows import Fault, check_verify, explained, find_faults, lacks
from mmrl.data.reading.splits import SPLITS, Fractions, check_fractions, hash_unit, split_of
from mmrl.data.text import blanks
from mmrl.types import ImageRef, InputError, Record, Reject

_IDENTITIES = ("patient", "study", "leakage_unit", "license")  # fields of a draft
ALL = "all"  # every split at once: what preparing a corpus reads


class Listing:
    """The records of one split of a corpus, or of all splits; a Source.

    A subclass sets `facts` and `label_names`, on the class or, where options decide them, on the
    instance. It implements `scan`. It may override `image_root`, and, where images are no files,
    `loader` and `fault_of`. It takes its own options as keyword-only arguments and passes on all
    others: `def __init__(self, *, uncertain: str, **others)`. It sets its attributes before it
    calls this constructor, which calls `scan`.

    Args:
      split: train, val, test, or "all".
      path: the folder of the corpus.
      official_split: use the split that the owner states. Records without one, or all records if
        False, are divided by a hash of their leakage unit.
      val_fraction: share of the leakage units of the official train split that becomes val, by
        hash, for corpora without an official val. `Record.split_official` remains train.
      fractions: shares of train, val and test where leakage units are divided by hash, in this
        order or by name, see `split_of`.
      split_salt: name of that division; another name gives another division.
      verify: "decode" decodes every image once; "header" reads every file and finds those cut
        short; "exists" only checks that the file is there.
      num_threads: threads that verify images.
      allow_missing_images: keep the text of records whose images are all missing. Otherwise a
        record without an image left is refused. Missing images are removed in either case.
      follow_links: folders outside that of the corpus into which symbolic links may lead, such as
        the folder `blobs` of a Hugging Face cache.
      blank: the texts that stand for a blank patient, study, licence or attribute, see
        `mmrl/data/text/blanks.py`. An item whose id is blank is refused as bad_row.
      dicom_burned_in: accept images whose header says that text is burned into the pixels.
      dicom_headers: take projection, sex and age from the headers of DICOM images where no table
        states them; a few milliseconds an image. Spacing is not taken: challenges resize images
        and leave the spacing of the original in the header.
      channels: of the images: 1 reads them as grey, 3 in red, green and blue; by default as the
        corpus is.

    Attributes:
      facts: what the owner states of the corpus. A constructor sets it where it depends on the
        release in the folder.
      rejects: the refused items. Reasons are missing_image, unreadable_image, unsafe_path,
        duplicate_id, bad_row and those of the source. A refused part of a record that is kept has
        the id "{record}#{path}".
      total: number of records, kept and refused.
      missing_images: number of images that the corpus names and that do not exist.
      warnings: lines that a user should read before trusting the corpus, such as counts that differ
        from the published ones.

    Raises:
      InputError: the corpus cannot be used: no folder, no table, a missing column, no record.
    """

    facts: Facts
    label_names: tuple[str, ...] = ()
    channels: int = 1

    def __init__(
        self,
        *,
        split: str,
        path: str,
        official_split: bool = True,
        fractions: Fractions = (0.8, 0.1, 0.1),
        split_salt: str = "",
        val_fraction: float = 0.0,
        verify: str = "header",
        num_threads: int = 2,
        allow_missing_images: bool = False,
        follow_links: Sequence[str] | str = (),
        blank: Sequence[str] | str = blanks.BLANK,
        dicom_burned_in: bool = False,
        dicom_headers: bool = False,
        channels: int | None = None,
    ) -> None:
        if split not in (*SPLITS, ALL):
            raise InputError(f"split is {split!r}, expected one of: {', '.join((*SPLITS, ALL))}")
        check_verify(verify, num_threads)
        if channels is not None:
            self.channels = check_channels("channels", channels)
        if not os.path.isdir(path):
            raise InputError(
                f"{self.name()}: '{path}' is not a folder; expected that of the corpus"
            )
        self.path, self.split, self._burned_in = path, split, dicom_burned_in
        self._links, self._blank = follow_links, blanks.Blanks(blank)
        self._fractions, self._salt = check_fractions(fractions), split_salt
        if not 0 <= val_fraction < 1:
            raise InputError(f"val_fraction is {val_fraction}; expected at least 0 and below 1")
        self._official, self._val_fraction = official_split, val_fraction
        self.rejects: list[Reject] = []
        self.warnings: list[str] = []
        self.missing_images = 0
        self._refused = 0  # rejects that are whole records
        self.root(path)  # checks follow_links
        drafts = self._select()
        drafts = self._checked(drafts, verify, num_threads, allow_missing_images)
        if dicom_headers:
            drafts = self._with_headers(drafts)
        self._packed = pa.array([pack(draft) for draft in drafts], pa.large_binary())
        self.total = len(self._packed) + self._refused
        if not self.total:
            where = "" if split == ALL else f" in split {split}"
            raise InputError(f"{self.name()}: nothing found{where} below '{path}'")
        self._count(drafts)

    @classmethod
    def name(cls) -> str:
        """The name of the source, which is that of its module."""
        return cls.__module__.rpartition(".")[2]

    def scan(self) -> Iterator[Draft | Reject]:
        """Yields the records of all splits, in a fixed order."""
        raise NotImplementedError

    @property
    def expected(self) -> Mapping[str, int]:
        """Counts of the complete corpus; overridden where options choose a part of it."""
        return self.facts.expected

    @property
    def image_root(self) -> str:
        """The folder to which the paths of images are relative."""
        return self.path

    def loader(self, image: ImageFile) -> Callable[[], np.ndarray]:
        """Returns a function that reads one image. It pickles."""
        return readers.loader(
            self.image_root,
            image.path,
            allow_burned_in=self._burned_in,
            channels=self.channels,
        )

    def root(self, path: str) -> Root:
        """A folder of the corpus, with the links that may be followed."""
        return Root(path, self._links)

    def rows(
        self, relative: str, required: Sequence[str], optional: Sequence[str] = ()
    ) -> Iterator[tuple[int, dict[str, str]] | Reject]:
        """Yields the rows of a table of the corpus: number and stripped cells, or a Reject.

        Cells of optional columns that the table lacks are "". Column names match regardless of case
        and surrounding space, in which releases of a corpus differ.

        Raises:
          InputError: no such table, or it lacks a required column.
        """
        where = os.path.join(self.path, relative)
        sheet = tabular.open_table(where)
        self.warnings += [
            note
            for note in sheet.notes
            if note not in self.warnings and not note.endswith(tabular.STRIPPED)
        ]
        actual: dict[str, str] = {}
        for name in sheet.columns:
            actual.setdefault(name.strip().casefold(), name)
        missing = [name for name in required if name.casefold() not in actual]
        if missing:
            raise InputError(lacks(where, missing, sheet.columns) + sheet.hint)
        wanted = {name: actual.get(name.casefold(), "") for name in (*required, *optional)}
        read = list(dict.fromkeys(filter(None, wanted.values())))
        for number, cells, problem in sheet.rows(read):
            if problem:
                place = f"{os.path.basename(relative)} row {number}"
                yield Reject(f"{self.name()}:{place}", "bad_row", problem)
            else:
                yield number, {name: cells.get(at, "").strip() for name, at in wanted.items()}

    def find(self, *candidates: str) -> str:
        """The first of some relative paths that exists as a file or folder.

        Raises:
          InputError: none of them; pipes and devices do not count, since reading them may not end.
        """
        for relative in candidates:
            where = os.path.join(self.path, relative)
            if os.path.isfile(where) or os.path.isdir(where):
                return relative
        raise InputError(f"{self.name()}: none of {', '.join(candidates)} in '{self.path}'")

    def __len__(self) -> int:
        return len(self._packed)

    def __getitem__(self, index: int) -> Record:
        position = operator.index(index)
        if not -len(self) <= position < len(self):
            raise IndexError(f"record {position} of {len(self)}")
        draft = unpack(self._packed[position % len(self)].as_py())
        patient = draft.patient or draft.id
        references = tuple(
            ImageRef(
                file.path, self.loader(file), file.projection, file.projection_source, file.spacing
            )
            for file in draft.images
        )
        return Record(
            id=f"{self.name()}:{draft.id}",
            source=self.name(),
            patient_id=patient,
            study_id=draft.study or f"{patient}/{draft.id}",
            leakage_unit=draft.leakage_unit or patient,
            split=self._split_of(draft),
            images=references,
            sections=draft.sections,
            label_names=self.label_names if draft.labels else (),
            labels=draft.labels,
            boxes=draft.boxes,
            findings=draft.findings,
            sentences=draft.sentences,
            masks=functools.partial(decode_masks, draft.masks) if draft.masks else None,
            license=draft.license or self.facts.license,
            source_version=self.facts.version,
            split_official=draft.split or "none",
            leakage_unit_known=bool(draft.leakage_unit or draft.patient),
            aliases=draft.aliases,
            entailment=draft.entailment,
            prior_id=draft.prior_id,
            time=draft.time,
            attributes=draft.attributes,
            language=draft.language,
            access=self.facts.access,
            redistributable=self.facts.redistributable,
        )

    def _split_of(self, draft: Draft) -> str:
        unit = draft.leakage_unit or draft.patient or draft.id
        if self._official and draft.split:
            held_out = draft.split == "train" and self._val_fraction > 0
            if held_out and hash_unit(unit, salt=f"val{self._salt}") < self._val_fraction:
                return "val"
            return draft.split
        return split_of(unit, self._fractions, salt=self._salt)

    def _select(self) -> list[Draft]:
        """The drafts of the wanted split. Rejects of the scan count to every split."""
        kept: list[Draft] = []
        seen: set[str] = set()
        split_of_unit: dict[str, str] = {}
        crossing: set[str] = set()
        for item in self.scan():
            if isinstance(item, Reject):
                self.rejects.append(item)
                self._refused += "#" not in item.id
                continue
            if item.split not in ("", *SPLITS):
                raise ValueError(f"{self.name()} drafted split {item.split!r}")
            if self._blank(item.id):
                self._refuse(item, "bad_row", "blank id")
                continue
            item = self._without_blanks(item)
            if item.id in seen:
                detail = "the id appeared before; the first is kept"
                self._refuse(item, "duplicate_id", detail)
                continue
            seen.add(item.id)
            split, unit = self._split_of(item), item.leakage_unit or item.patient or item.id
            if split_of_unit.setdefault(unit, split) != split:
                crossing.add(unit)
            if self.split in (ALL, split):
                kept.append(item)
        if crossing:
            self.warnings.append(
                f"{self.name()}: the official split puts {len(crossing):,} leakage units"
                " (patients or articles) into more than one split; official_split=False keeps each"
                " in one split"
            )
        return kept

    def _without_blanks(self, draft: Draft) -> Draft:
        """The draft without a patient, study and so on whose text stands for a blank."""
        stated = {name: getattr(draft, name) for name in _IDENTITIES}
        changes: dict[str, Any] = {
            name: "" for name, text in stated.items() if text and self._blank(text)
        }
        if any(map(self._blank, draft.attributes.values())):
            attributes = draft.attributes.items()
            changes["attributes"] = {n: text for n, text in attributes if not self._blank(text)}
        return dataclasses.replace(draft, **changes) if changes else draft

    def _refuse(self, draft: Draft, reason: str, detail: str) -> None:
        self.rejects.append(Reject(f"{self.name()}:{draft.id}", reason, detail))
        self._refused += 1

    def _checked(
        self, drafts: list[Draft], verify: str, num_threads: int, allow_missing: bool
    ) -> list[Draft]:
        """Removes images that are missing, unreadable or outside the folder."""
        files = [file for draft in drafts for file in draft.images]
        paths = [file.path for file in files]
        self._root = self.root(self.image_root)
        faults = find_faults(functools.partial(self.fault_of, verify), files, num_threads)
        found = (explained(self._root, *p) for p in zip(paths, faults, strict=True))
        kept: list[Draft] = []
        for draft in drafts:
            bad = [(file, fault) for file in draft.images if (fault := next(found))]
            lost = {file.path for file, _ in bad}
            good = tuple(file for file in draft.images if file.path not in lost)
            self.missing_images += sum(fault[0] == "missing_image" for _, fault in bad)
            absent = all(fault[0] == "missing_image" for _, fault in bad)
            if bad and not good and not (allow_missing and absent):
                self._refuse(draft, *bad[0][1])
                continue
            if not (allow_missing and absent):
                self.rejects += [
                    Reject(f"{self.name()}:{draft.id}#{file.path}", *fault) for file, fault in bad
                ]
            kept.append(without_images(draft, lost) if lost else draft)
        return kept

    def _with_headers(self, drafts: list[Draft]) -> list[Draft]:
        """Adds projection, sex and age from DICOM headers where no table states them."""
        completed: list[Draft] = []
        unread = 0
        for draft in drafts:
            files, attributes = list(draft.images), dict(draft.attributes)
            for at, file in enumerate(files):
                try:
                    header = readers.header(self.image_root, file.path)
                except InputError:  # verify=exists has not read the file
                    unread += 1
                    continue
                if header is None:
                    continue
                if file.projection == "UNKNOWN" != header.projection:
                    files[at] = dataclasses.replace(
                        file, projection=header.projection, projection_source="dicom"
                    )
                if header.sex:
                    attributes.setdefault("sex", header.sex)
                if header.age is not None:
                    attributes.setdefault("age", f"{header.age:g}")
            images = tuple(files)
            completed.append(dataclasses.replace(draft, images=images, attributes=attributes))
        if unread:
            self.warnings.append(f"{self.name()}: the headers of {unread:,} images cannot be read")
        return completed

    def fault_of(self, verify: str, image: ImageFile) -> Fault | None:
        """The reason and detail for which an image is refused, or None.

        A source whose images are no files overrides it together with `loader`.
        """
        relative = image.path
        try:
            self._root.check(relative)
        except OutsideError as error:
            return "unsafe_path", f"image path {relative!r} {error}"
        burned_in = self._burned_in
        return readers.fault(self.image_root, relative, verify, allow_burned_in=burned_in)

    def _count(self, drafts: Sequence[Draft]) -> None:
        """Warns where counts of the splits that were read differ from the published ones."""
        found: dict[str, int] = {}
        for split in SPLITS if self.split == ALL else (self.split,):
            mine = [draft for draft in drafts if self.split != ALL or draft.split == split]
            found |= {f"{name}/{split}": n for name, n in _counts(mine).items()}
        if self.split == ALL:
            found |= _counts(drafts)
        elif self._val_fraction and self.split != "test":
            found = {}  # a part of the official train split, which has no published count
        official = self._official and any(draft.split for draft in drafts)
        for name, expected in self.expected.items():
            if "images" in name and self.missing_images:
                continue  # their number is reported already
            if name in found and found[name] != expected and ("/" not in name or official):
                self.warnings.append(
                    f"{self.name()}: {found[name]:,} {name} found, {expected:,} in the published"
                    " corpus: a part of it, another release, or rows that were refused"
                )


def _counts(drafts: Sequence[Draft]) -> dict[str, int]:
    return {
        "records": len(drafts),
        "images": sum(len(draft.images) for draft in drafts),
        "patients": len({draft.patient or draft.id for draft in drafts}),
        "leakage_units": len({draft.leakage_unit or draft.patient or draft.id for draft in drafts}),
    }
