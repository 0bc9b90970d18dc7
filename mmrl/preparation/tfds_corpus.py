"""Prepares a corpus as a data set of TensorFlow Datasets, on one machine or on a Beam runner.

    python -m mmrl.prepare openi --input=downloads/openi --output=tfds --tfds
    python -m mmrl.prepare openi --input=/mnt/openi --output=/mnt/tfds --tfds \\
        --beam-runner=FlinkRunner --beam-option=flink_master=host:8081

Examples hold images as `mmrl.preparation.storage` encodes them, and all other fields of a record.
`mmrl.data.sources.tfds` and any other reader of TFDS can read them. TensorFlow is not needed. A
runner on several machines needs mmrl, and the input and output at the same paths, on all of them.
Each worker process lists the corpus once.
"""

import dataclasses
import functools
import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from mmrl import build, extras
from mmrl.data.reading import shards
from mmrl.data.reading.rejects import write_rejects
from mmrl.preparation.encode import encode_record
from mmrl.preparation.inventory import Inventory, without_places
from mmrl.preparation.job import Settings
from mmrl.preparation.storage import Storage
from mmrl.types import InputError, Record, Reject

_SPAN = 64  # records that a worker takes at a time
NO_TIME = -1

Example = tuple[str, dict[str, Any]]


class Work(NamedTuple):
    """What a worker needs to read and encode records, as plain data.

    `options` are the options of the source, as JSON; `channels` are those of its images.
    """

    source: str
    options: str
    storage: Storage
    label_names: tuple[str, ...]
    sections: tuple[str, ...]
    channels: int


@functools.lru_cache(maxsize=4)
def _source(name: str, options: str, split: str) -> Any:
    """The source, which each process lists once."""
    return build.find("source", name)(split=split, **json.loads(options))


def records_of(work: Work, span: str) -> Iterator[Record]:
    """Yields the records of a span.

    Args:
      span: JSON of the split of the source, positions, and the id of the first record.

    Raises:
      InputError: the corpus differs from the one that was divided into spans.
    """
    split, positions, first_id = json.loads(span)
    source = _source(work.source, work.options, split)
    for number, position in enumerate(positions):
        record = source[position]
        if number == 0 and record.id != first_id:
            raise InputError(
                f"{work.source}: record {position} is {record.id!r} on this worker and {first_id!r}"
                " where the work was divided; expected the same files on all machines"
            )
        yield record


def examples(work: Work, records: Iterable[Record]) -> Iterator[Example | Reject]:
    """Yields the key and the example of each record with encoded images, and the rejects."""
    for record in records:
        made = encode_record(record, work.storage, work.channels)
        yield from made.rejects
        if made.record is not None:
            row = shards.index_row(made.record, made.images, made.masks)
            files = [io.BytesIO(image.data) for image in made.images] or [io.BytesIO(b"")]
            yield (
                record.id,
                {
                    **{name: row[name] for name in _TEXTS + _FLAGS + _LISTS},
                    **{f"section_{name}": row["sections"].get(name, "") for name in work.sections},
                    **_labels(work.label_names, made.record),
                    "time": NO_TIME if record.time is None else record.time,
                    "image": files[0],
                    "more_images": files[1:],
                    "image_phash": [f"{value:016x}" for value in row["image_phash"]],
                    "sizes": [[image.orig_height, image.orig_width] for image in made.images],
                    "projection": made.images[0].projection if made.images else "UNKNOWN",
                    "spacings": json.dumps(row["spacings"]),
                    "boxes": json.dumps([dataclasses.astuple(box) for box in made.record.boxes]),
                    "masks": json.dumps([dataclasses.astuple(mask) for mask in made.masks]),
                },
            )


# Columns of the index that become features of the same name.
_TEXTS = (
    "id", "source", "source_version", "split", "split_official", "patient_id", "study_id",
    "leakage_unit", "language", "license", "access", "prior_id", "attributes", "sentences",
    "findings", "entailment",
)  # fmt: skip
_FLAGS = ("leakage_unit_known", "redistributable")
_LISTS = ("aliases", "image_keys", "projections", "projection_sources", "image_sha256")


