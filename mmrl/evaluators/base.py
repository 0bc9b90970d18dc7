"""The interface of evaluators: their inputs and their results.

An evaluator is built once from the config and run many times:

    evaluator = Retrieval(predict, held_out, **options)
    results = evaluator.run(state)

It has no access to the trainer or the objectives, so training and `python -m mmrl.evaluate`
produce their numbers with the same code.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

from mmrl.types import Record
from mmrl.wiring import redirected

ROWS: Mapping[str, str] = {
    "constant": "gives every item the same answer",
    "most_frequent": "gives the most frequent answer",
    "first_option": "gives the first option",
    "constant_map": "is a map of 1 everywhere",
    "prior_map": "is the mean place of boxes of the class in other patients",
    "background": "masks nothing",
    "foreground": "masks everything",
    "mean_mask": "masks where training masks are",
    "images_permuted": "answers about images of other patients",
    "boxes_permuted": "is judged by boxes of other patients",
    "premises_permuted": "answers with the premises of other pairs",
    "premise_only": "reads the premise alone",
    "hypothesis_only": "reads the hypothesis alone",
    "bag_of_words": "reads word frequencies in place of the features",
    "text_only": "sees no image",
    "image_only": "sees no text",
    "raw_pixels": "reads pixels in place of the features",
}
"""What a measure is compared with: "{measure}_{row}" is the measure of a predictor that ..."""

# Last parts of measures of which less is better, and of which neither is.
_LESS = ("median_rank", "mean_rank", "mean_absolute_error", "calibration_error")
_NEITHER = ("attention_entropy",)


def direction(measure: str) -> int:
    """1 if more of a measure is better, -1 if less is, 0 if neither."""
    last = measure.rpartition("/")[2]
    return 0 if last in _NEITHER else -1 if last in _LESS else 1


class HeldOut(Protocol):
    """The held-out examples of one split in a fixed order.

    Attributes:
      name: "source/split", for titles.
      sha256: digest over ids, texts and preprocessing; equal digests mean equal inputs.
      items_sha256: digest over ids, patients, texts, labels and choice of images, without
        preprocessing; equal for encoders that read the same examples in another size.
      preprocessing: of pixels and text before the encoders, JSON-able.
      ids, texts, patients: one entry per example.
      foreign: positions of the examples whose text is not English.
      groups: i32[N]; examples of one duplicate group (same report text or study) match each other.
    """

    name: str
    sha256: str
    items_sha256: str
    preprocessing: Mapping[str, Any]
    ids: Sequence[str]
    texts: Sequence[str]
    patients: Sequence[str]
    foreign: frozenset[int]
    groups: np.ndarray

    def __len__(self) -> int: ...

    def record(self, index: int) -> Record:
        """The full record of example `index`, with its ground truth."""

    def training_texts(self) -> Sequence[str]:
        """The reports of the training split of the same corpus; empty if there is none."""

    def split(self, name: str) -> "HeldOut":
        """The examples of another split of the same corpus: train, val or test.

        Raises:
          InputError: there is no such split.
        """

    def labels(self, names: Sequence[str] = ()) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
        """(names, labels i8[N, C], known bool[N, C]), as the label policy reads them.

        Args:
          names: of the labels; empty: config.data.label_names or, if that is empty, all of them.

        Raises:
          InputError: a label that the corpus does not have, or a corpus without labels.
        """

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

    def pixels(self, encoding: str, rows: Sequence[int]) -> np.ndarray | None:
        """u8[n, H, W, C], the images that an encoding is made of; None: it is made of no image."""

    def image(self, index: int) -> np.ndarray:
        """u8[H, W, C], preprocessed as for evaluation (no augmentation)."""


def identity(data: HeldOut) -> dict[str, str]:
    """Name, sha256 and items_sha256 of held-out examples, for `Results.data`."""
    return {"name": data.name, "sha256": data.sha256, "items_sha256": data.items_sha256}


class Predict(Protocol):
    """Encodes held-out inputs with a given state; results are complete and on the host.

    Encodings of the latest state are remembered, so that several evaluators share one pass.
    """

    provides: tuple[str, ...]

    def encode(self, state: Any, data: Any, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Encodings by name [N, ...], and "present" bool[N], see `training.predict.Predict`."""

    def stream(
        self, state: Any, data: Any, names: Sequence[str]
    ) -> Iterator[Mapping[str, np.ndarray]]:
        """As `encode`, in blocks of consecutive examples; remembers nothing."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval, from a bootstrap over patients.

    Attributes:
      value: the estimate.
      low, high: ends of the interval; None if it is undefined.
      n: number of items that the value is computed from.
      chance: expected value of random guessing; None if it is undefined.
      draws: f64[S], the value under every draw of the bootstrap, NaN where undefined. Estimates of
        the same items with the same seed have the same draws, so their draws can be subtracted.
        None where they are not kept. Not part of the JSON form.
    """

    value: float
    low: float | None = None
    high: float | None = None
    n: int = 0
    chance: float | None = None
    draws: np.ndarray | None = dataclasses.field(default=None, repr=False, compare=False)

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
      data: what `identity` states of the examples. preprocessing: as in HeldOut.
      details: further facts, JSON-able.
      answers: part of a value's name, such as "findings" -> the `scoring.Answers` behind the
        values, for figures. Not part of the JSON form.
    """

    protocol: str
    values: Mapping[str, Estimate]
    n: int
    data: Mapping[str, str]
    preprocessing: Mapping[str, Any]
    excluded: Mapping[str, int] = dataclasses.field(default_factory=dict)
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    answers: Mapping[str, Any] = dataclasses.field(default_factory=dict, repr=False, compare=False)

    def scalars(self) -> dict[str, float]:
        """Name -> value, for the metric log; ends of intervals as "{name}/low" and "/high"."""
        flat: dict[str, float] = {}
        for name, estimate in self.values.items():
            flat[name] = estimate.value
            if estimate.low is not None and estimate.high is not None:
                flat[f"{name}/low"], flat[f"{name}/high"] = estimate.low, estimate.high
        return flat

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form, as stored in the run directory; without the draws and the answers."""
        plain = dataclasses.asdict(dataclasses.replace(self, answers={}))
        del plain["answers"]
        for estimate in plain["values"].values():
            del estimate["draws"]
        return plain

    def draws(self) -> dict[str, np.ndarray]:
        """Name -> f64[S], of the values whose draws are kept."""
        return {
            name: estimate.draws
            for name, estimate in self.values.items()
            if estimate.draws is not None
        }


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


