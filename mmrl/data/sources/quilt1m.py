"""Quilt-1M: histopathology images from videos and other places, with captions.

Paper: Ikezogwo et al., "Quilt-1M: One Million Image-Text Pairs for Histopathology", NeurIPS 2023.
https://github.com/wisdomikezogwo/quilt1m distributes images and table on request.

- Layout: `quilt_1M_lookup.csv` with caption, image_path, subset, split, pathology, roi_text,
  noisy_text, corrected_text, med_umls_ids, magnification, height and width, in some releases also
  single_wsi and not_histology. Images are below `images/`, `quilt_1m/` or the folder of the table.
- Licence: for research on request; redistribution is not permitted. An agreement must be clicked.
- Official split: the column `split`, train or val, where it is not blank.
- Leakage unit: the video, from image names `{video}_image_{uuid}.jpg`. For images from open-access
  articles it is the article, which is also an alias, "pmc:PMC123456". Other images (from social
  media and web pages) are units of their own, and a warning counts them.
- An image may have several captions. Each row is a record, `{image}/{k}` with k from 0 in the order
  of the table. Rows of one image share `study_id`, so they are not negatives of each other.
- Cells of lists are Python literals. They are parsed, not evaluated, and joined by "; ". A row with
  a malformed list is refused.
- Rows with not_histology set (slides, faces) are refused as not_histology, unless an option keeps
  them.
- Images may be missing (missing_image), or RGBA with a name that ends in .jpg.
- The transcripts of the videos (noisy_text, corrected_text) refer to many images and are not read.
"""

import ast
import collections
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from mmrl.data.reading.drafts import Draft, Facts, ImageFile
from mmrl.data.reading.listing import Listing
from mmrl.data.reading.rows import CellError, cell_text
from mmrl.data.text import reports
from mmrl.types import Reject

_TABLES = ("quilt_1M_lookup.csv", "quilt_1M_lookup.csv.gz", "quilt_1m_lookup.csv")
_IMAGE_FOLDERS = ("images", "quilt_1m", "quilt_1M")
_VIDEO = re.compile(r"(?P<video>.+)_image_[0-9a-fA-F-]+\.\w+")
_ARTICLE = re.compile(r"PMC[0-9]+")
_SPLITS = {"": "", "train": "train", "val": "val", "valid": "val", "test": "test"}
_FLAGS = {"": False, "0": False, "0.0": False, "false": False}
_FLAGS |= {"1": True, "1.0": True, "true": True}
_LISTS = ("pathology", "roi_text", "med_umls_ids")
_PLAIN = ("subset", "magnification", "single_wsi")
_LONGEST_LITERAL = 2**16
_DEEPEST_LITERAL = 8


class Quilt1m(Listing):
    """Quilt-1M, see the module; a Source whose images keep their colour.

    Records have one image and the section "caption"; attributes subset, magnification, single_wsi,
    pathology, roi_text, med_umls_ids where the table has them.

    Args:
      keep_not_histology: keep rows whose not_histology is set.
      others: see `Listing`.

    Raises:
      InputError: as `Listing`.
    """

    facts = Facts(
        title="Quilt-1M",
        url="https://github.com/wisdomikezogwo/quilt1m",
        license="research use on request",
        access="click",
        expected={"records": 1_017_712},
    )
    channels = 3

    def __init__(self, *, keep_not_histology: bool = False, **others: Any) -> None:
        self._keep_not_histology = keep_not_histology
        super().__init__(**others)

    @property
    def image_root(self) -> str:
        """The folder of the images."""
        return self._images

    def scan(self) -> Iterator[Draft | Reject]:
        """Yields one record per caption, in the order of the table."""
        table = self.find(*_TABLES)
        folders = (os.path.join(self.path, folder) for folder in _IMAGE_FOLDERS)
        self._images = next(filter(os.path.isdir, folders), self.path)
        captions: collections.Counter[str] = collections.Counter()
        alone: set[str] = set()
        optional = ("split", "not_histology", *_LISTS, *_PLAIN)
        for item in self.rows(table, ("image_path", "caption"), optional):
            if isinstance(item, Reject):
                yield item
                continue
            number, cells = item
            image = cells["image_path"]
            if not image:
                yield Reject(f"{self.name()}:{table} row {number}", "bad_row", "no image named")
                continue
            native = f"{image}/{captions[image]}"
            captions[image] += 1
            attributes = {name: cells[name] for name in _PLAIN}
            fault = self._fault_of(cells)
            try:
                attributes |= {name: literal_text(cells[name]) for name in _LISTS}
            except CellError as error:
                fault = fault or ("bad_row", str(error))
            if fault:
                yield Reject(f"{self.name()}:{native}", fault[0], f"row {number}: {fault[1]}")
                continue
            group, article = unit_of(image)
            if not group:
                alone.add(image)
            yield Draft(
                native,
                leakage_unit=group or image,
                study=image,
                split=_SPLITS[cells["split"].casefold()],
                images=(ImageFile(image),),
                sections={"caption": cells["caption"]},
                attributes={name: value for name, value in sorted(attributes.items()) if value},
                aliases=(f"pmc:{article}",) if article else (),
            )
        if alone:
            self.warnings.append(
                f"quilt1m: {len(alone):,} images are of no known video or article; each is a"
                " leakage unit, so those of one origin may fall into different splits"
            )

    def _fault_of(self, cells: Mapping[str, str]) -> tuple[str, str] | None:
        """The reason and detail for which a row is refused, or None."""
        if cells["split"].casefold() not in _SPLITS:
            return "bad_row", f"split {cells['split']!r}; expected train, val, test or blank"
        flag = _FLAGS.get(cells["not_histology"].casefold())
        if flag is None:
            return "bad_row", f"not_histology {cells['not_histology']!r}; expected 0, 1 or blank"
        if flag and not self._keep_not_histology:
            return "not_histology", "not_histology is set"
        if reports.is_blank(cells["caption"]):
            return "empty_report", f"caption {cells['caption']!r}"
        return None


def unit_of(image: str) -> tuple[str, str]:
    """The video or article of an image, and its article; "" where the name does not state it."""
    name = os.path.basename(image)
    if found := _VIDEO.fullmatch(name):
        return found["video"], ""
    article = _ARTICLE.match(name)
    return (article[0], article[0]) if article else ("", "")


def literal_text(cell: str) -> str:
    """The entries of a Python list of texts, numbers or such lists, joined by "; ".

    A cell that does not begin with "[" is returned unchanged.

    Raises:
      CellError: a malformed list, or one that is too long or too deep.
    """
    if not cell.startswith("["):
        return cell
    if len(cell) > _LONGEST_LITERAL:
        raise CellError(f"a list of {len(cell)} characters; expected at most {_LONGEST_LITERAL}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in a text, such as "\d"
            value = ast.literal_eval(cell)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise CellError(f"{cell[:40]!r} is no list of texts ({type(error).__name__})") from error
    return "; ".join(text for text in _leaves(value, _DEEPEST_LITERAL) if text)


def _leaves(value: Any, depth: int) -> Iterator[str]:
    if not isinstance(value, list | tuple):
        yield " ".join(cell_text(value).split())
    elif not depth:
        raise CellError(f"lists more than {_DEEPEST_LITERAL} deep")
    else:
        for entry in value:
            yield from _leaves(entry, depth - 1)
