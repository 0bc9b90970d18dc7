"""Towers and what a learner encodes: named features, how often encoders run, frozen towers."""

import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from mmrl.build import options as options_of
from mmrl.models.heads import Projection
from mmrl.models.image.resnet import Resnet
from mmrl.models.image.vit import Vit
from mmrl.models.layers import LOGICAL_AXES, Features
from mmrl.models.text.transformer import Transformer, last_token, word_mask
from mmrl.models.towers.image import Image
from mmrl.models.towers.text import Text
from mmrl.models.towers.vector import Vector
from mmrl.models.vector.mlp import Mlp
from mmrl.training.learner import Learner
from mmrl.types import InputError
from mmrl.vectors import l2_normalize
from mmrl.wiring import Graph, Wiring
from tests import toys
from tests.arrays import assert_close, randomized

B, K, L, D, LOCAL = 3, 2, 8, 12, 6
SHORT = 5
OWN = {"image": "image", "text": "text"}
HEADS = {"image": {"embedding": D, "regions": LOCAL}, "text": {"embedding": D, "words": LOCAL}}
EVERYTHING = frozenset(
    {
        "image.embedding",
        "image.regions",
        "text.embedding",
        "text.words",
        "text.word_mask",
        "text@perturbed.embedding",
    }
)


@pytest.fixture(autouse=True)
def strict_shapes():
    with jax.numpy_rank_promotion("raise"):
        yield


def towers(
    dtype: Any = jnp.float32,
    heads: Any = HEADS,
    head: str = "linear",
    image: Any = None,
    text: Any = None,
    packing: float = 0.0,
) -> dict[str, Any]:
    """An image and a text tower; `image` and `text` are further options of each."""
    rngs = nnx.Rngs(0)
    size = {"width": 16, "depth": 1, "num_heads": 2, "dtype": dtype, "rngs": rngs}
    shared = {"head": head, "dtype": dtype, "make_rngs": lambda name: rngs}
    packed = {"dropout": 0.2, "packing": packing, "packing_group": B}
    vit = Vit(image_size=16, patch_size=8, **size)
    transformer = Transformer(vocab_size=30, length=L, **packed, **size)
    given = {**shared, "size": 16, **(image or {})}
    other = {**shared, "vocab_size": 30, "length": L, **(text or {})}
    return {
        "image": Image(encoder=vit, heads=heads["image"], **given),
        "text": Text(encoder=transformer, heads=heads["text"], **other),
    }


def build(names: Iterable[str] = EVERYTHING, **options: Any) -> Learner:
    """A learner of these towers without objectives, that encodes `names`."""
    nothing: dict[str, Any] = {"weights": {}, "encodings": {}, "arrays": {}}
    return Learner(towers(**options), {}, **nothing, wired=Wiring.of(OWN, names))


@functools.cache
def params() -> dict[str, Any]:
    """Random parameters of the default model, equal for every test and dtype."""
    rng = np.random.default_rng(0)
    shapes = nnx.to_pure_dict(nnx.state(nnx.eval_shape(build)))
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0, 0.3, leaf.shape), leaf.dtype), shapes
    )


def model(names: Iterable[str] = EVERYTHING, **options: Any) -> Learner:
    return nnx.merge(nnx.graphdef(nnx.eval_shape(lambda: build(names, **options))), params())


def batch() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    tokens = rng.integers(4, 30, (B, 1 + K, L)).astype(np.int32)
    lengths = rng.integers(4, L + 1, (B, 1 + K, 1))
    tokens[..., 0] = 2
    tokens = np.where(np.arange(L) == lengths - 1, np.int32(3), tokens)
    tokens = np.where(np.arange(L) < lengths, tokens, np.int32(0))
    pixels = rng.integers(0, 256, (2, B, 16, 16, 1)).astype(np.uint8)
    short = tokens[:, 1, :SHORT]
    return {
        "image.pixels": pixels[0],
        "second.pixels": pixels[1],
        "text.tokens": tokens[:, 0],
        "text.mask": tokens[:, 0] > 0,
        "perturbed.tokens": tokens[:, 1:],
        "perturbed.mask": tokens[:, 1:] > 0,
        "other.tokens": tokens[::-1, 0],
        "other.mask": tokens[::-1, 0] > 0,
        "short.tokens": short,
        "short.mask": short > 0,
    }


