"""Tools that evaluators share: unit vectors, ties, subsets, permutations and intervals.

Examples of one patient are not independent, so the bootstrap resamples patients, and permutations
exchange images between patients.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from mmrl.data.text.language import NOT_ENGLISH
from mmrl.evaluators import metrics, scoring
from mmrl.evaluators.base import Estimate, HeldOut
from mmrl.types import InputError, Record

# Cosines that differ by at most this are tied. Encoding the same text in another batch, or
# blocking a matrix product differently, changes a float32 cosine by a few 1e-7. Without the
# margin, rounding errors would decide the results of a collapsed encoder.
TIE = 1e-6


def unit_rows(embedding: np.ndarray, name: str, ids: Sequence[str]) -> np.ndarray:
    """Scales embeddings to float32 rows of length 1; a zero row stays zero.

    Args:
      embedding: [N, D] or [N, C, D].
      name, ids: of the embedding and of its N examples, for the error message.

    Raises:
      FloatingPointError: a row is not finite; the message names the first example.
    """
    embedding = np.asarray(embedding, np.float32)
    finite = np.isfinite(embedding).all(axis=tuple(range(1, embedding.ndim)))
    if not finite.all():
        first = ids[int(np.argmin(finite))]
        raise FloatingPointError(
            f"{name} is not finite for {int((~finite).sum())} of {len(embedding)} examples, "
            f"first {first}"
        )
    norm = np.linalg.norm(embedding, axis=-1, keepdims=True)
    return embedding / np.maximum(norm, np.finfo(np.float32).tiny)


def snapped(scores: np.ndarray) -> np.ndarray:
    """Scores on a grid of width `TIE`, so that scores which differ by rounding only are equal.

    The grid of a column begins at the score of its first item. A collapsed encoder thus gives all
    items exactly the same score, and measures that compare scores exactly count them as tied.

    Args:
      scores: f[N] or f[N, C], finite.

    Returns:
      f64 of the same shape; no score moves by more than `TIE`.
    """
    scores = np.asarray(scores, np.float64)
    first = scores[:1]
    origin = first.ravel()[0]
    start = origin + TIE * np.round((first - origin) / TIE)
    return start + TIE * np.round((scores - first) / TIE)


def generator(seed: int, *names: str) -> np.random.Generator:
    """A random generator that depends only on `seed` and `names`."""
    digest = hashlib.sha256("\x00".join(names).encode()).digest()
    return np.random.default_rng([seed, *np.frombuffer(digest, "<u4").tolist()])


class Subset:
    """Some examples of a held-out set in the given order, as a `HeldOut` with its own digest."""

    def __init__(self, data: HeldOut, indices: Sequence[int]) -> None:
        self._data, self._indices = data, list(indices)
        self.name = data.name
        self.sha256, self.items_sha256 = (
            hashlib.sha256(f"{digest}{self._indices}".encode()).hexdigest()
            for digest in (data.sha256, data.items_sha256)
        )
        self.preprocessing: Mapping[str, Any] = data.preprocessing
        self.ids: Sequence[str] = [data.ids[i] for i in self._indices]
        self.texts: Sequence[str] = [data.texts[i] for i in self._indices]
        self.patients: Sequence[str] = [data.patients[i] for i in self._indices]
        self.groups = np.asarray(data.groups)[self._indices]
        places = enumerate(self._indices)
        self.foreign = frozenset(place for place, index in places if index in data.foreign)

    def __len__(self) -> int:
        return len(self._indices)

    @property
    def label_policy(self) -> Any:
        """How labels are read."""
        return self._data.label_policy  # type: ignore[attr-defined]

    @property
    def preprocess(self) -> Any:
        """The image preparation."""
        return self._data.preprocess  # type: ignore[attr-defined]

    def input(self, name: str, tower: str = "") -> Any:
        """An input, as `tower` reads it."""
        return self._data.input(name, tower)  # type: ignore[attr-defined]

    def record(self, index: int) -> Record:
        """The record of example `index` of the subset."""
        return self._data.record(self._indices[index])

    def training_texts(self) -> Sequence[str]:
        """As in `HeldOut`."""
        return self._data.training_texts()

    def split(self, name: str) -> HeldOut:
        """As in `HeldOut`, of all examples."""
        return self._data.split(name)

    def labels(self, names: Sequence[str] = ()) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
        """As in `HeldOut`."""
        names, values, known = self._data.labels(names)
        return names, values[self._indices], known[self._indices]

    def arrays(
        self, names: Sequence[str], rows: Sequence[int], tower: str = ""
    ) -> Mapping[str, np.ndarray]:
        """As in `HeldOut`."""
        return self._data.arrays(names, [self._indices[row] for row in rows], tower)

    def with_texts(self, texts: Sequence[str]) -> Any:
        """As in `HeldOut`."""
        return self._data.with_texts(texts)

    def tokenize(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """As in `HeldOut`."""
        return self._data.tokenize(texts)

    def pixels(self, encoding: str, rows: Sequence[int]) -> np.ndarray | None:
        """As in `HeldOut`."""
        return self._data.pixels(encoding, [self._indices[row] for row in rows])

    def image(self, index: int) -> np.ndarray:
        """u8[H, W, C] of example `index` of the subset."""
        return self._data.image(self._indices[index])


def require_present(encoded: Mapping[str, np.ndarray], name: str, data: HeldOut) -> np.ndarray:
    """The encoding `name` of all examples.

    Args:
      encoded: what `Predict.encode` returned.

    Raises:
      InputError: some examples lack an input of it; names the first.
    """
    present = encoded["present"]
    if not present.all():
        raise InputError(
            f"{int((~present).sum())} of {len(present)} examples of {data.name} have no {name}, "
            f"first {data.ids[int(np.argmin(present))]}; this evaluator needs it of all examples"
        )
    return encoded[name]


def fixed_subset(data: HeldOut, limit: int | None, seed: int) -> HeldOut:
    """At most `limit` examples in their order; the same for every checkpoint. None keeps all."""
    if limit is None or limit >= len(data):
        return data
    chosen = generator(seed, "subset").choice(len(data), limit, replace=False)
    return Subset(data, np.sort(chosen).tolist())


def in_english(data: HeldOut, who: str) -> tuple[HeldOut, dict[str, int]]:
    """The examples whose text is English, and how many are not, by the reason to exclude them.

    Args:
      who: the evaluator, for the message.

    Raises:
      InputError: there are no others.
    """
    if not data.foreign:
        return data, {}
    kept = [index for index in range(len(data)) if index not in data.foreign]
    if not kept:
        raise InputError(
            f"no text of {data.name} is English ({len(data)} examples); {who} relies on English "
            "words"
        )
    return Subset(data, kept), {NOT_ENGLISH: len(data) - len(kept)}


def at_least(low: int, **options: int | None) -> None:
    """Checks that options are at least `low`; ignores None.

    Raises:
      InputError: an option is too small; the message names the first one.
    """
    for name, value in options.items():
        if value is not None and value < low:
            raise InputError(f"{name} is {value}, expected a whole number from {low} up")


def permutation_between_patients(
    patients: Sequence[str] | np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """A random permutation in which no item receives an image of its own patient.

    Items are arranged patient by patient, with patients and their items in random order. Images
    are then shifted along this sequence by a random number between m and N - m, where m is the
    item count of the largest patient. If m > N / 2 there is no such permutation. Then exactly
    2m - N items of that patient, the fewest possible, receive another image of the same patient.
    If there is one patient only, each item receives another image; a single item keeps its own.

    Args:
      patients: N patient ids.
      rng: source of randomness.

    Returns:
      i64[N]; item i receives image `permutation[i]`.
    """
    _, owner = np.unique(np.asarray(patients), return_inverse=True)
    size = len(owner)
    if size < 2:
        return np.arange(size)
    counts = np.bincount(owner)
    largest = int(counts.max())
    position = rng.permutation(len(counts))
    if 2 * largest > size:  # The largest patient goes first, so that the shift moves past it.
        position[counts.argmax()] = -1
    shuffled = rng.permutation(size)
    line = shuffled[np.argsort(position[owner[shuffled]], kind="stable")]
    if largest == size:
        shift = int(rng.integers(1, size))
    elif 2 * largest > size:
        shift = largest
    else:
        shift = int(rng.integers(largest, size - largest + 1))
    permutation = np.empty(size, np.int64)
    permutation[line] = np.roll(line, -shift)
    return permutation


def permutations_between_patients(
    patients: Sequence[str] | np.ndarray, rng: np.random.Generator, count: int
) -> list[np.ndarray]:
    """As many permutations as `count` says; none if all items belong to one patient."""
    several = len(np.unique(np.asarray(patients))) > 1
    return [permutation_between_patients(patients, rng) for _ in range(count if several else 0)]


def patient_bootstrap(
    values: np.ndarray,
    patients: Sequence[str] | np.ndarray,
    *,
    statistic: Literal["mean", "median"] = "mean",
    samples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile interval of a statistic, from the draws of `bootstrap_draws`.

    Args:
      level: probability inside the interval. others: as of `bootstrap_draws`.

    Returns:
      (low, high), each f64[] or f64[M]; NaN if there are fewer than two patients or no draws.
    """
    drawn = bootstrap_draws(values, patients, statistic=statistic, samples=samples, seed=seed)
    return _interval(drawn, level)


