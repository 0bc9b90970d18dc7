"""Any data set of TensorFlow Datasets that is prepared on disk, read without TensorFlow.

The data set is opened from its files (`features.json` and the shards), so neither the code of its
builder nor a network is needed. It must allow random access, so it must be in the form array_record
or parquet (prepared with `file_format="array_record"`). `Tfds(split="train",
path="my_dataset:1.0.0", data_dir=..., report_features=("findings",))` yields records such as id
"tfds:0".
"""

import functools
import importlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.read_only_builder import builder_from_files

from mmrl.data.image import readers
from mmrl.data.image.channels import check as check_channels
from mmrl.data.reading.rows import (
    CellError,
    Columns,
    Fault,
    Row,
    Rows,
    cell_text,
    check_verify,
    find_faults,
    section_columns,
)
from mmrl.data.reading.splits import Fractions
from mmrl.data.sources.table import patient_warnings
from mmrl.data.text import blanks
from mmrl.types import InputError, Record, Reject, first_line

_PIXELS = (np.uint8, np.uint16)


class Tfds:
    """Records of one split of a TFDS data set; a Source.

    Examples are numbered from 0 in the order of `tfds_split`; without `id_feature` the number is
    the id. The meaning of features, the division of patients and the reasons of rejects are as in
    `mmrl.data.sources.table.Table`. The value of a ClassLabel is the name of its class, except in
    `label_features`, where it is its number.

    Text is read once, by the constructor. An image is read by its `load`, as it is encoded in the
    data set, and decoded by `readers`. Worker processes must be spawned, as those of Grain
    are, because the threads of array_record do not survive a fork.

    Args:
      split: train, val or test. It is independent of the splits of the data set.
      path: TFDS name, "dataset", "dataset:1.0.0" or "dataset/config:1.0.0"; by default the newest
        version on disk.
      data_dir: folder in which TFDS prepared it; by default that of TFDS.
      tfds_split: the examples to read, in the notation of TFDS: "train", "train+test",
        "train[:10%]".
      image_feature: an Image, or a Tensor [H, W] or [H, W, C] of uint8 or uint16; C is 1 or 3.
      channels: 1 reads images as grey, 3 in red, green and blue; see config.data.colour.
      report_features: section name -> feature, or features that are also the section names; () for
        labels alone.
      patient_feature: the leakage unit. No patient is in two splits.
      study_feature: the study of an example; without it each example is a study.
      projection_feature: projection of the image, such as PA or lateral.
      id_feature: the id of an example; without it its number.
      split_feature: the split of an example; without it patients are divided by hash.
      label_features: features of 1, 0, -1, and blank or -2.
      license_feature: licence of the record.
      blank: the texts that stand for a blank value, as for a table.
      fractions: shares of train, val and test without `split_feature`, in this order or by name,
        see `split_of`.
      split_salt: name of that division; another name gives another division.
      module: Python module to import first, for a data set with feature types of its own.
      verify: "decode" decodes every image of the split once; "header" reads every image and finds
        those cut short; "exists" only checks that the image has bytes.
      num_threads: threads that verify images.

    Attributes:
      rejects, total, warnings: as for a table.

    Raises:
      InputError: no such data set, split or feature, or no random access.
    """

    def __init__(
        self,
        *,
        split: str,
        path: str,
        data_dir: str | None = None,
        tfds_split: str | None = None,
        image_feature: str = "image",
        channels: int = 1,
        report_features: Mapping[str, str] | Sequence[str] | str = ("report",),
        patient_feature: str | None = None,
        study_feature: str | None = None,
        projection_feature: str | None = None,
        id_feature: str | None = None,
        split_feature: str | None = None,
        label_features: Sequence[str] | str = (),
        license_feature: str | None = None,
        blank: Sequence[str] | str = blanks.BLANK,
        fractions: Fractions = (0.8, 0.1, 0.1),
        split_salt: str = "",
        module: str | None = None,
        verify: str = "decode",
        num_threads: int = 2,
    ) -> None:
        labels = (label_features,) if isinstance(label_features, str) else tuple(label_features)
        columns = Columns(
            image=image_feature,
            reports=section_columns(report_features, labels),
            patient=patient_feature,
            study=study_feature,
            projection=projection_feature,
            id=id_feature,
            split=split_feature,
            license=license_feature,
            labels=labels,
        )
        check_verify(verify, num_threads)
        self.channels = check_channels("channels", channels)
        self._place = _Place(path, data_dir, tfds_split or "train", module)
        self._image = image_feature
        features = _open(self._place).features
        _check_features(features, image_feature, columns, path)
        self._rows = Rows(
            _rows(self._place, image_feature, columns),
            columns,
            source="tfds",
            where=path,
            split=split,
            fractions=fractions,
            salt=split_salt,
            blank=blank,
        )
        fault = functools.partial(_fault, self._place, image_feature, verify)
        self._rows.drop(find_faults(fault, self._rows.column("image"), num_threads))
        self.warnings = patient_warnings("patient_feature", patient_feature) + self._rows.notes
        self.rejects: list[Reject] = self._rows.rejects
        self.total: int = self._rows.total

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Record:
        return self._rows.record(index, self._loader)

    def _loader(self, offset: str) -> Callable[[], np.ndarray]:
        return functools.partial(load_example, self._place, self._image, int(offset), self.channels)


