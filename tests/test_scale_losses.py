"""Pairwise losses in tiles and on a ring: equal results on every mesh, and little memory."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import local_loss
from mmrl.objectives import all_pairs, tiles
from mmrl.objectives.base import Context
from mmrl.objectives.global_contrastive import GlobalContrastive, contrastive_loss
from mmrl.objectives.local_contrastive import LocalContrastive, local_contrastive_loss
from mmrl.objectives.siglip import Siglip, siglip_loss
from mmrl.types import InputError
from mmrl.vectors import contract
from tests import references
from tests.arrays import assert_close, on_mesh, unit

B, W, R, D = 24, 10, 5, 6
SCALE, BIAS = np.float32(2.3), np.float32(-3.0)
MESHES = (
    pytest.param((8, 1, 1), marks=pytest.mark.exhaustive),
    pytest.param((1, 8, 1), marks=pytest.mark.exhaustive),
    (2, 2, 2),  # a ring of eight over three axes
)


def make_inputs(size=B, regions=R):
    """Features by name; repeated groups; captions of 0 to W words, one of them with gaps."""
    rng = np.random.default_rng(0)
    mask = np.arange(W)[None] < rng.integers(1, W + 1, size=size)[:, None]
    mask[3], mask[4] = False, np.arange(W) % 3 == 1
    features = {
        "image": unit(size, D, seed=1),
        "text": unit(size, D, seed=2),
        "words": rng.normal(size=(size, W, D)).astype(np.float32),
        "regions": rng.normal(size=(size, regions, D)).astype(np.float32),
    }
    group = rng.integers(0, size // 2, size=size).astype(np.int32)
    return features, {"mask": mask, "group": group}


def losses(features, marks, implementation, chunk_size=0):
    """Global, sigmoid and local loss of the same pairs."""
    options = {
        "group": marks["group"],
        "implementation": implementation,
        "chunk_size": chunk_size,
    }
    image, text, scale = features["image"], features["text"], features["scale"]
    return {
        "global": contrastive_loss(image, text, scale, **options),
        "siglip": siglip_loss(image, text, scale, features["bias"], **options),
        "local": local_contrastive_loss(
            features["words"], marks["mask"], features["regions"], **options
        ),
    }


def value_and_gradients(features, marks, implementation, chunk_size=0):
    """All losses, and the gradients of their sum with different weights."""
    features = {**features, "scale": jnp.float32(SCALE), "bias": jnp.float32(BIAS)}

    @jax.jit
    def both(features, marks):
        def weighted(features):
            values = losses(features, marks, implementation, chunk_size)
            return values["global"] + 2.0 * values["siglip"] + 3.0 * values["local"], values

        return jax.grad(weighted, has_aux=True)(features)

    return jax.device_get(both(features, marks))


@pytest.fixture(scope="module")
def dense():
    with jax.numpy_dtype_promotion("strict"):
        return value_and_gradients(*make_inputs(), "dense")


def test_the_dense_form_is_the_formula(dense):
    """The dense form, with which the other forms are compared, equals a float64 reference."""
    features, marks = make_inputs()
    features = {name: x.astype(np.float64) for name, x in features.items()}
    has_words = marks["mask"].any(axis=1)
    local = np.zeros((B, B))
    local[:, has_words] = references.similarity(
        features["words"][has_words], marks["mask"][has_words], features["regions"]
    )
    image, text, group = features["image"], features["text"], marks["group"]
    expected = {
        "global": references.contrastive(image, text, np.float64(SCALE), group),
        "local": references.two_way(local, group),
        "siglip": references.siglip(image, text, np.float64(SCALE), np.float64(BIAS), group),
    }
    assert_close(dense[1], expected)


def test_chunks_give_the_same_loss_and_gradients(dense):
    """24 pairs in chunks of 5: the fifth overlaps the fourth, and no pair counts twice."""
    assert tiles.tile_shape(B, B, 1, 5) == (5, 5)
    assert_close(value_and_gradients(*make_inputs(), "chunked", 5), dense)


@pytest.mark.parametrize("axes", MESHES)
def test_the_ring_gives_the_same_loss_and_gradients_on_every_mesh(dense, axes):
    """3 pairs per device in chunks of 2, of which the second overlaps the first."""
    assert_close(value_and_gradients(*on_mesh(axes, *make_inputs()), "ring", 2), dense)


def test_devices_that_cannot_join_the_ring_hold_copies():
    """12 pairs on 2 x 2 x 2: data and fsdp divide them, tensor holds copies."""
    features, marks = make_inputs(12)
    image, text = features["image"], features["text"]

    def gradient(implementation, image, text, group):
        def loss(image, text, scale):
            return contrastive_loss(image, text, scale, group=group, implementation=implementation)

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(image, text, jnp.float32(SCALE))

    spread = on_mesh((2, 2, 2), image, text, marks["group"])
    assert_close(gradient("ring", *spread), gradient("dense", image, text, marks["group"]))


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("implementation", ["dense", "chunked"])
def test_contexts_written_out_give_the_same(implementation):
    """With many regions and few channels, the Gram matrix saves no work, see `_prepare`."""
    features, marks = make_inputs(6, regions=5 * D)
    mask, group = marks["mask"] | (np.arange(W) == 0), marks["group"]

    @jax.jit
    def loss(words, regions):
        return local_contrastive_loss(
            words, mask, regions, group=group, implementation=implementation, chunk_size=4
        )

    got = loss(features["words"], features["regions"])
    wide = (features["words"].astype(np.float64), mask, features["regions"].astype(np.float64))
    assert got == pytest.approx(references.local(*wide, group=group), rel=1e-5)


def local(words, mask, regions):
    return local_contrastive_loss(words, mask, regions, implementation="chunked", chunk_size=3)


def test_padded_words_change_nothing_and_get_no_gradient():
    features, marks = make_inputs(6)
    words, mask, regions = features["words"], marks["mask"], features["regions"]
    garbage = 100 * np.random.default_rng(5).normal(size=(6, 4, D)).astype(np.float32)
    longer = np.concatenate([words, garbage], axis=1)
    longer_mask = np.concatenate([mask, np.zeros((6, 4), bool)], axis=1)
    gradient = jax.jit(jax.value_and_grad(local, argnums=(0, 2)))
    short, long = gradient(words, mask, regions), gradient(longer, longer_mask, regions)
    assert_close((long[0], long[1][0][:, :W], long[1][1]), (short[0], *short[1]))
    np.testing.assert_array_equal(long[1][0][:, W:], 0)


def test_tiles_of_short_captions_are_cut_to_their_words():
    """A tile is as wide as its longest caption; words that are cut off are never read."""
    seen = []

    def logits(params, rows, columns, mask):
        seen.append(columns.shape[1])
        return jnp.einsum("bd,cwd->bc", rows, columns)

    tiled = tiles.TiledLoss(logits, tiles.SigmoidLoss(), (3, 3), widths=(4, 8, 10))
    for longest, index in ((1, 0), (4, 0), (5, 1), (8, 1), (9, 2), (10, 2)):
        mask = np.arange(W)[None] < np.array([[longest], [1], [0]])
        assert tiled.width_index(jnp.asarray(mask)) == index
    features, marks = make_inputs(6)
    words, mask = features["words"], np.array(marks["mask"])
    mask[:, 4:] = False
    words[:, 4:] = np.nan  # were a wider tile computed, its sum would show it
    value = all_pairs.pair_loss(
        tiled,
        (),
        features["image"],
        words,
        group=None,
        mask=jnp.asarray(mask),
        ring=all_pairs.Ring(),
    )
    assert sorted(set(seen)) == [4, 8, 10] and np.isfinite(value)


def dots(jaxpr):
    """(operand types, result type) of every matrix product, in loops and branches too."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            *inputs, out = (v.aval.dtype.name for v in (*equation.invars, *equation.outvars))
            yield (*inputs, out)
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        ):
            if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                yield from dots(getattr(inner, "jaxpr", inner))