def features(work: Work) -> tfds.features.FeaturesDict:
    """The features of an example.

    `image` is the first image (no bytes where a record has none), `more_images` the others;
    `sizes`, `projections` and so on describe all of them. `attributes`, `sentences`, `findings`,
    `entailment`, `spacings`, `boxes` (in original pixels) and `masks` are JSON, as in
    index.parquet.
    """
    kinds = tfds.features
    depth = np.uint8 if work.storage.format == "jpeg" else np.uint16
    shape = (None, None, work.channels)
    image = kinds.Image(shape=shape, dtype=depth, encoding_format=work.storage.format)
    return kinds.FeaturesDict(
        {
            **{
                name: kinds.Text() for name in (*_TEXTS, "projection", "spacings", "boxes", "masks")
            },
            **dict.fromkeys(_FLAGS, np.bool_),
            **{name: kinds.Sequence(kinds.Text()) for name in (*_LISTS, "image_phash")},
            **{f"section_{name}": kinds.Text() for name in work.sections},
            **{f"label_{name}": np.int64 for name in work.label_names},
            "time": np.int64,
            "sizes": kinds.Sequence(kinds.Tensor(shape=(2,), dtype=np.int32)),
            "image": image,
            "more_images": kinds.Sequence(image),
        }
    )


def _labels(names: Sequence[str], record: Record) -> dict[str, int]:
    """label_{name} -> 1 present, 0 absent, -1 uncertain, -2 not stated."""
    stated = dict(zip(record.label_names, record.labels, strict=True)) if record.labels else {}
    return {f"label_{name}": stated.get(name, -2) for name in names}


