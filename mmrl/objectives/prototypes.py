"""Assignment of encodings to learned prototypes, equally often to each.

Caron et al. 2020 (SwAV), and the cross-modal alignment of prototypes of Wang et al. 2022 (MGCA).
"""

import functools
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from mmrl.objectives.base import (
    Context,
    Objective,
    batch_mean,
    check_present,
    require,
    row_count,
    zero_absent,
)
from mmrl.types import InputError, Loss, Metrics
from mmrl.vectors import l2_normalize

EPSILON = 0.05  # SwAV, section 4.1; MGCA


def sinkhorn(
    scores: jax.Array,
    *,
    epsilon: float | jax.Array = EPSILON,
    iterations: int = 3,
    present: jax.Array | None = None,
) -> jax.Array:
    """Soft codes of samples such that all prototypes are used about equally (SwAV, section 3.2).

    Starts from exp(scores / epsilon); each iteration gives every prototype a mass of 1 / K, then
    every sample a mass of 1 / N. Computed on logarithms, so no score is too low or too high.

    Args:
      scores: f[N, K], similarities of samples and prototypes, not yet divided by `epsilon`.
      epsilon: above 0; codes are the harder, the smaller it is.
      iterations: at least 1.
      present: bool[N], the samples that take part; None: all.

    Returns:
      f32[N, K], without a gradient. Rows sum to 1; those that are not present are 0.

    Raises:
      ValueError: another number of axes, or no iteration.
    """
    require(scores.ndim == 2, f"scores must be [N, K], got {scores.shape}")
    require(iterations >= 1, f"iterations must be at least 1, got {iterations}")
    present = check_present(present, len(scores))
    scores = zero_absent(present, jax.lax.stop_gradient(jnp.asarray(scores)))
    logs = scores.astype(jnp.float32) / jnp.float32(epsilon)
    if present is not None:
        logs = jnp.where(present[:, None] | ~present.any(), logs, -jnp.inf)
    for _ in range(iterations):
        logs = logs - jax.nn.logsumexp(logs, axis=0)
        of_samples = jax.nn.logsumexp(logs, axis=1, keepdims=True)
        logs = logs - (of_samples if present is None else zero_absent(present, of_samples))
    return zero_absent(present, jnp.exp(logs))


def prototype_alignment_loss(
    image: jax.Array,
    text: jax.Array,
    prototypes: jax.Array,
    *,
    temperature: float = 0.2,
    epsilon: float = EPSILON,
    iterations: int = 3,
    present: jax.Array | None = None,
) -> jax.Array:
    """Predicts the code of an image from its report, and the reverse (MGCA, section 3.4, CPA).

    1/2 mean_b (CE(q_image, p_text) + CE(q_text, p_image)), where q is `sinkhorn` of the cosines
    with the prototypes, and p their softmax at `temperature`. No gradient flows through q.
    Prototypes are normalised first, as if in place: their gradient is that of the normalised ones.

    Args:
      image, text: f[B, D]. prototypes: f[K, D]. None has to be normalised.
      temperature: of the predictions. epsilon, iterations: see `sinkhorn`.
      present: bool[B], the rows that have all inputs; None: all.

    Returns:
      f32[]; 0 if no row is present.

    Raises:
      ValueError: shapes that do not fit.
    """
    require(
        image.ndim == 2 and image.shape == text.shape and _fit(image, prototypes),
        f"image and text must be [B, D] and prototypes [K, D], got {image.shape}, {text.shape}, "
        f"{prototypes.shape}",
    )
    size = len(image)
    present = check_present(present, size)
    scores = [_scores(zero_absent(present, jnp.asarray(x)), prototypes) for x in (image, text)]
    codes = [sinkhorn(s, epsilon=epsilon, iterations=iterations, present=present) for s in scores]
    swapped = zip(codes, reversed(scores), strict=True)
    one, two = (code_cross_entropy(code, score, temperature).sum() for code, score in swapped)
    return 0.5 * (one + two) / row_count(size, present)


