"""FLOPs of traced programs, compared with closed forms and with XLA's cost analysis."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas

from mmrl.devices import flops
from mmrl.training.step import TrainStep
from tests import toys


def shape(*dimensions, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(dimensions, dtype)


def test_matrix_products_by_hand():
    assert flops.count(jnp.matmul, shape(3, 5), shape(5, 7)) == 2 * 3 * 5 * 7
    batched = functools.partial(jnp.einsum, "bld,bmd->blm")
    assert flops.count(batched, shape(2, 3, 4), shape(2, 5, 4)) == 2 * 2 * 3 * 5 * 4
    assert flops.count(jnp.add, shape(3, 5), shape(3, 5)) == 0


def test_convolutions_by_hand():
    convolve = functools.partial(
        jax.lax.conv_general_dilated,
        window_strides=(2, 2),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    assert flops.count(convolve, shape(2, 8, 8, 3), shape(3, 3, 3, 16)) == (
        2 * (2 * 4 * 4 * 16) * 9 * 3
    )


def test_loops_branches_and_wrappers():
    def scanned(x, weights):
        return jax.lax.scan(lambda c, w: (c @ w, None), x, weights)[0]

    one = 2 * 4 * 6 * 6
    assert flops.count(scanned, shape(4, 6), shape(5, 6, 6)) == 5 * one
    for wrap in (jax.jit, jax.checkpoint):
        assert flops.count(wrap(scanned), shape(4, 6), shape(5, 6, 6)) == 5 * one

    def branched(x, w):
        return jax.lax.cond(x[0, 0] > 0, lambda: x @ w @ w, lambda: x @ w)

    assert flops.count(branched, shape(4, 6), shape(6, 6)) == 2 * one


def test_kernels_count_once_for_each_program():
    def kernel(x, w, out):
        out[...] = x[...] @ w[...]

    def product(x, w):
        rows = pallas.BlockSpec((8, 6), lambda i: (i, 0))
        whole = pallas.BlockSpec((6, 6), lambda i: (0, 0))
        result = jax.ShapeDtypeStruct((32, 6), jnp.float32)
        call = pallas.pallas_call(
            kernel, out_shape=result, grid=(4,), in_specs=[rows, whole], out_specs=rows
        )
        return call(x, w)

    assert flops.count(product, shape(32, 6), shape(6, 6)) == 2 * 32 * 6 * 6


def forward(config):
    """The loss as a function, with abstract arguments."""
    (real,) = toys.batches(config)
    batch = {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in real.items()}
    step = TrainStep(config, toys.one_device(), batch)

    def loss(params, variables, batch):
        return step._loss(params, None, variables, batch, jnp.int32(0), None)[0]

    return loss, (step.layout.params, step.layout.variables, batch)


def wide(**changes):
    sizes = {f"towers__{side}__width": 128 for side in ("image", "text")}
    return toys.config(**sizes, towers__text__length=40, towers__text__depth=2, **changes)


def test_the_whole_loss_agrees_with_the_compiler():
    loss, arguments = forward(wide())
    counted = flops.count(loss, *arguments)
    # The compiler also counts what is no matrix product: a few per cent at this width.
    by_compiler = jax.jit(loss).lower(*arguments).cost_analysis()["flops"]
    assert counted < by_compiler < 1.2 * counted


def test_scanned_layers_count_as_often_as_they_run():
    unrolled = flops.count(*splat(forward(wide())))
    config = wide()
    for side in ("image", "text"):
        config.towers[side].scan_layers = True
        config.towers[side].remat = "full"
    assert flops.count(*splat(forward(config))) == unrolled


def splat(pair):
    return pair[0], *pair[1]


@pytest.mark.parametrize("kind", ["TPU v5 lite", "TPU v5e", "TPU v5p", "NVIDIA H200"])
def test_known_devices_have_a_peak(kind):
    assert flops.peak(kind) == {"TPU v5p": 459e12, "NVIDIA H200": 989e12}.get(kind, 197e12)


def test_unknown_devices_have_none():
    assert flops.peak("cpu") is None
