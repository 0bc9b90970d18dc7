"""Training examples: a batch made from its positions in the endless sequence of training.

An example depends only on (corpus, config, seed, position). One thread makes a whole batch: rows
are written directly into the arrays of the batch, and its reports are tokenised together.
"""

import dataclasses
import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from mmrl.data import counter
from mmrl.data.batches import stall
from mmrl.data.batches.copies import Copies
from mmrl.data.batches.excerpts import Excerpts
from mmrl.data.corpus import Corpus
from mmrl.data.image.images import Preprocess
from mmrl.data.image.jitter import DRAWS, Jitter
from mmrl.data.perturb.mix import Mix
from mmrl.data.text.tokenizer import Tokenizer
from mmrl.types import InputError


@dataclasses.dataclass(frozen=True)
class ExampleOptions:
    """How an example is made: config.data as `pipeline.PipelineOptions` has it.

    Attributes:
      preprocess: decoded image -> the square that is jittered.
      jitter: random part of image preparation.
      text: which part of a report is read, one of `excerpts.CHOICES`.
      mix: kinds of perturbation with their weights.
      cache_mib: MiB of preprocessed images kept in memory, if `cache_images`.
    """

    preprocess: Preprocess
    jitter: Jitter
    text_length: int
    text: str
    mix: Mix
    num_perturbed: int
    cache_images: bool
    cache_mib: int


class ExampleSeeds(NamedTuple):
    """The random numbers of n examples, u64[n] each.

    They are independent, so that an option which draws from one (a further jitter, say) changes
    nothing that another decides.

    Attributes:
      jitter: seed of the image jitter.
      copies: seed of the perturbed copies of the report.
      view: chooses one of the images of a record, where training may choose.
    """

    jitter: np.ndarray
    copies: np.ndarray
    view: np.ndarray


def seeds_at(seed: int, positions: Sequence[int]) -> ExampleSeeds:
    """The random numbers of the examples at some positions, counted from 0.

    Args:
      seed: see `sequence.example_seed`.
    """
    own = counter.bits(np.uint64(seed), np.asarray(positions))
    return ExampleSeeds(*counter.bits(own, np.arange(len(ExampleSeeds._fields))[:, None]))


class Load:
    """(index, view) -> preprocessed image, u8[S, S].

    Images are kept in memory until `cache_mib` MiB are used, in each process separately. None is
    evicted: an epoch reads each image once, so a cache that evicts the oldest image would have
    evicted every image before its next use.

    Args:
      cache_mib: 0 keeps none.
      mark: called with each stage before it begins, see `stall.Board.mark`.
    """

    def __init__(
        self,
        corpus: Corpus,
        preprocess: Preprocess,
        cache_mib: int,
        mark: Callable[[int, int], None] = stall.ignore,
    ) -> None:
        self._load, self._positions, self._ids = corpus.load, corpus.positions, corpus.ids
        self._numbers, self._choices = corpus.numbers, corpus.choices
        self._preprocess, self._mark = preprocess, mark
        self._kept = cache_mib * 2**20 // preprocess.size**2
        self.cache: dict[tuple[int, int], np.ndarray] = {}
        self._adding = threading.Lock()

    def __call__(
        self,
        index: int,
        view: int = 0,
        out: np.ndarray | None = None,
        corner: tuple[int, int] = (0, 0),
    ) -> np.ndarray:
        """The image of one example.

        Args:
          index: of the example in the corpus.
          view: random number that chooses among the images of the record, see `Corpus.choices`.
          out: u8[h, w]. If given, the window of the image whose first pixel is at (row, column)
            `corner` is written there.

        Returns:
          `out`, or else the whole image, u8[S, S], which must not be modified: it may be in the
          cache.

        Raises:
          InputError: the image cannot be read; names the record.
        """
        count = int(self._choices[index])
        number = view % count if count > 1 else int(self._numbers[index])
        key = int(self._positions[index]), number
        image = self.cache.get(key)
        if image is None:
            keep = len(self.cache) < self._kept
            try:
                self._mark(stall.READ, index)
                image = self._load(*key)
                self._mark(stall.PREPROCESS, index)
                if out is not None and not keep:
                    return self._preprocess(image, out, corner)
                image = self._preprocess(image)
            except InputError as error:
                raise InputError(f"record {self._ids[index]}: {error}") from None
            if keep:
                with self._adding:
                    if len(self.cache) < self._kept:
                        self.cache[key] = image
        if out is None:
            return image
        (top, left), (height, width) = corner, out.shape
        np.copyto(out, image[top : top + height, left : left + width])
        return out

    def __getstate__(self) -> dict[str, Any]:
        # Without the pixels: a worker process fills a cache of its own.
        kept = {name: value for name, value in self.__dict__.items() if name != "_adding"}
        return {**kept, "cache": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _adding=threading.Lock())


