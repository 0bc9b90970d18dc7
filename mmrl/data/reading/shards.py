"""The format of a prepared corpus: ArrayRecord shards, an index of all text, and a manifest.

    corpus/
      train-00000.array_record ...   one msgpack map per record: encoded images, boxes, masks
      index.parquet                  one row per record: all but pixels, and the place in a shard
      manifest.json                  schema, facts, options, counts, sha256 of every file
      rejects.jsonl                  the refused items with their reasons

Training, audits and the leak check read texts from the index, without reading pixels. Shards are
read at random, by position. Nothing in a shard is executed.
"""

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import msgpack
import numpy as np
import pyarrow as pa
from array_record.python import array_record_module

from mmrl import files
from mmrl.data.image.channels import CHANNELS
from mmrl.data.image.masks import Mask, decode_masks
from mmrl.data.reading.paths import is_file_name
from mmrl.types import Box, DamageError, Finding, InputError, Provenance, Record, first_line

SCHEMA_VERSION = 2
INDEX, MANIFEST, REJECTS = "index.parquet", "manifest.json", "rejects.jsonl"
# Payloads are read one by one, and hold JPEG or PNG files, which are compressed already.
WRITER_OPTIONS = "group_size:1,uncompressed"
_READER_OPTIONS = "readahead_buffer_size:0"
_MARK = f"mmrl-{SCHEMA_VERSION}"


@dataclasses.dataclass(frozen=True)
class StoredImage:
    """One image of a shard.

    Attributes:
      key, projection, projection_source, spacing: as in ImageRef.
      data: a JPEG or PNG file of 8 or 16 bits, grey or red, green and blue.
      height, width: of `data`, in pixels.
      orig_height, orig_width: of the image as its owner distributes it.
      sha256: hex digest of the original pixels (dtype, shape, values), which does not depend on the
        format of the file.
      phash: 64-bit perceptual hash of the original, see `mmrl.data.overlap.duplicates`.
    """

    key: str
    data: bytes
    height: int
    width: int
    orig_height: int
    orig_width: int
    projection: str
    projection_source: str
    spacing: tuple[float, float] | None
    sha256: str
    phash: int


def pack_payload(
    record: Record,
    images: Sequence[StoredImage],
    masks: Sequence[Mask] = (),
    bag: np.ndarray | None = None,
) -> bytes:
    """The entry of a record in a shard: its images, and boxes and masks in original pixels.

    Args:
      bag: f16 or f32 [S, F], the bag of features of the record.
    """
    content = {
        "mark": _MARK,
        "id": record.id,
        "images": [dataclasses.astuple(image) for image in images],
        "boxes": [dataclasses.astuple(box) for box in record.boxes],
        "masks": [dataclasses.astuple(mask) for mask in masks],
    }
    if bag is not None:
        stored = bag.astype(bag.dtype.newbyteorder("<"), copy=False)
        content["bag"] = (stored.dtype.str, stored.shape, stored.tobytes())
    return msgpack.packb(content)


def unpack_payload(data: bytes) -> dict[str, Any]:
    """The inverse of `pack_payload`: id, images, boxes, masks.

    Raises:
      InputError: not the payload of a record, or of another schema.
    """
    content = _content(data)
    try:
        content["images"] = tuple(StoredImage(*fields) for fields in content["images"])
        content["boxes"] = tuple(Box(*fields) for fields in content["boxes"])
        content["masks"] = tuple(Mask(*fields) for fields in content["masks"])
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(error) from error
    return content


def _content(data: bytes) -> dict[str, Any]:
    """The map of a payload, with images, boxes and masks as tuples of their fields."""
    try:
        content = msgpack.unpackb(data, use_list=False, strict_map_key=True)
        mark = content["mark"]
    except (ValueError, KeyError, TypeError, msgpack.UnpackException) as error:
        raise _damaged(error) from error
    if mark != _MARK:
        raise InputError(f"a record of schema {mark!r}; expected {_MARK!r}")
    return content


def _damaged(error: Exception) -> DamageError:
    return DamageError(f"damaged record: {type(error).__name__}")


