"""Poolers: the regions of an image become one vector, alone and in the encoders."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec
from scipy.special import erf

from mmrl import config as configs
from mmrl.devices import sharding
from mmrl.models.image.resnet import Resnet
from mmrl.models.image.vit import Vit
from mmrl.models.layers import LOGICAL_AXES
from mmrl.models.pool import base as pools
from mmrl.models.pool.attention import Attention
from mmrl.models.pool.mean import Mean
from mmrl.models.pool.zones import overlaps
from mmrl.training import learner, optim
from mmrl.types import InputError
from tests import references, toys
from tests.arrays import assert_close, randomized

PRECISION = {"dtype": jnp.float32, "param_dtype": jnp.float32}
NAMES = ("attention", "gated_attention", "mean", "zones")


@pytest.fixture(autouse=True)
def strict_shapes():
    with jax.numpy_rank_promotion("raise"):
        yield


def make(pool: Any, grid: tuple[int, int] = (4, 4), width: int = 6, **options: Any) -> Any:
    """A pooler with random parameters."""
    given = {"width": width, "grid": grid, **PRECISION, **options}
    return randomized(functools.partial(pools.make, pool, **given))


def regions_of(grid: tuple[int, int], width: int = 6, size: int = 3, seed: int = 0) -> np.ndarray:
    shape = (size, grid[0] * grid[1], width)
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# --- zones


def by_upsampling(regions: np.ndarray, grid: tuple[int, int], size: int) -> np.ndarray:
    """Means of zones in float64, after every region is repeated until zones divide the grid."""
    x = regions.astype(np.float64).reshape(len(regions), *grid, -1)
    x = x.repeat(size, axis=1).repeat(size, axis=2)
    rows, columns = grid  # now of cells in a zone, down and across
    found = [
        x[:, rows * y : rows * (y + 1), columns * z : columns * (z + 1)].mean(axis=(1, 2))
        for y in range(size)
        for z in range(size)
    ]
    return np.concatenate(found, axis=1)


@pytest.mark.parametrize("zones", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("regions", [7, 8, 14])
def test_weights_of_a_zone_are_shares_of_its_length(zones, regions):
    found = overlaps(zones, regions)
    assert found.shape == (zones, regions) and found.dtype == np.float32
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-6)
    # A region is divided among the zones, all of it and nothing else.
    np.testing.assert_allclose(found.sum(axis=0), zones / regions, rtol=1e-5)
    if regions % zones == 0:
        expected = np.kron(np.eye(zones), np.full(regions // zones, zones / regions))
        np.testing.assert_allclose(found, expected, atol=1e-7)


@pytest.mark.parametrize(
    ("grid", "size"), [((4, 4), 2), ((8, 4), 4), ((14, 14), 4), ((7, 7), 4), ((7, 14), 3)]
)
def test_zones_are_the_means_of_equal_parts_of_the_image(grid, size):
    regions = regions_of(grid)
    pooler = make({"name": "zones", "size": size}, grid)
    found = jax.jit(pooler)(regions)
    assert found.shape == (3, pooler.width) == (3, 6 * size**2) and found.dtype == jnp.float32
    assert_close(found, by_upsampling(regions, grid, size), 1e-6)


def test_zones_that_divide_the_grid_are_exact_means_in_row_major_order():
    regions = np.arange(16, dtype=np.float32).reshape(1, 16, 1)
    found = make({"name": "zones", "size": 2}, width=1)(regions)
    np.testing.assert_array_equal(found, [[2.5, 4.5, 10.5, 12.5]])
    every = make("zones", width=1)  # 4 x 4 of 4 x 4
    np.testing.assert_array_equal(every(regions), regions[..., 0])


def test_one_zone_is_the_mean():
    regions = regions_of((7, 5))
    one, mean = make({"name": "zones", "size": 1}, (7, 5)), make("mean", (7, 5))
    assert one.width == mean.width == 6
    assert_close(one(regions), mean(regions), 1e-6)
    assert_close(mean(regions), regions.astype(np.float64).mean(axis=1), 1e-6)


def test_the_mean_forgets_the_side_and_zones_keep_it():
    """The same features, planted left in half of the images and right in the others."""
    rng = np.random.default_rng(0)
    grid, finding = (4, 4), rng.normal(size=6)
    x = np.broadcast_to(rng.normal(size=6), (20, *grid, 6)).copy()
    rows, right = rng.integers(0, 4, 20), np.arange(20) % 2 == 1
    x[np.arange(20), rows, np.where(right, 3, 0)] += finding
    regions = x.reshape(20, 16, 6).astype(np.float32)
    mean = np.asarray(make("mean", grid)(regions))
    np.testing.assert_allclose(mean, np.broadcast_to(mean[:1], mean.shape), atol=1e-6)
    zones = np.asarray(make({"name": "zones", "size": 2}, grid)(regions)).reshape(20, 2, 2, 6)
    side = (zones[:, :, 1] - zones[:, :, 0]).sum(axis=1) @ finding
    assert (side[right] > 0.1).all() and (side[~right] < -0.1).all()


# --- attention


def gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + erf(x / np.sqrt(2)))


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def by_hand(
    pooler: Attention, regions: np.ndarray, epsilon: float = 1e-6, activation: Any = gelu
) -> np.ndarray:
    """The formulas in float64, one image, one query and one head at a time."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), nnx.to_pure_dict(nnx.state(pooler)))

    def linear(name: str, x: np.ndarray, within: dict[str, Any] = params) -> np.ndarray:
        return x @ within[name]["kernel"] + within[name]["bias"]

    heads, width = pooler.num_heads, regions.shape[2]
    part = width // heads
    found = []
    for image in regions.astype(np.float64):
        keys, values = linear("key", image), linear("value", image)
        of_image = []
        for query in linear("query", params["queries"]):
            attended = []
            for head in range(heads):
                own = slice(head * part, (head + 1) * part)
                weights = references.softmax(keys[:, own] @ query[own] / np.sqrt(part), axis=0)
                attended.append(weights @ values[:, own])
            x = linear("out", np.concatenate(attended))
            normal = (x - x.mean()) / np.sqrt(x.var() + epsilon)
            normal = normal * params["norm"]["scale"] + params["norm"]["bias"]
            wide = activation(linear("wide", normal, params["mlp"]))
            of_image.append(x + linear("out", wide, params["mlp"]))
        found.append(np.concatenate(of_image))
    return np.array(found)


