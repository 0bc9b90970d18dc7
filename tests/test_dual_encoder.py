"""The dual encoder: its outputs, how often it encodes, and the properties of its embeddings."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from mmrl.models.dual_encoder import DualEncoder
from mmrl.models.heads import Projection, l2_normalize
from mmrl.models.image.resnet import Resnet
from mmrl.models.image.vit import Vit
from mmrl.models.layers import LOGICAL_AXES
from mmrl.models.text.transformer import Transformer, last_token, word_mask
from mmrl.types import InputError

B, K, L, D, LOCAL = 3, 2, 8, 12, 6
EVERYTHING = frozenset(
    {
        "image.embedding",
        "image.regions",
        "text.embedding",
        "text.words",
        "text.word_mask",
        "perturbed.embedding",
    }
)


@pytest.fixture(autouse=True)
def strict_shapes():
    with jax.numpy_rank_promotion("raise"):
        yield


def build(dtype: Any = jnp.float32, **options: Any) -> DualEncoder:
    rngs = nnx.Rngs(0)
    size = {"width": 16, "depth": 1, "num_heads": 2, "dtype": dtype, "rngs": rngs}
    defaults = {"embed_dim": D, "local_dim": LOCAL, "dtype": dtype, "rngs": rngs}
    return DualEncoder(
        image=Vit(image_size=16, patch_size=8, **size),
        text=Transformer(vocab_size=30, length=L, dropout=0.2, **size),
        **(defaults | options),
    )


@functools.cache
def params() -> dict[str, Any]:
    """Random parameters of the default model, equal for every test and dtype."""
    rng = np.random.default_rng(0)
    shapes = nnx.to_pure_dict(nnx.state(nnx.eval_shape(build)))
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0, 0.3, leaf.shape), leaf.dtype), shapes
    )


def model(**options: Any) -> DualEncoder:
    return nnx.merge(nnx.graphdef(nnx.eval_shape(lambda: build(**options))), params())


def batch() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    tokens = rng.integers(4, 30, (B, 1 + K, L)).astype(np.int32)
    lengths = rng.integers(4, L + 1, (B, 1 + K, 1))
    tokens[..., 0] = 2
    tokens = np.where(np.arange(L) == lengths - 1, np.int32(3), tokens)
    tokens = np.where(np.arange(L) < lengths, tokens, np.int32(0))
    return {
        "image": rng.integers(0, 256, (B, 16, 16, 1)).astype(np.uint8),
        "tokens": tokens[:, 0],
        "token_mask": tokens[:, 0] > 0,
        "perturbed_tokens": tokens[:, 1:],
        "perturbed_mask": tokens[:, 1:] > 0,
    }


def encode(module: DualEncoder, needs: Any) -> dict[str, jax.Array]:
    return jax.jit(lambda batch: module(batch, needs=frozenset(needs)))(batch())


@functools.cache
def everything() -> dict[str, jax.Array]:
    return encode(model(), EVERYTHING)


def test_delivers_what_types_promise():
    shapes = {name: (value.shape, value.dtype.name) for name, value in everything().items()}
    assert shapes == {
        "image.embedding": ((B, D), "float32"),
        "image.regions": ((B, 4, LOCAL), "float32"),
        "perturbed.embedding": ((B, K, D), "float32"),
        "text.embedding": ((B, D), "float32"),
        "text.word_mask": ((B, L), "bool"),
        "text.words": ((B, L, LOCAL), "float32"),
    }
    for name in ("image.embedding", "text.embedding", "perturbed.embedding"):
        norms = np.linalg.norm(everything()[name], axis=-1)
        np.testing.assert_allclose(norms, 1.0, atol=1e-6)


def test_provides_is_exact():
    assert set(model().provides) == EVERYTHING
    without = nnx.eval_shape(lambda: build(local_dim=0))
    assert set(without.provides) == EVERYTHING - {"image.regions", "text.words"}
    message = (
        "model cannot provide image.regions, text.words; it provides image.embedding, "
        "text.embedding, perturbed.embedding, text.word_mask"
    )
    with pytest.raises(InputError, match=message):
        without(batch(), needs=frozenset({"text.words", "image.regions", "image.embedding"}))


def count_calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, tuple[int, ...]]]:
    """Records (encoder, input shape) of every pass."""
    calls: list[tuple[str, tuple[int, ...]]] = []
    for owner, method in ((Vit, "__call__"), (Transformer, "_embed")):
        original = getattr(owner, method)

        def counted(self: Any, x: Any, *args: Any, _original=original, **kwargs: Any) -> Any:
            calls.append((type(self).__name__, x.shape))
            return _original(self, x, *args, **kwargs)

        monkeypatch.setattr(owner, method, counted)
    return calls


VIT_PASS = ("Vit", (B, 16, 16, 1))


@pytest.mark.parametrize(
    ("needs", "passes"),
    [
        (EVERYTHING, [VIT_PASS, ("Transformer", (B * (1 + K), L))]),
        ({"image.embedding", "image.regions"}, [VIT_PASS]),
        ({"image.regions"}, [VIT_PASS]),
        ({"text.embedding", "text.words", "text.word_mask"}, [("Transformer", (B, L))]),
        ({"text.words"}, [("Transformer", (B, L))]),
        ({"perturbed.embedding"}, [("Transformer", (B * K, L))]),
        ({"perturbed.embedding", "text.words"}, [("Transformer", (B * (1 + K), L))]),
        ({"text.word_mask"}, []),
        (set(), []),
    ],
)
def test_every_input_is_encoded_once_and_only_if_needed(monkeypatch, needs, passes):
    calls = count_calls(monkeypatch)
    encoded = jax.eval_shape(lambda batch: model()(batch, needs=frozenset(needs)), batch())
    assert calls == passes
    assert set(encoded) == set(needs)


def test_subsets_equal_the_whole():
    for needs in (
        {"perturbed.embedding"},
        {"text.embedding", "text.words", "text.word_mask"},
        {"image.regions"},
    ):
        for name, value in encode(model(), needs).items():
            np.testing.assert_allclose(value, everything()[name], atol=1e-5, err_msg=name)


def test_perturbed_copies_equal_the_same_texts_encoded_alone():
    whole, data = everything(), batch()
    for k in range(K):
        alone = jax.jit(model().encode_text)(
            data["perturbed_tokens"][:, k], data["perturbed_mask"][:, k]
        )
        np.testing.assert_allclose(
            whole["perturbed.embedding"][:, k], alone["text.embedding"], atol=1e-5
        )


def test_encode_text_and_image_agree_with_the_batch_call():
    data = batch()
    text = jax.jit(model().encode_text)(data["tokens"], data["token_mask"])
    image = jax.jit(model().encode_image)(data["image"])
    assert set(text) == {"text.embedding", "text.words", "text.word_mask"}
    assert set(image) == {"image.embedding", "image.regions"}
    for name, value in (text | image).items():
        np.testing.assert_allclose(value, everything()[name], atol=1e-5, err_msg=name)
    shapes = jax.eval_shape(functools.partial(model().encode_image, local=False), data["image"])
    assert set(shapes) == {"image.embedding"}


def test_word_masks_leave_out_bos_eos_and_padding():
    expected = (batch()["tokens"] > 3) & batch()["token_mask"]
    np.testing.assert_array_equal(everything()["text.word_mask"], expected)
    mask = jnp.arange(5)[None] < jnp.asarray([[5], [2], [1], [0]])
    assert last_token(mask).tolist() == [4, 1, 0, 0]
    assert word_mask(mask).tolist() == [[False, True, True, True, False]] + 3 * [[False] * 5]


def test_pixels_are_normalised_before_the_encoder(monkeypatch):
    seen = []

    def spy(self: Vit, image: jax.Array, **kwargs: Any) -> Any:
        seen.append(image)
        raise StopIteration

    monkeypatch.setattr(Vit, "__call__", spy)
    pair = model(pixel_mean=0.4, pixel_std=0.2)
    values = np.array([0, 51, 102, 255], np.uint8).reshape(1, 2, 2, 1)
    with pytest.raises(StopIteration):
        pair.encode_image(values)
    assert seen[0].dtype == jnp.float32
    np.testing.assert_allclose(seen[0].ravel(), [-2.0, -1.0, 0.0, 3.0], atol=1e-6)


def test_bfloat16_computes_near_float32_and_embeds_in_float32():
    low = encode(model(dtype=jnp.bfloat16), EVERYTHING)
    for name, exact in everything().items():
        local = name in ("image.regions", "text.words")
        if name != "text.word_mask":
            assert low[name].dtype == (jnp.bfloat16 if local else jnp.float32)
        error = np.abs(np.array(low[name], np.float32) - np.array(exact, np.float32)).max()
        assert error < 0.03 * max(1.0, np.abs(exact).max()), name


def test_dropout_follows_the_key():
    @jax.jit
    def call(seed: jax.Array) -> jax.Array:
        needs = frozenset({"text.embedding"})
        return model()(batch(), needs=needs, train=True, rngs=nnx.Rngs(seed))["text.embedding"]

    first, again, other = (call(jax.random.key(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-2
    assert np.abs(first - everything()["text.embedding"]).max() > 1e-2


def test_a_pure_dict_with_string_keys_is_the_whole_state():
    graphdef, state = nnx.split(model())
    pure = nnx.to_pure_dict(state)
    for path, _ in jax.tree.leaves_with_path(pure):
        assert all(isinstance(entry.key, str) for entry in path)

    @jax.jit
    def call(pure: Any, batch: Any) -> Any:
        return nnx.merge(graphdef, pure)(batch, needs=EVERYTHING)

    for name, value in call(pure, batch()).items():
        np.testing.assert_allclose(value, everything()[name], atol=1e-6)


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_every_head_parameter_has_names(head):
    pair = nnx.eval_shape(lambda: build(head=head))
    specs = nnx.to_pure_dict(nnx.get_partition_spec(nnx.state(pair, nnx.Param)))
    for name in ("image_head", "text_head", "region_head", "word_head"):
        leaves = jax.tree.leaves(specs[name], is_leaf=lambda x: isinstance(x, PartitionSpec))
        assert len(leaves) == (1 if head == "linear" else 4)
        assert all(spec and set(spec) <= set(LOGICAL_AXES) for spec in leaves)
        assert leaves[-1][-1] == "joint" or head == "mlp"


def test_takes_a_resnet_with_narrower_regions():
    def make() -> DualEncoder:
        rngs = nnx.Rngs(0)
        image = Resnet(image_size=32, depth=18, width=4, region_stage=3, rngs=rngs)
        text = Transformer(vocab_size=30, length=L, width=16, depth=1, num_heads=2, rngs=rngs)
        return DualEncoder(image=image, text=text, embed_dim=D, local_dim=LOCAL, rngs=rngs)

    graphdef, state = nnx.split(nnx.eval_shape(make))
    image = jax.ShapeDtypeStruct((B, 32, 32, 1), jnp.uint8)
    encoded = jax.eval_shape(lambda s, x: nnx.merge(graphdef, s).encode_image(x), state, image)
    assert encoded["image.embedding"].shape == (B, D)
    assert encoded["image.regions"].shape == (B, 4, LOCAL)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embed_dim": 0}, "embed_dim 0, local_dim 6, pixel_std 0.25; expected embed_dim >= 1"),
        ({"pixel_std": 0.0}, "pixel_std 0.0; expected .* pixel_std > 0"),
        ({"head": "deep"}, "Projection: unknown kind 'deep'; choices: linear, mlp"),
    ],
)
def test_wrong_options_name_the_choices(options, message):
    with pytest.raises(InputError, match=message):
        nnx.eval_shape(lambda: build(**options))


def test_projections_are_what_they_say():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4)), jnp.float32)
    linear = Projection(4, 5, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(linear(x), np.array(x) @ linear.out.kernel[...], atol=1e-6)
    assert linear.out.bias is None
    mlp = Projection(4, 5, kind="mlp", hidden=7, rngs=nnx.Rngs(0))
    hidden = jax.nn.gelu(np.array(x) @ mlp.wide.kernel[...], approximate=False)
    np.testing.assert_allclose(mlp(x), hidden @ mlp.out.kernel[...], atol=1e-6)


def test_l2_normalisation_is_finite_at_zero():
    x = jnp.asarray([[3.0, 4.0], [0.0, 0.0]], jnp.bfloat16)
    np.testing.assert_allclose(l2_normalize(x), [[0.6, 0.8], [0.0, 0.0]], atol=1e-6)
    assert l2_normalize(x).dtype == jnp.float32
    gradient = jax.grad(lambda x: l2_normalize(x)[:, 0].sum())(x.astype(jnp.float32))
    assert np.isfinite(gradient).all()
    # d(x / |x|)_0 / dx = (e_0 - x x_0 / |x|^2) / |x|
    np.testing.assert_allclose(gradient[0], [(1 - 9 / 25) / 5, (-12 / 25) / 5], atol=1e-6)
