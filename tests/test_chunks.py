"""Work by chunks of rows equals that on all rows, in value and gradient, and on a mesh."""

import functools

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from mmrl import chunks
from mmrl.chunks import by_rows, chunked_cross_entropy
from tests.arrays import assert_close, on_mesh

N, D, C = 12, 5, 17


def inputs(size=N):
    rng = np.random.default_rng(0)
    features, kernel, bias = (
        rng.normal(size=shape).astype(np.float32) for shape in ((size, D), (D, C), (C,))
    )
    labels = rng.integers(-1, C, size).astype(np.int32)
    labels[0] = -1
    return features, kernel, bias, labels


def reference(features, kernel, bias, labels):
    """Cross-entropies, whether right, and gradients of the sum of weighted ones, in float64."""
    features, kernel, bias = (np.asarray(x, np.float64) for x in (features, kernel, bias))
    logits = features @ kernel + bias
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    known = labels >= 0
    one_hot = np.eye(C)[np.maximum(labels, 0)]
    value = np.where(known, -np.log((chances * one_hot).sum(axis=1)), 0)
    slope = (chances - one_hot) * (known * np.arange(len(labels)))[:, None]
    right = known & (logits.argmax(axis=1) == labels)
    return value, right, (slope @ kernel.T, features.T @ slope, slope.sum(axis=0))


@pytest.mark.default_cases(1)
@pytest.mark.parametrize(
    ("chunk", "mesh"), [(0, None), (1, None), (5, None), (4, (2, 2, 2)), (5, (2, 2, 2))]
)
def test_cross_entropies_by_chunks_are_those_of_all_rows(chunk, mesh):
    features, kernel, bias, labels = inputs()
    value, right, gradients = reference(features, kernel, bias, labels)
    if mesh:
        features, labels = on_mesh(mesh, features, labels)

    @jax.jit
    def both(features, kernel, bias, labels):
        def weighted(features, kernel, bias):
            found = chunked_cross_entropy(features, kernel, bias, labels, chunk=chunk)
            return (found.value * jnp.arange(N, dtype=jnp.float32)).sum(), found

        return jax.grad(weighted, argnums=(0, 1, 2), has_aux=True)(features, kernel, bias)

    got, found = jax.device_get(both(features, kernel, bias, labels))
    assert_close(found.value, value)
    np.testing.assert_array_equal(found.right, right)
    assert_close(got, gradients)


def test_rows_without_a_class_change_nothing():
    features, kernel, bias, labels = inputs()
    features[labels < 0] = np.nan

    def total(features):
        return chunked_cross_entropy(features, kernel, bias, labels, chunk=5).value.sum()

    value, slope = jax.value_and_grad(total)(features)
    assert np.isfinite(value)
    np.testing.assert_array_equal(slope[labels < 0], 0)
    assert np.isfinite(slope).all()


def test_logits_of_all_rows_never_exist():
    features, kernel, bias, labels = inputs(64)

    def total(features, kernel, chunk):
        return chunked_cross_entropy(features, kernel, bias, labels, chunk=chunk).value.sum()

    def largest(chunk):
        step = jax.grad(functools.partial(total, chunk=chunk), argnums=(0, 1))
        shapes = [v.aval.shape for e in equations(jax.make_jaxpr(step)(features, kernel).jaxpr)
                  for v in e.outvars]  # fmt: skip
        return max(int(np.prod(s)) for s in shapes if s[-1:] == (C,) and D not in s)

    assert largest(64) == 64 * C
    assert largest(8) == 8 * C


def equations(jaxpr):
    """All equations, those of nested jaxprs included."""
    for equation in jaxpr.eqns:
        yield equation
        for one in jax.extend.core.jaxprs_in_params(equation.params):
            yield from equations(one)


def test_without_a_chunk_size_logits_take_a_fixed_amount(monkeypatch):
    monkeypatch.setattr(chunks, "_LOGITS_AT_ONCE", 3 * C)
    asked = []
    monkeypatch.setattr(
        chunks, "by_rows", lambda f, *arrays, chunk: asked.append(chunk) or f(*arrays)
    )
    chunked_cross_entropy(*inputs())
    assert asked == [3]


def test_shapes_that_do_not_fit_are_refused():
    features, kernel, bias, labels = inputs()
    with pytest.raises(ValueError, match=r"features \[N, D\]"):
        chunked_cross_entropy(features, kernel[:-1], bias, labels)


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("chunk", [1, 5, 6])
def test_rows_keep_their_order_and_keys(chunk):
    rows = {"x": np.arange(N, dtype=np.float32), "none": None}
    keys = jax.random.split(jax.random.key(0), N)

    def function(rows, keys):
        return rows["x"] + jax.vmap(jax.random.uniform)(keys)

    np.testing.assert_array_equal(by_rows(function, rows, keys, chunk=chunk), function(rows, keys))
