"""The types shared by all packages (Record, Batch, Encoded, Loss) and the axis vocabulary.

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

if TYPE_CHECKING:  # importing jax is slow, and code that only reads data does not need it
    import jax


class InputError(ValueError):
    """Invalid user input. The message states what was given and expected, and the choices.

    Commands print it as one line and exit with status 2.
    """


class NonFiniteError(RuntimeError):
    """A loss, gradient or embedding is not finite; the message names the step."""


class PreemptedError(RuntimeError):
    """Training stopped after a signal; the message names the saved step."""


class DamageError(InputError):
    """A file that mmrl wrote is not as it was written; the message names it in one line."""


class BusyError(Exception):
    """Another process uses a folder that only one may use; the message names it in one line."""


class MachineError(Exception):
    """Something outside mmrl failed, such as a full disk; the message is one line.

    Attributes:
      status: the exit status of a command that it ends, see `mmrl.cli`.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def first_line(error: BaseException) -> str:
    """The first line of an error's message; its type where there is no message."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


@dataclasses.dataclass(frozen=True)
class ImageRef:
    """A reference to one image. It holds a path, an offset or drawing parameters, and no pixels.

    Attributes:
      key: stable name within the source (a relative path, a phantom index).
      load: () -> u8 or u16 [H, W], or [H, W, 3] (red, green, blue) of a source whose `channels` is
        3, at original size; raises InputError when the image cannot be read. It must pickle, so use
        functools.partial over plain functions.
      projection: PA, AP, FRONTAL, LATERAL, OTHER or UNKNOWN.
      projection_source: where the projection is stated ("metadata", "label", "dicom", "filename");
        "" when it is unknown.
      spacing: millimetres per pixel down and across, None when unknown.
      sha256, phash: digest of the original pixels and their 64-bit perceptual hash, in prepared
        corpora; "" and None elsewhere.
    """

    key: str
    load: Callable[[], np.ndarray]
    projection: str = "UNKNOWN"
    projection_source: str = ""
    spacing: tuple[float, float] | None = None
    sha256: str = ""
    phash: int | None = None


@dataclasses.dataclass(frozen=True)
class Box:
    """The bounding box of a finding.

    Attributes:
      xyxy: x0, y0, x1, y1 in pixels of the image as `load` returns it.
      label: name of the finding.
      sentence: index into `Record.sentences` of the sentence that states it, or -1.
      image: index into `Record.images`.
      rater: number of the annotator, -1 if there is only one.
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
    """A finding with side, zone and severity; attributes that do not apply are ""."""

    name: str
    side: str = ""
    zone: str = ""
    severity: str = ""


@dataclasses.dataclass(frozen=True)
class Provenance:
    """Who wrote a text that a corpus did not come with.

    Attributes:
      by: a person's role, or a model and its version.
      synthetic: whether a program made it.
      date: as stated, "" when unknown.
    """

    by: str
    synthetic: bool
    date: str = ""

    def __str__(self) -> str:
        return f"{self.by}{', ' if self.date else ''}{self.date}"


