"""Global contrast that curates: it keeps the samples worth training on.

Wang et al. 2026 (CheXficient). `curated_selection` has the rules; the trainer draws the samples.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from mmrl import build
from mmrl.objectives import all_pairs
from mmrl.objectives import curated_selection as selection
from mmrl.objectives.base import Context, LogitScale, Objective, batch_mean
from mmrl.objectives.global_contrastive import contrastive_loss
from mmrl.types import InputError, Loss
from mmrl.vectors import l2_normalize

RULES = ("quantiles", "deviations")
STARTS = ("k_means", "random")


class Curation(nnx.Variable):
    """What is known of the samples seen so far."""


class CuratedContrastive(Objective):
    """`contrastive_loss` of the samples that it keeps, to which training is then restricted.

    A sample is the L2-normalised image and report side by side, which belongs to the nearest of a
    few prototypes. The first `warm_up` updates train on all samples. Over the next `examples`
    samples, those that the rule drops from a batch change nothing, and the prototypes follow the
    others. From then on only kept samples are drawn, and all of a batch count.

    With config.accumulation the samples of each micro-batch are chosen alone. Metrics: kept, the
    share of the samples that count.

    Args:
      examples: number of samples to choose from, those of an epoch; fewer than the training split
        has are the first that are drawn.
      prototypes: their number; 6 in the released configuration.
      warm_up: updates before the choice begins.
      start: of the prototypes: k_means of the first batch after the warm-up, or random.
      rule: quantiles (the released code) or deviations, see `mmrl.data.curation`.
      outlier, support, most: of the rule quantiles.
      ratio: of the rule deviations.
      momentum: share of a prototype that an update keeps.
      widths: of what is read.
      temperature: initial value of the learned temperature.
      implementation: how the loss over all pairs is computed: dense, chunked, ring or auto, with
        equal results.
      chunk_size: maximum number of images and of texts in a tile; 0 means about 16 MiB of logits.

    Raises:
      InputError: an unknown rule or start, or a number out of range.
    """

    reads: ClassVar[Mapping[str, str]] = {"image": "image.embedding", "text": "text.embedding"}
    batch: ClassVar[Mapping[str, str]] = {"group": "group", "index": "index"}

    def __init__(
        self,
        *,
        examples: int,
        prototypes: int = 6,
        warm_up: int = 10,
        start: str = "k_means",
        rule: str = "quantiles",
        outlier: float = 0.95,
        support: float = 0.85,
        most: int = 10,
        ratio: float = 0.2,
        momentum: float = 0.9,
        temperature: float = 0.07,
        implementation: str = "auto",
        chunk_size: int = 0,
        widths: Mapping[str, int],
        rngs: nnx.Rngs,
    ) -> None:
        all_pairs.check_implementation(implementation, chunk_size)
        self.implementation, self.chunk_size = implementation, chunk_size
        self.logit_scale = LogitScale(temperature)
        for what, value, choices in (("rule", rule, RULES), ("start", start, STARTS)):
            if value not in choices:
                raise InputError(build.unknown(f"{what} of curated_contrastive", value, choices))
        if min(examples, prototypes, most) < 1 or warm_up < 0:
            raise InputError(
                f"curated_contrastive: examples {examples}, prototypes {prototypes}, most {most}, "
                f"warm_up {warm_up}; expected at least 1, 1, 1 and 0"
            )
        if not (0 <= support <= outlier <= 1 and 0 <= ratio <= 1 and 0 <= momentum < 1):
            raise InputError(
                f"curated_contrastive: support {support}, outlier {outlier}, ratio {ratio}, "
                f"momentum {momentum}; expected 0 <= support <= outlier <= 1, a share from 0 to 1, "
                "and a number from 0 to below 1"
            )
        self.examples, self.warm_up, self.momentum = examples, warm_up, momentum
        self.rule, self.start = rule, start
        # Tuples, because a dict on a module would make its structure unhashable.
        self.options: tuple[tuple[str, Any], ...] = (
            (("outlier", outlier), ("support", support), ("most", most))
            if rule == "quantiles"
            else (("ratio", ratio),)
        )
        drawn = jax.random.normal(rngs.params(), (prototypes, sum(widths.values())), jnp.float32)
        self.prototypes = Curation(l2_normalize(drawn))
        self.seen = Curation(jnp.int32(0))
        self.indices = Curation(jnp.full(examples, -1, jnp.int32))

    def restricts_after(self, batch_size: int) -> int:
        """See Objective."""
        return self.warm_up - (-self.examples // batch_size)

    def kept(self) -> jax.Array:
        """See Objective."""
        return self.indices[...]

    def __call__(
        self,
        *,
        context: Context,
        image: jax.Array,
        text: jax.Array,
        group: jax.Array,
        index: jax.Array,
    ) -> Loss:
        """Contrasts the samples of the global batch that are kept.

        Args:
          index: i32[B], the position of each sample in the training split.
        """
        present = context.present
        there = jnp.ones(len(index), bool) if present is None else present
        kept = there
        if context.key is not None:
            kept = self._choose(context.step, context.key, image, text, index, there)
        value = contrastive_loss(
            image,
            text,
            self.logit_scale(),
            group=group,
            present=kept,
            implementation=self.implementation,
            chunk_size=self.chunk_size,
        )
        metrics = {
            "loss": batch_mean(value, len(index), kept),
            "logit_scale": (jnp.exp(self.logit_scale()), jnp.float32(1)),
            "kept": (kept.sum(dtype=jnp.float32), there.sum(dtype=jnp.float32)),
        }
        return Loss(value, metrics)

    def post_update(self, context: Context) -> None:
        """Keeps the scale within its bound."""
        self.logit_scale.clip()

    def _choose(
        self,
        step: jax.Array,
        key: jax.Array,
        image: jax.Array,
        text: jax.Array,
        index: jax.Array,
        present: jax.Array,
    ) -> jax.Array:
        """bool[B]: the samples that count; moves the prototypes and notes what is kept."""
        features = jnp.concatenate([l2_normalize(x) for x in (image, text)], axis=1)
        features = jax.lax.stop_gradient(l2_normalize(features).astype(jnp.float32))
        features = jnp.where(present[:, None], features, 0.0)
        seen, prototypes = self.seen[...], self.prototypes[...]
        chooses = (step >= self.warm_up) & (seen < self.examples)

        def choose(prototypes: jax.Array) -> tuple[jax.Array, jax.Array]:
            start_key, first_key = jax.random.split(key)
            if self.start == "k_means":
                prototypes = jax.lax.cond(
                    seen == 0,
                    lambda: selection.k_means(
                        features, len(prototypes), start_key, present=present
                    ),
                    lambda: prototypes,
                )
            rule: Any = {
                "quantiles": selection.select,
                "deviations": selection.select_by_deviation,
            }[self.rule]
            kept = rule(features, prototypes, key=first_key, present=present, **dict(self.options))
            kept = jnp.where(kept.any(), kept, present)
            moved = selection.move_prototypes(
                features, prototypes, kept=kept, momentum=self.momentum
            )
            return kept, moved

        kept, moved = jax.lax.cond(chooses, choose, lambda same: (present, same), prototypes)
        self.prototypes[...] = moved
        places = jnp.where(chooses, seen + jnp.arange(len(index)), self.examples)
        noted = jnp.where(kept, index, -1)
        self.indices[...] = self.indices[...].at[places].set(noted, mode="drop")
        self.seen[...] = seen + jnp.where(chooses, len(index), 0).astype(jnp.int32)
        return kept
