"""Distillation of similarities, and of groups of pairs, against float64 references."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrl.objectives.distillation import distillation_loss
from mmrl.objectives.group_metric import group_metric_loss
from mmrl.types import InputError
from tests import references
from tests.arrays import assert_close, on_mesh

B, D = 6, 5
SCALES = (np.float32(4.0), np.float32(7.0))


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def pairs(size=B):
    return [drawn(size, D, seed=s) for s in (0, 1)] + [drawn(size, 3, seed=s) for s in (2, 3)]


def call(image, text, teacher_image, teacher_text, scale=SCALES[0], present=None):
    return distillation_loss(
        image, text, scale, teacher_image, teacher_text, SCALES[1], present=present
    )


def reference(image, text, teacher_image, teacher_text, scale=SCALES[0]):
    student = scale * references.unit(image) @ references.unit(text).T
    teacher = SCALES[1] * references.unit(teacher_image) @ references.unit(teacher_text).T
    total = 0.0
    for one, two in ((student, teacher), (student.T, teacher.T)):
        logs = np.log(references.softmax(one, axis=1))
        total -= (references.softmax(two, axis=1) * logs).sum(axis=1).mean()
    return total / 2


@pytest.mark.parametrize("size", [1, B])
def test_distillation_equals_the_reference(size):
    arrays = pairs(size)
    wide = [x.astype(np.float64) for x in arrays]
    scale = np.array(SCALES[0])
    both = jax.jit(jax.value_and_grad(call, argnums=(0, 1, 2, 3, 4)))
    value, (of_image, of_text, *of_teacher, of_scale) = both(*arrays, scale)
    assert value.dtype == jnp.float32
    assert_close(value, reference(*wide))
    floor = {"floor": 1e-3}  # of one pair alone, every gradient is 0
    assert_close(of_image, references.gradient(lambda x: reference(x, *wide[1:]), wide[0]), **floor)
    expected = references.gradient(lambda x: reference(wide[0], x, *wide[2:]), wide[1])
    assert_close(of_text, expected, **floor)
    expected = references.gradient(lambda x: reference(*wide, x), scale)
    assert_close(of_scale, expected, **floor)
    for x in of_teacher:
        np.testing.assert_array_equal(x, 0)


def test_a_student_like_its_teacher_has_no_gradient():
    image, text = pairs()[:2]
    gradient = jax.jit(jax.grad(distillation_loss, argnums=(0, 1)))
    slopes = gradient(image, text, 5.0, image, text, 5.0)
    assert_close(slopes, tuple(np.zeros_like(x) for x in slopes), floor=1e-1)


def test_absent_rows_might_as_well_be_deleted_on_any_number_of_devices():
    size, present = 24, np.arange(24) % 3 > 0
    arrays = pairs(size)
    both = jax.jit(jax.value_and_grad(call, argnums=(0, 1)))
    value, slopes = jax.device_get(both(*(x[present] for x in arrays)))
    for x in arrays:
        x[~present] = np.nan
    given = (*arrays, present)
    for spread in (given, on_mesh((8, 1, 1), *given)):
        got, found = jax.device_get(both(*spread[:4], present=spread[4]))
        assert_close((got, tuple(x[present] for x in found)), (value, slopes))
        for x in found:
            np.testing.assert_array_equal(x[~present], 0)
    for x in jax.tree.leaves(both(*arrays, present=np.zeros(size, bool))):
        np.testing.assert_array_equal(x, 0)


G, Q = 4, 3


def one_way(z, groups, positive, negative):
    """KEEP, one group at a time, on the exponentials themselves."""
    size = len(z) // groups
    rows = [slice(k * size, (k + 1) * size) for k in range(groups)]
    total = 0.0
    for k in range(groups):
        own = np.exp(-z[rows[k], rows[k]])
        p = (1 / own.sum(axis=1)).sum() if positive == "lhp" else 1 / own.sum()
        n = 0.0
        for other in range(groups):
            if other != k:
                block = np.exp(z[rows[k], rows[other]])
                n += block.sum() if negative == "hn" else 1 / (1 / block.sum(axis=1)).sum()
        total -= np.log(p / (p + n))
    return total / groups


def metric(image, text, scale, groups, related, positive, negative):
    cosine = references.unit(image) @ references.unit(text).T
    size = len(image) // groups
    for k in range(groups):
        for other in range(groups):
            if k != other and (related[k, other] or related[other, k]):
                rows, columns = (slice(x * size, (x + 1) * size) for x in (k, other))
                cosine[rows, columns] = -1.0
    z = scale * cosine
    return (one_way(z, groups, positive, negative) + one_way(z.T, groups, positive, negative)) / 2


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("positive", ["lhp", "hp"])
@pytest.mark.parametrize("negative", ["hn", "lhn"])
def test_groups_equal_the_reference(positive, negative):
    image, text, scale = drawn(G * Q, D), drawn(G * Q, D, seed=1), np.array(np.float32(5.0))
    related = np.zeros((G, G), bool)
    related[0, 2] = related[3, 3] = True  # a group is never related to itself
    options = {"positive": positive, "negative": negative, "groups": G, "related": related}
    value, slopes = jax.jit(
        jax.value_and_grad(functools.partial(group_metric_loss, **options), argnums=(0, 1, 2))
    )(image, text, scale)
    wide = [x.astype(np.float64) for x in (image, text, scale)]
    assert value.dtype == jnp.float32
    assert_close(value, metric(*wide, **options))
    for number, slope in enumerate(slopes):

        def of_one(x, number=number):
            return metric(*wide[:number], x, *wide[number + 1 :], **options)

        assert_close(slope, references.gradient(of_one, wide[number]))


def test_related_groups_give_no_gradient_but_count():
    """Two related groups: nothing is learned of one from the other."""
    image, text = drawn(4, D), drawn(4, D, seed=1)
    related = np.array([[0, 1], [0, 0]], bool)
    loss = functools.partial(group_metric_loss, groups=2, related=related)
    both = jax.jit(jax.value_and_grad(loss))
    value, slope = both(image, text, 5.0)
    moved = text.copy()
    moved[2:] = drawn(2, D, seed=9)
    assert_close(both(image, moved, 5.0)[1][:2], slope[:2], 1e-6)
    plain = jax.jit(functools.partial(group_metric_loss, groups=2))(image, text, 5.0)
    assert value < plain  # a cosine of -1 is an easy negative
    assert jax.jit(functools.partial(group_metric_loss, groups=1))(image, text, 5.0) == 0


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: call(*pairs()[:3], drawn(5, 3)), ValueError, "teacher_image and teacher_text"),
        (
            lambda: group_metric_loss(drawn(6, D), drawn(6, D), 1.0, groups=4),
            ValueError,
            "a multiple of 4 groups",
        ),
        (
            lambda: group_metric_loss(drawn(6, D), drawn(6, D), 1.0, groups=2, positive="hn"),
            InputError,
            "positive of group_metric 'hn'",
        ),
    ],
)
def test_what_cannot_be_is_refused(make, error, text):
    with pytest.raises(error) as raised:
        make()
    assert text in str(raised.value)
