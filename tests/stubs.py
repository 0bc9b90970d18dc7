"""Stub encoders and objectives that compile fast, and training states made without compilation."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from flax import nnx

from mmrl import build
from mmrl.models.layers import Features, dense, dropout_keys
from mmrl.objectives.base import Objective, batch_mean
from mmrl.training.step import State, TrainStep
from mmrl.types import Loss

WIDTH = 32


class Stub(nnx.Module):
    """An encoder that compiles fast: dense layers per region or word, sharded as usual."""

    grid = (4, 4)

    def __init__(
        self, *, image_size=0, vocab_size=0, length=0, width=WIDTH, depth=1, dropout=0.0, **options
    ):
        self.packing = 0.0
        self.width = self.local_width = width
        self.inputs = vocab_size or (image_size // 4) ** 2
        self.first = dense(self.inputs, width, ("patch", "embed"), **options)
        self.depth = depth
        for index in range(depth):
            setattr(self, f"layer_{index}", dense(width, width, ("embed", "mlp"), **options))
        self.dropout = nnx.Dropout(dropout)

    def __call__(self, x, mask=None, *, train=False, rngs=None, present=None):
        if mask is None:
            side = x.shape[1] // 4
            x = x.reshape(-1, 4, side, 4, side).swapaxes(2, 3).reshape(-1, 16, side**2)
        else:
            x = jax.nn.one_hot(x, self.inputs) * mask[..., None].astype(jnp.float32)
        (key,) = dropout_keys(train, rngs, 1)
        x = self.dropout(jnp.tanh(self.first(x)), deterministic=key is None, rngs=key)
        for index in range(self.depth):
            x = x + jnp.tanh(getattr(self, f"layer_{index}")(x))
        return Features(pooled=x.mean(axis=1), local=x, mask=mask)

    def candidates(self, tokens, mask, *, words, train=False, rngs=None):
        """As in the text encoder: C texts per report, word features of some."""
        flat = (x.reshape(-1, x.shape[-1]) for x in (tokens, mask))
        features = self(*flat, train=train, rngs=rngs)
        pooled = features.pooled.reshape(*tokens.shape[:2], -1)
        local = features.local.reshape(*tokens.shape, -1)
        return pooled, local[:, jnp.asarray(words)] if words else None


class Memory(Objective):
    """An objective with state: the mean text embedding of a batch, and the number of updates."""

    reads = {"image": "image.embedding", "text": "text.embedding"}  # noqa: RUF012

    def __init__(self):
        self.mean = nnx.Variable(jnp.zeros(WIDTH))
        self.updates = nnx.Variable(jnp.int32(0))

    def __call__(self, *, context, image, text):
        value = jnp.mean(image @ self.mean[...])
        self.mean[...] = jax.lax.stop_gradient(text.mean(axis=0))
        return Loss(value, {"loss": batch_mean(value, image.shape[0])})

    def post_update(self, context):
        self.updates[...] += 1


@contextlib.contextmanager
def registered(**more: Any) -> Iterator[None]:
    """Makes the stubs, and `more` modules, available by name in configs."""
    known: dict[str, Any] = {"stub": Stub, "memory": Memory, **more}
    real = build.find
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "find", lambda kind, name: known.get(name) or real(kind, name))
        yield


KEPT = {"image": ("size", "heads"), "text": ("length", "vocab_size", "heads")}


def use(config: ml_collections.ConfigDict, **options: Any) -> ml_collections.ConfigDict:
    """Replaces both encoders of a config with stubs; `options` are those of the stubs."""
    for kind, kept in KEPT.items():
        same = {key: config.towers[kind][key] for key in kept}
        config.towers[kind] = {"name": "stub", "kind": kind, **same, **options}
    return config


def start(step: TrainStep) -> State:
    """Random parameters, equal on every mesh, and zeros elsewhere; compiles no initialiser."""
    rng = np.random.default_rng(0)
    state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), step.abstract)
    state["params"] = jax.tree.map(
        lambda leaf: rng.normal(0, 0.1, leaf.shape).astype(leaf.dtype), step.abstract["params"]
    )
    state["nonfinite_step"] = np.full_like(state["nonfinite_step"], -1)
    return jax.tree.map(
        lambda x, s: jax.make_array_from_callback(x.shape, s, lambda index: x[index]),
        state,
        step.shardings,
    )
