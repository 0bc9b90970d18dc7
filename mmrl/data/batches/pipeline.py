"""From a corpus to batches: training batches through Grain, held-out examples in a fixed order.

Training batches depend only on (corpus, config, seed, position), not on the number of processes,
threads or workers. The position is one integer, so a run resumes at the exact next example.
"""

import hashlib
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grain
import jax
import numpy as np

from mmrl import build, sequences, wiring
from mmrl.data import counter, stall
from mmrl.data.batches import sequence
from mmrl.data.batches.example import Make
from mmrl.data.corpus import Corpus
from mmrl.data.image.images import Preprocess
from mmrl.data.inputs import base as inputs
from mmrl.data.inputs.base import Input, Place, Reader, Rows
from mmrl.data.labels import Policy
from mmrl.data.sampling import Groups
from mmrl.data.text.tokenizer import Tokenizer
from mmrl.types import InputError, Record

_SHARED_BYTES = 2**16  # smaller arrays are pickled between processes, larger ones share memory
_SHARED_FOLDER = "/dev/shm"  # where Linux keeps shared memory as files


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
    made: Mapping[str, Input],
    tokenizers: Mapping[str, Tokenizer],
    data: Mapping[str, Any],
    *,
    seed: int,
    batch_size: int,
    rows: np.ndarray | None = None,
    drawn: np.ndarray | None = None,
    groups: Groups | None = None,
    start: int = 0,
) -> BatchIterator:
    """An endless, resumable iterator over this process's rows of the global batches.

    Every epoch has a new shuffle, new augmentation and new perturbations.

    Args:
      made: the inputs of a batch, see `inputs.base.make`.
      tokenizers: by tower.
      data: config.data, for its threads and workers.
      batch_size: of the global batch.
      rows: i64[n], ascending, the rows of the global batch that this process makes, see
        `sharding.local_rows`; None for all.
      drawn: i64[n], ascending, the examples of the corpus that training uses; None for all.
      groups: to draw equally often, see `sequence.order`; None: examples are.
      start: batches before this one are not read: they were of another draw.

    Raises:
      InputError: the corpus, a group, or a part of a mixture, has fewer records than one global
        batch takes; it lacks labels or vectors that an input reads.
    """
    board = stall.Board()
    make = Make(
        corpus,
        made,
        tokenizers,
        example_seed=sequence.example_seed(seed),
        text_seed=seed,
        batch_size=batch_size,
        mark=board.mark,
    )
    order = sequence.order(corpus, seed, batch_size, drawn, groups)
    if start:
        order = sequence.Later(order, start * batch_size)
    rows = np.arange(batch_size) if rows is None else rows
    dataset = _Batches(order, make, rows, batch_size)
    # Each thread makes one batch, and one more waits, so that few batches are in memory.
    threads = max(1, data["num_threads"])
    read = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads + 1)
    workers = None
    if data["num_workers"]:
        workers = grain.MultiprocessingOptions(
            num_workers=data["num_workers"], per_worker_buffer_size=1
        )
    return BatchIterator(dataset, batch_size, read, workers, board, corpus.ids)


