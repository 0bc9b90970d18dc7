"""From a corpus to batches: training batches through Grain, held-out examples in a fixed order.

Training batches depend only on (corpus, config, seed, position), not on the number of processes,
threads or workers. The position is one integer, so a run resumes at the exact next example.
"""

import dataclasses
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import grain
import jax
import numpy as np

from mmrl.data.batches import sequence, stall
from mmrl.data.batches.example import ExampleOptions, Make
from mmrl.data.corpus import Corpus
from mmrl.data.image.images import Preprocess
from mmrl.data.image.jitter import Jitter
from mmrl.data.labels import Policy
from mmrl.data.perturb.mix import Mix
from mmrl.data.text.tokenizer import Tokenizer
from mmrl.types import Record

_SHARED_BYTES = 2**16  # smaller arrays are pickled between processes, larger ones share memory
_SHARED_FOLDER = "/dev/shm"  # where Linux keeps shared memory as files
_JITTERS = ("crop_scale", "aspect", "translate", "rotate", "brightness", "contrast", "gamma")


@dataclasses.dataclass(frozen=True)
class PipelineOptions:
    """The part of config.data that decides what examples hold and how they are made."""

    image_size: int
    load_size: int
    resize: str
    text: str
    text_length: int
    mix: Mix
    num_perturbed: int
    crop_scale: tuple[float, float]
    aspect: tuple[float, float]
    translate: float
    rotate: float
    brightness: float
    contrast: float
    gamma: float
    cache_images: bool
    cache_mib: int
    label_policy: Policy
    num_threads: int
    num_workers: int

    @classmethod
    def from_config(cls, data: Mapping[str, Any]) -> "PipelineOptions":
        """Reads config.data.

        Raises:
          InputError: unknown kinds of perturbation, see `Mix.from_config`; a jitter out of its
            range.
        """
        parsed = ("mix", "label_policy")
        names = [field.name for field in dataclasses.fields(cls) if field.name not in parsed]
        policy = Policy.from_config(data["label_policy"])
        mix = Mix.from_config(data["perturbations"], data["perturbation_curriculum"])
        options = cls(mix=mix, label_policy=policy, **{name: data[name] for name in names})
        options.example()  # checks the ranges
        return options

    def preprocess(self) -> Preprocess:
        """The image preparation of evaluation, which has no random part."""
        return Preprocess(self.image_size, self.resize)

    def example(self) -> ExampleOptions:
        """How training makes an example.

        Raises:
          InputError: a jitter out of its range.
        """
        return ExampleOptions(
            preprocess=Preprocess(self.load_size or self.image_size, self.resize),
            jitter=Jitter(
                size=self.image_size,
                **{field: getattr(self, field) for field in _JITTERS},
            ),
            text_length=self.text_length,
            text=self.text,
            mix=self.mix,
            num_perturbed=self.num_perturbed,
            cache_images=self.cache_images,
            cache_mib=self.cache_mib,
        )


class _Batches(grain.MapDataset):
    """Element n holds this process's rows of global batch n.

    Args:
      order: position in the endless sequence -> index in the corpus.
      rows: i64[n], the rows of a global batch that this process makes.
    """

    def __init__(
        self, order: Callable[[int], int], make: Make, rows: np.ndarray, batch_size: int
    ) -> None:
        super().__init__()
        self._order, self._make = order, make
        self._rows, self._batch_size = rows.tolist(), batch_size

    def __len__(self) -> int:
        return sys.maxsize // self._batch_size

    def __str__(self) -> str:
        return f"Batches({len(self._rows)} of {self._batch_size} rows)"

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.slice(index)
        positions = [index * self._batch_size + row for row in self._rows]
        return self._make(positions, list(map(self._order, positions)))


