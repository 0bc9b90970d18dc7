"""The interface of evaluators: their inputs and their results.

An evaluator is built once from the config and run many times:

    evaluator = Retrieval(predict, held_out, **options)
    results = evaluator.run(state)

It has no access to the trainer or the objectives, so training and `python -m mmrl.evaluate`
produce their numbers with the same code.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

from mmrl.types import Record
from mmrl.wiring import redirected


class HeldOut(Protocol):
    """The held-out examples of one split in a fixed order.

    Attributes:
      name: "source/split", for titles.
      sha256: digest over ids, texts and preprocessing; equal digests mean equal inputs.
      preprocessing: of pixels and text before the encoders, JSON-able.
      ids, texts, patients: one entry per example.
      groups: i32[N]; examples of one duplicate group (same report text or study) match each other.
    """

    name: str
    sha256: str
    preprocessing: Mapping[str, Any]
    ids: Sequence[str]
    texts: Sequence[str]
    patients: Sequence[str]
    groups: np.ndarray

    def __len__(self) -> int: ...

    def record(self, index: int) -> Record:
        """The full record of example `index`, with its ground truth."""

    def training_texts(self) -> Sequence[str]:
        """The reports of the training split of the same corpus; empty if there is none."""

    def arrays(
        self, names: Sequence[str], rows: Sequence[int], tower: str = ""
    ) -> Mapping[str, np.ndarray]:
        """Arrays "<input>.<array>" [n, ...] of some examples, without anything random.

        Args:
          names: of inputs. tower: that reads them; "" for arrays that no tower encodes.
        """

    def with_texts(self, texts: Sequence[str]) -> Any:
        """Other texts in place of the reports, for `Predict.encode` with text towers."""

    def tokenize(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """texts -> tokens i32[N, L], mask bool[N, L] exactly as in training."""

    def image(self, index: int) -> np.ndarray:
        """u8[H, W, 1], preprocessed as for evaluation (no augmentation)."""


class Predict(Protocol):
    """Encodes held-out inputs with a given state; results are complete and on the host.

    Encodings of the latest state are remembered, so that several evaluators share one pass.
    """

    provides: tuple[str, ...]

    def encode(self, state: Any, data: Any, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Encodings by name [N, ...], and "present" bool[N], see `training.predict.Predict`."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval, from a bootstrap over patients.

    Attributes:
      value: the estimate.
      low, high: ends of the interval; None if it is undefined.
      n: number of items that the value is computed from.
      chance: expected value of random guessing; None if it is undefined.
    """

    value: float
    low: float | None = None
    high: float | None = None
    n: int = 0
    chance: float | None = None

    def __str__(self) -> str:
        text = f"{self.value:.3f}"
        if self.low is not None and self.high is not None:
            text += f" [{self.low:.3f}, {self.high:.3f}]"
        if self.chance is not None:
            text += f" (chance {self.chance:.3f})"
        return text


@dataclasses.dataclass(frozen=True)
class Results:
    """The results of one evaluator, with what is needed to interpret them.

    Attributes:
      protocol: name and version, e.g. "retrieval@1"; a change that can alter numbers changes it.
      values: name -> Estimate, in order of importance.
      n: examples evaluated. excluded: reason -> count of examples left out.
      data: name and sha256 of the examples. preprocessing: as in HeldOut.
      details: further facts, JSON-able.
    """

    protocol: str
    values: Mapping[str, Estimate]
    n: int
    data: Mapping[str, str]
    preprocessing: Mapping[str, Any]
    excluded: Mapping[str, int] = dataclasses.field(default_factory=dict)
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def scalars(self) -> dict[str, float]:
        """Name -> value, for the metric log; ends of intervals as "{name}/low" and "/high"."""
        flat: dict[str, float] = {}
        for name, estimate in self.values.items():
            flat[name] = estimate.value
            if estimate.low is not None and estimate.high is not None:
                flat[f"{name}/low"], flat[f"{name}/high"] = estimate.low, estimate.high
        return flat

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form, as stored in the run directory."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Figure:
    """A picture for the summary page.

    Attributes:
      name: of the PNG file, without suffix.
      title, caption: plain text.
      draw: writes the PNG to the path it is given. None: there is nothing to draw, and the caption
        gives the reason.
    """

    name: str
    title: str
    caption: str
    draw: Callable[[Path], None] | None = None


class Evaluator:
    """Base of all evaluators; subclasses add keyword options and implement `run`.

    Args:
      reads: argument -> encoding, for arguments that read another one than by default.

    Attributes:
      reads: argument -> the encoding that it reads by default.
      prompted: arguments whose encodings are of the evaluator's own texts, not of the records.
      names: argument -> the encoding that it reads.
      headline: values that the summary page shows first -> what each one means.
    """

    reads: ClassVar[Mapping[str, str]] = {}
    prompted: ClassVar[tuple[str, ...]] = ()
    headline: ClassVar[Mapping[str, str]] = {}

    def __init__(
        self, predict: Predict, data: HeldOut, *, reads: Mapping[str, str] | None = None
    ) -> None:
        self.predict = predict
        self.data = data
        self.names = redirected(f"reads of {type(self).__name__}", self.reads, reads)

    def run(self, state: Any) -> Results:
        """Evaluates `state` on `self.data`."""
        raise NotImplementedError

    def figures(
        self, state: Any, results: Results, history: Sequence[Mapping[str, Any]]
    ) -> list[Figure]:
        """Pictures of `results`, in order; none unless a subclass has some.

        Every process of a run calls this, because encoding needs them all. Only the first draws.

        Args:
          state: what `run` evaluated.
          results: what `run` returned.
          history: {"step": n, value name: value} of every evaluation of a training run, ascending;
            empty outside training.
        """
        return []
