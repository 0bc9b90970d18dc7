"""Splash attention, interpreted, compared with jax.nn on one device and on a mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrl.devices import sharding
from mmrl.models import splash

B, L, HEADS, WIDTH = 4, 40, 2, 64


def inputs(kv_heads=HEADS):
    """Query, key, value, and an array of the shape of the query."""
    rng, heads = np.random.default_rng(0), (HEADS, kv_heads, kv_heads, HEADS)
    return [jnp.asarray(rng.normal(size=(B, L, n, WIDTH)), jnp.float32) for n in heads]


def padding():
    lengths = np.array([L, 7, 1, 23])
    return jnp.asarray(np.arange(L)[None] < lengths[:, None])


def blocks():
    """Mask of rows with up to three texts one after another, followed by padding."""
    number = np.sort(np.random.default_rng(1).integers(0, 4, (B, L)), axis=1)[:, ::-1]
    return jnp.asarray((number[:, :, None] == number[:, None]) & (number > 0)[:, None])


def expected(query, key, value, mask, causal=False):
    if mask is not None:
        mask = mask[:, None, None] if mask.ndim == 2 else mask[:, None]
    return jax.nn.dot_product_attention(query, key, value, mask=mask, is_causal=causal)


def interpreted(query, key, value, mask, causal=False):
    return splash.attend(query, key, value, mask, causal=causal, interpret=True)


@pytest.mark.default_cases(2)
@pytest.mark.parametrize(
    ("mask", "kv_heads", "causal"),
    [
        pytest.param(None, HEADS, False, id="none"),
        pytest.param(padding(), HEADS, False, id="padding"),
        pytest.param(blocks(), HEADS, False, id="blocks"),
        pytest.param(None, 1, False, id="grouped"),
        pytest.param(padding(), HEADS, True, id="causal"),
        pytest.param(blocks(), 1, True, id="causal-grouped-blocks"),
    ],
)
def test_values_and_gradients_equal_those_of_plain_attention(mask, kv_heads, causal):
    *features, weight = inputs(kv_heads)
    if mask is not None:
        seeing = mask if mask.ndim == 2 else mask.any(axis=2)
        weight = jnp.where(seeing[..., None, None], weight, 0)

    def outcome(attention):
        def loss(*features):
            out = attention(*features, mask, causal)
            return jnp.sum(weight * out), jnp.where(weight != 0, out, 0)

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(*features)

    for one, other in zip(
        jax.tree.leaves(outcome(expected)), jax.tree.leaves(outcome(interpreted)), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=5e-6)


def test_segments_name_the_first_token_of_each_text():
    mask = jnp.asarray(np.kron(np.diag([1, 1, 0]), np.ones((2, 2), bool))[None] > 0)
    assert splash.segments(mask, 1, 6).tolist() == [[0, 0, 2, 2, -1, -1]]
    assert splash.segments(padding()[:, :8], B, 8)[1].tolist() == [0] * 7 + [-1]
    assert splash.segments(None, 1, 3).tolist() == [[0, 0, 0]]


def test_every_device_attends_for_its_own_rows_and_heads():
    mesh = sharding.make_mesh({"data": 2, "fsdp": 1, "tensor": 2}, devices=jax.devices()[:4])
    *features, _ = inputs()
    placed = jax.device_put(features, sharding.batch_sharding(mesh))
    mask = jax.device_put(padding(), sharding.batch_sharding(mesh))
    compiled = jax.jit(interpreted).lower(*placed, mask).compile()
    np.testing.assert_allclose(
        np.where(padding()[..., None, None], compiled(*placed, mask), 0),
        np.where(padding()[..., None, None], expected(*features, padding()), 0),
        atol=1e-5,
    )
    assert "all-gather" not in compiled.as_text()