@pytest.mark.default_cases(1)
@pytest.mark.parametrize(
    ("options", "heads"),
    [({}, 1), ({"queries": 3, "num_heads": 2}, 2), ({"num_heads": 3, "mlp_dim": 5}, 3)],
)
def test_attention_equals_the_formulas(options, heads):
    pooler = make({"name": "attention", **options})
    assert pooler.num_heads == heads and pooler.width == 6 * options.get("queries", 1)
    assert pooler.mlp.wide.kernel.shape == (6, options.get("mlp_dim", 24))
    regions = regions_of((4, 4))
    found = jax.jit(pooler)(regions)
    assert found.shape == (3, pooler.width) and found.dtype == jnp.float32
    assert_close(found, by_hand(pooler, regions))


def test_attention_takes_the_epsilon_and_activation_of_siglip():
    pooler = make({"name": "attention", "epsilon": 0.1, "activation": "gelu_tanh"})
    found = jax.jit(pooler)(regions_of((4, 4)))
    assert_close(found, by_hand(pooler, regions_of((4, 4)), 0.1, gelu_tanh), 2e-6)
    exact = by_hand(pooler, regions_of((4, 4)), 0.1)
    assert np.abs(found - exact).max() > 1e-5 * np.abs(exact).max()


@pytest.mark.parametrize(("width", "heads"), [(32, 1), (128, 2), (192, 3), (160, 2), (67, 1)])
def test_attention_has_a_head_for_every_64_features(width, heads):
    given = {"width": width, "grid": (2, 2), **PRECISION}
    pooler = nnx.eval_shape(lambda: Attention(**given, rngs=nnx.Rngs(0)))
    assert pooler.num_heads == heads


def test_attention_does_not_depend_on_the_order_of_regions_and_follows_their_content():
    pooler, regions = jax.jit(make("attention")), regions_of((4, 4))
    order, plain = np.random.default_rng(1).permutation(16), pooler(regions)
    assert_close(pooler(regions[:, order]), plain)
    changed = regions.copy()
    changed[0, 3] += 1
    moved = pooler(changed)
    assert np.abs(moved[0] - plain[0]).max() > 1e-3
    np.testing.assert_array_equal(moved[1:], plain[1:])


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("name", NAMES)
def test_the_result_keeps_the_dtype_of_the_regions(name):
    wide, narrow = jax.jit(make(name)), jax.jit(make(name, dtype=jnp.bfloat16))
    regions = regions_of((4, 4))
    found = narrow(jnp.asarray(regions, jnp.bfloat16))
    assert found.dtype == jnp.bfloat16
    assert_close(found.astype(jnp.float32), wide(regions), 0.03)


