"""ROCO v1: figures of open-access articles with their captions, radiology and other.

Paper: Pelka et al., "Radiology Objects in COntext (ROCO): A Multimodal Image Dataset", LABELS 2018.
Published at https://github.com/razorx89/roco-dataset.

- Layout: `data/{train,validation,test}/{radiology,non-radiology}/` with captions.txt, keywords.txt,
  cuis.txt, semtypes.txt, dlinks.txt (tab-separated, no header, id first) and licences.txt (CSV:
  ROCO_ID,PMC_ID,CC), and images `images/{id}.jpg`. `data/` may be absent. A folder that holds
  captions.txt itself is read as one part of unknown split and subset.
- Licence: that of the article, unchanged from licences.txt; `NO-CC CODE` where it is not of
  Creative Commons. Open access; images are downloaded from PubMed Central.
- Official split: by image. Thousands of articles of the test part also have figures in train, and
  thereby the same patients. So `official_split` is off by default, and articles are divided by
  hash. If it is on, a warning counts the articles in several splits.
- Leakage unit: the article, "PMC123456", from licences.txt or else from the address in dlinks.txt.
  Its namespace is that of all corpora from PubMed Central.
- The blank at the beginning of captions is removed. Empty captions are refused.
- Keywords, concepts (CUI) and semantic types may be empty and have double tabs.
- Lines end at line feeds only, since captions contain other line breaks of Unicode.
"""

import csv
import os
import re
from collections.abc import Iterator
from typing import Any

from mmrl.data.reading import tabular
from mmrl.data.reading.drafts import Draft, Facts, ImageFile
from mmrl.data.reading.listing import Listing
from mmrl.data.text import reports
from mmrl.types import InputError, Reject

SUBSETS = ("radiology", "non-radiology", "all")

_PARTS = {"train": "train", "validation": "val", "test": "test"}
_TOPS = ("data", "", "roco-dataset/data", "roco-dataset-master/data")
_ARTICLE = re.compile(r"PMC[0-9]+")
_LICENCE_COLUMNS = ("ROCO_ID", "PMC_ID", "CC")
# Attribute of a record -> its file.
_EXTRAS = {"keywords": "keywords.txt", "cuis": "cuis.txt", "semantic_types": "semtypes.txt"}


