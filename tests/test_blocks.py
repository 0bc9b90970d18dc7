"""Options of transformer blocks and of the text encoder, against references in float64."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from mmrl import config as configs
from mmrl.models.layers import (
    LOGICAL_AXES,
    Block,
    BlockOptions,
    Size,
    rotary_frequencies,
    rotate,
)
from mmrl.models.text.pooling import LatentAttention
from mmrl.models.text.transformer import Transformer, word_mask
from mmrl.models.towers.text import Text
from mmrl.training import initial, optim
from mmrl.types import InputError
from tests import test_packing as packing
from tests.arrays import assert_close, randomized

WIDTH, HEADS, LENGTH, VOCABULARY = 16, 4, 12, 30
SCALING = {
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 3.0,
    "original_max_position": 64,
}
LLAMA = {
    "norm": "rms",
    "epsilon": 1e-2,
    "activation": "silu",
    "gated": True,
    "kv_heads": 2,
    "head_dim": 6,
    "qkv_bias": False,
    "out_bias": False,
    "mlp_bias": False,
    "rope_theta": 50.0,
    "rope_scaling": SCALING,
}
# The options of what the field uses, in the combinations in which it does.
KINDS: dict[str, dict[str, Any]] = {
    "default": {},
    "bert": {
        "block": {"order": "post", "epsilon": 1e-2},
        "embedding_norm": True,
        "final_norm": False,
    },
    "llama": {"block": LLAMA, "causal": True, "positions": "none", "pool": "eos"},
    "clip": {"block": {"activation": "quick_gelu"}, "causal": True, "pool": "eos"},
    "siglip": {"block": {"activation": "gelu_tanh"}, "pool": "mean"},
    "scaled": {"block": {"layer_scale": 0.1, "activation": "silu", "gated": True}},
    "latents": {
        "block": {"activation": "relu", "kv_heads": 1, "rope_theta": 10.0},
        "pool": {"name": "latent_attention", "latents": 5, "num_heads": 2, "head_dim": 3},
        "final_norm": False,
    },
}
SIZES = {
    "vocab_size": VOCABULARY,
    "length": LENGTH,
    "width": WIDTH,
    "depth": 2,
    "num_heads": HEADS,
    "mlp_dim": 24,
}


@pytest.fixture(autouse=True)
def strict_shapes():
    with jax.numpy_rank_promotion("raise"):
        yield


@functools.cache
def encoder(kind: str, **options: Any) -> Transformer:
    """With random parameters, which are the same for every `options` that keep their shapes."""
    given = SIZES | KINDS[kind] | options
    plain = randomized(functools.partial(Transformer, **given | {"scan_layers": False}))
    if not given.get("scan_layers"):
        return plain
    params = pure(plain)
    blocks = [params["stack"][name] for name in sorted(params["stack"])]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)
    shapes = nnx.eval_shape(lambda: Transformer(**given, rngs=nnx.Rngs(0)))
    return nnx.merge(nnx.graphdef(shapes), params | {"stack": {"blocks": stacked}})


def pure(module: nnx.Module) -> dict[str, Any]:
    return nnx.to_pure_dict(nnx.state(module, nnx.Param))


def paths(module: nnx.Module) -> dict[str, tuple[int, ...]]:
    return {path: leaf.shape for path, leaf in initial.by_path(pure(module)).items()}


def texts() -> tuple[np.ndarray, np.ndarray]:
    """i32[B, C, L] and bool[B, C, L]: texts of 1 to L tokens, and garbage behind them."""
    rng = np.random.default_rng(1)
    lengths = rng.integers(1, LENGTH + 1, (2, 3))
    lengths[0, 0], lengths[1, 1] = LENGTH, 1
    tokens = rng.integers(0, VOCABULARY, (2, 3, LENGTH)).astype(np.int32)
    mask = np.arange(LENGTH) < lengths[..., None]
    return np.where(mask, tokens, np.int32(VOCABULARY + 9)), mask


# The reference: one text at a time without its padding, in float64, one head after another.


def linear(x, p):
    kernel = p["kernel"].reshape(x.shape[-1], -1)
    return x @ kernel + p.get("bias", np.zeros(1)).reshape(-1)


def norm(x, p, kind, epsilon):
    if kind == "layer":
        x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * p["scale"] + p.get("bias", 0)


ACTIVATIONS = {
    "gelu": lambda x: x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),
    "gelu_tanh": lambda x: x * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "quick_gelu": lambda x: x / (1 + np.exp(-1.702 * x)),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "relu": lambda x: np.maximum(x, 0),
}


def frequencies_of(block, head_dim):
    """Of Llama 3.1: long waves are stretched, short ones kept, those between interpolated."""
    found, scaling = [], block.rope_scaling
    for i in range(head_dim // 2):
        frequency = block.rope_theta ** (-2 * i / head_dim)
        if scaling:
            length, factor = scaling["original_max_position"], scaling["factor"]
            low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
            wave = 2 * math.pi / frequency
            if wave > length / low:
                frequency /= factor
            elif wave > length / high:
                smooth = (length / wave - low) / (high - low)
                frequency = (1 - smooth) * frequency / factor + smooth * frequency
        found.append(frequency)
    return np.array(found)


def turned(x, block):
    """x [L, head_dim] with features i and i + head_dim / 2 as one complex number."""
    if not block.rope_theta:
        return x
    half = x.shape[1] // 2
    angles = np.arange(len(x))[:, None] * frequencies_of(block, x.shape[1])
    number = (x[:, :half] + 1j * x[:, half:]) * np.exp(1j * angles)
    return np.concatenate([number.real, number.imag], axis=1)


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def attend(x, p, block, causal):
    """The output of attention, and the weights of each head [heads, L, L]."""
    if "qkv" in p:
        q, k, v = linear(x, p["qkv"]).reshape(len(x), 3, HEADS, -1).transpose(1, 2, 0, 3)
    else:
        q = linear(x, p["query"]).reshape(len(x), HEADS, -1).transpose(1, 0, 2)
        k, v = linear(x, p["kv"]).reshape(len(x), 2, block.kv_heads, -1).transpose(1, 2, 0, 3)
    attended, weights = [], []
    for head in range(HEADS):
        shared = head // (HEADS // len(k))
        logits = turned(q[head], block) @ turned(k[shared], block).T / math.sqrt(q.shape[-1])
        logits = np.where(np.tri(len(x)) > 0, logits, -np.inf) if causal else logits
        weights.append(softmax(logits))
        attended.append(weights[-1] @ v[shared])
    return linear(np.concatenate(attended, axis=1), p["out"]), np.stack(weights)


def mlp(x, p, activation, gated):
    hidden, activate = linear(x, p["wide"]), ACTIVATIONS[activation]
    hidden = activate(linear(x, p["gate"])) * hidden if gated else activate(hidden)
    return linear(hidden, p["out"])


def run_block(x, p, block, causal):
    normed = functools.partial(norm, kind=block.norm, epsilon=block.epsilon)
    branches = {
        "attention": lambda x: attend(x, p["attention"], block, causal)[0],
        "mlp": lambda x: mlp(x, p["mlp"], block.activation, block.gated),
    }
    for name, branch in branches.items():
        scale, own = p.get(f"{name}_scale", 1.0), p[f"{name}_norm"]
        if block.order == "pre":
            x = x + scale * branch(normed(x, own))
        else:
            x = normed(x + scale * branch(x), own)
    return x


def latent_attention(x, p, num_heads, epsilon=1e-5):
    normed = functools.partial(norm, kind="layer", epsilon=epsilon)
    query, latents = (
        linear(normed(x, p["norm"]), p["query"]),
        normed(p["latents"], p["latent_norm"]),
    )
    key, value = linear(latents, p["key"]), linear(latents, p["value"])
    attended = [
        softmax(q @ k.T / math.sqrt(q.shape[1])) @ v
        for q, k, v in zip(*(np.split(y, num_heads, 1) for y in (query, key, value)), strict=True)
    ]
    x = x + linear(np.concatenate(attended, axis=1), p["out"])
    return x + mlp(normed(x, p["mlp_norm"]), p["mlp"], "gelu", True)


def run_blocks(p, tokens, kind):
    """tokens i32[V] -> the input of the first block and the output of each, f64[V, width]."""
    options = KINDS[kind]
    block = BlockOptions.of("", options.get("block"))
    x = p["token"]["embedding"][tokens]
    if options.get("positions", "learned") == "learned":
        x = x + p["position"][: len(x)]
    if options.get("embedding_norm"):
        x = norm(x, p["embedding_norm"], block.norm, block.epsilon)
    outputs = [x]
    for name in sorted(p["stack"]):
        outputs.append(run_block(outputs[-1], p["stack"][name], block, options.get("causal")))
    return outputs


def reference(p, tokens, kind, word_layers):
    """tokens i32[V] of one text -> pooled f64[width], words f64[V, width]."""
    options = KINDS[kind]
    block, pool = BlockOptions.of("", options.get("block")), options.get("pool", "cls")
    normed = functools.partial(norm, kind=block.norm, epsilon=block.epsilon)
    outputs = run_blocks(p, tokens, kind)
    last = (lambda x: normed(x, p["norm"])) if options.get("final_norm", True) else (lambda x: x)
    words = last(sum(outputs[-word_layers:]))
    x = last(outputs[-1])
    if isinstance(pool, dict):
        return latent_attention(x, p["pooler"], pool["num_heads"]).mean(0), words
    return {"cls": x[0], "eos": x[-1], "mean": x.mean(0)}[pool], words


@pytest.mark.default_cases(3)
@pytest.mark.parametrize("word_layers", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_encoders_equal_their_reference_padded_and_by_queries(kind, word_layers):
    model = encoder(kind, word_layers=word_layers)
    tokens, mask = texts()
    flat = tokens.reshape(-1, LENGTH), mask.reshape(-1, LENGTH)
    whole = jax.jit(lambda t, m: model(t, m))(*flat)
    pooled, words = jax.jit(lambda t, m: model.candidates(t, m, words=(0, 2)))(tokens, mask)
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), pure(model))
    for row, (text, valid) in enumerate(zip(*flat, strict=True)):
        expected, of_words = reference(p, text[valid], kind, word_layers)
        report, candidate = divmod(row, tokens.shape[1])
        close = {"rtol": 1e-4, "atol": 3e-5}
        np.testing.assert_allclose(whole.pooled[row], expected, **close)
        np.testing.assert_allclose(whole.local[row][valid], of_words, **close)
        np.testing.assert_allclose(pooled[report, candidate], expected, **close)
        if candidate != 1:
            np.testing.assert_allclose(words[report, candidate // 2][valid], of_words, **close)


def attention_reference(p, tokens, kind):
    """tokens i32[V] of one text -> what its pooled token, or the mean, attends to f64[heads, V]."""
    options = KINDS[kind]
    block, pool = BlockOptions.of("", options.get("block")), options.get("pool", "cls")
    x, own = run_blocks(p, tokens, kind)[-2], p["stack"]["block_01"]
    if block.order == "pre":
        x = norm(x, own["attention_norm"], block.norm, block.epsilon)
    _, weights = attend(x, own["attention"], block, options.get("causal"))
    return {"cls": weights[:, 0], "eos": weights[:, -1]}.get(str(pool), weights.mean(1))


@pytest.mark.default_cases(1)
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("bert", {"scan_layers": True}),
        ("llama", {"word_layers": 2}),
        ("siglip", {"remat": "full"}),
        ("latents", {}),
        pytest.param("clip", {"remat": "dots", "scan_layers": True}, marks=pytest.mark.exhaustive),
        pytest.param("default", {"attention": "xla"}, marks=pytest.mark.exhaustive),
    ],
)
def test_layers_and_attention_equal_their_reference(kind, options):
    model = encoder(kind, **options)
    tokens, mask = (x.reshape(-1, LENGTH) for x in texts())
    mask[-1] = False  # a text without tokens
    found = jax.jit(lambda t, m: model(t, m, layers=(2, 1), attention=True))(tokens, mask)
    assert np.isfinite(found.attention).all() and found.attention.dtype == jnp.float32
    np.testing.assert_array_equal(
        np.where(mask[:, None], 0, found.attention), np.zeros_like(found.attention)
    )
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), pure(encoder(kind)))
    for row in range(len(tokens) - 1):
        text, valid = tokens[row][mask[row]], mask[row]
        _, first, second = run_blocks(p, text, kind)
        close = {"rtol": 1e-4, "atol": 3e-5}
        np.testing.assert_allclose(found.layers[row][:, valid], [second, first], **close)
        expected = attention_reference(p, text, kind)
        np.testing.assert_allclose(found.attention[row][:, valid], expected, **close)


def test_layers_that_do_not_exist_are_refused():
    tokens, mask = (x.reshape(-1, LENGTH) for x in texts())
    for layers in ((0,), (3,)):
        with pytest.raises(ValueError, match=r"layers \(\d,\); expected numbers"):
            encoder("default")(tokens, mask, layers=layers)


@pytest.mark.parametrize(
    ("kind", "other"),
    [
        ("bert", {"epsilon": 1e-6}),
        ("bert", {"order": "pre"}),
        ("llama", {"activation": "gelu"}),
        ("llama", {"rope_scaling": None}),
        ("clip", {"activation": "gelu"}),
        ("siglip", {"activation": "gelu"}),
    ],
)
def test_options_change_the_reference_by_more_than_is_tolerated(kind, other, monkeypatch):
    """Else the comparison above would not notice that an option does nothing."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), pure(encoder(kind)))
    tokens = texts()[0][0, 0]
    expected, _ = reference(p, tokens, kind, 1)
    monkeypatch.setitem(KINDS[kind], "block", KINDS[kind]["block"] | other)
    assert np.abs(reference(p, tokens, kind, 1)[0] - expected).max() > 2e-4


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("kind", ["bert", "llama", "scaled", "latents"])
def test_scanned_stacks_equal_unrolled_ones(kind):
    tokens, mask = texts()
    for words in ((0, 1), ()):
        one, two = (
            jax.jit(functools.partial(encoder(kind, **options).candidates, words=words))(
                tokens, mask
            )
            for options in ({"word_layers": 2}, {"word_layers": 2, "scan_layers": True})
        )
        assert_close(one, two, 1e-5, floor=1.0)


