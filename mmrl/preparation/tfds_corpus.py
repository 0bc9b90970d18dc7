"""The same corpora in the form of TensorFlow Datasets, on one machine or on a Beam runner.

    python -m mmrl.prepare openi --input=downloads/openi --output=tfds --tfds
    python -m mmrl.prepare openi --input=/mnt/openi --output=/mnt/tfds --tfds \\
        --beam-runner=FlinkRunner --beam-option=flink_master=host:8081

Examples hold the images as `mmrl.preparation.storage` encodes them and all else that a record has;
`mmrl.data.sources.tfds` and anything else that reads TFDS takes them. No TensorFlow is needed. On
a runner of several machines all of them see input and output at the same paths, have mmrl, and
list the corpus once per worker process.
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

from mmrl import build
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
    """All that a worker must know to read and encode records; small, and plain data.

    `options` are those of the source, as JSON.
    """

    source: str
    options: str
    storage: Storage
    label_names: tuple[str, ...]
    sections: tuple[str, ...]


@functools.lru_cache(maxsize=4)
def _source(name: str, options: str, split: str) -> Any:
    """The source in this process, listed once."""
    return build.find("source", name)(split=split, **json.loads(options))


def records_of(work: Work, span: str) -> Iterator[Record]:
    """The records of a span: JSON of the split to ask the source for, positions, the first's id.

    Raises:
      InputError: the corpus is not as it was when the spans were cut.
    """
    split, positions, first_id = json.loads(span)
    source = _source(work.source, work.options, split)
    for number, position in enumerate(positions):
        record = source[position]
        if number == 0 and record.id != first_id:
            raise InputError(
                f"{work.source}: record {position} is {record.id!r} here and {first_id!r}"
                " where the work was divided; expected the same files on every worker"
            )
        yield record


def examples(work: Work, records: Iterable[Record]) -> Iterator[Example | Reject]:
    """Reads and encodes images: key and example of each record, and what was refused."""
    for record in records:
        made = encode_record(record, work.storage)
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


# Fields of an index row that become features under their names.
_TEXTS = (
    "id", "source", "source_version", "split", "split_official", "patient_id", "study_id",
    "leakage_unit", "language", "license", "access", "prior_id", "attributes", "sentences",
    "findings", "entailment",
)  # fmt: skip
_FLAGS = ("leakage_unit_known", "redistributable")
_LISTS = ("aliases", "image_keys", "projections", "projection_sources", "image_sha256")


def features(work: Work) -> tfds.features.FeaturesDict:
    """What an example holds.

    `image` is the first image (no bytes where a record has none), `more_images` the others;
    `sizes`, `projections` and so on describe all of them. `attributes`, `sentences`, `findings`,
    `entailment`, `spacings`, `boxes` (in original pixels) and `masks` are JSON, as in
    index.parquet.
    """
    kinds = tfds.features
    depth = np.uint8 if work.storage.format == "jpeg" else np.uint16
    image = kinds.Image(shape=(None, None, 1), dtype=depth, encoding_format=work.storage.format)
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
      inventory: of the corpus, from `inventory.take` with `options`.
      options: of the source; JSON values.
      settings: how images are stored, and how much may be refused; chunks and workers are Beam's.
      beam: generate on the Beam runner that `download_and_prepare` is given.
    """

    VERSION = tfds.core.Version("2.0.0")
    # Where metadata and checksums of downloads would lie. There are none, and to look for them TFDS
    # takes a package that it does not require.
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
        self._inventory, self._settings, self._beam = inventory, settings, beam
        self._work = Work(
            inventory.name,
            json.dumps(dict(options), sort_keys=True),
            settings.storage,
            inventory.label_names,
            inventory.sections,
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
        """Stops when too much was refused; the data set does not appear then."""
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
    """Source, storage of images and a digest of the text: "openi-256-jpeg-95-1f0c9a3b"."""
    content = json.dumps([dict(inventory.options), inventory.sha256], sort_keys=True)
    digest = hashlib.sha256(content.encode()).hexdigest()[:8]
    return "-".join([inventory.name, *map(str, storage.to_dict().values()), digest])


def prepare(
    inventory: Inventory,
    options: Mapping[str, Any],
    settings: Settings,
    data_dir: Path,
    *,
    runner: str | None = None,
    runner_options: Sequence[str] = (),
) -> MmrlCorpus:
    """Prepares the data set, in this process or on a Beam runner; finds it when it is there.

    Args:
      runner: name of a Beam runner ("DirectRunner"), None for none.
      runner_options: of Beam, each KEY=VALUE or KEY.

    Raises:
      InputError: Beam is not installed, an option it does not take, or too much refused.
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
            f"--beam-runner={runner} needs Apache Beam: pip install -r requirements-beam.txt"
        ) from error
    return PipelineOptions([f"--{option}" for option in given])


def _transform(work: Work, spans: Sequence[str], places: tuple[str, ...], rejects: str) -> Any:
    """A PTransform of keys and examples; what is refused goes to `rejects`.jsonl."""
    import apache_beam as beam

    def expand(start: Any) -> Any:
        made = (
            start
            | beam.Create(spans)
            | beam.Reshuffle()  # else a runner may keep all spans on one worker
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
