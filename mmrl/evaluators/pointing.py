"""The pointing game with words: does a word's attention peak inside the box of its finding?"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from mmrl.data.text.grounding import Selected
from mmrl.evaluators import statistics
from mmrl.evaluators.base import HeldOut, Predict
from mmrl.evaluators.pointing_game import Game, softmax
from mmrl.types import InputError

READS = {"regions": "image.regions", "words": "text.words", "word_mask": "text.word_mask"}

# (words f32[W, D], word_mask bool[W], regions f32[R, D]) -> f32[W, R], rows that sum to 1.
Attention = Callable[[np.ndarray, np.ndarray, np.ndarray], Any]


def word_region_attention(
    words: np.ndarray, word_mask: np.ndarray, regions: np.ndarray, *, temperature: float = 4.0
) -> np.ndarray:
    """Attention of each word over the regions of one image, computed on the host.

    A softmax over the valid *words* of regions @ words.T, multiplied by `temperature`, then a
    softmax over *regions* (GLoRIA, Huang et al. 2021, equations 4-5), as in the local loss.

    Args:
      words: f[W, D]. word_mask: bool[W]. regions: f[R, D].

    Returns:
      f32[W, R]; rows sum to 1. Rows of invalid words are uniform and have no meaning.
    """
    scores = np.asarray(words, np.float32) @ np.asarray(regions, np.float32).T
    if word_mask.any():
        scores = np.where(word_mask[:, None], scores, -np.inf)
    return softmax(temperature * softmax(scores, axis=0), axis=1)


def word_maps(
    predict: Predict,
    state: Any,
    data: HeldOut,
    examples: Sequence[Selected],
    *,
    attention: Attention,
    grid: tuple[int, int],
    names: Mapping[str, str] = READS,
) -> list[np.ndarray]:
    """Attention maps f32[words, gh, gw] per example; a word has the mean map of its sub-words.

    Args:
      predict, state: the encoders, with local features.
      data: the held-out examples that `examples` index.
      grid: (rows, columns) of the regions, row by row.
      names: encodings of "regions", "words" and "word_mask".

    Raises:
      ValueError: the local features do not fit the tokens or the grid.
    """
    if not examples:
        return []
    subset = statistics.Subset(data, [example.index for example in examples])
    encoded = predict.encode(state, subset, list(names.values()))
    regions = statistics.require_present(encoded, names["regions"], subset)  # N R D
    words, word_mask = encoded[names["words"]], encoded[names["word_mask"]]
    length = subset.tokenize(subset.texts[:1])[0].shape[1]
    if words.shape[1] != length:
        raise ValueError(f"text.words has {words.shape[1]} places for {length} tokens")
    if regions.shape[1] != grid[0] * grid[1]:
        raise ValueError(f"image.regions has {regions.shape[1]} regions, the grid is {grid}")
    maps = []
    for row, example in enumerate(examples):
        weights = np.asarray(attention(words[row], word_mask[row], regions[row]), np.float32)
        of_words = by_word(weights, [positions for _, positions in example.words])
        maps.append(of_words.reshape(-1, *grid))
    return maps


def by_word(weights: np.ndarray, positions: Sequence[Sequence[int]]) -> np.ndarray:
    """The mean of the maps f[L, R] of the tokens of each word, by their positions: f[words, R]."""
    means = [weights[list(tokens)].mean(axis=0) for tokens in positions]
    return np.stack(means) if means else weights[:0]


class Pointing(Game):
    """How often a word's attention peaks inside the boxes of the finding it states.

    The items are words, up to two per study, of the sentence that states the finding; words for
    its name, side and zone come first. The rest is as in `Game`. Protocol "pointing@1".

    Args:
      others: as of Game.
      temperature: inverse temperature of the attention over regions; 4.0 is the default of the
        local loss.

    Raises:
      InputError: as of Game.
    """

    protocol: ClassVar[str] = "pointing@1"
    title: ClassVar[str] = "Attention of words over regions"
    reads: ClassVar[Mapping[str, str]] = READS
    headline: ClassVar[Mapping[str, str]] = {
        "accuracy": "attention of a word peaks inside the box of its finding",
        "grounded_gain": "accuracy minus accuracy with boxes of other patients",
    }

    def __init__(self, *args: Any, temperature: float = 4.0, **others: Any) -> None:
        if not temperature > 0:
            raise InputError(f"temperature is {temperature}, expected a number above 0")
        super().__init__(*args, **others)
        self.temperature = temperature

    def options(self) -> dict[str, Any]:
        """See Game."""
        return {"temperature": self.temperature}

    def labels(self, choice: Selected) -> list[str]:
        """See Game."""
        return [word for word, _ in choice.words]

    def maps(self, state: Any, chosen: Sequence[Selected]) -> list[np.ndarray]:
        """See Game."""
        attention = functools.partial(word_region_attention, temperature=self.temperature)
        return word_maps(
            self.predict,
            state,
            self.data,
            chosen,
            attention=attention,
            grid=self.grid,
            names=self.names,
        )
