"""The mathematics did not move when towers and objectives got names.

tests/first_edition.json holds the loss, the FLOPs and the norm of every gradient that the
first edition (two towers, fixed names) computed for the toy config, with parameters filled by
`fill`, and the table of its parameter paths.
"""

import hashlib
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrl.devices import flops
from mmrl.training.optim import path_of
from mmrl.training.step import TrainStep
from tests import toys
from tests.conftest import ROOT

STORED = json.loads((ROOT / "tests/first_edition.json").read_text("utf-8"))


def old_path(path: str) -> str:
    for pattern, old in STORED["paths"]:
        if match := re.fullmatch(pattern, path):
            return match.expand(old)
    raise AssertionError(f"no path of the first edition for {path}")


def fill(path: str, leaf: jax.Array) -> jax.Array:
    """Values that depend on the path of the first edition alone."""
    seed = int.from_bytes(hashlib.blake2b(path.encode(), digest_size=8).digest(), "big")
    values = np.random.default_rng(seed).standard_normal(leaf.shape) * 0.05
    if path.endswith("scale"):
        values = values + 1
    if path.endswith("log"):
        values = values * 0 + 2
    return jnp.asarray(values.astype(leaf.dtype))


@pytest.mark.exhaustive
@pytest.mark.optax
def test_loss_gradients_and_flops_are_those_of_the_first_edition():
    config = toys.config()
    (batch,) = toys.batches(config)
    shapes = {name: jax.ShapeDtypeStruct(v.shape, v.dtype) for name, v in batch.items()}
    step = TrainStep(config, toys.one_device(), shapes)
    state = step.init()
    state["params"] = jax.tree_util.tree_map_with_path(
        lambda keys, leaf: fill(old_path(path_of(keys)), leaf), state["params"]
    )
    loss, gradients = step.loss_and_gradients(state, jax.tree.map(jnp.asarray, batch))
    norms = {
        old_path(path_of(keys)): float(np.linalg.norm(np.asarray(leaf, np.float64)))
        for keys, leaf in jax.tree_util.tree_leaves_with_path(gradients)
    }
    assert float(loss) == pytest.approx(STORED["loss"], rel=1e-6)
    assert norms == pytest.approx(STORED["gradient_norms"], rel=1e-5, abs=1e-7)
    assert flops.of_jaxpr(step.traced.jaxpr.jaxpr) == STORED["flops"]
