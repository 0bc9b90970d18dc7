"""Cross-entropy of tokens, which the objectives that predict tokens share."""

import jax
import jax.numpy as jnp

from mmrl.objectives.base import require


def token_losses(logits: jax.Array, tokens: jax.Array, mask: jax.Array) -> jax.Array:
    """-log softmax(logits) of each token, f32[..., L]; 0, and without a gradient, where not `mask`.

    Args:
      logits: f[..., L, V]. tokens: i[..., L]; those outside of the mask may hold anything.
      mask: bool[..., L].

    Raises:
      ValueError: shapes that do not fit.
    """
    require(
        logits.ndim >= 2 and logits.shape[:-1] == tokens.shape == mask.shape,
        f"logits must be [..., L, V], tokens and mask [..., L], got {logits.shape}, "
        f"{tokens.shape}, {mask.shape}",
    )
    mask, logits = jnp.asarray(mask).astype(bool), jnp.asarray(logits)
    logits = jnp.where(mask[..., None], logits, jnp.zeros((), logits.dtype)).astype(jnp.float32)
    place = jnp.where(mask, jnp.asarray(tokens), jnp.zeros((), tokens.dtype))
    chosen = jnp.take_along_axis(logits, place[..., None].astype(jnp.int32), axis=-1)[..., 0]
    return jnp.where(mask, jax.nn.logsumexp(logits, axis=-1) - chosen, 0.0)


def token_mean(losses: jax.Array, mask: jax.Array) -> jax.Array:
    """The mean of `token_losses` over all places of the mask, f32[]; 0 if there are none."""
    count = jnp.asarray(mask).astype(bool).sum(dtype=jnp.float32)
    return losses.sum() / jnp.maximum(count, 1.0)