def of(encoded: dict[str, jax.Array], names: Iterable[str]) -> dict[str, jax.Array]:
    """The encodings by the names that were asked for, which must be all that there are."""
    full = {name: str(Graph.of(OWN).resolve(name)) for name in names}
    assert set(full.values()) == set(encoded)
    return {name: encoded[full[name]] for name in full}


def encode(module: Learner, names: Iterable[str], **options: Any) -> dict[str, jax.Array]:
    wired = Wiring.of(OWN, names)
    call = jax.jit(lambda batch: module.encode(batch, wired=wired, **{"train": False, **options}))
    return of(call(batch()), names)


def text_alone(tokens: np.ndarray, mask: np.ndarray, features: tuple[str, ...]) -> Any:
    """Features of texts that are encoded by themselves."""
    tower = model().towers["text"]
    call = jax.jit(lambda t, m: tower({"x": {"tokens": t, "mask": m}}, {"x": features})["x"])
    return call(tokens, mask)


@functools.cache
def everything() -> dict[str, jax.Array]:
    return encode(model(), EVERYTHING)


def test_delivers_what_types_promise():
    shapes = {name: (value.shape, value.dtype.name) for name, value in everything().items()}
    assert shapes == {
        "image.embedding": ((B, D), "float32"),
        "image.regions": ((B, 4, LOCAL), "float32"),
        "text@perturbed.embedding": ((B, K, D), "float32"),
        "text.embedding": ((B, D), "float32"),
        "text.word_mask": ((B, L), "bool"),
        "text.words": ((B, L, LOCAL), "float32"),
    }
    for name in ("image.embedding", "text.embedding", "text@perturbed.embedding"):
        norms = np.linalg.norm(everything()[name], axis=-1)
        np.testing.assert_allclose(norms, 1.0, atol=1e-6)


def test_features_are_exactly_what_a_tower_encodes():
    made = model().towers
    assert made["image"].features == (
        "pooled", "embedding", "regions", "attention", "local",
    )  # fmt: skip
    assert made["text"].features == (
        "pooled", "embedding", "words", "attention", "local", "mask", "word_mask", "embedded",
    )  # fmt: skip
    names = {f"{name}.{feature}" for name in OWN for feature in made[name].features}
    assert set(encode(model(), names)) == names
    without = {name: {"embedding": D} for name in OWN}
    assert nnx.eval_shape(lambda: towers(heads=without)["image"]).features == (
        "pooled",
        "embedding",
        "attention",
        "local",
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "image.regions",
            "unknown feature image.regions; feature 'regions'; choices: pooled, embedding, "
            "attention, local (set config.towers.image.heads.regions for another head)",
        ),
        (
            "text@perturbed.word",
            "unknown feature text@perturbed.word; feature 'word' (did you mean 'word_mask'?); "
            "choices: pooled, embedding, attention, local, mask, word_mask, embedded (set "
            "config.towers.text.heads.word for another head)",
        ),
    ],
)
def test_features_that_no_tower_provides_are_refused(name, message):
    without = {name: {"embedding": D} for name in OWN}
    with pytest.raises(InputError) as error:
        nnx.eval_shape(lambda: build([*EVERYTHING - {"image.regions", "text.words"}, name],
                                     heads=without))  # fmt: skip
    assert str(error.value) == message


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


