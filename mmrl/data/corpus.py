"""One split of one source, with its texts read into memory; training and evaluation use it."""

import bisect
import collections
import dataclasses
import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mmrl import sequences
from mmrl.data import priors
from mmrl.data import views as views_
from mmrl.data.image import channels
from mmrl.data.overlap.fingerprints import Collector, Fingerprint
from mmrl.data.overlap.joins import connected_components
from mmrl.data.reading import bags, rejects
from mmrl.data.text import reports
from mmrl.data.text.language import NOT_ENGLISH, is_english
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
      counts: i32[N], how many images the record of each example has.
      more: sections of a further text -> (texts, cuts) of the examples, "" where there is none.
      label_names, labels: i8[N, C], raw labels, -2 where a record does not state one.
      vectors: f32[N, F], NaN for records without a vector; None if no record has one.
      foreign: positions of the examples whose text is not English.
      priors: i64[N], the example of the prior of each example, -1 where there is none, see
        `mmrl.data.priors`.
      bags: bool[N], which examples have a bag of features.
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
    counts: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int32))
    more: Mapping[tuple[str, ...], tuple[Sequence[str], Sequence[tuple[int, ...]]]] = (
        dataclasses.field(default_factory=dict)
    )
    label_names: tuple[str, ...] = ()
    labels: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 0), np.int8))
    vectors: np.ndarray | None = None
    foreign: frozenset[int] = frozenset()
    priors: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))
    bags: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.bool_))

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
        return self.collector.finish(self.all_texts)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a user should read before trusting figures of the corpus; results repeat it."""
        return tuple(getattr(self.source, "warnings", ()))

    @property
    def all_texts(self) -> Sequence[str]:
        """All that is read of each report: its main text or, where that is empty, `more`."""
        if not self.more or all(self.texts):
            return self.texts
        others = zip(*(texts for texts, _ in self.more.values()), strict=True)
        pairs = zip(self.texts, others, strict=True)
        return tuple(text or " ".join(filter(None, more)) for text, more in pairs)

    def texts_of(
        self, sections: tuple[str, ...]
    ) -> tuple[Sequence[str], Sequence[tuple[int, ...]]]:
        """(texts, cuts) of the examples, made of some sections: the main text or one of `more`."""
        return self.more.get(sections, (self.texts, self.cuts))

    @property
    def load(self) -> Callable[[int, int], np.ndarray]:
        """(position in the source, number of the image) -> image, see `loader`; can be pickled."""
        return loader(self.source)

    @property
    def channels(self) -> int:
        """1: images are [H, W]; 3: [H, W, 3]; 0: those of some parts are grey, others in colour."""
        return channels.of(self.source)

    @property
    def weights(self) -> tuple[float, ...] | None:
        """The weights of the parts of a mixture; None if all examples are equally frequent."""
        return getattr(self.source, "weights", None)

    @property
    def parts(self) -> np.ndarray:
        """i64[N], the part of a mixture that each example belongs to; 0 without a mixture."""
        starts = getattr(self.source, "starts", np.zeros(1, np.int64))
        return np.searchsorted(starts, self.positions, side="right") - 1

    def bag(self, index: int) -> np.ndarray:
        """The bag of features of example `index`, f[S, F].

        Raises:
          InputError: the record has none, or it cannot be read; names the record.
        """
        make = self.source[int(self.positions[index])].bag
        try:
            if make is None:
                raise InputError("no bag of features")
            return bags.checked(make())
        except InputError as error:
            raise InputError(f"record {self.ids[index]}: {error}") from None

    def image(self, index: int) -> np.ndarray:
        """The image that evaluation uses of example `index`, u8 or u16 [H, W] or [H, W, 3].

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
        """Digest of ids, patients, texts, groups and choice of images, in order.

        Where no example has a text, the labels count instead.
        """
        content = [self.ids, self.patients, self.texts, self.groups.tolist()]
        if self.numbers.any():
            content.append(self.numbers.tolist())
        content += [texts for texts, _ in self.more.values()]
        if not any(self.all_texts):
            content += [self.label_names, self.labels.tolist()]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def loader(source: Source) -> Callable[[int, int], np.ndarray]:
    """(position, number of the image) -> u8 or u16 [H, W], or [H, W, 3] of a source in colour.

    It is the fastest way that the source has.
    """
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
    need_texts: bool = True,
    more: Sequence[tuple[tuple[str, ...], bool]] = (),
    allow_empty: bool = False,
) -> Corpus:
    """Reads the text of every record of `source` once.

    Args:
      name: "source/split", for messages.
      sections: the report sections that make up the text, in this order.
      views: which images become examples, see `mmrl.data.views`.
      need_images, need_texts: whether to reject records without an image, or without a text.
      more: sections of further texts, and whether records without such a text are rejected.
      allow_empty: whether to return an empty corpus instead of raising.

    Records without any of the sections, without an image, or without an image that `views` accepts
    are rejected with their reason.

    Raises:
      UnusableError: no usable record, unless `allow_empty`.
      InputError: an unknown choice of views.
    """
    views_.check(views)
    refused = list(source.rejects)
    columns = ((tuple(sequences.each(sections, "sections")), need_texts), *more)
    read, collector = _scan(name, source, columns, views, need_images, refused)
    if not read.ids and not allow_empty:
        reasons = rejects.summarise(refused)
        lacking = {"empty_report": "texts", "missing_image": "images"}
        only = next(iter(reasons)) if len(reasons) == 1 and len(source) else ""
        hint = ""
        if read.other_sections:
            hint = (
                f"; the text is to be made of {', '.join(columns[0][0])}, and records have "
                f"{', '.join(read.other_sections)}: choose with --config.data.sections=NAME,NAME"
            )
        elif only in lacking:
            hint = (
                f"; if it has no {lacking[only]}, choose objectives and evaluators that read none"
            )
        raise rejects.UnusableError(
            f"{name} has no usable record ({source.total} rows; rejected:"
            f" {rejects.explain(refused) or 'none'}); check the path, the split fractions and"
            f" config.data.sections{hint}",
            refused,
        )
    return Corpus(
        name=name,
        source=source,
        positions=np.asarray(read.positions, np.int64),
        ids=tuple(read.ids),
        patients=tuple(read.patients),
        texts=tuple(read.texts),
        groups=group_ids(read.studies, read.texts, *read.more),
        rejects=tuple(refused),
        total=source.total,
        collector=collector,
        numbers=np.asarray(read.numbers, np.int32),
        choices=np.asarray(read.choices, np.int32),
        cuts=tuple(read.cuts),
        views=views,
        counts=np.asarray(read.counts, np.int32),
        more={
            chosen: (tuple(texts), tuple(cuts))
            for (chosen, _), texts, cuts in zip(more, read.more, read.more_cuts, strict=True)
        },
        label_names=tuple(read.label_columns),
        labels=read.label_table(),
        vectors=read.vector_table(),
        foreign=frozenset(read.foreign),
        priors=priors.find(read.seen),
        bags=np.asarray(read.bags, np.bool_),
    )