@pytest.mark.parametrize("name", NAMES)
def test_axes_of_parameters_have_names_but_for_numbers_of_queries_heads_and_branches(name):
    params = nnx.state(make({"name": name}), nnx.Param)
    specs = nnx.to_pure_dict(nnx.get_partition_spec(params))
    named = jax.tree.leaves_with_path(specs, is_leaf=lambda x: isinstance(x, PartitionSpec))
    assert bool(named) == (name in ("attention", "gated_attention"))
    for (path, spec), leaf in zip(named, jax.tree.leaves(params), strict=True):
        counts = path[-1].key == "queries" or path[0].key in ("content", "gate", "score")
        assert len(spec) == leaf.ndim and (spec[0] is None) == counts
        assert set(spec) - {None} <= set(LOGICAL_AXES)
        assert path[0].key == "score" or None not in spec[1:]


def test_learned_queries_do_not_decay():
    params = {"pool": nnx.to_pure_dict(nnx.state(make("attention")))}
    rules = configs.base().optimizer.rules
    factor = jax.tree.map(
        lambda n: rules[n].get("weight_decay", 1.0), optim.assign_rules(params, rules)
    )["pool"]
    assert factor["queries"] == factor["out"]["bias"] == factor["norm"]["scale"] == 0.0
    assert factor["out"]["kernel"] == factor["query"]["kernel"] == 1.0


# --- the option


def test_a_pooler_is_named_by_a_string_or_a_mapping():
    assert isinstance(make("mean"), Mean) and isinstance(make({"name": "mean"}), Mean)
    assert make("zones").size == 4 and make({"name": "zones", "size": 3}).size == 3
    of_config = ml_collections.ConfigDict({"name": "zones", "size": 2})
    assert make(of_config).size == 2 and of_config.name == "zones"


@pytest.mark.parametrize(
    ("pool", "message"),
    [
        ("max", "unknown pooler 'max'; choices: attention, gated_attention, mean, zones"),
        ("cls", "unknown pooler 'cls'; choices: attention, gated_attention, mean, zones"),
        ({"name": "zone"}, r"unknown pooler 'zone' \(did you mean 'zones'\?\); choices: attention"),
        (
            {"size": 2},
            "pool={'size': 2} has no name; choices: attention, gated_attention, mean, zones",
        ),
        (
            {"name": "zones", "sise": 2},
            r"unknown option of the pooler zones 'sise' \(did you mean 'size'\?\); choices: size$",
        ),
        ({"name": "mean", "size": 2}, "unknown option of the pooler mean 'size'; choices: none"),
        (
            {"name": "attention", "width": 2},
            "unknown option of the pooler attention 'width'; choices: queries, num_heads, mlp_dim",
        ),
        ({"name": "zones", "size": 0}, "zones: size 0 with 4 x 5 regions; expected 1 to 4"),
        ({"name": "zones", "size": 5}, "zones: size 5 with 4 x 5 regions; expected 1 to 4"),
        ({"name": "attention", "queries": 0}, "queries 0, num_heads 0, width 6; expected at"),
        ({"name": "attention", "num_heads": 4}, "num_heads 4, width 6; expected at least one"),
        ({"name": "attention", "activation": "tanh"}, "unknown activation 'tanh'; choices: gelu, "),
        ({"name": "attention", "num_heads": -1}, "num_heads -1, width 6; expected at least one"),
    ],
)
def test_wrong_poolers_are_refused_with_the_choices(pool, message):
    with pytest.raises(InputError, match=message) as error:
        pools.make(pool, width=6, grid=(4, 5), rngs=nnx.Rngs(0), **PRECISION)
    assert "\n" not in str(error.value).partition("\n---")[0]


# --- in the encoders

SIZE = {"image_size": 24, "patch_size": 6, "width": 8, "depth": 1, "num_heads": 2}


def images(size: int = 24) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(2, size, size, 1)).astype(np.float32)


def vit(**options: Any) -> Vit:
    return randomized(functools.partial(Vit, **(SIZE | options)))


@pytest.mark.default_cases(1)
@pytest.mark.parametrize(
    ("pool", "width"),
    [("mean", 8), ("zones", 128), ({"name": "zones", "size": 2}, 32), ("attention", 8)],
)
def test_vit_pools_the_patches_after_the_final_norm(pool, width):
    model = vit(pool=pool)
    found = jax.jit(model)(images())
    assert model.width == width and model.local_width == 8 and model.grid == (4, 4)
    assert found.pooled.shape == (2, width) and found.local.shape == (2, 16, 8)
    assert_close(found.pooled, model.pool(found.local))
    assert not model.has_cls


