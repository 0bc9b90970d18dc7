"""The published formulation of the step (Zhong, Batmanghelich, Sun 2025), with mmrl's encoders.

Each loss encodes its inputs separately: the global and the local loss encode images and reports;
the perturbation loss encodes images, reports and, one after the other, the K copies. In total this
takes 3 image passes and 3 + K text passes. The local loss loops over captions and holds the context
vectors of each word with each image.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mmrl.models.layers import Features
from mmrl.models.text.transformer import word_mask
from mmrl.objectives.base import Context, two_way_cross_entropy
from mmrl.objectives.local_contrastive import Temperatures
from mmrl.training.learner import Learner
from mmrl.training.step import TrainStep
from mmrl.types import Batch
from mmrl.vectors import contract, l2_normalize, matmul_dtype

LOSSES = ("global_contrastive", "local_contrastive", "perturbed_discrimination")
_READ = ("image.pixels", "text.tokens", "text.mask")


def apart(batch: Mapping[str, Any]) -> dict[str, Any]:
    """A batch with separate images and reports for each loss, named "<loss>/image" and so on.

    In training, passes over the same input differ in their dropout. Without dropout XLA would merge
    the forward passes over the same array. Separate arguments of the step prevent that.
    """
    return {**batch, **{f"{loss}/{name}": batch[name] for loss in LOSSES for name in _READ}}


class PublishedStep(TrainStep):
    """A TrainStep that computes the same loss in the published formulation.

    All its batches, including `example`, must come from `apart`.
    """

    def _loss(
        self,
        params: Any,
        average: Any,
        variables: Any,
        batch: Batch,
        step: jax.Array,
        key: jax.Array | None,
    ) -> tuple[jax.Array, tuple[Any, Any]]:
        module = nnx.merge(self.layout.graphdef, params, variables)
        objectives: Any = module.objectives
        encoded = {loss: _pair(module, batch, loss) for loss in LOSSES}
        encoded["perturbed_discrimination"]["perturbed"] = _copies(module, batch)
        extra = {
            "global_contrastive": {"group": batch["group"]},
            "perturbed_discrimination": {
                "valid": batch["perturbed.valid"],
                "kind": batch["perturbed.kind"],
                "group": batch["group"],
            },
        }
        losses = {
            loss: objectives[loss](context=Context(step), **encoded[loss], **extra[loss]).value
            for loss in extra
        }
        losses["local_contrastive"] = local_loss(
            encoded["local_contrastive"], batch, objectives["local_contrastive"].temperatures
        )
        total = sum(
            (weight(step) * losses[loss] for loss, weight in module.weights), jnp.float32(0)
        )
        size = jnp.float32(batch["index"].shape[0])
        state = nnx.to_pure_dict(nnx.state(module, nnx.Not(nnx.Param)))
        return total, ({"loss": (total * size, size)}, state)


def _pair(module: Learner, batch: Batch, loss: str) -> dict[str, jax.Array]:
    """One image pass and one pass over the reports, for one loss; argument -> encoding."""
    pixels, tokens, mask = (batch[f"{loss}/{name}"] for name in _READ)
    feature = "regions" if loss == "local_contrastive" else "embedding"
    arrays, wanted = {"image": {"pixels": pixels}}, {"image": (feature,)}
    image = module.towers["image"](arrays, wanted, train=True)["image"][feature]
    features = _text(module, tokens, mask)
    if loss == "local_contrastive":
        words = module.towers["text"].heads["words"](features.local)
        return {"regions": image, "words": words, "word_mask": word_mask(mask)}
    return {"image": image, "text": _embedding(module, features)}


def _text(module: Learner, tokens: jax.Array, mask: jax.Array) -> Features:
    """A pass that computes the features of all tokens, as the published code does."""
    return module.towers["text"].encoder(tokens, mask, train=True)


def _embedding(module: Learner, features: Features) -> jax.Array:
    return l2_normalize(module.towers["text"].heads["embedding"](features.pooled))


def _copies(module: Learner, batch: Batch) -> jax.Array:
    """Embeddings f32[B, K, D] of the copies, with one pass per copy."""
    embeddings = []
    for number in range(batch["perturbed.tokens"].shape[1]):
        tokens, mask = batch["perturbed.tokens"][:, number], batch["perturbed.mask"][:, number]
        embeddings.append(_embedding(module, _text(module, tokens, mask)))
    return jnp.stack(embeddings, axis=1)


def local_loss(
    encoded: dict[str, jax.Array], batch: Batch, temperatures: Temperatures
) -> jax.Array:
    """As `objectives.local_contrastive.local_contrastive_loss`, one caption at a time; f32[].

    The published code cuts each caption to its words. Here padding is masked instead, so that all
    captions have the same shape.
    """
    words, mask, regions = encoded["words"], encoded["word_mask"], encoded["regions"]
    columns = [
        caption_similarity(words[number], mask[number], regions, temperatures)
        for number in range(words.shape[0])
    ]
    return two_way_cross_entropy(jnp.stack(columns, axis=1), batch["group"])


def caption_similarity(
    words: jax.Array, mask: jax.Array, regions: jax.Array, temperatures: Temperatures
) -> jax.Array:
    """Similarity of one caption with all images, f32[B] (GLoRIA, Huang et al. 2021, eq. 4-7).

    Args:
      words: f[W, D]. mask: bool[W]. regions: f[B, R, D].
    """
    first, second, third = temperatures
    dtype = matmul_dtype(words, regions)
    regions = regions.astype(jnp.float32)
    repeated = jnp.repeat(words.astype(jnp.float32)[None], regions.shape[0], axis=0)  # B W D
    usable = (mask | ~mask.any())[None]  # captions without words get similarity 0 below
    scores = contract("brd,bwd->brw", regions, repeated, dtype)
    over_words = jax.nn.softmax(jnp.where(usable[:, None], scores, -jnp.inf), axis=2)
    attention = jax.nn.softmax(first * over_words, axis=1)
    context = contract("brd,brw->bwd", regions, attention, dtype)
    squares = jnp.sum(context**2, axis=2) * jnp.sum(repeated**2, axis=2)
    cosine = jnp.sum(context * repeated, axis=2) * jax.lax.rsqrt(jnp.maximum(squares, 1e-12))
    pooled = jax.nn.logsumexp(jnp.where(usable, second * cosine, -jnp.inf), axis=1)
    return jnp.where(mask.any(), third * pooled, 0.0)
