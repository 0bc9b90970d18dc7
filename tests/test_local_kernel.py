"""The fused word-region kernel: results when interpreted, and compilation for TPU."""

import functools
import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks import local_loss
from mmrl.objectives import local_contrastive, local_kernel
from mmrl.objectives.base import Context
from mmrl.objectives.local_contrastive import LocalContrastive, local_contrastive_loss
from mmrl.planning import topology
from mmrl.types import InputError
from tests.arrays import assert_close, on_mesh

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"
)
SETTING = {"temperatures": (4.0, 5.0, 10.0), "dtype": jnp.dtype("float32")}


def make_inputs(images, captions, words, regions, width):
    """Captions of 1 to W words, one without words and one with gaps."""
    rng = np.random.default_rng(0)
    mask = np.arange(words)[None] < rng.integers(1, words + 1, size=captions)[:, None]
    mask[1], mask[2] = False, np.arange(words) % 3 == 1
    return (
        rng.normal(size=(captions, words, width)).astype(np.float32),
        mask,
        rng.normal(size=(images, regions, width)).astype(np.float32),
    )


@pytest.mark.default_cases(1)
@pytest.mark.parametrize(
    ("images", "captions", "words", "regions", "width"),
    [(2, 19, 40, 140, 130), (1, 3, 16, 128, 8)],
)
def test_the_kernel_computes_what_the_tile_does(images, captions, words, regions, width):
    """Values and gradients, with three blocks and with one, with and without padding."""
    words, mask, regions = make_inputs(images, captions, words, regions, width)
    slope = np.random.default_rng(1).normal(size=(images, captions)).astype(np.float32)

    def gradients(form, prepare):
        @jax.jit
        def similarity(regions, words):
            images = prepare(regions, dtype=jnp.dtype("float32"))
            return form((), images, words, jnp.asarray(mask), **SETTING)

        value, back = jax.vjp(similarity, regions, words)
        return value, back(slope)

    kernel = functools.partial(local_kernel.similarity, regions=regions.shape[1])
    got = gradients(kernel, local_kernel.prepare)
    assert_close(got, gradients(local_contrastive._tile, local_contrastive._prepare))
    np.testing.assert_array_equal(got[0][:, 1], 0.0)
    np.testing.assert_array_equal(got[1][1][~mask], 0.0)


def loss_and_gradients(words, mask, regions, group, **options):
    def loss(words, regions):
        return local_contrastive_loss(words, mask, regions, group=group, **options)

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(words, regions)


@pytest.fixture(scope="module")
def batch():
    group = np.array([0, 1, 2, 1, 4, 5, 6, 5, 8, 9, 10, 11, 0, 13, 14, 15], np.int32)
    return *make_inputs(16, 16, 12, 5, 6), group


def test_vectors_of_zeros_have_finite_gradients():
    words, mask, regions = make_inputs(3, 3, 4, 5, 6)
    words[0], regions[1] = 0.0, 0.0
    group = np.arange(3, dtype=np.int32)
    got = loss_and_gradients(words, mask, regions, group, tile="kernel")
    assert_close(got, loss_and_gradients(words, mask, regions, group, implementation="dense"))


@pytest.fixture(scope="module")
def dense(batch):
    with jax.numpy_dtype_promotion("strict"):
        return loss_and_gradients(*batch, implementation="dense")


def test_the_loss_in_tiles_is_the_dense_one(batch, dense):
    """16 pairs in tiles of 6, of which the last overlaps; captions are cut to 8 or 12 words."""
    got = loss_and_gradients(*batch, implementation="chunked", chunk_size=6, tile="kernel")
    assert_close(got, dense)


def test_the_ring_on_eight_devices_is_the_dense_loss(batch, dense):
    (spread,) = on_mesh((2, 2, 2), batch)
    got = loss_and_gradients(*spread, implementation="ring", tile="kernel")
    assert_close(got, dense)


