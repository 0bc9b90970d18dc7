"""Contrast with several candidate texts, any of which may be right (Miech et al. 2020, MIL-NCE)."""

from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp

from mmrl.objectives.base import Context, Objective, check_present, require, row_count
from mmrl.types import InputError, Loss


def mil_nce_loss(
    query: jax.Array,
    candidates: jax.Array,
    *,
    valid: jax.Array | None = None,
    present: jax.Array | None = None,
) -> jax.Array:
    """The share that own candidates have among all of them, and own queries among all (eq. 1).

    With x_ijk = <query_i, candidate_jk>, the mean over i of
    log(sum_jk exp(x_ijk) + sum_jk exp(x_jik)) - log(sum_k exp(x_iik)). As in the released code, the
    own candidates occur twice in the denominator, so the least value is log 2.

    Args:
      query: f[B, D]. candidates: f[B, K, D]. Neither is normalised or scaled here.
      valid: bool[B, K], which candidates exist; None: all. A row without any is left out.
      present: bool[B], the rows that have all inputs; None: all.

    Returns:
      f32[]; 0 if no row is left.

    Raises:
      ValueError: shapes that do not fit.
    """
    require(
        query.ndim == 2 and candidates.ndim == 3 and query.shape == candidates.shape[::2],
        f"query [B, D] must match candidates [B, K, D], got {query.shape}, {candidates.shape}",
    )
    require(
        valid is None or valid.shape == candidates.shape[:2],
        f"valid must be {candidates.shape[:2]}, got {getattr(valid, 'shape', None)}",
    )
    size = len(query)
    present, query, candidates = (
        check_present(present, size),
        *map(jnp.asarray, (query, candidates)),
    )
    if valid is None and present is None:
        scores = _scores(query, candidates)
        return _mean(_losses(scores), None)
    valid = jnp.ones(candidates.shape[:2], bool) if valid is None else jnp.asarray(valid)
    if present is not None:
        valid &= present[:, None]
    rows = valid.any(axis=1)
    query = jnp.where(rows[:, None], query, jnp.zeros((), query.dtype))
    candidates = jnp.where(valid[..., None], candidates, jnp.zeros((), candidates.dtype))
    among = valid[None] & rows[:, None, None]
    # The diagonal of an absent row remains, so that its loss is finite; it is not counted.
    own = jnp.eye(size, dtype=bool)[..., None] & ~rows[:, None, None]
    scores = jnp.where(among | own, _scores(query, candidates), -jnp.inf)
    return _mean(_losses(scores), rows)


def _scores(query: jax.Array, candidates: jax.Array) -> jax.Array:
    wide = (x.astype(jnp.float32) for x in (query, candidates))
    return jnp.einsum("id,jkd->ijk", *wide)


def _losses(scores: jax.Array) -> jax.Array:
    """f32[B, B, K] -> f32[B]."""
    size = len(scores)
    both = jnp.concatenate([scores, scores.swapaxes(0, 1)], axis=1).reshape(size, -1)
    own = jnp.diagonal(scores).T  # B K
    return jax.nn.logsumexp(both, axis=1) - jax.nn.logsumexp(own, axis=1)


def _mean(losses: jax.Array, rows: jax.Array | None) -> jax.Array:
    if rows is None:
        return losses.mean()
    return jnp.sum(jnp.where(rows, losses, 0.0)) / row_count(len(losses), rows)


class MilNce(Objective):
    """`mil_nce_loss` of images and the sentences of their reports.

    Embeddings are L2-normalised, so they are divided by the square root of `temperature`; the
    published loss takes encodings as they are.

    Args:
      temperature: that divides the products, not learned.

    Raises:
      InputError: a temperature that is not above 0.
    """

    reads: ClassVar[Mapping[str, str]] = {
        "query": "image.embedding",
        "candidates": "text@sentences.embedding",
    }
    batch: ClassVar[Mapping[str, str]] = {"valid": "sentences.valid"}

    def __init__(self, *, temperature: float = 0.07) -> None:
        if not temperature > 0:
            raise InputError(f"MilNce: temperature {temperature}; expected a number above 0")
        self.scale = temperature**-0.5

    def __call__(
        self, *, context: Context, query: jax.Array, candidates: jax.Array, valid: jax.Array
    ) -> Loss:
        """Contrasts the images of the global batch with all sentences."""
        present = context.present
        query, candidates = (x.astype(jnp.float32) * self.scale for x in (query, candidates))
        value = mil_nce_loss(query, candidates, valid=valid, present=present)
        rows = valid.any(axis=1) if present is None else valid.any(axis=1) & present
        count = rows.sum(dtype=jnp.float32)
        return Loss(value, {"loss": (value * count, count)})