def batch_shapes(made: Mapping[str, Input], batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of a global batch of `training_batches`, without reading data."""
    rows: dict[str, tuple[tuple[int, ...], Any]] = {
        f"{name}.{array}": shape
        for name, one in made.items()
        for array, shape in one.shapes().items()
    }
    rows |= {"group": ((), np.int32), "index": ((), np.int32)}
    return {
        name: jax.ShapeDtypeStruct((batch_size, *shape), dtype)
        for name, (shape, dtype) in rows.items()
    }


class Examples:
    """Held-out examples in corpus order, see `evaluators.base.HeldOut`.

    Args:
      config: whose towers and inputs make the arrays.
      corpus: the split to evaluate.
      tokenizers: by tower.
      splits: name -> that split of the same corpus, read when it is asked for; None where there is
        no other.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        corpus: Corpus,
        tokenizers: Mapping[str, Tokenizer],
        *,
        splits: Callable[[str], Corpus] | None = None,
    ) -> None:
        self._config, self.corpus, self._splits = config, corpus, splits
        self.tokenizers = dict(tokenizers)
        self.label_policy = Policy.from_config(config["data"]["label_policy"])
        self.name, self.groups = corpus.name, corpus.groups
        self.ids: Sequence[str] = corpus.ids
        self.texts: Sequence[str] = corpus.texts
        self.patients: Sequence[str] = corpus.patients
        self.foreign = corpus.foreign
        self._graph = wiring.graph(config)
        self._own = dict(self._graph.own)
        self._inputs: dict[tuple[str, str], Input] = {}
        self._readers: dict[tuple[str, str], Reader] = {}
        self.preprocessing: Mapping[str, Any] = self._describe()
        settings = json.dumps(self.preprocessing, sort_keys=True)
        items = corpus.sha256()
        self.sha256 = hashlib.sha256((items + settings).encode()).hexdigest()
        labels = json.dumps(corpus.label_names).encode() + corpus.labels.tobytes()
        self.items_sha256 = hashlib.sha256(items.encode() + labels).hexdigest()

    def __len__(self) -> int:
        return len(self.corpus)

    def record(self, index: int) -> Record:
        """The record of example `index`."""
        return self.corpus.record(index)

    def training_texts(self) -> Sequence[str]:
        """The reports of the training split; empty if there is none."""
        return () if self._splits is None else self._splits("train").texts

    def split(self, name: str) -> "Examples":
        """The examples of another split of the same corpus: train, val or test.

        Raises:
          InputError: there is no such split.
        """
        if self._splits is None:
            raise InputError(f"{self.name} has no other splits; asked for {name!r}")
        return Examples(self._config, self._splits(name), self.tokenizers, splits=self._splits)

    def input(self, name: str, tower: str = "") -> Input:
        """An input, as `tower` reads it; "" for arrays that no tower encodes.

        Raises:
          InputError: an input that does not exist, or that the tower cannot read.
        """
        if (name, tower) not in self._inputs:
            self._inputs[name, tower] = inputs.make_one(self._config, name, tower or None)
        return self._inputs[name, tower]

    def arrays(
        self, names: Sequence[str], rows: Sequence[int], tower: str = ""
    ) -> dict[str, np.ndarray]:
        """Arrays "<input>.<array>" [n, ...] of some examples, without anything random.

        Raises:
          InputError: an image cannot be read; an input that does not exist.
        """
        seeds = counter.bits(np.uint64(0), np.asarray(rows))
        made: dict[str, np.ndarray] = {}
        for name in names:
            if (name, tower) not in self._readers:
                place = Place(self.corpus, self.tokenizers.get(tower))
                self._readers[name, tower] = self.input(name, tower).open(place)
            arrays = self._readers[name, tower](Rows(list(rows), 0, seeds), made)
            shapes = self.input(name, tower).shapes()
            made |= {f"{name}.{array}": arrays[array] for array in shapes}
        return made

    def with_texts(self, texts: Sequence[str]) -> "Prompts":
        """Other texts in place of the reports, to be encoded by text towers.

        Raises:
          InputError: a single text, or an item that is no Unicode text.
        """
        return Prompts(self, texts)

    def tokenize(self, texts: Sequence[str], tower: str = "text") -> tuple[np.ndarray, np.ndarray]:
        """Tokens i32[N, L] and mask bool[N, L], as in training."""
        length = int(self._config["towers"][tower]["length"])
        tokens, mask, _ = self.tokenizers[tower].encode_batch(texts, length)
        return tokens, mask

    @property
    def tokenizer(self) -> Tokenizer:
        """Of the tower `text`."""
        return self.tokenizers["text"]

    @property
    def preprocess(self) -> Preprocess:
        """The image preparation of the tower `image`, without anything random."""
        own: Any = self.input(self._own["image"], "image")
        return own.preprocess

    def image(self, index: int) -> np.ndarray:
        """u8[H, W, C] as the tower `image` sees it, without augmentation; of a set the first."""
        own = self._own["image"]
        return _first_images(self.arrays([own], [index], "image")[f"{own}.pixels"])[0]

    def labels(self, names: Sequence[str] = ()) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
        """(names, labels i8[N, C], known bool[N, C]), as config.data.label_policy reads them.

        Args:
          names: of the labels; empty: config.data.label_names or, if that is empty, all of them.

        Raises:
          InputError: a label that the corpus does not have, or a corpus without labels.
        """
        offered = self.corpus.label_names
        own = sequences.of(names, "names of labels")
        chosen = tuple(own or self._config["data"]["label_names"] or offered)
        if not chosen:
            raise InputError(f"{self.name} has no labels ({len(self)} examples)")
        what = f"label of {self.name}"
        table = self.label_policy.table(chosen, offered, self.corpus.labels, what=what)
        build.check_distinct(f"labels of {self.name}", chosen)
        return chosen, *table

    def pixels(self, encoding: str, rows: Sequence[int]) -> np.ndarray | None:
        """u8[n, H, W, C], the images that an encoding is made of, the first of each set; or None.

        Raises:
          InputError: a tower or an input that does not exist.
        """
        for name in self._graph.towers_of(self._graph.resolve(encoding)):
            own = self._graph.recorded(name.input)
            if self.input(own, name.tower).kind == "image":
                return _first_images(self.arrays([own], rows, name.tower)[f"{own}.pixels"])
        return None

    def _describe(self) -> dict[str, Any]:
        """What happens to pixels and text before the towers; of further ones under their names."""
        found: dict[str, Any] = {}
        for tower, own in self._own.items():
            given: Any = self.input(own, tower)
            if given.kind == "image":
                stated = given.preprocess.to_dict()
                if self.corpus.channels != 1:
                    luma = given.colour == "grey" or given.channels == 1
                    stated["colour"] = "grey" if luma else "rgb"
            elif given.kind == "text" and tower in self.tokenizers:
                digest = self.tokenizers[tower].sha256
                stated = {"text_length": given.length, "tokenizer_sha256": digest}
                if getattr(given, "separator", " ") != " ":
                    stated["separator"] = given.separator
            else:
                stated = {}
            if hasattr(given, "most"):
                stated["set_size"] = given.most
            known = set(stated) & set(found)
            found |= {f"{tower}.{key}" if known else key: value for key, value in stated.items()}
        return found