@pytest.mark.parametrize(
    ("kind", "words", "budget"),
    [
        ("llama", (1, 2), 0.34),  # spills, and more words than rows
        pytest.param("bert", (0,), 0.5, marks=pytest.mark.exhaustive),
        pytest.param("latents", (1,), 0.5, marks=pytest.mark.exhaustive),
        pytest.param("clip", (), 0.34, marks=pytest.mark.exhaustive),
        pytest.param("scaled", (0,), 0.85, marks=pytest.mark.exhaustive),
    ],
)
def test_packing_changes_no_output_and_no_gradient(kind, words, budget):
    options = {**KINDS[kind], "num_heads": HEADS}
    tokens, mask = packing.texts()
    with jax.numpy_rank_promotion("allow"):
        plain, packed = (
            packing.outputs(packing.build(**options, **more), tokens, mask, words=words)
            for more in ({}, {"packing": budget})
        )
    assert_close(packed, plain, floor=1.0)


def test_a_causal_token_does_not_see_what_follows():
    tokens, mask = texts()
    changed = tokens.copy()
    changed[0, 0, 7:] = (changed[0, 0, 7:] + 1) % VOCABULARY
    one, two = (encoder("llama")(t[0, :1], mask[0, :1]).local for t in (tokens, changed))
    np.testing.assert_array_equal(one[0, :7], two[0, :7])
    assert np.abs(one[0, 7:] - two[0, 7:]).max(axis=-1).min() > 1e-3


