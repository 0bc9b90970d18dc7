"""The Python interface to trained encoders: `mmrl.load(folder)`."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mmrl import encoder_folder
from mmrl.data.image import images
from mmrl.data.inputs import base as inputs
from mmrl.data.text import reports
from mmrl.training import run
from mmrl.types import InputError

Image = str | os.PathLike[str] | np.ndarray


class Encoder:
    """Embeds images and texts exactly as evaluation does.

    Example:
      encoder = mmrl.load("runs/pretrain")
      similarity = encoder.embed_images(["a.png"]) @ encoder.embed_texts(["No effusion."]).T

    Attributes:
      dim: D, width of the joint space; 0 without one.
      step: of the checkpoint in use; None for encoders that were not trained here.
      names: of all encodings, such as image.embedding and text.pooled.
    """

    def __init__(self, trained: run.Trained) -> None:
        self._trained = trained
        self.names = trained.predict.provides
        heads = [dict(tower.heads) for tower in trained.config.towers.values()]
        given: Any = next((head["embedding"] for head in heads if "embedding" in head), 0)
        self.dim = int(given["width"] if hasattr(given, "items") else given)
        self.step = trained.step

    @classmethod
    def load(
        cls, folder: str | os.PathLike[str], *, step: int | Literal["best"] | None = None
    ) -> "Encoder":
        """Loads a run, or a folder of `python -m mmrl.convert` or `mmrl.export --weights`.

        Args:
          step: of the checkpoint of a run; by default the latest; "best": the one that it chose.

        Raises:
          InputError: `folder` holds neither, or the run has no such step, or chose no best one.
        """
        path = Path(folder)
        if not encoder_folder.is_encoder(path):
            return cls(run.restore(path, step=step))
        if step is not None:
            raise InputError(f"{path} holds one encoder without steps; given: step={step}")
        return cls(run.read_encoder(path))

    def embed_images(self, items: Sequence[Image], *, name: str = "image.embedding") -> np.ndarray:
        """Embeds image files or arrays.

        Args:
          items: paths of JPEG or PNG files, or one-channel arrays u8 or u16 of shape [H, W] or
            [H, W, 1]; kinds and sizes may be mixed.
          name: the encoding, "<image tower>.<feature>".

        Returns:
          f32[N, D], L2-normalised.

        Raises:
          InputError: a file is unreadable or an array has another shape; the message names it.
        """
        return self._encode(_Images(self._trained, items), name, len(items))

    def embed_texts(self, texts: Sequence[str], *, name: str = "text.embedding") -> np.ndarray:
        """Embeds reports, sentences or prompts: f32[N, D], L2-normalised.

        Texts longer than the length of the tower are cut, as in training.

        Args:
          name: the encoding, "<text tower>.<feature>".

        Raises:
          InputError: an item is not a string.
        """
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise InputError(f"text {index} is {type(text).__name__}; expected str")
        return self._encode(_Texts(self._trained, texts), name, len(texts))

    def _encode(self, items: Any, name: str, count: int) -> np.ndarray:
        if not count:
            return np.zeros((0, self.dim), np.float32)
        parts = self._trained.predict.stream(self._trained.state, items, [name])
        return np.concatenate([part[name] for part in parts])


class _Images:
    """Images from outside a corpus, as `Predict` takes them."""

    def __init__(self, trained: run.Trained, items: Sequence[Image]) -> None:
        self._config, self._items = trained.config, items

    def __len__(self) -> int:
        return len(self._items)

    def arrays(
        self, names: Sequence[str], rows: Sequence[int], tower: str = ""
    ) -> dict[str, np.ndarray]:
        """Pixels of some images, under the name of the input that the tower reads."""
        made = {}
        for name in names:
            own: Any = inputs.make_one(self._config, name, tower)
            pixels = [own.preprocess(_pixels(self._items[row], row)) for row in rows]
            made[f"{name}.pixels"] = np.stack(pixels)[..., None]
        return made


class _Texts:
    """Texts from outside a corpus, as `Predict` takes them."""

    def __init__(self, trained: run.Trained, texts: Sequence[str]) -> None:
        self._trained, self._texts = trained, [reports.normalise(text) for text in texts]

    def __len__(self) -> int:
        return len(self._texts)

    def arrays(
        self, names: Sequence[str], rows: Sequence[int], tower: str = ""
    ) -> dict[str, np.ndarray]:
        """Tokens of some texts, under the name of the input that the tower reads."""
        length = int(self._trained.config.towers[tower].length)
        texts = [self._texts[row] for row in rows]
        tokens, mask, _ = self._trained.tokenizers[tower].encode_batch(texts, length)
        return {
            f"{name}.{array}": value
            for name in names
            for array, value in {"tokens": tokens, "mask": mask}.items()
        }


def _pixels(item: Any, index: int) -> np.ndarray:
    """One item of embed_images -> u8 or u16 [H, W]."""
    if isinstance(item, str | os.PathLike):
        return images.read(item)
    array = np.asarray(item)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim != 2 or array.dtype not in (np.uint8, np.uint16):
        raise InputError(
            f"image {index} is {array.dtype}{list(array.shape)}; expected a path, or uint8 or "
            "uint16 of shape [H, W] or [H, W, 1]"
        )
    return array