@pytest.mark.parametrize("implementation", ["dense", "chunked"])
def test_bfloat16_features_are_multiplied_in_bfloat16_and_added_in_float32(implementation):
    features, marks = make_inputs()
    narrow = {name: jnp.asarray(x, jnp.bfloat16) for name, x in features.items()}
    scalars = {"scale": jnp.float32(SCALE), "bias": jnp.float32(BIAS)}
    gradient = jax.grad(lambda f: sum(losses(f, marks, implementation, 5).values()))
    program = jax.make_jaxpr(gradient)({**narrow, **scalars})
    assert set(dots(program.jaxpr)) == {("bfloat16", "bfloat16", "float32")}
    assert [x.dtype.name for x in program.out_avals].count("bfloat16") == len(features)


def test_bfloat16_costs_no_more_than_its_own_rounding():
    features, marks = make_inputs()

    def gradient(implementation, dtype):
        def loss(words, regions):
            return local_contrastive_loss(
                words, marks["mask"], regions, implementation=implementation, chunk_size=5
            )

        inputs = (features["words"].astype(dtype), features["regions"].astype(dtype))
        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(*inputs)

    (got, slopes), expected = gradient("chunked", jnp.bfloat16), gradient("dense", jnp.float32)
    assert got.dtype == jnp.float32
    assert_close(got, expected[0], 1e-2)
    assert_close(slopes, expected[1], 3e-2)


