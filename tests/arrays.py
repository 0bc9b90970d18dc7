"""Arrays for tests: unit vectors, modules with random parameters, meshes, and comparisons."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmrl.devices import sharding


def unit(*shape: int, seed: int = 0) -> np.ndarray:
    """Random vectors of length 1 along the last axis, f32[*shape]."""
    x = np.random.default_rng(seed).normal(size=shape)
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def randomized(make: Callable[..., Any], deviation: float = 0.2) -> Any:
    """The module that `make(rngs=...)` builds, with random parameters and initial batch statistics.

    No initialiser is compiled. Biases are random instead of 0 and scales instead of 1, so that a
    test does not overlook them.
    """
    rng = np.random.default_rng(0)
    graphdef, state = nnx.split(nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0))))

    def draw(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        name = path[-1].key
        mean = 1.0 if name in ("scale", "var") else 0.0
        spread = 0.0 if name in ("mean", "var") else deviation
        return jnp.asarray(rng.normal(mean, spread, leaf.shape), leaf.dtype)

    return nnx.merge(graphdef, jax.tree.map_with_path(draw, nnx.to_pure_dict(state)))


def on_mesh(axes: tuple[int, int, int], *trees: Any) -> list[Any]:
    """Trees whose arrays are divided along their first axis over a mesh (data, fsdp, tensor)."""
    mesh = sharding.make_mesh(dict(zip(sharding.MESH_AXES, axes, strict=True)))
    return [jax.device_put(tree, sharding.batch_sharding(mesh)) for tree in trees]


def assert_close(got: Any, expected: Any, tolerance: float = 1e-5, *, floor: float = 0.0) -> None:
    """Compares two pytrees of equal structure.

    The largest difference of a leaf may be `tolerance` times the largest absolute value of the
    expected leaf, or times `floor` if that is larger.
    """
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for (path, a), b in zip(jax.tree.leaves_with_path(got), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        where = jax.tree_util.keystr(path)
        assert a.shape == b.shape, where
        assert np.abs(a - b).max() <= tolerance * max(floor, np.abs(b).max()), where
