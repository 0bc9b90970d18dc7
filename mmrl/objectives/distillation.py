"""Distillation of the similarities of images and reports from another pair of encoders."""

from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp

from mmrl.objectives.base import (
    Context,
    LogitScale,
    Objective,
    batch_mean,
    check_present,
    require,
    row_count,
    zero_absent,
)
from mmrl.types import InputError, Loss
from mmrl.vectors import l2_normalize


def distillation_loss(
    image: jax.Array,
    text: jax.Array,
    scale: jax.Array | float,
    teacher_image: jax.Array,
    teacher_text: jax.Array,
    teacher_scale: jax.Array | float,
    *,
    present: jax.Array | None = None,
) -> jax.Array:
    """Cross-entropy of the student's matches with those of a teacher, in both directions.

    1/2 sum over directions of mean_i -sum_j softmax_j(T_ij) log softmax_j(S_ij), where S and T are
    scale * cos(image_i, text_j) of student and teacher (OpenCLIP, DistillClipLoss). No gradient
    flows into the teacher.

    Args:
      image, text: f[B, D]. teacher_image, teacher_text: f[B, D'], D' may differ from D. None has to
        be normalised.
      scale, teacher_scale: f32[], inverse temperatures themselves, not their logarithms.
      present: bool[B], the rows that have all inputs; None: all. The others are neither row nor
        column.

    Returns:
      f32[]; 0 if no row is present.

    Raises:
      ValueError: shapes that do not fit.
    """
    for name, one, two in (("", image, text), ("teacher_", teacher_image, teacher_text)):
        require(
            one.ndim == 2 and one.shape == two.shape and len(one) == len(image),
            f"{name}image and {name}text must be [{len(image)}, D], got {one.shape}, {two.shape}",
        )
    size = len(image)
    present = check_present(present, size)
    student = _logits(image, text, scale, present)
    teacher = jax.lax.stop_gradient(_logits(teacher_image, teacher_text, teacher_scale, present))
    one, two = (_cross_entropy(teacher, student, present, axis).sum() for axis in (0, 1))
    return 0.5 * (one + two) / row_count(size, present)


def _logits(
    image: jax.Array, text: jax.Array, scale: jax.Array | float, present: jax.Array | None
) -> jax.Array:
    image, text = (l2_normalize(zero_absent(present, jnp.asarray(x))) for x in (image, text))
    return jnp.float32(scale) * jnp.einsum("id,jd->ij", image, text)


def _cross_entropy(
    teacher: jax.Array, student: jax.Array, present: jax.Array | None, axis: int
) -> jax.Array:
    """-softmax(teacher) log softmax(student) along an axis f32[B, B]; 0 where a row is absent."""
    among = None
    if present is not None:
        among = present[:, None] & present[None, :]
    share = jax.nn.softmax(teacher, axis=axis, where=among)
    if among is None:
        return -share * jax.nn.log_softmax(student, axis=axis)
    kept = jnp.where(among, student, -jnp.inf)
    # A line without any entry would be -inf - -inf.
    total = jax.nn.logsumexp(jnp.where(among.any(axis=axis, keepdims=True), kept, 0.0), axis=axis)
    logs = student - jnp.expand_dims(total, axis)
    return jnp.where(among, -share * logs, 0.0)


class Distillation(Objective):
    """`distillation_loss` with a learned temperature; by default the averaged weights teach.

    Another teacher is another pair of towers, such as frozen ones: redirect reads.teacher_image and
    reads.teacher_text.

    Args:
      temperature: initial value of the learned temperature. The scale, its inverse, is clipped at
        100 after each update.
      teacher_temperature: of the teacher; 0: the learned one, averaged where the teacher is.

    Raises:
      InputError: a temperature out of range.
    """

    reads: ClassVar[Mapping[str, str]] = {
        "image": "image.embedding",
        "text": "text.embedding",
        "teacher_image": "average/image.embedding",
        "teacher_text": "average/text.embedding",
    }

    def __init__(self, *, temperature: float = 0.07, teacher_temperature: float = 0.0) -> None:
        if not (temperature > 0 and teacher_temperature >= 0):
            raise InputError(
                f"Distillation: temperature {temperature}, teacher_temperature "
                f"{teacher_temperature}; expected a number above 0, and one of at least 0"
            )
        self.logit_scale = LogitScale(temperature)
        self.teacher_scale = 1.0 / teacher_temperature if teacher_temperature else None

    def __call__(
        self,
        *,
        context: Context,
        image: jax.Array,
        text: jax.Array,
        teacher_image: jax.Array,
        teacher_text: jax.Array,
    ) -> Loss:
        """Compares the matches of all pairs of the global batch."""
        scale, present = jnp.exp(self.logit_scale()), context.present
        teacher: jax.Array | float | None = self.teacher_scale
        if teacher is None:
            teacher = jnp.exp((context.average or self).logit_scale())
        value = distillation_loss(
            image, text, scale, teacher_image, teacher_text, teacher, present=present
        )
        return Loss(
            value,
            {
                "loss": batch_mean(value, len(image), present),
                "logit_scale": (scale, jnp.float32(1)),
            },
        )

    def post_update(self, context: Context) -> None:
        """Keeps the scale within its bound."""
        self.logit_scale.clip()