def test_products_have_the_gradients_of_einsum():
    one, two = unit(3, 4, D, seed=0), unit(2, 5, D, seed=1)
    weight = unit(3, 4, 2, 5, seed=2)

    def of(product):
        return jax.grad(lambda a, b: jnp.sum(weight * product(a, b)), argnums=(0, 1))(one, two)

    expected = of(lambda a, b: jnp.einsum("brd,cwd->brcw", a, b))
    assert_close(of(lambda a, b: contract("brd,cwd->brcw", a, b, jnp.float32)), expected)


def test_auto_takes_what_the_batch_and_the_mesh_ask_for():
    here = jnp.zeros((64, 2))
    spread = on_mesh((2, 2, 2), here)[0]
    assert all_pairs.choose("auto", 64, 4096, here)[0] == "dense"
    assert all_pairs.choose("auto", 64, 4097, here) == ("tiled", all_pairs.Ring())
    # Eight devices share the rows of the dense form, too.
    assert all_pairs.choose("auto", 64, 8 * 4096, spread)[0] == "dense"
    form, ring = all_pairs.choose("auto", 64, 8 * 4096 + 1, spread)
    assert (form, ring.axes, ring.size) == ("tiled", ("data", "fsdp", "tensor"), 8)
    assert all_pairs.choose("chunked", 64, 1, spread) == ("tiled", all_pairs.Ring())
    assert all_pairs.choose("ring", 64, 1, here) == ("tiled", all_pairs.Ring())
    assert all_pairs.choose("ring", 12, 1, spread)[1].axes == ("data", "fsdp")
    with jax.sharding.use_abstract_mesh(jax.typeof(spread).sharding.mesh):
        assert all_pairs.choose("ring", 64, 1, here)[1].size == 8


def test_options_that_cannot_be_are_refused():
    for objective in (GlobalContrastive, LocalContrastive, Siglip):
        with pytest.raises(InputError, match=r"'rings'.*choices: auto, dense, chunked, ring"):
            objective(implementation="rings")
        with pytest.raises(InputError, match="chunk_size=-1"):
            objective(chunk_size=-1)
    spread = on_mesh((2, 2, 2), jnp.zeros((4, 2)))[0]
    with pytest.raises(InputError, match="multiple of the devices"):
        all_pairs.choose("ring", 6, 1, spread)


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("objective", [GlobalContrastive, LocalContrastive, Siglip])
def test_objectives_compute_the_form_they_were_built_for(objective):
    features, marks = make_inputs(6)
    arrays = {**features, "word_mask": marks["mask"], "group": marks["group"]}
    read = {name: jnp.asarray(arrays[name]) for name in (*objective.reads, *objective.batch)}
    context = Context(step=jnp.int32(0))
    forms = {name: objective(implementation=name, chunk_size=4) for name in ("dense", "chunked")}
    programs = {
        name: str(jax.make_jaxpr(lambda m=module: m(context=context, **read).value)())
        for name, module in forms.items()
    }
    loops = {name: "while" in text or "scan" in text for name, text in programs.items()}
    assert loops == {"dense": False, "chunked": True}
    values = [module(context=context, **read).value for module in forms.values()]
    assert_close(values[1], values[0])


@pytest.mark.exhaustive
def test_bytes_grow_with_the_share_and_the_benchmark_says_so(tmp_path, capsys):
    """Tiles of 8 at W = 8, R = 9, D = 12; temporaries per device of value and gradients."""
    file = tmp_path / "rows.json"
    sizes = ["--words=8", "--regions=9", "--width=12", "--chunk=8", f"--json={file}"]
    local_loss.main([*sizes, "--batches=16", "--devices=1", "--time-up-to=16", "--rounds=1"])
    assert "dense is" in capsys.readouterr().out
    assert [row["milliseconds"] > 0 for row in json.loads(file.read_text())["rows"]] == [True] * 2
    held = {}
    for form, devices in (("chunked", 1), ("ring", 8)):
        local_loss.main([*sizes, "--batches=1024,2048", f"--devices={devices}", f"--forms={form}"])
        for row in json.loads(file.read_text())["rows"]:
            held[form, row["case"]["batch"]] = sum(
                row[f"{kind}_bytes"] for kind in ("temporary", "argument", "output")
            )
    assert held["chunked", 2048] < 2.1 * held["chunked", 1024]
    assert held["ring", 2048] < 2.1 * held["ring", 1024]
    assert held["ring", 2048] < held["chunked", 2048] / 3
    assert held["chunked", 2048] < 2048**2 * 8 * 9 * 4 / 20  # one array of the dense form
