"""One split of one source, with its texts read into memory; training and evaluation use it."""

import collections
import dataclasses
import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mmrl.data import views as views_
from mmrl.data.overlap.fingerprints import Collector, Fingerprint
from mmrl.data.overlap.joins import connected_components
from mmrl.data.reading import rejects
from mmrl.data.text import reports
from mmrl.types import InputError, Record, Reject, Source


@dataclasses.dataclass(frozen=True)
class Corpus:
    """The N examples of a split with the text that the encoders read.

    A usable record is one example, or several if `views` is "each".

    Attributes:
      name: "source/split".
      source: of the records.
      positions: i64[N], index of the record of each example in `source`.
      ids, patients, texts: of the examples.
      groups: i32[N], duplicate groups. Examples of the same study, or whose texts are equal but for
        case, white space and punctuation, share a group; they are not negatives of each other.
      rejects: records that the source or `read_corpus` rejected.
      total: number of records before any was rejected.
      collector: has seen every usable record, for `fingerprint`.
      numbers: i32[N], which image of its record each example uses.
      choices: i32[N], how many images training may draw from; 1 if it uses that of `numbers`.
      cuts: of each example, the ends of the sections of its text but the last, in characters; a
        blank follows each.
      views: how images were chosen, see `mmrl.data.views`.
    """

    name: str
    source: Source
    positions: np.ndarray
    ids: tuple[str, ...]
    patients: tuple[str, ...]
    texts: tuple[str, ...]
    groups: np.ndarray
    rejects: tuple[Reject, ...]
    total: int
    collector: Collector
    numbers: np.ndarray
    choices: np.ndarray
    cuts: tuple[tuple[int, ...], ...]
    views: str = "first"

    def __len__(self) -> int:
        return len(self.ids)

    def record(self, index: int) -> Record:
        """The record of an example. If it has several images, only that of the example is kept.

        With views="first" the record keeps all of its images.
        """
        record = self.source[int(self.positions[index])]
        if self.views == "first" or len(record.images) < 2:
            return record
        seen = views_.seen_by(record, int(self.numbers[index]))
        return dataclasses.replace(seen, id=self.ids[index])

    @functools.cached_property
    def fingerprint(self) -> Fingerprint:
        """Digests by which the leak check finds records that another corpus holds, too.

        Computed at the first use, because it needs a signature of every report.
        """
        return self.collector.finish(self.texts)

    @property
    def load(self) -> Callable[[int, int], np.ndarray]:
        """(position in the source, number of the image) -> u8 or u16[H, W]; can be pickled."""
        return loader(self.source)

    @property
    def weights(self) -> tuple[float, ...] | None:
        """The weights of the parts of a mixture; None if all examples are equally frequent."""
        return getattr(self.source, "weights", None)

    @property
    def parts(self) -> np.ndarray:
        """i64[N], the part of a mixture that each example belongs to; 0 without a mixture."""
        starts = getattr(self.source, "starts", np.zeros(1, np.int64))
        return np.searchsorted(starts, self.positions, side="right") - 1

    def image(self, index: int) -> np.ndarray:
        """The image that evaluation uses of example `index`, u8 or u16[H, W].

        Raises:
          InputError: it cannot be read; names the record.
        """
        try:
            return self.load(int(self.positions[index]), int(self.numbers[index]))
        except InputError as error:
            raise InputError(f"record {self.ids[index]}: {error}") from None

    def duplicate_share(self) -> float:
        """Share of examples that have at least one other example in their duplicate group."""
        counts = np.bincount(self.groups, minlength=1)
        return float(np.mean(counts[self.groups] > 1)) if len(self) else 0.0

    def sha256(self) -> str:
        """Digest of ids, patients, texts, groups and choice of images, in order."""
        content = [self.ids, self.patients, self.texts, self.groups.tolist()]
        if self.numbers.any():
            content.append(self.numbers.tolist())
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def loader(source: Source) -> Callable[[int, int], np.ndarray]:
    """(position, number of the image) -> u8 or u16[H, W], in the fastest way the source has."""
    fast = getattr(source, "image", None)
    return functools.partial(_load, source) if fast is None else fast


def _load(source: Source, position: int, number: int) -> np.ndarray:
    images = source[position].images
    if number >= len(images):
        raise InputError(f"the record has {len(images)} images, no number {number}")
    return images[number].load()


def records(source: Source) -> Iterator[Record]:
    """All records in order, in the fastest way the source has."""
    if isinstance(source, Iterable):
        return iter(source)
    return map(source.__getitem__, range(len(source)))