# Columns of the index. They are followed by one column per section, "section.findings" and so on,
# and by those of OPTIONAL_FIELDS that any record of the corpus has.
INDEX_FIELDS: tuple[tuple[str, pa.DataType], ...] = (
    ("id", pa.string()),
    ("source", pa.string()),
    ("source_version", pa.string()),
    ("split", pa.string()),
    ("split_official", pa.string()),
    ("patient_id", pa.string()),
    ("study_id", pa.string()),
    ("leakage_unit", pa.string()),
    ("leakage_unit_known", pa.bool_()),
    ("aliases", pa.list_(pa.string())),
    ("language", pa.string()),
    ("license", pa.string()),
    ("access", pa.string()),
    ("redistributable", pa.bool_()),
    ("prior_id", pa.string()),
    ("time", pa.int64()),
    ("labels", pa.list_(pa.int8())),
    ("attributes", pa.string()),  # JSON object
    ("sentences", pa.string()),  # JSON list of [section, text]
    ("findings", pa.string()),  # JSON list of [name, side, zone, severity]
    ("entailment", pa.string()),  # JSON list of premise, hypothesis, label; "" for none
    ("image_keys", pa.list_(pa.string())),
    ("projections", pa.list_(pa.string())),
    ("projection_sources", pa.list_(pa.string())),
    ("spacings", pa.list_(pa.list_(pa.float64()))),  # [] where unknown
    ("image_sha256", pa.list_(pa.string())),
    ("image_phash", pa.list_(pa.uint64())),
    ("orig_heights", pa.list_(pa.int32())),
    ("orig_widths", pa.list_(pa.int32())),
    ("num_boxes", pa.int32()),
    ("mask_labels", pa.list_(pa.string())),
    ("has_findings", pa.bool_()),  # whether the section findings or impression has text
    ("shard", pa.string()),
    ("position", pa.int32()),
)

OPTIONAL_FIELDS: Mapping[str, pa.DataType] = {
    "vector": pa.list_(pa.float32()),
    "bag": pa.list_(pa.int64()),  # its shape; the bag itself is in the shard
    "provenance": pa.string(),  # JSON object: section -> [by, synthetic, date]
}

# Columns that equal the field of Record of the same name.
PLAIN_FIELDS = tuple(name for name, _ in INDEX_FIELDS[:16] if name != "aliases")


def index_row(
    record: Record,
    images: Sequence[StoredImage],
    masks: Sequence[Mask] = (),
    bag: np.ndarray | None = None,
) -> dict[str, Any]:
    """A row of the index without shard and position; all sections are under "sections"."""
    plain = {name: getattr(record, name) for name in PLAIN_FIELDS}
    stated = record.entailment
    return plain | {
        "aliases": list(record.aliases),
        "labels": list(record.labels),
        "attributes": _json(dict(record.attributes)),
        "sentences": _json([list(pair) for pair in record.sentences]),
        "findings": _json([list(dataclasses.astuple(f)) for f in record.findings]),
        "entailment": _json(list(dataclasses.astuple(stated))) if stated else "",
        "image_keys": [image.key for image in images],
        "projections": [image.projection for image in images],
        "projection_sources": [image.projection_source for image in images],
        "spacings": [list(image.spacing or ()) for image in images],
        "image_sha256": [image.sha256 for image in images],
        "image_phash": [image.phash for image in images],
        "orig_heights": [image.orig_height for image in images],
        "orig_widths": [image.orig_width for image in images],
        "num_boxes": len(record.boxes),
        "mask_labels": list(dict.fromkeys(mask.label for mask in masks)),
        "has_findings": any(record.sections.get(s, "").strip() for s in ("findings", "impression")),
        "sections": dict(record.sections),
        "vector": None if record.vector is None else list(record.vector),
        "bag": None if bag is None else list(bag.shape),
        "provenance": _provenance(record),
    }


def _provenance(record: Record) -> str | None:
    if record.provenance is None:
        return None
    return _json({name: dataclasses.astuple(one) for name, one in record.provenance.items()})


def provenance_of(cell: str | None) -> dict[str, Provenance] | None:
    """Section -> who wrote it, of a cell of the column `provenance`."""
    return {name: Provenance(*one) for name, one in json.loads(cell).items()} if cell else None


