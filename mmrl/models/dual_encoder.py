"""A dual encoder: an image and a text encoder with heads into a joint space."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from mmrl.models.heads import Projection, l2_normalize
from mmrl.models.layers import ImageEncoder
from mmrl.models.text.transformer import Transformer, word_mask
from mmrl.types import Batch, InputError

GLOBAL = ("image.embedding", "text.embedding", "perturbed.embedding", "text.word_mask")
LOCAL = ("image.regions", "text.words")


class DualEncoder(nnx.Module):
    """Encodes images and texts into a joint space, each distinct input once.

    Args:
      image: the image encoder.
      text: the text encoder.
      embed_dim: D, features of the global embeddings.
      local_dim: D', features of regions and words; 0 for a model without local features.
      head: kind of all heads, "linear" or "mlp".
      pixel_mean, pixel_std: the image encoder receives pixels as (value / 255 - mean) / std.

    Attributes:
      provides: the names that `needs` may contain.

    Raises:
      InputError: a dimension or the standard deviation is out of range, or the head is unknown.
    """

    def __init__(
        self,
        *,
        image: ImageEncoder,
        text: Transformer,
        embed_dim: int,
        local_dim: int = 0,
        head: str = "linear",
        pixel_mean: float = 0.5,
        pixel_std: float = 0.25,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        if embed_dim < 1 or local_dim < 0 or pixel_std <= 0:
            raise InputError(
                f"DualEncoder: embed_dim {embed_dim}, local_dim {local_dim}, pixel_std {pixel_std};"
                " expected embed_dim >= 1, local_dim >= 0, pixel_std > 0"
            )
        self.image, self.text = image, text
        self.local_dim = local_dim
        self.pixel_mean, self.pixel_std = pixel_mean, pixel_std
        self.provides: tuple[str, ...] = GLOBAL + (LOCAL if local_dim else ())

        def make(width: int, out: int) -> Projection:
            return Projection(
                width, out, kind=head, dtype=dtype, param_dtype=param_dtype, rngs=rngs
            )

        self.image_head = make(image.width, embed_dim)
        self.text_head = make(text.width, embed_dim)
        if local_dim:
            self.region_head = make(image.region_width, local_dim)
            self.word_head = make(text.width, local_dim)

    def encode_image(
        self,
        image: jax.Array,
        *,
        local: bool = True,
        train: bool = False,
        rngs: nnx.Rngs | None = None,
    ) -> dict[str, jax.Array]:
        """image u8[B, H, W, 1] -> image.embedding f32[B, D], L2-normalised.

        With `local`, if the model has local heads, the same pass also gives image.regions
        [B, R, D'], in the compute dtype and not normalised.
        """
        pixels = (image.astype(jnp.float32) / 255.0 - self.pixel_mean) / self.pixel_std
        features = self.image(pixels, train=train, rngs=rngs)
        encoded = {"image.embedding": l2_normalize(self.image_head(features.pooled))}
        if local and self.local_dim:
            encoded["image.regions"] = self.region_head(features.local)
        return encoded

    def encode_text(
        self,
        tokens: jax.Array,
        mask: jax.Array,
        *,
        local: bool = True,
        train: bool = False,
        rngs: nnx.Rngs | None = None,
    ) -> dict[str, jax.Array]:
        """tokens i32[N, L], mask bool[N, L] -> text.embedding f32[N, D], L2-normalised.

        Also gives text.word_mask bool[N, L], the mask without bos and eos. With `local`, if the
        model has local heads, it also gives text.words [N, L, D'], in the compute dtype and not
        normalised.
        """
        features = self.text(tokens, mask, train=train, rngs=rngs)
        encoded = {
            "text.embedding": l2_normalize(self.text_head(features.pooled)),
            "text.word_mask": word_mask(mask),
        }
        if local and self.local_dim:
            encoded["text.words"] = self.word_head(features.local)
        return encoded

    def __call__(
        self,
        batch: Batch,
        *,
        needs: frozenset[str],
        train: bool = False,
        rngs: nnx.Rngs | None = None,
    ) -> dict[str, jax.Array]:
        """batch -> the encodings named in `needs`, see mmrl.types.Encoded.

        If both reports and perturbed copies are needed, the text encoder runs once over all
        B * (1 + K) texts. In training they are packed if so configured. Raises InputError for a
        name that is not in `provides`.
        """
        unknown = sorted(needs - set(self.provides))
        if unknown:
            raise InputError(
                f"model cannot provide {', '.join(unknown)}; it provides {', '.join(self.provides)}"
            )
        encoded: dict[str, jax.Array] = {}
        if needs & {"image.embedding", "image.regions"}:
            local = "image.regions" in needs
            encoded |= self.encode_image(batch["image"], local=local, train=train, rngs=rngs)
        if needs & {"perturbed.embedding", "text.embedding", "text.words"}:
            encoded |= self._encode_candidates(batch, needs, train=train, rngs=rngs)
        if "text.word_mask" in needs:
            encoded["text.word_mask"] = word_mask(batch["token_mask"])
        return {name: encoded[name] for name in sorted(needs)}

    def _encode_candidates(
        self, batch: Batch, needs: frozenset[str], **kwargs: Any
    ) -> dict[str, jax.Array]:
        """Encodes [B, C, L] in one pass: of each report the original and K copies, where needed."""
        with_original = bool(needs & {"text.embedding", "text.words"})
        inputs = []
        if with_original:
            inputs.append((batch["tokens"][:, None], batch["token_mask"][:, None]))
        if "perturbed.embedding" in needs:
            inputs.append((batch["perturbed_tokens"], batch["perturbed_mask"]))
        # The candidates of a report are kept together, so that the first axis stays the batch
        # axis, which is sharded.
        tokens, mask = (jnp.concatenate(parts, axis=1) for parts in zip(*inputs, strict=True))
        pooled, words = self.text.candidates(tokens, mask, words="text.words" in needs, **kwargs)
        embedding = l2_normalize(self.text_head(pooled))  # B C D
        encoded = {"perturbed.embedding": embedding[:, int(with_original) :]}
        if with_original:
            encoded["text.embedding"] = embedding[:, 0]
        if words is not None:
            encoded["text.words"] = self.word_head(words)
        return encoded
