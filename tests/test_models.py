"""Transformer encoders: properties that hold for all weights."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from mmrl.models.image.vit import Vit, sincos2d_positions
from mmrl.models.layers import LOGICAL_AXES, Size
from mmrl.models.stack import Stack
from mmrl.models.text.transformer import Transformer
from mmrl.types import InputError
from tests.arrays import assert_close, randomized

# Images of 9 patches and texts of 9 tokens share shapes, which keeps compilation short.
SIZE = {"width": 16, "depth": 2, "num_heads": 2}
make_vit = functools.partial(Vit, image_size=24, patch_size=8, **SIZE)
make_text = functools.partial(Transformer, vocab_size=20, length=9, **SIZE)


@pytest.fixture(autouse=True)
def strict_shapes():
    with jax.numpy_rank_promotion("raise"):
        yield


def vit(**options: Any) -> Vit:
    return randomized(functools.partial(make_vit, **options))


def text(**options: Any) -> Transformer:
    return randomized(functools.partial(make_text, **options))


def images() -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).normal(size=(2, 24, 24, 1)), jnp.float32)


def texts(length: int = 9) -> tuple[np.ndarray, np.ndarray]:
    """Two reports of 7 and 5 tokens, bos first and eos last, padded to `length`."""
    tokens = np.zeros((2, length), np.int32)
    tokens[0, :7] = (2, 4, 5, 6, 7, 8, 3)
    tokens[1, :5] = (2, 10, 11, 12, 3)
    return tokens, tokens > 0


def params_of(module: nnx.Module) -> dict[str, Any]:
    return nnx.to_pure_dict(nnx.state(module, nnx.Param))


def count(make: Any) -> int:
    """Number of parameters of the module that `make` builds, without allocating it."""
    shapes = params_of(nnx.eval_shape(make))
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes))


def scanned_from(params: dict[str, Any], scanned: nnx.Module) -> Any:
    """`scanned` with the parameters of the equal model whose stack has one module per block."""
    blocks = [params["stack"][name] for name in sorted(params["stack"])]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)
    return nnx.merge(nnx.graphdef(scanned), params | {"stack": {"blocks": stacked}})


def gradient(model: nnx.Module, *inputs: Any, **options: Any) -> dict[str, Any]:
    """d(sum of squares of all features) / d(parameters)."""
    graphdef, params = nnx.split(model)

    def loss(params: Any) -> jax.Array:
        features = nnx.merge(graphdef, params)(*inputs, **options)
        return jnp.sum(features.pooled**2) + jnp.sum(features.local**2)

    return jax.jit(jax.grad(loss))(nnx.to_pure_dict(params))


def run(model: nnx.Module, *inputs: Any) -> Any:
    """model(*inputs), jitted."""
    return jax.jit(lambda *inputs: model(*inputs))(*inputs)


def transformer_count(size: Size, *, inputs: int, positions: int, cls: bool) -> int:
    """Number of parameters from the architecture; all linear layers have a bias."""
    d = size.width
    attention = d * 3 * d + 3 * d + d * d + d
    mlp = d * 4 * d + 4 * d + 4 * d * d + d
    norm = 2 * d
    block = attention + mlp + 2 * norm
    return inputs * d + d + positions * d + cls * d + size.depth * block + norm


def test_vit_parameter_count_equals_the_closed_form():
    small = count(lambda: Vit(image_size=224, variant="S", scan_layers=True, rngs=nnx.Rngs(0)))
    assert small == transformer_count(Size(384, 12, 6), inputs=256, positions=196, cls=False)


def test_vit_tiny_has_the_published_number_of_parameters():
    options = {"image_size": 224, "variant": "Ti", "channels": 3, "pool": "cls"}
    tiny = count(lambda: Vit(**options, scan_layers=True, rngs=nnx.Rngs(0)))
    # 5 717 416 (DeiT-Ti) less its classifier of 192 * 1000 + 1000, and less the position of the
    # class token, which is redundant beside the token's own free value.
    assert tiny == 5_717_416 - 193_000 - 192


def test_text_parameter_count_equals_the_closed_form():
    size = Size(16, 2, 2)
    expected = transformer_count(size, inputs=20, positions=9, cls=False) - 16  # Embed: no bias
    assert count(lambda: make_text(rngs=nnx.Rngs(0))) == expected


def test_explicit_sizes_win_over_the_variant():
    model = nnx.eval_shape(
        lambda: Vit(image_size=32, variant="Ti", width=48, depth=1, rngs=nnx.Rngs(0))
    )
    assert (model.width, model.local_width, model.stack.depth) == (48, 48, 1)
    assert model.stack.block_00.attention.qkv.kernel.shape == (48, 3, 3, 16)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: vit(variant="H"), "Vit: unknown variant 'H'; choices: Ti, S, B, L"),
        (
            lambda: vit(pool="max"),
            "unknown pooler 'max'; choices: cls, attention, gated_attention, mean",
        ),
        (lambda: vit(registers=-1), "Vit: registers -1; expected 0 or more"),
        (lambda: vit(block={"order": "both"}), "block.order='both'; expected one of pre, post"),
        (lambda: vit(block={"rope": 1}), "unknown option in Vit: block 'rope'"),
        (lambda: vit(posemb="rope"), "Vit: unknown posemb 'rope'; choices: learned, sincos2d"),
        (lambda: vit(attention="flash"), "unknown implementation 'flash'; choices: xla, cudnn"),
        (lambda: vit(attention="cudnn"), "'cudnn' with dtype float32; expected bfloat16"),
        (lambda: vit(remat="some"), "unknown remat 'some'; choices: none, full, dots"),
        (lambda: vit(width=15), "Vit: width 15, depth 2, num_heads 2; .* a multiple of num_heads"),
        (lambda: vit(depth=0), "depth 0, num_heads 2; all must be at least 1"),
        (lambda: vit(dropout=1.0), "dropout 1.0; expected at least 0 and below 1"),
        (lambda: vit(image_size=0), "image_size 0; expected a multiple of patch_size 8"),
        (lambda: vit(image_size=20), "image_size 20; expected a multiple of patch_size 8"),
        (lambda: vit(posemb="sincos2d", width=6), "sincos2d with width 6; expected width % 4 = 0"),
        (
            lambda: Vit(image_size=32, width=16, rngs=nnx.Rngs(0)),
            r"Vit: depth, num_heads not given; .* a variant \(Ti, S, B, L\)",
        ),
        (lambda: text(pool="last"), "Transformer: unknown pool 'last'; choices: cls, eos, mean"),
        (lambda: text(word_layers=3), "Transformer: word_layers 3; expected 1 to depth 2"),
    ],
)
def test_wrong_options_name_the_choices(make, message):
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.default_cases(2)
@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        functools.partial(make_vit, pool="cls"),
        functools.partial(make_vit, embedding_norm=True, block={"layer_scale": 0.1}),
        make_text,
    ],
)
def test_every_axis_of_every_parameter_has_a_name(make, scan_layers):
    model = nnx.eval_shape(lambda: make(scan_layers=scan_layers, rngs=nnx.Rngs(0)))
    params = params_of(model)
    specs = nnx.to_pure_dict(nnx.get_partition_spec(nnx.state(model, nnx.Param)))
    named = jax.tree.leaves_with_path(specs, is_leaf=lambda x: isinstance(x, PartitionSpec))
    assert len(named) == len(jax.tree.leaves(params))
    for (path, spec), leaf in zip(named, jax.tree.leaves(params), strict=True):
        assert len(spec) == leaf.ndim, path
        assert set(spec) <= set(LOGICAL_AXES), path
        assert ("layers" in spec) == ("blocks" in jax.tree_util.keystr(path)), path
        assert len(set(spec)) == len(spec), path  # else two axes would claim one mesh axis


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("scan_layers", [False, True])
def test_state_is_a_dict_with_string_keys_and_no_random_state(scan_layers):
    model = text(scan_layers=scan_layers, dropout=0.1)
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    assert not nnx.to_pure_dict(rest)
    pure = nnx.to_pure_dict(params)
    for path, _ in jax.tree.leaves_with_path(pure):
        assert all(isinstance(entry.key, str) for entry in path)
    assert_close(nnx.merge(graphdef, pure)(*texts()), model(*texts()), 1e-6, floor=1.0)


def silence_blocks(model: nnx.Module) -> None:
    """Zeroes the output layers of every block, so that the stack is the identity."""
    for index in range(model.stack.depth):
        block = getattr(model.stack, f"block_{index:02d}")
        for layer in (block.attention.out, block.mlp.out):
            layer.kernel[...] = jnp.zeros_like(layer.kernel[...])


@pytest.mark.default_cases(1)
@pytest.mark.parametrize(("pool", "row", "column"), [("mean", 0, 2), ("mean", 2, 1), ("cls", 1, 0)])
def test_regions_are_the_patches_in_row_major_order(pool, row, column):
    model = vit(pool=pool)
    silence_blocks(model)
    assert model.grid == (3, 3)
    dark = images()
    bright = dark.at[:, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8].add(3.0)
    local = run(model, jnp.concatenate([dark, bright])).local  # the first two rows are dark
    change = np.abs(local[2:] - local[:2]).max(axis=(0, 2))
    assert change.shape == (9,)
    assert np.flatnonzero(change > 1e-6).tolist() == [3 * row + column]


def test_vit_pooling():
    mean, cls = vit(pool="mean")(images()), run(vit(pool="cls"), images())
    np.testing.assert_allclose(mean.pooled, mean.local.mean(axis=1), atol=1e-6)
    assert cls.pooled.shape == (2, 16)
    assert cls.local.shape == mean.local.shape == (2, 9, 16)
    assert np.abs(cls.pooled - cls.local.mean(axis=1)).max() > 1e-2


def output_of(model: Vit, layer: int, image: jax.Array) -> jax.Array:
    """The embedded patches after the first `layer` blocks, which are called one by one."""
    x = model._embed(image)
    for index in range(layer):
        x = getattr(model.stack, f"block_{index:02d}")(x, None, None)
    return x


@pytest.mark.default_cases(2)
@pytest.mark.parametrize("pool", ["mean", "cls"])
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_regions_are_the_output_of_the_layer_that_is_asked_for(layer, pool):
    model = vit(depth=3, pool=pool, region_layer=layer)
    found = run(model, images())
    expected = model.region_norm(output_of(model, layer, images()))[:, int(pool == "cls") :]
    assert found.local.shape == (2, 9, 16)
    np.testing.assert_allclose(found.local, expected, atol=1e-5)
    # What is pooled is that of the whole stack, as without the option.
    params = params_of(model)
    del params["region_norm"]
    plain = nnx.merge(nnx.graphdef(vit(depth=3, pool=pool)), params)
    np.testing.assert_allclose(found.pooled, run(plain, images()).pooled, atol=1e-5)


def normed(x: np.ndarray, params: Any, epsilon: float) -> np.ndarray:
    """Layer norm in float64."""
    centred = x - x.mean(axis=-1, keepdims=True)
    unit = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + epsilon)
    return unit * params["scale"] + params["bias"]


@pytest.mark.default_cases(3)
@pytest.mark.parametrize("region_layer", [None, 1])
@pytest.mark.parametrize("registers", [0, 3])
@pytest.mark.parametrize("pool", ["cls", "mean", {"name": "zones", "size": 3}])
def test_registers_and_the_embedding_norm_are_before_the_first_block(pool, registers, region_layer):
    """Registers are no regions and are not pooled; the epsilon is that of every norm."""
    options = {"registers": registers, "embedding_norm": True, "block": {"epsilon": 0.1}}
    model = vit(pool=pool, region_layer=region_layer, **options)
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params_of(model))
    assert ("registers" in params) == (registers > 0)
    image = np.asarray(images(), np.float64).reshape(2, 3, 8, 3, 8, 1)
    x = image.transpose(0, 1, 3, 2, 4, 5).reshape(2, 9, 64)
    x = x @ params["patch"]["kernel"] + params["patch"]["bias"] + params["position"]
    before = [params["cls"][None]] if pool == "cls" else []
    before += [params["registers"]] if registers else []
    x = np.concatenate([*(np.broadcast_to(t, (2, *t.shape)) for t in before), x], axis=1)
    x = normed(x, params["embedding_norm"], 0.1)
    first, regions = x.shape[1] - 9, None
    for index in range(2):
        if index == region_layer:
            regions = normed(x, params["region_norm"], 0.1)[:, first:]
        block = getattr(model.stack, f"block_{index:02d}")
        x = np.asarray(block(jnp.asarray(x, jnp.float32)), np.float64)
    x = normed(x, params["norm"], 0.1)
    found = run(model, images())
    assert model.first == first
    assert_close(found.local, x[:, first:] if regions is None else regions)
    pooled = {"cls": x[:, 0], "mean": x[:, first:].mean(axis=1)}
    zones = x[:, first:].reshape(2, -1)  # as many as patches
    assert_close(found.pooled, pooled[pool] if isinstance(pool, str) else zones)


def test_the_order_of_registers_does_not_matter_and_their_values_do():
    model = vit(pool="cls", registers=3)
    plain = run(model, images())
    model.registers[...] = model.registers[...][::-1]
    assert_close(run(model, images()), plain, 1e-5)
    model.registers[...] = -model.registers[...]
    assert np.abs(run(model, images()).pooled - plain.pooled).max() > 1e-3


def test_scanned_blocks_with_options_equal_unscanned_ones():
    options = {
        "pool": "cls",
        "registers": 2,
        "embedding_norm": True,
        "block": {"layer_scale": 0.5, "activation": "quick_gelu", "norm": "rms", "gated": True},
    }
    plain = vit(**options)
    shapes = nnx.eval_shape(lambda: make_vit(**options, scan_layers=True, rngs=nnx.Rngs(0)))
    scanned = scanned_from(params_of(plain), shapes)
    assert set(params_of(plain)["norm"]) == {"scale"}
    assert_close(run(scanned, images()), run(plain, images()))
    layers = plain.layers
    assert {"registers", "embedding_norm"} <= set(layers[0]) and len(layers) == 3


def test_the_last_layer_is_that_without_the_option():
    plain, last = vit(), vit(region_layer=2)
    assert not hasattr(last, "region_norm") and last.region_layer is None
    assert_close(params_of(last), params_of(plain), 0.0)
    assert_close(run(last, images()), run(plain, images()), 0.0)
    for layer in (-1, 3):
        with pytest.raises(InputError, match=f"region_layer {layer}; expected 0 to depth 2"):
            vit(region_layer=layer)


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize("layer", [0, 1])
def test_regions_of_a_layer_with_scan_remat_and_dropout(layer):
    """All forms give the same features, and gradients, with the same key of dropout."""
    options = {"region_layer": layer, "dropout": 0.3}

    def features(model: Vit, image: jax.Array) -> Any:
        return model(image, train=True, rngs=nnx.Rngs(5))

    call = jax.jit(features)
    plain = vit(**options)
    expected = call(plain, images())
    scanned = scanned_from(params_of(plain), vit(**options, scan_layers=True))
    assert_close(call(scanned, images()), expected, 1e-5, floor=1.0)
    both = scanned_from(params_of(plain), vit(**options, scan_layers=True, remat="full"))
    assert_close(call(both, images()), expected, 1e-5, floor=1.0)
    assert np.abs(expected.local - run(plain, images()).local).max() > 1e-2
    # A key is that of the whole stack: the pooled features drop what they do without the option.
    params = params_of(plain)
    del params["region_norm"]
    whole = nnx.merge(nnx.graphdef(vit(dropout=0.3)), params)
    np.testing.assert_allclose(call(whole, images()).pooled, expected.pooled, atol=1e-5)
    of_plain = gradient(plain, images())
    assert_close(gradient(vit(**options, remat="full"), images()), of_plain, 1e-5, floor=1.0)
    moved = [np.abs(of_plain["region_norm"]["scale"]).max()]
    moved += [np.abs(leaf).max() for leaf in jax.tree.leaves(of_plain["stack"])]
    assert min(moved) > 0


def test_sincos_positions_are_the_closed_form_and_no_parameters():
    table = sincos2d_positions((2, 3), 8)
    assert table.shape == (6, 8)
    x, y = 2.0, 1.0  # the last patch
    expected = [f(p * w) for p in (x, y) for f in (np.sin, np.cos) for w in (1.0, 0.01)]
    np.testing.assert_allclose(table[5], expected, rtol=1e-6)
    np.testing.assert_array_equal(table[0], [0, 0, 1, 1, 0, 0, 1, 1])
    model = vit(posemb="sincos2d")
    assert "position" not in params_of(model)
    silence_blocks(model)
    local = run(model, jnp.ones((2, 24, 24, 1))).local[0]
    assert np.abs(local[:, None] - local[None] + np.eye(9)[..., None]).max(axis=2).min() > 1e-3


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("pool", ["cls", "eos", "mean"])
def test_padding_changes_nothing(pool):
    model = text(pool=pool, word_layers=2)
    tokens, mask = texts(length=7)
    short = run(model, tokens, mask)
    longer_tokens, longer_mask = texts(length=9)
    garbage = np.where(longer_mask, longer_tokens, np.int32(17))
    garbage[:, -1] = -5  # not even an id
    for padded in (longer_tokens, garbage):
        longer = model(padded, longer_mask)
        np.testing.assert_allclose(longer.pooled, short.pooled, atol=1e-6)
        np.testing.assert_allclose(longer.local[:, :7][mask], short.local[mask], atol=1e-6)
    np.testing.assert_array_equal(longer.mask, longer_mask)


def test_text_pooling():
    tokens, mask = texts()
    cls, eos, mean = (text(pool=pool)(tokens, mask) for pool in ("cls", "eos", "mean"))
    np.testing.assert_array_equal(cls.local, eos.local)
    np.testing.assert_array_equal(cls.pooled, cls.local[:, 0])
    np.testing.assert_array_equal(eos.pooled, eos.local[np.arange(2), [6, 4]])
    for row, length in enumerate((7, 5)):
        np.testing.assert_allclose(
            mean.pooled[row], mean.local[row, :length].mean(axis=0), atol=1e-6
        )


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("pool", ["cls", "eos", "mean"])
def test_a_row_without_tokens_is_finite_and_leaves_the_others_alone(pool):
    model = text(pool=pool, depth=1)
    tokens, mask = texts()
    hidden = np.array(mask)
    hidden[1] = False
    features = model(tokens, hidden)
    assert np.isfinite(features.pooled).all()
    assert np.isfinite(features.local).all()
    np.testing.assert_allclose(features.pooled[0], model(tokens, mask).pooled[0], atol=1e-6)
    for leaf in jax.tree.leaves(gradient(model, tokens, hidden)):
        assert np.isfinite(leaf).all()


def test_wrong_shapes_name_the_right_ones():
    with pytest.raises(ValueError, match=r"\(2, 32, 20, 1\); expected .* multiples of 8"):
        vit()(jnp.zeros((2, 32, 20, 1)))
    with pytest.raises(ValueError, match=r"\(2, 10\), .* expected \[N, L\], L <= 9"):
        text()(*texts(length=10))


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("word_layers", [1, 2])
def test_scanned_equals_unscanned(word_layers):
    options = {"word_layers": word_layers, "dropout": 0.3}
    plain = text(**options)
    scanned = scanned_from(params_of(plain), text(**options, scan_layers=True))
    inputs = texts()
    assert_close(scanned(*inputs), plain(*inputs), 1e-5, floor=1.0)
    # The same key gives the same dropout, so that a run may switch between the two forms.
    a, b = (model(*inputs, train=True, rngs=nnx.Rngs(5)) for model in (scanned, plain))
    assert_close(a, b, 1e-5, floor=1.0)


@pytest.mark.exhaustive
@pytest.mark.slow
def test_rematerialised_and_scanned_stacks_keep_the_gradient():
    make, inputs = functools.partial(text, word_layers=2), texts()
    plain = make()
    expected = gradient(plain, *inputs)
    assert_close(gradient(make(remat="full"), *inputs), expected, 1e-5, floor=1.0)
    stacked = params_of(scanned_from(expected, make(scan_layers=True)))
    for remat in ("full", "dots"):
        model = scanned_from(params_of(plain), make(scan_layers=True, remat=remat))
        assert_close(gradient(model, *inputs), stacked, 1e-5, floor=1.0)
        assert "remat" in str(jax.make_jaxpr(lambda *inputs, m=model: m(*inputs))(*inputs))


PRECISION = {"dtype": jnp.float32, "param_dtype": jnp.float32}


def counting_stack(**options: Any) -> Stack:
    """Two blocks that each add exactly 1 + 1 to every feature."""
    make = functools.partial(Stack, Size(**SIZE), None, attention="xla", remat="none", **PRECISION)
    stack = randomized(functools.partial(make, **options))
    blocks = [stack.blocks] if stack.scan_layers else [stack.block_00, stack.block_01]
    for block in blocks:
        for layer in (block.attention.out, block.mlp.out):
            layer.kernel[...] = jnp.zeros_like(layer.kernel[...])
            layer.bias[...] = jnp.ones_like(layer.bias[...])
    return stack


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("scan_layers", [False, True])
def test_the_stack_sums_its_last_outputs(scan_layers):
    stack = counting_stack(scan_layers=scan_layers, dropout=0.0)
    for last, expected in ((1, 4.0), (2, 2.0 + 4.0)):
        final, summed, _ = stack(jnp.zeros((2, 9, 16)), last=last)
        np.testing.assert_array_equal(final, np.full((2, 9, 16), 4.0))
        np.testing.assert_array_equal(summed, np.full((2, 9, 16), expected))


@pytest.mark.parametrize("scan_layers", [False, True])
def test_every_layer_drops_something_else(scan_layers):
    stack = counting_stack(scan_layers=scan_layers, dropout=0.5)
    final, summed, _ = stack(jnp.zeros((2, 9, 16)), key=jax.random.key(0), last=2)
    first, second = np.array(summed - final), np.array(final - (summed - final))
    for added in (first, second):
        assert set(np.unique(added)) == {0.0, 2.0, 4.0}  # two draws of 0 or 1 / keep rate
        assert abs(added.mean() - 2.0) < 0.4  # deviation of the mean: sqrt(2 / 288) = 0.08
    assert 0.2 < np.mean(first == second) < 0.55  # independent: 1/16 + 1/4 + 1/16 = 0.375


def test_dropout_needs_training_and_a_key():
    model = text(dropout=0.5)
    inputs = texts()
    quiet = model(*inputs)
    assert_close(model(*inputs, rngs=nnx.Rngs(1)), quiet, 0.0, floor=1.0)
    assert_close(model(*inputs, train=True), quiet, 0.0, floor=1.0)
    noisy = [model(*inputs, train=True, rngs=nnx.Rngs(seed)) for seed in (1, 1, 2)]
    assert_close(noisy[0], noisy[1], 0.0, floor=1.0)
    assert np.abs(noisy[0].pooled - quiet.pooled).max() > 1e-2
    assert np.abs(noisy[0].pooled - noisy[2].pooled).max() > 1e-2


def test_new_layers_have_unit_gain_and_differ():
    size, options = Size(64, 2, 2), {"dropout": 0.0, "attention": "xla", "remat": "none"}
    stack = Stack(size, None, scan_layers=True, rngs=nnx.Rngs(0), **options, **PRECISION)
    attention = stack.blocks.attention
    for layer in (attention.qkv, attention.out):
        kernel = np.array(layer.kernel[...])
        np.testing.assert_allclose(kernel.std(axis=tuple(range(1, kernel.ndim))) * 8, 1, atol=0.05)
        assert not layer.bias[...].any()
        assert np.abs(kernel[0] - kernel[1]).mean() > 0.05