@pytest.mark.default_cases(3)
@pytest.mark.parametrize(
    ("names", "passes"),
    [
        (EVERYTHING, [VIT_PASS, ("Transformer", (B * (1 + K), L))]),
        ({"image.embedding", "image.regions"}, [VIT_PASS]),
        ({"image.regions"}, [VIT_PASS]),
        ({"text.embedding", "text.words", "text.word_mask"}, [("Transformer", (B, L))]),
        ({"text.words"}, [("Transformer", (B, L))]),
        ({"text@perturbed.embedding"}, [("Transformer", (B * K, L))]),
        ({"text@perturbed.embedding", "text.words"}, [("Transformer", (B * (1 + K), L))]),
        ({"text.word_mask"}, []),
        (set(), []),
        # Every image input takes a pass of its own; the names of a tower's own input coincide.
        ({"image.embedding", "image@image.pooled", "image@second.embedding"}, [VIT_PASS] * 2),
        # Words of several inputs share a pass, inputs of another length take another one.
        (
            {"text.words", "text@other.local", "text@perturbed.words", "text@perturbed.mask"},
            [("Transformer", (B * (2 + K), L))],
        ),
        (
            {"text.embedding", "text@other.embedding", "text@short.embedding"},
            [("Transformer", (2 * B, L)), ("Transformer", (B, SHORT))],
        ),
    ],
)
def test_every_input_is_encoded_once_and_only_if_needed(monkeypatch, names, passes):
    calls = count_calls(monkeypatch)
    module = model(names)
    encoded = jax.eval_shape(lambda batch: module.encode(batch, train=True), batch())
    assert calls == passes
    assert set(encoded) == {str(Graph.of(OWN).resolve(name)) for name in names}


PACKED = (
    "text.words", "text@other.local", "text@perturbed.words", "text@perturbed.embedding",
    "text@short.words", "text@short.embedding",
)  # fmt: skip


def test_packed_inputs_of_all_lengths_share_a_pass(monkeypatch):
    plain = encode(model(PACKED), PACKED, train=True)
    calls = count_calls(monkeypatch)
    with jax.numpy_rank_promotion("allow"):
        packed = encode(model(PACKED, packing=1.0), PACKED, train=True)
    assert {shape[1] for _, shape in calls} == {L}
    for name, value in packed.items():
        kept = True
        if name.endswith(("words", "local")):
            own = Graph.of(OWN).resolve(name).input
            kept = batch()[f"{own}.mask"][..., None]
        assert value.shape == plain[name].shape
        np.testing.assert_allclose(
            np.where(kept, value, 0), np.where(kept, plain[name], 0), atol=1e-5, err_msg=name
        )


def test_subsets_equal_the_whole():
    for names in (
        {"text@perturbed.embedding"},
        {"text.embedding", "text.words", "text.word_mask"},
        {"image.regions"},
    ):
        for name, value in encode(model(), names).items():
            np.testing.assert_allclose(value, everything()[name], atol=1e-5, err_msg=name)


def test_perturbed_copies_equal_the_same_texts_encoded_alone():
    whole, data = everything(), batch()
    for k in range(K):
        alone = text_alone(
            data["perturbed.tokens"][:, k], data["perturbed.mask"][:, k], ("embedding",)
        )
        np.testing.assert_allclose(
            whole["text@perturbed.embedding"][:, k], alone["embedding"], atol=1e-5
        )


def test_towers_agree_with_the_learner():
    data, image = batch(), model().towers["image"]
    text = text_alone(data["text.tokens"], data["text.mask"], ("embedding", "words", "word_mask"))
    wanted = {"image": ("embedding", "regions")}
    found = jax.jit(lambda x: image({"image": {"pixels": x}}, wanted))(data["image.pixels"])
    alone = {f"text.{name}": value for name, value in text.items()}
    alone |= {f"image.{name}": value for name, value in found["image"].items()}
    assert set(alone) == EVERYTHING - {"text@perturbed.embedding"}
    for name, value in alone.items():
        np.testing.assert_allclose(value, everything()[name], atol=1e-5, err_msg=name)


