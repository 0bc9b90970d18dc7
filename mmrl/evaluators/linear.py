"""Model models on frozen features, fitted on the host.

A path is a series of models, from strong to weak regularisation or epoch by epoch; `choose` takes
the one with the least loss on items that were not fitted. All models have an intercept that is not
regularised, except UNI's, which has none.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy import optimize, special

STRENGTHS = (10.0, 1.0, 1e-1, 1e-2, 1e-3, 1e-4)
"""Strengths of the penalty of `logistic` to choose from, strongest first."""

RIDGE_STRENGTHS = (100.0, 10.0, 1.0, 1e-1, 1e-2, 1e-3)
"""Those of `ridge`, in units of the mean eigenvalue of the features' covariance."""

Kind = Literal["labels", "classes", "number"]

_ROWS = 4096  # float64 copies of features are made of so many rows at once


class Targets(NamedTuple):
    """What a model learns about n items.

    Attributes:
      kind: "labels": any number of C; "classes": exclusive ones; "number": C numbers.
      values: f32[n, C], 0 or 1; of classes one-hot rows; of numbers the numbers.
      known: bool[n, C], False where a label is unknown; it then counts in no loss.
    """

    kind: Kind
    values: np.ndarray
    known: np.ndarray


class Items(NamedTuple):
    """Features f32[n, D] with their targets."""

    x: np.ndarray
    targets: Targets


@dataclasses.dataclass(frozen=True)
class Model:
    """Outputs x W + b: logits of labels or classes, or numbers.

    Attributes:
      weights: f64[D, C]. bias: f64[C].
    """

    weights: np.ndarray
    bias: np.ndarray

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """x f[n, D] -> f64[n, C]."""
        blocks = (x[start : start + _ROWS] for start in range(0, len(x), _ROWS))
        return np.concatenate([block.astype(np.float64) @ self.weights for block in blocks]) + (
            self.bias
        )


Path = Iterator[Model]


def probabilities(kind: Kind, outputs: np.ndarray) -> np.ndarray:
    """f64[n, C] of outputs of a `Model`; numbers stay what they are."""
    if kind == "labels":
        return special.expit(outputs)
    return special.softmax(outputs, axis=1) if kind == "classes" else outputs


def losses(outputs: np.ndarray, targets: Targets) -> tuple[np.ndarray, np.ndarray]:
    """Sum of the losses and number of the known targets, f64[C] each; f64[1] for classes.

    The loss is the cross-entropy, for numbers the squared error.

    Args:
      outputs: f64[n, C] of a `Model`.
    """
    values = targets.values.astype(np.float64)
    if targets.kind == "classes":
        each = -(special.log_softmax(outputs, axis=1) * values).sum(axis=1, keepdims=True)
        return each.sum(axis=0), np.array([float(len(each))])
    if targets.kind == "labels":
        each = np.logaddexp(0, outputs) - values * outputs
    else:
        each = (outputs - values) ** 2
    return np.where(targets.known, each, 0).sum(axis=0), targets.known.sum(axis=0).astype(float)


