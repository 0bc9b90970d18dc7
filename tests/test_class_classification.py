"""Mutually exclusive classes: the loss against scikit-learn, and rows whose class is unknown."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import accuracy_score, log_loss

from mmrl.objectives.base import Context
from mmrl.objectives.class_classification import ClassClassification, class_loss
from mmrl.types import InputError

ROWS, CLASSES = 12, 4


@pytest.fixture
def rows():
    """Logits, one-hot values, a mask, and the classes; the others are partly unknown."""
    rng = np.random.default_rng(0)
    classes = rng.integers(0, CLASSES, ROWS)
    values = np.eye(CLASSES, dtype=np.float32)[classes]
    mask = (values == 1) | (rng.random((ROWS, CLASSES)) < 0.5)
    return rng.normal(size=(ROWS, CLASSES)).astype(np.float32), values, mask, classes


def softmax(logits):
    exponents = np.exp(logits.astype(np.float64))
    return exponents / exponents.sum(axis=1, keepdims=True)


def loss(objective, *arrays, present=None):
    context = Context(step=jnp.int32(0), key=None, present=present)
    names = ("logits", "values", "mask")
    return objective(context=context, **dict(zip(names, map(jnp.asarray, arrays), strict=True)))


def test_it_is_the_cross_entropy_of_scikit_learn(rows):
    logits, values, mask, classes = rows
    expected = log_loss(classes, softmax(logits), labels=range(CLASSES))
    np.testing.assert_allclose(class_loss(logits, values, mask), expected, rtol=1e-6)
    found = loss(ClassClassification(), logits, values, mask)
    np.testing.assert_allclose(found.value, expected, rtol=1e-6)
    right, count = found.metrics["accuracy"]
    np.testing.assert_allclose(
        right / count, accuracy_score(classes, logits.argmax(axis=1)), rtol=1e-6
    )
    assert tuple(map(float, found.metrics["known"])) == (ROWS, ROWS)


def test_rows_without_one_class_count_for_nothing(rows):
    logits, values, mask, classes = rows
    values, mask = values.copy(), mask.copy()
    values[0] = 0  # no class
    values[1], mask[1] = 1, True  # several
    mask[2] = False  # nothing stated
    values[3, classes[3]] = 2  # uncertain
    present = np.arange(ROWS) != 4
    kept = np.arange(ROWS) > 4
    expected = log_loss(classes[kept], softmax(logits[kept]), labels=range(CLASSES))
    found = loss(ClassClassification(), logits, values, mask, present=jnp.asarray(present))
    np.testing.assert_allclose(found.value, expected, rtol=1e-6)
    assert tuple(map(float, found.metrics["known"])) == (kept.sum(), present.sum())
    gradient = jax.grad(lambda x: class_loss(x, values, mask & present[:, None]))(logits)
    assert not np.asarray(gradient)[~kept].any() and np.asarray(gradient)[kept].all()
    broken = np.where(kept[:, None], logits, np.nan).astype(np.float32)
    again = loss(ClassClassification(), broken, values, mask, present=jnp.asarray(present))
    assert float(again.value) == float(found.value)


def test_constant_logits_have_the_loss_of_chance_and_no_class_none(rows):
    logits, values, mask, _ = rows
    zero = np.zeros_like(logits)
    np.testing.assert_allclose(class_loss(zero, values, mask), np.log(CLASSES), rtol=1e-6)
    assert float(class_loss(logits, values, mask & False)) == 0


def test_another_number_of_logits_is_refused(rows):
    logits, values, mask, _ = rows
    with pytest.raises(InputError, match="reads 3 logits for 4 labels"):
        loss(ClassClassification(), logits[:, :3], values, mask)
