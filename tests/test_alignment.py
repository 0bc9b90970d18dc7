"""Alignment of words and regions, several candidates and triplets, against float64 references."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrl.objectives.mil_nce import mil_nce_loss
from mmrl.objectives.token_alignment import attention_weights, token_alignment_loss
from mmrl.objectives.triplets import triplet_loss
from tests import references
from tests.arrays import assert_close, on_mesh

B, L, P, K, D = 3, 5, 7, 2, 4


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def clipped(attention, mask=None, low=0.1, high=0.9):
    out = np.zeros(attention.shape)
    for b, row in enumerate(attention):
        used = (row != 0) & (True if mask is None else mask[b])
        if used.any():
            bounds = np.quantile(row[used].astype(np.float64), (low, high))
            out[b, used] = np.clip(row[used], *bounds)
            out[b] /= out[b].sum()
    return out


@pytest.mark.default_cases(2)
@pytest.mark.parametrize(
    ("length", "quantiles"), [(1, (0.1, 0.9)), (11, (0.1, 0.9)), (7, (0.0, 0.37))]
)
@pytest.mark.parametrize("masked", [False, True])
def test_attention_weights_equal_the_reference(length, quantiles, masked):
    rng = np.random.default_rng(0)
    attention = np.exp(3 * rng.normal(size=(6, length))).astype(np.float32)
    attention[rng.random(attention.shape) < 0.3] = 0.0
    attention[0] = 0.0
    mask = rng.random(attention.shape) < 0.7 if masked else None
    low, high = quantiles
    weigh = functools.partial(attention_weights, low=low, high=high)
    got = jax.jit(weigh)(attention, mask)
    assert got.dtype == jnp.float32
    assert_close(got, clipped(attention, mask, low, high), floor=1e-3)
    slope = jax.jit(jax.grad(lambda x: jnp.sum(weigh(x, mask) ** 2)))(attention)
    np.testing.assert_array_equal(slope, 0)


def both_ways(places, contexts, weights, among):
    """Rows and columns of each pair's own logits, one place at a time."""
    total = 0.0
    for one, two, weight, ok in zip(places, contexts, weights, among, strict=True):
        logits = one @ two.T / 0.1
        for i in np.flatnonzero(weight):
            row, column = logits[i, ok], logits[ok, i]
            loss = references.logsumexp(row) + references.logsumexp(column) - 2 * logits[i, i]
            total += weight[i] * loss / 2
    return total / len(places)


def alignment(words, regions, mask, weights, normalise=True, padding=True):
    words, regions = references.unit(words), references.unit(regions)
    word_weights, region_weights = weights
    found = []
    attended = [
        references.softmax(w @ r.T / 0.1, axis=1) @ r for w, r in zip(words, regions, strict=True)
    ]
    among = np.ones_like(mask) if padding else mask
    found.append(both_ways(words, references.unit(np.array(attended)), word_weights, among))
    attended = [
        references.softmax(r @ w[ok].T / 0.1, axis=1) @ w[ok]
        for w, r, ok in zip(words, regions, mask, strict=True)
    ]
    attended = np.array(attended)
    contexts = references.unit(attended) if normalise else attended
    every = np.ones(regions.shape[:2], bool)
    found.append(both_ways(regions, contexts, region_weights, every))
    return found


def word_mask():
    mask = np.arange(L) < np.array([[L], [1], [3]])
    return mask


