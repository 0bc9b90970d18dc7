"""Meshes over slices and nodes: the place of each device, and refused sizes."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from mmrl import config as configs
from mmrl.devices import sharding
from mmrl.types import InputError
from tests import toys


@dataclasses.dataclass(frozen=True)
class Device:
    """The attributes of a device that determine its place in a mesh."""

    id: int
    process_index: int = 0
    platform: str = "gpu"
    device_kind: str = "NVIDIA H200"


@dataclasses.dataclass(frozen=True)
class Sliced(Device):
    slice_index: int = 0


def nodes(processes, each, **more):
    """`processes` processes with `each` devices per process."""
    return [Device(i, i // each, **more) for i in range(processes * each)]


def slices(count, each, hosts=1, platform="tpu"):
    """Slices of devices whose kind has no known torus; hosts are numbered over all slices."""
    return [
        Sliced(i, i * hosts // each, platform, "unknown", i // each) for i in range(count * each)
    ]


@pytest.fixture(autouse=True)
def flat_slices(monkeypatch):
    """Keeps the order of devices within a slice, as these have no coordinates in a torus."""
    real = sharding.mesh_utils.create_device_mesh

    def create(shape, devices, **options):
        if devices[0].platform == "tpu":
            return np.asarray(devices).reshape(shape)
        return real(shape, devices, **options)

    monkeypatch.setattr(sharding.mesh_utils, "create_device_mesh", create)


def ids(axes, devices):
    return np.vectorize(lambda device: device.id)(sharding.arrange(axes, devices))


def axes(data, fsdp, tensor, /, **dcn):
    return {"data": data, "fsdp": fsdp, "tensor": tensor, **({"dcn": dcn} if dcn else {})}


@pytest.mark.parametrize("devices", [slices(2, 8), nodes(2, 8), nodes(16, 1)])
def test_what_the_slow_network_connects_is_outermost_on_its_axis(devices):
    """Two slices, nodes of one process, and nodes with one process per GPU; eight devices each."""
    within = np.arange(8).reshape(2, 2, 2)
    across = ids(axes(2, 2, 2, data=2), devices)
    np.testing.assert_array_equal(across, np.concatenate([within, 8 + within], axis=0))
    across = ids(axes(2, -1, 2, fsdp=2), devices)
    np.testing.assert_array_equal(across, np.concatenate([within, 8 + within], axis=1))


def test_both_axes_may_cross_and_minus_one_takes_what_is_left():
    mesh = ids(axes(-1, 2, 1, data=2, fsdp=-1), slices(4, 4))
    assert mesh.shape == (4, 4, 1)
    part = mesh[..., 0] // 4  # the slice of each device
    np.testing.assert_array_equal(part, np.kron([[0, 1], [2, 3]], np.ones((2, 2), int)))


def test_one_slice_and_one_node_are_what_they_were():
    for devices in (nodes(1, 8), slices(1, 8, hosts=2), nodes(4, 2), slices(2, 4, platform="gpu")):
        for given in (axes(-1, 2, 2), axes(2, 2, -1, data=1)):
            np.testing.assert_array_equal(ids(given, devices), np.arange(8).reshape(2, 2, 2))
    here = sharding.make_mesh(axes(-1, 2, 2))
    assert here == jax.make_mesh(
        (2, 2, 2), sharding.MESH_AXES, (jax.sharding.AxisType.Auto,) * 3, devices=jax.devices()
    )
    # One TPU slice is one part, however many hosts it has; so this setting fits any number.
    whole = ids(axes(-1, 1, 1, data=-1), slices(1, 8, hosts=4))
    np.testing.assert_array_equal(whole.ravel(), np.arange(8))


@pytest.mark.parametrize(
    ("given", "devices", "text"),
    [
        (axes(-1, 1, 1), slices(2, 4), "dcn={'data': 1, 'fsdp': 1, 'tensor': 1} does not cover 2"),
        (axes(-1, 1, 1, data=3), slices(2, 4), "does not cover 2 slices; the sizes must multiply"),
        (axes(-1, 1, 1, data=-1, fsdp=-1), slices(2, 4), "does not cover 2 slices"),
        (axes(-1, 1, 1, data=2), slices(1, 8), "does not cover 1 slices"),
        (axes(-1, 1, 1, data=3), nodes(4, 2), "does not divide 4 processes into nodes"),
        (axes(-1, 1, 1, data=0), nodes(4, 2), "does not divide 4 processes into nodes"),
        (axes(-1, 1, 1, data=-1, fsdp=3), nodes(4, 2), "does not cover 4 processes"),
        (axes(-1, 1, 1, tensor=2), nodes(2, 4), "expected tensor 1; choose data or fsdp instead"),
        (axes(-1, 1, 1, tensor=-1), nodes(2, 4), "expected tensor 1"),
        (axes(8, 1, 1, data=2), nodes(2, 4), "cover 4 devices of each of 2 slices or nodes; the"),
        (axes(-1, 3, 1, fsdp=2), slices(2, 4), "cover 4 devices of each of 2 slices or nodes"),
        (axes(-1, 1, 1, data=2), nodes(2, 4)[:-1], "of equal size, got [3, 4] devices"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_in_one_line(given, devices, text):
    with pytest.raises(InputError) as error:
        sharding.arrange(given, devices)
    assert text in str(error.value) and "\n" not in str(error.value)


def test_a_mesh_without_dcn_means_one_slice():
    axes = {name: size for name, size in toys.config().mesh.items() if name != "dcn"}
    assert sharding.make_mesh(axes) == sharding.make_mesh(toys.config().mesh)


def test_a_run_may_go_on_with_another_mesh_and_misspelt_axes_are_refused():
    other = toys.config(mesh__dcn__data=2, mesh__fsdp=4)
    configs.validate(other)
    changed = configs.check_resumable(configs.plain(toys.config()), configs.plain(other))
    assert changed == {"mesh.dcn.data": (1, 2), "mesh.fsdp": (1, 4)}
    with other.unlocked():
        other.mesh.dcn.dta = 2
    with pytest.raises(InputError, match=r"unknown key in config\.mesh\.dcn 'dta' \(did you mean"):
        configs.validate(other)


def test_every_device_has_one_place():
    for data, fsdp in itertools.product((1, 2), (1, 2)):
        mesh = ids(axes(-1, 2, 1, data=data, fsdp=fsdp), slices(data * fsdp, 4))
        assert sorted(mesh.ravel()) == list(range(4 * data * fsdp))