def swapped_prediction_loss(
    views: jax.Array,
    prototypes: jax.Array,
    *,
    wide: int = 2,
    temperature: float = 0.1,
    epsilon: float = EPSILON,
    iterations: int = 3,
    queue: jax.Array | None = None,
    present: jax.Array | None = None,
) -> jax.Array:
    """Predicts the code of each wide view from all other views (SwAV, section 3.1 and 3.3).

    The mean over wide views i and over the V - 1 views v other than i of CE(q_i, p_v), where q_i is
    `sinkhorn` of the cosines of view i with the prototypes, and p_v their softmax at
    `temperature`. No gradient flows through q. Prototypes are normalised first, as if in place:
    their gradient is that of the normalised ones.

    Args:
      views: f[V, B, D], V at least 2, the wide views first. prototypes: f[K, D]. Neither has to be
        normalised.
      wide: number of views that give codes.
      temperature: of the predictions. epsilon, iterations: see `sinkhorn`.
      queue: f[wide, Q, D], normalised encodings of the wide views of earlier batches, which take
        part in `sinkhorn` alone and get no gradient. Rows of zeros are places that are not filled
        yet. None: there are none.
      present: bool[B], the rows that have all inputs; None: all.

    Returns:
      f32[]; 0 if no row is present.

    Raises:
      ValueError: shapes that do not fit.
    """
    require(
        views.ndim == 3 and 1 <= wide <= len(views) >= 2 and _fit(views, prototypes),
        f"views must be [V, B, D], at least 2 and {wide} of them, and prototypes [K, D], got "
        f"{views.shape}, {prototypes.shape}",
    )
    count, size, width = views.shape
    require(
        queue is None or (queue.ndim == 3 and queue.shape[::2] == (wide, width)),
        f"queue must be [{wide}, Q, {width}], got {getattr(queue, 'shape', None)}",
    )
    present = check_present(present, size)
    rows = None if present is None else jnp.broadcast_to(present, (count, size)).reshape(-1)
    features = zero_absent(rows, jnp.asarray(views).reshape(-1, width))
    scores = _scores(features, prototypes).reshape(count, size, -1)
    total = jnp.float32(0)
    for i in range(wide):
        earlier = None if queue is None else jnp.asarray(queue)[i].astype(jnp.float32)
        code = _code(scores[i], earlier, prototypes, epsilon, iterations, present)
        others = jnp.concatenate([scores[:i], scores[i + 1 :]])
        total += code_cross_entropy(code, others, temperature).sum()
    return total / (wide * (count - 1)) / row_count(size, present)


def code_cross_entropy(code: jax.Array, scores: jax.Array, temperature: float) -> jax.Array:
    """-sum_k code log softmax(scores / temperature): f32[..., K] twice -> f32[...].

    Rows of zeros in `code` give 0. Gradients flow into the scores alone.
    """
    logs = jax.nn.log_softmax(scores / jnp.float32(temperature), axis=-1)
    return -jnp.sum(jax.lax.stop_gradient(code) * logs, axis=-1)


def _fit(features: jax.Array, prototypes: jax.Array) -> bool:
    return prototypes.ndim == 2 and features.shape[-1] == prototypes.shape[1]


def _normalised_in_place(prototypes: jax.Array) -> jax.Array:
    """The prototypes with length 1; the gradient passes as if they had had it before."""
    raw = jnp.asarray(prototypes).astype(jnp.float32)
    fixed = jax.lax.stop_gradient(raw)
    return l2_normalize(fixed) + (raw - fixed)


def _scores(features: jax.Array, prototypes: jax.Array) -> jax.Array:
    """Cosines f32[N, K] of f[N, D] with prototypes f[K, D]."""
    return jnp.einsum("nd,kd->nk", l2_normalize(features), _normalised_in_place(prototypes))


def _code(
    scores: jax.Array,
    earlier: jax.Array | None,
    prototypes: jax.Array,
    epsilon: float,
    iterations: int,
    present: jax.Array | None,
) -> jax.Array:
    """Codes of scores f32[B, K], made together with those of `earlier` f32[Q, D]."""
    if earlier is None:
        return sinkhorn(scores, epsilon=epsilon, iterations=iterations, present=present)
    size = len(scores)
    known = jnp.einsum("nd,kd->nk", earlier, _normalised_in_place(prototypes))
    now = jnp.ones(size, bool) if present is None else present
    filled = jnp.concatenate([jnp.any(earlier != 0, axis=1), now])
    both = jnp.concatenate([known, scores])
    return sinkhorn(both, epsilon=epsilon, iterations=iterations, present=filled)[-size:]


