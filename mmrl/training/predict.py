"""Encodes images and texts with a given state, for evaluators, export and `mmrl.load`."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from mmrl.devices import gather, sharding
from mmrl.evaluators.base import HeldOut
from mmrl.models.dual_encoder import DualEncoder
from mmrl.training.learner import Layout


class Predict:
    """Encodes with the encoders of a learner; implements `evaluators.base.Predict`.

    Args:
      layout: of the learner that the states belong to.
      mesh: devices to spread batches over.
      batch_size: rows per call; rounded up to a multiple of the devices.
    """

    def __init__(
        self,
        layout: Layout,
        mesh: Mesh,
        *,
        batch_size: int = 64,
    ) -> None:
        shards = mesh.shape["data"] * mesh.shape["fsdp"]
        self.batch_size = -(-batch_size // shards) * shards
        self.provides, self.grid = layout.provides, layout.grid
        self._graphdef = layout.graphdef
        self._rows = sharding.batch_sharding(mesh)
        everywhere = sharding.replicated(mesh)
        self._image = jax.jit(self._encode_image, static_argnums=2, out_shardings=everywhere)
        self._text = jax.jit(self._encode_text, static_argnums=3, out_shardings=everywhere)
        self._cache: dict[tuple[Any, ...], dict[str, np.ndarray]] = {}
        self._cached_step: jax.Array | None = None

    def images(self, state: Any, data: HeldOut, *, local: bool = False) -> dict[str, np.ndarray]:
        """Encodes all images of `data`; see `evaluators.base.Predict`."""
        return self._remember(
            state,
            ("images", data.sha256, local),
            lambda: self.image_batches(state, data.image_batches(self.batch_size), local=local),
        )

    def texts(
        self, state: Any, data: HeldOut, texts: Sequence[str], *, local: bool = False
    ) -> dict[str, np.ndarray]:
        """Encodes `texts`, tokenised as in training; see `evaluators.base.Predict`."""
        identity = hashlib.sha256("\0".join(texts).encode()).hexdigest()

        def compute() -> dict[str, np.ndarray]:
            return self.token_rows(state, *data.tokenize(texts), local=local)

        return self._remember(state, ("texts", data.sha256, identity, local), compute)

    def image_batches(
        self, state: Any, batches: Iterator[tuple[np.ndarray, int]], *, local: bool = False
    ) -> dict[str, np.ndarray]:
        """(padded u8[batch_size, H, W, 1], number of real rows) -> encodings of the real rows."""
        parts = []
        for image, count in batches:
            placed = sharding.to_global({"image": image}, self._rows)["image"]
            encoded = self._image(_weights(state), placed, local)
            parts.append({k: np.asarray(v)[:count] for k, v in gather.to_host(encoded).items()})
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def token_rows(
        self, state: Any, tokens: np.ndarray, mask: np.ndarray, *, local: bool = False
    ) -> dict[str, np.ndarray]:
        """tokens i32[N, L], mask bool[N, L] -> encodings of all N rows."""
        parts = []
        for start in range(0, len(tokens), self.batch_size):
            rows = slice(start, start + self.batch_size)
            count = len(tokens[rows])
            pad = ((0, self.batch_size - count), (0, 0))
            padded = {"tokens": np.pad(tokens[rows], pad), "mask": np.pad(mask[rows], pad)}
            placed = sharding.to_global(padded, self._rows)
            encoded = self._text(_weights(state), placed["tokens"], placed["mask"], local)
            parts.append({k: np.asarray(v)[:count] for k, v in gather.to_host(encoded).items()})
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _model(self, weights: Mapping[str, Any]) -> DualEncoder:
        return nnx.merge(self._graphdef, weights["params"], weights["variables"]).model

    def _encode_image(self, weights: Any, image: jax.Array, local: bool) -> dict[str, jax.Array]:
        return self._model(weights).encode_image(image, local=local)

    def _encode_text(
        self, weights: Any, tokens: jax.Array, mask: jax.Array, local: bool
    ) -> dict[str, jax.Array]:
        return self._model(weights).encode_text(tokens, mask, local=local)

    def _remember(self, state: Any, what: tuple[Any, ...], compute: Any) -> dict[str, np.ndarray]:
        # Each state has its own step array. Keeping a reference stops Python reusing its id.
        if self._cached_step is not state["step"]:
            self._cache, self._cached_step = {}, state["step"]
        if what not in self._cache:
            self._cache[what] = compute()
        return self._cache[what]


def _weights(state: Mapping[str, Any]) -> dict[str, Any]:
    """The averaged parameters if the run keeps an average, else the current ones."""
    return {"params": state.get("ema", state["params"]), "variables": state["variables"]}
