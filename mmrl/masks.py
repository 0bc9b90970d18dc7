"""Losses of masks, which objectives and evaluators share."""

import jax
import jax.numpy as jnp


def dice_loss(
    logits: jax.Array, labels: jax.Array, *, smooth: float = 1e-5, background: bool = True
) -> jax.Array:
    """Soft Dice loss, 1 - (2 sum(p t) + smooth) / (sum(p) + sum(t) + smooth).

    Sums run over the pixels of each sample and channel, and the loss is the mean over samples and
    channels (Milletari et al. 2016, V-Net, section 3, without squares; smoothing as in MONAI, and
    as in DETR with smooth=1). An empty mask costs about 1 unless p is 0 everywhere.

    Args:
      logits: f[B, ..., C].
      labels: bool or f[B, ..., C]: every channel is a mask of its own, and p is the sigmoid. Or
        i[B, ...], the one channel of each pixel: p is the softmax.
      smooth: added to both sides of the fraction.
      background: False leaves channel 0 out.

    Returns:
      f32[].

    Raises:
      ValueError: shapes that do not fit, or no channel is left.
    """
    logits = logits.astype(jnp.float32)
    if labels.ndim == logits.ndim - 1 and labels.shape == logits.shape[:-1]:
        chosen = jax.nn.softmax(logits, axis=-1)
        truth = jax.nn.one_hot(labels, logits.shape[-1], dtype=jnp.float32)
    else:
        _require_alike(logits, labels)
        chosen, truth = jax.nn.sigmoid(logits), labels.astype(jnp.float32)
    if not background:
        chosen, truth = chosen[..., 1:], truth[..., 1:]
    if not chosen.shape[-1]:
        raise ValueError(f"logits {logits.shape} have no channel beside the background")
    pixels = tuple(range(1, chosen.ndim - 1))
    shared = (chosen * truth).sum(axis=pixels)
    total = chosen.sum(axis=pixels) + truth.sum(axis=pixels)
    return jnp.mean(1 - (2 * shared + smooth) / (total + smooth))


def focal_loss(
    logits: jax.Array, labels: jax.Array, *, alpha: float = 0.25, gamma: float = 2.0
) -> jax.Array:
    """Focal loss, the mean of -alpha_t (1 - p_t)^gamma log p_t (Lin et al. 2017, equation 5).

    p is the sigmoid; p_t is p where the label is 1 and 1 - p elsewhere, alpha_t likewise.

    Args:
      logits: f[B, ..., C]. labels: bool or f[B, ..., C].
      alpha: weight of positives; negatives have 1 - alpha. Below 0: both have 1.
      gamma: how much less well classified pixels count.

    Returns:
      f32[].

    Raises:
      ValueError: shapes that differ.
    """
    _require_alike(logits, labels)
    logits, truth = logits.astype(jnp.float32), labels.astype(jnp.float32)
    # log(1 + exp(x)) - x y, which is stable for large |x|.
    entropy = jax.nn.softplus(logits) - logits * truth
    chosen = jax.nn.sigmoid(logits)
    missed = chosen * (1 - truth) + (1 - chosen) * truth
    weight = alpha * truth + (1 - alpha) * (1 - truth) if alpha >= 0 else 1.0
    return jnp.mean(weight * missed**gamma * entropy)


def _require_alike(logits: jax.Array, labels: jax.Array) -> None:
    if logits.shape != labels.shape:
        raise ValueError(f"logits {logits.shape} and labels {labels.shape} must be alike")