def code_metrics(codes: jax.Array, present: jax.Array | None = None) -> Metrics:
    """How codes f32[N, K] spread over the prototypes; a collapse shows in either.

    Returns:
      code_entropy: mean entropy of a code, as a share of log K.
      prototypes_used: number of prototypes with the largest share in some code.
    """
    size, count = codes.shape
    entropy = -jnp.sum(codes * jnp.log(jnp.maximum(codes, 1e-30)), axis=1) / jnp.log(max(count, 2))
    there = jnp.ones(size, bool) if present is None else present
    used = jnp.zeros(count, bool).at[jnp.argmax(codes, axis=1)].max(there)
    return {
        "code_entropy": (
            jnp.sum(zero_absent(present, entropy)),
            there.sum(dtype=jnp.float32),
        ),
        "prototypes_used": (used.sum(dtype=jnp.float32), jnp.float32(1)),
    }


class Prototyped(Objective):
    """Base of the objectives that hold prototypes, which are normalised after each update.

    Args:
      width: features of a prototype.
      prototypes: their number.
      frozen_steps: updates before which they do not change.

    Raises:
      InputError: a number out of range.
    """

    def __init__(self, *, width: int, prototypes: int, frozen_steps: int, rngs: nnx.Rngs) -> None:
        if prototypes < 1 or frozen_steps < 0:
            raise InputError(
                f"{type(self).__name__}: prototypes {prototypes}, frozen_steps {frozen_steps}; "
                "expected at least 1, and at least 0"
            )
        self.frozen_steps = frozen_steps
        drawn = jax.random.normal(rngs.params(), (prototypes, width), jnp.float32)
        self.prototypes = nnx.Param(l2_normalize(drawn), out_sharding=(None, "joint"))

    def trained(self, context: Context) -> jax.Array:
        """The prototypes f32[K, D]; without a gradient as long as they are frozen."""
        now = self.prototypes[...]
        return jnp.where(context.step < self.frozen_steps, jax.lax.stop_gradient(now), now)

    def post_update(self, context: Context) -> None:
        """Gives all prototypes the length 1."""
        self.prototypes[...] = l2_normalize(self.prototypes[...])


class Prototypes(Prototyped):
    """`prototype_alignment_loss` with learned prototypes. Metrics: as of `code_metrics`, of images.

    Args:
      prototypes: their number, 500 in MGCA.
      temperature: of the predictions.
      epsilon: temperature of the codes of `sinkhorn`.
      iterations: number of its normalisations.
      frozen_steps: updates before which the prototypes do not change; those of the first epoch in
        MGCA.
      widths: of what is read.

    Raises:
      InputError: embeddings of two sizes, or a number out of range.
    """

    reads: ClassVar[Mapping[str, str]] = {"image": "image.embedding", "text": "text.embedding"}

    def __init__(
        self,
        *,
        prototypes: int = 500,
        temperature: float = 0.2,
        epsilon: float = EPSILON,
        iterations: int = 3,
        frozen_steps: int = 0,
        widths: Mapping[str, int],
        rngs: nnx.Rngs,
    ) -> None:
        check_numbers("Prototypes", temperature, epsilon, iterations)
        if widths["image"] != widths["text"]:
            raise InputError(
                f"Prototypes: image of {widths['image']} features, text of {widths['text']}; "
                "expected as many"
            )
        super().__init__(
            width=widths["image"], prototypes=prototypes, frozen_steps=frozen_steps, rngs=rngs
        )
        self.codes = functools.partial(sinkhorn, epsilon=epsilon, iterations=iterations)
        self.loss = functools.partial(
            prototype_alignment_loss,
            temperature=temperature,
            epsilon=epsilon,
            iterations=iterations,
        )

    def __call__(self, *, context: Context, image: jax.Array, text: jax.Array) -> Loss:
        """Aligns the codes of all pairs of the global batch."""
        present, prototypes = context.present, self.trained(context)
        value = self.loss(image, text, prototypes, present=present)
        scores = _scores(zero_absent(present, image), prototypes)
        metrics = code_metrics(self.codes(scores, present=present), present)
        return Loss(value, {"loss": batch_mean(value, len(image), present), **metrics})


def check_numbers(owner: str, temperature: float, epsilon: float, iterations: int) -> None:
    """Raises InputError unless temperatures are above 0, and there is an iteration."""
    if not (temperature > 0 and epsilon > 0 and iterations >= 1):
        raise InputError(
            f"{owner}: temperature {temperature}, epsilon {epsilon}, iterations {iterations}; "
            "expected numbers above 0, and at least 1 iteration"
        )
