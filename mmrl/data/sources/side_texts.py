"""Another corpus, with texts from a separate file or made by templates, and who wrote them.

    config.data.source = "side_texts"
    config.data.corpus = {"source": "prepared", "path": "corpora/slides"}
    config.data.path = "captions.jsonl"

Given `captions.jsonl`

    {"id": "table:17", "caption": "Sheets of spindle cells.", "by": "model-7b, 2nd revision"}
    {"id": "table:18", "caption": "Normal colonic mucosa.", "by": "a pathologist", "synthetic": 0}

the records of the corpus have the section "caption" as well, and `Record.provenance` says who wrote
it. With

    config.data.templates = {
        "report": ("{age} year old woman.", ["Density {density}.", "The density is {density}."])
    }

the section "report" is made of what a table states, as MV-MLM does for mammograms without reports.
"""

import collections
import dataclasses
import hashlib
import itertools
import json
import operator
import string
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from mmrl.data.corpus import loader, records
from mmrl.data.reading import tabular, within
from mmrl.data.reading.rows import lacks, named_columns
from mmrl.data.reading.splits import check_split
from mmrl.data.text import reports
from mmrl.types import InputError, Provenance, Record, Reject, Source

_COLUMNS = ("id", "by", "synthetic", "date")
_TRUTH = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
_SHOWN = 3  # authors and ids in a message
_PASSED_ON = ("facts", "manifest", "missing_images", "channels", "starts", "weights")