def test_the_class_token_of_a_vit_is_no_pooler():
    """It has the parameters and the results that it had before there were poolers."""
    model, other = vit(pool="cls"), vit(pool={"name": "cls"})
    assert model.width == 8 and not hasattr(model, "pool")
    params = nnx.to_pure_dict(nnx.state(model))
    assert set(params) == {"cls", "norm", "patch", "position", "stack"}
    found = jax.jit(model)(images())
    assert_close(jax.jit(other)(images()), found, 0.0)
    assert found.local.shape == (2, 16, 8)
    # Without what attention and MLP add, it is the normalised token, whatever the image.
    for layer in (model.stack.block_00.attention.out, model.stack.block_00.mlp.out):
        layer.kernel[...] = jnp.zeros_like(layer.kernel[...])
        layer.bias[...] = jnp.zeros_like(layer.bias[...])
    expected = np.broadcast_to(model.norm(model.cls[...]), (2, 8))
    assert_close(jax.jit(lambda x: model(x).pooled)(images()), expected, 1e-6)


def test_wrong_pools_of_a_vit_list_cls_too():
    for pool, message in (
        ("max", "unknown pooler 'max'; choices: cls, attention, gated_attention, mean, zones"),
        ({"size": 2}, "has no name; choices: cls, attention, gated_attention, mean, zones"),
        ({"name": "cls", "size": 2}, "unknown option of the pooler cls 'size'; choices: none"),
        ({"name": "zones", "size": 5}, "zones: size 5 with 4 x 4 regions; expected 1 to 4"),
    ):
        with pytest.raises(InputError, match=message):
            vit(pool=pool)


@pytest.mark.default_cases(1)
@pytest.mark.parametrize(
    ("pool", "factor"), [("mean", 1), ({"name": "zones", "size": 2}, 4), ("attention", 1)]
)
def test_resnet_pools_its_last_stage_whatever_its_regions(pool, factor):
    options = {"image_size": 32, "depth": 18, "width": 4, "small_stem": True, "pool": pool}
    last, third = (
        randomized(functools.partial(Resnet, **options, region_stage=stage), 0.3)
        for stage in (4, 3)
    )
    assert last.width == third.width == 32 * factor
    assert (last.grid, third.grid) == ((4, 4), (8, 8))
    found, other = jax.jit(last)(images(32)), jax.jit(third)(images(32))
    assert found.pooled.shape == (2, 32 * factor)
    assert_close(found.pooled, last.pool(found.local))
    assert_close(other.pooled, found.pooled)
    assert other.local.shape == (2, 64, 16)


def test_resnet_zones_must_fit_the_grid_of_the_last_stage():
    options = {"image_size": 64, "depth": 18, "width": 4, "region_stage": 1}
    with pytest.raises(InputError, match="zones: size 4 with 2 x 2 regions; expected 1 to 2"):
        nnx.eval_shape(lambda: Resnet(**options, pool="zones", rngs=nnx.Rngs(0)))
    with pytest.raises(
        InputError, match="unknown pooler 'cls'; choices: attention, gated_attention, mean, zones"
    ):
        nnx.eval_shape(lambda: Resnet(**options, pool="cls", rngs=nnx.Rngs(0)))


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("pool", [{"name": "zones", "size": 2}, "attention"])
def test_every_mesh_pools_the_same(pool):
    model = vit(pool=pool)
    pixels = np.random.default_rng(2).normal(size=(8, 24, 24, 1)).astype(np.float32)
    graphdef, params = nnx.split(model)

    @jax.jit
    def both(params: Any, pixels: Any) -> Any:
        def loss(params: Any) -> Any:
            pooled = nnx.merge(graphdef, params)(pixels).pooled
            return jnp.sum(jnp.sin(pooled)), pooled

        return jax.grad(loss, has_aux=True)(params)

    pure = nnx.to_pure_dict(params)
    expected = both(pure, pixels)
    mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    placed = jax.device_put(pure, sharding.variable_shardings(params, mesh))
    rows = jax.device_put(pixels, sharding.batch_sharding(mesh))
    assert_close(both(placed, rows), expected, floor=1.0)


@pytest.mark.parametrize(
    ("pool", "width"), [("zones", 16 * 128), ({"name": "zones", "size": 2}, 4 * 128)]
)
def test_a_config_chooses_the_pooler_and_heads_follow_its_width(pool, width):
    chosen = toys.config()
    chosen.towers.image.update({"patch_size": 8, "size": 32, "width": 128, "pool": pool})
    configs.validate(chosen)
    params = learner.layout(chosen, toys.one_device()).params
    heads = params["towers"]["image"]["heads"]
    assert heads["embedding"]["out"]["kernel"].shape[0] == width
    assert heads["regions"]["out"]["kernel"].shape[0] == 128
