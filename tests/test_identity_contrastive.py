"""Contrast of identities against a float64 reference, with absent rows and on several devices."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrl.objectives.base import Context
from mmrl.objectives.global_contrastive import contrastive_loss
from mmrl.objectives.identity_contrastive import IdentityContrastive, identity_contrastive_loss
from tests import commands, references
from tests.arrays import assert_close, on_mesh, unit

B, D = 8, 5
SCALE = np.float32(np.log(1 / 0.07))
IDENTITY = np.array([3, 1, 3, 0, 1, 3, 2, 9], np.int32)
LABELS = np.array([[0, 1], [1, 1], [0, 1], [0, 0], [1, 1], [0, 1], [1, 0], [2, 0]], np.float32)
PRESENT = np.array([1, 1, 0, 1, 1, 1, 0, 1], bool)


def reference(image, text, scale, identity):
    """UniCL, one image and one text at a time."""
    logits, total = np.exp(scale) * image @ text.T, 0.0
    for z in (logits, logits.T):
        for row, own in zip(z, identity, strict=True):
            same = [n for n, other in enumerate(identity) if np.array_equal(own, other)]
            total += np.mean([references.logsumexp(row) - row[n] for n in same])
    return total / (2 * len(image))


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("identity", [IDENTITY, LABELS])
def test_value_and_gradients_equal_the_reference(identity):
    given = (unit(B, D), unit(B, D, seed=1), SCALE)
    both = jax.jit(jax.value_and_grad(identity_contrastive_loss, argnums=(0, 1, 2)))
    value, gradients = both(*given, identity)
    wide = [np.asarray(x, np.float64) for x in given]
    assert_close(value, reference(*wide, identity))
    for n, gradient in enumerate(gradients):

        def of_one(x, n=n):
            return reference(*wide[:n], x, *wide[n + 1 :], identity)

        assert_close(gradient, references.gradient(of_one, wide[n]))
    on_devices = both(*on_mesh((2, 2, 2), *given[:2]), SCALE, *on_mesh((2, 2, 2), identity))
    assert_close(jax.device_get(on_devices), jax.device_get((value, gradients)))


def test_absent_rows_are_not_there():
    image, text = unit(B, D), unit(B, D, seed=1)
    expected = reference(image[PRESENT], text[PRESENT], np.float64(SCALE), IDENTITY[PRESENT])
    image[~PRESENT], text[~PRESENT] = np.nan, 1e30

    def loss(image):
        return identity_contrastive_loss(image, text, SCALE, IDENTITY, present=PRESENT)

    value, gradient = jax.jit(jax.value_and_grad(loss))(jnp.asarray(image))
    assert_close(value, expected)
    assert np.isfinite(gradient).all() and not np.asarray(gradient)[~PRESENT].any()
    assert identity_contrastive_loss(
        image, text, SCALE, IDENTITY, present=np.zeros(B, bool)
    ) == pytest.approx(0)


def test_closed_forms():
    image, text, distinct = unit(B, D), unit(B, D, seed=1), np.arange(B)
    assert_close(
        identity_contrastive_loss(image, text, SCALE, distinct),
        contrastive_loss(image, text, SCALE),
    )
    same = np.ones((B, D), np.float32) / D**0.5
    for identity in (IDENTITY, distinct):
        loss = identity_contrastive_loss(same, same, SCALE, identity)
        assert loss == pytest.approx(np.log(B), rel=1e-5)
    # One point per identity, all of them opposite: nothing is left but the entropy of the target.
    points = np.eye(2, dtype=np.float32)[[0, 0, 0, 1, 1, 1]]
    loss = identity_contrastive_loss(points, points, jnp.float32(5), np.repeat([0, 1], 3))
    assert loss == pytest.approx(np.log(3), rel=1e-5)


def test_the_objective_reads_duplicate_groups_unless_told_otherwise():
    module = IdentityContrastive(temperature=0.1)
    assert module.batch == {"identity": "group"}
    image, text = unit(B, D), unit(B, D, seed=1)
    loss = module(
        context=Context(jnp.int32(0), None, PRESENT), image=image, text=text, identity=IDENTITY
    )
    scale = np.float32(np.log(10))
    expected = identity_contrastive_loss(image, text, scale, IDENTITY, present=PRESENT)
    assert_close(loss.value, expected)
    assert loss.metrics["loss"][1] == PRESENT.sum()
    with pytest.raises(ValueError, match=r"identity must be \[8\] or \[8, C\]"):
        identity_contrastive_loss(image, text, scale, IDENTITY[:3])


@pytest.mark.exhaustive
@pytest.mark.optax
@pytest.mark.parametrize("variant", ["smoke", "pairs,smoke"])
def test_labels_or_pairs_are_the_identities_of_a_run(tmp_path, variant):
    preset = f"--config=configs/systems/plip_person.py:{variant}"
    with jax.numpy_dtype_promotion("standard"):
        assert commands.run_here("mmrl.main", preset, f"--workdir={tmp_path}", "--nosummary") == 0
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line).get("identity_contrastive/loss") for line in lines]
    assert np.isfinite([loss for loss in losses if loss is not None]).all() and any(losses)