class _Place(NamedTuple):
    """The place of a data set: the part of it that a record sends to another process."""

    path: str
    data_dir: str | None
    tfds_split: str
    module: str | None


class _Corpus(NamedTuple):
    features: Mapping[str, Any]
    examples: Sequence[bytes]  # serialised, by offset


def load_example(place: _Place, feature: str, offset: int, channels: int = 1) -> np.ndarray:
    """The image of the example at `offset`: u8 or u16 [H, W], or [H, W, 3] for 3 channels.

    Raises:
      InputError: it is damaged.
    """
    image = _read(place, (feature,), feature, offset)[feature]
    try:
        return readers.pixels(image, colour=channels == 3)
    except InputError as error:
        raise InputError(f"{place.path} example {offset}: {error}") from error


@functools.lru_cache(maxsize=16)
def _open(place: _Place) -> _Corpus:
    """Opens a data set once, so a process does not see later changes on disk."""
    if place.module is not None:
        try:
            importlib.import_module(place.module)
        except ImportError as error:
            raise InputError(f"data.module '{place.module}': {error}") from error
    try:
        builder = builder_from_files(place.path, data_dir=place.data_dir)
    except (ValueError, AssertionError) as error:  # DatasetNotFoundError is a ValueError
        folder = place.data_dir or tfds.core.constants.DATA_DIR
        found = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
        raise InputError(
            f"no prepared TFDS corpus '{place.path}' in '{folder}';"
            f" present: {', '.join(found) or 'nothing'}"
        ) from error
    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    try:
        examples = builder.as_data_source(split=place.tfds_split, deserialize_method=raw)
    except NotImplementedError as error:
        raise InputError(
            f"{place.path} is in {builder.info.file_format.value} form, which has no random"
            " access; prepare it with file_format='array_record'"
        ) from error
    except ValueError as error:
        raise InputError(
            f"{place.path} has no split '{place.tfds_split}';"
            f" choices: {', '.join(builder.info.splits)} and slices of them"
        ) from error
    return _Corpus(builder.info.features, examples)


@functools.lru_cache(maxsize=16)
def _subset(place: _Place, names: tuple[str, ...]) -> Any:
    """A feature dictionary that parses only `names`."""
    features = _open(place).features
    return tfds.features.FeaturesDict({name: features[name] for name in names})


def _read(place: _Place, names: tuple[str, ...], image: str, offset: int) -> dict[str, Any]:
    """Parses some features of one example; an encoded image stays encoded."""
    subset = _subset(place, names)
    encoded = image in subset and isinstance(subset[image], tfds.features.Image)
    decoders = {image: tfds.decode.SkipDecoding()} if encoded else None
    try:
        example = _open(place).examples[offset]
        return subset.deserialize_example_np(example, decoders=decoders)
    except (ValueError, RuntimeError, OSError) as error:
        reason = first_line(error)
        raise InputError(f"{place.path} example {offset} cannot be read: {reason}") from error


def _check_features(
    features: Mapping[str, Any], image_name: str, columns: Columns, path: str
) -> None:
    """Raises InputError unless every feature in use exists and has a suitable type."""
    columns.check(sorted(features), path, noun="feature")
    image = features[image_name]
    shape = image.shape
    flat = isinstance(shape, tuple) and (len(shape) == 2 or shape[2:] in ((1,), (3,)))
    encoded = isinstance(image, tfds.features.Image)
    if not (encoded or flat) or image.np_dtype not in _PIXELS:
        raise InputError(
            f"{path}: feature '{image_name}' is {image}; expected an Image, or a Tensor [H, W],"
            " [H, W, 1] or [H, W, 3], of uint8 or uint16"
        )
    for name in columns.names():
        if name != image_name and features[name].shape != ():
            raise InputError(
                f"{path}: feature '{name}' is {' '.join(str(features[name]).split())};"
                " expected one text or number"
            )


def _rows(place: _Place, image: str, columns: Columns) -> Iterator[Row]:
    """Yields the text of every example; the image cell holds the example's offset."""
    names = tuple(name for name in columns.names() if name != image)
    corpus = _open(place)
    for offset in range(len(corpus.examples)):
        example = _read(place, names, image, offset)
        cells = {image: str(offset)}
        try:
            for name in names:
                classes = None if name in columns.labels else corpus.features[name]
                cells[name] = _text(example[name], classes)
        except CellError as error:
            yield offset, {}, str(error)
        else:
            yield offset, cells, ""


def _text(value: Any, feature: Any) -> str:
    """A value of an example as text; CellError if its bytes are not UTF-8."""
    if value is None:  # the example lacks the feature
        return ""
    if isinstance(feature, tfds.features.ClassLabel):
        return feature.int2str(int(value)) if value >= 0 else ""  # -1: the class is not known
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise CellError(f"a text is not UTF-8: {error.reason}") from error
    return cell_text(value)


def _fault(place: _Place, feature: str, verify: str, offset: str) -> Fault | None:
    """The reason and detail for which the image of an example is refused, or None."""
    image = _read(place, (feature,), feature, int(offset))[feature]
    if image is None or len(image) == 0:
        return "missing_image", "the example has no image"
    try:
        if not isinstance(image, bytes):
            readers.pixels(image)
        elif verify == "decode":
            readers.decode(image)
        elif verify == "header":
            readers.check(image)
    except InputError as error:
        return getattr(error, "reason", "unreadable_image"), str(error)
    return None
