"""Prediction of the prototypes of one crop from another (Caron et al. 2020, SwAV)."""

import functools
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from mmrl.objectives.base import Context, batch_mean, zero_absent
from mmrl.objectives.prototypes import (
    EPSILON,
    Prototyped,
    check_numbers,
    code_metrics,
    sinkhorn,
    swapped_prediction_loss,
)
from mmrl.types import InputError, Loss
from mmrl.vectors import l2_normalize


class Queue(nnx.Variable):
    """Encodings of earlier batches."""


class SwappedPrediction(Prototyped):
    """`swapped_prediction_loss` of wide and local crops, with learned prototypes and a queue.

    Metrics: as of `code_metrics`, of the wide crops.

    Args:
      prototypes: their number, 3000 in SwAV.
      wide: number of wide crops.
      local: whether local crops are read. Without them, redirect reads.local to what `wide` reads.
      temperature: of the predictions.
      epsilon: temperature of the codes of `sinkhorn`.
      iterations: number of its normalisations.
      queue: encodings of earlier batches that are kept for each wide crop; 0: none.
      queue_from: updates before which the queue is filled, but not used.
      frozen_steps: updates before which the prototypes do not change.
      widths: of what is read.

    Raises:
      InputError: crops of two sizes of embedding, or a number out of range.
    """

    reads: ClassVar[Mapping[str, str]] = {
        "wide": "image@wide.embedding",
        "local": "image@local.embedding",
    }

    def __init__(
        self,
        *,
        prototypes: int = 3000,
        wide: int = 2,
        local: bool = True,
        temperature: float = 0.1,
        epsilon: float = EPSILON,
        iterations: int = 3,
        queue: int = 0,
        queue_from: int = 0,
        frozen_steps: int = 0,
        widths: Mapping[str, int],
        rngs: nnx.Rngs,
    ) -> None:
        check_numbers("SwappedPrediction", temperature, epsilon, iterations)
        if widths["wide"] != widths["local"] or wide < 1 or min(queue, queue_from) < 0:
            raise InputError(
                f"SwappedPrediction: {wide} wide crops of {widths['wide']} features, local ones of "
                f"{widths['local']}, queue {queue} from {queue_from}; expected at least one, as "
                "many features, and no negative number"
            )
        super().__init__(
            width=widths["wide"], prototypes=prototypes, frozen_steps=frozen_steps, rngs=rngs
        )
        self.wide, self.local, self.queue_from = wide, local, queue_from
        self.codes = functools.partial(sinkhorn, epsilon=epsilon, iterations=iterations)
        self.loss = functools.partial(
            swapped_prediction_loss,
            wide=wide,
            temperature=temperature,
            epsilon=epsilon,
            iterations=iterations,
        )
        self.has_queue = queue > 0
        if self.has_queue:
            self.queue = Queue(jnp.zeros((wide, queue, widths["wide"]), jnp.float32))

    def __call__(self, *, context: Context, wide: jax.Array, local: jax.Array) -> Loss:
        """Predicts codes of crops.

        Args:
          wide: f[B, wide, D]. local: f[B, V, D].

        Raises:
          ValueError: another number of wide crops.
        """
        if wide.shape[1] != self.wide:
            raise ValueError(f"wide {wide.shape}; expected {self.wide} crops, the option wide")
        present, prototypes = context.present, self.trained(context)
        views = jnp.concatenate([wide, local], axis=1) if self.local else wide
        queue = self._used(context)
        value = self.loss(views.swapaxes(0, 1), prototypes, queue=queue, present=present)
        encoded = l2_normalize(zero_absent(present, jax.lax.stop_gradient(wide))).swapaxes(0, 1)
        if self.has_queue and context.key is not None:
            # The newest come first. Rows that are absent are zeros, places that are not filled.
            both = jnp.concatenate([encoded, self.queue[...]], axis=1)
            self.queue[...] = both[:, : self.queue.shape[1]]
        scores = jnp.einsum("vbd,kd->vbk", encoded, prototypes)
        rows = None if present is None else jnp.tile(present, self.wide)
        codes = self.codes(scores.reshape(-1, len(prototypes)), present=rows)
        metrics = code_metrics(codes, rows)
        return Loss(value, {"loss": batch_mean(value, len(wide), present), **metrics})

    def _used(self, context: Context) -> jax.Array | None:
        if not self.has_queue:
            return None
        return jnp.where(context.step < self.queue_from, 0.0, self.queue[...])