class MmrlCorpus(tfds.core.GeneratorBasedBuilder):
    """A corpus of mmrl as a TFDS data set, "mmrl_corpus/{config_name}:2.0.0".

    Args:
      inventory: that of the corpus, from `inventory.take` with `options`.
      options: options of the source, JSON values.
      settings: storage of images and limit of rejects. Chunks and workers are not used.
      beam: generate examples on the Beam runner of `download_and_prepare`.

    Raises:
      InputError: records with vectors or bags of features.
    """

    VERSION = tfds.core.Version("2.0.0")
    # The folder of metadata and checksums of downloads, of which there are none. Without this, TFDS
    # imports a package that it does not require.
    pkg_dir_path = Path(__file__).parent
    code_path = None

    def __init__(
        self,
        *,
        inventory: Inventory,
        options: Mapping[str, Any],
        settings: Settings,
        data_dir: str,
        beam: bool = False,
    ) -> None:
        if inventory.optional:
            held = " and ".join(f"{name}s" for name in inventory.optional)
            raise InputError(
                f"{inventory.name} has records with {held}, which --tfds does not write; prepare"
                " the corpus without --tfds"
            )
        self._inventory, self._settings, self._beam = inventory, settings, beam
        self._work = Work(
            inventory.name,
            json.dumps(dict(options), sort_keys=True),
            settings.storage,
            inventory.label_names,
            inventory.sections,
            inventory.channels,
        )
        config = tfds.core.BuilderConfig(
            name=config_name(inventory, settings.storage),
            version=self.VERSION,
            description=_title(inventory),
        )
        super().__init__(config=config, data_dir=data_dir, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        facts = self._inventory.facts
        return tfds.core.DatasetInfo(
            builder=self,
            description=_title(self._inventory),
            features=features(self._work),
            homepage=facts.get("url", ""),
            license=", ".join(self._inventory.licenses),
            disable_shuffling=False,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager
        folder = Path(str(self.data_dir))
        write_rejects(folder / "rejects.jsonl", self._inventory.rejects)
        return {
            split: self._generate_examples(split, folder)
            for split, part in self._inventory.parts.items()
            if len(part)
        }

    def _generate_examples(self, split: str, folder: Path) -> Any:
        """A generator, or on a runner a PTransform, of keys and examples."""
        if self._beam:
            rejects = str(folder / f"rejects-{split}")
            places = self._inventory.places
            return _transform(self._work, list(self._spans(split)), places, rejects)
        return self._generate(split, folder)

    def _generate(self, split: str, folder: Path) -> Iterator[Example]:
        refused: list[Reject] = []
        part = self._inventory.parts[split]
        for start in range(0, len(part), _SPAN):
            for item in examples(self._work, part.records(start, start + _SPAN)):
                if isinstance(item, Reject):
                    refused.append(without_places(item, self._inventory.places))
                else:
                    yield item
        write_rejects(folder / f"rejects-{split}.jsonl", refused)
        self.check(folder)

    def _spans(self, split: str) -> Iterator[str]:
        part = self._inventory.parts[split]
        for start in range(0, len(part), _SPAN):
            positions = part.positions[start : start + _SPAN].tolist()
            yield json.dumps([part.read_as, positions, part.source[positions[0]].id])

    def _process_pipeline_result(self, pipeline_result: Any) -> None:
        del pipeline_result
        self.check(Path(str(self.data_dir)))

    def check(self, folder: Path) -> None:
        """Raises InputError when too much was refused; TFDS then discards the data set."""
        later = [
            Reject(**json.loads(line))
            for path in sorted(folder.glob("rejects-*.jsonl"))
            for line in path.read_text(encoding="utf-8").splitlines()
        ]
        self._inventory.check_rejects(
            later,
            self._settings.max_reject_fraction,
            allow_missing=self._settings.allow_missing_images,
        )


def config_name(inventory: Inventory, storage: Storage) -> str:
    """Source, storage of images and a digest of the text: "openi-256-jpeg-95-1f0c9a3b".

    In colour with "rgb": "quilt1m-256-jpeg-95-rgb-1f0c9a3b".
    """
    content = json.dumps([dict(inventory.options), inventory.sha256], sort_keys=True)
    digest = hashlib.sha256(content.encode()).hexdigest()[:8]
    colour = ["rgb"] if inventory.channels > 1 else []
    return "-".join([inventory.name, *map(str, storage.to_dict().values()), *colour, digest])


def prepare(
    inventory: Inventory,
    options: Mapping[str, Any],
    settings: Settings,
    data_dir: Path,
    *,
    runner: str | None = None,
    runner_options: Sequence[str] = (),
) -> MmrlCorpus:
    """Prepares the data set in this process or on a Beam runner, unless it exists.

    Args:
      runner: name of a Beam runner ("DirectRunner"); None for this process.
      runner_options: options of Beam, each KEY=VALUE or KEY.

    Raises:
      InputError: Beam is not installed, or too much was refused.
    """
    builder = MmrlCorpus(
        inventory=inventory,
        options=options,
        settings=settings,
        data_dir=str(data_dir),
        beam=runner is not None,
    )
    given: dict[str, Any] = {}
    if runner is not None:
        given = {"beam_runner": runner, "beam_options": _beam_options(runner, runner_options)}
    config = tfds.download.DownloadConfig(
        try_download_gcs=False,
        min_shard_size=min(settings.shard_bytes, 2**26),
        max_shard_size=settings.shard_bytes,
        **given,
    )
    builder.download_and_prepare(download_config=config)
    return builder


def _beam_options(runner: str, given: Iterable[str]) -> Any:
    try:
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise InputError(
            f"--beam-runner={runner} needs Apache Beam: {extras.command('beam')}"
        ) from error
    return PipelineOptions([f"--{option}" for option in given])


def _transform(work: Work, spans: Sequence[str], places: tuple[str, ...], rejects: str) -> Any:
    """A PTransform of keys and examples that writes rejects to `rejects`.jsonl."""
    import apache_beam as beam

    def expand(start: Any) -> Any:
        made = (
            start
            | beam.Create(spans)
            | beam.Reshuffle()  # otherwise a runner may keep all spans on one worker
            | beam.FlatMap(functools.partial(_tagged, work)).with_outputs(
                "rejects", main="examples"
            )
        )
        _ = (
            made.rejects
            | beam.Map(functools.partial(_as_line, places))
            | beam.io.WriteToText(
                rejects, file_name_suffix=".jsonl", num_shards=1, shard_name_template=""
            )
        )
        return made.examples

    return beam.ptransform_fn(expand)()


def _tagged(work: Work, span: str) -> Iterator[Any]:
    from apache_beam.pvalue import TaggedOutput

    for item in examples(work, records_of(work, span)):
        yield TaggedOutput("rejects", item) if isinstance(item, Reject) else item


def _as_line(places: tuple[str, ...], reject: Reject) -> str:
    reject = without_places(reject, places)
    return json.dumps(dataclasses.asdict(reject), ensure_ascii=False)


def _title(inventory: Inventory) -> str:
    return inventory.facts.get("title", f"Records of mmrl source {inventory.name}")
