"""Ids of a corpus replaced by keyed hashes, for corpora whose ids or file names tell who it is.

With `--key-file` every id that leaves a preparation is a pseudonym: of records, patients, studies,
leakage units and images. The same key gives the same pseudonyms, so that later deliveries of a
hospital join; without the key nobody can try candidates. Text is not touched: reports must be
de-identified before they come here.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from mmrl.data.image.dicom import pseudonym
from mmrl.preparation.encode import STUMBLES
from mmrl.types import InputError, Record, Reject, Source

_UNTOLD = "not told: the corpus is pseudonymised"


class UnreadableError(InputError):
    """An image that could not be read, without the message that may name its file."""

    def __init__(self, reason: str) -> None:
        super().__init__(_UNTOLD)
        self.reason = reason


class Pseudonymised:
    """A source whose records and rejects carry pseudonyms; a Source.

    Args:
      source: with ids in clear; divided into splits by those, so a key never moves a record.
      key: secret, see `mmrl.data.image.dicom.load_key`.

    Attributes:
      rejects: with pseudonyms, and without the detail, which may quote ids and file names.
      total, missing_images, warnings, note, facts: as of the source.
    """

    def __init__(self, source: Source, key: bytes) -> None:
        self._source, self._key = source, key
        self.total = source.total
        self.rejects = [self._reject(reject) for reject in source.rejects]
        for name in ("missing_images", "warnings", "note", "facts"):
            if hasattr(source, name):
                setattr(self, name, getattr(source, name))

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Record:
        record = self._source[index]
        hidden: dict[str, Any] = {
            "id": self._id(record.id),
            "patient_id": self._hidden(record.patient_id, "patient"),
            "study_id": self._hidden(record.study_id, "study"),
            "leakage_unit": self._hidden(record.leakage_unit, "group"),
            "prior_id": self._id(record.prior_id) if record.prior_id else "",
            "images": tuple(
                dataclasses.replace(
                    image,
                    key=self._hidden(image.key, "image"),
                    load=functools.partial(_load_silently, image.load),
                )
                for image in record.images
            ),
        }
        return dataclasses.replace(record, **hidden)

    def _hidden(self, value: str, kind: str) -> str:
        return pseudonym(self._key, value, kind)

    def _id(self, value: str) -> str:
        source, _, native = value.partition(":")
        return f"{source}:{self._hidden(native, 'record')}"

    def _reject(self, reject: Reject) -> Reject:
        return Reject(self._id(reject.id), reject.reason, _UNTOLD)


def _load_silently(load: Callable[[], np.ndarray]) -> np.ndarray:
    try:
        return load()
    except STUMBLES as error:  # InputError among them; any may quote the name of a file
        raise UnreadableError(getattr(error, "reason", "unreadable_image")) from None