@pytest.mark.parametrize("kind", ["llama", pytest.param("latents", marks=pytest.mark.exhaustive)])
def test_texts_without_tokens_are_finite_and_leave_the_others_alone(kind):
    model = encoder(kind)
    tokens, mask = texts()
    hidden = mask.copy()
    hidden[1, 2] = False

    def loss(params: Any) -> jax.Array:
        pooled, _ = nnx.merge(nnx.graphdef(model), params).candidates(tokens, hidden, words=())
        return jnp.sum(pooled**2), pooled

    gradient, pooled = jax.jit(jax.grad(loss, has_aux=True))(pure(model))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert np.isfinite(pooled).all()
    kept = model.candidates(tokens, mask, words=())[0]
    np.testing.assert_allclose(pooled[0], kept[0], atol=1e-5)


def test_rotary_products_depend_on_distances_alone():
    rng = np.random.default_rng(0)
    one, two = rng.normal(size=(2, 1, 9, 1, 8)).astype(np.float32)
    frequencies = rotary_frequencies(8, 100.0)
    np.testing.assert_allclose(frequencies, [1, 100**-0.25, 0.1, 100**-0.75])
    products = []
    for shift in (0, 17):
        at = jnp.arange(9, dtype=jnp.int32)[None] + shift
        products.append(
            np.einsum("bqhe,bkhe->qk", *(rotate(x, at, frequencies) for x in (one, two)))
        )
    np.testing.assert_allclose(products[0], products[1], atol=1e-4)
    np.testing.assert_allclose(np.diag(products[0]), (one * two).sum((0, 2, 3)), atol=1e-5)