def read_corpus(
    name: str,
    source: Source,
    *,
    sections: Sequence[str],
    views: str = "first",
    need_images: bool = True,
    allow_empty: bool = False,
) -> Corpus:
    """Reads the text of every record of `source` once.

    Args:
      name: "source/split", for messages.
      sections: the report sections that make up the text, in this order.
      views: which images become examples, see `mmrl.data.views`.
      need_images: whether to reject records without an image; False is for uses of texts alone.
      allow_empty: whether to return an empty corpus instead of raising.

    Records without any of the sections, without an image, or without an image that `views` accepts
    are rejected with their reason.

    Raises:
      InputError: no usable record, unless `allow_empty`; an unknown choice of views.
    """
    views_.check(views)
    refused = list(source.rejects)
    read, collector = _scan(name, source, sections, views, need_images, refused)
    if not read.ids and not allow_empty:
        why = ", ".join(f"{n} {reason}" for reason, n in rejects.summarise(refused).items())
        raise InputError(
            f"{name} has no usable record ({source.total} rows; rejected: {why or 'none'}); "
            "check the path, the split fractions and config.data.sections"
        )
    return Corpus(
        name=name,
        source=source,
        positions=np.asarray(read.positions, np.int64),
        ids=tuple(read.ids),
        patients=tuple(read.patients),
        texts=tuple(read.texts),
        groups=group_ids(read.studies, read.texts),
        rejects=tuple(refused),
        total=source.total,
        collector=collector,
        numbers=np.asarray(read.numbers, np.int32),
        choices=np.asarray(read.choices, np.int32),
        cuts=tuple(read.cuts),
        views=views,
    )


def _scan(
    name: str,
    source: Source,
    sections: Sequence[str],
    views: str,
    need_images: bool,
    refused: list[Reject],
) -> tuple["_Read", Collector]:
    """Reads every record; adds rejected ones to `refused`."""
    read, collector = _Read(), Collector(name)
    for position, record in enumerate(records(source)):
        text, cuts = _compose(record.sections, sections)
        if not text:
            detail = f"none of {', '.join(sections)} in {', '.join(record.sections) or 'nothing'}"
            refused.append(Reject(record.id, "empty_report", detail))
            continue
        numbers = views_.numbers(record, views) if record.images or need_images else (0,)
        if not numbers and not record.images:
            refused.append(Reject(record.id, "missing_image", "the record has no image"))
        elif not numbers:
            detail = f"none of {', '.join(views_.FRONTAL)} among {len(record.images)} images"
            refused.append(Reject(record.id, "no_frontal_projection", detail))
        read.positions += [position] * len(numbers)
        read.ids += [views_.example_id(record, number, views) for number in numbers]
        read.patients += [record.patient_id] * len(numbers)
        read.studies += [record.study_id] * len(numbers)
        read.texts += [text] * len(numbers)
        read.cuts += [cuts] * len(numbers)
        read.numbers += numbers
        read.choices += [len(record.images) if views == "random" else 1] * len(numbers)
        for number in numbers:
            collector.add(record if len(numbers) == 1 else views_.seen_by(record, number))
    if hasattr(source, "starts") and len(set(read.ids)) < len(read.ids):
        (twice, _), *_ = collections.Counter(read.ids).most_common(1)
        raise InputError(f"{name}: two records are {twice!r}; expected parts without overlap")
    return read, collector


def _compose(sections: Mapping[str, str], wanted: Sequence[str]) -> tuple[str, tuple[int, ...]]:
    """The wanted sections as one text, and `Corpus.cuts` of it."""
    each = (reports.normalise(reports.compose(sections, (name,))) for name in wanted)
    parts = [part for part in each if part]
    ends = itertools.accumulate((len(part) + 1 for part in parts[:-1]), initial=-1)
    return " ".join(parts), tuple(ends)[1:]


@dataclasses.dataclass
class _Read:
    """The examples found so far, column by column; see `Corpus`."""

    positions: list[int] = dataclasses.field(default_factory=list)
    ids: list[str] = dataclasses.field(default_factory=list)
    patients: list[str] = dataclasses.field(default_factory=list)
    studies: list[str] = dataclasses.field(default_factory=list)
    texts: list[str] = dataclasses.field(default_factory=list)
    cuts: list[tuple[int, ...]] = dataclasses.field(default_factory=list)
    numbers: list[int] = dataclasses.field(default_factory=list)
    choices: list[int] = dataclasses.field(default_factory=list)


def group_ids(studies: Sequence[str], texts: Sequence[str]) -> np.ndarray:
    """Duplicate groups, i32[N]: connected components of "same study" and "same canonical text".

    The number of a group is the index of its first member.
    """
    first: dict[tuple[str, str], int] = {}
    pairs = (
        (first.setdefault(key, index), index)
        for index, (study, text) in enumerate(zip(studies, texts, strict=True))
        for key in (("study", study), ("text", reports.canonical(text)))
    )
    return connected_components(len(studies), pairs).astype(np.int32)


def describe(corpus: Corpus) -> Mapping[str, Any]:
    """Figures of a corpus that are printed before training starts."""
    words = np.asarray([len(text.split()) for text in corpus.texts])
    return {
        "records": len(corpus),
        "patients": len(set(corpus.patients)),
        "median words": int(np.median(words)),
        "in duplicate groups": f"{corpus.duplicate_share():.1%}",
        "rejected": rejects.summarise(corpus.rejects) or 0,
    }