class SideTexts:
    """The records of one split of another source, with further sections; a Source.

    A section that a record has already is kept, and its provenance is not changed. A warning counts
    the records with each further text and says who wrote it.

    Args:
      split: train, val or test.
      corpus: mapping {"source": name, options of that source...}.
      path: the table of texts, of any format of the source `table`; "" for templates alone. Its ids
        are those of the records, with or without the name of the corpus before the colon; ids of
        other splits are passed over.
      sections: section -> column, or columns whose names are also the sections.
      columns: names of the columns of the table where they differ: id, by (who or what wrote the
        text, such as a model and its version), synthetic (1, true or yes; 0, false or no), date ->
        column. All but id may be absent.
      by: who wrote all texts of a table without the column `by`.
      synthetic: whether texts are generated where the column `synthetic` is absent or blank.
      templates: section -> sentences, or one. Each {name} in them stands for an attribute of the
        record, and {labels} for its present labels. A sentence is left out where one of its names
        has no value. In the place of a sentence several wordings may stand, as a list; the id of
        the record chooses.
      leave_out: sections of the corpus that are left out, such as those of real reports in a
        comparison with synthetic ones.

    Attributes:
      rejects, total: those of the corpus. All its other attributes are passed on, too.
      image: (index, number = 0) -> image, see `ImageRef`.
      warnings: those of the corpus, and what was added.

    Raises:
      InputError: as `check_options` and the source of the corpus; a table without the columns, with
        a row that cannot be read, a blank or repeated id, or a text without an author; no record of
        the training split that the table names.
    """

    def __init__(
        self,
        *,
        split: str,
        corpus: Mapping[str, Any],
        path: str = "",
        sections: Mapping[str, str] | Sequence[str] | str = ("caption",),
        columns: Mapping[str, str] | None = None,
        by: str = "",
        synthetic: bool = True,
        templates: Mapping[str, Any] | None = None,
        leave_out: Sequence[str] | str = (),
    ) -> None:
        check_split(split)
        given: dict[str, Any] = {"corpus": corpus, "path": path, "columns": columns}
        given |= {"templates": templates, "leave_out": leave_out}
        self.check_options("side_texts", given)
        self._source: Source = within.make(split, corpus)
        for name in _PASSED_ON:
            if hasattr(self._source, name):
                setattr(self, name, getattr(self._source, name))
        self.rejects: list[Reject] = self._source.rejects
        self.total: int = self._source.total
        self.image = loader(self._source)
        self._left_out = frozenset((leave_out,) if isinstance(leave_out, str) else leave_out)
        self._texts = None
        if path:
            self._texts = _Texts(path, named_columns(sections), columns or {}, by, synthetic)
        self._templates = [_Template(*one) for one in (templates or {}).items()]
        self.warnings = [*getattr(self._source, "warnings", ()), *self._notes(split)]

    @staticmethod
    def check_options(where: str, given: Mapping[str, Any]) -> None:
        """Checks the options, and those of the corpus, before any corpus is read.

        Args:
          where: the config key for messages, such as "config.data".

        Raises:
          InputError: nothing to add or leave out, an unknown column, a template that cannot be
            read, or an unknown option of the corpus.
        """
        within.check(f"{where}.corpus", given.get("corpus"))
        if not any(given.get(name) for name in ("path", "templates", "leave_out")):
            raise InputError(f"{where} has neither path, templates nor leave_out; expected one")
        for name in given.get("columns") or {}:
            if name not in _COLUMNS:
                raise InputError(f"{where}.columns has {name!r}; choices: {', '.join(_COLUMNS)}")
        for section, sentences in (given.get("templates") or {}).items():
            _Template(section, sentences)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Record:
        return self._with_texts(self._source[operator.index(index)])

    def __iter__(self) -> Iterator[Record]:
        """Yields all records, as fast as the source of the corpus can."""
        return map(self._with_texts, records(self._source))

    def _with_texts(self, record: Record) -> Record:
        """The record with its further texts, each with its provenance."""
        found = self._texts.of(record) if self._texts is not None else {}
        for template in self._templates:
            found |= template.of(record)
        own = {name: text for name, text in record.sections.items() if name not in self._left_out}
        new = {name: one for name, one in found.items() if not own.get(name, "").strip()}
        written = {k: one for k, one in (record.provenance or {}).items() if k in own}
        written |= {name: provenance for name, (_, provenance) in new.items()}
        return dataclasses.replace(
            record,
            sections={**own, **{name: text for name, (text, _) in new.items()}},
            provenance=written or None,
        )

    def _notes(self, split: str) -> list[str]:
        """A line for each section that was added: to how many records, and by whom."""
        counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
        kept, named = 0, 0
        ids: list[str] = []
        for record in records(self._source):
            made = self._with_texts(record).provenance or {}
            own = record.provenance or {}
            for section, one in made.items():
                if section not in own:
                    counts[section][str(one)] += 1
            if self._texts is not None:
                found = self._texts.of(record)
                named += bool(found)
                kept += any(section not in made or section in own for section in found)
            ids += [record.id] if len(ids) < _SHOWN else []
        if self._texts is not None and split == "train" and ids and not named:
            raise InputError(
                f"{self._texts.path} names no record of the training split; its ids are such as "
                f"{', '.join(self._texts.ids(_SHOWN))}, those of the corpus {', '.join(ids)}"
            )
        notes = [
            f"{count.total():,} of {len(self):,} records have the further text {section!r}, by "
            + ", ".join(f"{by} ({number:,})" for by, number in count.most_common(_SHOWN))
            + (f" and {len(count) - _SHOWN} others" if len(count) > _SHOWN else "")
            for section, count in sorted(counts.items())
        ]
        if kept:
            notes.append(f"{kept:,} records keep a section of their own that the side texts have")
        return notes