def test_scaled_wavelengths_are_those_of_llama():
    # Llama 3.1 of 8 billion parameters: theta 500 000, 128 features a head.
    given = {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position": 8192,
    }
    block = BlockOptions.of("", {"rope_theta": 500000.0, "rope_scaling": given})
    found = rotary_frequencies(128, 500000.0, given)
    np.testing.assert_allclose(found, frequencies_of(block, 128), rtol=1e-12)
    plain = rotary_frequencies(128, 500000.0)
    # By hand: 8192 / 2048 is the shortest wave that changes, 8192 the longest that is interpolated.
    np.testing.assert_array_equal((found == plain), 2 * np.pi / plain <= 2048)
    long = 2 * np.pi / plain >= 8192
    np.testing.assert_allclose(found[long], plain[long] / 8, rtol=1e-12)


@pytest.mark.default_cases(3)
@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_axis_of_every_parameter_has_a_name(kind, scan_layers):
    options = SIZES | KINDS[kind] | {"scan_layers": scan_layers}
    model = nnx.eval_shape(lambda: Transformer(**options, rngs=nnx.Rngs(0)))
    specs = nnx.to_pure_dict(nnx.get_partition_spec(nnx.state(model, nnx.Param)))
    named = jax.tree.leaves_with_path(specs, is_leaf=lambda x: isinstance(x, PartitionSpec))
    leaves = jax.tree.leaves(pure(model))
    assert len(named) == len(leaves)
    for (path, spec), leaf in zip(named, leaves, strict=True):
        where = jax.tree_util.keystr(path)
        unnamed = (None,) if "latents" in where else ()  # the axis that counts them
        assert len(spec) == leaf.ndim, where
        assert set(spec) <= {*LOGICAL_AXES, *unnamed}, where
        assert ("layers" in spec) == ("blocks" in where), where
        assert len(set(spec)) == len(spec), where


