"""The step as published (Zhong, Batmanghelich, Sun 2025), with our encoders and parameters.

Every loss encodes what it reads anew: the global loss an image and its report, the local loss an
image and its report, the perturbation loss an image, its report and, one after the other, each of
the K copies. That makes 3 image passes and 3 + K text passes. The local loss goes through the
captions one at a time and holds the context of every word with every image.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mmrl.models.dual_encoder import DualEncoder
from mmrl.objectives.base import contract, matmul_dtype, two_way_cross_entropy
from mmrl.objectives.local_contrastive import Temperatures
from mmrl.training.step import TrainStep
from mmrl.types import Batch

LOSSES = ("global_contrastive", "local_contrastive", "perturbed_discrimination")
_READ = ("image", "tokens", "token_mask")


def apart(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The batch with an own image and report for every loss, as "<loss>/image" and so on.

    In training each pass has its own dropout. Without it XLA would see that passes over one array
    are the same, barriers or not, and merge their forward halves; arguments of their own keep
    them apart.
    """
    return {**batch, **{f"{loss}/{name}": batch[name] for loss in LOSSES for name in _READ}}


class PublishedStep(TrainStep):
    """TrainStep with another way to the same loss; optimizer and bookkeeping are the same.

    Its batches, `example` included, are those that `apart` makes.
    """

    def _loss(
        self, params: Any, variables: Any, batch: Batch, key: jax.Array | None
    ) -> tuple[jax.Array, tuple[Any, Any]]:
        module = nnx.merge(self.layout.graphdef, params, variables)
        objectives: Any = module.objectives
        encoded = {loss: _pair(module.model, batch, loss) for loss in LOSSES}
        encoded["perturbed_discrimination"]["perturbed.embedding"] = _copies(module.model, batch)
        local = objectives["local_contrastive"]
        losses = {
            loss: objectives[loss](encoded[loss], batch).value
            for loss in LOSSES
            if loss != "local_contrastive"
        }
        losses["local_contrastive"] = local_loss(
            encoded["local_contrastive"], batch, local.temperatures
        )
        total = sum((weight * losses[loss] for loss, weight in module.weights), jnp.float32(0))
        size = jnp.float32(batch["image"].shape[0])
        state = nnx.to_pure_dict(nnx.state(module, nnx.Not(nnx.Param)))
        return total, ({"loss": (total * size, size)}, state)


def _pair(model: DualEncoder, batch: Batch, loss: str) -> dict[str, jax.Array]:
    """One image pass and one pass over the reports, for one loss."""
    image, tokens, mask = (batch[f"{loss}/{name}"] for name in _READ)
    local = loss == "local_contrastive"
    return {
        **model.encode_image(image, local=local, train=True),
        **model.encode_text(tokens, mask, local=local, train=True),
    }


def _copies(model: DualEncoder, batch: Batch) -> jax.Array:
    """Embeddings f32[B, K, D], one pass for each of the K copies."""
    embeddings = []
    for number in range(batch["perturbed_tokens"].shape[1]):
        tokens, mask = batch["perturbed_tokens"][:, number], batch["perturbed_mask"][:, number]
        encoded = model.encode_text(tokens, mask, local=False, train=True)
        embeddings.append(encoded["text.embedding"])
    return jnp.stack(embeddings, axis=1)


def local_loss(
    encoded: dict[str, jax.Array], batch: Batch, temperatures: Temperatures
) -> jax.Array:
    """`objectives.local_contrastive.local_contrastive_loss`, caption after caption; f32[].

    Published code cuts a caption to its words; here words behind its end are masked, so that the
    program has one shape.
    """
    words, mask = encoded["text.words"], encoded["text.word_mask"]
    regions = encoded["image.regions"]
    columns = [
        caption_similarity(words[number], mask[number], regions, temperatures)
        for number in range(words.shape[0])
    ]
    return two_way_cross_entropy(jnp.stack(columns, axis=1), batch["group"])


def caption_similarity(
    words: jax.Array, mask: jax.Array, regions: jax.Array, temperatures: Temperatures
) -> jax.Array:
    """One caption with every image, f32[B] (GLoRIA, Huang et al. 2021, equations 4-7).

    Args:
      words: f[W, D]. mask: bool[W]. regions: f[B, R, D].
    """
    first, second, third = temperatures
    dtype = matmul_dtype(words, regions)
    regions = regions.astype(jnp.float32)
    repeated = jnp.repeat(words.astype(jnp.float32)[None], regions.shape[0], axis=0)  # B W D
    usable = (mask | ~mask.any())[None]  # a caption without words is discarded below
    scores = contract("brd,bwd->brw", regions, repeated, dtype)
    over_words = jax.nn.softmax(jnp.where(usable[:, None], scores, -jnp.inf), axis=2)
    attention = jax.nn.softmax(first * over_words, axis=1)
    context = contract("brd,brw->bwd", regions, attention, dtype)
    squares = jnp.sum(context**2, axis=2) * jnp.sum(repeated**2, axis=2)
    cosine = jnp.sum(context * repeated, axis=2) * jax.lax.rsqrt(jnp.maximum(squares, 1e-12))
    pooled = jax.nn.logsumexp(jnp.where(usable, second * cosine, -jnp.inf), axis=1)
    return jnp.where(mask.any(), third * pooled, 0.0)
