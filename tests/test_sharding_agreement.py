"""Loss and gradients are equal for all meshes, numbers of processes and implementations."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from mmrl.devices import distributed, sharding
from mmrl.training.step import TrainStep
from tests import stubs
from tests.arrays import assert_close
from tests.conftest import QUICK_XLA_FLAGS, ROOT
from tests.test_distributed import finish, free_port
from tests.test_gradient_cache import batch_of, config

pytestmark = pytest.mark.optax

BATCH = 64
# At most so many pairs of a tile: 64 in chunks of 22, 22 and 20; a share of 8 in 3, 3 and 2.
CHUNK = {"dense": 0, "chunked": 25, "ring": 3}
ONE, DATA, FSDP, ALL_AXES = ({"data": d, "fsdp": f, "tensor": t} for d, f, t in (
    (1, 1, 1), (8, 1, 1), (1, 8, 1), (2, 2, 2)
))  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def registered():
    with stubs.registered():
        yield


def chosen(form, count=1, stub=True):
    """All four objectives, three of which have an `implementation` option."""
    result = config(count, stub=stub)
    result.batch_size = BATCH
    for name in ("global_contrastive", "siglip", "local_contrastive"):
        given = {**result.objectives[name], "implementation": form, "chunk_size": CHUNK[form]}
        result.objectives[name] = given
    return result


def make(settings, axes):
    devices = jax.local_devices()[:1] if axes == ONE else None
    return TrainStep(settings, sharding.make_mesh(axes, devices), batch_of(settings))


@functools.cache
def shipped_start():
    return jax.device_get(make(chosen("dense", stub=False), ONE).init())


def compute(form, axes, count=1, stub=True):
    """Loss and gradients, NaN where only another process holds them."""
    settings = chosen(form, count, stub)
    step = make(settings, axes)
    state = stubs.start(step) if stub else jax.device_put(shipped_start(), step.shardings)
    rows = sharding.local_rows(step.mesh, BATCH)
    local = {name: array[rows] for name, array in batch_of(settings).items()}
    batch = sharding.to_global(local, sharding.batch_sharding(step.mesh), rows, BATCH)
    return jax.tree.map(held, step.loss_and_gradients(state, batch))


def held(array):
    """The part of an array that this process holds."""
    result = np.full(array.shape, np.nan, array.dtype)
    for shard in array.addressable_shards:
        result[shard.index] = shard.data
    return result


@functools.cache
def expected(stub=True):
    """Results on one device with the dense form."""
    return compute("dense", ONE, stub=stub)


def assert_agrees(found, stub=True):
    """1e-5 relative; gradients relative to the largest entry of each leaf."""
    np.testing.assert_allclose(found[0], expected(stub)[0], rtol=1e-5)
    assert_close(found[1], expected(stub)[1], floor=1e-3)


MORE = pytest.mark.exhaustive


@pytest.mark.default_cases(1)
@pytest.mark.parametrize(
    ("form", "axes", "count"),
    [
        ("chunked", ONE, 1),
        pytest.param("dense", DATA, 1, marks=MORE),
        pytest.param("dense", FSDP, 1, marks=MORE),
        ("dense", ALL_AXES, 1),
        pytest.param("chunked", DATA, 1, marks=MORE),
        pytest.param("chunked", FSDP, 1, marks=MORE),
        pytest.param("chunked", ALL_AXES, 1, marks=MORE),
        pytest.param("ring", DATA, 1, marks=MORE),
        pytest.param("ring", FSDP, 1, marks=MORE),
        ("ring", ALL_AXES, 1),
        ("dense", FSDP, 4),
        pytest.param("ring", ALL_AXES, 4, marks=MORE),
    ],
    ids=lambda value: "x".join(map(str, value.values())) if isinstance(value, dict) else None,
)
def test_every_mesh_and_every_form_give_one_loss_and_one_gradient(form, axes, count):
    assert_agrees(compute(form, axes, count))


@pytest.mark.exhaustive
def test_the_shipped_encoders_under_fsdp_do_so_too():
    assert_agrees(compute("ring", FSDP, stub=False), stub=False)


# Two processes of four devices.


def work(port: str, process: str, folder: str, *forms: str) -> None:
    """The work of each of two processes, on a mesh whose data axis spans both."""
    jax.config.update("jax_num_cpu_devices", 4)
    distributed.start(distributed.Settings(f"localhost:{port}", 2, int(process)))
    axes = {"data": 2, "fsdp": -1, "tensor": 1, "dcn": {"data": -1}}
    with stubs.registered(), jax.numpy_dtype_promotion("standard"):
        for form in forms:
            loss, gradients = compute(form, axes)
            leaves = {str(i): leaf for i, leaf in enumerate(jax.tree.leaves(gradients))}
            np.savez(Path(folder) / f"{form}-{process}.npz", loss=loss, **leaves)
    distributed.exit_soon(1)


# test_distributed.py trains in the dense form on two processes.
@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("forms", [("ring",), ("dense", "chunked")])
def test_two_processes_give_the_loss_and_the_gradient_of_one(forms, tmp_path):
    port, code = str(free_port()), "import sys; from tests.test_sharding_agreement import work; "
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", f"{code}work(*sys.argv[1:])", port, process, tmp_path, *forms],
            cwd=ROOT,
            env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": QUICK_XLA_FLAGS},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in "01"
    ]
    finish(processes, 0)
    for form in forms:
        one, two = (dict(np.load(tmp_path / f"{form}-{process}.npz")) for process in "01")
        for name in one:
            both = ~np.isnan(one[name] + two[name])
            np.testing.assert_array_equal(one[name][both], two[name][both])
        leaves = [np.fmax(one[str(i)], two[str(i)]) for i in range(len(one) - 1)]
        structure = jax.tree.structure(expected()[1])
        assert_agrees((one["loss"], jax.tree.unflatten(structure, leaves)))
