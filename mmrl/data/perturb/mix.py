"""Which kinds of perturbation training draws, with which weights, and from which step on."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mmrl import sequences
from mmrl.data import counter, perturb
from mmrl.data.perturb.systematic import systematic, uniforms_needed
from mmrl.types import InputError

Weights = Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Mix:
    """Kinds with their weights, in stages of training.

    Attributes:
      stages: (first step, kind -> weight), ascending by step; the first stage begins at step 0.
    """

    stages: tuple[tuple[int, Weights], ...]

    @classmethod
    def from_config(
        cls,
        perturbations: Sequence[str] | Weights,
        curriculum: Iterable[Mapping[str, Any]] = (),
    ) -> "Mix":
        """Reads config.data.perturbations and config.data.perturbation_curriculum.

        Args:
          perturbations: kinds with equal weights, or kind -> weight, from step 0 on.
          curriculum: stages {"from_step": int, "perturbations": kinds or weights}, ascending by
            step; each replaces the stage before it.

        Raises:
          InputError: an unknown kind or key, a kind that keeps the meaning, a stage without kinds,
            a weight that is not positive, or steps that do not ascend.
        """
        stages = [(0, _weights("config.data.perturbations", perturbations))]
        for number, stage in enumerate(curriculum):
            where = f"config.data.perturbation_curriculum[{number}]"
            if set(stage) != {"from_step", "perturbations"}:
                raise InputError(
                    f"{where} has {', '.join(sorted(stage)) or 'nothing'}; expected from_step and "
                    "perturbations"
                )
            step = stage["from_step"]
            if not isinstance(step, int) or step <= stages[-1][0]:
                raise InputError(f"{where}.from_step={step}; expected a step after {stages[-1][0]}")
            stages.append((step, _weights(f"{where}.perturbations", stage["perturbations"])))
        return cls(tuple(stages))

    def at(self, step: int) -> Weights:
        """Kind -> weight for the batch of `step`, counted from 0."""
        current = self.stages[0][1]
        for first, weights in self.stages[1:]:
            if step < first:
                break
            current = weights
        return current

    def draw(self, step: int, count: int, seeds: np.ndarray) -> np.ndarray:
        """Draws the kinds of `count` copies of each of n reports in the batch of `step`.

        The kinds of a report differ as far as their weights allow, see `systematic`: as many
        copies as kinds of equal weight have every kind once.

        Args:
          seeds: u64[n], of a random stream for each report, whose first outputs are used.

        Returns:
          i64[n, count], indices into perturb.KINDS.
        """
        weights = self.at(step)
        names = np.array([perturb.KINDS.index(kind) for kind in weights])
        needed = np.arange(uniforms_needed(len(weights), count))
        uniforms = counter.uniforms(seeds[:, None], needed)
        return names[systematic(np.array(list(weights.values())), count, uniforms)]

    @property
    def kinds(self) -> tuple[str, ...]:
        """Every kind of any stage, in the order of `perturb.KINDS`."""
        used = {kind for _, weights in self.stages for kind in weights}
        return tuple(kind for kind in perturb.KINDS if kind in used)


def _weights(where: str, given: Sequence[str] | Weights) -> dict[str, float]:
    if hasattr(given, "items"):
        names, weights = list(given), dict(given.items())
    else:
        names = sequences.of(given, where)
        weights = dict.fromkeys(names, 1.0)
    if not names:
        raise InputError(f"{where} is empty; name at least one kind")
    if len(weights) < len(names):
        raise InputError(f"{where} names a kind twice: {', '.join(names)}")
    try:
        perturb.check_kinds(names, among=perturb.NEGATIVE_KINDS)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    bad = [f"{name}={weight}" for name, weight in weights.items() if not 0 < weight < float("inf")]
    if bad:
        raise InputError(f"{where}: weight {', '.join(bad)}; expected positive numbers")
    # Sorted as in KINDS, so that draws do not depend on the order in the config.
    return {kind: float(weights[kind]) for kind in perturb.KINDS if kind in weights}