class Roco(Listing):
    """ROCO v1, see the module; a Source whose images keep their colour.

    Records have one image and the section "caption". Attributes are subset (radiology or
    non-radiology, where the layout states it), figure (file name in the article), keywords, cuis
    and semantic_types (each joined by "; ").

    Args:
      subset: radiology, non-radiology or all; must be radiology where the layout does not state it.
      official_split: use the split that the owner states, which divides articles.
      others: see `Listing`.

    Raises:
      InputError: as `Listing`; an unknown subset.
    """

    facts = Facts(
        title="Radiology Objects in COntext (ROCO)",
        url="https://github.com/razorx89/roco-dataset",
        license="not stated",
        version="1",
        expected={
            "records": 81_807,
            "records/train": 65_448,
            "records/val": 8_180,
            "records/test": 8_179,
        },
        namespace="pmc",
    )
    channels = 3

    def __init__(
        self, *, subset: str = "radiology", official_split: bool = False, **others: Any
    ) -> None:
        if subset not in SUBSETS:
            raise InputError(f"roco: subset {subset!r}; choices: {', '.join(SUBSETS)}")
        self._subset = subset
        super().__init__(official_split=official_split, **others)

    @property
    def expected(self) -> dict[str, int]:
        """Counts of the complete corpus, which are known for the radiology figures."""
        return dict(self.facts.expected) if self._subset == "radiology" else {}

    def scan(self) -> Iterator[Draft | Reject]:
        """Yields the figures of every part, in the order of its captions."""
        for folder, split, subset in self._parts():
            yield from self._part(folder, split, subset)

    def _parts(self) -> list[tuple[str, str, str]]:
        """Folder, split and subset of every part that exists."""
        if self._is_file("captions.txt"):
            if self._subset != "radiology":
                raise InputError(
                    f"roco: subset {self._subset!r}, but '{self.path}' holds captions.txt itself,"
                    " so its subset is unknown; expected data/{train,validation,test}/"
                )
            return [("", "", "")]
        subsets = SUBSETS[:2] if self._subset == "all" else (self._subset,)
        wanted = [(part, subset) for part in _PARTS for subset in subsets]
        candidates = [
            (
                top,
                [
                    (os.path.join(top, part, subset), _PARTS[part], subset)
                    for part, subset in wanted
                ],
            )
            for top in _TOPS
        ]
        for _, places in candidates:
            if found := [place for place in places if self._is_file(place[0], "captions.txt")]:
                return found
        raise InputError(
            f"roco: no captions.txt in '{self.path}' nor in data/{{train,validation,test}}/"
            f"{' or '.join(subsets)} below it"
        )

    def _is_file(self, *parts: str) -> bool:
        return os.path.isfile(os.path.join(self.path, *parts))

    def _part(self, folder: str, split: str, subset: str) -> Iterator[Draft | Reject]:
        figures = self._licences(folder)
        links = dict(self._lists(folder, "dlinks.txt"))
        extras = {name: dict(self._lists(folder, file)) for name, file in _EXTRAS.items()}
        captions = os.path.join(folder, "captions.txt")
        ungrouped = 0
        for number, line, problem in tabular.lines(os.path.join(self.path, captions)):
            if not line.strip() and not problem:
                continue
            native, tab, caption = line.partition("\t")
            native, caption = native.strip(), caption.strip()
            if problem or not native or not tab:
                detail = problem or "expected an id, a tab and a caption"
                yield Reject(f"{self.name()}:{captions} line {number}", "bad_row", detail)
                continue
            if reports.is_blank(caption):
                yield Reject(f"{self.name()}:{native}", "empty_report", f"caption {caption!r}")
                continue
            figure, license = figures.get(native, ("", ""))
            article = _ARTICLE.match(figure) or _ARTICLE.search(" ".join(links.get(native, ())))
            ungrouped += not article
            attributes = {name: "; ".join(found.get(native, ())) for name, found in extras.items()}
            attributes |= {"subset": subset, "figure": figure}
            yield Draft(
                native,
                leakage_unit=article[0] if article else "",
                split=split,
                images=(ImageFile(os.path.join(folder, "images", f"{native}.jpg")),),
                sections={"caption": caption},
                attributes={name: value for name, value in sorted(attributes.items()) if value},
                license=license,
            )
        if ungrouped:
            self.warnings.append(
                f"roco: {ungrouped:,} figures of '{folder or self.path}' have no article in"
                " licences.txt or dlinks.txt, so those of one article may be in different splits"
            )

    def _licences(self, folder: str) -> dict[str, tuple[str, str]]:
        """Id -> file name of the figure and licence, from licences.txt if it exists."""
        relative = os.path.join(folder, "licences.txt")
        if not self._is_file(relative):
            return {}
        where = os.path.join(self.path, relative)
        figures: dict[str, tuple[str, str]] = {}
        places: list[int] | None = None
        faults: list[str] = []
        for number, line, problem in tabular.lines(where):
            cells: list[str] = []
            try:
                cells = [cell.strip() for cell in next(csv.reader([line], strict=True), [])]
            except csv.Error as error:
                problem = str(error)
            if not cells and not problem:
                continue
            if places is None:
                missing = [name for name in _LICENCE_COLUMNS if name not in cells]
                if missing:
                    raise InputError(f"{where}: no column {', '.join(missing)} in its first line")
                places, width = [cells.index(name) for name in _LICENCE_COLUMNS], len(cells)
            elif problem or len(cells) != width:
                faults.append(f"line {number}: {problem or f'{len(cells)} fields of {width}'}")
            else:
                native, figure, license = (cells[place] for place in places)
                if figures.setdefault(native, (figure, license)) != (figure, license):
                    faults.append(f"line {number}: {native} differs from an earlier line")
        if faults:
            self.warnings.append(
                f"roco: {len(faults):,} lines of {relative} are not used, so their figures may lack"
                f" licence and article; {faults[0]}"
            )
        return figures

    def _lists(self, folder: str, file: str) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Yields id and values of each line of a tab-separated file, if it exists."""
        relative = os.path.join(folder, file)
        if not self._is_file(relative):
            return
        unread = 0
        for _, line, problem in tabular.lines(os.path.join(self.path, relative)):
            native, *values = (cell.strip() for cell in line.split("\t"))
            unread += bool(problem)
            if native:
                yield native, tuple(filter(None, values))
        if unread:
            self.warnings.append(f"roco: {unread:,} lines of {relative} are not UTF-8")
