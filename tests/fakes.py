"""Held-out data and encoders with known results, for tests of evaluators."""

import dataclasses
import hashlib

import numpy as np

from mmrl.evaluators import statistics
from mmrl.types import Finding, Record


class FakeData:
    """Held-out texts without images; tokens are word numbers."""

    name, preprocessing = "fake/test", {"size": 8}
    sha256, items_sha256 = "0" * 64, "1" * 64
    foreign = frozenset()

    def __init__(self, texts, *, patients=None, groups=None, length=64, training=()):
        self.texts, self.length = list(texts), length
        self.ids = [f"fake:{i}" for i in range(len(self.texts))]
        self.patients = patients or [f"p{i}" for i in range(len(self.texts))]
        self.groups = np.arange(len(self.texts)) if groups is None else np.asarray(groups)
        self.training = list(training)

    def training_texts(self):
        return self.training

    def record(self, index):
        patient = self.patients[index]
        sections = {"findings": self.texts[index]}
        return Record(self.ids[index], "fake", patient, "", patient, "test", (), sections)

    def __len__(self):
        return len(self.texts)

    def with_texts(self, texts):
        return Prompts(list(texts))

    def tokenize(self, texts):
        tokens = np.zeros((len(texts), self.length), np.int32)
        for row, text in zip(tokens, texts, strict=True):
            words = [int(hashlib.md5(w.encode()).hexdigest()[:6], 16) + 1 for w in text.split()]
            row[: len(words)] = words[: self.length]
        return tokens, tokens > 0


class Studies(FakeData):
    """Records with findings, or with labels, and nothing else.

    Args:
      languages: of the records; by default all are English.
      splits: name -> another `Studies`.
    """

    def __init__(
        self,
        findings=None,
        labels=None,
        label_names=("Edema", "COPD"),
        languages=None,
        splits=None,
        **options,
    ):
        count = len(findings if findings is not None else labels)
        super().__init__(["Report."] * count, **options)
        self.splits = splits or {}
        self.records = [
            Record(
                id=self.ids[i],
                source="fake",
                patient_id=self.patients[i],
                study_id="",
                leakage_unit="",
                split="test",
                images=(),
                sections={},
                findings=() if findings is None else tuple(Finding(*f) for f in findings[i]),
                label_names=() if labels is None else label_names,
                labels=() if labels is None else labels[i],
                language=languages[i] if languages else "en",
            )
            for i in range(count)
        ]

    def record(self, index):
        return self.records[index]

    def split(self, name):
        return self.splits[name]


@dataclasses.dataclass
class Prompts:
    """Texts in place of the reports of held-out examples."""

    texts: list

    def __len__(self):
        return len(self.texts)


@dataclasses.dataclass
class FakePredict:
    """Encodes with two functions: one of the id, one of the text.

    Attributes:
      absent: ids of examples that lack an input.
      asked: the names given so far.
    """

    image_of: object
    text_of: object
    absent: tuple = ()
    asked: list = dataclasses.field(default_factory=list)
    provides = ("image.embedding", "text.embedding")

    def encode(self, state, data, names):
        self.asked += names
        ids = getattr(data, "ids", [""] * len(data))
        encoded = {"present": np.array([name not in self.absent for name in ids])}
        for name in names:
            if name.startswith("image"):
                encoded[name] = np.stack([self.image_of(i) for i in data.ids])
            else:
                encoded[name] = np.stack([self.text_of(t) for t in data.texts])
        return encoded


def code(text, width=32):
    """A random direction that depends only on the text."""
    return statistics.generator(0, text).normal(size=width).astype(np.float32)


def informed(data):
    """Embeddings that match each image with its report and carry no other information."""
    report = dict(zip(data.ids, data.texts, strict=True))
    return FakePredict(lambda i: code(report[i]), code)


def constant():
    """Embeddings that are all equal, up to rounding."""

    def noise(name):
        return np.float32(1) + np.float32(1e-7) * np.sign(code(name))

    return FakePredict(noise, noise)


_CLASSES = (
    "heart lung lobe rib spine aorta nodule mass effusion tube catheter fracture",
    "small large mild severe left right upper lower new old acute chronic",
    "no not with without of in at on from the and or near likely grossly mildly",
)


def reports(count, words=12):
    """Random words of all classes that the kinds of perturbation distinguish."""
    rng = np.random.default_rng(0)
    each = words // len(_CLASSES)
    drawn = [[rng.choice(c.split(), each, replace=False) for c in _CLASSES] for _ in range(count)]
    return [" ".join(rng.permutation(np.concatenate(parts))) + "." for parts in drawn]