@dataclasses.dataclass(frozen=True)
class Record:
    """One study with its images and its report. Every source yields records.

    Attributes:
      id: "{source}:{native id}", unique.
      patient_id, study_id: as the corpus has them.
      leakage_unit: what a split may not divide: the patient, article or video.
      leakage_unit_known: False where the corpus does not state the unit. The id of the record then
        takes its place.
      aliases: other names of the leakage unit, each "{corpus}:{leakage_unit of that corpus}". For
        example, an image of RSNA that comes from NIH ChestX-ray14 has "nih14:{patient}".
      split: train, val or test.
      split_official: the split that the owner states, or "none".
      images: training reads the first one unless config.data.views says otherwise.
      sections: section name -> raw text (findings, impression, indication, caption, full...).
      label_names, labels: parallel; values 1 present, 0 absent, -1 uncertain, -2 not stated.
      boxes, findings: exact or annotated truth where the corpus has it, else empty.
      sentences: (section, text) pairs where the source knows them, else ().
      masks: () -> {finding label: bool[H, W]}; None where the corpus has no masks.
      entailment: the sentence pair, in corpora of sentence pairs. Premise and hypothesis are also
        sections.
      prior_id: id of the patient's previous study, "" when unknown.
      time: seconds since the patient's first study, None when unknown.
      attributes: further facts that identify nobody ("sex": "F", "age": "57").
      vector: numbers of a third modality, such as an expression profile; None where there is none.
      bag: () -> f16 or f32 [S, F], features of S parts of the study that were computed elsewhere,
        such as the patches of a slide; None where there are none. It pickles.
      language: ISO 639-1 code of the text.
      provenance: section -> who wrote it, of sections that were added to the corpus; None where
        all texts are its own.
      license: as the owner states it, "" when unknown.
      access: open, click (an agreement must be clicked) or credentialed.
      redistributable: whether the licence permits redistribution.
      source_version: version of the corpus, "" when unknown.
    """

    id: str
    source: str
    patient_id: str
    study_id: str
    leakage_unit: str
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
    leakage_unit_known: bool = True
    aliases: tuple[str, ...] = ()
    entailment: Entailment | None = None
    prior_id: str = ""
    time: int | None = None
    attributes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    language: str = "en"
    vector: Sequence[float] | None = None
    bag: Callable[[], np.ndarray] | None = None
    access: str = "open"
    redistributable: bool = False
    provenance: Mapping[str, Provenance] | None = None


@dataclasses.dataclass(frozen=True)
class Reject:
    """An item that a source rejected, with the reason; listed in rejects.jsonl."""

    id: str
    reason: str
    detail: str = ""


@runtime_checkable
class Source(Protocol):
    """A corpus reader: random access to the records of one split.

    It is constructed as `Source(split=..., **options)`. Options are keyword-only and come from
    `config.data`. The constructor reads tables and headers but decodes pixels only to verify them.
    A source must pickle to a small size.

    A source may also have these attributes:
      warnings: list of lines that a user should read before trusting the corpus.
      channels: 1 or 3, what its images have; 1 without this attribute.
      image: (index, number) -> what the `load` of an image returns, without building its record;
        it is sent to every worker, so it must pickle to a small size.
      __iter__: yields all records, where that is faster than one by one.

    Attributes:
      rejects: the refused items.
      total: number of items of the split before rejection.
    """

    rejects: list[Reject]
    total: int

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Record: ...


# Batch, a flat dict of arrays; numpy from `data/`, then global device arrays. B is global.
# The arrays of an input are named "<input>.<array>", see `mmrl/data/inputs/`. The usual ones are
#   image.pixels      u8[B, H, W, C], C = 1 or 3 channels
#   text.tokens       i32[B, L]       text.mask       bool[B, L]
#   perturbed.tokens  i32[B, K, L]    perturbed.mask  bool[B, K, L]
#   perturbed.valid   bool[B, K]      perturbed.kind  i8[B, K]   index into perturb.KINDS
#   group             i32[B]          duplicate group: equal numbers are not negatives
#   index             i32[B]          position in the corpus, to name records in errors
# An input that a record may lack has "<input>.present" bool[B].
Batch = Mapping[str, Any]

# Encoded, a flat dict of names "<tower>@<input>.<feature>", see `mmrl.wiring`. "image.embedding" is
# short for "image@image.embedding". The usual ones are
#   image.embedding  f32[B, D]  L2-normalised    image.regions   [B, R, D']
#   text.embedding   f32[B, D]  L2-normalised    text.words      [B, W, D']
#   text@perturbed.embedding  f32[B, K, D]       text.word_mask  bool[B, W]
Encoded = Mapping[str, "jax.Array"]

# Metrics are (sum, weight) pairs, which can be added over steps and batches before dividing.
Metrics = dict[str, tuple["jax.Array", "jax.Array"]]


class Loss(NamedTuple):
    """The result of an objective: the scalar to minimise, f32[], and its metrics."""

    value: "jax.Array"
    metrics: Metrics