def test_parameters_have_the_names_that_weights_are_converted_to():
    found = paths(encoder("llama", depth=1))
    assert found == {
        "token/embedding": (VOCABULARY, WIDTH),
        "stack/block_00/attention_norm/scale": (WIDTH,),
        "stack/block_00/attention/query/kernel": (WIDTH, HEADS, 6),
        "stack/block_00/attention/kv/kernel": (WIDTH, 2, 2, 6),
        "stack/block_00/attention/out/kernel": (HEADS, 6, WIDTH),
        "stack/block_00/mlp_norm/scale": (WIDTH,),
        "stack/block_00/mlp/wide/kernel": (WIDTH, 24),
        "stack/block_00/mlp/gate/kernel": (WIDTH, 24),
        "stack/block_00/mlp/out/kernel": (24, WIDTH),
        "norm/scale": (WIDTH,),
    }
    bert = paths(encoder("bert", depth=1))
    assert {"embedding_norm/scale", "embedding_norm/bias", "position"} <= set(bert)
    assert not {path for path in bert if path.startswith("norm/")}
    assert bert["stack/block_00/attention/qkv/kernel"] == (WIDTH, 3, HEADS, 4)
    scaled = paths(encoder("scaled", depth=1))
    assert scaled["stack/block_00/attention_scale"] == (WIDTH,)
    assert scaled["stack/block_00/mlp_scale"] == (WIDTH,)


