"""Residual network: published sizes, region grids, and batch norm."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from mmrl.models.image.resnet import ResidualBlock, Resnet, make_norm
from mmrl.models.layers import LOGICAL_AXES
from mmrl.types import InputError
from tests.arrays import assert_close, randomized

make_small = functools.partial(Resnet, image_size=16, depth=18, width=4, small_stem=True)


@pytest.fixture(autouse=True)
def strict_shapes():
    with jax.numpy_rank_promotion("raise"):
        yield


def abstract(**options: Any) -> Resnet:
    """The module with shapes instead of arrays."""
    return nnx.eval_shape(lambda: Resnet(**options, rngs=nnx.Rngs(0)))


def images(size: int = 16) -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).normal(1.0, 2.0, (4, size, size, 1)), jnp.float32)


@pytest.mark.default_cases(1)
@pytest.mark.parametrize(
    ("depth", "published"),  # torchvision's totals less the classifier of 1000 classes
    [(18, 11_689_512 - 513_000), (34, 21_797_672 - 513_000), (50, 25_557_032 - 2_049_000)],
)
def test_parameter_counts_are_the_published_ones(depth, published):
    params = nnx.state(abstract(image_size=224, depth=depth, channels=3), nnx.Param)
    assert sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params)) == published


@pytest.mark.default_cases(2)
@pytest.mark.parametrize(
    ("options", "grid", "local_width", "width"),
    [
        ({"image_size": 224, "depth": 50}, (7, 7), 2048, 2048),
        ({"image_size": 224, "depth": 50, "region_stage": 3}, (14, 14), 1024, 2048),
        ({"image_size": 224, "depth": 18, "region_stage": 1}, (56, 56), 64, 512),
        ({"image_size": 75, "depth": 34, "region_stage": 2}, (10, 10), 128, 512),
        ({"image_size": 33, "depth": 18, "small_stem": True}, (5, 5), 512, 512),
        ({"image_size": 32, "depth": 18, "small_stem": True, "region_stage": 1}, (32, 32), 64, 512),
    ],
)
def test_announced_shapes_are_the_real_ones(options, grid, local_width, width):
    model = abstract(**options)
    assert (model.grid, model.local_width, model.width) == (grid, local_width, width)
    graphdef, state = nnx.split(model)
    image = jax.ShapeDtypeStruct((2, options["image_size"], options["image_size"], 1), jnp.uint8)
    features = jax.eval_shape(lambda s, x: nnx.merge(graphdef, s)(x), state, image)
    assert features.pooled.shape == (2, width)
    assert features.local.shape == (2, grid[0] * grid[1], local_width)
    assert features.mask is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 101}, "Resnet: unknown depth 101; choices: 18, 34, 50"),
        ({"norm": "layer"}, "Resnet: unknown norm 'layer'; choices: batch, group"),
        ({"region_stage": 5}, "Resnet: unknown region_stage 5; choices: 1, 2, 3, 4"),
        ({"width": 0}, "Resnet: image_size 16, width 0; expected 1 or more"),
    ],
)
def test_wrong_options_name_the_choices(options, message):
    with pytest.raises(InputError, match=message):
        make_small(**options, rngs=nnx.Rngs(0))


def test_refuses_another_image_size():
    with pytest.raises(ValueError, match=r"\(4, 12, 12, 1\); expected .* 16 or multiples of 8"):
        randomized(make_small, 0.3)(images(12))


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("depth", [18, 50])
def test_only_the_spatial_axes_of_kernels_are_unnamed(depth, norm):
    params = nnx.state(abstract(image_size=32, depth=depth, norm=norm), nnx.Param)
    specs = nnx.to_pure_dict(nnx.get_partition_spec(params))
    named = jax.tree.leaves_with_path(specs, is_leaf=lambda x: isinstance(x, PartitionSpec))
    for (path, spec), leaf in zip(named, jax.tree.leaves(params), strict=True):
        assert len(spec) == leaf.ndim, path
        assert all(entry.key and isinstance(entry.key, str) for entry in path)
        spatial = 2 if path[-1].key == "kernel" else 0
        assert tuple(spec[:spatial]) == (None,) * spatial, path
        assert set(spec[spatial:]) <= set(LOGICAL_AXES), path


def test_batch_statistics_are_state_and_not_parameters():
    _, params, stats, rest = nnx.split(
        abstract(image_size=32, depth=18), nnx.Param, nnx.BatchStat, ...
    )
    names = {path[-1] for path, _ in nnx.to_flat_state(params)}
    assert names == {"kernel", "scale", "bias"}
    assert {path[-1] for path, _ in nnx.to_flat_state(stats)} == {"mean", "var"}
    assert not nnx.to_pure_dict(rest)
    group = abstract(image_size=32, depth=18, norm="group")
    assert not nnx.to_pure_dict(nnx.state(group, nnx.BatchStat))


@functools.cache
def trained_once() -> tuple[Resnet, Any, Any]:
    """A small model after one training call, the features of that call, and those before it."""
    graphdef, state = nnx.split(randomized(make_small, 0.3))

    @functools.partial(jax.jit, static_argnames="train")
    def call(state: Any, image: jax.Array, train: bool) -> Any:
        model = nnx.merge(graphdef, state)
        return model(image, train=train), nnx.to_pure_dict(nnx.state(model))

    pure = nnx.to_pure_dict(state)
    before, unchanged = call(pure, images(), train=False)
    for new, old in zip(jax.tree.leaves(unchanged), jax.tree.leaves(pure), strict=True):
        np.testing.assert_array_equal(new, old)  # evaluation records nothing
    features, after = call(pure, images(), train=True)
    return nnx.merge(graphdef, after), features, before


@pytest.mark.exhaustive
def test_training_normalises_by_the_batch_and_evaluation_does_not():
    _, trained, evaluated = trained_once()
    assert np.abs(trained.pooled - evaluated.pooled).max() > 0.1


def test_training_moves_the_running_statistics_by_a_tenth():
    model, _, _ = trained_once()
    stem = model.stem(images())
    mean, var = stem.mean(axis=(0, 1, 2)), stem.var(axis=(0, 1, 2))
    np.testing.assert_allclose(model.stem_norm.mean[...], 0.1 * mean, atol=1e-5)
    np.testing.assert_allclose(model.stem_norm.var[...], 0.9 + 0.1 * var, rtol=1e-5)


def test_absent_rows_change_neither_the_others_nor_the_running_statistics():
    """Those of the batch without them; nothing but noise is there, and no row at all."""
    graphdef, state = nnx.split(randomized(make_small, 0.3))
    pure = nnx.to_pure_dict(state)

    @jax.jit
    def call(image: jax.Array, present: jax.Array | None) -> Any:
        model = nnx.merge(graphdef, pure)
        features = model(image, train=True, present=present)
        return features, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))

    present = jnp.asarray([True, False, True, False])
    noise = jnp.where(present[:, None, None, None], images(), -7.0 * images()[::-1])
    features, stats = call(noise, present)
    expected, moved = call(images()[::2], None)
    np.testing.assert_allclose(features.pooled[::2], expected.pooled, atol=1e-5)
    np.testing.assert_allclose(features.local[::2], expected.local, atol=1e-5)
    assert_close(stats, moved, 1e-5, floor=1.0)
    assert_close(call(noise, jnp.ones(4, bool)), call(noise, None), 1e-6, floor=1.0)
    nothing, same = call(jnp.zeros_like(noise), jnp.zeros(4, bool))
    assert np.isfinite(nothing.pooled).all()
    assert_close(same, nnx.to_pure_dict(nnx.state(nnx.merge(graphdef, pure), nnx.BatchStat)), 0.0)


def test_evaluation_does_not_see_the_rest_of_the_batch():
    model, _, _ = trained_once()
    call = jax.jit(lambda image: model(image).pooled)
    alone = jnp.tile(images()[:1], (4, 1, 1, 1))
    np.testing.assert_allclose(call(alone)[0], call(images())[0], atol=1e-5)


def test_group_norm_never_sees_the_rest_of_the_batch():
    norm = make_norm(48, kind="group", param_dtype=jnp.float32, rngs=nnx.Rngs(0))
    assert norm.num_groups == 16  # gcd(32, 48)
    x = jnp.asarray(np.random.default_rng(0).normal(3.0, 2.0, (2, 3, 3, 48)), jnp.float32)
    y = np.array(norm(x))
    np.testing.assert_allclose(y[:1], norm(x[:1]), atol=1e-6)
    grouped = y.reshape(2, 9, 16, 3)
    np.testing.assert_allclose(grouped.mean(axis=(1, 3)), 0.0, atol=1e-5)
    np.testing.assert_allclose(grouped.std(axis=(1, 3)), 1.0, atol=1e-3)


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("bottleneck", [False, True])
def test_a_new_block_is_its_shortcut(bottleneck):
    features = 2 if bottleneck else 8
    block = ResidualBlock(
        8, features, 1, bottleneck=bottleneck, norm="batch", dtype=jnp.float32,
        param_dtype=jnp.float32, rngs=nnx.Rngs(0),
    )  # fmt: skip
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 4, 8)), jnp.float32)
    np.testing.assert_array_equal(block(x, train=True), jax.nn.relu(x))


def test_bottleneck_strides_in_its_middle_convolution():
    block = nnx.eval_shape(
        lambda: ResidualBlock(
            8, 4, 2, bottleneck=True, norm="batch", dtype=jnp.float32, param_dtype=jnp.float32,
            rngs=nnx.Rngs(0),
        )
    )  # fmt: skip
    convs = (block.conv_0, block.conv_1, block.conv_2, block.shortcut)
    assert [conv.strides for conv in convs] == [(1, 1), (2, 2), (1, 1), (2, 2)]
    assert [conv.kernel.shape for conv in convs] == [
        (1, 1, 8, 4),
        (3, 3, 4, 4),
        (1, 1, 4, 16),
        (1, 1, 8, 16),
    ]


def test_bfloat16_features_follow_float32():
    _, _, before = trained_once()
    half = nnx.merge(
        nnx.graphdef(nnx.eval_shape(lambda: make_small(dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))),
        nnx.to_pure_dict(nnx.state(randomized(make_small, 0.3))),
    )
    low = jax.jit(lambda image: half(image))(images())
    assert low.pooled.dtype == low.local.dtype == jnp.bfloat16
    error = np.abs(np.array(low.pooled, np.float32) - before.pooled).max()
    assert error < 0.05 * np.abs(before.pooled).max()
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(nnx.state(half)))
