"""Sharding of all parameters of the shipped configs, and of the state that belongs to them."""

import difflib
import math

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from mmrl.devices import sharding
from mmrl.training.step import TrainStep
from tests import specs, toys
from tests.test_gradient_cache import batch_of

SHIPPED = pytest.mark.parametrize("config", specs.shipped(), ids=lambda path: path.stem)


@pytest.mark.default_cases(8)
@SHIPPED
def test_every_parameter_lives_where_the_listing_says(config):
    stored = specs.golden(config)
    before = stored.read_text(encoding="utf-8") if stored.exists() else ""
    changes = difflib.unified_diff(
        before.splitlines(), specs.listing(config).splitlines(), "stored", "now", lineterm="", n=0
    )
    listed = "\n".join(changes)
    assert not listed, f"if this is meant, run: python -m tests.specs\n{listed}"


@pytest.mark.default_cases(8)
@SHIPPED
def test_no_large_parameter_is_held_whole(config):
    """FSDP divides all large parameters; tensor divides the tables and hidden layers of blocks."""
    for path, array in jax.tree_util.tree_leaves_with_path(specs.layout(config).params):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        of_a_layer = array.shape[1:] if "/blocks/" in name else array.shape
        if math.prod(of_a_layer) >= 4096 and not name.endswith("bias"):
            assert "fsdp" in array.sharding.spec, name
        if name.endswith(("mlp/wide/kernel", "mlp/out/kernel", "token/embedding")):
            assert "tensor" in array.sharding.spec, name


def test_no_listing_is_left_of_a_config_that_is_gone():
    assert {path.name for path in specs.GOLDEN.glob("*.txt")} == {
        specs.golden(config).name for config in specs.shipped()
    }


def test_optimizer_state_and_average_live_with_their_parameters():
    config = toys.config(
        average__decay=0.9, average__evaluate=True, towers__image__scan_layers=True
    )
    step = TrainStep(config, sharding.make_mesh(specs.AXES), batch_of(config))
    params = jax.tree.leaves(step.shardings["params"])
    assert jax.tree.leaves(step.shardings["average"]) == params
    adam = [
        part
        for part in jax.tree.leaves(step.shardings["opt_state"], is_leaf=lambda x: hasattr(x, "mu"))
        if hasattr(part, "mu")
    ]
    assert [jax.tree.leaves(part.mu) for part in adam] == [params]
    assert [jax.tree.leaves(part.nu) for part in adam] == [params]


def placed(shape, names, axes=(2, 2, 2)):
    mesh = sharding.make_mesh(dict(zip(sharding.MESH_AXES, axes, strict=True)))
    variable = nnx.Param(np.zeros(shape, np.float32), out_sharding=names)
    return sharding.variable_shardings(nnx.State({"x": variable}), mesh)["x"].spec


@pytest.mark.parametrize(
    ("shape", "names", "expected"),
    [
        ((96, 384), ("embed", "mlp"), P("fsdp", "tensor")),
        ((97, 384), ("embed", "mlp"), P(None, "tensor")),  # nothing left for fsdp
        ((384, 64), ("mlp", "joint"), P("tensor", "fsdp")),  # named for none, still divided
        ((96, 3, 3, 32), ("embed", "qkv", "heads", "head_dim"), P("fsdp", None, None, None)),
        ((97, 3, 4, 32), ("embed", "qkv", "heads", "head_dim"), P(None, None, "tensor", "fsdp")),
        ((4, 97, 64), ("layers", "embed", "position"), P(None, None, "fsdp")),
        ((4, 97, 63), ("layers", "embed", "position"), P(None, None, None)),  # not over layers
        ((7, 7, 1, 64), (None, None, "channels_in", "channels_out"), P(None, None, None, "tensor")),
        ((64, 6, 1, 63), (None, None, "channels_in", "channels_out"), P("fsdp", None, None, None)),
        ((4000,), ("norm",), P(None)),
        ((4096,), ("norm",), P("fsdp")),
        ((), (), P()),
    ],
)
def test_dimensions_that_do_not_divide_give_way_to_others(shape, names, expected):
    assert placed(shape, names) == expected


def test_every_device_holds_its_share():
    """Bytes of parameters, optimizer state and average with FSDP over all devices."""
    config = toys.config(
        average__decay=0.9, average__evaluate=True, towers__image__width=96, towers__text__width=96
    )
    axes = {"data": 1, "fsdp": 8, "tensor": 1}
    step = TrainStep(config, sharding.make_mesh(axes), batch_of(config))
    for name in ("params", "opt_state", "average"):
        whole = held = 0
        for array in jax.tree.leaves(step.target()[name]):
            whole += array.dtype.itemsize * array.size
            held += array.dtype.itemsize * math.prod(array.sharding.shard_shape(array.shape))
        assert 1 <= 8 * held / whole < 1.15, name