def test_scales_latents_and_norms_do_not_decay():
    params = {
        "towers": {"text": {"encoder": {kind: pure(encoder(kind)) for kind in KINDS}}},
        # Of image encoders.
        "image": {"registers": np.zeros((2, 3)), "cls": np.zeros(3)},
    }
    rules = configs.base().optimizer.rules
    given = optim.assign_rules(params, rules)
    decays = {
        path: rules[number].get("weight_decay", 1.0)
        for path, number in initial.by_path(given).items()
    }
    for path, decay in decays.items():
        leaf = path.rpartition("/")[2]
        assert leaf in ("kernel", "embedding") or decay == 0, path
        assert leaf not in ("kernel", "embedding") or decay == 1, path
    ends = {path.rpartition("/")[2] for path, decay in decays.items() if decay == 0}
    assert ends >= {"attention_scale", "mlp_scale", "latents", "registers", "scale", "bias"}


def test_layer_scales_start_at_their_value_and_latents_spread():
    block = Block(
        Size(8, 1, 2), None, dropout=0.0, attention="xla", dtype=jnp.float32,
        block=BlockOptions(layer_scale=1e-5), param_dtype=jnp.float32, rngs=nnx.Rngs(0),
    )  # fmt: skip
    for scale in (block.attention_scale, block.mlp_scale):
        np.testing.assert_array_equal(scale[...], np.full(8, 1e-5, np.float32))
    x = jnp.ones((1, 3, 8))
    np.testing.assert_allclose(block(x), x, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block": {"nrom": "rms"}}, r"Transformer: block 'nrom' \(did you mean 'norm'\?\); choi"),
        ({"block": {"norm": "batch"}}, r"block.norm='batch'; expected one of layer, rms"),
        ({"block": {"order": "sandwich"}}, "block.order='sandwich'; expected one of pre, post"),
        ({"block": {"activation": "swish"}}, "expected one of gelu, gelu_tanh, quick_gelu, silu"),
        ({"block": {"epsilon": -1.0}}, "Transformer: block: epsilon -1.0; expected at least 0"),
        ({"block": {"kv_heads": 3}}, "block: kv_heads 3; expected a divisor of num_heads 4"),
        ({"block": {"rope_theta": 1e4, "head_dim": 5}}, "head_dim 5; expected an even one"),
        ({"block": {"rope_scaling": SCALING}}, "rope_theta 0.0; expected factor, .* above 0"),
        ({"block": {"rope_theta": 9.0, "rope_scaling": {"factor": 2}}}, "expected factor, low_fre"),
        ({"positions": "rope"}, "unknown positions 'rope'; choices: learned, none"),
        ({"pool": "max"}, "unknown pool 'max'; choices: cls, eos, mean, latent_attention"),
        ({"pool": {"name": "mean", "latents": 2}}, "option of Transformer: pool mean 'latents'"),
        ({"pool": {"latents": 2}}, "unknown pool None; choices: cls, eos"),
        ({"pool": {"name": "latent_attention", "heads": 2}}, "'heads'.*choices: .*num_heads"),
        ({"pool": {"name": "latent_attention", "num_heads": 3}}, "width 16; expected at least one"),
    ],
)
def test_wrong_options_name_the_choices(options, message):
    with pytest.raises(InputError, match=message):
        nnx.eval_shape(lambda: Transformer(**SIZES | options, rngs=nnx.Rngs(0)))