def _scan(
    name: str,
    source: Source,
    columns: Sequence[tuple[tuple[str, ...], bool]],
    views: str,
    need_images: bool,
    refused: list[Reject],
) -> tuple["_Read", Collector]:
    """Reads every record; adds rejected ones to `refused`."""
    read, collector = _Read(), Collector(name)
    starts = getattr(source, "starts", np.zeros(1, np.int64)).tolist()
    read.more = [[] for _ in columns[1:]]
    read.more_cuts = [[] for _ in columns[1:]]
    for position, record in enumerate(records(source)):
        (text, cuts), *others = (_compose(record.sections, chosen) for chosen, _ in columns)
        absent = [
            chosen
            for (chosen, required), (found, _) in zip(columns, [(text, cuts), *others], strict=True)
            if required and not found
        ]
        if absent:
            wanted = ", ".join(absent[0])
            detail = f"none of {wanted} in {', '.join(record.sections) or 'nothing'}"
            refused.append(Reject(record.id, "empty_report", detail))
            if columns[0][0] in absent:
                read.other_sections |= dict.fromkeys(record.sections)
            continue
        numbers = views_.numbers(record, views) if record.images or need_images else (0,)
        if not numbers and not record.images:
            refused.append(Reject(record.id, "missing_image", "the record has no image"))
        elif not numbers:
            detail = f"none of {', '.join(views_.FRONTAL)} among {len(record.images)} images"
            refused.append(Reject(record.id, "no_frontal_projection", detail))
        if not is_english(record.language):
            read.foreign += range(len(read.ids), len(read.ids) + len(numbers))
        read.positions += [position] * len(numbers)
        read.ids += [views_.example_id(record, number, views) for number in numbers]
        read.patients += [record.patient_id] * len(numbers)
        read.studies += [record.study_id] * len(numbers)
        read.texts += [text] * len(numbers)
        read.cuts += [cuts] * len(numbers)
        read.numbers += numbers
        read.choices += [len(record.images) if views == "random" else 1] * len(numbers)
        read.counts += [len(record.images)] * len(numbers)
        for texts, all_cuts, (other, other_cuts) in zip(
            read.more, read.more_cuts, others, strict=True
        ):
            texts += [other] * len(numbers)
            all_cuts += [other_cuts] * len(numbers)
        read.add_labels(record, len(numbers))
        read.vectors += [record.vector] * len(numbers)
        read.bags += [record.bag is not None] * len(numbers)
        part = bisect.bisect_right(starts, position) - 1
        read.seen += [_seen(part, record, number) for number in numbers]
        for number in numbers:
            collector.add(record if len(numbers) == 1 else views_.seen_by(record, number))
    if hasattr(source, "starts") and len(set(read.ids)) < len(read.ids):
        (twice, _), *_ = collections.Counter(read.ids).most_common(1)
        raise InputError(f"{name}: two records are {twice!r}; expected parts without overlap")
    return read, collector