def _to_shared_memory(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Moves large arrays to shared memory, from which the training process reads them.

    Grain would do the same through a memory mapping. The kernel clears and maps each page of a
    mapping when it is first touched, which takes three times as long as writing the file. Where
    shared memory is not a folder, this is left to Grain.
    """
    if not os.path.isdir(_SHARED_FOLDER):
        return batch
    shared = {}
    for name, array in batch.items():
        shared[name] = array
        if array.nbytes >= _SHARED_BYTES and array.flags.c_contiguous:
            target = grain.multiprocessing.SharedMemoryArray(array.shape, array.dtype)
            path = os.path.join(_SHARED_FOLDER, target.shm.name)
            with open(path, "r+b", buffering=_SHARED_BYTES) as file:
                file.write(array.data)
            shared[name] = target
    return shared


class BatchIterator:
    """Batches in order, made ahead by threads or worker processes.

    Args:
      batch_size: of the global batch.
      read: the number of threads, and of batches that they make ahead.
      workers: worker processes; None makes batches in this process.
      board: where threads and workers record their stage.
      ids: of the records, for `whereabouts`.
    """

    def __init__(
        self,
        dataset: grain.MapDataset,
        batch_size: int,
        read: grain.ReadOptions,
        workers: grain.MultiprocessingOptions | None,
        board: stall.Board,
        ids: Sequence[str],
    ) -> None:
        self._board, self._ids = board, ids
        self._dataset, self._batch_size = dataset, batch_size
        self._read, self._workers = read, workers
        self._next = 0
        self._running: Any = None

    def __next__(self) -> dict[str, np.ndarray]:
        if self._running is None:
            self._board.clear()
            ahead = self._dataset[self._next :].to_iter_dataset(self._read)
            if self._workers is not None:
                small = grain.experimental.DatasetOptions(min_shm_size=_SHARED_BYTES)
                ahead = grain.experimental.WithOptionsIterDataset(
                    ahead.map(_to_shared_memory), small
                ).mp_prefetch(self._workers)
            self._running = iter(ahead)
        batch = next(self._running)
        self._next += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        """{"global_next_index": number of examples used so far}, equal on every process."""
        return {"global_next_index": self._next * self._batch_size}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continues from a state of `get_state`."""
        self.close()
        self._next, within = divmod(int(state["global_next_index"]), self._batch_size)
        if within:
            raise ValueError(f"{state} lies within a batch of {self._batch_size}")

    def whereabouts(self) -> str:
        """The stage that has been running longest, with its record and seconds."""
        places = self._board.places()
        if not places:
            return "waiting for worker processes" if self._workers else "waiting for threads"
        stage, record, seconds = places[0]
        return f"{stall.STAGES[stage]} of record {self._ids[record]} for {seconds:.0f} s"

    def close(self) -> None:
        """Stops threads and workers; the next call of `__next__` starts them again."""
        if self._running is not None:
            self._running.close()
            self._running = None


def training_batches(
    corpus: Corpus,
    tokenizer: Tokenizer,
    options: PipelineOptions,
    *,
    seed: int,
    batch_size: int,
    with_perturbed: bool,
    rows: np.ndarray | None = None,
) -> BatchIterator:
    """An endless, resumable iterator over this process's rows of the global batches.

    Every epoch has a new shuffle, new augmentation and new perturbations.

    Args:
      batch_size: of the global batch.
      with_perturbed: whether to make perturbed copies.
      rows: i64[n], ascending, the rows of the global batch that this process makes, see
        `sharding.local_rows`; None for all.

    Raises:
      InputError: the corpus, or a part of a mixture, has fewer records than one global batch takes.
    """
    board = stall.Board()
    make = Make(
        corpus,
        tokenizer,
        options.example(),
        example_seed=sequence.example_seed(seed),
        text_seed=seed,
        batch_size=batch_size,
        with_perturbed=with_perturbed,
        mark=board.mark,
    )
    order = sequence.order(corpus, seed, batch_size)
    rows = np.arange(batch_size) if rows is None else rows
    dataset = _Batches(order, make, rows, batch_size)
    # Each thread makes one batch, and one more waits, so that few batches are in memory.
    threads = max(1, options.num_threads)
    read = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads + 1)
    workers = None
    if options.num_workers:
        workers = grain.MultiprocessingOptions(
            num_workers=options.num_workers, per_worker_buffer_size=1
        )
    return BatchIterator(dataset, batch_size, read, workers, board, corpus.ids)


def batch_shapes(
    options: PipelineOptions, batch_size: int, *, with_perturbed: bool
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of a global batch of `training_batches`, without reading data."""
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
    """Held-out examples in corpus order, see `evaluators.base.HeldOut`.

    Args:
      corpus: the split to evaluate.
      training: () -> the training split of the same corpus, for evaluators that fit a model of
        texts to it; None where there is none.
      label_policy: how evaluators read labels; None ignores uncertain and blank ones.
    """

    def __init__(
        self,
        corpus: Corpus,
        tokenizer: Tokenizer,
        preprocess: Preprocess,
        text_length: int,
        *,
        training: Callable[[], Corpus] | None = None,
        label_policy: Policy | None = None,
    ) -> None:
        self.label_policy = label_policy or Policy()
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
        """The record of example `index`."""
        return self.corpus.record(index)

    def training_texts(self) -> Sequence[str]:
        """Reports of the training split, () where there is none."""
        return () if self._training is None else self._training().texts

    def tokenize(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Tokens i32[N, L] and mask bool[N, L], as in training."""
        tokens, mask, _ = self.tokenizer.encode_batch(list(texts), self.text_length)
        return tokens, mask

    def image(self, index: int) -> np.ndarray:
        """The image of example `index` as the encoder reads it, u8[H, W, 1]."""
        return self.preprocess(self.corpus.image(index))[:, :, None]

    def image_batches(self, batch_size: int) -> Iterator[tuple[np.ndarray, int]]:
        """(u8[batch_size, H, W, 1], number of real rows); the last batch is padded with zeros."""
        side = self.preprocess.size
        for start in range(0, len(self), batch_size):
            count = min(batch_size, len(self) - start)
            batch = np.zeros((batch_size, side, side, 1), np.uint8)
            for row in range(count):
                batch[row] = self.image(start + row)
            yield batch, count
