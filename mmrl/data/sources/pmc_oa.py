"""PMC-OA: sub-figures of open-access articles, each with its part of the caption.

Paper: Lin et al., "PMC-CLIP: Contrastive Language-Image Pre-training using Biomedical Documents",
MICCAI 2023. Published at https://huggingface.co/datasets/axiong/pmc_oa.

- Layout: `pmc_oa.jsonl` {image, caption, alignment_type, alignment_score} or `pmc_oa_beta.jsonl`
  {image, caption}. images.zip unpacks to `caption_T060_filtered_top4_sep_v0_subfigures/`. Of both
  tables the first is read, since the second is an earlier version of it.
- Licence: that of the article, which the tables do not state. `licenses` reads it from a list of
  articles, such as oa_file_list.csv or oa_comm.filelist.csv of PubMed Central. Open access.
- Official split: none; articles are divided by hash.
- Leakage unit: the article, "PMC123456", with which the name of an image begins. Its namespace is
  that of all corpora from PubMed Central. An image whose name has no article is a unit of its own,
  and a warning counts such images.
- Images with an empty caption are refused as empty_report.
"""

import os
import re
from collections.abc import Iterator
from typing import Any

from mmrl.data.reading import tabular
from mmrl.data.reading.drafts import Draft, Facts, ImageFile
from mmrl.data.reading.listing import Listing
from mmrl.data.text import reports
from mmrl.types import InputError, Reject

TABLES = ("pmc_oa.jsonl", "pmc_oa.jsonl.gz", "pmc_oa_beta.jsonl", "pmc_oa_beta.jsonl.gz")

_SUBFIGURES = "caption_T060_filtered_top4_sep_v0_subfigures"
_IMAGE_FOLDERS = (_SUBFIGURES, f"images/{_SUBFIGURES}", "images")
_ARTICLE = re.compile(r"PMC[0-9]+")
# Names of the columns of article and licence in lists of articles.
_ARTICLE_COLUMNS = ("accession id", "accessionid", "pmc_id", "pmcid")
_LICENSE_COLUMNS = ("license", "licence", "cc")
_ALIGNMENT = ("alignment_type", "alignment_score")


class PmcOa(Listing):
    """PMC-OA, see the module; a Source whose images keep their colour.

    Records have one image and the section "caption"; attributes alignment_type and
    alignment_score where the table has them. The id is the image's name.

    Args:
      table: the table to read; by default the first one that exists.
      licenses: a table (.csv, .tsv or .jsonl, also .gz) with one article per row. The path is
        absolute or relative to the corpus. It has a column "Accession ID", "AccessionID", "PMCID"
        or "PMC_ID" and a column "License", "licence" or "CC", in any case.
      others: see `Listing`.

    Raises:
      InputError: as `Listing`; the list of licences does not exist or lacks a column.
    """

    facts = Facts(
        title="PMC-OA",
        url="https://huggingface.co/datasets/axiong/pmc_oa",
        license="not stated",
        namespace="pmc",
    )
    channels = 3

    def __init__(self, *, table: str = "", licenses: str | None = None, **others: Any) -> None:
        if table and table not in TABLES:
            raise InputError(f"pmc_oa: table {table!r}; choices: {', '.join(TABLES)}")
        self._table, self._licenses = table, licenses
        super().__init__(**others)

    @property
    def image_root(self) -> str:
        """The folder of the images."""
        return self._images

    def scan(self) -> Iterator[Draft | Reject]:
        """Yields the sub-figures in the order of the table."""
        table = self.find(self._table) if self._table else self.find(*TABLES)
        folders = (os.path.join(self.path, folder) for folder in _IMAGE_FOLDERS)
        self._images = next(filter(os.path.isdir, folders), self.path)
        licenses = self._article_licenses(table)
        ungrouped = 0
        for item in self.rows(table, ("image", "caption"), _ALIGNMENT):
            if isinstance(item, Reject):
                yield item
                continue
            number, cells = item
            image, caption = cells["image"], cells["caption"]
            if not image:
                yield Reject(f"{self.name()}:{table} row {number}", "bad_row", "no image named")
                continue
            if reports.is_blank(caption):
                yield Reject(f"{self.name()}:{image}", "empty_report", f"caption {caption!r}")
                continue
            article = article_of(image)
            ungrouped += not article
            yield Draft(
                image,
                leakage_unit=article,
                images=(ImageFile(image),),
                sections={"caption": caption},
                attributes={name: cells[name] for name in _ALIGNMENT if cells[name]},
                license=licenses.get(article, ""),
            )
        if ungrouped:
            self.warnings.append(
                f"pmc_oa: the names of {ungrouped:,} images do not begin with their article"
                " (PMC...), so figures of one article may fall into different splits"
            )

    def _article_licenses(self, table: str) -> dict[str, str]:
        """Article -> licence, of the articles in the table."""
        if self._licenses is None:
            return {}
        # The list has millions of articles; only those of the corpus are kept.
        items = self.rows(table, ("image",))
        used = {article_of(item[1]["image"]) for item in items if not isinstance(item, Reject)}
        columns = self._columns(self._licenses, _ARTICLE_COLUMNS, _LICENSE_COLUMNS)
        found: dict[str, str] = {}
        faults: list[str] = []
        for item in self.rows(self._licenses, columns):
            if isinstance(item, Reject):
                faults.append(f"{item.id.partition(':')[2]}: {item.detail}")
                continue
            number, cells = item
            article, license = (cells[name] for name in columns)
            if article in used and found.setdefault(article, license) != license:
                faults.append(f"row {number}: {article} differs from an earlier row")
        if faults:
            self.warnings.append(
                f"pmc_oa: {len(faults):,} rows of {self._licenses} are not used; {faults[0]}"
            )
        return found

    def _columns(self, table: str, *choices: tuple[str, ...]) -> list[str]:
        """For each choice, the first of its columns that the table has."""
        where = os.path.join(self.path, table)
        present = {name.strip().casefold() for name in tabular.columns(where)}
        found = []
        for names in choices:
            if not (known := [name for name in names if name in present]):
                raise InputError(f"{where}: none of the columns {', '.join(names)} (in any case)")
            found.append(known[0])
        return found


def article_of(image: str) -> str:
    """The article with which the name of an image begins, or ""."""
    found = _ARTICLE.match(os.path.basename(image))
    return found[0] if found else ""
