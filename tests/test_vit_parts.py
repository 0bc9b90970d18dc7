"""Vision transformers on other image sizes and on some patches; layers, attention and drop path."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmrl.devices import flops, sharding
from mmrl.models import positions
from mmrl.models.image.resnet import Resnet
from mmrl.models.image.vit import Vit, resized_positions, sincos2d_positions
from mmrl.models.layers import Attention, BlockOptions, Size, drop_rows
from mmrl.models.stack import Stack
from mmrl.types import InputError
from tests.arrays import assert_close, randomized
from tests.test_models import make_vit, params_of, run, vit


@pytest.fixture(autouse=True)
def strict_shapes():
    with jax.numpy_rank_promotion("raise"):
        yield


def images(height: int = 24, width: int = 24, rows: int = 2) -> jax.Array:
    drawn = np.random.default_rng(1).normal(size=(rows, height, width, 1))
    return jnp.asarray(drawn, jnp.float32)


KEPT = jnp.asarray([[5, 0, 7], [2, 8, 3]], jnp.int32)
EVERY = jnp.asarray(np.random.default_rng(2).permuted(np.tile(np.arange(9), (2, 1)), axis=1))


# Sizes


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("new", [(2, 3), (5, 4)])
def test_positions_are_interpolated_as_by_the_reference(new, antialias):
    table = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
    found = resized_positions(jnp.asarray(table), (3, 3), new, antialias=antialias)
    wide = table.astype(np.float64)
    expected = positions.resize_grid(wide, (3, 3), new, antialias=antialias)
    assert_close(found, expected, 1e-6)

    # The gradient of a sum with random weights is the transposed interpolation of these.
    weights = np.random.default_rng(3).normal(size=expected.shape).astype(np.float32)

    def summed(table: jax.Array) -> jax.Array:
        return jnp.sum(resized_positions(table, (3, 3), new, antialias=antialias) * weights)

    basis = positions.resize_grid(np.eye(9), (3, 3), new, antialias=antialias)
    assert_close(jax.grad(summed)(jnp.asarray(table)), basis.T @ weights, 1e-6)


def test_the_own_size_computes_no_interpolation():
    table = jnp.ones((9, 4))
    assert resized_positions(table, (3, 3), (3, 3)) is table


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("posemb", ["learned", "sincos2d"])
def test_another_size_equals_an_encoder_made_for_it(posemb):
    options: dict[str, Any] = {"posemb": posemb, "pool": {"name": "zones", "size": 2}}
    model = vit(**options)
    params = dict(params_of(model))
    if posemb == "learned":
        table = np.asarray(params["position"], np.float64)
        params["position"] = jnp.asarray(positions.resize_grid(table, (3, 3), (4, 4)), jnp.float32)
    other = make_vit(
        posemb=posemb, pool={"name": "zones", "size": 2}, image_size=32, rngs=nnx.Rngs(0)
    )
    other = nnx.merge(nnx.graphdef(other), params)
    found = run(model, images(32, 32))
    assert found.local.shape == (2, 16, 16)
    assert_close(found, run(other, images(32, 32)), 1e-5)


def test_rectangles_have_the_grid_of_their_sides():
    model = vit(posemb="sincos2d", block={"rope_theta": 10.0})
    wide = model(images(16, 40))
    assert wide.local.shape == (2, 10, 16)
    x = images(16, 40).reshape(2, 2, 8, 5, 8, 1).transpose(0, 1, 3, 2, 4, 5).reshape(2, 10, 64)
    x = model.patch(x) + jnp.asarray(sincos2d_positions((2, 5), 16))[None]
    assert_close(wide.local, model.norm(model.stack(x).x), 1e-6)


@pytest.mark.parametrize("stage", [2, 4])
def test_a_resnet_follows_the_size_of_its_input(stage):
    options = {"depth": 18, "width": 4, "region_stage": stage, "norm": "group"}
    make = functools.partial(Resnet, image_size=64, pool={"name": "zones", "size": 2}, **options)
    model = nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0)))
    graphdef, state = nnx.split(model)

    def shapes(*shape: int) -> Any:
        image = jax.ShapeDtypeStruct(shape, jnp.float32)
        return jax.eval_shape(lambda s, x: nnx.merge(graphdef, s)(x), state, image)

    found = shapes(2, 96, 128, 1)
    assert found.pooled.shape == (2, 4 * 32)
    assert found.local.shape[1] == {2: 12 * 16, 4: 3 * 4}[stage]
    with pytest.raises(ValueError, match="64 or multiples of 32"):
        shapes(2, 80, 96, 1)
    assert not Resnet.takes_kept and Vit.takes_kept


# Kept patches


@pytest.mark.default_cases(1)
@pytest.mark.parametrize(
    "options",
    [
        {"pool": "cls", "registers": 2, "region_layer": 1},
        {"pool": "attention", "stem": "convolution", "block": {"rope_theta": 10.0}},
        {"scan_layers": True, "posemb": "sincos2d"},
    ],
)
def test_keeping_every_patch_in_any_order_is_the_full_pass(options):
    model = vit(**options)
    wanted = {"layers": (1, 2), "attention": True}

    @jax.jit
    def encode(image: jax.Array, kept: jax.Array | None) -> Any:
        return model(image, kept=kept, **wanted)

    full, shuffled = encode(images(), None), encode(images(), EVERY)
    assert_close(shuffled.pooled, full.pooled, 1e-5)
    rows = np.arange(2)[:, None]
    assert_close(shuffled.local, np.asarray(full.local)[rows, EVERY], 1e-5)
    layers, attention = np.asarray(full.layers), np.asarray(full.attention)
    assert_close(shuffled.layers, np.stack([layers[i][:, EVERY[i]] for i in range(2)]), 1e-5)
    assert_close(shuffled.attention, np.stack([attention[i][:, EVERY[i]] for i in range(2)]), 1e-5)
    order = jnp.broadcast_to(jnp.arange(9, dtype=jnp.int32)[None], (2, 9))
    assert_close(encode(images(), order), full, 0.0)


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_patches_that_are_left_out_change_nothing_and_get_no_gradient(pool):
    model = vit(pool=pool, registers=1)
    kept = np.zeros((2, 9), bool)
    np.put_along_axis(kept, np.asarray(KEPT), True, axis=1)
    pixels = np.kron(kept.reshape(2, 3, 3), np.ones((8, 8)))[..., None].astype(bool)

    @jax.jit
    def both(image: jax.Array) -> Any:
        def loss(image: jax.Array) -> Any:
            found = model(image, kept=KEPT, layers=(1,), attention=True)
            return jnp.sum(jnp.sin(found.pooled)) + jnp.sum(found.local**2), found

        return jax.grad(loss, has_aux=True)(image)

    gradient, found = both(images())
    assert found.local.shape == (2, 3, 16) and found.attention.shape == (2, 2, 3)
    assert not np.asarray(gradient)[~pixels].any() and np.asarray(gradient)[pixels].all()
    assert_close(both(jnp.where(pixels, images(), 1e3)), (gradient, found), 0.0)


@pytest.mark.exhaustive
def test_a_quarter_of_the_patches_costs_less_than_two_fifths():
    shapes = nnx.eval_shape(lambda: Vit(image_size=224, variant="S", rngs=nnx.Rngs(0)))
    graphdef, params = nnx.split(shapes)
    image = jax.ShapeDtypeStruct((2, 224, 224, 1), jnp.float32)

    def cost(kept: int | None) -> int:
        places = None if kept is None else jax.ShapeDtypeStruct((2, kept), jnp.int32)
        return flops.count(lambda p, x, k: nnx.merge(graphdef, p)(x, kept=k), params, image, places)

    assert 0.2 < cost(49) / cost(None) < 0.25
    assert cost(196) == cost(None)


def test_what_cannot_be_kept_is_refused():
    with pytest.raises(InputError, match=r"pooler zones needs all patches .* such as mean"):
        vit(pool={"name": "zones", "size": 2})(images(), kept=EVERY)
    with pytest.raises(ValueError, match=r"kept \(3, 2\); expected \[2, P'\]"):
        vit()(images(), kept=jnp.zeros((3, 2), jnp.int32))


# Hidden patches


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("kept", [None, KEPT], ids=["every", "some"])
def test_pixels_of_hidden_patches_change_nothing_and_get_no_gradient(kept):
    model = vit(pool="cls", mask_token=True)
    hidden = jnp.zeros((2, 9), bool).at[0, jnp.array([0, 4])].set(True).at[1, 8].set(True)
    shown = ~np.kron(hidden.reshape(2, 3, 3), np.ones((8, 8), bool))[..., None]
    graphdef, params = nnx.split(model)

    @jax.jit
    def both(params: Any, image: jax.Array) -> Any:
        def loss(params: Any, image: jax.Array) -> Any:
            found = nnx.merge(graphdef, params)(image, kept=kept, hidden=hidden)
            return jnp.sum(jnp.sin(found.pooled)) + jnp.sum(found.local**2), found

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(params, image)

    (slopes, gradient), found = both(params, images())
    assert not np.asarray(gradient)[~shown].any() and np.asarray(slopes["mask_token"][...]).any()
    assert kept is not None or np.asarray(gradient)[shown].all()
    assert_close(both(params, jnp.where(shown, images(), 1e3)), ((slopes, gradient), found), 0.0)
    # The token has the position of what it hides.
    if kept is None:
        expected = model._embed(images())[0, 1:] - model._embed(0 * images())[0, 1:]
        moved = model._embed(images(), None, hidden)[0, 1:] - model._embed(0 * images())[0, 1:]
        assert_close(moved[1:4], expected[1:4], 1e-5)
        token = model.mask_token[...] - model.patch.bias[...]
        assert_close(moved[jnp.array([0, 4])], jnp.stack([token, token]), 1e-5)


def test_without_hidden_patches_the_token_changes_nothing():
    with_token, without = (
        make_vit(mask_token=token, pool="cls", rngs=nnx.Rngs(0)) for token in (True, False)
    )
    assert (
        with_token.takes_hidden and not without.takes_hidden and not hasattr(without, "mask_token")
    )
    assert_close(run(with_token, images()), run(without, images()), 0.0)
    nothing = functools.partial(with_token, hidden=jnp.zeros((2, 9), bool))
    assert_close(run(nothing, images()), run(without, images()), 0.0)
    with pytest.raises(ValueError, match=r"hidden \(2, 4\); expected \(2, 9\)"):
        with_token(images(), hidden=jnp.zeros((2, 4), bool))
    with pytest.raises(InputError, match="mixes the pixels of patches; expected stem patch"):
        vit(mask_token=True, stem="convolution")


# Layers and attention


def reference_weights(x: np.ndarray, params: Any, mask: np.ndarray, theta: float) -> np.ndarray:
    """softmax(q k^T / sqrt(head_dim)) in float64: x [B, L, width] -> [B, heads, L, L]."""
    if "qkv" in params:
        kernel, bias = params["qkv"]["kernel"], params["qkv"]["bias"]
        q, k = (np.einsum("blw,whd->blhd", x, kernel[:, i]) + bias[i] for i in (0, 1))
    else:
        q = np.einsum("blw,whd->blhd", x, params["query"]["kernel"]) + params["query"]["bias"]
        kernel, bias = params["kv"]["kernel"], params["kv"]["bias"]
        k = np.einsum("blw,whd->blhd", x, kernel[:, 0]) + bias[0]
        k = np.stack([k[:, :, h * k.shape[2] // q.shape[2]] for h in range(q.shape[2])], axis=2)
    if theta:
        half = q.shape[-1] // 2
        turns = np.arange(x.shape[1])[:, None] * theta ** (-np.arange(half) / half)
        factor = np.exp(1j * turns)[None, :, None]  # pairs i and i + half as complex numbers
        q, k = ((t[..., :half] + 1j * t[..., half:]) * factor for t in (q, k))
        products = np.einsum("bqhd,bkhd->bhqk", q, k.conj()).real / np.sqrt(2 * half)
    else:
        products = np.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(q.shape[-1])
    products = np.where(mask, products, -np.inf)
    weights = np.exp(products - products.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("block", [{}, {"kv_heads": 2, "rope_theta": 10.0, "head_dim": 6}])
def test_weights_of_attention_equal_the_reference(block, causal):
    layer = randomized(
        functools.partial(
            Attention, 16, 4, attention="xla", block=BlockOptions(**block), causal=causal,
            dtype=jnp.float32, param_dtype=jnp.float32,
        )
    )  # fmt: skip
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params_of(layer))
    x = np.random.default_rng(0).normal(size=(2, 5, 16))
    mask = np.arange(5)[None] < np.array([[5], [3]])
    seen = mask[:, None, None] & (np.tri(5, dtype=bool) if causal else True)
    expected = reference_weights(x, params, seen, block.get("rope_theta", 0.0))
    given = jnp.asarray(x, jnp.float32)
    assert_close(layer.weights(given, jnp.asarray(mask)), expected, 1e-5)
    queries = jnp.asarray([[4, 0], [1, 2]], jnp.int32)
    asked = layer.weights(given, jnp.asarray(mask), queries)
    chosen = np.take_along_axis(expected, np.asarray(queries)[:, None, :, None], axis=2)
    assert_close(asked, chosen, 1e-5)


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_layers_and_attention_are_those_of_the_blocks(pool):
    model = vit(pool=pool, registers=2)
    first = model.first
    x = model._embed(images())
    one = model.stack.block_00(x)
    last = model.stack.block_01
    two = last(one)
    normed = np.asarray(last.attention_norm(one), np.float64)
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params_of(last))
    weights = reference_weights(normed, params["attention"], np.True_, 0.0)
    paid = weights[:, :, 0] if pool == "cls" else weights[:, :, first:].mean(axis=2)
    found = run(functools.partial(model, layers=(2, 1), attention=True), images())
    assert_close(found.layers, jnp.stack([two, one], axis=1)[:, :, first:], 1e-5)
    assert_close(found.attention, paid[:, :, first:], 1e-5)
    assert (np.asarray(found.attention).sum(axis=-1) < 1).all()
    plain = run(model, images())
    assert plain.layers is None and plain.attention is None
    assert_close(found[:2], plain[:2], 1e-6)
    for wrong in ((0,), (3,)):
        with pytest.raises(ValueError, match="expected numbers of"):
            model(images(), layers=wrong)


@pytest.mark.exhaustive
def test_scanned_and_rematerialised_stacks_give_the_same_layers_attention_and_gradient():
    options = {"depth": 3, "dropout": 0.3, "region_layer": 1, "block": {"drop_path": 0.4}}
    plain = vit(**options)
    params = params_of(plain)
    stacked = [params["stack"][name] for name in sorted(params["stack"])]
    scanned_params = params | {
        "stack": {"blocks": jax.tree.map(lambda *leaves: jnp.stack(leaves), *stacked)}
    }

    def both(model: Vit, params: Any) -> Any:
        graphdef = nnx.graphdef(model)

        def loss(params: Any) -> Any:
            found = nnx.merge(graphdef, params)(
                images(), train=True, rngs=nnx.Rngs(5), layers=(1, 2), attention=True
            )
            return sum(jnp.sum(jnp.sin(x)) for x in jax.tree.leaves(found)), found

        return jax.jit(jax.grad(loss, has_aux=True))(params)

    gradient, expected = both(plain, params)
    again, found = both(make_vit(**options, remat="full", rngs=nnx.Rngs(0)), params)
    assert_close((again, found), (gradient, expected), 1e-5, floor=1.0)
    scanned = make_vit(**options, scan_layers=True, remat="dots", rngs=nnx.Rngs(0))
    of_scan, found = both(scanned, scanned_params)
    assert_close(found, expected, 1e-5, floor=1.0)
    blocks = [gradient["stack"][name] for name in sorted(gradient["stack"])]
    rest = {name: leaf for name, leaf in gradient.items() if name != "stack"}
    whole = rest | {"stack": {"blocks": jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)}}
    assert_close(of_scan, whole, 1e-4, floor=1.0)


def test_nothing_is_computed_that_nobody_asks_for():
    model = vit(depth=3)

    def cost(**wanted: Any) -> int:
        return flops.count(lambda x: model(x, **wanted), images())

    assert cost(layers=(1, 2)) == cost()
    # Queries and keys of 9 tokens for 2 images, their products in 2 heads of 8, and the mean.
    assert cost(attention=True) - cost() == 2 * 2 * (9 * 16 * 32 + 2 * 9 * 9 * 8 + 2 * 9 * 9)
    assert cost(attention=True, layers=(2,)) == cost(attention=True)


@pytest.mark.exhaustive
def test_the_average_over_chosen_tokens_leaves_out_the_others():
    stack = vit(depth=1).stack
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 16)), jnp.float32)
    mask = jnp.asarray([[True] * 5, [True] * 3 + [False] * 2])
    found = stack.attention_of_last(x, mask, among=mask)
    each = [
        stack.attention_of_last(x, mask, queries=jnp.full((2, 1), i, jnp.int32)) for i in range(5)
    ]
    assert_close(found[0], sum(one[0] for one in each) / 5, 1e-6)
    assert_close(found[1], sum(one[1] for one in each[:3]) / 3, 1e-6)
    assert not np.asarray(found[1, :, 3:]).any()
    assert_close(stack.attention_of_last(x), stack.attention_of_last(x, among=jnp.ones_like(mask)))


@pytest.mark.exhaustive
def test_every_mesh_encodes_kept_patches_layers_and_attention_alike():
    model = vit(scan_layers=True, pool="cls")
    graphdef, params = nnx.split(model)
    image = np.asarray(images(32, 16, rows=8))
    kept = np.random.default_rng(4).permuted(np.tile(np.arange(8), (8, 1)), axis=1)[:, :3]

    @jax.jit
    def both(params: Any, image: Any, kept: Any) -> Any:
        def loss(params: Any) -> Any:
            encoder = nnx.merge(graphdef, params)
            found = encoder(image, kept=kept, layers=(1,), attention=True)
            return sum(jnp.sum(jnp.sin(x)) for x in jax.tree.leaves(found)), found

        return jax.grad(loss, has_aux=True)(params)

    pure, given = nnx.to_pure_dict(params), (image, kept.astype(np.int32))
    expected = both(pure, *given)
    mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    placed = jax.device_put(pure, sharding.variable_shardings(params, mesh))
    rows = jax.device_put(given, sharding.batch_sharding(mesh))
    assert_close(both(placed, *rows), expected, floor=1.0)


# Drop path


def test_rows_are_dropped_at_the_rate_and_kept_ones_scaled():
    x = jnp.ones((4000, 2, 3))
    found = np.asarray(drop_rows(x, jnp.float32(0.3), jax.random.key(0)))
    assert (found == found[:, :1, :1]).all()  # a row as a whole
    np.testing.assert_allclose(np.unique(found), [0, 1 / 0.7], rtol=1e-6)
    assert abs(found.mean() - 1) < 4 * np.sqrt(0.3 / 0.7 / 4000)


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("scan_layers", [False, True])
def test_the_rate_rises_from_none_in_the_first_block_and_only_in_training(scan_layers):
    size, numbers = Size(16, 3, 2), {"dtype": jnp.float32, "param_dtype": jnp.float32}
    make = functools.partial(
        Stack, size, None, dropout=0.0, attention="xla", remat="none", scan_layers=scan_layers,
        **numbers,
    )  # fmt: skip
    stack = randomized(functools.partial(make, block=BlockOptions(drop_path=0.8)))
    plain = nnx.merge(nnx.graphdef(make(rngs=nnx.Rngs(0))), params_of(stack))
    # Many rows that are equal, so that a row that changes has dropped a branch.
    x = jnp.broadcast_to(jnp.asarray(images(16, 16, 1))[0, :5, :, 0][None], (600, 5, 16))
    still = stack(x, layers=(1, 2))
    assert_close(still, plain(x, layers=(1, 2)), 0.0)
    found = stack(x, key=jax.random.key(0), layers=(1, 2))
    assert_close(found.layers[1], still.layers[1], 1e-6)
    first = np.asarray(found.layers[1])
    idle = [np.abs(np.asarray(found.layers[2]) - first).max(axis=(1, 2)) == 0]
    idle.append(np.abs(np.asarray(found.x - found.layers[2])).max(axis=(1, 2)) == 0)
    for rows, rate in zip(idle, (0.4, 0.8), strict=True):  # both branches are dropped
        assert abs(rows.mean() - rate**2) < 4 * np.sqrt(rate**2 * (1 - rate**2) / 600)


def test_wrong_rates_are_refused():
    with pytest.raises(InputError, match=r"drop_path 1.0; expected at least 0 and below 1"):
        vit(block={"drop_path": 1.0})
