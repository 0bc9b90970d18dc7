"""The inventory of a source, taken before anything is written: records, rejects, facts, digest."""

import array
import collections
import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgpack
import numpy as np

from mmrl import build
from mmrl.data.corpus import records
from mmrl.data.image import channels
from mmrl.data.reading import rejects
from mmrl.data.reading.listing import ALL, Listing
from mmrl.data.reading.shards import OPTIONAL_FIELDS
from mmrl.data.reading.splits import SPLITS
from mmrl.preparation.pseudonyms import Pseudonymised
from mmrl.types import InputError, Record, Reject, Source

# Options that state the place of files, which is not recorded in a prepared corpus.
_PLACES = ("path", "root", "boxes", "follow_links", "key_file", "module")
_PLACE_ENDS = ("_dir", "_root", "_path", "_folder", "_file")
_NO_MATTER = ("num_threads",)


@dataclasses.dataclass(frozen=True)
class Part:
    """The records of one split.

    Attributes:
      source: a source that has them.
      positions: i64[N], their positions in the source.
      read_as: the split of the source: the same, or "all".
    """

    source: Source
    positions: np.ndarray
    read_as: str

    def __len__(self) -> int:
        return len(self.positions)

    def records(self, start: int, stop: int) -> list[Record]:
        """Records `start` to `stop` - 1 of the split."""
        return [self.source[int(position)] for position in self.positions[start:stop]]


@dataclasses.dataclass(frozen=True)
class Inventory:
    """What is known of a corpus after all text has been read and no image.

    Attributes:
      name: name of the source.
      options: options of the source that affect the records, without those that state places.
      parts: split -> its records.
      images: split -> number of its images.
      facts: the `Facts` of the source, {} where it has none.
      licenses, access: value -> number of records.
      texts: section -> number of records with text in it; "both" and "neither" count findings and
        impression together.
      channels: of the images, 1 or 3.
      label_names: label names of all records with labels.
      sections: names of all sections, in the order of occurrence.
      optional: those of `shards.OPTIONAL_FIELDS` that any record has.
      rejects, total, missing_images, warnings: those of the source for all splits. Details name
        files relative to the folders of the corpus.
      places: prefixes of file names, which depend on the place of the corpus.
      sha256: digest of all text, labels, vectors, names of images and rejects, in order.
    """

    name: str
    options: Mapping[str, Any]
    parts: Mapping[str, Part]
    images: Mapping[str, int]
    facts: Mapping[str, Any]
    licenses: Mapping[str, int]
    access: Mapping[str, int]
    texts: Mapping[str, int]
    channels: int
    label_names: tuple[str, ...]
    sections: tuple[str, ...]
    optional: tuple[str, ...]
    rejects: tuple[Reject, ...]
    total: int
    missing_images: int
    warnings: tuple[str, ...]
    sha256: str
    places: tuple[str, ...]

    @property
    def records(self) -> int:
        """Number of records of all splits."""
        return sum(map(len, self.parts.values()))

    def check_rejects(
        self, later: Sequence[Reject], max_fraction: float, *, allow_missing: bool
    ) -> None:
        """Raises InputError when too many records were refused or lost an image.

        Args:
          later: items that were refused when images were encoded.
          max_fraction: the share of all records that may be refused or lose an image.
          allow_missing: do not count missing images.

        Raises:
          InputError: above the limit; the message counts the reasons.
        """
        counted = [
            reject
            for reject in (*self.rejects, *later)
            if not (allow_missing and reject.reason == "missing_image")
        ]
        # Refused images count like records: their ids cannot be distinguished reliably.
        rejects.check_fraction(
            min(len(counted), self.total),
            self.total,
            max_fraction,
            what=f"records of {self.name}, or images of them,",
            rejects=counted,
            option="--max-reject-fraction",
        )