def index_table(
    rows: Sequence[Mapping[str, Any]], sections: Sequence[str], optional: Sequence[str] = ()
) -> pa.Table:
    """The index as a table.

    Args:
      rows: those of `index_row`, with shard and position.
      sections: the names of all sections, in order.
      optional: those of OPTIONAL_FIELDS that any record of the corpus has.
    """
    columns = {name: pa.array([row[name] for row in rows], kind) for name, kind in INDEX_FIELDS}
    for section in sections:
        texts = [row["sections"].get(section) for row in rows]
        columns[f"section.{section}"] = pa.array(texts, pa.large_string())
    for name in optional:
        columns[name] = pa.array([row[name] for row in rows], OPTIONAL_FIELDS[name])
    return pa.table(columns)


def read_manifest(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads the manifest of a prepared corpus.

    Raises:
      InputError: no complete corpus in the folder, or a corpus of another schema.
      DamageError: the manifest is not as it was written.
    """
    path = Path(folder) / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"'{folder}' holds no prepared corpus: it has no {MANIFEST}. Prepare one with python -m"
            " mmrl.prepare, which also resumes a preparation that was stopped"
        ) from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    except (ValueError, RecursionError) as error:
        raise DamageError(f"{path} was altered: {error}") from None
    version = manifest.get("schema_version") if isinstance(manifest, dict) else None
    if version != SCHEMA_VERSION:
        raise InputError(
            f"{path}: schema_version {version!r}; expected {SCHEMA_VERSION}. Another version of"
            " mmrl wrote it; prepare the corpus again in another folder"
        )
    if manifest.get("channels", 1) not in CHANNELS:  # older corpora are grey
        raise InputError(f"{path}: channels {manifest['channels']!r}; expected 1 or 3")
    stated = manifest.get("files")
    if not isinstance(stated, dict) or not all(map(_is_stated, stated.values())):
        raise DamageError(f"{path} was altered: it does not state bytes and sha256 of every file")
    return manifest


def _is_stated(file: Any) -> bool:
    """Whether a manifest says of a file what `check_files` compares."""
    stated = file if isinstance(file, dict) else {}
    return isinstance(stated.get("bytes"), int) and isinstance(stated.get("sha256"), str)


def check_files(
    folder: str | os.PathLike[str], manifest: Mapping[str, Any], verify: str = "size"
) -> None:
    """Compares the files of a prepared corpus with its manifest.

    Args:
      verify: "size" compares sizes, and the digest of the index; "sha256" reads and digests every
        file. Shards have checksums of their own, which are compared as records are read.

    Raises:
      DamageError: a file is missing, differs, or is outside of the folder; names the first one.
    """
    for name, stated in manifest["files"].items():
        if not is_file_name(name):
            raise DamageError(
                f"{folder}: the manifest names {name!r}; expected a file in its folder"
            )
        full = os.path.join(folder, name)
        if not os.path.isfile(full):
            raise DamageError(f"{folder}: {name} of the manifest is missing")
        if os.path.getsize(full) != stated["bytes"]:
            raise DamageError(
                f"{full} has {os.path.getsize(full):,} bytes; its manifest says {stated['bytes']:,}"
            )
        if (verify == "sha256" or name == INDEX) and files.sha256(full) != stated["sha256"]:
            raise DamageError(f"{full} was altered: its sha256 differs from the manifest's")


def pixel_sha256(image: np.ndarray) -> str:
    """Hex digest of an image's pixels, dtype and shape.

    A colour image whose channels are equal has the digest of the grey image.
    """
    if image.ndim == 3 and (image == image[..., :1]).all():
        image = image[..., 0]
    digest = hashlib.sha256(f"{image.dtype.str}{image.shape}".encode())
    digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()


# Training reads at random: with fewer open readers than shards, nearly every read would open one.
# 512 is half of the usual limit of open files.
@functools.lru_cache(maxsize=512)
def _reader(path: str) -> Any:
    """An open shard. Threads may share it; each process opens its own."""
    try:
        return array_record_module.ArrayRecordReader(path, _READER_OPTIONS)
    except Exception as error:  # the C++ extension raises many kinds of exceptions
        raise InputError(f"{path} cannot be opened: {first_line(error)}") from error


def read_payload(path: str, position: int) -> dict[str, Any]:
    """The payload of one record; see `unpack_payload`.

    Raises:
      InputError: the shard is missing or damaged.
    """
    return unpack_payload(_read(path, position))


def _read(path: str, position: int) -> bytes:
    reader = _reader(path)
    if position < 0:  # a range would count it from the end
        raise InputError(f"{path} record {position} cannot be read: expected at least 0")
    try:
        # As a range: given a list of positions, the reader first visits all chunks of the shard,
        # which takes longer than reading a record.
        (data,) = reader.read(position, position + 1)
    except Exception as error:
        raise DamageError(
            f"{path} record {position} cannot be read: {first_line(error)}"
        ) from error
    return data


def decode_image(image: StoredImage, channels: int = 1) -> np.ndarray:
    """The pixels of a stored image: u8 or u16 [H, W], or [H, W, 3] for 3 channels.

    The container is not checked: it was complete when the shard was written, and the manifest has
    the digest of the shard.

    Raises:
      InputError: it is damaged.
    """
    return _decode(image.key, image.data, image.height, image.width, channels)


def _decode(key: str, data: bytes, height: int, width: int, channels: int) -> np.ndarray:
    try:
        kept = cv2.IMREAD_COLOR if channels == 3 else cv2.IMREAD_GRAYSCALE
        flags = cv2.IMREAD_ANYDEPTH | kept | cv2.IMREAD_IGNORE_ORIENTATION
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        pixels = None
    if pixels is None or pixels.shape[:2] != (height, width):
        raise InputError(f"image {key!r} cannot be decoded")
    return pixels[..., ::-1] if channels == 3 else pixels


def load_image(path: str, position: int, number: int, channels: int = 1) -> np.ndarray:
    """Image `number` of a record, see `decode_image`; an InputError names shard and position.

    Other images, boxes and masks are not read.
    """
    content = _read(path, position)
    try:
        images = _content(content)["images"]
        if not 0 <= number < len(images):
            raise InputError(f"no image {number}; the record has {len(images)}")
        key, data, height, width = images[number][:4]  # the first fields of StoredImage
        return _decode(key, data, height, width, channels)
    except InputError as error:
        raise type(error)(f"{path} record {position}: {error}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise DamageError(f"{path} record {position}: {_damaged(error)}") from error


def load_boxes(path: str, position: int) -> tuple[Box, ...]:
    """The boxes of a record, in pixels of its images as `load_image` returns them."""
    content = read_payload(path, position)
    images: Sequence[StoredImage] = content["images"]
    boxes = []
    for box in content["boxes"]:
        scale_x = scale_y = 1.0
        if box.image < len(images):
            image = images[box.image]
            scale_x, scale_y = image.width / image.orig_width, image.height / image.orig_height
        x0, y0, x1, y1 = box.xyxy
        scaled = (x0 * scale_x, y0 * scale_y, x1 * scale_x, y1 * scale_y)
        boxes.append(dataclasses.replace(box, xyxy=scaled))
    return tuple(boxes)


def load_bag(path: str, position: int) -> np.ndarray:
    """The bag of features of a record, f16 or f32 [S, F]."""
    content = _content(_read(path, position))
    try:
        kind, shape, data = content["bag"]
        if kind not in ("<f2", "<f4"):
            raise ValueError(kind)
        return np.frombuffer(data, kind).reshape(shape)
    except (ValueError, KeyError, TypeError) as error:
        raise DamageError(f"{path} record {position}: {_damaged(error)}") from error


def load_masks(path: str, position: int) -> dict[str, np.ndarray]:
    """Label -> mask bool[H, W] of the first image, at its size as `load_image` returns it."""
    content = read_payload(path, position)
    first: StoredImage = content["images"][0]
    drawn = decode_masks(content["masks"])
    return {
        label: cv2.resize(
            mask.astype(np.uint8), (first.width, first.height), interpolation=cv2.INTER_NEAREST
        ).astype(bool)
        for label, mask in drawn.items()
    }


def findings_of(text: str) -> tuple[Finding, ...]:
    """Findings from the JSON of a cell of the index."""
    return tuple(Finding(*fields) for fields in json.loads(text))


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