def test_words_and_masks_of_several_texts_equal_those_of_each_alone():
    names = [f"text@perturbed.{one}" for one in ("words", "local", "mask", "word_mask")]
    found, data = encode(model(), names), batch()
    for k in range(K):
        tokens, mask = data["perturbed.tokens"][:, k], data["perturbed.mask"][:, k]
        alone = text_alone(tokens, mask, ("words", "local", "mask", "word_mask"))
        np.testing.assert_array_equal(alone["mask"], mask)
        for one, expected in alone.items():
            np.testing.assert_allclose(found[f"text@perturbed.{one}"][:, k], expected, atol=1e-5)


INSIDE = ("text@perturbed.layers", "text@perturbed.attention", "text@perturbed.words")


@pytest.mark.exhaustive
@pytest.mark.parametrize("frozen", [False, True])
def test_layers_and_attention_take_a_pass_of_their_own(monkeypatch, frozen):
    """Also where texts are packed; gradients flow, but not through a frozen encoder."""
    names = {*INSIDE, "text.words"}
    module = model(names, packing=1.0, text={"layers": (1,)})
    module.towers["text"].frozen = frozen
    plain = encode(model(names, text={"layers": (1,)}), names)
    calls = count_calls(monkeypatch)
    wired = Wiring.of(OWN, names)

    def total(params: Any) -> Any:
        with jax.numpy_rank_promotion("allow"):
            found = nnx.merge(nnx.graphdef(module), params).encode(batch(), train=True, wired=wired)
        return sum(jnp.sum(jnp.sin(found[name])) for name in INSIDE[:2]), found

    gradient, found = jax.jit(jax.grad(total, has_aux=True))(params())
    assert sorted(shape for _, shape in calls) == [(B, L), (B * K, L)]
    assert found["text@perturbed.layers"].shape == (B, K, 1, L, 16)
    assert found["text@perturbed.attention"].shape == (B, K, 2, L)
    kept = batch()["perturbed.mask"]
    tokens = kept[:, :, None, :, None], True, kept[..., None]
    for name, of_texts in zip(INSIDE, tokens, strict=True):
        np.testing.assert_allclose(
            np.where(of_texts, found[name], 0), np.where(of_texts, plain[name], 0), atol=1e-5
        )
    moved = np.abs(gradient["towers"]["text"]["encoder"]["token"]["embedding"]).max()
    assert (moved == 0) == frozen


def test_padding_changes_nothing():
    """Tokens behind the mask, and a longer mask; words are compared where there are tokens."""
    data = batch()
    tokens, mask = data["short.tokens"], data["short.mask"]
    features = ("embedding", "words", "pooled")
    short = text_alone(tokens, mask, features)
    longer = np.full((B, L), 7, np.int32)
    longer[:, :SHORT] = tokens
    padded = text_alone(longer, np.pad(mask, ((0, 0), (0, L - SHORT))), features)
    for name in ("embedding", "pooled"):
        np.testing.assert_allclose(padded[name], short[name], atol=1e-5)
    words = np.where(mask[..., None], padded["words"][:, :SHORT] - short["words"], 0)
    np.testing.assert_allclose(words, 0, atol=1e-5)


def test_word_masks_leave_out_bos_eos_and_padding():
    expected = (batch()["text.tokens"] > 3) & batch()["text.mask"]
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
    module = model(image={"pixel_mean": 0.4, "pixel_std": 0.2})
    values = np.array([0, 51, 102, 255], np.uint8).reshape(1, 2, 2, 1)
    with pytest.raises(StopIteration):
        module.towers["image"]({"image": {"pixels": values}}, {"image": ("embedding",)})
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
    module, wired = model(), Wiring.of(OWN, {"text.embedding"})

    @jax.jit
    def call(key: jax.Array) -> jax.Array:
        encoded = module.encode(batch(), train=True, key=key, wired=wired)
        return encoded["text@text.embedding"]

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
        return nnx.merge(graphdef, pure).encode(batch, train=False)

    for name, value in of(call(pure, batch()), EVERYTHING).items():
        np.testing.assert_allclose(value, everything()[name], atol=1e-6)