def _seen(part: int, record: Record, number: int) -> priors.Seen:
    projection = record.images[number].projection if record.images else ""
    return priors.Seen(
        part,
        record.id,
        record.patient_id,
        record.study_id,
        record.prior_id,
        record.time,
        projection,
    )


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
    counts: list[int] = dataclasses.field(default_factory=list)
    more: list[list[str]] = dataclasses.field(default_factory=list)
    more_cuts: list[list[tuple[int, ...]]] = dataclasses.field(default_factory=list)
    label_columns: dict[str, int] = dataclasses.field(default_factory=dict)
    labels: list[tuple[tuple[str, ...], tuple[int, ...]]] = dataclasses.field(default_factory=list)
    vectors: list[Sequence[float] | None] = dataclasses.field(default_factory=list)
    foreign: list[int] = dataclasses.field(default_factory=list)
    seen: list[priors.Seen] = dataclasses.field(default_factory=list)
    bags: list[bool] = dataclasses.field(default_factory=list)
    # What records have that lack the sections that were chosen, in order.
    other_sections: dict[str, None] = dataclasses.field(default_factory=dict)

    def add_labels(self, record: Record, times: int) -> None:
        """Keeps the labels of a record; records may name different ones."""
        for label in record.label_names:
            self.label_columns.setdefault(label, len(self.label_columns))
        self.labels += [(record.label_names, record.labels)] * times

    def label_table(self) -> np.ndarray:
        """i8[N, C], -2 where a record does not state the label."""
        table = np.full((len(self.labels), len(self.label_columns)), -2, np.int8)
        columns = tuple(self.label_columns)
        for row, (names, values) in zip(table, self.labels, strict=True):
            if names == columns:
                row[:] = values
            elif names:
                row[[self.label_columns[name] for name in names]] = values
        return table

    def vector_table(self) -> np.ndarray | None:
        """f32[N, F], NaN where a record has no vector; None if none has one.

        Raises:
          InputError: vectors of different sizes.
        """
        sizes = {len(vector) for vector in self.vectors if vector is not None}
        if len(sizes) > 1:
            raise InputError(f"vectors of {sorted(sizes)} numbers; expected one size")
        if not sizes:
            return None
        table = np.full((len(self.vectors), *sizes), np.nan, np.float32)
        for row, vector in zip(table, self.vectors, strict=True):
            if vector is not None:
                row[:] = vector
        return table


def group_ids(studies: Sequence[str], texts: Sequence[str], *more: Sequence[str]) -> np.ndarray:
    """Duplicate groups, i32[N]: connected components of "same study" and "same canonical text".

    The number of a group is the index of its first member. An empty text equals no other.

    Args:
      more: further texts of the same N examples, each compared within itself.
    """
    studies = sequences.of(studies, "studies")
    columns = [sequences.of(one, "texts") for one in (texts, *more)]
    first: dict[tuple[str, str], int] = {}
    pairs = (
        (first.setdefault(key, index), index)
        for index, (study, *own) in enumerate(zip(studies, *columns, strict=True))
        for key in (
            ("study", study),
            *((str(n), reports.canonical(text)) for n, text in enumerate(own) if text),
        )
    )
    return connected_components(len(studies), pairs).astype(np.int32)


def describe(corpus: Corpus) -> Mapping[str, Any]:
    """Figures of a corpus that are printed before training starts."""
    words = np.asarray([len(text.split()) for text in corpus.all_texts])
    return {
        "records": len(corpus),
        "patients": len(set(corpus.patients)),
        **({"median words": int(np.median(words))} if words.any() else {"texts": "none"}),
        **({NOT_ENGLISH: len(corpus.foreign)} if corpus.foreign else {}),
        "in duplicate groups": f"{corpus.duplicate_share():.1%}",
        "rejected": rejects.in_words(rejects.summarise(corpus.rejects)) or "0",
    }