@pytest.mark.default_cases(1)
@pytest.mark.parametrize(
    ("weighted", "normalise", "padding"), [(0, True, True), (1, False, True), (1, True, False)]
)
def test_token_alignment_equals_the_reference(weighted, normalise, padding):
    words, regions, mask = drawn(B, L, D), drawn(B, P, D, seed=1), word_mask()
    given = {"normalise_region_context": normalise, "padding": padding}
    if weighted:
        rng = np.random.default_rng(3)
        weights = (rng.random((B, L)) * mask, rng.random((B, P)))
        given |= {
            f"{name}_weights": x.astype(np.float32)
            for name, x in zip(("word", "region"), weights, strict=True)
        }
    else:
        weights = (mask / mask.sum(axis=1, keepdims=True), np.full((B, P), 1 / P))
    wide = words.astype(np.float64), regions.astype(np.float64)

    def total(words, regions):
        losses = token_alignment_loss(words, mask, regions, **given)
        return losses[0] + 2.0 * losses[1], losses

    def reference(words, regions):
        one, two = alignment(words, regions, mask, weights, normalise, padding)
        return one + 2 * two

    slopes, losses = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))(words, regions)
    assert all(x.dtype == jnp.float32 for x in losses)
    expected = alignment(*wide, mask, weights, normalise, padding)
    assert_close(losses, tuple(expected))
    assert_close(slopes[0], references.gradient(lambda x: reference(x, wide[1]), wide[0]))
    assert_close(slopes[1], references.gradient(lambda x: reference(wide[0], x), wide[1]))


def test_padding_counts_as_released_unless_it_is_left_out():
    words, regions, mask = drawn(B, L, D), drawn(B, P, D, seed=1), word_mask()
    longer = np.concatenate([words, np.full((B, 2, D), np.nan, np.float32)], axis=1)
    clean = np.where(np.isnan(longer), np.float32(1.0), longer)
    wide = np.concatenate([mask, np.zeros((B, 2), bool)], axis=1)
    loss = jax.jit(token_alignment_loss, static_argnames="padding")
    assert loss(clean, wide, regions)[0] > loss(words, mask, regions)[0]
    got = loss(longer, wide, regions, padding=False)
    assert_close(got, loss(words, mask, regions, padding=False), 1e-6)


def mil_nce(query, candidates, valid=None):
    valid = np.ones(candidates.shape[:2], bool) if valid is None else valid
    rows = [i for i in range(len(query)) if valid[i].any()]
    total = 0.0
    for i in rows:
        row = [query[i] @ candidates[j, k] for j, k in zip(*np.nonzero(valid), strict=True)]
        column = [query[j] @ candidates[i, k] for j in rows for k in np.flatnonzero(valid[i])]
        own = [query[i] @ candidates[i, k] for k in np.flatnonzero(valid[i])]
        top = references.logsumexp(np.array(row + column))
        total += top - references.logsumexp(np.array(own))
    return total / len(rows)


@pytest.mark.default_cases(1)
@pytest.mark.parametrize(("size", "count"), [(1, 1), (5, 1), (4, 3)])
def test_several_candidates_equal_the_reference(size, count):
    query, candidates = drawn(size, D), drawn(size, count, D, seed=1)
    wide = [x.astype(np.float64) for x in (query, candidates)]
    both = jax.jit(jax.value_and_grad(mil_nce_loss, argnums=(0, 1)))
    value, slopes = both(query, candidates)
    assert value.dtype == jnp.float32
    assert_close(value, mil_nce(*wide))
    expected = (
        references.gradient(lambda x: mil_nce(x, wide[1]), wide[0]),
        references.gradient(lambda x: mil_nce(wide[0], x), wide[1]),
    )
    assert_close(slopes, expected, floor=1e-3)
    if size == 1:
        assert value == pytest.approx(np.log(2), rel=1e-6)


def test_candidates_that_do_not_exist_change_nothing():
    query, candidates = drawn(5, D), drawn(5, 3, D, seed=1)
    valid = np.array([[1, 1, 1], [1, 0, 0], [0, 0, 0], [0, 1, 1], [1, 1, 0]], bool)
    wide = [x.astype(np.float64) for x in (query, candidates)]
    candidates[~valid] = np.nan
    query[2] = np.nan
    both = jax.jit(jax.value_and_grad(mil_nce_loss, argnums=(0, 1)))
    value, (of_query, of_candidates) = both(query, candidates, valid=valid)
    assert_close(value, mil_nce(*wide, valid))
    expected = references.gradient(lambda x: mil_nce(wide[0], x, valid), wide[1])
    assert_close(of_candidates, expected)
    np.testing.assert_array_equal(of_query[2], 0)
    np.testing.assert_array_equal(of_candidates[~valid], 0)