# Heads.


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_every_head_parameter_has_names(head):
    module = nnx.eval_shape(lambda: build(head=head))
    specs = nnx.to_pure_dict(nnx.get_partition_spec(nnx.state(module, nnx.Param)))
    for tower, heads in HEADS.items():
        for name in heads:
            found = specs["towers"][tower]["heads"][name]
            leaves = jax.tree.leaves(found, is_leaf=lambda x: isinstance(x, PartitionSpec))
            assert len(leaves) == (1 if head == "linear" else 4)
            assert all(spec and set(spec) <= set(LOGICAL_AXES) for spec in leaves)
            assert leaves[-1][-1] == "joint" or head == "mlp"


@pytest.mark.exhaustive
def test_a_further_head_is_an_affine_function_of_the_pooled_features():
    rngs = nnx.Rngs(0)
    vit = Vit(image_size=16, patch_size=8, width=16, depth=1, num_heads=2, rngs=rngs)
    heads = {"labels": 5, "embedding": {"width": D, "kind": "mlp"}}
    tower = Image(encoder=vit, heads=heads, size=16, make_rngs=lambda name: rngs)
    assert tower.features == ("pooled", "labels", "embedding", "attention", "local")
    tower.heads["labels"].out.bias[...] = jnp.arange(5, dtype=jnp.float32)
    wanted = {"image": ("labels", "pooled", "embedding")}
    found = tower({"image": {"pixels": batch()["image.pixels"]}}, wanted)["image"]
    expected = (
        found["pooled"] @ tower.heads["labels"].out.kernel[...]
        + np.arange(5, dtype=np.float32)[None]
    )
    np.testing.assert_allclose(found["labels"], expected, atol=1e-5)
    assert found["labels"].dtype == jnp.float32 and tower.heads["embedding"].kind == "mlp"


def test_a_normed_head_is_an_affine_function_of_the_layer_norm():
    head = Projection(8, 3, kind="normed", rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).normal(2.0, 3.0, (4, 8)).astype(np.float32)
    centred = x - x.mean(axis=1, keepdims=True)
    normed = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-6)
    head.out.bias[...] = jnp.arange(3, dtype=jnp.float32)
    expected = normed @ np.asarray(head.out.kernel[...]) + np.arange(3)
    np.testing.assert_allclose(head(jnp.asarray(x)), expected, atol=1e-5)


def test_takes_a_resnet_with_narrower_regions():
    def make() -> Image:
        rngs = nnx.Rngs(0)
        image = Resnet(image_size=32, depth=18, width=4, region_stage=3, rngs=rngs)
        heads = HEADS["image"]
        return Image(encoder=image, heads=heads, size=32, make_rngs=lambda name: rngs)

    graphdef, state = nnx.split(nnx.eval_shape(make))
    image = jax.ShapeDtypeStruct((B, 32, 32, 1), jnp.uint8)
    wanted = {"image": ("embedding", "regions")}
    encoded = jax.eval_shape(
        lambda s, x: nnx.merge(graphdef, s)({"image": {"pixels": x}}, wanted), state, image
    )["image"]
    assert encoded["embedding"].shape == (B, D)
    assert encoded["regions"].shape == (B, 4, LOCAL)


@pytest.mark.default_cases(2)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"heads": {**HEADS, "image": {"embedding": 0}}},
            r"head 'embedding'=0 of a Image tower; expected a number of features, or .*; local "
            "heads: regions",
        ),
        ({"heads": {**HEADS, "image": {"words": 4}}}, "head 'words'=4 of a Image tower"),
        ({"heads": {**HEADS, "text": {"regions": 4}}}, "head 'regions'=4 of a Text tower"),
        ({"heads": {**HEADS, "text": {"pooled": 4}}}, "head 'pooled'=4 of a Text tower"),
        ({"heads": {**HEADS, "text": {"x": {"width": 4, "depth": 2}}}}, "head 'x'="),
        ({"image": {"pixel_std": 0.0}}, "pixel_std 0.0; expected .* pixel_std > 0"),
        ({"image": {"size": 0}}, "image tower: size 0, pixel_std 0.25; expected size >= 1"),
        (
            {"head": "deep"},
            "head 'embedding'=12 of a Image tower: unknown kind 'deep'; choices: lin",
        ),
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


