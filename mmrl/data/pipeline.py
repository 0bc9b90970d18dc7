"""From a corpus to batches: training through Grain, held-out examples in a fixed order.

Training batches depend only on (corpus, config, seed, position): not on the number of processes,
threads or workers. The position is one integer, so a run resumes at the exact next sample.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import grain
import jax
import numpy as np

from mmrl.data import perturb
from mmrl.data.corpus import Corpus
from mmrl.data.images import Preprocess, augment
from mmrl.data.perturb.mix import Mix
from mmrl.data.tokenizer import Tokenizer
from mmrl.types import InputError, Record


@dataclasses.dataclass(frozen=True)
class Options:
    """The part of config.data that shapes an example."""

    image_size: int
    resize: str
    text_length: int
    mix: Mix
    num_perturbed: int
    crop_scale: tuple[float, float]
    brightness: float
    contrast: float
    cache_images: bool
    num_threads: int
    num_workers: int

    @classmethod
    def from_config(cls, data: Mapping[str, Any]) -> "Options":
        """Picks the fields out of config.data.

        Raises:
          InputError: unknown kinds of perturbation, see `Mix.from_config`.
        """
        names = [field.name for field in dataclasses.fields(cls) if field.name != "mix"]
        mix = Mix.from_config(data["perturbations"], data["perturbation_curriculum"])
        return cls(mix=mix, **{name: data[name] for name in names})

    def preprocess(self) -> Preprocess:
        """The deterministic part of image preparation."""
        return Preprocess(self.image_size, self.resize)


class _Load:
    """index -> {index, image}: decoding and resizing, kept in memory when asked for."""

    def __init__(self, corpus: Corpus, preprocess: Preprocess, cache: bool) -> None:
        self.corpus, self.preprocess = corpus, preprocess
        self.cache: dict[int, np.ndarray] | None = {} if cache else None

    def __call__(self, index: int) -> dict[str, Any]:
        image = self.cache.get(index) if self.cache is not None else None
        if image is None:
            image = load_image(self.corpus.record(index), self.preprocess)
            if self.cache is not None:
                self.cache[index] = image
        return {"index": index, "image": image}

    def __getstate__(self) -> dict[str, Any]:
        # A worker process gets the recipe, not the pixels.
        return {**self.__dict__, "cache": None if self.cache is None else {}}


def load_image(record: Record, preprocess: Preprocess) -> np.ndarray:
    """u8[S, S] of the record's first view.

    Raises:
      InputError: unreadable; names the record.
    """
    try:
        return preprocess(record.images[0].load())
    except InputError as error:
        raise InputError(f"record {record.id}: {error}") from None


class _Placed:
    """Adds the training step, counted from 0, that an element of the global sequence serves."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size

    def __call__(self, position: int, item: dict[str, Any]) -> dict[str, Any]:
        return {**item, "step": position // self.batch_size}


class _Example:
    """{index, image, step} and a generator -> one training example (types.Batch without B)."""

    def __init__(
        self, corpus: Corpus, tokenizer: Tokenizer, options: Options, *, with_perturbed: bool
    ) -> None:
        self.texts, self.groups = corpus.texts, corpus.groups
        self.tokenizer, self.options = tokenizer, options
        self.with_perturbed = with_perturbed

    def __call__(self, item: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        options, index = self.options, item["index"]
        # Separate generators: switching an image jitter on leaves the perturbations as they were.
        # Not rng.spawn: Grain reuses generators and sets their state, but spawn counts calls.
        seeds = rng.integers(0, 2**63, size=2)
        image_rng, text_rng = (np.random.default_rng(seed) for seed in seeds)
        image = augment(
            item["image"],
            image_rng,
            crop_scale=options.crop_scale,
            brightness=options.brightness,
            contrast=options.contrast,
        )
        original = self.tokenizer.encode(self.texts[index], options.text_length)
        example = {
            "image": image[:, :, None],
            "tokens": original.tokens,
            "token_mask": original.mask,
            "group": self.groups[index],
            "index": np.int32(index),
        }
        if self.with_perturbed:
            kinds = options.mix.at(item["step"])
            example |= perturbed_arrays(
                self.texts[index],
                original.tokens,
                self.tokenizer,
                perturb.draw_kinds(kinds, options.num_perturbed, text_rng),
                text_rng,
            )
        return example


def perturbed_arrays(
    text: str,
    tokens: np.ndarray,
    tokenizer: Tokenizer,
    kinds: Sequence[str],
    rng: np.random.Generator,
) -> dict[str, np.ndarray]:
    """K fresh perturbed copies of one report, one for each of `kinds`.

    Args:
      text, tokens: the report; tokens i32[L] also give the length of the rows.

    Returns:
      perturbed_tokens i32[K, L], perturbed_mask bool[K, L], perturbed_valid bool[K] (False where
      the kind cannot change this report, or changes only what truncation cut off) and
      perturbation i8[K], the index of the kind in perturb.KINDS.
    """
    copies = [perturb.perturb(text, kind, rng) for kind in kinds]
    texts = [text if copy is None else copy.text for copy in copies]
    new_tokens, mask, _ = tokenizer.encode_batch(texts, len(tokens))
    made = np.array([copy is not None for copy in copies], bool)
    return {
        "perturbed_tokens": new_tokens,
        "perturbed_mask": mask,
        "perturbed_valid": made & (new_tokens != tokens).any(axis=1),
        "perturbation": np.array([perturb.KINDS.index(kind) for kind in kinds], np.int8),
    }


class _OwnRows(grain.MapDataset):
    """Deals each global batch out by rows, where slicing by a stride would deal every n-th one.

    The stride of a process that holds n of B rows is B / n. What it meets there are its own rows
    in their order, so that the global batch is the same array whatever the number of processes.
    """

    def __init__(self, parent: grain.MapDataset, rows: np.ndarray, batch_size: int) -> None:
        super().__init__(parent)
        self._rows, self._batch_size = rows, batch_size

    def __len__(self) -> int:
        return len(self._parent)

    def __str__(self) -> str:
        return f"OwnRows({len(self._rows)} of {self._batch_size})"

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.slice(index)
        batch, place = divmod(index, self._batch_size)
        row = int(self._rows[place * len(self._rows) // self._batch_size])
        return self._parent[batch * self._batch_size + row]


def training_batches(
    corpus: Corpus,
    tokenizer: Tokenizer,
    options: Options,
    *,
    seed: int,
    batch_size: int,
    with_perturbed: bool,
    rows: np.ndarray | None = None,
) -> Any:
    """An endless, resumable iterator over this process's rows of the global batches.

    Every epoch is a fresh shuffle with fresh augmentation and fresh perturbations. The iterator
    has get_state() and set_state(); the state is {"global_next_index": int} on every process.

    Args:
      batch_size: of the global batch.
      with_perturbed: whether any objective reads perturbed copies; else they are not made.
      rows: i64[n], ascending, those of the global batch that this process loads, where n divides
        `batch_size`; see `sharding.local_rows`. None: all.

    Raises:
      InputError: fewer records than one global batch.
    """
    if len(corpus) < batch_size:
        raise InputError(
            f"{corpus.name} has {len(corpus)} usable records, fewer than "
            f"config.batch_size={batch_size}; a batch must not repeat a record"
        )
    dataset = (
        grain.MapDataset.source(range(len(corpus)))
        .seed(seed)
        .shuffle()
        .map(_Load(corpus, options.preprocess(), options.cache_images))
        .repeat(None)
        .map_with_index(_Placed(batch_size))
        .random_map(_Example(corpus, tokenizer, options, with_perturbed=with_perturbed))
    )
    rows = np.arange(batch_size) if rows is None else rows
    if len(rows) < batch_size:
        dataset = _OwnRows(dataset, rows, batch_size)
    workers = None
    if options.num_workers:
        workers = grain.MultiprocessingOptions(
            num_workers=options.num_workers, per_worker_buffer_size=2
        )
    return iter(
        grain.experimental.ElasticIterator(
            dataset,
            batch_size,
            grain.sharding.ShardOptions(0, batch_size // len(rows)),
            read_options=grain.ReadOptions(
                num_threads=options.num_threads, prefetch_buffer_size=4 * batch_size
            ),
            multiprocessing_options=workers,
        )
    )


def batch_shapes(
    options: Options, batch_size: int, *, with_perturbed: bool
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of a global batch of `training_batches`, without any data."""
    side, length, copies = options.image_size, options.text_length, options.num_perturbed
    rows: dict[str, tuple[tuple[int, ...], type]] = {
        "image": ((side, side, 1), np.uint8),
        "tokens": ((length,), np.int32),
        "token_mask": ((length,), np.bool_),
        "group": ((), np.int32),
        "index": ((), np.int32),
    }
    if with_perturbed:
        rows |= {
            "perturbed_tokens": ((copies, length), np.int32),
            "perturbed_mask": ((copies, length), np.bool_),
            "perturbed_valid": ((copies,), np.bool_),
            "perturbation": ((copies,), np.int8),
        }
    return {
        name: jax.ShapeDtypeStruct((batch_size, *shape), dtype)
        for name, (shape, dtype) in rows.items()
    }


class Examples:
    """Held-out examples in corpus order; see evaluators.base.HeldOut.

    Args:
      corpus: the split to evaluate.
      training: answers the training split of the same corpus, for evaluators that judge texts by
        it; asked at most once, None where there is none.
    """

    def __init__(
        self,
        corpus: Corpus,
        tokenizer: Tokenizer,
        preprocess: Preprocess,
        text_length: int,
        *,
        training: Callable[[], Corpus] | None = None,
    ) -> None:
        self.corpus, self.tokenizer, self._training = corpus, tokenizer, training
        self.preprocess, self.text_length = preprocess, text_length
        self.name, self.groups = corpus.name, corpus.groups
        self.ids: Sequence[str] = corpus.ids
        self.texts: Sequence[str] = corpus.texts
        self.patients: Sequence[str] = corpus.patients
        self.preprocessing: Mapping[str, Any] = {
            **preprocess.to_dict(),
            "text_length": text_length,
            "tokenizer_sha256": tokenizer.sha256,
        }
        settings = json.dumps(self.preprocessing, sort_keys=True)
        self.sha256 = hashlib.sha256((corpus.sha256() + settings).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.corpus)

    def record(self, index: int) -> Record:
        """The full record of example `index`."""
        return self.corpus.record(index)

    def training_texts(self) -> Sequence[str]:
        """Reports of the training split; empty where there is none."""
        return () if self._training is None else self._training().texts

    def tokenize(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Tokens i32[N, L] and mask bool[N, L], as in training."""
        tokens, mask, _ = self.tokenizer.encode_batch(list(texts), self.text_length)
        return tokens, mask

    def image(self, index: int) -> np.ndarray:
        """u8[H, W, 1], without augmentation."""
        return load_image(self.record(index), self.preprocess)[:, :, None]

    def image_batches(self, batch_size: int) -> Iterator[tuple[np.ndarray, int]]:
        """(u8[batch_size, H, W, 1], real rows); the last batch is padded by zeros."""
        side = self.preprocess.size
        for start in range(0, len(self), batch_size):
            count = min(batch_size, len(self) - start)
            batch = np.zeros((batch_size, side, side, 1), np.uint8)
            for row in range(count):
                batch[row] = self.image(start + row)
            yield batch, count
