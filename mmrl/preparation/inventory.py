"""What a source holds, before anything is written: records by split, refusals, facts, identity."""

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
from mmrl.data.reading import rejects
from mmrl.data.reading.listing import ALL, Listing
from mmrl.data.reading.splits import SPLITS
from mmrl.preparation.pseudonyms import Pseudonymised
from mmrl.types import InputError, Record, Reject, Source

# Options that say where files lie; where a corpus lay when it was prepared is no part of it.
_PLACES = ("path", "root", "key_file", "module")
_PLACE_ENDS = ("_dir", "_root", "_path", "_folder", "_file")
_NO_MATTER = ("num_threads",)


@dataclasses.dataclass(frozen=True)
class Part:
    """The records of one split: `positions` i64[N] of `source`, in its order.

    `read_as` is the split that the source was asked for: the same, or "all".
    """

    source: Source
    positions: np.ndarray
    read_as: str

    def __len__(self) -> int:
        return len(self.positions)

    def records(self, start: int, stop: int) -> list[Record]:
        """Records `start` to `stop` of the split."""
        return [self.source[int(position)] for position in self.positions[start:stop]]


@dataclasses.dataclass(frozen=True)
class Inventory:
    """What is known of a corpus when all its text has been read and no image.

    Attributes:
      name: of the source. options: those that shape the records, without places.
      parts: split -> its records. images: split -> how many images they name.
      facts: of the owner, {} for a source that has none.
      licenses, access: how many records state which.
      texts: how many hold text in which section; and, of findings and impression, both or neither.
      label_names: of all records with labels. sections: all that a record has, in order.
      rejects, total, missing_images, warnings: as of the source, all splits together; details
        name files relative to the given folders.
      places: prefixes of file names that tell where the corpus lies.
      sha256: identity of all text, labels, handles and refusals, in order.
    """

    name: str
    options: Mapping[str, Any]
    parts: Mapping[str, Part]
    images: Mapping[str, int]
    facts: Mapping[str, Any]
    licenses: Mapping[str, int]
    access: Mapping[str, int]
    texts: Mapping[str, int]
    label_names: tuple[str, ...]
    sections: tuple[str, ...]
    rejects: tuple[Reject, ...]
    total: int
    missing_images: int
    warnings: tuple[str, ...]
    sha256: str
    places: tuple[str, ...]

    @property
    def records(self) -> int:
        """Of all splits."""
        return sum(map(len, self.parts.values()))

    def check_rejects(
        self, later: Sequence[Reject], max_fraction: float, *, allow_missing: bool
    ) -> None:
        """Stops when too many records were refused, or lost an image.

        Args:
          later: refused when images were encoded.
          allow_missing: missing images do not count.

        Raises:
          InputError: more than `max_fraction` of all records; the message counts the reasons.
        """
        counted = [
            reject
            for reject in (*self.rejects, *later)
            if not (allow_missing and reject.reason == "missing_image")
        ]
        # Each image counts: ids may hold any mark, so a part cannot be told from its record.
        rejects.check_fraction(
            min(len(counted), self.total),
            self.total,
            max_fraction,
            what=f"records of {self.name}, or images of them,",
            reasons=counted,
            option="--max-reject-fraction",
        )


def take(
    name: str,
    options: Mapping[str, Any],
    *,
    key: bytes | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Inventory:
    """Constructs a source and reads all its text.

    Args:
      options: of the source, but for `split`.
      key: secret of the pseudonyms that replace ids; None: ids stay.
      progress: called with the number of records read so far.

    Raises:
      InputError: as the source says, or an option it does not take; or two records of one id, or
        label names that change between records.
    """
    kind = build.find("source", name)
    build.check_options(f"source {name}", kind, options, supplied=("split",))
    splits = (ALL,) if issubclass(kind, Listing) else SPLITS
    sources: dict[str, Any] = {split: kind(split=split, **options) for split in splits}
    if key is not None:
        sources = {split: Pseudonymised(source, key) for split, source in sources.items()}
    refused = [reject for source in sources.values() for reject in source.rejects]
    places = _places(options)
    reading = _Reading(progress)
    for split, source in sources.items():
        reading.add(source, "" if split == ALL else split)
    first = next(iter(sources.values()))
    facts = getattr(first, "facts", None)  # of the release that it found
    stated = getattr(first, "manifest", {}).get("facts", {})  # of a corpus prepared before
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
        label_names=reading.label_names,
        sections=tuple(reading.sections),
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
    """The refusal, with the files it names relative to the folders of the corpus."""
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
        self._progress = progress
        self._sources: dict[str, tuple[Source, str]] = {}
        self._positions = {split: array.array("q") for split in SPLITS}
        self._ids = array.array("Q")  # 64 bits of each id's digest: a set of strings would not fit

    def add(self, source: Source, split: str) -> None:
        """Reads the records of a source; those of split "" tell their own."""
        for position, record in enumerate(records(source)):
            at = split or record.split
            self._sources[at] = source, split or ALL
            self._positions[at].append(position)
            self._note(record, at)
            if len(self._ids) % 1000 == 0:
                self._progress(len(self._ids))

    def parts(self) -> dict[str, Part]:
        """Split -> records; raises InputError when two records share an id."""
        ids = np.frombuffer(self._ids, np.uint64)
        twice = len(ids) - len(np.unique(ids))
        if twice:
            raise InputError(f"{twice:,} records share the id of another; expected every id once")
        return {
            split: Part(source, np.frombuffer(self._positions[split], np.int64), read_as)
            for split, (source, read_as) in sorted(
                self._sources.items(), key=lambda item: SPLITS.index(item[0])
            )
        }

    def texts_by_section(self) -> dict[str, int]:
        """See `Inventory.texts`; without both and neither where no record has either."""
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
        self.digest.update(msgpack.packb(fields, default=_plain))


# Boxes and masks may have to be drawn to be known, and come with their images.
_IDENTITY = [
    field
    for field in dataclasses.fields(Record)
    if field.name not in ("images", "boxes", "masks", "split")
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
    """Prefixes of file names that depend on where a corpus lies, longest first."""
    found = set()
    for option, value in options.items():
        if _is_place(option) and isinstance(value, str) and value:
            folder = value if os.path.isdir(value) else os.path.dirname(value)
            for given in (folder, os.path.abspath(folder), os.path.realpath(folder)):
                found.add(os.path.join(given, "") if given else "")
    return tuple(sorted(filter(None, found), key=lambda place: (-len(place), place)))