def test_an_mlp_has_the_parts_that_are_asked_for():
    x = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    options = {"kind": "mlp", "hidden": 8, "activation": "relu", "norm": True, "epsilon": 0.1}
    mlp = randomized(functools.partial(Projection, 6, 3, **options))
    wide, norm, out = (
        jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(part)))
        for part in (mlp.wide, mlp.norm, mlp.out)
    )
    hidden = np.maximum(x @ wide["kernel"] + wide["bias"], 0)
    centred = hidden - hidden.mean(axis=1, keepdims=True)
    normed = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 0.1)
    expected = (normed * norm["scale"] + norm["bias"]) @ out["kernel"] + out["bias"]
    np.testing.assert_allclose(mlp(jnp.asarray(x)), expected, atol=1e-5)
    plain = randomized(functools.partial(Projection, 6, 3, kind="mlp", bias=False))
    assert set(nnx.to_pure_dict(nnx.state(plain))) == {"wide", "out"}
    assert plain.wide.bias is None and plain.out.bias is None
    assert plain.wide.kernel.shape == (6, 6)


def test_the_marks_of_a_text_tower_are_those_of_a_tokenizer_that_is_trained_here():
    options, trained = options_of(Text), toys.tokenizer()
    assert options["mask_token"].default == trained.mask
    assert options["special_tokens"].default == trained.special


def test_prototypes_are_cosines_after_a_bottleneck():
    x = np.random.default_rng(0).normal(size=(4, 2, 6)).astype(np.float32)
    make = functools.partial(Projection, 6, 5, kind="prototypes", hidden=8, bottleneck=3)
    head = randomized(make)
    params = jax.tree.map(
        lambda leaf: np.asarray(leaf, np.float64), nnx.to_pure_dict(nnx.state(head))
    )
    hidden = x.astype(np.float64)
    for name in ("wide", "middle", "narrow"):
        hidden = hidden @ params[name]["kernel"] + params[name]["bias"]
        if name != "narrow":
            hidden = np.asarray(
                jax.nn.gelu(hidden.astype(np.float32), approximate=False), np.float64
            )
    kernel = params["out"]["kernel"]
    expected = hidden @ kernel / np.linalg.norm(hidden, axis=-1, keepdims=True)
    expected /= np.linalg.norm(kernel, axis=0)
    np.testing.assert_allclose(head(jnp.asarray(x)), expected, atol=1e-5)
    assert head.out.bias is None and head(jnp.asarray(x, jnp.bfloat16)).dtype == jnp.bfloat16
    with pytest.raises(InputError, match="bottleneck 0; expected at least 1"):
        make(bottleneck=0, rngs=nnx.Rngs(0))


def test_an_identity_head_has_no_parameters():
    head = Projection(6, 6, kind="identity", rngs=nnx.Rngs(0))
    assert not nnx.to_pure_dict(nnx.state(head))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 6)), jnp.bfloat16)
    np.testing.assert_array_equal(head(x), x)


def with_equal_heads(make: Any, local: str) -> Any:
    """The randomised tower; its local head has the parameters of its embedding."""
    tower = randomized(make)
    params = nnx.to_pure_dict(nnx.state(tower))
    params["heads"][local] = params["heads"]["embedding"]
    return nnx.merge(nnx.graphdef(tower), params)


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", ["affine", "mlp"])
def test_an_embedding_of_regions_is_the_mean_of_their_projections(kind):
    rngs = nnx.Rngs(0)
    encoder = Resnet(image_size=32, depth=18, width=4, region_stage=3, rngs=rngs)
    shared = {"kind": kind, "width": D}
    heads = {"embedding": {**shared, "of": "local"}, "regions": shared}
    make = functools.partial(Image, encoder=encoder, heads=heads, size=32)
    tower = with_equal_heads(lambda rngs: make(make_rngs=lambda name: rngs), "regions")
    pixels = np.random.default_rng(3).integers(0, 256, (B, 32, 32, 1)).astype(np.uint8)
    found = tower({"image": {"pixels": pixels}}, {"image": ("embedding", "regions", "pooled")})
    regions = np.asarray(found["image"]["regions"], np.float64)
    assert regions.shape == (B, 4, D)
    expected = regions.mean(axis=1)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(found["image"]["embedding"], expected, atol=1e-5)


