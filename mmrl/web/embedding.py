"""An encoder as a server uses it: bytes of images in, batches of few sizes through the device."""

import base64
from collections.abc import Sequence

import numpy as np

from mmrl.data.image import readers
from mmrl.encoder import Encoder
from mmrl.types import InputError
from mmrl.web.limits import Limits, Refusal

SIZES = (1, 4, 16, 64)


class Embedding:
    """Embeds batches, each padded to the smallest of a few sizes, so that nothing recompiles.

    Embeddings equal those of single calls of `mmrl.load` to 1e-6: a device may add in another order
    in a batch of another size.

    Args:
      sizes: of batches, in items; rising.

    Attributes:
      most: items of the largest batch.
      kinds: what can be embedded: "image", "text", or both.

    Raises:
      InputError: the encoder embeds neither images nor texts.
    """

    def __init__(self, encoder: Encoder, sizes: Sequence[int] = SIZES) -> None:
        self.encoder, self.sizes, self.most = encoder, tuple(sizes), sizes[-1]
        self.kinds = [k for k in ("image", "text") if f"{k}.embedding" in encoder.names]
        if not self.kinds:
            raise InputError(
                "expected an encoder of image.embedding or text.embedding; this one provides "
                f"{', '.join(encoder.names)}"
            )
        self._sized = {size: encoder.with_batch_size(size) for size in sizes}

    def images(self, prepared: Sequence[np.ndarray]) -> np.ndarray:
        """Embeds n images that `prepare` has made: f32[n, D]."""
        # Preprocessing changes no image that it has made.
        return self._for(len(prepared)).embed_images(list(prepared))

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """Embeds n texts: f32[n, D]."""
        return self._for(len(texts)).embed_texts(list(texts))

    def compile(self) -> int:
        """Runs a batch of each size; returns D."""
        width = 0
        for size in self._sized:
            if "image" in self.kinds:
                blank = self.encoder.preprocess([np.zeros((8, 8), np.uint8)])
                width = self.images([*blank] * size).shape[1]
            if "text" in self.kinds:
                width = self.texts(["a"] * size).shape[1]
        return width

    def _for(self, count: int) -> Encoder:
        return next(one for size, one in self._sized.items() if size >= count)


def prepare(encoder: Encoder, limits: Limits, image: bytes | str, number: int) -> np.ndarray:
    """Decodes an image and prepares it as the encoder reads it: u8[S, S, C].

    Args:
      image: the bytes of a file, or these in base64.
      number: of the image in its request, for messages.

    Raises:
      Refusal: 400 for text that is no base64, 413 for an image with too many pixels, 415 for what
        is no image that can be read.
    """
    if isinstance(image, str):
        try:
            image = base64.b64decode(image, validate=True)
        except ValueError:
            raise Refusal(400, f"image {number} is no base64") from None
    try:
        height, width = readers.size_of(image)
        if height * width > limits.pixels:
            size = f"{width} x {height} pixels"
            raise Refusal(413, f"image {number}: {size}; expected at most {limits.pixels}")
        return encoder.preprocess([image])[0]
    except InputError as error:
        raise Refusal(415, f"image {number}: {error}") from None
