"""The losses of a run on its validation split."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from mmrl import streams
from mmrl.data.batches import sequence
from mmrl.data.batches.example import Make
from mmrl.data.corpus import Corpus
from mmrl.data.inputs.base import Input
from mmrl.data.text.tokenizer import Tokenizer
from mmrl.devices import gather, sharding
from mmrl.training import scalars
from mmrl.training.encoding import ROWS
from mmrl.training.learner import Layout
from mmrl.types import Batch

PREFIX = "val"


class Validation:
    """Computes every objective on all validation examples, as training does but for what is random.

    Images are not augmented, nothing is dropped out, texts are whole reports, and perturbed copies
    are the same at every evaluation. Weights are the averaged ones if config.average.evaluate. A
    contrastive loss depends on the pairs that it compares, so examples are taken in batches of the
    same size as those that training contrasts, in one random order that never changes. The last
    batch has the examples that are left: its places without one are no rows of any loss, and it
    counts by its number of examples, as every batch does.

    Args:
      layout: of the learner. inputs: of the training batches.
      corpus: the validation split. tokenizers: by tower.
      batch_size: rows of a batch; a multiple of the devices that share it.
    """

    def __init__(
        self,
        layout: Layout,
        mesh: Mesh,
        inputs: Mapping[str, Input],
        corpus: Corpus,
        tokenizers: Mapping[str, Tokenizer],
        *,
        batch_size: int,
    ) -> None:
        seed = streams.host_seed(0, "validation")
        self._make = Make(
            corpus,
            inputs,
            tokenizers,
            example_seed=sequence.example_seed(seed),
            text_seed=seed,
            batch_size=batch_size,
            train=False,
        )
        self._order = np.random.default_rng(seed).permutation(len(corpus))
        self._layout, self._size = layout, batch_size
        self._rows = sharding.batch_sharding(mesh)
        self._losses = jax.jit(self._run, out_shardings=sharding.replicated(mesh))

    def __call__(self, state: Mapping[str, Any]) -> dict[str, float]:
        """ "val/loss", and "val/OBJECTIVE/METRIC" of every objective.

        Raises:
          FloatingPointError: the loss is not finite.
        """
        total: dict[str, np.ndarray] = {}
        for start in range(0, len(self._order), self._size):
            found = gather.to_host(
                self._losses(self._layout.weights_of(state), self._batch(start), state["step"])
            )
            for name, pair in found.items():
                total[name] = total.get(name, 0.0) + np.asarray(pair, np.float64)
        values = scalars.compute({name: tuple(pair) for name, pair in total.items()})
        if not np.isfinite(values["loss"]):
            raise FloatingPointError(f"the loss on the validation split is {values['loss']}")
        return {f"{PREFIX}/{name}": value for name, value in values.items()}

    def _batch(self, start: int) -> dict[str, jax.Array]:
        """The batch that begins at a place of the order, filled up with its own first rows."""
        indices = self._order[start : start + self._size]
        here = np.arange(self._size)
        made = self._make((start + here).tolist(), np.resize(indices, self._size).tolist())
        return sharding.to_global({**made, ROWS: here < len(indices)}, self._rows)

    def _run(self, weights: Mapping[str, Any], batch: Batch, step: jax.Array) -> Any:
        variables = weights["variables"]
        module = self._layout.merge(weights["params"], variables)
        average = self._layout.merge_average(weights.get("average"), variables)
        return module(batch, step=step, train=False, average=average)[1]
