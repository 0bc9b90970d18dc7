"""Where words look: maps to draw over held-out studies, and how often they point right.

`grounding.select_examples`, then `attend`, then `figures.attention_grid` and `pointing`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mmrl.data.image.images import Geometry
from mmrl.data.text.grounding import Corners, Selected
from mmrl.evaluators import pointing as game
from mmrl.evaluators.base import HeldOut, Predict, Results


@dataclasses.dataclass(frozen=True)
class AttentionExample:
    """One study with its maps, ready to draw.

    Attributes:
      image: u8[H, W], preprocessed.
      id, patient, text: of the example.
      words: (word, attention f32[gh, gw] that sums to 1) pairs.
      boxes: (label, (x0, y0, x1, y1) in preprocessed pixels, clipped to the image) pairs.
    """

    image: np.ndarray
    id: str
    patient: str
    text: str
    words: list[tuple[str, np.ndarray]]
    boxes: list[tuple[str, Corners]]


def attend(
    predict: Predict,
    state: Any,
    data: HeldOut,
    examples: Sequence[Selected],
    *,
    attention: game.Attention,
    grid: tuple[int, int],
    geometry: Callable[[int, int], Geometry],
) -> list[AttentionExample]:
    """Attention maps of the selected words with what is needed to draw them.

    Args:
      predict, state: the encoders; they must offer local features.
      data: the held-out examples that `examples` index.
      examples: from `grounding.select_examples`.
      attention: (words f32[W, D], word_mask bool[W], regions f32[R, D]) -> f32[W, R], rows
        that sum to 1.
      grid: (rows, columns) of the regions, row by row.
      geometry: (height, width) of an original image -> its map to preprocessed pixels.

    Raises:
      ValueError: local features that do not fit the tokens or the grid.
    """
    maps = game.word_maps(predict, state, data, examples, attention=attention, grid=grid)
    attended = []
    for example, of_words in zip(examples, maps, strict=True):
        image = data.image(example.index)[..., 0]
        boxes = game.mapped_boxes(data, example, geometry, (image.shape[0], image.shape[1]))
        names = [word for word, _ in example.words]
        attended.append(
            AttentionExample(
                image=image,
                id=data.ids[example.index],
                patient=data.patients[example.index],
                text=data.texts[example.index],
                words=list(zip(names, of_words, strict=True)),
                boxes=[(example.label, box) for box in boxes],
            )
        )
    return attended


def pointing(
    examples: Sequence[AttentionExample],
    data: HeldOut,
    *,
    permutations: int = 5,
    bootstrap: int = 1000,
    seed: int = 0,
) -> Results:
    """How often a word's attention peaks inside the boxes of the finding it states.

    What counts as a hit, and chance, are those of `evaluators.pointing.Pointing`. Studies whose
    boxes are missing, or slip between the region centres, are excluded and counted; without any
    other study, there are no values.

    Args:
      examples: from `attend`.
      data: the held-out data, to name it in the results.
      permutations: of the boxes.
      bootstrap: draws for the intervals; 0 gives none.
      seed: of the permutations and the bootstrap.
    """
    studies = [
        game.Pointed(
            patient=example.patient,
            label=example.boxes[0][0] if example.boxes else "",
            maps=np.stack([weights for _, weights in example.words]),
            boxes=[box for _, box in example.boxes],
            size=(example.image.shape[0], example.image.shape[1]),
        )
        for example in examples
    ]
    return game.judge(studies, data, permutations=permutations, bootstrap=bootstrap, seed=seed)
