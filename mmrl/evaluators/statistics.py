"""Tools that evaluators share: unit vectors, ties, subsets, permutations and intervals.

Examples of one patient are not independent, so the bootstrap resamples patients, and permutations
exchange images between patients.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from mmrl.evaluators.base import Estimate, HeldOut
from mmrl.types import InputError, Record

# Cosines that differ by at most this are tied. Encoding the same text in another batch, or
# blocking a matrix product differently, changes a float32 cosine by a few 1e-7. Without the
# margin, rounding errors would decide the results of a collapsed encoder.
TIE = 1e-6

# Number of counts that the bootstrap holds at once; bounds memory, does not change results.
_DRAWS_AT_ONCE = 2_000_000


def unit_rows(embedding: np.ndarray, name: str, ids: Sequence[str]) -> np.ndarray:
    """Scales embeddings to float32 rows of length 1; a zero row stays zero.

    Args:
      embedding: [N, D] or [N, C, D].
      name, ids: of the embedding and of its N examples, for the error message.

    Raises:
      FloatingPointError: a row is not finite; the message names the first example.
    """
    embedding = np.asarray(embedding, np.float32)
    finite = np.isfinite(embedding).reshape(len(embedding), -1).all(axis=1)
    if not finite.all():
        first = ids[int(np.argmin(finite))]
        raise FloatingPointError(
            f"{name} is not finite for {int((~finite).sum())} of {len(embedding)} examples, "
            f"first {first}"
        )
    norm = np.linalg.norm(embedding, axis=-1, keepdims=True)
    return embedding / np.maximum(norm, np.finfo(np.float32).tiny)


def generator(seed: int, *names: str) -> np.random.Generator:
    """A random generator that depends only on `seed` and `names`."""
    digest = hashlib.sha256("\x00".join(names).encode()).digest()
    return np.random.default_rng([seed, *np.frombuffer(digest, "<u4").tolist()])


class Subset:
    """Some examples of a held-out set in the given order, as a `HeldOut` with its own digest."""

    def __init__(self, data: HeldOut, indices: Sequence[int]) -> None:
        self._data, self._indices = data, list(indices)
        self.name = data.name
        self.sha256 = hashlib.sha256(f"{data.sha256}{self._indices}".encode()).hexdigest()
        self.preprocessing: Mapping[str, Any] = data.preprocessing
        self.ids: Sequence[str] = [data.ids[i] for i in self._indices]
        self.texts: Sequence[str] = [data.texts[i] for i in self._indices]
        self.patients: Sequence[str] = [data.patients[i] for i in self._indices]
        self.groups = np.asarray(data.groups)[self._indices]
        if hasattr(data, "label_policy"):
            self.label_policy = data.label_policy

    def __len__(self) -> int:
        return len(self._indices)

    def record(self, index: int) -> Record:
        """The record of example `index` of the subset."""
        return self._data.record(self._indices[index])

    def training_texts(self) -> Sequence[str]:
        """As in `HeldOut`."""
        return self._data.training_texts()

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

    def image(self, index: int) -> np.ndarray:
        """u8[H, W, 1] of example `index` of the subset."""
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


def patient_bootstrap(
    values: np.ndarray,
    patients: Sequence[str] | np.ndarray,
    *,
    statistic: Literal["mean", "median"] = "mean",
    samples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile interval of a statistic, from a bootstrap over patients.

    Each draw takes as many patients as there are, with replacement, and all items of each (Efron
    and Tibshirani, An Introduction to the Bootstrap, 1993, section 13.3). All columns use the same
    draws. For a paired difference of means, pass `a - b`.

    Args:
      values: [N] or [N, M], finite.
      patients: N patient ids.
      statistic: of all drawn items together; "median" as numpy defines it.
      samples: number of draws.
      seed: of the draws.
      level: probability inside the interval.

    Returns:
      (low, high), each f64[] or f64[M]; NaN if there are fewer than two patients or no draws.
    """
    values = np.asarray(values, np.float64)
    if len(values) != len(patients):
        raise ValueError(f"{len(values)} values for {len(patients)} patients, expected one each")
    _, owner = np.unique(np.asarray(patients), return_inverse=True)
    count = int(owner.max()) + 1 if len(owner) else 0
    if count < 2 or samples < 1:
        undefined = np.full(values.shape[1:], np.nan)
        return undefined, undefined.copy()
    columns = values.reshape(len(values), -1)
    per_row = max(count, len(values) if statistic == "median" else 0)
    rows = max(1, _DRAWS_AT_ONCE // per_row)
    rng = np.random.default_rng(seed)
    drawn: list[np.ndarray] = []
    for start in range(0, samples, rows):
        size = min(rows, samples - start)
        picks = rng.integers(count, size=(size, count)) + count * np.arange(size)[:, None]
        times = np.bincount(picks.ravel(), minlength=size * count).reshape(size, count)
        drawn.append(
            _means(columns, owner, times)
            if statistic == "mean"
            else _medians(columns, owner, times)
        )
    tail = (1 - level) / 2
    low, high = np.quantile(np.concatenate(drawn), [tail, 1 - tail], axis=0)
    return low.reshape(values.shape[1:]), high.reshape(values.shape[1:])


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
    low, high = patient_bootstrap(values, patients, statistic=statistic, samples=samples, seed=seed)
    defined = bool(np.isfinite(low))
    return Estimate(
        value=float(np.mean(values) if statistic == "mean" else np.median(values)),
        low=float(low) if defined else None,
        high=float(high) if defined else None,
        n=len(values),
        chance=chance,
    )