def _interval(drawn: np.ndarray, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the percentile interval over the first axis; NaN without draws."""
    if not len(drawn):
        undefined = np.full(drawn.shape[1:], np.nan)
        return undefined, undefined.copy()
    tail = (1 - level) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail], axis=0)
    return low, high


def bootstrap_draws(
    values: np.ndarray,
    patients: Sequence[str] | np.ndarray,
    *,
    statistic: Literal["mean", "median"] = "mean",
    samples: int = 1000,
    seed: int = 0,
) -> np.ndarray:
    """f64[S] or f64[S, M]: a statistic under every draw of a bootstrap over patients.

    Each draw takes as many patients as there are, with replacement, and all items of each (Efron
    and Tibshirani, An Introduction to the Bootstrap, 1993, section 13.3). All columns use the same
    draws, and so do all values of the same patients with the same seed: their draws pair.

    Args:
      values: [N] or [N, M], finite.
      patients: N patient ids.
      statistic: of all drawn items together; "median" as numpy defines it.
      samples: number S of draws; there are none if there are fewer than two patients.
      seed: of the draws.
    """
    values = np.asarray(values, np.float64)
    if len(values) != len(patients):
        raise ValueError(f"{len(values)} values for {len(patients)} patients, expected one each")
    _, owner = np.unique(np.asarray(patients), return_inverse=True)
    count = int(owner.max()) + 1 if len(owner) else 0
    if count < 2 or samples < 1:
        return np.empty((0, *values.shape[1:]))
    columns = values.reshape(len(values), -1)
    per_row = max(count, len(values) if statistic == "median" else 0)
    of_draws = _means if statistic == "mean" else _medians
    drawn = [
        of_draws(columns, owner, times)
        for times in metrics.patient_draws(count, samples, seed, per_row)
    ]
    return np.concatenate(drawn).reshape(-1, *values.shape[1:])


def class_means(
    columns: Mapping[str, tuple[np.ndarray, float | None]],
    members: np.ndarray,
    patients: Sequence[str] | np.ndarray,
    *,
    samples: int = 1000,
    seed: int = 0,
) -> dict[str, Estimate]:
    """The mean over classes of the means of each class, with intervals from patients.

    All columns use the same draws, so a column of differences gives a paired interval. A class of
    which a draw has no item is left out of that draw.

    Args:
      columns: name -> (values f[N], chance). A value of NaN does not count in its column.
      members: bool[N, C], the classes of each item: one or more.
      patients: N patient ids.
      samples: draws of patients. seed: of the draws.

    Returns:
      name -> estimate whose `n` is the number of values; columns without any value are left out.
    """
    kept = {name: column for name, column in columns.items() if np.isfinite(column[0]).any()}
    if not kept:
        return {}
    values = np.stack([np.asarray(column, np.float64) for column, _ in kept.values()], axis=1)
    finite = np.isfinite(values)
    known = (finite[:, None] & members[..., None]).astype(np.float64)  # N C M
    owner = np.unique(np.asarray(patients), return_inverse=True)[1]
    sums, counts = np.zeros((2, int(owner.max()) + 1, *known.shape[1:]))
    np.add.at(sums, owner, known * np.where(finite, values, 0.0)[:, None])
    np.add.at(counts, owner, known)
    value = _mean_over_classes(sums.sum(axis=0), counts.sum(axis=0))
    drawn = np.full((0, len(value)), np.nan)
    if len(sums) > 1 and samples:
        blocks = [
            _mean_over_classes(
                np.tensordot(times, sums, axes=1), np.tensordot(times, counts, axes=1)
            )
            for times in metrics.patient_draws(len(sums), samples, seed, max(sums.size, 1))
        ]
        drawn = np.concatenate(blocks)
    found = {}
    for m, (name, (_, chance)) in enumerate(kept.items()):
        several = len(np.unique(owner[finite[:, m]])) > 1
        found[name] = scoring.estimate(
            float(value[m]),
            drawn[:, m] if several else None,
            n=int(finite[:, m].sum()),
            chance=chance,
        )
    return found


def _mean_over_classes(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """[..., C, M] -> [..., M]: mean over the classes with items; NaN where there is none."""
    means = np.divide(sums, counts, out=np.zeros_like(sums), where=counts > 0)
    classes = (counts > 0).sum(axis=-2)
    undefined = np.full(classes.shape, np.nan)
    return np.divide(means.sum(axis=-2), classes, out=undefined, where=classes > 0)


def _means(columns: np.ndarray, owner: np.ndarray, times: np.ndarray) -> np.ndarray:
    """f64[S, M]: column means when patient p counts times[s, p] times, from per-patient sums."""
    sums = np.stack([np.bincount(owner, column) for column in columns.T], axis=1)
    weights = times.astype(np.float64)
    return (weights @ sums) / (weights @ np.bincount(owner))[:, None]


def _medians(columns: np.ndarray, owner: np.ndarray, times: np.ndarray) -> np.ndarray:
    """f64[S, M]: column medians when patient p counts times[s, p] times."""
    medians = np.empty((len(times), columns.shape[1]))
    for m, column in enumerate(columns.T):
        order = np.argsort(column, kind="stable")
        ends = np.cumsum(times[:, owner[order]], axis=1)  # S N: items up to and with this one
        total = ends[:, -1:]
        # The two middle positions of `total` items; they coincide if `total` is odd.
        below = (ends <= (total - 1) // 2).sum(axis=1)
        above = (ends <= total // 2).sum(axis=1)
        medians[:, m] = (column[order][below] + column[order][above]) / 2
    return medians


def estimate(
    values: np.ndarray,
    patients: Sequence[str] | np.ndarray,
    *,
    chance: float | None = None,
    statistic: Literal["mean", "median"] = "mean",
    samples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """The statistic of values [N] with its 95 % interval; no interval for fewer than two patients.

    Raises:
      ValueError: there are no values.
    """
    values = np.asarray(values, np.float64)
    if not len(values):
        raise ValueError("no values to estimate from")
    drawn = bootstrap_draws(values, patients, statistic=statistic, samples=samples, seed=seed)
    low, high = _interval(drawn)
    defined = bool(len(drawn))
    return Estimate(
        value=float(np.mean(values) if statistic == "mean" else np.median(values)),
        low=float(low) if defined else None,
        high=float(high) if defined else None,
        n=len(values),
        chance=chance,
        draws=drawn if defined else None,
    )
