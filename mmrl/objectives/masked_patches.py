"""Distillation of the patches that a student does not see (Zhou et al. 2022, iBOT)."""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from mmrl.objectives.base import Context, Objective, batch_mean
from mmrl.objectives.prototypes import code_metrics
from mmrl.objectives.self_distillation import Codes, check_student, masked_patch_loss
from mmrl.types import Loss


class MaskedPatches(Objective):
    """`masked_patch_loss` of crops or images, with the averaged weights as the teacher.

    The head of the regions gives the logits. The student encodes an input that hides patches, such
    as `mmrl.models.derived.hidden_patches`, and the teacher the same one without hiding any.
    Metrics: as of `code_metrics`, of the codes of the teacher, and `accuracy`, how often the
    student finds their largest share.

    Args:
      temperature: of the student.
      teacher_temperature: of the teacher: a number or a schedule.
      method: how the codes are kept from collapsing: centre or sinkhorn.
      momentum: of the centre, see `self_distillation.Codes`.
      iterations: number of normalisations by `sinkhorn`.
      widths: of what is read.

    Raises:
      InputError: heads of different sizes, an unknown method, or a number out of range.
    """

    reads: ClassVar[Mapping[str, str]] = {
        "student": "image@hidden_wide.regions",
        "teacher": "average/image@wide.regions",
    }
    batch: ClassVar[Mapping[str, str]] = {"mask": "hidden_wide.hidden"}

    def __init__(
        self,
        *,
        temperature: float = 0.1,
        teacher_temperature: float | Mapping[str, Any] = 0.07,
        method: str = "centre",
        momentum: float = 0.9,
        iterations: int = 3,
        widths: Mapping[str, int],
    ) -> None:
        count = check_student("MaskedPatches", temperature, widths)
        self.temperature = temperature
        self.codes = Codes(
            "MaskedPatches",
            count,
            method=method,
            temperature=teacher_temperature,
            momentum=momentum,
            iterations=iterations,
        )

    def __call__(
        self, *, context: Context, student: jax.Array, teacher: jax.Array, mask: jax.Array
    ) -> Loss:
        """Compares patches.

        Args:
          student, teacher: f[B, P, K] of images, or f[B, S, P, K] of crops.
          mask: bool[B, P] or bool[B, S, P], True: hidden from the student.
        """
        *rows, patches, width = student.shape
        present = context.present
        if present is not None and len(rows) > 1:
            present = jnp.repeat(present, rows[1])
        student, teacher = (x.reshape(-1, patches, width) for x in (student, teacher))
        mask = mask.reshape(-1, patches).astype(bool)
        if present is not None:
            mask &= present[:, None]
        hidden = mask.reshape(-1)
        codes = self.codes(teacher.reshape(-1, width), context, hidden)
        targets = codes.reshape(student.shape)
        value = masked_patch_loss(
            student, targets, mask, temperature=self.temperature, present=present
        )
        right = jnp.argmax(student, axis=2) == jnp.argmax(targets, axis=2)
        count = hidden.sum(dtype=jnp.float32)
        return Loss(
            value,
            {
                "loss": batch_mean(value, len(student), present),
                "accuracy": ((right & mask).sum(dtype=jnp.float32), count),
                **code_metrics(codes, hidden),
            },
        )
