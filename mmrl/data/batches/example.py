"""Training examples: one position of the endless sequence after the other, made into a batch.

What an example holds depends on (corpus, config, seed, position) alone. A batch is made whole, by
one thread: its rows are written where they will lie, and its texts are tokenised together.
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
class Recipe:
    """How an example is made; the fields are those of `pipeline.Options`."""

    preprocess: Preprocess
    jitter: Jitter
    text_length: int
    text: str
    mix: Mix
    num_perturbed: int
    cache_images: bool
    cache_mib: int


class Draws(NamedTuple):
    """What is random about n examples, u64[n] each: seeds of image and text, and a number.

    Separate ones: switching an image jitter on leaves the perturbations as they were.
    """

    image: np.ndarray
    text: np.ndarray
    view: np.ndarray


class Seeds:
    """The draws of positions in the endless sequence: numbers of the stream that a position seeds.

    Args:
      seed: of the positions' seeds.
    """

    def __init__(self, seed: int) -> None:
        self._seed = np.uint64(seed)

    def __call__(self, positions: Sequence[int]) -> Draws:
        """The draws of positions, counted from 0."""
        own = counter.bits(self._seed, np.asarray(positions))
        return Draws(*counter.bits(own, np.arange(len(Draws._fields))[:, None]))


class Load:
    """(index, view) -> u8[S, S]: decoding and resizing, kept in memory when asked for.

    Images are kept as they come until `cache_mib` MiB are full, in each process by itself. None is
    ever given up for another: every epoch asks for each image once, so that of a cache that drops
    the oldest nothing would be found again.

    Args:
      cache_mib: 0 keeps none.
      mark: is told what begins, see `stall.Board.mark`.
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
        """The image of one example; it may be the cache's own, so nobody may write to it.

        Args:
          view: a random number that chooses among the images, where there is a choice.
          out: u8[h, w], where to write the part of the image that begins at row and column
            `corner` instead.

        Returns:
          u8[S, S], or `out`.

        Raises:
          InputError: unreadable; names the record.
        """
        count = int(self._choices[index])
        number = view % count if count > 1 else int(self._numbers[index])
        place = int(self._positions[index]), number
        image = self.cache.get(place)
        if image is None:
            keep = len(self.cache) < self._kept
            try:
                self._mark(stall.READ, index)
                image = self._load(*place)
                self._mark(stall.PREPROCESS, index)
                if out is not None and not keep:
                    return self._preprocess(image, out, corner)
                image = self._preprocess(image)
            except InputError as error:
                raise InputError(f"record {self._ids[index]}: {error}") from None
            if keep:
                with self._adding:
                    if len(self.cache) < self._kept:
                        self.cache[place] = image
        if out is None:
            return image
        (top, left), (height, width) = corner, out.shape
        np.copyto(out, image[top : top + height, left : left + width])
        return out

    def __getstate__(self) -> dict[str, Any]:
        # A worker process gets the recipe, not the pixels.
        kept = {name: value for name, value in self.__dict__.items() if name != "_adding"}
        return {**kept, "cache": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _adding=threading.Lock())


class Make:
    """Rows of a batch from their positions: types.Batch with as many rows.

    Args:
      seeds: of every position. text_seed: of the parts of reports that are read.
      batch_size: of the global batch; it tells the step, which the curriculum asks for.
      with_perturbed: whether perturbed copies are made.
      mark: is told what begins, see `stall.Board.mark`.
    """

    def __init__(
        self,
        corpus: Corpus,
        tokenizer: Tokenizer,
        recipe: Recipe,
        seeds: Seeds,
        *,
        text_seed: int,
        batch_size: int,
        with_perturbed: bool,
        mark: Callable[[int, int], None] = stall.ignore,
    ) -> None:
        kept = recipe.cache_mib if recipe.cache_images else 0
        self.load = Load(corpus, recipe.preprocess, kept, mark)
        self._mark = mark
        self._excerpts = Excerpts(corpus, recipe.text, text_seed)
        self._tokenizer, self._recipe, self._seeds = tokenizer, recipe, seeds
        self._copies = Copies(tokenizer, recipe.text_length)
        self._batch_size, self._with_perturbed = batch_size, with_perturbed

    def __call__(self, positions: Sequence[int], indices: Sequence[int]) -> dict[str, np.ndarray]:
        """The rows whose place in the endless sequence is `positions`; see the class."""
        draws = self._seeds(positions)
        step = positions[0] // self._batch_size
        read = [self._excerpts(index, step) for index in indices]
        texts = [text for text, _ in read]
        images = self._images(indices, draws)[..., None]
        self._mark(stall.TOKENISE, indices[0])
        originals = self._tokenizer.encode_batch(texts, self._recipe.text_length)
        rows = {
            "image": images,
            "tokens": originals.tokens,
            "token_mask": originals.mask,
            "group": np.asarray([group for _, group in read], np.int32),
            "index": np.asarray(indices, np.int32),
        }
        if self._with_perturbed:
            kinds = self._recipe.mix.draw(step, self._recipe.num_perturbed, draws.text)

            def mark(row: int) -> None:
                self._mark(stall.PERTURB, indices[row])

            rows |= self._copies(texts, originals.tokens, kinds, draws.text, mark)
        self._mark(stall.IDLE, 0)
        return rows

    def _images(self, indices: Sequence[int], draws: Draws) -> np.ndarray:
        """u8[n, S, S], jittered."""
        jitter, preprocess = self._recipe.jitter, self._recipe.preprocess
        side = preprocess.size if jitter.size is None else jitter.size
        out = np.empty((len(indices), side, side), np.uint8)
        numbers = counter.uniforms(draws.image[:, None], np.arange(DRAWS)).tolist()
        views = draws.view.tolist()
        for row, index, view, drawn in zip(out, indices, views, numbers, strict=True):
            image = functools.partial(self._loaded, index, view)
            jitter.fill(row, preprocess.size, drawn, image)
        return out

    def _loaded(self, index: int, view: int, *part: Any) -> np.ndarray:
        """What `Load` gives; what follows is augmentation."""
        image = self.load(index, view, *part)
        self._mark(stall.AUGMENT, index)
        return image
