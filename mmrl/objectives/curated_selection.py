"""The choice of `mmrl.data.curation` within a compiled step, and its prototypes.

Wang et al. 2026 (CheXficient), and its released code. Shapes do not depend on what is chosen, so
samples are marked. On the same features, the choices are those of `mmrl.data.curation`.
"""

import jax
import jax.numpy as jnp
import numpy as np

from mmrl.objectives.base import check_present, require
from mmrl.objectives.prototypes import sinkhorn
from mmrl.vectors import l2_normalize


def select(
    features: jax.Array,
    prototypes: jax.Array,
    *,
    outlier: float = 0.95,
    support: float = 0.85,
    most: int = 10,
    key: jax.Array | None = None,
    present: jax.Array | None = None,
) -> jax.Array:
    """`mmrl.data.curation.select` of a batch.

    Args:
      features: f[N, D], rows of length 1. prototypes: f[K, D].
      outlier, support, most: as there.
      key: of the central sample of each cluster at which farthest-point sampling starts; None: the
        first one.
      present: bool[N], the samples that take part; None: all.

    Returns:
      bool[N], True: kept.

    Raises:
      ValueError: shapes that do not fit.
    """
    features = jnp.asarray(features)
    distance, mine = _nearest(features, prototypes, present)
    order = jnp.sort(jnp.where(mine, distance, jnp.inf), axis=1)  # K N
    sizes = mine.sum(axis=1)
    # No sample lies between a quantile and the one below it, so ranks stand for interpolation.
    lower, upper = (
        jnp.take_along_axis(order, _ranks(share, len(distance))[sizes][:, None], axis=1)
        for share in (support, outlier)
    )
    central = mine & (distance <= lower)
    outskirts = mine & (distance > lower) & (distance <= upper)
    counts = jnp.full(len(sizes), most, jnp.int32)
    return outskirts.any(axis=0) | _farthest(features, central, counts, key)


def select_by_deviation(
    features: jax.Array,
    prototypes: jax.Array,
    *,
    ratio: float = 0.2,
    key: jax.Array | None = None,
    present: jax.Array | None = None,
) -> jax.Array:
    """`mmrl.data.curation.select_by_deviation` of a batch; arguments as of `select`."""
    features = jnp.asarray(features)
    distance, mine = _nearest(features, prototypes, present)
    size = jnp.maximum(mine.sum(axis=1, keepdims=True, dtype=jnp.float32), 1.0)
    mean = jnp.sum(jnp.where(mine, distance, 0), axis=1, keepdims=True) / size
    square = jnp.sum(jnp.where(mine, (distance - mean) ** 2, 0), axis=1, keepdims=True) / size
    one, two, three = (mean + n * jnp.sqrt(square) for n in (1, 2, 3))
    tail = mine & (distance >= two) & (distance < three)
    inside, outside = mine & (distance <= one), mine & (distance > one) & (distance < two)
    inner, outer = inside.sum(axis=1), outside.sum(axis=1)
    totals = np.arange(len(distance) + 1)
    budgets = np.where(totals > 0, np.maximum(1, (totals * ratio).astype(np.int32)), 0)
    budget = jnp.asarray(budgets, jnp.int32)[inner + outer]
    roots = jnp.sqrt(inner.astype(jnp.float32)), jnp.sqrt(outer.astype(jnp.float32))
    share = roots[0] / jnp.maximum(roots[0] + roots[1], 1e-9)
    first = jnp.round(budget.astype(jnp.float32) * share).astype(jnp.int32)
    keys = (None, None) if key is None else jax.random.split(key)
    return (
        tail.any(axis=0)
        | _farthest(features, inside, jnp.minimum(first, inner), keys[0])
        | _farthest(features, outside, jnp.minimum(budget - first, outer), keys[1])
    )


def move_prototypes(
    features: jax.Array,
    prototypes: jax.Array,
    *,
    kept: jax.Array,
    momentum: float = 0.9,
    epsilon: float = 0.5,
    iterations: int = 3,
) -> jax.Array:
    """Moves each prototype towards the mean of the samples that `sinkhorn` assigns to it.

    A sample belongs to the prototype with its largest share. One without samples stays.

    Args:
      features: f[N, D]; prototypes: f[K, D]; both of length 1.
      kept: bool[N], the samples that count.
      momentum: share of the old prototype. epsilon, iterations: of `sinkhorn`.

    Returns:
      f32[K, D], of length 1.
    """
    scores = jnp.einsum("nd,kd->nk", features, prototypes)
    codes = sinkhorn(scores, epsilon=epsilon, iterations=iterations, present=kept)
    assigned = (jnp.argmax(codes, axis=1) == jnp.arange(len(prototypes))[:, None]) & kept
    means, some = _means(features, assigned)
    moved = l2_normalize(momentum * prototypes + (1 - momentum) * means)
    return jnp.where(some, moved, prototypes)


