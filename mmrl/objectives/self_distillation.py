"""Distillation of a network by the average of its own weights, on several views of an image.

Oquab et al. 2024 (DINOv2): the losses of Caron et al. 2021 (DINO) on whole views, Zhou et al. 2022
(iBOT) on masked patches, and Sablayrolles et al. 2019 (KoLeo) on how features spread.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from mmrl import schedules
from mmrl.build import unknown
from mmrl.objectives.base import (
    Context,
    Objective,
    batch_mean,
    check_present,
    require,
    row_count,
    zero_absent,
)
from mmrl.objectives.prototypes import code_cross_entropy, code_metrics, sinkhorn
from mmrl.types import InputError, Loss
from mmrl.vectors import l2_normalize

METHODS = ("sinkhorn", "centre")


def teacher_codes(
    scores: jax.Array,
    *,
    temperature: float | jax.Array,
    centre: jax.Array | None = None,
    method: str = "sinkhorn",
    iterations: int = 3,
    present: jax.Array | None = None,
) -> jax.Array:
    """The targets that a teacher sets, kept from collapsing onto one prototype.

    "centre" is softmax((scores - centre) / temperature) (DINO, section 3.1); "sinkhorn" is
    `sinkhorn` with the temperature as its epsilon (DINOv2, section 4). With sinkhorn, the codes of
    all rows depend on each other, so all views of a batch belong into one call.

    Args:
      scores: f[N, K], what the head of the teacher returns.
      temperature: above 0.
      centre: f[K], the mean that is subtracted; required by, and only for, "centre".
      method: sinkhorn or centre. iterations: of sinkhorn.
      present: bool[N], the rows that take part; None: all.

    Returns:
      f32[N, K], without a gradient. Rows sum to 1; those that are not present are 0.

    Raises:
      InputError: unknown method.
      ValueError: shapes that do not fit, or a missing or needless centre.
    """
    check_method(method)
    require(scores.ndim == 2, f"scores must be [N, K], got {scores.shape}")
    if method == "sinkhorn":
        require(centre is None, "sinkhorn takes no centre")
        return sinkhorn(scores, epsilon=temperature, iterations=iterations, present=present)
    require(
        centre is not None and centre.shape == scores.shape[1:],
        f"centre must be [{scores.shape[1]}], got {getattr(centre, 'shape', None)}",
    )
    present = check_present(present, len(scores))
    wide = zero_absent(present, jnp.asarray(scores)).astype(jnp.float32)
    moved = (wide - jnp.asarray(centre).astype(jnp.float32)) / jnp.float32(temperature)
    return zero_absent(present, jax.lax.stop_gradient(jax.nn.softmax(moved, axis=1)))


def check_method(method: str) -> None:
    """Raises InputError unless `method` is one of METHODS."""
    if method not in METHODS:
        raise InputError(unknown("method of self_distillation", method, METHODS))


def dino_loss(
    student: jax.Array,
    teacher: jax.Array,
    *,
    wide: int = 2,
    temperature: float = 0.1,
    present: jax.Array | None = None,
) -> jax.Array:
    """Cross-entropy of each view with the teacher's codes of the other wide views (DINO, eq. 3).

    The mean over all pairs of a view v and a wide view w other than v, so that each pair counts
    alike, whether v is wide or local (DINOv2).

    Args:
      student: f[V, B, K], logits, those of the wide views first.
      teacher: f[wide, B, K], `teacher_codes` of the wide views in the same order. No gradient.
      wide: number of wide views. temperature: of the student.
      present: bool[B], the rows that have all inputs; None: all.

    Returns:
      f32[]; 0 if no row is present.

    Raises:
      ValueError: shapes that do not fit, or a single view.
    """
    require(
        student.ndim == 3
        and 1 <= wide <= len(student) >= 2
        and teacher.shape == (wide, *student.shape[1:]),
        f"student must be [V, B, K] with at least 2 and {wide} views, and teacher [{wide}, B, K], "
        f"got {student.shape}, {teacher.shape}",
    )
    count, size, _ = student.shape
    present = check_present(present, size)
    student, teacher = (
        jnp.asarray(x).astype(jnp.float32)
        if present is None
        else jnp.where(present[:, None], jnp.asarray(x), 0).astype(jnp.float32)
        for x in (student, teacher)
    )
    other = jnp.arange(count)[:, None] != jnp.arange(wide)  # V wide
    codes = jnp.sum(jnp.where(other[..., None, None], teacher, 0.0), axis=1)
    total = code_cross_entropy(codes, student, temperature).sum()
    return total / (wide * (count - 1)) / row_count(size, present)


def masked_patch_loss(
    student: jax.Array,
    teacher: jax.Array,
    mask: jax.Array,
    *,
    temperature: float = 0.1,
    present: jax.Array | None = None,
) -> jax.Array:
    """Cross-entropy of masked patches with the teacher's codes of the same patches (iBOT, eq. 2).

    The mean over the masked patches of each image, and then over all N images, those without a
    masked patch included (DINOv2).

    Args:
      student: f[N, P, K], logits of images whose masked patches the student does not see.
      teacher: f[N, P, K], `teacher_codes` of the masked patches; the others are not used, and may
        hold anything. No gradient.
      mask: bool[N, P], True: masked. temperature: of the student.
      present: bool[N], the images that have all inputs; None: all.

    Returns:
      f32[]; 0 if nothing is masked.

    Raises:
      ValueError: shapes that do not fit.
    """
    require(
        student.ndim == 3 and student.shape == teacher.shape and mask.shape == student.shape[:2],
        f"student and teacher must be [N, P, K] and mask [N, P], got {student.shape}, "
        f"{teacher.shape}, {mask.shape}",
    )
    size = len(student)
    present, mask = check_present(present, size), jnp.asarray(mask).astype(bool)
    if present is not None:
        mask &= present[:, None]
    student, teacher = (
        jnp.where(mask[..., None], jnp.asarray(x), jnp.zeros((), x.dtype)).astype(jnp.float32)
        for x in (student, teacher)
    )
    losses = code_cross_entropy(teacher, student, temperature)  # N P
    masked = jnp.maximum(mask.sum(axis=1, dtype=jnp.float32), 1.0)
    return jnp.sum(losses.sum(axis=1) / masked) / row_count(size, present)


def koleo_loss(features: jax.Array, *, present: jax.Array | None = None) -> jax.Array:
    """Spreads features: -mean log of the distance to the nearest other one (Sablayrolles 2019).

    Rows are normalised; the nearest one has the largest cosine, and is chosen without a gradient.
    The gradient flows into both. As in DINOv2, 1e-8 is added to each difference and to each
    distance. DINOv2 applies it to each wide view alone and adds the losses.

    Args:
      features: f[B, D], not normalised.
      present: bool[B], the rows that take part; None: all.

    Returns:
      f32[]; 0 if fewer than two rows are present.

    Raises:
      ValueError: another number of axes.
    """
    require(features.ndim == 2, f"features must be [B, D], got {features.shape}")
    size = len(features)
    present = check_present(present, size)
    unit = l2_normalize(zero_absent(present, jnp.asarray(features)), epsilon=1e-8)
    other = ~jnp.eye(size, dtype=bool)
    if present is not None:
        other &= present[None, :] & present[:, None]
    fixed = jax.lax.stop_gradient(unit)
    cosine = jnp.einsum("id,jd->ij", fixed, fixed)
    nearest = jnp.argmax(jnp.where(other, cosine, -jnp.inf), axis=1)
    difference = unit - unit[nearest] + 1e-8
    alone = ~other.any(axis=1)
    square = jnp.where(alone, 1.0, jnp.sum(difference * difference, axis=1))
    logs = jnp.where(alone, 0.0, jnp.log(jnp.sqrt(square) + 1e-8))
    return -jnp.sum(logs) / row_count(size, present)


class Centre(nnx.Variable):
    """A moving average of what a teacher returns."""


class Codes(nnx.Module):
    """`teacher_codes`, with a temperature that follows a schedule, and a centre of its own.

    The centre moves after the codes are made: c becomes momentum c + (1 - momentum) mean(rows), and
    counts from the next call on, as in DINOv2. It starts at 0 and does not move in evaluation.

    Args:
      owner: names the objective in messages.
      count: number of prototypes.
      method: sinkhorn or centre. temperature: a number or a schedule.
      momentum: of the centre.
      iterations: number of normalisations by `sinkhorn`.

    Raises:
      InputError: an unknown method, or a number out of range.
    """

    def __init__(
        self,
        owner: str,
        count: int,
        *,
        method: str,
        temperature: Any,
        momentum: float,
        iterations: int,
    ) -> None:
        check_method(method)
        self.temperature = schedules.parse(f"teacher_temperature of {owner}", temperature)
        lowest = min(self.temperature.start or self.temperature.end, self.temperature.end)
        if not (lowest > 0 and 0 <= momentum < 1 and iterations >= 1):
            raise InputError(
                f"{owner}: teacher_temperature {temperature}, momentum {momentum}, iterations "
                f"{iterations}; expected a number above 0, one from 0 to below 1, and at least 1"
            )
        self.method, self.momentum, self.iterations = method, momentum, iterations
        if method == "centre":
            self.centre = Centre(jnp.zeros(count, jnp.float32))

    def __call__(self, scores: jax.Array, context: Context, present: jax.Array | None) -> jax.Array:
        """scores f[N, K] -> codes f32[N, K] of the rows that are `present` bool[N]."""
        has_centre = self.method == "centre"
        codes = teacher_codes(
            scores,
            temperature=self.temperature(context.step),
            centre=self.centre[...] if has_centre else None,
            method=self.method,
            iterations=self.iterations,
            present=present,
        )
        if has_centre and context.key is not None:
            rows = zero_absent(present, jax.lax.stop_gradient(scores)).astype(jnp.float32)
            mean = rows.sum(axis=0) / row_count(len(rows), present)
            moved = self.momentum * self.centre[...] + (1 - self.momentum) * mean
            some = True if present is None else present.any()
            self.centre[...] = jnp.where(some, moved, self.centre[...])
        return codes


class SelfDistillation(Objective):
    """`dino_loss` of wide and local crops, with the averaged weights as the teacher.

    A head of the image tower, named prototypes here, gives the logits. Metrics: as of
    `code_metrics`, of the codes of the teacher.

    Args:
      local: whether local crops are read. Without them, redirect reads.local to what `wide` reads.
      temperature: of the student.
      teacher_temperature: of the teacher: a number or a schedule. DINOv2 rises from 0.04 to 0.07.
      method: how the codes are kept from collapsing: centre or sinkhorn.
      momentum: of the centre, see `Codes`. With config.accumulation it moves once for each
        micro-batch.
      iterations: number of normalisations by `sinkhorn`.
      widths: of what is read.

    Raises:
      InputError: heads of different sizes, an unknown method, or a number out of range.
    """

    reads: ClassVar[Mapping[str, str]] = {
        "wide": "image@wide.prototypes",
        "local": "image@local.prototypes",
        "teacher": "average/image@wide.prototypes",
    }

    def __init__(
        self,
        *,
        local: bool = True,
        temperature: float = 0.1,
        teacher_temperature: float | Mapping[str, Any] = 0.07,
        method: str = "centre",
        momentum: float = 0.9,
        iterations: int = 3,
        widths: Mapping[str, int],
    ) -> None:
        count = check_student("SelfDistillation", temperature, widths)
        self.local, self.temperature = local, temperature
        self.codes = Codes(
            "SelfDistillation",
            count,
            method=method,
            temperature=teacher_temperature,
            momentum=momentum,
            iterations=iterations,
        )

    def __call__(
        self, *, context: Context, wide: jax.Array, local: jax.Array, teacher: jax.Array
    ) -> Loss:
        """Compares views: wide and teacher f[B, S, K], local f[B, V, K]."""
        size, count, width = teacher.shape
        present = context.present
        rows = None if present is None else jnp.tile(present, count)
        codes = self.codes(teacher.swapaxes(0, 1).reshape(-1, width), context, rows)
        views = jnp.concatenate([wide, local], axis=1) if self.local else wide
        value = dino_loss(
            views.swapaxes(0, 1),
            codes.reshape(count, size, width),
            wide=count,
            temperature=self.temperature,
            present=present,
        )
        metrics = code_metrics(codes, rows)
        return Loss(value, {"loss": batch_mean(value, size, present), **metrics})


def check_student(owner: str, temperature: float, widths: Mapping[str, int]) -> int:
    """The number of prototypes that all of the heads have.

    Raises:
      InputError: heads of different sizes, or a temperature that is not above 0.
    """
    if len(set(widths.values())) > 1 or not temperature > 0:
        found = ", ".join(f"{name} {width}" for name, width in widths.items())
        raise InputError(
            f"{owner}: features {found}, temperature {temperature}; expected as many, and a number "
            "above 0"
        )
    return next(iter(widths.values()))