@dataclasses.dataclass(frozen=True)
class Item:
    """An example as the summary page shows it among others.

    Attributes:
      id: of the example. text, image: what is shown of it; image is u8[H, W, C] with 1 or 3
        channels.
      score: cosine with the query; None for the query itself.
      matches: whether it belongs to the query.
    """

    id: str
    text: str = ""
    image: np.ndarray | None = None
    score: float | None = None
    matches: bool = False


@dataclasses.dataclass(frozen=True)
class Neighbours:
    """Queries with what an encoder finds nearest to them, for the summary page.

    Attributes:
      name, title, caption: as of `Figure`.
      queries: each item with those found for it, best first.
    """

    name: str
    title: str
    caption: str
    queries: Sequence[tuple[Item, Sequence[Item]]]


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

    @classmethod
    def needed(cls, names: Mapping[str, str], options: Mapping[str, Any]) -> tuple[str, ...]:
        """The encodings without which an evaluator with these options cannot run.

        Args:
          names: argument -> the encoding that it reads.
          options: as of the constructor; those left out are at their defaults.
        """
        return tuple(names.values())

    def run(self, state: Any) -> Results:
        """Evaluates `state` on `self.data`."""
        raise NotImplementedError

    def figures(
        self, state: Any, results: Results, history: Sequence[Mapping[str, Any]]
    ) -> Sequence[Figure | Neighbours]:
        """Pictures of `results`, in order; none unless a subclass has some.

        Every process of a run calls this, because encoding needs them all. Only the first draws.

        Args:
          state: what `run` evaluated.
          results: what `run` returned.
          history: {"step": n, value name: value} of every evaluation of a training run, ascending;
            empty outside training.
        """
        return []
