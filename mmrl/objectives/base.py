"""What an objective is, and the cross-entropies and metrics that several of them share."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from mmrl.context import Context as Context
from mmrl.types import Loss, Metrics

# CLIP (Radford et al. 2021, section 2.5): exp(logit_scale) never exceeds 100.
MAX_LOGIT_SCALE = 100.0


class Objective(nnx.Module):
    """One training signal: reads encodings by name, returns a loss and its metrics.

    An objective holds its parameters and its other state as nnx variables, so the trainer
    shards, saves, decays and freezes them like all others. The trainer holds its weight and the
    names that it reads, so one class can run several times on different encodings.

    Attributes:
      reads: argument of `__call__` -> the encoding that it gets, "<tower>[@<input>].<feature>", or
        the argument whose encoding it gets, too.
      batch: argument of `__call__` -> the array of the batch that it gets, "<input>.<array>",
        "group" or "index". config.objectives.NAME.reads redirects either.
      averages: whether `context.average` is needed, so that the run keeps averaged weights.
    """

    averages: ClassVar[bool] = False
    reads: ClassVar[Mapping[str, str]] = {}
    batch: ClassVar[Mapping[str, str]] = {}

    def __call__(self, *_: Any, **arrays: Any) -> Loss:
        """Returns the scalar loss over the global batch and (sum, weight) metrics.

        Subclasses take `context`, see Context, and the arguments of `reads` and `batch`, all by
        keyword.
        """
        raise NotImplementedError

    def post_update(self, context: Context) -> None:
        """Runs after each optimizer update, inside the jitted step: clip, renormalise, track."""

    def restricts_after(self, batch_size: int) -> int:
        """The number of updates after which training draws only what `kept` names; 0: never."""
        return 0

    def kept(self) -> jax.Array:
        """i32[n]: places in the training split of the examples to draw from then on; -1: none."""
        raise NotImplementedError


class LogitScale(nnx.Module):
    """The learned inverse temperature of a contrast, kept as its logarithm.

    `clip` belongs after the update rather than into the forward pass, where a scale at the bound
    would lose its gradient and could never come back.
    """

    def __init__(self, temperature: float) -> None:
        self.log = nnx.Param(jnp.log(jnp.float32(1.0 / temperature)))

    def __call__(self) -> jax.Array:
        """Returns log(scale), f32[]."""
        return self.log[...]

    def clip(self) -> None:
        """Bounds exp(logit_scale) by 100."""
        self.log[...] = jnp.minimum(self.log[...], jnp.log(jnp.float32(MAX_LOGIT_SCALE)))


def require(condition: bool, message: str) -> None:
    """Shape checks at a function's door: raises ValueError(message) at trace time."""
    if not condition:
        raise ValueError(message)


def negatives(group: jax.Array | None, size: int, present: jax.Array | None = None) -> jax.Array:
    """Which pairs may serve as negatives, bool[B, B], the diagonal included.

    Off-diagonal pairs of equal `group` i32[B] are out: the same report text or the same study
    is no negative. So are off-diagonal pairs with a row that is not `present` bool[B].
    """
    diagonal = jnp.eye(size, dtype=bool)
    group, present = check_group(group, size), check_present(present, size)
    if group is None:
        included = jnp.ones((size, size), dtype=bool)
    else:
        included = diagonal | (group[:, None] != group[None, :])
    if present is None:
        return included
    return diagonal | (included & present[:, None] & present[None, :])


def other_rows(group: jax.Array | None, size: int, present: jax.Array | None = None) -> jax.Array:
    """`negatives` without the diagonal: bool[B, B]."""
    return negatives(group, size, present) & ~jnp.eye(size, dtype=bool)


def check_group(group: jax.Array | None, size: int) -> jax.Array | None:
    """`group` as an array, after a look at its shape."""
    if group is None:
        return None
    require(group.shape == (size,), f"group must be i32[{size}], got {group.shape}")
    return jnp.asarray(group)


def check_present(present: jax.Array | None, size: int) -> jax.Array | None:
    """`present` as an array, after a look at its shape and type."""
    if present is None:
        return None
    require(
        present.shape == (size,) and present.dtype == bool,
        f"present must be bool[{size}], got {present.dtype}{list(present.shape)}",
    )
    return jnp.asarray(present)


