"""Encodes records as entries of a shard and rows of the index."""

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import cv2
import msgpack
import numpy as np

from mmrl.data.image.masks import Mask, encode_mask
from mmrl.data.overlap.duplicates import perceptual_hash
from mmrl.data.reading import bags
from mmrl.data.reading.shards import StoredImage, index_row, pack_payload, pixel_sha256
from mmrl.preparation.storage import Storage
from mmrl.types import Box, ImageRef, InputError, Record, Reject

# Exceptions of decoders for damaged files. OSError is not among them: if the disk fails, the run
# must end, and not refuse the images.
DECODE_ERRORS = (cv2.error, ValueError, KeyError, IndexError, OverflowError, EOFError)


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Encoded records: payloads and rows of the index, which are parallel, and refused items."""

    payloads: Sequence[bytes]
    rows: Sequence[dict[str, Any]]
    rejects: Sequence[Reject]

    def to_bytes(self) -> bytes:
        """The digest of a msgpack map, followed by the map."""
        refused = [dataclasses.astuple(reject) for reject in self.rejects]
        content = {"payloads": self.payloads, "rows": self.rows, "rejects": refused}
        packed = msgpack.packb(content)
        return hashlib.sha256(packed).digest() + packed

    @classmethod
    def from_bytes(cls, data: bytes) -> "Chunk":
        """The inverse of `to_bytes`; InputError when a byte has changed."""
        if hashlib.sha256(data[32:]).digest() != data[:32]:
            raise InputError("damaged chunk")
        content = msgpack.unpackb(data[32:])
        refused = [Reject(*fields) for fields in content["rejects"]]
        return cls(content["payloads"], content["rows"], refused)


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A record as it is stored, and the parts of it that were refused.

    `record` has the images and boxes that are kept; it is None when the record is refused. `bag`
    is f16 or f32 [S, F]; None where there is none.
    """

    record: Record | None
    images: tuple[StoredImage, ...]
    masks: tuple[Mask, ...]
    rejects: tuple[Reject, ...]
    bag: np.ndarray | None = None


def encode_chunk(records: Iterable[Record], storage: Storage, channels: int = 1) -> Chunk:
    """Reads, reduces and encodes all images of the records, see `encode_record`."""
    payloads: list[bytes] = []
    rows: list[dict[str, Any]] = []
    rejects: list[Reject] = []
    for record in records:
        made = encode_record(record, storage, channels)
        rejects += made.rejects
        if made.record is not None:
            parts = (made.record, made.images, made.masks, made.bag)
            payloads.append(pack_payload(*parts))
            rows.append(index_row(*parts))
    return Chunk(payloads, rows, rejects)


def encode_record(record: Record, storage: Storage, channels: int = 1) -> Encoded:
    """Reads, reduces and encodes the images, boxes, masks and features of a record.

    Args:
      channels: of the images, as the source states them.

    An image that cannot be read is refused, with its boxes. A record none of whose images can be
    read is refused. A record without images is kept for its text.
    """
    images: list[StoredImage] = []
    moved: dict[int, int] = {}
    faults: list[tuple[str, str, str]] = []
    for number, reference in enumerate(record.images):
        try:
            images.append(_store(reference, storage, channels))
        except InputError as error:
            reason = getattr(error, "reason", "unreadable_image")
            faults.append((reference.key, reason, str(error)))
        else:
            moved[number] = len(images) - 1
    if record.images and not images:
        _, reason, detail = faults[0]
        return Encoded(None, (), (), (Reject(record.id, reason, detail),))
    refused = [Reject(f"{record.id}#{key}", reason, detail) for key, reason, detail in faults]
    masks: tuple[Mask, ...] = ()
    if record.masks is not None and 0 in moved:
        try:
            masks = _masks(record.masks(), images[0])
        except InputError as error:
            refused.append(Reject(f"{record.id}#masks", "unreadable_mask", str(error)))
    bag: np.ndarray | None = None
    if record.bag is not None:
        try:
            bag = _bag(record.bag())
        except InputError as error:
            refused.append(Reject(f"{record.id}#bag", "bad_bag", str(error)))
    kept = record
    if faults:
        kept = dataclasses.replace(
            record,
            images=tuple(record.images[number] for number in moved),
            boxes=_moved(record.boxes, moved),
        )
    return Encoded(kept, tuple(images), masks, tuple(refused), bag)


def _store(reference: ImageRef, storage: Storage, channels: int) -> StoredImage:
    """Reads and encodes an image; InputError when it cannot be read."""
    try:
        original = reference.load()
    except DECODE_ERRORS as error:
        if isinstance(error, InputError):
            raise
        # A damaged file must not end the run.
        raise InputError(f"{reference.key}: {type(error).__name__}: {error}") from error
    shape = "[H, W]" if channels == 1 else "[H, W, 3]"
    fitting = original.ndim == 2 if channels == 1 else original.shape[2:] == (3,)
    if not fitting or not original.size or original.dtype not in (np.uint8, np.uint16):
        raise InputError(
            f"{reference.key}: an image of {original.dtype}{list(original.shape)};"
            f" expected uint8 or uint16 {shape}, not empty"
        )
    stored = storage.reduce(original)
    return StoredImage(
        key=reference.key,
        data=storage.encode(stored),
        height=stored.shape[0],
        width=stored.shape[1],
        orig_height=original.shape[0],
        orig_width=original.shape[1],
        projection=reference.projection,
        projection_source=reference.projection_source,
        spacing=reference.spacing,
        sha256=reference.sha256 or pixel_sha256(original),
        phash=perceptual_hash(original) if reference.phash is None else reference.phash,
    )


def _bag(given: np.ndarray) -> np.ndarray:
    """The features as they are stored: float64 becomes float32."""
    bag = bags.checked(given)
    return bag.astype(np.float32) if bag.dtype == np.float64 else bag


def _moved(boxes: Iterable[Box], moved: dict[int, int]) -> tuple[Box, ...]:
    """Boxes of the images that are kept, with the new numbers of their images."""
    return tuple(
        dataclasses.replace(box, image=moved[box.image]) for box in boxes if box.image in moved
    )


def _masks(drawn: dict[str, np.ndarray], image: StoredImage) -> tuple[Mask, ...]:
    """Masks as runs; InputError when the size of a mask is not that of the image."""
    for label, mask in drawn.items():
        if mask.shape != (image.orig_height, image.orig_width):
            raise InputError(
                f"the mask of {label!r} has {mask.shape[1]} x {mask.shape[0]} pixels, its image"
                f" {image.orig_width} x {image.orig_height}"
            )
    return tuple(encode_mask(label, mask) for label, mask in drawn.items())
