"""Losses of DINO, iBOT and KoLeo against float64 references."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrl.objectives.prototypes import sinkhorn
from mmrl.objectives.self_distillation import (
    dino_loss,
    koleo_loss,
    masked_patch_loss,
    teacher_codes,
)
from mmrl.types import InputError
from tests import references
from tests.arrays import assert_close, on_mesh

V, B, K, P, D = 5, 3, 7, 4, 6


def drawn(*shape, seed=0, scale=1.0):
    return np.random.default_rng(seed).normal(scale=scale, size=shape).astype(np.float32)


def shares(*shape, seed=1):
    return references.softmax(drawn(*shape, seed=seed, scale=2.0), axis=-1).astype(np.float32)


def dino(student, teacher, wide=2, temperature=0.1):
    pairs = [(v, w) for v in range(len(student)) for w in range(wide) if v != w]
    losses = [
        -(teacher[w] * np.log(references.softmax(student[v] / temperature, axis=1))).sum(axis=1)
        for v, w in pairs
    ]
    return np.mean(losses)


def patches(student, teacher, mask, temperature=0.1):
    total = 0.0
    for n, p in zip(*np.nonzero(mask), strict=True):
        logs = np.log(references.softmax(student[n, p] / temperature, axis=0))
        total -= (teacher[n, p] * logs).sum() / mask[n].sum()
    return total / len(student)


def koleo(features):
    x = references.unit(features)
    cosine = x @ x.T
    np.fill_diagonal(cosine, -np.inf)
    nearest = cosine.argmax(axis=1)
    return -np.log(np.linalg.norm(x - x[nearest] + 1e-8, axis=1) + 1e-8).mean()


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("rows", [1, 13])
def test_codes_by_sinkhorn_are_those_of_the_prototypes(rows):
    scores = drawn(rows, K, scale=3.0)
    got = teacher_codes(scores, temperature=0.07, iterations=2)
    assert_close(got, sinkhorn(scores, epsilon=0.07, iterations=2), 0.0)


def test_codes_by_a_centre_equal_the_reference():
    scores, centre = drawn(11, K), drawn(K, seed=1)
    got = teacher_codes(scores, temperature=0.05, centre=centre, method="centre")
    wide = (scores.astype(np.float64) - centre) / 0.05
    assert got.dtype == jnp.float32
    assert_close(got, references.softmax(wide, axis=1))


@pytest.mark.parametrize("method", ["sinkhorn", "centre"])
def test_codes_have_no_gradient_and_ignore_absent_rows(method):
    scores, present = drawn(5, K), np.array([1, 0, 1, 1, 0], bool)
    options = {"temperature": 0.1, "method": method}
    options |= {"centre": drawn(K, seed=1)} if method == "centre" else {}
    make = jax.jit(functools.partial(teacher_codes, **options))
    slope = jax.jit(jax.grad(lambda x: jnp.sum(make(x) ** 2)))(scores)
    np.testing.assert_array_equal(slope, 0)
    expected = make(scores[present])
    scores[~present] = np.nan
    got = make(scores, present=present)
    assert_close(got[present], expected, 1e-6)
    np.testing.assert_array_equal(got[~present], 0)


@pytest.mark.default_cases(1)
@pytest.mark.parametrize(("views", "wide", "size"), [(V, 2, B), (2, 1, 1), (3, 3, B)])
def test_dino_equals_the_reference(views, wide, size):
    student, teacher = drawn(views, size, K, scale=0.3), shares(wide, size, K)
    call = functools.partial(dino_loss, wide=wide, temperature=0.2)
    got, slope = jax.jit(jax.value_and_grad(call))(student, teacher)
    fixed = teacher.astype(np.float64)

    def reference(x):
        return dino(x, fixed, wide, 0.2)

    assert_close(got, reference(student.astype(np.float64)))
    assert_close(slope, references.gradient(reference, student))
    of_teacher = jax.grad(call, argnums=1)(jnp.asarray(student), jnp.asarray(teacher))
    np.testing.assert_array_equal(of_teacher, 0)


def test_dino_counts_each_pair_of_different_views_alike():
    """Two wide and three local views: 2 + 2 * 3 pairs; a view is never its own target."""
    student = np.zeros((V, 1, 2), np.float32)
    student[:2] = [[[50.0, 0.0]], [[0.0, 50.0]]]  # each wide view agrees with itself alone
    teacher = np.array([[[1.0, 0.0]], [[0.0, 1.0]]], np.float32)
    expected = (2 * 50 / 0.1 + 2 * 3 * np.log(2)) / 8
    assert dino_loss(student, teacher) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("size", [1, 5])
def test_masked_patches_equal_the_reference(size):
    student, teacher = drawn(size, P, K, scale=0.3), shares(size, P, K)
    mask = np.random.default_rng(2).random((size, P)) < 0.5
    mask[0, 0] = True
    if size > 1:
        mask[1] = False  # without a masked patch, but counted
    fixed = teacher.astype(np.float64)

    def reference(x):
        return patches(x, fixed, mask)

    both = jax.jit(jax.value_and_grad(masked_patch_loss))
    got, slope = both(student, teacher, mask)
    assert_close(got, reference(student.astype(np.float64)))
    assert_close(slope, references.gradient(reference, student))
    dirty = [np.where(mask[..., None], x, np.float32(np.nan)) for x in (student, teacher)]
    assert_close(both(*dirty, mask), (got, slope), 1e-6)
    for x in both(*dirty, mask & False):
        np.testing.assert_array_equal(x, 0)


@pytest.mark.parametrize("size", [2, 11])
def test_koleo_equals_the_reference(size):
    features = drawn(size, D)
    got, slope = jax.jit(jax.value_and_grad(koleo_loss))(jnp.asarray(features))
    assert_close(got, koleo(features.astype(np.float64)))
    assert_close(slope, references.gradient(koleo, features))


def test_koleo_of_one_row_or_of_equal_rows_is_finite():
    one = jax.jit(jax.value_and_grad(koleo_loss))(jnp.asarray(drawn(1, D)))
    for x in one:
        np.testing.assert_array_equal(x, 0)
    value, slope = jax.jit(jax.value_and_grad(koleo_loss))(jnp.ones((3, D), jnp.float32))
    assert np.isfinite(value) and value > 10 and np.isfinite(slope).all()


def make(name):
    """name -> (function of (rows [B, ...], present), rows)."""
    if name == "dino":
        teacher = np.swapaxes(shares(2, 24, K), 0, 1)

        def call(rows, present):
            student, teacher = (jnp.swapaxes(x, 0, 1) for x in rows)
            return dino_loss(student, teacher, present=present)

        return call, (np.swapaxes(drawn(V, 24, K), 0, 1), teacher)
    if name == "patches":
        mask = np.random.default_rng(2).random((24, P)) < 0.5
        return (
            lambda rows, present: masked_patch_loss(*rows, mask[: len(rows[0])], present=present),
            (drawn(24, P, K), shares(24, P, K)),
        )
    return lambda rows, present: koleo_loss(*rows, present=present), (drawn(24, D),)


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("name", ["dino", "patches", "koleo"])
def test_absent_rows_might_as_well_be_deleted_on_any_number_of_devices(name):
    call, rows = make(name)
    present = np.arange(24) < 17  # not all rows of each device, and none of the last
    both = jax.jit(jax.value_and_grad(call))
    value, slopes = both(tuple(jnp.asarray(x[present]) for x in rows), None)
    dirty = tuple(
        np.where(present.reshape(-1, *[1] * (x.ndim - 1)), x, np.float32(np.nan)) for x in rows
    )
    for axes in (None, (8, 1, 1)):
        spread, marks = on_mesh(axes, dirty, present) if axes else (dirty, present)
        got, found = jax.device_get(both(spread, marks))
        assert_close(got, value)
        assert_close(tuple(x[present] for x in found), jax.device_get(slopes))
        for x in found:
            np.testing.assert_array_equal(x[~present], 0)
    for x in jax.tree.leaves(both(dirty, np.zeros(24, bool))):
        np.testing.assert_array_equal(x, 0)


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("name", ["dino", "patches", "koleo"])
def test_narrow_rows_are_computed_in_float32(name):
    call, rows = make(name)
    narrow = tuple(jnp.asarray(x, jnp.bfloat16) for x in rows)
    call = jax.jit(call)
    got = call(narrow, None)
    assert got.dtype == jnp.float32
    assert_close(got, call(tuple(x.astype(jnp.float32) for x in narrow), None), 1e-6)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (
            lambda: teacher_codes(drawn(2, K), temperature=0.1, method="mean"),
            InputError,
            "method of self_distillation 'mean'; choices: sinkhorn, centre",
        ),
        (
            lambda: teacher_codes(drawn(2, K), temperature=0.1, method="centre"),
            ValueError,
            "centre must be [7], got None",
        ),
        (
            lambda: teacher_codes(drawn(2, K), temperature=0.1, centre=drawn(K)),
            ValueError,
            "sinkhorn takes no centre",
        ),
        (lambda: dino_loss(drawn(V, B, K), drawn(1, B, K)), ValueError, "teacher [2, B, K]"),
        (
            lambda: masked_patch_loss(drawn(B, P, K), drawn(B, P, K), np.ones((B, 3), bool)),
            ValueError,
            "mask [N, P]",
        ),
        (lambda: koleo_loss(drawn(2, B, D)), ValueError, "features must be [B, D]"),
    ],
)
def test_what_cannot_be_is_refused(call, error, text):
    with pytest.raises(error) as raised:
        call()
    assert text in str(raised.value)