def triplets(image, text, positive, negative, margin=0.3):
    def far(one, two):
        return 1 - (references.unit(one) * references.unit(two)).sum(axis=1)

    return [
        np.mean(
            sum(
                np.maximum(0, far(anchor, near) - far(anchor, other) + margin)
                for near, other in zip(positive, negative, strict=True)
            )
            / 2
        )
        for anchor in (image, text)
    ]


@pytest.mark.default_cases(1)
@pytest.mark.parametrize(("size", "margin"), [(1, 0.3), (7, 0.3), (7, 2.5)])
def test_triplets_equal_the_reference(size, margin):
    arrays = drawn(6, size, D)
    wide = arrays.astype(np.float64)

    def total(x):
        losses = triplet_loss(x[0], x[1], (x[2], x[3]), (x[4], x[5]), margin=margin)
        return losses[0] + 2.0 * losses[1], losses

    def reference(x):
        return triplets(x[0], x[1], x[2:4], x[4:6], margin)

    slope, losses = jax.jit(jax.grad(total, has_aux=True))(arrays)
    assert all(x.dtype == jnp.float32 for x in losses)
    assert_close(losses, tuple(reference(wide)))
    expected = references.gradient(lambda x: reference(x)[0] + 2 * reference(x)[1], wide)
    assert_close(slope, expected)


def make(name):
    """name -> (loss of rows and present, rows of 24 pairs)."""
    if name == "tokens":
        mask = np.arange(L) < np.random.default_rng(0).integers(1, L + 1, (24, 1))

        def call(rows, present):
            words, regions = rows
            return sum(token_alignment_loss(words, mask[: len(words)], regions, present=present))

        return call, (drawn(24, L, D), drawn(24, P, D, seed=1))
    if name == "candidates":
        return (
            lambda rows, present: mil_nce_loss(*rows, present=present),
            (drawn(24, D), drawn(24, K, D, seed=1)),
        )
    return (
        lambda rows, present: triplet_loss(
            *rows[:2], tuple(rows[2:4]), tuple(rows[4:]), present=present
        )[0],
        tuple(drawn(24, D, seed=s) for s in range(6)),
    )


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("name", ["tokens", "candidates", "triplets"])
def test_absent_rows_might_as_well_be_deleted_on_any_number_of_devices(name):
    call, rows = make(name)
    present = np.arange(24) < 17
    both = jax.jit(jax.value_and_grad(call))
    value, slopes = jax.device_get(both(tuple(x[present] for x in rows), None))
    dirty = tuple(
        np.where(present.reshape(-1, *[1] * (x.ndim - 1)), x, np.float32(np.nan)) for x in rows
    )
    for given in ((dirty, present), on_mesh((8, 1, 1), dirty, present)):
        got, found = jax.device_get(both(*given))
        assert_close(got, value)
        assert_close(tuple(x[present] for x in found), slopes)
        for x in found:
            np.testing.assert_array_equal(x[~present], 0)
    for x in jax.tree.leaves(both(dirty, np.zeros(24, bool))):
        np.testing.assert_array_equal(x, 0)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: attention_weights(drawn(2, 3), np.ones((2, 4), bool)), "must be [B, L]"),
        (lambda: attention_weights(drawn(2, 3), low=0.9, high=0.1), "low <= high"),
        (
            lambda: token_alignment_loss(drawn(B, L, D), word_mask(), drawn(B, P, 3)),
            "must match regions",
        ),
        (
            lambda: token_alignment_loss(
                drawn(B, L, D), word_mask(), drawn(B, P, D), region_weights=drawn(B, L)
            ),
            "region_weights must be (3, 7), got (3, 5)",
        ),
        (lambda: mil_nce_loss(drawn(B, D), drawn(B, D)), "must match candidates"),
        (
            lambda: triplet_loss(*drawn(2, B, D), drawn(2, B, D), drawn(2, B, 2)),
            "must be [B, D] alike",
        ),
    ],
)
def test_wrong_shapes_are_refused_at_the_door(call, text):
    with pytest.raises(ValueError) as error:
        call()
    assert text in str(error.value)