def zero_absent(present: jax.Array | None, features: jax.Array) -> jax.Array:
    """Features [B, ...] with 0 in the rows that are not `present` bool[B].

    The gradient of these rows is 0, whatever they contain.
    """
    if present is None:
        return features
    rows = present.reshape(-1, *[1] * (features.ndim - 1))
    return jnp.where(rows, features, jnp.zeros((), features.dtype))


def row_count(size: int, present: jax.Array | None) -> int | jax.Array:
    """The number of rows that a mean is over: `size`, or those `present` bool[B] but at least 1."""
    return size if present is None else jnp.maximum(present.sum(dtype=jnp.float32), 1.0)


def two_way_cross_entropy(
    logits: jax.Array, group: jax.Array | None, present: jax.Array | None = None
) -> jax.Array:
    """Mean of row-wise and column-wise cross-entropy with the diagonal as target.

    Args:
      logits: f32[B, B]; row i holds image i against every text.
      group: i32[B] or None; see `negatives`.
      present: bool[B] or None. The result is that without the other rows and columns.

    Returns:
      f32[], equal to log B for constant logits and distinct groups; 0 if no row is present.
    """
    size = logits.shape[0]
    require(logits.shape == (size, size), f"logits must be square, got {logits.shape}")
    included = negatives(group, size, present)
    over_texts, over_images = diagonal_cross_entropies(logits, included)
    if present is None:
        return 0.5 * (over_texts.mean() + over_images.mean())
    # An absent row keeps its diagonal logit only, so its cross-entropy and its gradient are 0.
    return 0.5 * (over_texts.sum() + over_images.sum()) / row_count(size, present)


def diagonal_cross_entropies(logits: jax.Array, included: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cross-entropies of the rows and of the columns of matrices, with the diagonal as target.

    Args:
      logits: f32[..., N, N]. included: bool[..., N, N], which entries the denominators hold; the
        diagonal must be among them.

    Returns:
      (f32[..., N], f32[..., N]): of each row, of each column.
    """
    kept = jnp.where(included, logits, -jnp.inf)
    positive = jnp.diagonal(logits, axis1=-2, axis2=-1)
    rows = jax.nn.logsumexp(kept, axis=-1) - positive
    return rows, jax.nn.logsumexp(kept, axis=-2) - positive


def attention_entropy(logits: jax.Array, valid: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Entropy of softmax(logits) over regions, as a share of that of a uniform one.

    Args:
      logits: f32[..., R]. valid: bool[...].

    Returns:
      (sum, weight) over the valid places, without a gradient: a metric.
    """
    logs = jax.nn.log_softmax(jax.lax.stop_gradient(logits), axis=-1)
    entropy = -jnp.sum(jnp.exp(logs) * logs, axis=-1) / jnp.log(max(logits.shape[-1], 2))
    return jnp.sum(jnp.where(valid, entropy, 0.0)), valid.sum(dtype=jnp.float32)


def judged_answers(
    context: Context,
    judge: Callable[..., tuple[jax.Array, jax.Array, jax.Array]],
    own: tuple[jax.Array, ...],
    control: tuple[jax.Array, ...] | None,
) -> Loss:
    """The mean loss of answers, how many are right, and how many are in spite of a replaced input.

    Args:
      judge: arrays -> (sum of the losses, number of right answers, number of answers).
      own: the arrays of what is trained.
      control: those of what is made of another image or text; None: there is none.

    Returns:
      The loss, 0 without answers, with the metric `accuracy`; in evaluation with a control also
      `control_accuracy`.
    """
    total, right, count = judge(*own)
    metrics: Metrics = {"loss": (total, count), "accuracy": (right, count)}
    if control is not None and context.key is None:
        metrics["control_accuracy"] = judge(*control)[1:]
    return Loss(total / jnp.maximum(count, 1.0), metrics)


def batch_mean(
    value: jax.Array, size: int, present: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """A mean over `size` pairs as the (sum, weight) that metrics are kept in.

    The weight is the number of pairs, or of those that are `present` bool[B].
    """
    weight = jnp.float32(size) if present is None else present.sum(dtype=jnp.float32)
    return value.astype(jnp.float32) * weight, weight
