"""Poolers over sets: masks, order, gated attention and its published forms, other grids."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.special import expit

from mmrl import config as configs
from mmrl.models.convert import poolers
from mmrl.models.pool import base as pools
from mmrl.models.pool.gated_attention import GatedAttention
from mmrl.models.pool.temporal import Temporal, sine_positions
from mmrl.training import optim
from mmrl.types import InputError
from tests import references
from tests.arrays import assert_close, randomized
from tests.published import Torch, biovil_t, gelu, positions

PRECISION = {"dtype": jnp.float32, "param_dtype": jnp.float32}
N, S, WIDTH = 3, 5, 8
UNORDERED = {
    "mean": "mean",
    "attention": {"name": "attention", "queries": 2, "num_heads": 2},
    "gated": "gated_attention",
    "heads": {"name": "gated_attention", "heads": 2, "branches": 3, "hidden": 5},
    "layers": {"name": "gated_attention", "heads": 2, "layers": 2, "features": 6, "hidden": 5},
}
MASK = np.array([[1, 1, 0, 1, 0], [0, 0, 1, 0, 0], [1, 1, 1, 1, 1]], bool)


@pytest.fixture(autouse=True)
def strict_shapes():
    with jax.numpy_rank_promotion("raise"):
        yield


def make(pool: Any, width: int = WIDTH, grid: tuple[int, int] = (1, 1), **options: Any) -> Any:
    given = {"width": width, "grid": grid, **PRECISION, **options}
    return randomized(functools.partial(pools.make, pool, **given))


def elements(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(N, S, WIDTH)).astype(np.float32)


def pooled_and_weights(pooler: Any, x: Any, mask: Any = None) -> Any:
    return pooler(x, mask), pooler.weights(x, mask) if pooler.weighs else None


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("name", UNORDERED)
def test_masked_elements_change_no_bit_of_results_and_gradients(name):
    """Nor does an empty set, the last row, whose result is finite."""
    pooler, x = make(UNORDERED[name]), elements()
    mask = np.concatenate([MASK[:2], np.zeros((1, S), bool)])
    graphdef, state = nnx.split(pooler)

    def loss(state: Any, x: Any) -> Any:
        made = pooled_and_weights(nnx.merge(graphdef, state), x, jnp.asarray(mask))
        return jnp.sum(jnp.sin(made[0])), made

    call = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    pure = nnx.to_pure_dict(state)
    expected = call(pure, x)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(expected))
    for content in (0.0, 1e6, np.nan, np.inf):
        found = call(pure, np.where(mask[..., None], x, np.float32(content)))
        jax.tree.map(np.testing.assert_array_equal, found, expected)
    gradient = np.asarray(expected[1][1])
    assert not gradient[~mask].any() and gradient[mask].any()


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("name", UNORDERED)
def test_masked_elements_are_as_good_as_absent_and_the_order_changes_nothing(name):
    pooler, x = make(UNORDERED[name]), elements()
    call = jax.jit(functools.partial(pooled_and_weights, pooler))
    pooled, weights = call(x, MASK)
    alone, shares = call(x[:1, MASK[0]])
    assert_close(pooled[:1], alone)
    order = np.random.default_rng(1).permutation(S)
    assert pooler.unordered and not make({"name": "zones", "size": 1}).unordered
    again = call(x[:, order], MASK[:, order])
    assert_close(again[0], pooled)
    if pooler.weighs:
        assert_close(weights[0][MASK[0]], shares[0])
        assert_close(again[1], weights[:, order])
        assert weights.dtype == jnp.float32 and not np.asarray(weights)[~MASK].any()
        np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-5)


def test_a_masked_mean_is_that_of_the_others():
    x = elements().astype(np.float64)
    expected = np.stack([row[mask].mean(axis=0) for row, mask in zip(x, MASK, strict=True)])
    assert_close(make("mean")(jnp.asarray(elements()), jnp.asarray(MASK)), expected, 1e-6)


# --- zones


def test_zones_follow_another_grid():
    zones = make({"name": "zones", "size": 2}, grid=(4, 4))
    x = np.random.default_rng(0).normal(size=(N, 24, WIDTH)).astype(np.float32)
    grid = x.astype(np.float64).reshape(N, 4, 6, WIDTH)
    parts = [grid[:, 2 * y : 2 * y + 2, 3 * z : 3 * z + 3] for y in (0, 1) for z in (0, 1)]
    expected = np.concatenate([part.mean(axis=(1, 2)) for part in parts], axis=1)
    assert_close(jax.jit(zones, static_argnames="grid")(x, grid=(4, 6)), expected, 1e-6)
    built = make({"name": "zones", "size": 2}, grid=(4, 6))
    np.testing.assert_array_equal(built(x), zones(x, grid=(4, 6)))


def test_zones_refuse_a_mask():
    with pytest.raises(InputError, match="zones of regions of which some are left out; expected"):
        make({"name": "zones", "size": 1})(elements(), MASK)


# --- gated attention


def test_gated_attention_equals_the_formulas():
    """One head and one branch at a time in float64; head h has the features h, h + heads, ..."""
    heads, branches, hidden = 2, 3, 5
    pooler = make(UNORDERED["heads"])
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), nnx.to_pure_dict(nnx.state(pooler)))
    assert params["content"]["kernel"].shape == (heads, WIDTH // heads, hidden)
    x = elements().astype(np.float64)
    expected = np.zeros((N, branches, WIDTH // heads, heads))
    shares = np.zeros((N, heads, branches, S))
    for row, head, branch in np.ndindex(N, heads, branches):
        own = x[row, :, head::heads]

        def layer(name: str, x: np.ndarray, head: int = head) -> np.ndarray:
            return x @ params[name]["kernel"][head] + params[name]["bias"][head]

        gated = np.tanh(layer("content", own)) * expit(layer("gate", own))
        scores = np.where(MASK[row], layer("score", gated)[:, branch], -np.inf)
        shares[row, head, branch] = references.softmax(scores, axis=0)
        expected[row, branch, :, head] = shares[row, head, branch] @ own
    found = jax.jit(pooler)(elements(), MASK)
    assert pooler.width == branches * WIDTH and found.shape == (N, pooler.width)
    assert_close(found, expected.reshape(N, -1))
    assert_close(
        pooler.weights(jnp.asarray(elements()), jnp.asarray(MASK)), shares.mean(axis=(1, 2))
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 3}, "heads 3, width 8, features 0, no layers; expected a width that is a mul"),
        ({"features": 4}, "features 4, no layers; expected .* features 0"),
        ({"branches": 0}, "branches 0, .*; expected at least 1, of layers and features 0"),
        ({"activation": "tanh"}, "unknown activation 'tanh'; choices: gelu"),
    ],
)
def test_sizes_of_gated_attention_must_fit(options, message):
    with pytest.raises(InputError, match=message):
        make({"name": "gated_attention", **options})


def test_a_part_of_a_fusion_is_no_pooler():
    with pytest.raises(InputError, match="unknown pooler 'temporal'; choices: attention, gated_"):
        make("temporal")


# --- published forms


def loaded(target: Any, converted: Any, **options: Any) -> Any:
    """The module of these options with these parameters."""
    given, params = converted
    module = nnx.eval_shape(lambda: target(**given, **options, **PRECISION, rngs=nnx.Rngs(0)))
    graphdef, state = nnx.split(module)
    shapes = jax.tree.map(lambda leaf: leaf.shape, nnx.to_pure_dict(state))
    assert shapes == jax.tree.map(np.shape, params)
    return nnx.merge(graphdef, params)


@pytest.mark.parametrize("prefix", ["", "wsi_embedders."])
def test_madeleine_is_read_by_its_names(prefix):
    torch, heads, hidden, inner = Torch(), 4, 7, 6
    x = elements().astype(np.float64)
    h = x
    for place, out in ((0, inner), (4, inner), (8, inner * heads)):
        h = torch.linear(f"pre_attn.{place}", h, out)
        h = gelu(torch.norm(f"pre_attn.{place + 1}", h, 1e-5))
    h = h.reshape(N, S, inner, heads)
    expected = np.zeros((N, inner, heads))
    for head in range(heads):
        shares = references.softmax(torch.gated(f"attn.{head}.", h[..., head], hidden), axis=1)
        expected[..., head] = (shares * h[..., head]).sum(axis=1)
    named = {f"{prefix}{name}": value for name, value in torch.tensors.items()}
    converted = poolers.madeleine(named)
    assert converted[0] == {
        "width": WIDTH, "heads": heads, "branches": 1, "hidden": hidden, "features": inner,
        "layers": 3, "activation": "gelu", "norm": True,
    }  # fmt: skip
    pooler = loaded(GatedAttention, converted, grid=(1, 1))
    assert_close(jax.jit(pooler)(elements()).reshape(N, inner, heads), expected)
    named[f"{prefix}attn.0.attention_d.weight"] = named.pop(f"{prefix}attn.3.attention_b.0.bias")
    with pytest.raises(InputError, match="ABMILEmbedder: 1 tensors are missing: attn"):
        poolers.madeleine(named)
    with pytest.raises(InputError, match="0 tensors named pre_attn"):
        poolers.madeleine({})


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("branches", [1, 4])
def test_gated_attention_of_clam_is_read_by_its_names(branches):
    torch, x = Torch(), elements().astype(np.float64)
    raw = torch.gated("", x, 7, branches)  # N S branches
    shares = references.softmax(raw, axis=1)
    pooler = loaded(GatedAttention, poolers.clam(torch.tensors), grid=(1, 1))
    found = jax.jit(pooler)(elements())
    assert_close(found.reshape(N, branches, WIDTH), shares.swapaxes(1, 2) @ x)
    assert_close(pooler.scores(jnp.asarray(elements()))[:, 0], raw.swapaxes(1, 2))


@pytest.mark.parametrize("place", [2, 3])
def test_the_attention_of_clam_is_read_without_its_classifiers(place):
    torch, x, hidden, inner = Torch(), elements().astype(np.float64), 7, 6
    h = np.maximum(torch.linear("attention_net.0", x, inner), 0)
    shares = references.softmax(torch.gated(f"attention_net.{place}.", h, hidden), axis=1)
    expected = (shares * h).sum(axis=1)
    torch.linear("classifiers", expected, 2)
    torch.linear("instance_classifiers.0", expected, 2)
    pooler = loaded(GatedAttention, poolers.clam(torch.tensors), grid=(1, 1))
    assert_close(jax.jit(pooler)(elements()), expected)
    torch.tensors["attention_net.0.scale"] = np.ones(3)
    with pytest.raises(InputError, match="CLAM_SB: 1 tensors are of no use here: attention_net"):
        poolers.clam(torch.tensors)


def test_biovil_t_is_read_by_its_names_on_a_grid_that_is_not_square():
    torch, grid = Torch(), (3, 4)
    rng = np.random.default_rng(1)
    current, prior = rng.normal(size=(2, 2, 12, 24)).astype(np.float32)
    expected = biovil_t(torch, *(x.astype(np.float64) for x in (current, prior)), grid)
    named = {f"encoder.vit_pooler.{name}": value for name, value in torch.tensors.items()}
    named["encoder.vit_pooler.pos_embed"] = np.zeros((1, 12, 24))
    options, params = poolers.biovil_t(named, num_heads=4)
    assert options == {"width": 24, "num_heads": 4, "depth": 3, "mlp_dim": 24}
    module = loaded(Temporal, (options, params))
    found = jax.jit(module, static_argnames="grid")(current, prior, grid=grid)
    assert_close(found, expected)
    np.testing.assert_allclose(sine_positions(grid, 24), positions(3, 4, 24), atol=1e-6)
    # The order of the two images matters, and the grid.
    swapped = module(prior, current, grid=grid)
    assert np.abs(swapped - found).max() > 0.1 and np.abs(found - module(
        current, prior, grid=(4, 3))).max() > 0.01  # fmt: skip
    with pytest.raises(ValueError, match=r"of the grid \(3, 3\); expected as many"):
        module(current, prior)
    with pytest.raises(InputError, match="width 10, num_heads 2, depth 3, mlp_dim 0; expected a"):
        Temporal(width=10, num_heads=2, **PRECISION, rngs=nnx.Rngs(0))


def test_types_do_not_decay_and_dropout_acts_in_training_alone():
    module = randomized(functools.partial(Temporal, width=8, num_heads=2, depth=1, dropout=0.5,
                                          **PRECISION))  # fmt: skip
    x = np.random.default_rng(0).normal(size=(2, 1, 4, 8)).astype(np.float32)
    plain, noisy = jax.jit(lambda x: (module(*x), module(*x, key=jax.random.key(0))))(x)
    assert np.abs(plain - noisy).max() > 0.01
    params = {"temporal": nnx.to_pure_dict(nnx.state(module, nnx.Param))}
    rules = configs.base().optimizer.rules
    chosen = optim.assign_rules(params, rules)["temporal"]
    factor = jax.tree.map(lambda n: rules[n].get("weight_decay", 1.0), chosen)
    assert factor["types"] == factor["norm"]["scale"] == 0.0
    assert factor["block_00"]["attention"]["qkv"]["kernel"] == 1.0