class Make:
    """positions -> rows of a batch: types.Batch with as many rows.

    Args:
      example_seed: see `sequence.example_seed`.
      text_seed: of the choice of excerpts, see `Excerpts`.
      batch_size: of the global batch; it converts a position into a step.
      with_perturbed: whether to make perturbed copies.
      mark: called with each stage before it begins, see `stall.Board.mark`.
    """

    def __init__(
        self,
        corpus: Corpus,
        tokenizer: Tokenizer,
        options: ExampleOptions,
        *,
        example_seed: int,
        text_seed: int,
        batch_size: int,
        with_perturbed: bool,
        mark: Callable[[int, int], None] = stall.ignore,
    ) -> None:
        kept = options.cache_mib if options.cache_images else 0
        self.load = Load(corpus, options.preprocess, kept, mark)
        self._mark = mark
        self._excerpts = Excerpts(corpus, options.text, text_seed)
        self._tokenizer, self._options, self._seed = tokenizer, options, example_seed
        self._copies = Copies(tokenizer, options.text_length)
        self._batch_size, self._with_perturbed = batch_size, with_perturbed

    def __call__(self, positions: Sequence[int], indices: Sequence[int]) -> dict[str, np.ndarray]:
        """Makes the rows.

        Args:
          positions: n positions in the endless sequence, all of one batch.
          indices: the index in the corpus of the example at each position.
        """
        options, seeds = self._options, seeds_at(self._seed, positions)
        step = positions[0] // self._batch_size
        excerpts = [self._excerpts(index, step) for index in indices]
        texts = [text for text, _ in excerpts]
        images = self._images(indices, seeds)[..., None]
        self._mark(stall.TOKENISE, indices[0])
        originals = self._tokenizer.encode_batch(texts, options.text_length)
        rows = {
            "image": images,
            "tokens": originals.tokens,
            "token_mask": originals.mask,
            "group": np.asarray([group for _, group in excerpts], np.int32),
            "index": np.asarray(indices, np.int32),
        }
        if self._with_perturbed:
            kinds = options.mix.draw(step, options.num_perturbed, seeds.copies)

            def mark(row: int) -> None:
                self._mark(stall.PERTURB, indices[row])

            rows |= self._copies(texts, originals.tokens, kinds, seeds.copies, mark)
        self._mark(stall.IDLE, 0)
        return rows

    def _images(self, indices: Sequence[int], seeds: ExampleSeeds) -> np.ndarray:
        """u8[n, S, S], jittered."""
        jitter, preprocess = self._options.jitter, self._options.preprocess
        side = preprocess.size if jitter.size is None else jitter.size
        out = np.empty((len(indices), side, side), np.uint8)
        uniforms = counter.uniforms(seeds.jitter[:, None], np.arange(DRAWS)).tolist()
        views = seeds.view.tolist()
        for row, index, view, drawn in zip(out, indices, views, uniforms, strict=True):
            image = functools.partial(self._loaded, index, view)
            jitter.fill(row, preprocess.size, drawn, image)
        return out

    def _loaded(self, index: int, view: int, *window: Any) -> np.ndarray:
        """What `Load` returns; the stage after it is augmentation."""
        image = self.load(index, view, *window)
        self._mark(stall.AUGMENT, index)
        return image
