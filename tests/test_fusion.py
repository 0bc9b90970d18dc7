"""Co-attention: gates, masks, order of regions, layers, chunks, heads and parameters."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmrl import config as configs
from mmrl.models.fusion.co_attention import CoAttention
from mmrl.models.layers import LOGICAL_AXES
from mmrl.training import optim
from mmrl.types import InputError
from tests.arrays import assert_close, on_mesh, randomized

B, R, L = 8, 6, 5
WIDTHS = {"image": 12, "text": 8, "text_mask": 1}
EVERYTHING = ("words", "regions", "pooled", "match", "tokens", "embedding")
HEADS = {"match": 2, "embedding": 4, "tokens": {"width": 3, "of": "words", "kind": "linear"}}


@pytest.fixture(autouse=True)
def strict_shapes():
    with jax.numpy_rank_promotion("raise"):
        yield


def fusion(rngs=None, **options):
    given = {"depth": 1, "num_heads": 2, "heads": HEADS, "widths": WIDTHS, **options}
    return CoAttention(**given, make_rngs=lambda name: rngs or nnx.Rngs(0))


def random_fusion(**options):
    return randomized(functools.partial(fusion, **options))


def inputs(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.normal(size=(B, R, 12)).astype(np.float32),
        "text": rng.normal(size=(B, L, 8)).astype(np.float32),
        "text_mask": np.arange(L)[None] < rng.integers(1, L + 1, B)[:, None],
    }


@functools.partial(jax.jit, static_argnums=(0, 1))
def _run(graphdef, wanted, state, given, key):
    return nnx.merge(graphdef, state)(wanted, train=key is not None, key=key, **given)


def run(module, given, wanted=EVERYTHING, key=None):
    graphdef, state = nnx.split(module)
    return jax.tree.map(np.asarray, _run(graphdef, wanted, state, given, key))


@pytest.mark.default_cases(1)
@pytest.mark.parametrize(("direction", "dtype"), [("both", jnp.float32), ("text", jnp.bfloat16)])
def test_a_new_gate_passes_everything_on_bit_for_bit(direction, dtype):
    given = {name: jnp.asarray(x, dtype) if x.ndim == 3 else x for name, x in inputs().items()}
    module = fusion(gate=True, direction=direction, dtype=dtype)
    found = run(module, given)
    np.testing.assert_array_equal(found["words"], given["text"])
    np.testing.assert_array_equal(found["regions"], given["image"])
    np.testing.assert_array_equal(found["pooled"], given["text"][:, 0])
    for path, gate in nnx.iter_graph(module):
        if isinstance(gate, nnx.Param) and str(path[-1]).endswith("_gate"):
            gate[...] = jnp.float32(0.5)
    opened = run(module, given)
    assert (opened["words"] != found["words"]).any()
    assert (opened["regions"] != found["regions"]).any() == (direction == "both")


def test_a_closed_gate_gets_a_gradient():
    graphdef, state = nnx.split(fusion(gate=True))
    given = inputs()

    def loss(state):
        found = nnx.merge(graphdef, state)(("words",), **given)["words"]
        return (found * jnp.arange(8, dtype=jnp.float32)[None, None]).sum()

    slopes = jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(jax.jit(jax.grad(loss))(state)))
    gates = [x for path, x in slopes if path[-1].key.endswith("_gate")]
    assert len(gates) == 3 and all(float(gate) != 0 for gate in gates)


@pytest.mark.default_cases(1)
@pytest.mark.parametrize(("direction", "pool"), [("text", "first"), ("both", "both")])
def test_padding_changes_nothing(pool, direction):
    module, given = random_fusion(pool=pool, direction=direction, depth=2), inputs()
    first = run(module, given)
    mask = given["text_mask"]
    changed = {**given, "text": np.where(mask[..., None], given["text"], np.float32(1e3))}
    second = run(module, changed)
    for name in ("regions", "pooled", "match", "embedding"):
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)
    for name in ("words", "tokens"):
        np.testing.assert_array_equal(first[name][mask], second[name][mask], err_msg=name)


def test_the_order_of_regions_does_not_matter():
    module, given = random_fusion(direction="both", pool="both"), inputs()
    order = np.random.default_rng(1).permutation(R)
    first, second = run(module, given), run(module, {**given, "image": given["image"][:, order]})
    assert_close(second["regions"], first["regions"][:, order])
    for name in ("words", "pooled", "match"):
        assert_close(second[name], first[name])


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("direction", ["text", "both"])
def test_words_depend_on_the_image(direction):
    """And regions on the text, where they attend to it."""
    module, given = random_fusion(direction=direction, depth=2), inputs()
    first = run(module, given)
    other = run(module, {**given, "image": inputs(1)["image"]})
    assert (np.abs(first["words"] - other["words"]).max(axis=(1, 2)) > 1e-4).all()
    other = run(module, {**given, "text": inputs(1)["text"]})
    moved = np.abs(first["regions"] - other["regions"]).max()
    assert moved > 1e-4 if direction == "both" else moved == 0


def value_and_gradients(module, given, mesh=None):
    """Features, and the gradients of a sum of them by parameters, image and text."""
    graphdef, state = nnx.split(module)
    given = dict(given)
    if mesh:
        (given,) = on_mesh(mesh, given)

    @jax.jit
    def both(state, image, text):
        def loss(state, image, text):
            arrays = {**given, "image": image, "text": text}
            found = nnx.merge(graphdef, state)(EVERYTHING, **arrays)
            return sum((jnp.sin(x) ** 2).sum() for x in found.values()), found

        return jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(state, image, text)

    return jax.device_get(both(nnx.to_pure_dict(state), given["image"], given["text"]))


@pytest.fixture(scope="module")
def whole():
    with jax.numpy_dtype_promotion("strict"):
        return value_and_gradients(random_fusion(direction="both"), inputs())


@pytest.mark.parametrize(
    ("options", "mesh"),
    [
        pytest.param({"chunk": 3}, None, marks=pytest.mark.exhaustive),
        ({"chunk": 4, "remat": "dots"}, (2, 2, 2)),
        pytest.param({"remat": "full"}, (8, 1, 1), marks=pytest.mark.exhaustive),
    ],
)
def test_chunks_and_remat_change_neither_values_nor_gradients(options, mesh, whole):
    module = random_fusion(direction="both", **options)
    # The gradient of the bias of a key is 0 but for rounding.
    assert_close(value_and_gradients(module, inputs(), mesh), whole, floor=1.0)


def test_dropout_is_drawn_anew_in_training_alone():
    for options in ({}, {"chunk": 3}):
        module, given = random_fusion(dropout=0.5, **options), inputs()
        first, second = (run(module, given, key=jax.random.key(seed)) for seed in (0, 1))
        assert (first["words"] != second["words"]).any()
        plain = run(random_fusion(**options), given)
        np.testing.assert_array_equal(run(module, given)["words"], plain["words"])


def test_one_of_several_layers_of_an_image():
    given = inputs()
    layers = np.stack([inputs(1)["image"], given["image"]], axis=1)
    plain, second = (random_fusion(depth=1, image_layer=layer) for layer in (None, 1))
    expected = run(plain, given)
    assert_close(run(second, {**given, "image": layers}), expected)
    assert_close(run(plain, {**given, "image": layers[:, 1:]}), expected)
    with pytest.raises(ValueError, match="2 layers; set the option image_layer"):
        run(plain, {**given, "image": layers})


def test_features_state_their_widths():
    for options in ({}, {"width": 16, "direction": "both", "pool": "both"}):
        module = random_fusion(**options)
        found = run(module, inputs())
        assert set(module.features) == set(EVERYTHING)
        for name, x in found.items():
            assert module.width_of(name) == x.shape[-1], name
    assert run(module, inputs(), ("match",)).keys() == {"match"}
    np.testing.assert_allclose(np.linalg.norm(found["embedding"], axis=1), 1, rtol=1e-5)
    out = module.heads.match.out
    pooled = found["pooled"] @ out.kernel[...] + out.bias[...][None]
    assert_close(found["match"], np.asarray(pooled))


def test_regions_of_an_earlier_block_need_nothing_later():
    module = random_fusion(direction="both", depth=2, heads={}, region_block=1)
    found = run(module, inputs(), ("words", "regions"))
    for name in ("words_01", "regions_01", "words_norm", "regions_norm"):
        for _, part in nnx.iter_graph(getattr(module, name)):
            if isinstance(part, nnx.Param):
                part[...] = part[...] * 0
    changed = run(module, inputs(), ("words", "regions"))
    np.testing.assert_array_equal(changed["regions"], found["regions"])
    assert not changed["words"].any() and found["words"].any()


def test_parameters_have_axes_and_gates_do_not_decay():
    module = nnx.eval_shape(lambda: fusion(gate=True, direction="both"))
    for path, variable in nnx.iter_graph(module):
        if isinstance(variable, nnx.Param) and variable.ndim:
            assert set(variable.out_sharding) <= {*LOGICAL_AXES, None}, path
            assert len(variable.out_sharding) == variable.ndim, path
            named = [axis for axis in variable.out_sharding if axis]
            assert len(set(named)) == len(named), path
    params = {"fusions": {"fused": nnx.to_pure_dict(nnx.state(module, nnx.Param))}}
    rules = configs.base().optimizer.rules
    assigned = jax.tree_util.tree_leaves_with_path(optim.assign_rules(params, rules))
    decays = {optim.path_of(path): rules[n].get("weight_decay", 1.0) for path, n in assigned}
    assert {path.rpartition("/")[2] for path, factor in decays.items() if factor} == {"kernel"}
    assert any(path.endswith("cross_gate") for path in decays)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"direction": "image"}, "unknown direction 'image'; choices: text, both"),
        ({"pool": "max"}, "unknown pool 'max'; choices: first, mean, both"),
        ({"gate": True, "width": 16}, "gate with width 16; expected width 0"),
        ({"num_heads": 3}, "num_heads 3, width 8; expected a width that is a multiple"),
        ({"depth": 0}, "depth 0"),
        ({"region_block": 1}, "region_block 1 of 1 blocks with direction text"),
        ({"region_block": 2, "direction": "both"}, "region_block 2 of 1 blocks"),
        ({"dropout": 1.0}, "dropout 1.0"),
        ({"heads": {"words": 3}}, "head 'words'=3 of a CoAttention fusion; expected another name"),
        ({"heads": {"x": {"width": 3, "of": "image"}}}, "choices: pooled, words, regions"),
    ],
)
def test_wrong_options_name_the_choices(options, message):
    with pytest.raises(InputError, match=message):
        nnx.eval_shape(lambda: fusion(**options))
