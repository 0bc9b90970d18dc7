"""The contracts between rooms: Record, Batch, Encoded, Loss, and the axis vocabulary.

Axes, everywhere in shapes and comments:
  B  image-report pairs in the *global* batch     N  items of an evaluation set
  K  perturbed copies of one report               C  candidates of one image, 1 + K
  L  tokens of a report                           W  words (sub-words) with local features
  R  image regions                                D  width of a joint space
  H, W  image height and width, only in image shapes
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

if TYPE_CHECKING:  # takes a second, and what reads or prepares data needs none of it
    import jax


class InputError(ValueError):
    """Something the user gave is wrong. The message is complete: given, expected, choices.

    Commands print it as one line and exit with status 2.
    """


class NonFiniteError(RuntimeError):
    """Loss, gradient or embeddings stopped being finite; the message names step and records."""


class PreemptedError(RuntimeError):
    """Training was told to stop; the message names the step that it saved."""


@dataclasses.dataclass(frozen=True)
class ImageRef:
    """A handle on one image; holds a path, an offset or drawing parameters, never pixels.

    Attributes:
      key: stable name within the source (a relative path, a phantom index).
      load: () -> u8[H, W] or u16[H, W], one channel, at original size; raises InputError when
        the image cannot be read. Must pickle, so use functools.partial over plain functions.
      view: PA, AP, FRONTAL, LATERAL, OTHER or UNKNOWN.
      view_source: who says so ("metadata", "label", "dicom", "filename"), "" when unknown.
      spacing: millimetres per pixel down and across, None when unknown.
      sha256, phash: digest of the original pixels and their 64-bit perceptual hash, where a
        preparation computed them; "" and None elsewhere.
    """

    key: str
    load: Callable[[], np.ndarray]
    view: str = "UNKNOWN"
    view_source: str = ""
    spacing: tuple[float, float] | None = None
    sha256: str = ""
    phash: int | None = None


@dataclasses.dataclass(frozen=True)
class Box:
    """A finding's place: x0, y0, x1, y1 in pixels of the image as `load` gives it, and its name.

    `sentence` is the index into `Record.sentences` of the sentence that states it, or -1; `image`
    that into `Record.images`; `rater` tells readers of one corpus apart, -1 when there is one.
    """

    xyxy: tuple[float, float, float, float]
    label: str
    sentence: int = -1
    image: int = 0
    rater: int = -1


@dataclasses.dataclass(frozen=True)
class Entailment:
    """A sentence pair of natural language inference.

    `label` is entailment, neutral or contradiction.
    """

    premise: str
    hypothesis: str
    label: str


@dataclasses.dataclass(frozen=True)
class Finding:
    """One (finding, side, zone, severity) fact; attributes that do not apply are ""."""

    name: str
    side: str = ""
    zone: str = ""
    severity: str = ""


@dataclasses.dataclass(frozen=True)
class Record:
    """One image-report study as every source yields it.

    Attributes:
      id: "{source}:{native id}", unique.
      patient_id, study_id: as the corpus gives them.
      group_key: the leakage unit that no split may divide (patient, article, video).
      group_known: False where the corpus does not tell the unit and the id stands in for it.
      aliases: other names of the same leakage unit, each "{corpus}:{group_key of that corpus}";
        an image of RSNA carries "nih14:{patient}", where it came from.
      split: train, val or test. split_official: what the owner says, or "none".
      images: handles, one per view; the first is the one trained on unless configured otherwise.
      sections: section name -> raw text (findings, impression, indication, caption, full...).
      label_names, labels: parallel; values 1 present, 0 absent, -1 uncertain, -2 not stated.
      boxes, findings: exact or annotated truth where the corpus has it, else empty.
      sentences: (section, text) pairs when the source knows them, else ().
      masks: () -> {finding label: bool[H, W]} or None when the corpus has none.
      entailment: the sentence pair, in corpora of such pairs; premise and hypothesis are sections
        too.
      prior_id: id of the patient's study before this one, "" when unknown.
      time: seconds since the patient's first study, None when unknown.
      attributes: anything else that identifies nobody and may matter ("sex": "F", "age": "57").
      language: ISO 639-1 code of the text.
      license: as stated by the owner, "" when unknown.
      access: open, click (an agreement is clicked) or credentialed. redistributable: whether the
        licence lets others be given copies.
      source_version: of the corpus, as its owner counts, "" when unknown.
    """

    id: str
    source: str
    patient_id: str
    study_id: str
    group_key: str
    split: str
    images: tuple[ImageRef, ...]
    sections: Mapping[str, str]
    label_names: tuple[str, ...] = ()
    labels: tuple[int, ...] = ()
    boxes: Sequence[Box] = ()
    findings: tuple[Finding, ...] = ()
    sentences: tuple[tuple[str, str], ...] = ()
    masks: Callable[[], dict[str, np.ndarray]] | None = None
    license: str = ""
    source_version: str = ""
    split_official: str = "none"
    group_known: bool = True
    aliases: tuple[str, ...] = ()
    entailment: Entailment | None = None
    prior_id: str = ""
    time: int | None = None
    attributes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    language: str = "en"
    access: str = "open"
    redistributable: bool = False


@dataclasses.dataclass(frozen=True)
class Reject:
    """An item a source refused: never dropped silently, always listed in rejects.jsonl."""

    id: str
    reason: str
    detail: str = ""


@runtime_checkable
class Source(Protocol):
    """What every corpus reader offers: random access to the records of one split.

    Construction is `Source(split=..., **options)`; options are keyword-only and come from
    `config.data`. It reads tables and headers, never pixels, and pickles small.
    `rejects` lists what it quarantined, `total` counts items of the split before rejection.
    A source that can read an image without building its record offers, besides, a callable
    `image(index, number)` -> u8[H, W] or u16[H, W], which pickles small: it goes to every worker.
    One that reads all records faster than one by one offers `__iter__`.
    """

    rejects: list[Reject]
    total: int

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Record: ...


# Batch, a flat dict of arrays; numpy from `data/`, then global device arrays. B is global.
#   image             u8[B, H, W, 1]
#   tokens            i32[B, L]       token_mask      bool[B, L]
#   perturbed_tokens  i32[B, K, L]    perturbed_mask  bool[B, K, L]
#   perturbed_valid   bool[B, K]      perturbation    i8[B, K]   index into perturb.KINDS
#   group             i32[B]          equal: same report text or study, so not negatives
#   index             i32[B]          position in the corpus, to name records in errors
Batch = Mapping[str, Any]

# Encoded, a flat dict of dotted names, so that `needs` is a plain subset test:
#   image.embedding      f32[B, D]  L2-normalised      image.regions   [B, R, D']
#   text.embedding       f32[B, D]  L2-normalised      text.words      [B, W, D']
#   perturbed.embedding  f32[B, K, D]  L2-normalised   text.word_mask  bool[B, W]
Encoded = Mapping[str, "jax.Array"]

# Metrics are (sum, weight) pairs: they add up over steps and batches; never a mean of means.
Metrics = dict[str, tuple["jax.Array", "jax.Array"]]


class Loss(NamedTuple):
    """What an objective returns: the scalar to minimise and its metrics."""

    value: "jax.Array"
    metrics: Metrics