def test_a_pool_may_be_a_mapping_or_a_name():
    def shapes(pool: Any) -> Any:
        options = SIZES | {"pool": pool}
        return paths(nnx.eval_shape(lambda: Transformer(**options, rngs=nnx.Rngs(0))))

    assert shapes({"name": "mean"}) == shapes("mean") == shapes("cls")
    assert shapes("latent_attention")["pooler/latents"] == (512, WIDTH)


def test_latents_of_padding_and_neighbours_count_for_nothing():
    numbers = {"dtype": jnp.float32, "param_dtype": jnp.float32}
    pooler = randomized(
        functools.partial(LatentAttention, width=8, latents=3, num_heads=2, **numbers)
    )
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 8)), jnp.float32)
    whole = pooler(x)
    np.testing.assert_allclose(pooler(x[1:, 2:3]), whole[1:, 2:3], atol=1e-6)


def tower(length: int = LENGTH, **options: Any) -> Text:
    given = SIZES | {"length": length, "depth": 1, **options.pop("encoder", {})}
    make = functools.partial(Transformer, **given)

    def build(rngs: nnx.Rngs) -> Text:
        return Text(
            encoder=make(rngs=rngs), length=length, vocab_size=VOCABULARY,
            heads={"embedding": 4, "words": 4}, make_rngs=lambda name: rngs, **options,
        )  # fmt: skip

    return randomized(build)


@pytest.mark.default_cases(1)
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, [1, 2]),
        ({"begin_mark": False}, [0, 1, 2]),
        ({"end_mark": False}, [1, 2, 3]),
        ({"begin_mark": False, "end_mark": False}, [0, 1, 2, 3]),
    ],
)
def test_marks_are_no_words(options, words):
    mask = np.arange(6)[None] < np.array([[4], [1], [0]])
    found = tower(**options)(
        {"text": {"tokens": jnp.zeros((3, 6), jnp.int32), "mask": jnp.asarray(mask)}},
        {"text": ("word_mask",)},
    )["text"]["word_mask"]
    assert np.flatnonzero(found[0]).tolist() == words
    single = not options.get("begin_mark", True) and not options.get("end_mark", True)
    assert np.flatnonzero(found[1]).tolist() == ([0] if single else [])
    assert not found[2].any()
    names = {name.removesuffix("_mark"): value for name, value in options.items()}
    np.testing.assert_array_equal(word_mask(mask, **names), found)


def test_padding_counts_as_tokens_where_it_is_attended_to():
    tokens, mask = texts()
    tokens = np.where(mask, tokens, np.int32(1))  # SigLIP pads with a token of its own
    inputs = {"text": {"tokens": tokens[:, 1], "mask": mask[:, 1]}}
    wanted = {"text": ("embedding", "words", "word_mask")}
    options = {"encoder": {"pool": "eos"}}
    found = tower(attend_padding=True, **options)(inputs, wanted)["text"]
    full = {"text": inputs["text"] | {"mask": np.ones_like(mask[:, 1])}}
    expected = tower(**options)(full, wanted)["text"]
    for name in ("embedding", "words"):
        np.testing.assert_array_equal(found[name], expected[name])
    masked = tower(**options)(inputs, wanted)["text"]
    np.testing.assert_array_equal(found["word_mask"], masked["word_mask"])
    assert np.abs(found["embedding"] - masked["embedding"]).max() > 1e-2


def test_where_padding_is_attended_to_texts_have_one_length_and_are_not_packed():
    tokens, mask = texts()
    short = {"text": {"tokens": tokens[:, 0, :7], "mask": mask[:, 0, :7]}}
    with pytest.raises(InputError, match=r"texts of 7 tokens; .* attend_padding .* length, 12"):
        tower(attend_padding=True)(short, {"text": ("embedding",)})
    with pytest.raises(InputError, match=r"attend_padding with packing 0\.5"):
        tower(attend_padding=True, encoder={"packing": 0.5})