def test_l2_normalisation_is_finite_at_zero():
    x = jnp.asarray([[3.0, 4.0], [0.0, 0.0]], jnp.bfloat16)
    np.testing.assert_allclose(l2_normalize(x), [[0.6, 0.8], [0.0, 0.0]], atol=1e-6)
    assert l2_normalize(x).dtype == jnp.float32
    gradient = jax.grad(lambda x: l2_normalize(x)[:, 0].sum())(x.astype(jnp.float32))
    assert np.isfinite(gradient).all()
    # d(x / |x|)_0 / dx = (e_0 - x x_0 / |x|^2) / |x|
    np.testing.assert_allclose(gradient[0], [(1 - 9 / 25) / 5, (-12 / 25) / 5], atol=1e-6)


LOCAL_EMBEDDING = {
    "embedding": {"width": LOCAL, "kind": "mlp", "of": "local"},
    "words": {"width": LOCAL, "kind": "mlp"},
}


def test_an_embedding_of_words_is_the_mean_of_their_projections():
    """Alone, beside other texts, several in a row, and whatever the padding holds."""
    heads = {**HEADS, "text": LOCAL_EMBEDDING}
    tower = with_equal_heads(lambda rngs: towers(heads=heads)["text"], "words")
    given = batch()
    inputs = {
        name: {key: given[f"{name}.{key}"] for key in ("tokens", "mask")}
        for name in ("text", "perturbed", "short")
    }
    features = ("embedding", "words", "word_mask")
    alone = jax.jit(lambda given: tower({"text": given}, {"text": features})["text"])
    wanted = {"text": features, "perturbed": ("embedding",), "short": ("embedding", "pooled")}
    found = jax.jit(lambda given: tower(given, wanted))(inputs)

    def mean(texts: dict[str, np.ndarray]) -> np.ndarray:
        by_itself = alone(texts)
        words, counted = np.asarray(by_itself["words"], np.float64), by_itself["word_mask"]
        for row in range(len(words)):
            assert counted[row].sum() == texts["mask"][row].sum() - 2
        expected = np.stack([w[m].mean(axis=0) for w, m in zip(words, counted, strict=True)])
        return expected / np.linalg.norm(expected, axis=1, keepdims=True)

    assert_close(found["text"]["embedding"], mean(inputs["text"]))
    assert_close(found["short"]["embedding"], mean(inputs["short"]))
    for copy in range(K):
        texts = {key: value[:, copy] for key, value in inputs["perturbed"].items()}
        assert_close(found["perturbed"]["embedding"][:, copy], mean(texts))
    assert found["perturbed"]["embedding"].shape == (B, K, LOCAL)
    # Two marks alone hold no word: the embedding is finite.
    empty = np.array([[2, 3, 0, 0]] * B, np.int32)
    assert np.isfinite(alone({"tokens": empty, "mask": empty > 0})["embedding"]).all()


# Pixels.


class Seen:
    """An encoder that shows what it gets."""

    width, local_width, grid = 1, 1, (2, 2)

    def __init__(self, channels: int) -> None:
        self.channels = channels

    def __call__(self, image: jax.Array, **options: Any) -> Any:
        return Features(pooled=image, local=image, mask=None)


