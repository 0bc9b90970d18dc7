"""Codes of prototypes and the losses that predict them, against float64 references."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrl.objectives.prototypes import (
    prototype_alignment_loss,
    sinkhorn,
    swapped_prediction_loss,
)
from tests import references
from tests.arrays import assert_close, on_mesh, unit

B, V, D, K, Q = 5, 4, 3, 7, 6


def drawn(*shape, seed=0, scale=1.0):
    return np.random.default_rng(seed).normal(scale=scale, size=shape).astype(np.float32)


def codes(scores, epsilon=0.05, iterations=3):
    """Sinkhorn's iterations as they are published, on the exponentials themselves."""
    mass = np.exp(scores / epsilon)
    samples, prototypes = mass.shape
    mass /= mass.sum()
    for _ in range(iterations):
        mass /= mass.sum(axis=0, keepdims=True) * prototypes
        mass /= mass.sum(axis=1, keepdims=True) * samples
    return mass * samples


def cross_entropy(code, scores, temperature):
    logs = np.log(references.softmax(scores / temperature, axis=1))
    return -(code * logs).sum(axis=1).mean()


def alignment(image, text, prototypes, fixed=None, temperature=0.2, **options):
    """MGCA; `prototypes` are unit rows already, codes are those of `fixed` (image, text)."""
    one, two = (references.unit(x) @ prototypes.T for x in (image, text))
    image_code, text_code = fixed or (codes(one, **options), codes(two, **options))
    first = cross_entropy(image_code, two, temperature)
    return 0.5 * (first + cross_entropy(text_code, one, temperature))


def swapped(views, prototypes, fixed=None, wide=2, temperature=0.1, queue=None, **options):
    scores = [references.unit(view) @ prototypes.T for view in views]
    total = []
    for i in range(wide):
        earlier = np.zeros((0, len(prototypes))) if queue is None else queue[i] @ prototypes.T
        both = np.concatenate([earlier, scores[i]])
        code = codes(both, **options)[-len(views[0]) :] if fixed is None else fixed[i]
        others = [v for v in range(len(views)) if v != i]
        total.append(np.mean([cross_entropy(code, scores[v], temperature) for v in others]))
    return np.mean(total)


@pytest.mark.default_cases(2)
@pytest.mark.parametrize(("samples", "prototypes"), [(1, 5), (7, 1), (13, 11)])
@pytest.mark.parametrize(("epsilon", "iterations"), [(0.05, 3), (0.5, 1)])
def test_codes_equal_the_reference(samples, prototypes, epsilon, iterations):
    scores = np.tanh(drawn(samples, prototypes))
    got = jax.jit(functools.partial(sinkhorn, epsilon=epsilon, iterations=iterations))(scores)
    assert got.dtype == jnp.float32
    assert_close(got, codes(scores.astype(np.float64), epsilon, iterations))
    np.testing.assert_allclose(got.sum(axis=1), 1.0, rtol=1e-6)


@pytest.mark.exhaustive
def test_codes_use_all_prototypes_alike():
    balance = jax.jit(functools.partial(sinkhorn, epsilon=0.2, iterations=50))
    got = balance(np.tanh(drawn(60, 12)))
    np.testing.assert_allclose(got.sum(axis=0), np.full(12, 5.0), rtol=1e-3)


def test_codes_of_logits_of_any_size_are_finite():
    scores = drawn(6, 5, scale=300.0)  # exp(scores / epsilon) overflows, and underflows
    got = np.asarray(jax.jit(sinkhorn)(scores))
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got.sum(axis=1), 1.0, rtol=1e-5)


def test_codes_have_no_gradient():
    scores = jnp.asarray(drawn(4, 3))
    slope = jax.jit(jax.grad(lambda x: jnp.sum(sinkhorn(x) ** 2)))(scores)
    np.testing.assert_array_equal(slope, 0)


@pytest.mark.parametrize("size", [1, B])
def test_alignment_equals_the_reference(size):
    image, text, prototypes = drawn(size, D), drawn(size, D, seed=1), unit(K, D, seed=2)
    wide = [x.astype(np.float64) for x in (image, text, prototypes)]
    fixed = tuple(codes(references.unit(x) @ wide[2].T) for x in wide[:2])
    got, slopes = jax.jit(jax.value_and_grad(prototype_alignment_loss, argnums=(0, 1, 2)))(
        image, text, prototypes
    )
    assert_close(got, alignment(*wide))
    for number, slope in enumerate(slopes):

        def of_one(x, number=number):
            return alignment(*wide[:number], x, *wide[number + 1 :], fixed=fixed)

        assert_close(slope, references.gradient(of_one, wide[number]))


