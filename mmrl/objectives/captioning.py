"""Prediction of the next token of a report from the image (Yu et al. 2022, CoCa, equation 3)."""

import jax

from mmrl.objectives.tokens import token_losses, token_mean


def caption_loss(logits: jax.Array, labels: jax.Array, mask: jax.Array) -> jax.Array:
    """Cross-entropy of the next tokens: one mean over all valid tokens of the batch.

    CoCa gives it a weight of 2 beside the contrast, which is not part of it.

    Args:
      logits: f[B, L, V], those at place l predict `labels` at place l: the caller shifts.
      labels: i32[B, L]; those outside of the mask may hold anything.
      mask: bool[B, L], the valid tokens.

    Returns:
      f32[]; 0 if no token is valid.

    Raises:
      ValueError: shapes that do not fit.
    """
    return token_mean(token_losses(logits, labels, mask), mask)