def k_means(
    features: jax.Array,
    count: int,
    key: jax.Array,
    *,
    iterations: int = 20,
    present: jax.Array | None = None,
) -> jax.Array:
    """Centres of `count` clusters by Lloyd's algorithm, from samples drawn at random.

    Args:
      features: f[N, D], N at least `count`. present: bool[N], the samples that count; None: all.

    Returns:
      f32[count, D], of length 1.
    """
    require(len(features) >= count, f"{len(features)} samples for {count} clusters")
    noise = jax.random.uniform(key, (len(features),))
    _, first = jax.lax.top_k(
        noise if present is None else noise + present.astype(jnp.float32), count
    )

    def step(_: int, centres: jax.Array) -> jax.Array:
        means, some = _means(features, _nearest(features, centres, present)[1])
        return jnp.where(some, means, centres)

    return l2_normalize(jax.lax.fori_loop(0, iterations, step, features[first]))


def _means(features: jax.Array, members: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean f32[K, D] of the members bool[K, N] of each cluster, and whether it has any [K, 1]."""
    count = members.sum(axis=1, dtype=jnp.float32)[:, None]
    total = jnp.einsum("kn,nd->kd", members.astype(jnp.float32), features)
    return total / jnp.maximum(count, 1.0), count > 0


def _nearest(
    features: jax.Array, prototypes: jax.Array, present: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """(distance to the nearest prototype f32[N], whether a sample belongs to each bool[K, N])."""
    require(
        features.ndim == prototypes.ndim == 2 and features.shape[1] == prototypes.shape[1],
        f"features {features.shape}, prototypes {prototypes.shape}; expected [N, D] and [K, D]",
    )
    present = check_present(present, len(features))
    distances = jax.lax.map(lambda one: jnp.linalg.norm(features - one, axis=1), prototypes)
    mine = jnp.argmin(distances, axis=0) == jnp.arange(len(prototypes))[:, None]
    return distances.min(axis=0), mine if present is None else mine & present


def _ranks(share: float, most: int) -> jax.Array:
    """For 0 to `most` samples in order, the place of the last one up to the quantile `share`."""
    # With the precision of NumPy, in which 0.85 * 20 is 17.
    return jnp.asarray(np.floor(share * np.maximum(np.arange(most + 1) - 1, 0)), jnp.int32)


def _farthest(
    features: jax.Array, members: jax.Array, most: jax.Array, key: jax.Array | None
) -> jax.Array:
    """bool[N]: of the members of each cluster, at most `most`, by farthest-point sampling.

    Args:
      features: f[N, D]. members: bool[K, N]; no sample is in two clusters. most: i32[K].
      key: of the samples to start with; None: the first ones.
    """
    clusters, size = members.shape
    count, cluster = members.sum(axis=1), jnp.argmax(members, axis=0)
    start = jnp.zeros(clusters, jnp.int32)
    if key is not None:
        start = jax.random.randint(key, (clusters,), 0, jnp.maximum(count, 1))
    latest = jnp.argmax(jnp.cumsum(members, axis=1) > start[:, None], axis=1)
    everything = members & (count <= most)[:, None]
    sampled = (count > most) & (most > 0)

    def step(number: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        chosen, latest, distance = carry
        chosen |= (jnp.arange(size) == latest[:, None]) & (sampled & (number < most))[:, None]
        gap = jnp.linalg.norm(features - features[latest][cluster], axis=1)
        distance = jnp.minimum(distance, gap)
        return chosen, jnp.argmax(jnp.where(members, distance, -1), axis=1), distance

    carry = (jnp.zeros_like(members), latest, jnp.full(size, jnp.inf, features.dtype))
    rounds = jnp.max(jnp.where(sampled, most, 0))
    return (everything | jax.lax.fori_loop(0, rounds, step, carry)[0]).any(axis=0)
