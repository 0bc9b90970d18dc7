"""Prediction of the masked tokens of a report (Devlin et al. 2019, BERT, section 3.1, task 1)."""

from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from mmrl.chunks import chunked_cross_entropy
from mmrl.objectives.base import Context, Objective
from mmrl.objectives.tokens import token_losses, token_mean
from mmrl.types import InputError, Loss, Metrics


def masked_text_loss(logits: jax.Array, targets: jax.Array, mask: jax.Array) -> jax.Array:
    """Cross-entropy of the masked tokens: one mean over all of them in the batch.

    Args:
      logits: f[B, L, V]. targets: i32[B, L], the tokens before masking; those outside of the mask
        may hold anything.
      mask: bool[B, L], the tokens to be predicted.

    Returns:
      f32[]; 0 if nothing is masked.

    Raises:
      ValueError: shapes that do not fit.
    """
    return token_mean(token_losses(logits, targets, mask), mask)


class MaskedText(Objective):
    """`masked_text_loss` of a linear layer from words to the vocabulary.

    The logits are made for some tokens at a time. Metrics: `accuracy`, the share of the masked
    tokens that have the largest logit. With `control`, in evaluation also `control_accuracy`, the
    same with what a fusion makes of another image: what the image adds is the difference.

    Args:
      control: whether `reads.control` names such words. Without them, redirect it to what `words`
        reads.
      chunk: most tokens whose logits exist at a time; 0: as many as take 64 MiB.
      vocab_size: number of tokens. widths: of what is read.

    Raises:
      InputError: no tower encodes the masked text, so the number of its tokens is not known.
    """

    reads: ClassVar[Mapping[str, str]] = {
        "words": "fused@masked.words",
        "control": "fused@masked.words",
    }
    batch: ClassVar[Mapping[str, str]] = {"targets": "masked.target"}

    def __init__(
        self,
        *,
        control: bool = False,
        chunk: int = 0,
        vocab_size: int | None,
        widths: Mapping[str, int],
        rngs: nnx.Rngs,
    ) -> None:
        if not vocab_size:
            raise InputError("MaskedText: no text tower encodes the masked text; expected one")
        self.control, self.chunk = control, chunk
        make = nnx.with_partitioning(nnx.initializers.normal(0.02), ("embed", "vocab"))
        self.kernel = nnx.Param(make(rngs.params(), (widths["words"], vocab_size), jnp.float32))
        zeros = nnx.with_partitioning(nnx.initializers.zeros_init(), ("vocab",))
        self.bias = nnx.Param(zeros(rngs.params(), (vocab_size,), jnp.float32))

    def __call__(
        self, *, context: Context, words: jax.Array, control: jax.Array, targets: jax.Array
    ) -> Loss:
        """Predicts the masked tokens of the global batch.

        Args:
          words, control: f[B, L, width]. targets: i32[B, L], the token at masked places, -1
            elsewhere.
        """
        if context.present is not None:
            targets = jnp.where(context.present[:, None], targets, -1)
        labels = targets.reshape(-1)
        kernel = self.kernel[...].astype(words.dtype)

        def judged(x: jax.Array) -> tuple[jax.Array, jax.Array]:
            """(sum of the losses, number of tokens that are right)."""
            found = chunked_cross_entropy(
                x.reshape(-1, x.shape[-1]), kernel, self.bias[...], labels, chunk=self.chunk
            )
            return found.value.sum(), found.right.sum(dtype=jnp.float32)

        count = (labels >= 0).sum(dtype=jnp.float32)
        total, right = judged(words)
        metrics: Metrics = {"loss": (total, count), "accuracy": (right, count)}
        if self.control and context.key is None:
            metrics["control_accuracy"] = (judged(control)[1], count)
        return Loss(total / jnp.maximum(count, 1.0), metrics)
