"""The pointing game with sentences: does a sentence find the box of the finding it states?"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from mmrl.data.text.grounding import Selected
from mmrl.evaluators import statistics
from mmrl.evaluators.pointing_game import Game, softmax
from mmrl.types import InputError
from mmrl.wiring import parse


def sentence_maps(sentences: np.ndarray, regions: np.ndarray, sharpness: float) -> np.ndarray:
    """softmax over regions of sharpness * cosine, computed on the host.

    Args:
      sentences: f[N, D]. regions: f[N, R, D]; sentence n belongs to image n.

    Returns:
      f32[N, R]; rows sum to 1.
    """
    sentences, regions = sentences.astype(np.float32), regions.astype(np.float32)
    norms = np.linalg.norm(sentences, axis=1)[:, None] * np.linalg.norm(regions, axis=2)
    scores = np.einsum("nd,nrd->nr", sentences, regions) / np.maximum(norms, 1e-12)
    return softmax(sharpness * scores, axis=1)


class SentencePointing(Game):
    """How often the map of a sentence peaks inside the boxes of the finding it states.

    The sentence that states a finding is encoded alone, and its map is the attention of
    `sentence_contrastive`. For a box without such a sentence it is the name of the finding. With
    `reads` set to sentences=text.words the map is the mean over those of the sentence's words. The
    studies are those of `pointing`, and the rest is as in `Game`. Protocol "sentence_pointing@1".

    Args:
      others: as of Game.
      sharpness: inverse temperature of the attention over regions, as in the loss; it does not
        change where a map peaks.

    Raises:
      InputError: as of Game.
    """

    protocol: ClassVar[str] = "sentence_pointing@1"
    title: ClassVar[str] = "Attention of sentences over regions"
    reads: ClassVar[Mapping[str, str]] = {"regions": "image.regions", "sentences": "text.sentence"}
    prompted: ClassVar[tuple[str, ...]] = ("sentences",)
    headline: ClassVar[Mapping[str, str]] = {
        "accuracy": "a sentence finds the box of the finding it states",
        "grounded_gain": "accuracy minus accuracy with boxes of other patients",
    }

    def __init__(self, *args: Any, sharpness: float = 20.0, **others: Any) -> None:
        if not sharpness > 0:
            raise InputError(f"sharpness is {sharpness}, expected a number above 0")
        super().__init__(*args, **others)
        self.sharpness = sharpness

    def options(self) -> dict[str, Any]:
        """See Game."""
        return {"sharpness": self.sharpness}

    def labels(self, choice: Selected) -> list[str]:
        """See Game."""
        return [choice.sentence]

    def maps(self, state: Any, chosen: Sequence[Selected]) -> list[np.ndarray]:
        """See Game."""
        subset = statistics.Subset(self.data, [choice.index for choice in chosen])
        of_image, of_text = self.names["regions"], self.names["sentences"]
        encoded = self.predict.encode(state, subset, [of_image])
        regions = statistics.require_present(encoded, of_image, subset)  # N R D
        texts = list(dict.fromkeys(choice.sentence for choice in chosen))
        asked = [of_text, *([of_mask] if (of_mask := _mask_of(of_text)) else [])]
        rows = self.predict.encode(state, self.data.with_texts(texts), asked)
        place = {text: row for row, text in enumerate(texts)}
        chosen_rows = [place[choice.sentence] for choice in chosen]
        sentences = rows[of_text][chosen_rows]
        if of_mask:
            mask = rows[of_mask][chosen_rows]
            maps = np.stack(list(map(self._map_of_words, sentences, mask, regions)))
        else:
            maps = sentence_maps(sentences, regions, self.sharpness)
        return list(maps.reshape(len(chosen), 1, *self.grid))

    def _map_of_words(self, words: np.ndarray, mask: np.ndarray, regions: np.ndarray) -> np.ndarray:
        """f32[R]: the mean of the maps of the valid words f[W, D] of one sentence."""
        kept = words[mask]
        return sentence_maps(
            kept, np.broadcast_to(regions, (len(kept), *regions.shape)), self.sharpness
        ).mean(axis=0)


def _mask_of(encoding: str) -> str:
    """The name of the mask of word features; "" for features of whole sentences."""
    parsed = parse(encoding)
    return str(parsed._replace(feature="word_mask")) if parsed.feature == "words" else ""