def _first_images(pixels: np.ndarray) -> np.ndarray:
    """u8[n, H, W, C] of pixels [n, H, W, C] or, of sets of images, [n, S, H, W, C]."""
    return pixels[:, 0] if pixels.ndim == 5 else pixels


class Prompts:
    """Texts that stand for examples, so that text towers encode them as they do reports.

    Args:
      data: whose tokenizers are used.
    """

    def __init__(self, data: Examples, texts: Sequence[str]) -> None:
        self._data, self.texts = data, sequences.of(texts, "texts")
        identity = hashlib.sha256("\0".join(self.texts).encode()).hexdigest()
        self.sha256 = f"{data.sha256}/{identity}"

    def __len__(self) -> int:
        return len(self.texts)

    def arrays(
        self, names: Sequence[str], rows: Sequence[int], tower: str = ""
    ) -> dict[str, np.ndarray]:
        """Tokens and mask of some texts, under the name of the one input asked for.

        Raises:
          InputError: an input without text.
        """
        made: dict[str, np.ndarray] = {}
        for name in names:
            if self._data.input(name, tower).kind != "text":
                raise InputError(f"texts given as prompts have no input {name!r}")
            tokens, mask = self._data.tokenize([self.texts[row] for row in rows], tower)
            made |= {f"{name}.tokens": tokens, f"{name}.mask": mask}
        return made