@pytest.mark.default_cases(1)
@pytest.mark.parametrize(("count", "wide"), [(2, 1), (V, 3)])
@pytest.mark.parametrize("queued", [False, True])
def test_swapped_predictions_equal_the_reference(count, wide, queued):
    views, prototypes = drawn(count, B, D), unit(K, D, seed=2)
    queue = unit(wide, Q, D, seed=3) if queued else None
    options = {"wide": wide, "queue": queue}
    wide_views, wide_prototypes = views.astype(np.float64), prototypes.astype(np.float64)
    fixed = []
    for i in range(wide):
        rows = references.unit(wide_views[i])
        rows = rows if queue is None else np.concatenate([queue[i].astype(np.float64), rows])
        fixed.append(codes(rows @ wide_prototypes.T)[-B:])
    call = functools.partial(swapped_prediction_loss, **options)
    got, slopes = jax.jit(jax.value_and_grad(call, argnums=(0, 1)))(views, prototypes)
    assert_close(got, swapped(wide_views, wide_prototypes, **options))
    expected = (
        references.gradient(lambda x: swapped(x, wide_prototypes, fixed, wide), wide_views),
        references.gradient(lambda x: swapped(wide_views, x, fixed, wide), wide_prototypes),
    )
    assert_close(slopes, expected)


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("loss", [prototype_alignment_loss, swapped_prediction_loss])
def test_prototypes_are_normalised_as_if_in_place(loss):
    rows = (
        (drawn(B, D), drawn(B, D, seed=1)) if loss is prototype_alignment_loss else drawn(V, B, D)
    )
    rows = rows if isinstance(rows, tuple) else (rows,)
    prototypes = unit(K, D, seed=2)
    both = jax.jit(jax.value_and_grad(lambda p: loss(*rows, p)))
    assert_close(both(jnp.asarray(prototypes * 3)), both(jnp.asarray(prototypes)), 1e-6)


def with_marks(loss):
    """(features, how the loss takes them, axis of the rows)."""
    if loss is prototype_alignment_loss:
        both = drawn(2, B, D)
        return both, lambda x, p, **given: loss(x[0], x[1], p, **given)
    return drawn(V, B, D), functools.partial(loss, queue=unit(2, Q, D, seed=3))


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("loss", [prototype_alignment_loss, swapped_prediction_loss])
def test_absent_rows_might_as_well_be_deleted(loss):
    present = np.array([1, 0, 1, 1, 0], bool)
    features, call = with_marks(loss)
    prototypes = jnp.asarray(unit(K, D, seed=2))
    both = jax.jit(jax.value_and_grad(call, argnums=(0, 1)))
    expected = both(jnp.asarray(features[:, present]), prototypes)
    features[:, ~present] = np.nan
    value, (slope, of_prototypes) = both(jnp.asarray(features), prototypes, present=present)
    assert_close((value, (slope[:, present], of_prototypes)), expected)
    np.testing.assert_array_equal(slope[:, ~present], 0)
    nobody = both(jnp.asarray(features), prototypes, present=np.zeros(B, bool))
    for x in jax.tree.leaves(nobody):
        np.testing.assert_array_equal(x, 0)


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("loss", [prototype_alignment_loss, swapped_prediction_loss])
def test_devices_change_nothing(loss):
    features, prototypes = drawn(2, 24, D), jnp.asarray(unit(K, D, seed=2))
    present = np.arange(24) % 5 > 0

    @jax.jit
    def both(rows, present, prototypes):
        def value(rows, prototypes):
            x = jnp.swapaxes(rows, 0, 1)
            if loss is prototype_alignment_loss:
                return loss(x[0], x[1], prototypes, present=present)
            return loss(x, prototypes, present=present)

        return jax.value_and_grad(value, argnums=(0, 1))(rows, prototypes)

    rows = np.swapaxes(features, 0, 1)
    one = both(rows, present, prototypes)
    for axes in ((2, 2, 2), (8, 1, 1)):
        spread = on_mesh(axes, rows, present)
        assert_close(jax.device_get(both(*spread, prototypes)), jax.device_get(one))


def test_narrow_features_are_computed_in_float32():
    views, prototypes = (jnp.asarray(x, jnp.bfloat16) for x in (drawn(V, B, D), unit(K, D)))
    call = jax.jit(swapped_prediction_loss)
    got = call(views, prototypes)
    assert got.dtype == jnp.float32
    assert_close(got, call(*(x.astype(jnp.float32) for x in (views, prototypes))))
    codes_of = sinkhorn(jnp.asarray(drawn(4, 3), jnp.bfloat16))
    assert codes_of.dtype == jnp.float32


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: sinkhorn(drawn(3)), "scores must be [N, K], got (3,)"),
        (lambda: sinkhorn(drawn(3, 2), iterations=0), "iterations must be at least 1"),
        (
            lambda: prototype_alignment_loss(drawn(3, 2), drawn(3, 2), drawn(4, 5)),
            "prototypes [K, D]",
        ),
        (lambda: swapped_prediction_loss(drawn(1, 3, 2), drawn(4, 2), wide=1), "at least 2"),
        (
            lambda: swapped_prediction_loss(drawn(2, 3, 2), drawn(4, 2), queue=drawn(1, 3, 2)),
            "queue must be [2, Q, 2], got (1, 3, 2)",
        ),
    ],
)
def test_wrong_shapes_are_refused_at_the_door(call, text):
    with pytest.raises(ValueError, match="must") as error:
        call()
    assert text in str(error.value)