def standardised(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(features of mean 0 and deviation 1 in the dtype of x, mean f64[D], deviation f64[D]).

    A constant feature becomes 0; its deviation is given as 1.
    """
    mean, deviation = x.mean(axis=0, dtype=np.float64), x.std(axis=0, dtype=np.float64)
    deviation[deviation <= 1e-7 * np.maximum(np.abs(mean), 1e-30)] = np.inf
    found = (x - mean.astype(x.dtype)) / deviation.astype(x.dtype)
    return found, mean, np.where(np.isinf(deviation), 1.0, deviation)


def _original(weights: np.ndarray, bias: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> Model:
    """A model of standardised features as one of the features themselves."""
    weights = weights / scale[:, None]
    return Model(weights, bias - mean @ weights)


def logistic(items: Items, strengths: Sequence[float] = STRENGTHS) -> Path:
    """Logistic regressions, one per strength; multinomial for classes.

    Each minimises mean cross-entropy + strength / 2 * ||W||^2 on features standardised with these
    items, by L-BFGS. Labels share a run and no parameter: the objective is the sum over labels,
    each with the mean over the items for which it is known. A strength s is C = 1 / (n s) of
    scikit-learn. Along the principal axes of the features the penalty stays what it is, and a scale
    for each axis makes the objective nearly round, so that few iterations are needed.

    Args:
      strengths: strongest first, because every fit starts from the one before.
    """
    x, mean, scale = standardised(items.x)
    x, axes, variances = _principal(x)
    targets = items.targets
    known = np.maximum(targets.known.sum(axis=0), 1)
    share = np.clip((targets.values * targets.known).sum(axis=0) / known, 1e-3, 1 - 1e-3)
    curvature = (share * (1 - share)).astype(np.float64)
    parameters = np.zeros((x.shape[1] + 1, len(share)))
    for strength in strengths:
        steepness = np.concatenate([variances[:, None] * curvature + strength, curvature[None]])
        unit = 1 / np.sqrt(steepness)

        def objective(
            flat: np.ndarray, strength: float = strength, unit: np.ndarray = unit
        ) -> tuple[float, np.ndarray]:
            moved = flat.reshape(unit.shape) * unit
            loss, slope = _cross_entropy(x, moved[:-1], moved[-1], targets)
            slope[:-1] += strength * moved[:-1]
            return loss + strength / 2 * float((moved[:-1] ** 2).sum()), (slope * unit).ravel()

        flat = _minimised(objective, (parameters / unit).ravel())
        parameters = flat.reshape(unit.shape) * unit
        yield _original(axes @ parameters[:-1], parameters[-1], mean, scale)


def _principal(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centred x f[n, D] along its principal axes.

    Returns:
      x axes f[n, R]; axes f64[D, R], orthonormal, R = min(n, D); variances f64[R].
    """
    if x.shape[1] > x.shape[0]:
        rotated, lengths, axes = np.linalg.svd(x.astype(np.float64), full_matrices=False)
        return (rotated * lengths).astype(x.dtype), axes.T, lengths**2 / len(x)
    variances, axes = np.linalg.eigh((x.T @ x).astype(np.float64) / len(x))
    return x @ axes.astype(x.dtype), axes, np.maximum(variances, 0)


def uni(items: Items) -> Path:
    """UNI's linear probe (Chen et al. 2024, as its public code computes it), a path of one model.

    Minimises mean cross-entropy + 0.5 / C * ||W||, the norm and not its square, with C = D classes
    / 100, from 0, without bias and without changing the features; L-BFGS with a strong Wolfe line
    search and at most 1,000 iterations. Every label is a question of its own with two classes.
    """
    x, targets = items
    if targets.kind == "classes":
        weights = _uni(x, targets.values)
    else:
        columns = []
        for values, known in zip(targets.values.T, targets.known.T, strict=True):
            pair = _uni(x[known], np.stack([1 - values[known], values[known]], axis=1))
            columns.append(pair[:, 1] - pair[:, 0])
        weights = np.stack(columns, axis=1)
    yield Model(weights, np.zeros(weights.shape[1]))


def _uni(x: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Weights f64[D, C] of UNI's probe for one-hot classes f[n, C]."""
    features, count = x.shape[1], values.shape[1]
    half = uni_penalty(features, count)
    targets = Targets("classes", values, np.ones(values.shape, bool))
    x = x.astype(np.float64)

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights = flat.reshape(features, count)
        loss, slope = _cross_entropy(x, weights, np.zeros(count), targets)
        norm = float(np.linalg.norm(weights))
        # At 0, where the norm has no gradient, 0 is one of its subgradients.
        slope = slope[:-1] + (half / norm * weights if norm else 0.0)
        return loss + half * norm, slope.ravel()

    return _minimised(objective, np.zeros(features * count)).reshape(features, count)


def uni_penalty(features: int, classes: int) -> float:
    """The factor of ||W|| in the objective of `uni`: 0.5 / C."""
    return 0.5 * 100 / (features * classes)


def _cross_entropy(
    x: np.ndarray, weights: np.ndarray, bias: np.ndarray, targets: Targets
) -> tuple[float, np.ndarray]:
    """Mean cross-entropy, summed over labels, and its gradient f64[D + 1, C]; bias is last."""
    logits = (x @ weights.astype(x.dtype)).astype(np.float64) + bias
    if targets.kind == "classes":
        counts = np.array([float(len(x))])
        logs = special.log_softmax(logits, axis=1)
        sums, found = -(logs * targets.values).sum(axis=0), np.exp(logs)
    else:  # one exponential for both the loss and the probability
        counts = np.maximum(targets.known.sum(axis=0), 1)
        small = np.exp(-np.abs(logits))
        each = np.log1p(small) + np.maximum(logits, 0) - targets.values * logits
        sums = (each * targets.known).sum(axis=0)
        found = np.where(logits >= 0, 1, small) / (1 + small)
    slope = (found - targets.values) * targets.known / counts
    of_weights = (x.T @ slope.astype(x.dtype)).astype(np.float64)
    return float((sums / counts).sum()), np.concatenate([of_weights, slope.sum(axis=0)[None]])


def _minimised(objective: Callable[..., Any], start: np.ndarray) -> np.ndarray:
    """Where L-BFGS ends; its line search satisfies the strong Wolfe conditions (More, Thuente)."""
    options = {"maxiter": 1000, "maxfun": 5000, "ftol": 1e-9, "gtol": 1e-6}
    return optimize.minimize(objective, start, jac=True, method="L-BFGS-B", options=options).x


def ridge(items: Items, strengths: Sequence[float] = RIDGE_STRENGTHS) -> Path:
    """Ridge regressions in closed form, one per strength, on standardised features.

    Solves (X'X + s I) W = X'Y or, for more features than items, W = X' (X X' + s I)^-1 Y, with
    s = strength * trace(X'X) / D. All C targets must be known.
    """
    x, mean, scale = standardised(items.x)
    y = items.targets.values.astype(np.float64)
    centre, x = y.mean(axis=0), x.astype(np.float64)
    for weights in ridge_weights(x, y, strengths):
        yield _original(weights, centre, mean, scale)


def ridge_weights(x: np.ndarray, y: np.ndarray, strengths: Sequence[float]) -> Iterator[np.ndarray]:
    """Weights f64[D, C] for each strength, see `ridge`; x f[n, D] and y f[n, C] are centred."""
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    wide = x.shape[1] > x.shape[0]
    gram = x @ x.T if wide else x.T @ x
    unit = np.trace(gram) / x.shape[1] or 1.0  # of constant features, whose weights are 0
    right = y if wide else x.T @ y
    for strength in strengths:
        solved = np.linalg.solve(gram + strength * unit * np.eye(len(gram)), right)
        yield x.T @ solved if wide else solved


def adamw(
    items: Items,
    rng: np.random.Generator,
    *,
    epochs: int = 50,
    batch: int = 48,
    learning_rate: float = 5e-4,
    decay: float = 1e-6,
) -> Path:
    """A linear layer trained by AdamW, one model per epoch, as MGCA does (Wang et al. 2022).

    Features are as they are, and the start is uniform within 1 / sqrt(D). The loss is the mean over
    the known targets of a batch; every epoch has a new order, and its last batch may be smaller.

    Args:
      rng: of the start and of the orders.
    """
    x, targets = items
    features, count = x.shape[1], targets.values.shape[1]
    bound = 1 / np.sqrt(features)
    parameters = rng.uniform(-bound, bound, (features + 1, count)).astype(np.float32)
    optimizer = AdamW(learning_rate, decay)
    for _ in range(epochs):
        order = rng.permutation(len(x))
        for start in range(0, len(x), batch):
            rows = order[start : start + batch]
            part = Targets(targets.kind, targets.values[rows], targets.known[rows])
            if targets.kind == "labels":  # the mean over all labels together
                share = np.maximum(part.known.sum(axis=0), 1) / max(part.known.sum(), 1)
            else:
                share = np.ones(count)
            slope = _cross_entropy(x[rows], parameters[:-1], parameters[-1], part)[1] * share
            parameters = optimizer.step(parameters, slope.astype(np.float32))
        yield Model(parameters[:-1].astype(np.float64), parameters[-1].astype(np.float64))


@dataclasses.dataclass
class AdamW:
    """AdamW (Loshchilov and Hutter 2019, algorithm 2) for one array, with the usual constants.

    On the host, because these steps take microseconds and every number of items would need another
    compiled program.
    """

    learning_rate: float
    decay: float
    mean: Any = 0.0
    square: Any = 0.0
    steps: int = 0

    def step(self, value: np.ndarray, slope: np.ndarray) -> np.ndarray:
        """The value after a step along its gradient."""
        self.steps += 1
        self.mean = 0.9 * self.mean + 0.1 * slope
        self.square = 0.999 * self.square + 0.001 * slope**2
        mean, square = self.mean / (1 - 0.9**self.steps), self.square / (1 - 0.999**self.steps)
        change = mean / (np.sqrt(square) + 1e-8) + self.decay * value
        return value - self.learning_rate * change


class Chosen(NamedTuple):
    """What `choose` found.

    Attributes:
      model: fitted on all items.
      of_folds: the model of each fold at the chosen positions.
      positions: i64[C] on the path, for each label its own; i64[1] where all share one.
      losses: f64[P, C] or f64[P, 1], mean loss at each position of the items that were not fitted.
    """

    model: Model
    of_folds: list[Model]
    positions: np.ndarray
    losses: np.ndarray


def choose(
    path: Callable[[Items], Path],
    folds: Sequence[tuple[Items, Items]],
    whole: Items | None = None,
    *,
    together: bool = False,
    patience: int | None = None,
) -> Chosen:
    """The models of a path with the least loss on items that were not fitted.

    Args:
      path: items -> models of increasing freedom.
      folds: items to fit, and items to choose by.
      whole: items of the final model, which follows the path to the positions chosen in the folds;
        None: there is one fold, and its model is final.
      together: labels share one position; otherwise each has its own.
      patience: positions without a lower loss, for any label, after which the path ends; None: it
        is followed to its end.
    """
    models: list[list[Model]] = [[] for _ in folds]
    found: list[np.ndarray] = []
    for step in zip(*(path(fit) for fit, _ in folds), strict=True):
        parts = [
            losses(m(check.x), check.targets) for m, (_, check) in zip(step, folds, strict=True)
        ]
        sums, counts = (np.sum(part, axis=0) for part in zip(*parts, strict=True))
        if together:
            sums, counts = sums.sum(keepdims=True), counts.sum(keepdims=True)
        found.append(sums / np.maximum(counts, 1))
        for kept, model in zip(models, step, strict=True):
            kept.append(model)
        latest = int(np.stack(found).argmin(axis=0).max())
        if patience is not None and len(found) - 1 - latest >= patience:
            break
    table = np.stack(found)
    positions = table.argmin(axis=0)
    of_folds = [_at(kept, positions) for kept in models]
    if whole is None:
        (final,) = of_folds
    else:
        final = _at(list(itertools.islice(path(whole), int(positions.max()) + 1)), positions)
    return Chosen(final, of_folds, positions, table)


def _at(models: Sequence[Model], positions: np.ndarray) -> Model:
    """Every output from the model at its position."""
    count = len(models[0].bias)
    places = np.broadcast_to(positions, count).tolist()
    weights = np.stack([models[place].weights[:, c] for c, place in enumerate(places)], axis=1)
    return Model(weights, np.array([models[place].bias[c] for c, place in enumerate(places)]))
