"""Prediction of the masked tokens of a report (Devlin et al. 2019, BERT, section 3.1, task 1)."""

from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from mmrl.chunks import chunked_cross_entropy
from mmrl.objectives.base import Context, Objective, judged_answers
from mmrl.objectives.tokens import token_losses, token_mean
from mmrl.types import InputError, Loss


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
    tokens that have the largest logit; in evaluation also `most_frequent_accuracy`, which no
    constant answer exceeds: the share that the most frequent masked token of each batch has. With
    `control`, in evaluation also `control_accuracy`, the same as `accuracy` with what a fusion
    makes of another image: what the image adds is the difference.

    Args:
      control: whether `reads.control` names such words. It follows `words` by default, as
        `reads.control_targets` follows `targets`: a fusion may as well get texts of other rows,
        with their targets.
      chunk: most tokens whose logits exist at a time; 0: as many as take 64 MiB.
      vocab_size: number of tokens. widths: of what is read.

    Raises:
      InputError: no tower encodes the masked text, so the number of its tokens is not known.
    """

    reads: ClassVar[Mapping[str, str]] = {
        "words": "fused@masked.words",
        "control": "words",
    }
    batch: ClassVar[Mapping[str, str]] = {"targets": "masked.target", "control_targets": "targets"}

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
        self,
        *,
        context: Context,
        words: jax.Array,
        control: jax.Array,
        targets: jax.Array,
        control_targets: jax.Array,
    ) -> Loss:
        """Predicts the masked tokens of the global batch.

        Args:
          words, control: f[B, L, width]. targets, control_targets: i32[B, L], the token at masked
            places, -1 elsewhere.
        """
        kernel, bias = self.kernel[...].astype(words.dtype), self.bias[...]

        def judge(x: jax.Array, tokens: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
            labels = _labels(tokens, context.present)
            flat = x.reshape(-1, x.shape[-1])
            found = chunked_cross_entropy(flat, kernel, bias, labels, chunk=self.chunk)
            count = (labels >= 0).sum(dtype=jnp.float32)
            return found.value.sum(), found.right.sum(dtype=jnp.float32), count

        other = (control, control_targets) if self.control else None
        loss = judged_answers(context, judge, (words, targets), other)
        if context.key is None:
            labels = _labels(targets, context.present)
            times = jnp.zeros(len(bias)).at[labels].add((labels >= 0).astype(jnp.float32))
            loss.metrics["most_frequent_accuracy"] = (times.max(), loss.metrics["accuracy"][1])
        return loss


def _labels(targets: jax.Array, present: jax.Array | None) -> jax.Array:
    """targets i32[B, L] -> i32[B L], -1 in rows that are not present."""
    kept = targets if present is None else jnp.where(present[:, None], targets, -1)
    return kept.reshape(-1)