@pytest.mark.parametrize(
    ("mean", "std"), [(0.4, 0.2), ((0.4, 0.2, 0.0), 0.2), ([0.4, 0.2, 0.0], (0.2, 0.5, 1.0))]
)
def test_pixels_are_normalised_by_channel(mean, std):
    encoder: Any = Seen(3)
    given = {"pixel_mean": mean, "pixel_std": std, "make_rngs": lambda name: nnx.Rngs(0)}
    tower = Image(encoder=encoder, heads={}, size=2, **given)
    wanted = {"image": ("pooled",)}
    colour = np.random.default_rng(0).integers(0, 256, (1, 2, 2, 3)).astype(np.uint8)
    found = tower({"image": {"pixels": colour}}, wanted)["image"]["pooled"]
    assert found.shape == (1, 2, 2, 3) and found.dtype == jnp.float32
    np.testing.assert_allclose(
        found, (colour / 255 - np.asarray(mean)) / np.asarray(std), atol=1e-5
    )
    hash(nnx.graphdef(tower))
    with pytest.raises(InputError, match="'image' has pixels of 1 channels; expected 3, as the"):
        tower({"image": {"pixels": colour[..., :1]}}, wanted)


# Vectors.


def test_an_mlp_of_vectors_is_what_it_says():
    values = jnp.asarray(np.random.default_rng(0).normal(3, 2, (4, 6)), jnp.float32)
    mlp = randomized(functools.partial(Mlp, size=6, width=5, depth=2))
    x = np.asarray(values, np.float64)
    x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-6)
    x = x * np.array(mlp.norm.scale[...]) + np.array(mlp.norm.bias[...])
    for layer in (mlp.layer_00, mlp.layer_01):
        x = x @ np.array(layer.kernel[...]) + np.array(layer.bias[...])
        x = np.array(jax.nn.gelu(jnp.asarray(x, jnp.float32), approximate=False))
    features = mlp(values)
    np.testing.assert_allclose(features.pooled, x, atol=1e-5)
    assert features.local is None and features.mask is None and mlp.width == 5
    with pytest.raises(ValueError, match=r"values \(4, 5\); expected \[B, 6\]"):
        mlp(values[:, :5])
    with pytest.raises(InputError, match="Mlp: size 6, width 5, depth 0; expected 1 or more"):
        Mlp(size=6, width=5, depth=0, rngs=nnx.Rngs(0))
    specs = nnx.to_pure_dict(nnx.get_partition_spec(nnx.state(mlp, nnx.Param)))
    leaves = jax.tree.leaves(specs, is_leaf=lambda x: isinstance(x, PartitionSpec))
    assert len(leaves) == 6 and all(spec and set(spec) <= set(LOGICAL_AXES) for spec in leaves)


def test_a_vector_tower_embeds_and_drops_out_in_training_alone():
    encoder = functools.partial(Mlp, size=6, width=5, depth=1, dropout=0.5)

    def make(rngs: nnx.Rngs) -> Vector:
        return Vector(
            encoder=encoder(rngs=rngs), heads={"embedding": D}, size=6, make_rngs=lambda name: rngs
        )

    tower = randomized(make)
    values = np.random.default_rng(0).normal(size=(B, 6)).astype(np.float32)

    def call(**options: Any) -> dict[str, jax.Array]:
        wanted = {"vector": ("pooled", "embedding")}
        return tower({"vector": {"values": jnp.asarray(values)}}, wanted, **options)["vector"]

    found = call()
    assert found["embedding"].shape == (B, D) and found["embedding"].dtype == jnp.float32
    expected = l2_normalize(tower.heads["embedding"](tower.encoder(jnp.asarray(values)).pooled))
    np.testing.assert_allclose(found["embedding"], expected, atol=1e-6)
    assert_close(call(train=True), found, 0.0)
    noisy = call(train=True, key=jax.random.key(0))
    assert np.abs(noisy["pooled"] - found["pooled"]).max() > 1e-2
    with pytest.raises(InputError, match="local heads: none"):
        Vector(encoder=encoder(rngs=nnx.Rngs(0)), heads={"words": D}, size=6, make_rngs=nnx.Rngs)