class _Texts:
    """The texts of a table, by the id of their record."""

    def __init__(
        self,
        path: str,
        sections: Mapping[str, str],
        columns: Mapping[str, str],
        by: str,
        synthetic: bool,
    ) -> None:
        self.path, self._sections = path, tuple(sections)
        sheet = tabular.open_table(path)
        used = {name: columns.get(name, name) for name in _COLUMNS}
        optional = {name for name in _COLUMNS[1:] if name not in columns}
        used = {k: v for k, v in used.items() if k not in optional or v in sheet.columns}
        missing = [
            name for name in (*used.values(), *sections.values()) if name not in sheet.columns
        ]
        if missing:
            raise InputError(lacks(path, missing, sheet.columns) + sheet.hint)
        held: dict[str, list[str]] = {name: [] for name in sections}
        self._written: dict[Provenance, int] = {}
        self._row: dict[str, int] = {}
        of_row: list[int] = []
        for number, cells, problem in sheet.rows([*used.values(), *sections.values()]):
            cell = {name: cells.get(column, "").strip() for name, column in used.items()}
            where = f"{path} row {number}"
            if problem:
                raise InputError(f"{where}: {problem}")
            if not cell["id"] or cell["id"] in self._row:
                raise InputError(
                    f"{where}: id {cell['id']!r}; expected every id once, and no blank"
                )
            stated = cell.get("synthetic", "").lower()
            if stated and stated not in _TRUTH:
                raise InputError(f"{where}: synthetic {stated!r}; choices: {', '.join(_TRUTH)}")
            author = cell.get("by", "") or by
            if not author:
                raise InputError(
                    f"{where} does not say who wrote its text; expected a column 'by', or the "
                    "option by"
                )
            one = Provenance(author, _TRUTH.get(stated, synthetic), cell.get("date", ""))
            self._row[cell["id"]] = len(of_row)
            of_row.append(self._written.setdefault(one, len(self._written)))
            for name, column in sections.items():
                held[name].append(cells[column])
        self._text = {name: pa.array(texts, pa.large_string()) for name, texts in held.items()}
        self._provenance, self._of_row = tuple(self._written), pa.array(of_row, pa.int32())

    def ids(self, most: int) -> list[str]:
        """The first ids of the table."""
        return list(self._row)[:most]

    def of(self, record: Record) -> dict[str, tuple[str, Provenance]]:
        """Section -> the text of a record and who wrote it; blank texts are left out."""
        row = self._row.get(record.id, self._row.get(record.id.partition(":")[2]))
        if row is None:
            return {}
        written = self._provenance[self._of_row[row].as_py()]
        texts = {name: self._text[name][row].as_py() for name in self._sections}
        return {name: (text, written) for name, text in texts.items() if not reports.is_blank(text)}


class _Template:
    """A section that is made of attributes and labels.

    Args:
      section: its name.
      sentences: see `SideTexts`.

    Raises:
      InputError: no sentence, or one with anything but a name in braces.
    """

    def __init__(self, section: str, sentences: Any) -> None:
        self._section = section
        self._wordings = [_several(section, one) for one in _several(section, sentences)]
        if not self._wordings or not all(self._wordings):
            raise InputError(f"templates.{section} has no sentence; expected at least one")
        for wording in itertools.chain.from_iterable(self._wordings):
            if not isinstance(wording, str):
                raise InputError(f"templates.{section} has {wording!r}; expected a sentence")
        self._names = {one: _names(section, one) for words in self._wordings for one in words}
        stated = json.dumps([section, self._wordings]).encode()
        digest = hashlib.sha256(stated).hexdigest()[:8]
        self._provenance = Provenance(f"template {digest}", True)

    def of(self, record: Record) -> dict[str, tuple[str, Provenance]]:
        """The section of a record; {} where no sentence has all its values."""
        present = zip(record.label_names, record.labels, strict=True)
        values = {"labels": ", ".join(name for name, label in present if label == 1)}
        values = {**record.attributes, **values}
        found = []
        for number, wordings in enumerate(self._wordings):
            wording = wordings[_choice(f"{record.id}/{number}", len(wordings))]
            if all(values.get(name, "").strip() for name in self._names[wording]):
                found.append(wording.format_map(values))
        return {self._section: (" ".join(found), self._provenance)} if found else {}


def _several(section: str, given: Any) -> tuple[Any, ...]:
    """One text, or several, as a tuple."""
    if not isinstance(given, str | Sequence):
        raise InputError(f"templates.{section} has {given!r}; expected a sentence or several")
    return (given,) if isinstance(given, str) else tuple(given)


def _names(section: str, wording: str) -> tuple[str, ...]:
    """The names in the braces of a sentence."""
    found = []
    try:
        parts = list(string.Formatter().parse(wording))
    except ValueError as error:
        raise InputError(f"templates.{section} {wording!r}: {error}") from None
    for _, name, form, conversion in parts:
        if name is None:  # the rest of the sentence
            continue
        if not name.isidentifier() or form or conversion:
            raise InputError(
                f"templates.{section} {wording!r}: {{{name}}} is no name; expected an attribute "
                "of the records or labels"
            )
        found.append(name)
    return tuple(found)


def _choice(name: str, count: int) -> int:
    """A number below `count` that depends on a name alone."""
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % count
