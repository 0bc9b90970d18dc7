"""The Python interface to trained encoders: `mmrl.load(workdir)`."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmrl.data.batches.pipeline import PipelineOptions
from mmrl.data.image import images
from mmrl.data.text import reports
from mmrl.training import run
from mmrl.types import InputError

Image = str | os.PathLike[str] | np.ndarray


class Encoder:
    """Embeds images and texts exactly as the run's own evaluation does.

    Example:
      encoder = mmrl.load("runs/pretrain")
      similarity = encoder.embed_images(["a.png"]) @ encoder.embed_texts(["No effusion."]).T

    Attributes:
      dim: D, width of the joint space.
      step: of the checkpoint in use.
    """

    def __init__(self, trained: run.Trained) -> None:
        self._trained = trained
        self._options = PipelineOptions.from_config(trained.config.data)
        self._preprocess = self._options.preprocess()
        self.dim = int(trained.config.model.embed_dim)
        self.step = trained.step

    @classmethod
    def load(cls, workdir: str | os.PathLike[str], *, step: int | None = None) -> "Encoder":
        """Loads a checkpoint of a run; the latest unless `step` names another.

        Raises:
          InputError: `workdir` holds no run, or the run has no such step.
        """
        return cls(run.restore(Path(workdir), step=step))

    def embed_images(self, items: Sequence[Image]) -> np.ndarray:
        """Embeds image files or arrays.

        Args:
          items: paths of JPEG or PNG files, or one-channel arrays u8 or u16 of shape [H, W] or
            [H, W, 1]; kinds and sizes may be mixed.

        Returns:
          f32[N, D], L2-normalised.

        Raises:
          InputError: a file is unreadable or an array has another shape; the message names it.
        """
        if not len(items):
            return np.zeros((0, self.dim), np.float32)
        predict = self._trained.predict
        encoded = predict.image_batches(self._trained.state, self._batches(items))
        return encoded["image.embedding"]

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Embeds reports, sentences or prompts: f32[N, D], L2-normalised.

        Texts longer than config.data.text_length tokens are cut, as in training.

        Raises:
          InputError: an item is not a string.
        """
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise InputError(f"text {index} is {type(text).__name__}; expected str")
        if not len(texts):
            return np.zeros((0, self.dim), np.float32)
        folded = [reports.normalise(text) for text in texts]
        tokens, mask, _ = self._trained.tokenizer.encode_batch(folded, self._options.text_length)
        return self._trained.predict.token_rows(self._trained.state, tokens, mask)["text.embedding"]

    def _batches(self, items: Sequence[Image]) -> Iterator[tuple[np.ndarray, int]]:
        size, side = self._trained.predict.batch_size, self._preprocess.size
        for start in range(0, len(items), size):
            part = items[start : start + size]
            batch = np.zeros((size, side, side, 1), np.uint8)
            for row, item in enumerate(part):
                batch[row, :, :, 0] = self._preprocess(_pixels(item, start + row))
            yield batch, len(part)


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
