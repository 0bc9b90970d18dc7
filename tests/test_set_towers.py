"""Towers that encode several elements per row, and what they ask encoders for."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmrl.devices import sharding
from mmrl.models.image.resnet import apply_norm, make_norm
from mmrl.models.image.vit import Vit
from mmrl.models.layers import Features, dense, dropout_keys
from mmrl.models.towers.image import Image
from mmrl.models.towers.vector import Vector
from mmrl.models.vector.mlp import Mlp
from mmrl.types import InputError
from mmrl.vectors import l2_normalize
from tests.arrays import assert_close, randomized

B, S, D, LOCAL, WIDTH = 2, 5, 6, 3, 8
HEADS = {"embedding": D, "regions": LOCAL, "labels": 4}
MASK = np.array([[1, 0, 1, 1, 0], [0, 0, 0, 1, 0]], bool)
GATED = {"name": "gated_attention", "heads": 2, "hidden": 4}


@pytest.fixture(autouse=True)
def strict_shapes():
    with jax.numpy_rank_promotion("raise"):
        yield


class Small(nnx.Module):
    """Four patches, one layer each; it compiles sooner than a transformer."""

    width, local_width, grid = WIDTH, WIDTH, (2, 2)

    def __init__(self, *, image_size: int, dropout: float = 0.0, rngs: nnx.Rngs) -> None:
        numbers: Any = {"dtype": jnp.float32, "param_dtype": jnp.float32, "rngs": rngs}
        self.patch = dense(image_size**2 // 4, WIDTH, ("patch", "embed"), **numbers)
        self.dropout = nnx.Dropout(dropout)

    def __call__(self, image: Any, *, train: bool, rngs: Any, present: Any = None) -> Features:
        (key,) = dropout_keys(train, rngs, 1)
        x = jnp.tanh(self.patch(image.reshape(len(image), 4, -1)))
        x = self.dropout(x, deterministic=key is None, rngs=key)
        return Features(x.mean(axis=1), x, None)


def image_tower(rngs: nnx.Rngs, heads: Any = HEADS, encoder: Any = None, **options: Any) -> Image:
    return Image(
        encoder=(encoder or Small)(image_size=16, rngs=rngs),
        heads=heads,
        size=16,
        make_rngs=lambda name: rngs,
        **options,
    )


def image(**options: Any) -> Image:
    return randomized(functools.partial(image_tower, **options))


def pixels(*axes: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (*axes, 16, 16, 1)).astype(np.uint8)


def gradients(tower: Any, features: tuple[str, ...], arrays: Any, **options: Any) -> Any:
    """(features, gradient for the parameters) of the input `own`, as a function of its arrays."""
    graphdef, params, rest = nnx.split(tower, nnx.Param, ...)

    @jax.jit
    def call(params: Any, arrays: Any) -> Any:
        def loss(params: Any) -> Any:
            module = nnx.merge(graphdef, params, rest)
            made = module({"own": arrays}, {"own": features}, **options)["own"]
            total = sum(jnp.sum(jnp.sin(made[f])) for f in features if made[f].dtype != bool)
            return total, made

        return jax.value_and_grad(loss, has_aux=True)(params)

    (_, made), gradient = call(nnx.to_pure_dict(params), arrays)
    return made, gradient


# --- crops


def test_crops_are_images_of_their_own_beside_whole_images():
    tower = image()
    features = ("pooled", "embedding", "regions", "labels", "local")
    crops, wholes = pixels(B, S), pixels(B, seed=1)
    inputs = {"image": {"pixels": wholes}, "crops": {"pixels": crops}}
    wanted = {"image": features, "crops": features}
    found = jax.jit(lambda given: tower(given, wanted))(inputs)
    alone = {"image": {"pixels": crops.reshape(B * S, *crops.shape[2:])}}
    expected = jax.jit(lambda given: tower(given, {"image": features}))(alone)["image"]
    for name in features:
        assert found["image"][name].shape[0] == B and found["crops"][name].shape[:2] == (B, S)
        assert_close(found["crops"][name].reshape(expected[name].shape), expected[name])
    assert found["crops"]["regions"].shape == (B, S, 4, LOCAL)


# --- sets


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("pool", ["mean", GATED])
def test_a_set_is_pooled_from_its_elements_before_the_heads(pool):
    tower = image(set_pool=pool)
    features = ("pooled", "embedding", "labels", "regions", "elements", "element_mask")
    given = {"pixels": pixels(B, S), "mask": MASK}
    found, _ = gradients(tower, features, given)
    assert found["pooled"].shape == (B, WIDTH) and found["regions"].shape == (B, S, 4, LOCAL)
    assert found["elements"].shape == (B, S, WIDTH)
    np.testing.assert_array_equal(found["element_mask"], MASK)
    expected = tower.set_pool(found["elements"], jnp.asarray(MASK))
    assert_close(found["pooled"], expected)
    assert_close(found["embedding"], l2_normalize(tower.heads["embedding"](expected)))
    assert_close(found["labels"], tower.heads["labels"](expected))


def test_masked_elements_and_the_order_of_a_set_change_nothing():
    tower = image(set_pool=GATED)
    features = ("embedding", "labels", "set_attention")
    shown = pixels(B, S)
    expected = gradients(tower, features, {"pixels": shown, "mask": MASK})
    other = np.where(MASK[..., None, None, None], shown, pixels(B, S, seed=1))
    found = gradients(tower, features, {"pixels": other, "mask": MASK})
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    order = np.random.default_rng(0).permutation(S)
    found, _ = gradients(tower, features, {"pixels": shown[:, order], "mask": MASK[:, order]})
    assert_close(found["embedding"], expected[0]["embedding"])
    assert_close(found["set_attention"], expected[0]["set_attention"][:, order])
    weights = np.asarray(expected[0]["set_attention"])
    assert weights.shape == (B, S) and not weights[~MASK].any()
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-5)


def test_an_image_of_a_tower_for_sets_is_a_set_of_one():
    tower, features = image(set_pool=GATED), ("pooled", "embedding")
    single = pixels(B)
    inputs = {
        "image": {"pixels": single},
        "crops": {"pixels": single[:, None]},
        "set": {"pixels": single[:, None], "mask": np.ones((B, 1), bool)},
    }
    found = jax.jit(lambda given: tower(given, dict.fromkeys(inputs, features)))(inputs)
    for name in features:
        assert found["crops"][name].shape[:2] == (B, 1)
        assert_close(found["image"][name], found["set"][name])
        assert_close(found["crops"][name][:, 0], found["set"][name])
    # The mean of one element is the element, bit for bit.
    plain, mean = image(), image(set_pool="mean")
    alone = {"image": {"pixels": single}}
    one, other = (jax.jit(lambda x, t=t: t(x, {"image": features}))(alone) for t in (plain, mean))
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_the_embedding_of_local_features_of_a_set_leaves_masked_elements_out():
    heads = {"embedding": {"width": D, "of": "local"}, "regions": LOCAL}
    tower = image(heads=heads, set_pool="mean")
    given = {"pixels": pixels(B, S), "mask": MASK}
    found, _ = gradients(tower, ("embedding", "local"), given)
    local = np.asarray(tower.heads["embedding"](found["local"]), np.float64)
    mean = np.stack([x[m].mean(axis=(0, 1)) for x, m in zip(local, MASK, strict=True)])
    assert_close(found["embedding"], mean / np.linalg.norm(mean, axis=1, keepdims=True))


# --- chunks


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("masked", [True, False])
def test_chunks_equal_the_whole_pass_in_value_and_gradient(masked):
    features = ("pooled", "embedding", "regions", "labels")
    given = {"pixels": pixels(B, S)} | ({"mask": MASK} if masked else {})
    options = {"set_pool": GATED} if masked else {}
    expected = gradients(image(**options), features, given, train=True)
    chunked = gradients(image(**options, chunk=2), features, given, train=True)
    assert_close(chunked, expected, 2e-5, floor=1.0)


def test_chunks_keep_no_activations_and_draw_their_own_dropout():
    tower = image(encoder=functools.partial(Small, dropout=0.5), chunk=1)
    same = np.broadcast_to(pixels(1, 1), (B, S, 16, 16, 1))
    wanted = {"own": ("pooled",)}
    call = jax.jit(lambda x, key: tower({"own": {"pixels": x}}, wanted, train=True, key=key))
    found = np.asarray(call(same, jax.random.key(0))["own"]["pooled"])
    assert np.unique(found.round(4).reshape(B * S, -1), axis=0).shape[0] == B * S
    text = str(jax.make_jaxpr(lambda x: tower({"own": {"pixels": x}}, wanted))(same))
    assert "scan" in text and "remat" in text


@pytest.mark.exhaustive
def test_a_mesh_encodes_the_same_set():
    vit = functools.partial(Vit, patch_size=8, width=WIDTH, depth=1, num_heads=2)
    tower, features = image(encoder=vit, set_pool=GATED, chunk=2), ("embedding", "labels")
    graphdef, params = nnx.split(tower)
    given = {"pixels": pixels(8, 3), "mask": np.random.default_rng(0).random((8, 3)) < 0.7}

    @jax.jit
    def call(params: Any, given: Any) -> Any:
        def loss(params: Any) -> Any:
            made = nnx.merge(graphdef, params)({"own": given}, {"own": features})["own"]
            return sum(jnp.sum(jnp.sin(made[name])) for name in features), made

        return jax.grad(loss, has_aux=True)(params)

    pure = nnx.to_pure_dict(params)
    expected = call(pure, given)
    mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    placed = jax.device_put(pure, sharding.variable_shardings(params, mesh))
    rows = jax.device_put(given, sharding.batch_sharding(mesh))
    assert_close(call(placed, rows), expected, 2e-5, floor=1.0)


class Normed(nnx.Module):
    """Batch norm over the rows of an image."""

    width, local_width, grid = 16, 1, (16, 16)

    def __init__(self, *, image_size: int, rngs: nnx.Rngs) -> None:
        self.norm = make_norm(16, kind="batch", param_dtype=jnp.float32, rngs=rngs)

    def __call__(self, image: Any, *, train: bool, rngs: Any, present: Any = None) -> Features:
        x = apply_norm(self.norm, image.swapaxes(2, 3).swapaxes(1, 3), train, present)
        return Features(x[:, 0, 0] + x[:, 3, 0], None, None)


def test_batch_statistics_are_those_of_the_elements_that_a_mask_marks():
    encoder, heads = Normed, {"embedding": D}
    present = {"pixels": pixels(B, S), "mask": MASK, "present": np.ones(B, bool)}
    tower = image(encoder=encoder, heads=heads, set_pool="mean")
    other = image(encoder=encoder, heads=heads, set_pool="mean")
    wanted = {"own": ("pooled", "elements")}

    def encode(tower: Any, given: Any) -> Any:
        """The encodings of a training pass, and the statistics after it."""
        graphdef, state = nnx.split(tower)

        @jax.jit
        def call(state: Any, given: Any) -> Any:
            module = nnx.merge(graphdef, state)
            made = module({"own": given}, wanted, train=True)["own"]
            return made, nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))

        return call(nnx.to_pure_dict(state), given)

    found, statistics = encode(tower, present)
    marked = {"pixels": present["pixels"][MASK][:, None], "mask": np.ones((4, 1), bool)}
    expected, alone = encode(other, marked)
    assert_close(found["elements"][MASK], expected["elements"][:, 0], 1e-4)
    assert_close(statistics, alone, 1e-4)
    chunked = image(encoder=encoder, heads=heads, set_pool="mean", chunk=2)
    with pytest.raises(InputError, match="chunk=2 with an encoder that learns batch statist"):
        chunked.check("image", wanted)
    chunked.frozen = True
    chunked.check("image", wanted)
    frozen = jax.jit(lambda given: chunked({"own": given}, wanted, train=True)["own"])(present)
    whole = image(encoder=encoder, heads=heads, set_pool="mean")
    evaluated = jax.jit(lambda given: whole({"own": given}, wanted)["own"])(present)
    assert_close(frozen, evaluated)


def test_a_frozen_encoder_gets_no_gradient_and_its_pooler_of_sets_does():
    tower = image(set_pool=GATED, chunk=2)
    tower.frozen = True
    _, gradient = gradients(tower, ("embedding",), {"pixels": pixels(B, S), "mask": MASK})
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient["encoder"]))
    assert np.any(gradient["set_pool"]["content"]["kernel"])


# --- what an encoder is asked


class Asked(nnx.Module):
    """An encoder that notes what it is asked for."""

    width, local_width, grid, takes_kept, takes_hidden = 2, 2, (2, 2), True, True
    layers = (("patch",), ("one",), ("two",))

    def __init__(self) -> None:
        self.calls: list[Any] = nnx.data([])

    def __call__(
        self, image: jax.Array, *, layers: Any = (), attention: bool = False, **options: Any
    ) -> Features:
        shown = {name: value.shape for name, value in options.items() if hasattr(value, "shape")}
        self.calls.append((layers, attention, shown))
        count, regions = len(image), options["kept"].shape[1] if "kept" in options else 4
        local = jnp.zeros((count, regions, 2))
        return Features(
            local[:, 0],
            local,
            None,
            jnp.zeros((count, len(layers), regions, 2)) if layers else None,
            jnp.zeros((count, 3, regions)) if attention else None,
        )


class Plain(nnx.Module):
    """An encoder that knows only what every encoder must."""

    width, local_width, grid = 2, 2, (2, 2)

    def __call__(self, image: Any, *, train: bool, rngs: Any, present: Any = None) -> Features:
        return Features(image[:, 0, 0, :2], image[:, :2, 0, :2], None)


def tower_of(encoder: Any, **options: Any) -> Image:
    given: dict[str, Any] = {"heads": {"embedding": 3}, "size": 16, **options}
    return Image(encoder=encoder, make_rngs=lambda name: nnx.Rngs(0), **given)


def test_an_encoder_is_asked_only_for_what_is_wanted():
    encoder: Any = Asked()
    tower = tower_of(encoder, layers=(2, 1))
    assert tower.features == ("pooled", "embedding", "layers", "attention", "local")
    kept = np.zeros((B, S, 3), np.int32)
    inputs = {
        "image": {"pixels": pixels(B), "present": np.ones(B, bool)},
        "crops": {"pixels": pixels(B, S), "kept": kept},
    }
    tower(inputs, {"image": ("pooled",)})
    assert encoder.calls[-1] == ((), False, {"present": (B,)})
    found = tower(inputs, {"crops": ("layers", "attention", "local")})["crops"]
    assert encoder.calls[-1] == ((2, 1), True, {"kept": (B * S, 3)})
    inputs["crops"]["hidden"] = np.zeros((B, S, 4), bool)
    tower(inputs, {"crops": ("pooled",)})
    assert encoder.calls[-1] == ((), False, {"kept": (B * S, 3), "hidden": (B * S, 4)})
    shapes = {name: value.shape for name, value in found.items()}
    assert shapes == {
        "layers": (B, S, 2, 3, 2),
        "attention": (B, S, 3, 3),
        "local": (B, S, 3, 2),
    }
    assert [tower.width_of(f) for f in tower.features] == [2, 3, 2, 0, 2]
    with pytest.raises(InputError, match="unknown feature 'regions'; choices: pooled, embedding"):
        tower.width_of("regions")


def test_what_an_encoder_cannot_give_is_refused():
    tower = tower_of(Plain())
    assert tower.features == ("pooled", "embedding", "local")
    tower({"image": {"pixels": pixels(B)}}, {"image": ("pooled", "local")})
    for feature in ("attention", "layers"):
        with pytest.raises(InputError, match=f"feature '{feature}'; choices: pooled"):
            tower.check("image", {"image": (feature,)})
    with pytest.raises(InputError, match=r"layers \(1,\) of a Image tower .* Plain; expected \(\)"):
        tower_of(Plain(), layers=(1,))
    with pytest.raises(InputError, match=r"layers \(0,\) .* expected numbers from 1 to 2"):
        tower_of(Asked(), layers=(0,))
    given = {"pixels": pixels(B), "kept": np.zeros((B, 1), np.int32)}
    with pytest.raises(
        InputError, match="input 'image' chooses patches, which Plain does not take"
    ):
        tower({"image": given}, {"image": ("pooled",)})
    given = {"pixels": pixels(B), "hidden": np.zeros((B, 4), bool)}
    with pytest.raises(InputError, match=r"'image' hides patches, .* such as vit, with mask_token"):
        tower({"image": given}, {"image": ("pooled",)})


def test_wrong_options_of_sets_are_refused():
    given = {"pixels": pixels(B, S), "mask": MASK}
    with pytest.raises(InputError, match="a set for a Image tower without set_pool; set config"):
        tower_of(Plain())({"image": given}, {"image": ("pooled",)})
    with pytest.raises(
        InputError, match=r"set_pool .*zones.* depends on the order of the elements"
    ):
        tower_of(Plain(), set_pool={"name": "zones", "size": 1})
    with pytest.raises(InputError, match="chunk -1 of a Image tower; expected 0 or more"):
        tower_of(Plain(), chunk=-1)
    with pytest.raises(InputError, match="feature 'elements'; choices: pooled"):
        tower_of(Plain()).check("image", {"image": ("elements",)})
    with pytest.raises(InputError, match="feature 'set_attention'"):
        tower_of(Plain(), set_pool="mean").check("image", {"image": ("set_attention",)})
    with pytest.raises(InputError, match="feature 'elements' of an input that is no set; expected"):
        tower_of(Plain(), set_pool="mean")(
            {"image": {"pixels": pixels(B)}}, {"image": ("elements",)}
        )
    for name in ("local", "elements", "attention"):
        with pytest.raises(InputError, match=f"head '{name}'=3 of a Image tower; expected"):
            tower_of(Plain(), heads={name: 3})


# --- vectors


def test_a_bag_of_vectors_is_a_set_whose_padding_may_hold_anything():
    encoder = functools.partial(Mlp, size=6, width=5, depth=1)

    def make(rngs: nnx.Rngs) -> Vector:
        return Vector(
            encoder=encoder(rngs=rngs),
            heads={"embedding": D},
            size=6,
            set_pool={"name": "gated_attention", "layers": 1, "features": 7},
            chunk=2,
            make_rngs=lambda name: rngs,
        )

    tower = randomized(make)
    values = np.random.default_rng(0).normal(size=(B, S, 6)).astype(np.float32)
    features = ("pooled", "embedding")
    expected = gradients(tower, features, {"values": values, "mask": MASK}, train=True)
    other = np.where(MASK[..., None], values, np.float32(np.nan))
    found = gradients(tower, features, {"values": other, "mask": MASK}, train=True)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert found[0]["pooled"].shape == (B, 7) and tower.width_of("pooled") == 7
    assert tower.width_of("elements") == 5

    @jax.jit
    def by_hand(values: Any) -> Any:
        elements = tower.encoder(values.reshape(B * S, 6)).pooled.reshape(B, S, 5)
        alone = tower({"vector": {"values": values[:, 3]}}, {"vector": ("pooled",)})["vector"]
        pooled = tower.set_pool(elements, jnp.asarray(MASK))
        return pooled, tower.set_pool(elements[:, 3:4]), alone["pooled"]

    pooled, one, alone = by_hand(values)
    assert_close(found[0]["pooled"], pooled)
    assert_close(alone, one)
