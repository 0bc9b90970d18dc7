"""Contrast of groups of pairs that share a meaning (Zhou et al. 2024, KEEP, section 4.2)."""

import jax
import jax.numpy as jnp

from mmrl.build import unknown
from mmrl.objectives.base import require
from mmrl.types import InputError
from mmrl.vectors import l2_normalize

POSITIVES = ("lhp", "hp")
NEGATIVES = ("hn", "lhn")


def group_metric_loss(
    image: jax.Array,
    text: jax.Array,
    scale: jax.Array | float,
    *,
    groups: int,
    related: jax.Array | None = None,
    positive: str = "lhp",
    negative: str = "hn",
) -> jax.Array:
    """Cross-entropy of the similarity within a group against that with other groups.

    With z_ij = scale * cos(image_i, text_j), the mean over groups k of
    -log(P_k / (P_k + sum over l != k of N_kl)), and half of that plus the same for z transposed.

    | positive | P_k |
    |---|---|
    | lhp | sum over i in k of 1 / sum over j in k of exp(-z_ij) |
    | hp | 1 / sum over i, j in k of exp(-z_ij) |

    | negative | N_kl |
    |---|---|
    | hn | sum over i in k, j in l of exp(z_ij) |
    | lhn | 1 / sum over i in k of 1 / sum over j in l of exp(z_ij) |

    Args:
      image, text: f[B, D], rows in order of their groups. Neither has to be normalised.
      scale: f32[], the inverse temperature itself, not its logarithm.
      groups: number of groups, all of B / groups rows.
      related: bool[groups, groups], True in either direction: one disease is a kind of the other.
        Cosines between these groups are set to -1, so they have no gradient, but remain among the
        negatives. None: none are related.
      positive: lhp (least hard positive) or hp (hard positive).
      negative: hn (hard negative) or lhn (least hard negative).

    Returns:
      f32[]; 0 for a single group.

    Raises:
      InputError: unknown `positive` or `negative`.
      ValueError: shapes that do not fit.
    """
    for name, given, choices in (
        ("positive", positive, POSITIVES),
        ("negative", negative, NEGATIVES),
    ):
        if given not in choices:
            raise InputError(unknown(f"{name} of group_metric", given, choices))
    require(
        image.ndim == 2 and image.shape == text.shape and groups >= 1 and len(image) % groups == 0,
        f"image and text must be [B, D] with B a multiple of {groups} groups, got {image.shape}, "
        f"{text.shape}",
    )
    require(
        related is None or related.shape == (groups, groups),
        f"related must be bool[{groups}, {groups}], got {getattr(related, 'shape', None)}",
    )
    image, text = (l2_normalize(jnp.asarray(x)) for x in (image, text))
    members = len(image) // groups
    cosine = jnp.einsum("id,jd->ij", image, text)
    blocks = cosine.reshape(groups, members, groups, members).transpose(0, 2, 1, 3)  # G G q q
    own = jnp.eye(groups, dtype=bool)
    if related is not None:
        related = jnp.asarray(related).astype(bool)
        masked = (related | related.T) & ~own
        blocks = jnp.where(masked[..., None, None], -1.0, blocks)
    logits = jnp.float32(scale) * blocks

    def one_way(logits: jax.Array) -> jax.Array:
        inside = -jnp.diagonal(logits).transpose(2, 0, 1)  # G q q
        within = jax.nn.logsumexp(inside, axis=2)
        if positive == "lhp":
            numerator = jax.nn.logsumexp(-within, axis=1)
        else:
            numerator = -jax.nn.logsumexp(within, axis=1)
        lines = jax.nn.logsumexp(logits, axis=3)  # G G q
        if negative == "hn":
            others = jax.nn.logsumexp(lines, axis=2)
        else:
            others = -jax.nn.logsumexp(-lines, axis=2)
        every = jnp.where(own, numerator[:, None], others)
        return jnp.mean(jax.nn.logsumexp(every, axis=1) - numerator)

    return 0.5 * (one_way(logits) + one_way(logits.transpose(1, 0, 3, 2)))
