"""Which kinds of perturbation training draws, and how that changes over its steps."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mmrl.data import counter, perturb
from mmrl.data.perturb import systematic as sampling
from mmrl.types import InputError

Weights = Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Mix:
    """Kinds with their weights, in stages over training.

    Attributes:
      stages: (first step, kind -> weight), ascending; the first begins with step 0.
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
          perturbations: names with equal weights, or name -> weight, from step 0 on.
          curriculum: {"from_step": int, "perturbations": names or weights}, ascending: what takes
            over at that step.

        Raises:
          InputError: unknown kinds or keys, kinds that keep the meaning, none at all, weights that
            are not positive, or steps that do not ascend.
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
        """Kinds of `count` copies of each of n reports in the batch of `step`.

        With as many copies as equal weights every kind comes once, see `sampling.systematic`; the
        first numbers of each report's stream decide.

        Args:
          seeds: u64[n].

        Returns:
          i64[n, count], indices into perturb.KINDS.
        """
        weights = self.at(step)
        names = np.array([perturb.KINDS.index(kind) for kind in weights])
        needed = np.arange(sampling.numbers_needed(len(weights), count))
        uniforms = counter.uniforms(seeds[:, None], needed)
        return names[sampling.systematic(np.array(list(weights.values())), count, uniforms)]

    @property
    def kinds(self) -> tuple[str, ...]:
        """Every kind of any stage, in the order of `perturb.KINDS`."""
        used = {kind for _, weights in self.stages for kind in weights}
        return tuple(kind for kind in perturb.KINDS if kind in used)


def _weights(where: str, given: Sequence[str] | Weights) -> dict[str, float]:
    names = list(given)
    weights = dict(given.items()) if hasattr(given, "items") else dict.fromkeys(names, 1.0)
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
    # In one order, so that draws do not depend on how the config was written.
    return {kind: float(weights[kind]) for kind in perturb.KINDS if kind in weights}