def take(
    name: str,
    options: Mapping[str, Any],
    *,
    key: bytes | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Inventory:
    """Constructs a source for all splits and reads all text.

    Args:
      name, options: the source and its options without `split`.
      key: secret key of the pseudonyms that replace ids; None keeps ids.
      progress: called with the number of records that have been read.

    Raises:
      InputError: as the source; an unknown option, two records with the same id, or label names
        that differ between records.
    """
    kind = build.find("source", name)
    build.check_options(f"source {name}", kind, options, supplied=("split",))
    splits = (ALL,) if issubclass(kind, Listing) else SPLITS
    sources: dict[str, Any] = {split: kind(split=split, **options) for split in splits}
    stored = channels.of(next(iter(sources.values())))
    if not stored:
        raise InputError(f"{name} has grey and colour parts; prepare each of them by itself")
    if key is not None:
        sources = {split: Pseudonymised(source, key) for split, source in sources.items()}
    refused = [reject for source in sources.values() for reject in source.rejects]
    places = _places(options)
    reading = _Reading(progress)
    for split, source in sources.items():
        reading.add(source, "" if split == ALL else split)
    first = next(iter(sources.values()))
    facts = getattr(first, "facts", None)
    stated = getattr(first, "manifest", {}).get("facts", {})  # of a prepared corpus
    draft = Inventory(
        name=name,
        options={
            **{k: v for k, v in options.items() if k not in _NO_MATTER and not _is_place(k)},
            **({"pseudonymised": True} if key is not None else {}),
        },
        parts=reading.parts(),
        images=reading.images,
        facts=dataclasses.asdict(facts) if facts is not None else stated,
        licenses=_by_count(reading.licenses),
        access=_by_count(reading.access),
        texts=reading.texts_by_section(),
        channels=channels.check(f"channels of {name}", stored),
        label_names=reading.label_names,
        sections=tuple(reading.sections),
        optional=tuple(name for name in OPTIONAL_FIELDS if name in reading.optional),
        rejects=(),
        total=sum(source.total for source in sources.values()),
        missing_images=sum(getattr(source, "missing_images", 0) for source in sources.values()),
        warnings=tuple(
            # Each once: a source of one split repeats those of the others.
            dict.fromkeys(w for source in sources.values() for w in getattr(source, "warnings", ()))
        ),
        sha256="",
        places=places,
    )
    listed = tuple(without_places(reject, places) for reject in refused)
    for reject in listed:
        reading.digest.update(msgpack.packb(dataclasses.astuple(reject)))
    return dataclasses.replace(draft, rejects=listed, sha256=reading.digest.hexdigest())


def without_places(reject: Reject, places: Iterable[str]) -> Reject:
    """The reject with file names relative to the folders of the corpus."""
    detail = reject.detail
    for place in places:
        detail = detail.replace(place, "")
    return dataclasses.replace(reject, detail=detail)


class _Reading:
    """One pass over the records of all splits."""

    def __init__(self, progress: Callable[[int], None]) -> None:
        self.digest = hashlib.sha256()
        self.images = dict.fromkeys(SPLITS, 0)
        self.licenses: collections.Counter[str] = collections.Counter()
        self.access: collections.Counter[str] = collections.Counter()
        self._texts: collections.Counter[str] = collections.Counter()
        self.label_names: tuple[str, ...] = ()
        self.sections: dict[str, None] = {}
        self.optional: set[str] = set()
        self._progress = progress
        self._sources: dict[str, tuple[Source, str]] = {}
        self._positions = {split: array.array("q") for split in SPLITS}
        self._ids = array.array("Q")  # 64 bits of the digest of each id, to save memory

    def add(self, source: Source, split: str) -> None:
        """Reads the records of a source; split "" takes the split of each record."""
        for position, record in enumerate(records(source)):
            at = split or record.split
            self._sources[at] = source, split or ALL
            self._positions[at].append(position)
            self._note(record, at)
            if len(self._ids) % 1000 == 0:
                self._progress(len(self._ids))

    def parts(self) -> dict[str, Part]:
        """Split -> records; InputError when two records have the same id."""
        ids = np.frombuffer(self._ids, np.uint64)
        twice = len(ids) - len(np.unique(ids))
        if twice:
            raise InputError(f"{twice:,} records have the id of another; expected every id once")
        return {
            split: Part(source, np.frombuffer(self._positions[split], np.int64), read_as)
            for split, (source, read_as) in sorted(
                self._sources.items(), key=lambda item: SPLITS.index(item[0])
            )
        }

    def texts_by_section(self) -> dict[str, int]:
        """See `Inventory.texts`; "both" and "neither" only if any record has either section."""
        pair = ("findings", "impression")
        named = {name: self._texts[name] for name in (*pair, "both", "neither")}
        others = {n: self._texts[n] for n in sorted(self._texts) if n not in named}
        return {**(named if any(self._texts[name] for name in pair) else {}), **others}

    def _note(self, record: Record, split: str) -> None:
        self._ids.append(
            int.from_bytes(hashlib.blake2b(record.id.encode(), digest_size=8).digest())
        )
        self.images[split] += len(record.images)
        self.licenses[record.license] += 1
        self.access[record.access] += 1
        held = {name for name, text in record.sections.items() if text.strip()}
        self._texts.update(held)
        self._texts["both"] += {"findings", "impression"} <= held
        self._texts["neither"] += not {"findings", "impression"} & held
        self.sections.update(dict.fromkeys(record.sections))
        self.optional.update(n for n in OPTIONAL_FIELDS if getattr(record, n) is not None)
        if record.labels and record.label_names != self.label_names:
            if self.label_names:
                raise InputError(f"{record.id} has other label names than the records before it")
            self.label_names = record.label_names
        fields = {field.name: getattr(record, field.name) for field in _IDENTITY}
        fields["images"] = [
            (image.key, image.projection, image.projection_source, image.spacing)
            for image in record.images
        ]
        fields["split"] = split
        if record.bag is not None:
            fields["bag"] = True
        if record.provenance is not None:
            fields["provenance"] = record.provenance
        self.digest.update(msgpack.packb(fields, default=_plain))


# Boxes, masks and bags are left out, since they may have to be drawn or read; what few corpora have
# is added where it is there, so that the digests of others stay what they were.
_IDENTITY = [
    field
    for field in dataclasses.fields(Record)
    if field.name not in ("images", "boxes", "masks", "split", "bag", "provenance")
]


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.astuple(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence):
        return list(value)
    raise TypeError(f"{type(value).__name__} in a record")


def _by_count(counts: collections.Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _is_place(option: str) -> bool:
    return option in _PLACES or option.endswith(_PLACE_ENDS)


def _places(options: Mapping[str, Any]) -> tuple[str, ...]:
    """Prefixes of file names that depend on the place of the corpus, longest first."""
    found = set()
    for option, value in options.items():
        for one in ((value,) if isinstance(value, str) else value) if _is_place(option) else ():
            folder = one if os.path.isdir(one) else os.path.dirname(one)
            for given in (folder, os.path.abspath(folder), os.path.realpath(folder)):
                found.add(os.path.join(given, "") if given else "")
    return tuple(sorted(filter(None, found), key=lambda place: (-len(place), place)))
