"""Images and texts by which an export is compared with the encoders that it is from."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmrl import wiring
from mmrl.models.towers.sets import SET_FEATURES
from mmrl.training import run
from mmrl.types import InputError

TEXTS = (
    "Small left pleural effusion. No pneumothorax.",
    "No acute findings.",
    "The heart is enlarged; the lungs are clear, and there is no right basal consolidation.",
)
COUNT = len(TEXTS)
TOLERANCE = 1e-5


class Probes:
    """As many random images as texts, as `Predict` takes them."""

    def __init__(self, trained: run.Trained) -> None:
        self._trained = trained

    def __len__(self) -> int:
        return COUNT

    def arrays(
        self, names: Sequence[str], rows: Sequence[int], tower: str = ""
    ) -> dict[str, np.ndarray]:
        """Arrays of some rows under the names of the inputs that a tower reads."""
        found = self.of(tower)
        return {
            f"{name}.{array}": value[np.asarray(rows)]
            for name in names
            for array, value in found.items()
        }

    def of(self, tower: str) -> dict[str, np.ndarray]:
        """Pixels u8[N, S, S, C], grey, for an image tower; tokens i32[N, L] and mask bool[N, L]."""
        given: Any = self._trained.config.towers[tower]
        if tower in self._trained.tokenizers:
            tokenizer = self._trained.tokenizers[tower]
            tokens, mask, _ = tokenizer.encode_batch(TEXTS, int(given.length))
            return {"tokens": tokens, "mask": mask}
        size = int(given.size)
        drawn = np.random.default_rng(0).integers(0, 256, (COUNT, size, size, 1), np.uint8)
        return {"pixels": np.repeat(drawn, int(given.get("channels", 1)), axis=-1)}


def names(trained: run.Trained) -> tuple[str, ...]:
    """The encodings that are compared: of towers that read images or texts, alone.

    Masks, and what only a set of images has, are left out.
    """
    kinds = {name: wiring.kind_of(name, given) for name, given in trained.config.towers.items()}
    return tuple(
        name
        for name in trained.predict.provides
        if kinds.get(name.partition(".")[0]) in ("image", "text")
        and not name.endswith("_mask")
        and name.partition(".")[2] not in SET_FEATURES
    )


def encoded(trained: run.Trained) -> dict[str, np.ndarray]:
    """Name -> f32[N, ...] of the probes."""
    stream = trained.predict.stream(trained.state, Probes(trained), names(trained))
    parts = list(stream)
    return {
        name: np.concatenate([np.asarray(part[name], np.float32) for part in parts])
        for name in names(trained)
    }


def check(
    what: str,
    ours: Mapping[str, np.ndarray],
    theirs: Mapping[str, np.ndarray],
    tolerance: float = TOLERANCE,
) -> float:
    """The largest difference of encodings, relative to the largest number of each where above 1.

    Raises:
      InputError: it is above the tolerance, or an encoding is missing; names the first.
    """
    largest = 0.0
    for name, one in ours.items():
        other = theirs.get(name)
        if other is None or other.shape != one.shape:
            raise InputError(f"{what} gives no {name} of shape {list(one.shape)}; nothing is kept")
        scale = max(1.0, float(np.abs(one).max()))
        difference = float(np.abs(one - other).max()) / scale
        if not difference <= tolerance:
            raise InputError(
                f"{what} gives another {name}: it differs by {difference:.2g}; expected at most "
                f"{tolerance:g}; nothing is kept"
            )
        largest = max(largest, difference)
    return largest
