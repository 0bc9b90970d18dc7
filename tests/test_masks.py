"""Dice and focal loss against their formulas, written out in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrl.masks import dice_loss, focal_loss
from mmrl.objectives import masks as named

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(3, 4, 5, 2)).astype(np.float32)
LABELS = RNG.random((3, 4, 5, 2)) < 0.4


def sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


def dense_dice(p, t, smooth):
    found = []
    for b in range(p.shape[0]):
        for c in range(p.shape[-1]):
            own, truth = p[b, ..., c], t[b, ..., c]
            found.append(
                1 - (2 * (own * truth).sum() + smooth) / (own.sum() + truth.sum() + smooth)
            )
    return np.mean(found)


@pytest.mark.parametrize("smooth", [1e-5, 1.0])
def test_dice_of_masks_of_their_own(smooth):
    found = dice_loss(LOGITS, jnp.asarray(LABELS), smooth=smooth)
    assert found.dtype == jnp.float32 and found.shape == ()
    assert float(found) == pytest.approx(dense_dice(sigmoid(LOGITS), LABELS, smooth), abs=1e-6)
    without = dense_dice(sigmoid(LOGITS)[..., 1:], LABELS[..., 1:], smooth)
    found = dice_loss(LOGITS, jnp.asarray(LABELS), smooth=smooth, background=False)
    assert float(found) == pytest.approx(without, abs=1e-6)


def test_dice_of_classes_that_exclude_each_other():
    classes = RNG.integers(0, 2, (3, 4, 5))
    powers = np.exp(LOGITS.astype(np.float64))
    chosen, truth = powers / powers.sum(axis=-1, keepdims=True), np.eye(2)[classes]
    assert float(dice_loss(LOGITS, jnp.asarray(classes))) == pytest.approx(
        dense_dice(chosen, truth, 1e-5), abs=1e-6
    )


def test_dice_of_empty_and_perfect_masks():
    sure = jnp.where(jnp.asarray(LABELS), 50.0, -50.0)
    assert float(dice_loss(sure, jnp.asarray(LABELS))) == pytest.approx(0, abs=1e-6)
    nothing = jnp.zeros_like(sure, dtype=bool)
    assert float(dice_loss(jnp.full_like(sure, -200.0), nothing)) == 0
    assert float(dice_loss(jnp.asarray(LOGITS), nothing)) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("gamma", [0.0, 2.0])
@pytest.mark.parametrize("alpha", [0.25, -1.0])
def test_focal_loss(gamma, alpha):
    p = sigmoid(LOGITS)
    at = np.where(LABELS, p, 1 - p)
    weight = np.where(LABELS, alpha, 1 - alpha) if alpha >= 0 else 1.0
    expected = (-weight * (1 - at) ** gamma * np.log(at)).mean()
    found = focal_loss(LOGITS, jnp.asarray(LABELS), alpha=alpha, gamma=gamma)
    assert found.dtype == jnp.float32
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_losses_are_finite_with_finite_gradients_at_large_logits():
    large = jnp.asarray(np.where(LABELS, -1e4, 1e4).astype(np.float32))
    for loss in (dice_loss, focal_loss):
        value, slope = jax.value_and_grad(loss)(large, jnp.asarray(LABELS))
        assert np.isfinite(value) and np.isfinite(slope).all()
    assert float(focal_loss(large, jnp.asarray(LABELS), alpha=-1.0)) == pytest.approx(1e4)


def test_names_and_shapes():
    assert named.dice_loss is dice_loss and named.focal_loss is focal_loss
    with pytest.raises(ValueError, match="must be alike"):
        focal_loss(jnp.zeros((1, 2, 2)), jnp.zeros((1, 2, 1)))
    with pytest.raises(ValueError, match="must be alike"):
        dice_loss(jnp.zeros((1, 2, 2)), jnp.zeros((1, 2, 1)))
    with pytest.raises(ValueError, match="no channel"):
        dice_loss(jnp.zeros((1, 2, 1)), jnp.zeros((1, 2, 1)), background=False)
