"""One split of one source, read once as text: what training and evaluation both stand on."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mmrl.data import rejects, reports
from mmrl.data.fingerprints import Collector, Fingerprint
from mmrl.types import InputError, Record, Reject, Source


@dataclasses.dataclass(frozen=True)
class Corpus:
    """The usable records of a split with the text that the encoders will read.

    Attributes:
      name: "source/split".
      source: where records come from; `positions` are the indices used.
      ids, patients, texts: one entry per usable record.
      groups: i32[N]; records of the same study, or with the same text up to case, space and
        punctuation, share a group and so are not negatives of each other.
      rejects: what the source and this scan refused. total: records before that.
      fingerprint: digests that tell whether another corpus holds the same records.
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
    fingerprint: Fingerprint

    def __len__(self) -> int:
        return len(self.ids)

    def record(self, index: int) -> Record:
        """The full record of usable item `index`."""
        return self.source[int(self.positions[index])]

    @property
    def load(self) -> Callable[[int, int], np.ndarray]:
        """(position in the source, number of the image) -> u8 or u16[H, W]; pickles."""
        fast = getattr(self.source, "image", None)
        return functools.partial(_load, self.source) if fast is None else fast

    def image(self, index: int) -> np.ndarray:
        """The image of usable item `index`: u8 or u16[H, W].

        Raises:
          InputError: it cannot be read; names the record.
        """
        try:
            return self.load(int(self.positions[index]), 0)
        except InputError as error:
            raise InputError(f"record {self.ids[index]}: {error}") from None

    def duplicate_share(self) -> float:
        """Share of records that have at least one other record in their group."""
        counts = np.bincount(self.groups, minlength=1)
        return float(np.mean(counts[self.groups] > 1)) if len(self) else 0.0

    def sha256(self) -> str:
        """Identity of ids, texts and groups, in order."""
        content = json.dumps([self.ids, self.patients, self.texts, self.groups.tolist()])
        return hashlib.sha256(content.encode()).hexdigest()


def _load(source: Source, position: int, number: int) -> np.ndarray:
    return source[position].images[number].load()


def read_corpus(
    name: str, source: Source, *, sections: Sequence[str], allow_empty: bool = False
) -> Corpus:
    """Reads the text of every record of `source` once.

    Args:
      name: "source/split", for messages.
      sections: which report sections, in this order, make up the text.
      allow_empty: return an empty corpus instead of refusing it.

    Records without an image or without any of the sections are rejected with their reason.

    Raises:
      InputError: no usable record, unless `allow_empty`.
    """
    kept: list[int] = []
    ids: list[str] = []
    patients: list[str] = []
    studies: list[str] = []
    texts: list[str] = []
    refused = list(source.rejects)
    collector = Collector(name)
    for position in range(len(source)):
        record = source[position]
        text = reports.normalise(reports.compose(record.sections, tuple(sections)))
        if not text:
            detail = f"none of {', '.join(sections)} in {', '.join(record.sections) or 'nothing'}"
            refused.append(Reject(record.id, "empty_report", detail))
            continue
        if not record.images:
            refused.append(Reject(record.id, "missing_image", "the record has no image"))
            continue
        kept.append(position)
        ids.append(record.id)
        patients.append(record.patient_id)
        studies.append(record.study_id)
        texts.append(text)
        collector.add(record)
    if not kept and not allow_empty:
        why = ", ".join(f"{n} {reason}" for reason, n in rejects.summarise(refused).items())
        raise InputError(
            f"{name} has no usable record ({source.total} rows; rejected: {why or 'none'}); "
            "check the path, the split fractions and config.data.sections"
        )
    return Corpus(
        name=name,
        source=source,
        positions=np.asarray(kept, np.int64),
        ids=tuple(ids),
        patients=tuple(patients),
        texts=tuple(texts),
        groups=group_ids(studies, texts),
        rejects=tuple(refused),
        total=source.total,
        fingerprint=collector.finish(texts),
    )


def group_ids(studies: Sequence[str], texts: Sequence[str]) -> np.ndarray:
    """i32[N]: connected components of "same study" and "same canonical text".

    A group's id is the index of its first member.
    """
    parent = np.arange(len(studies))

    def root(item: int) -> int:
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = int(parent[item])
        return item

    first: dict[tuple[str, str], int] = {}
    for index, (study, text) in enumerate(zip(studies, texts, strict=True)):
        for key in (("study", study), ("text", reports.canonical(text))):
            a, b = root(first.setdefault(key, index)), root(index)
            parent[max(a, b)] = min(a, b)
    return np.asarray([root(index) for index in range(len(studies))], np.int32)


def describe(corpus: Corpus) -> Mapping[str, Any]:
    """The figures worth printing before training starts."""
    words = np.asarray([len(text.split()) for text in corpus.texts])
    return {
        "records": len(corpus),
        "patients": len(set(corpus.patients)),
        "median words": int(np.median(words)),
        "shared groups": f"{corpus.duplicate_share():.1%}",
        "rejected": rejects.summarise(corpus.rejects) or 0,
    }