def test_bfloat16_costs_no_more_than_its_own_rounding(batch, dense):
    words, mask, regions, group = batch
    narrow = (words.astype(jnp.bfloat16), mask, regions.astype(jnp.bfloat16), group)
    got, slopes = loss_and_gradients(*narrow, tile="kernel")
    assert {x.dtype for x in slopes} == {jnp.dtype(jnp.bfloat16)}
    assert_close(got, dense[0], 1e-2)
    assert_close(slopes, dense[1], 3e-2)


def test_tiles_fit_what_a_core_holds():
    assert local_kernel.tile_shape(1024, 64, 256, 0) == (32, 256)
    assert local_kernel.tile_shape(1024, 128, 768, 0) == (32, 40)
    assert local_kernel.tile_shape(1000, 4096, 4096, 0) == (32, 8)
    assert local_kernel.tile_shape(40, 64, 256, 24) == (20, 20)
    assert local_kernel.tile_shape(3, 10, 6, 0) == (3, 3)


def test_objectives_take_the_kernel_only_when_told(batch):
    words, mask, regions, group = map(jnp.asarray, batch)
    read = {"regions": regions, "words": words, "word_mask": mask, "group": group}
    context = Context(step=jnp.int32(0))
    programs = {
        tile: str(jax.make_jaxpr(lambda o=objective: o(context=context, **read).value)())
        for tile, objective in (
            ("xla", LocalContrastive()),
            ("kernel", LocalContrastive(tile="kernel")),
        )
    }
    assert {tile: "pallas_call" in text for tile, text in programs.items()} == {
        "xla": False,
        "kernel": True,
    }


def test_what_the_kernel_cannot_do_is_refused(monkeypatch, batch):
    with pytest.raises(InputError, match=r"'kernal'.*choices: xla, kernel"):
        LocalContrastive(tile="kernal")
    with pytest.raises(InputError, match="choose auto, chunked or ring"):
        LocalContrastive(tile="kernel", implementation="dense")
    with pytest.raises(InputError, match=r"up to 40, got 50"):
        LocalContrastive(tile="kernel", temperatures=(50.0, 5.0, 10.0))
    (spread,) = on_mesh((8, 1, 1), batch)
    with pytest.raises(InputError, match="on 8 devices needs implementation='ring'"):
        loss_and_gradients(*spread, implementation="chunked", tile="kernel")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with pytest.raises(InputError, match="TPU"):
        loss_and_gradients(*batch, tile="kernel")


@pytest.mark.slow
@needs_libtpu
def test_the_ring_compiles_for_tpu():
    """Loss and gradients; 196 regions are not a multiple of the lanes of a register."""
    mesh = Mesh(np.array(topology.find("v5e:2x2").devices), ("data",))
    spread = NamedSharding(mesh, P("data"))
    shapes = [
        jax.ShapeDtypeStruct(shape, dtype, sharding=spread)
        for shape, dtype in (
            ((8, 8, 128), jnp.bfloat16),
            ((8, 8), jnp.bool_),
            ((8, 196, 128), jnp.bfloat16),
            ((8,), jnp.int32),
        )
    ]

    def gradient(words, mask, regions, group):
        options = {"group": group, "implementation": "ring", "tile": "kernel"}
        return jax.grad(lambda w, r: local_contrastive_loss(w, mask, r, **options), argnums=(0, 1))(
            words, regions
        )

    program = jax.jit(gradient).lower(*shapes).compile()
    assert "tpu_custom_call" in program.as_text()


@pytest.mark.slow
@needs_libtpu
def test_the_benchmark_compiles_the_kernel_for_one_tpu(tmp_path):
    file = tmp_path / "rows.json"
    sizes = ["--words=8", "--regions=130", "--width=12", "--batches=16", "--devices=1"]
    local_loss.main([*sizes, "--topology=v5e:2x2", "--forms=kernel", f"--json={file}"])
    result = json.loads(file.read_text())
    assert result["device"] == "TPU v5 lite"
    assert [row["case"]["form"] for row in result["rows"]] == ["kernel"]
    with pytest.raises(SystemExit):
        local_loss.main(["--topology=v5e:2x2", "--time-up-to=16"])
