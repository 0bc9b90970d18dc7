"""Cross-entropy of masked and of next tokens, and of entities, against float64 references."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrl.objectives.captioning import caption_loss
from mmrl.objectives.entities import entity_loss
from mmrl.objectives.masked_text import masked_text_loss
from tests import references
from tests.arrays import assert_close, on_mesh

B, L, V = 3, 5, 7


def made(size=B):
    rng = np.random.default_rng(0)
    logits = rng.normal(scale=3.0, size=(size, L, V)).astype(np.float32)
    tokens = rng.integers(0, V, (size, L)).astype(np.int32)
    mask = rng.random((size, L)) < 0.5
    mask[0, 0] = True
    if size > 1:
        mask[-1] = False
    return logits, tokens, mask


def reference(logits, tokens, mask):
    rows = list(zip(*np.nonzero(mask), strict=True))
    return np.mean([references.logsumexp(logits[at]) - logits[at][tokens[at]] for at in rows])


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("loss", [masked_text_loss, caption_loss])
@pytest.mark.parametrize("size", [1, B])
def test_the_mean_is_over_all_tokens_of_the_batch(loss, size):
    logits, tokens, mask = made(size)
    both = jax.jit(jax.value_and_grad(loss))
    value, slope = both(logits, tokens, mask)
    assert value.dtype == jnp.float32
    assert_close(value, reference(logits.astype(np.float64), tokens, mask))
    expected = references.gradient(lambda x: reference(x, tokens, mask), logits)
    assert_close(slope, expected)
    dirty = np.where(mask[..., None], logits, np.float32(np.nan))
    others = np.where(mask, tokens, np.int32(-100))
    assert_close(both(dirty, others, mask), (value, slope), 1e-6)
    for x in both(dirty, others, mask & False):
        np.testing.assert_array_equal(x, 0)


@pytest.mark.parametrize("loss", [masked_text_loss, caption_loss])
def test_constant_logits_give_the_logarithm_of_the_vocabulary(loss):
    _, tokens, mask = made()
    value = loss(jnp.ones((B, L, V), jnp.bfloat16), tokens, mask)
    assert value.dtype == jnp.float32 and value == pytest.approx(np.log(V), rel=1e-6)


def test_devices_change_nothing():
    both = jax.jit(jax.value_and_grad(masked_text_loss))
    arrays = made(24)
    assert_close(jax.device_get(both(*on_mesh((8, 1, 1), *arrays))), jax.device_get(both(*arrays)))


def test_logits_of_another_length_are_refused():
    logits, tokens, mask = made()
    with pytest.raises(ValueError, match=r"logits must be \[..., L, V\]"):
        masked_text_loss(logits[:, 1:], tokens, mask)


def of_entities(logits, labels, known):
    share = 1 / (1 + np.exp(-logits))
    losses = -(labels * np.log(share) + (1 - labels) * np.log(1 - share))
    return losses[known].mean()


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("partly", [False, True])
def test_entities_equal_the_reference(soft, partly):
    rng = np.random.default_rng(1)
    logits = rng.normal(scale=3.0, size=(B, 11)).astype(np.float32)
    labels = rng.random((B, 11)).astype(np.float32)
    labels = labels if soft else labels < 0.3
    known = rng.random((B, 11)) < 0.6 if partly else np.ones((B, 11), bool)
    both = jax.jit(jax.value_and_grad(entity_loss))
    value, slope = both(logits, labels, known if partly else None)
    assert value.dtype == jnp.float32
    assert_close(value, of_entities(logits.astype(np.float64), labels, known))
    expected = references.gradient(lambda x: of_entities(x, labels, known), logits)
    assert_close(slope, expected)
    if partly:
        logits[~known] = np.nan
        assert_close(both(logits, labels, known), (value, slope), 1e-6)
        for x in both(logits, labels, known & False):
            np.testing.assert_array_equal(x, 0)
