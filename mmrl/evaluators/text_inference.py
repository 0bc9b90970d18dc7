"""Natural language inference from frozen text features: does a premise entail a hypothesis?"""

import dataclasses
import functools
import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mmrl import build
from mmrl.data.overlap.joins import connected_components
from mmrl.data.reading.sentence_pairs import LABELS
from mmrl.data.text.reports import canonical
from mmrl.evaluators import pictures, scoring, statistics
from mmrl.evaluators.base import Estimate, Evaluator, Figure, HeldOut, Predict, Results, identity
from mmrl.types import InputError, Record

PROTOCOL = "text_inference@1"
FITS = ("train", "val", "folds")
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Inverse strengths C of the penalty to choose from, strongest penalty first."""

_NO_PAIR = "no sentence pair"


@dataclasses.dataclass(frozen=True)
class Pairs:
    """n sentence pairs.

    Attributes:
      name: where they are from.
      premises, hypotheses: n texts each.
      labels: i64[n], positions in `LABELS`.
      units: i64[n], equal for pairs that belong together: of one premise, or of one leakage unit,
        as a pair and the same with its sentences swapped.
      excluded: reason -> number of records without a pair.
    """

    name: str
    premises: tuple[str, ...]
    hypotheses: tuple[str, ...]
    labels: np.ndarray
    units: np.ndarray
    excluded: Mapping[str, int]

    def __len__(self) -> int:
        return len(self.premises)

    def take(self, rows: np.ndarray) -> "Pairs":
        """Some of the pairs; `rows` is i64[m]."""
        return dataclasses.replace(
            self,
            premises=tuple(self.premises[row] for row in rows.tolist()),
            hypotheses=tuple(self.hypotheses[row] for row in rows.tolist()),
            labels=self.labels[rows],
            units=self.units[rows],
        )

    def sha256(self) -> str:
        """Digest of texts and labels, in order."""
        labels = map(str, self.labels.tolist())
        rows = zip(self.premises, self.hypotheses, labels, strict=True)
        joined = "\x01".join("\x00".join(row) for row in rows)
        return hashlib.sha256(joined.encode("utf-8", "surrogatepass")).hexdigest()


def read_pairs(name: str, records: Iterable[Record]) -> Pairs:
    """The sentence pairs of records; others are excluded and counted."""
    found = [(record.entailment, record.leakage_unit) for record in records]
    pairs = [(pair, unit) for pair, unit in found if pair is not None]
    keys = [(f"unit {unit}", f"premise {canonical(pair.premise)}") for pair, unit in pairs]
    first: dict[str, int] = {}
    links = [(first.setdefault(key, row), row) for row, both in enumerate(keys) for key in both]
    excluded = Counter({_NO_PAIR: len(found) - len(pairs)})
    return Pairs(
        name,
        tuple(pair.premise for pair, _ in pairs),
        tuple(pair.hypothesis for pair, _ in pairs),
        np.array([LABELS.index(pair.label) for pair, _ in pairs], np.int64),
        connected_components(len(pairs), links),
        {reason: count for reason, count in excluded.items() if count},
    )


def without_those_of(fitted: Pairs, judged: Pairs) -> Pairs:
    """The pairs of which neither the premise nor both sentences occur in the judged ones."""
    premises = {canonical(text) for text in judged.premises}
    both = {_both(*pair) for pair in zip(judged.premises, judged.hypotheses, strict=True)}
    kept = [
        row
        for row, pair in enumerate(zip(fitted.premises, fitted.hypotheses, strict=True))
        if canonical(pair[0]) not in premises and _both(*pair) not in both
    ]
    return fitted.take(np.array(kept, np.int64))


def _both(premise: str, hypothesis: str) -> frozenset[str]:
    return frozenset((canonical(premise), canonical(hypothesis)))


def pair_features(u: Any, v: Any) -> Any:
    """[n, 4 D]: u, v, |u - v| and u * v of premises and hypotheses [n, D], dense or sparse.

    The features of InferSent (Conneau et al. 2017, section 3.1), and both vectors.
    """
    if sparse.issparse(u):
        return sparse.hstack([u, v, abs(u - v), u.multiply(v)]).tocsr()
    return np.concatenate([u, v, np.abs(u - v), u * v], axis=1)


class TextInference(Evaluator):
    """Three-way inference on sentence pairs by a linear head on frozen text features.

    Premise and hypothesis are encoded alone; a logistic regression on `pair_features`, standardised
    by the fitted pairs, tells entailment, neutral and contradiction apart. Its penalty is the one
    with the least log loss on pairs that were not fitted, never on those that are judged. The
    bootstrap, the folds and the permutations draw premises: all pairs of a premise, and a pair and
    the same with its sentences swapped, belong together.

    Values are those of `scoring.report` for classes, and the same of simpler predictors:

    * `constant`: the most frequent class of the fitted pairs;
    * `hypothesis_only`, `premise_only`: the same head on one of the sentences. The wording of a
      hypothesis often gives its label away (Gururangan et al. 2018);
    * `bag_of_words`: the same head on tf-idf weights of the words in place of the features;
    * `premises_permuted`: the head of the pairs, given premises of others.

    Protocol "text_inference@1".

    Args:
      predict, data: as for every evaluator.
      fit: which pairs fit the head. train: the split train; its penalty is chosen on the split
        val, or by folds where that is judged or missing. val: the split val, with the penalty
        chosen by folds. folds: the judged pairs themselves, each fold by a head of the others.
      train: with fit=train, a mapping of the source whose splits train and val are taken instead,
        with its options: {"source": "mednli", "path": FOLDER}.
      folds: number of folds, over premises.
      permutations: how often the premises are permuted.
      bootstrap: resamples of the premises for the intervals; 0: no intervals.
      seed: of the folds, the permutations and the resamples.

    Raises:
      InputError: no pairs to judge or to fit, a class without pairs to fit, pairs that would be
        judged by a head that was fitted on them, or an option out of range.
    """

    reads: ClassVar[Mapping[str, str]] = {"text": "text.embedding"}
    prompted: ClassVar[tuple[str, ...]] = ("text",)
    headline: ClassVar[Mapping[str, str]] = {
        "accuracy": "entailment, neutral or contradiction, by a linear head",
        "accuracy_hypothesis_only": "the same without the premise",
        "macro_f1": "mean F1 of the three classes",
    }

    def __init__(
        self,
        predict: Predict,
        data: HeldOut,
        *,
        fit: str = "train",
        train: Mapping[str, Any] | None = None,
        folds: int = 5,
        permutations: int = 5,
        bootstrap: int = 1000,
        seed: int = 0,
        reads: Mapping[str, str] | None = None,
    ) -> None:
        statistics.at_least(2, folds=folds)
        statistics.at_least(1, permutations=permutations)
        statistics.at_least(0, bootstrap=bootstrap, seed=seed)
        if fit not in FITS:
            raise InputError(build.unknown("fit of text_inference", fit, FITS))
        if train and fit != "train":
            raise InputError(f"text_inference: train is given with fit={fit}; expected fit=train")
        super().__init__(predict, data, reads=reads)
        self.fit, self.train, self.folds = fit, dict(train or {}), folds
        self.permutations, self.bootstrap, self.seed = permutations, bootstrap, seed
        self.pairs = read_pairs(data.name, map(data.record, range(len(data))))
        if not len(self.pairs):
            raise InputError(
                f"no record of {data.name} is a sentence pair ({len(data)} examples); "
                "text_inference needs a source such as radnli or mednli"
            )
        self.fitted, self.checked, self.left_out = self._others()
        _require_classes(self.fitted)

    def run(self, state: Any) -> Results:
        """Evaluates `state`; values as in the class.

        Raises:
          InputError: the feature is not one vector for each text.
          FloatingPointError: it is not finite.
        """
        data, judged = self.data, self.pairs
        encoded = self._encoded(state)
        head, strengths = self._fitted_head(lambda one: pair_features(*encoded(one)))
        rng = statistics.generator(self.seed, "premises")
        foreign = [
            head(pair_features(own[order], other))
            for own, other in (encoded(judged),)
            for order in (
                statistics.permutation_between_patients(judged.units, rng)
                for _ in range(self.permutations)
            )
        ]
        premise, _ = self._fitted_head(lambda one: encoded(one)[0])
        hypothesis, _ = self._fitted_head(lambda one: encoded(one)[1])
        answers = scoring.Answers(
            "classes",
            head(pair_features(*encoded(judged))),
            judged.labels,
            judged.units,
            LABELS,
            probabilities=True,
        )
        rows = {
            "premises_permuted": foreign,
            "hypothesis_only": [hypothesis(encoded(judged)[1])],
            "premise_only": [premise(encoded(judged)[0])],
            "bag_of_words": [self._bag_of_words],
        }
        values, details = scoring.report(
            answers,
            rows=rows,
            reference=self.fitted.labels,
            bootstrap=self.bootstrap,
            seed=self.seed,
            gain=False,
        )
        for row in rows:
            gap = scoring.difference(values["accuracy"], values[f"accuracy_{row}"])
            values[f"accuracy_gain_over_{row}"] = gap
        return Results(
            protocol=PROTOCOL,
            values=_ordered(values),
            n=len(judged),
            data=identity(data),
            preprocessing=data.preprocessing,
            excluded=judged.excluded,
            answers={"pairs": answers},
            details={
                **details,
                "pairs_sha256": judged.sha256(),
                "bootstrap_unit": "premise, with pairs of one leakage unit",
                "units": len(np.unique(judged.units)),
                "fitted_on": {
                    "name": self.fitted.name,
                    "pairs": len(self.fitted),
                    "classes": dict(
                        zip(
                            LABELS,
                            np.bincount(self.fitted.labels, minlength=3).tolist(),
                            strict=True,
                        )
                    ),
                    "fitted_sha256": self.fitted.sha256(),
                    "left_out_because_judged": self.left_out,
                    "penalty_chosen_on": self._chosen_on(),
                    "inverse_strengths": strengths,
                },
                "feature": self.names["text"],
                "options": {
                    "fit": self.fit,
                    "folds": self.folds,
                    "permutations": self.permutations,
                    "bootstrap": self.bootstrap,
                    "seed": self.seed,
                },
            },
        )

    def figures(
        self, state: Any, results: Results, history: Sequence[Mapping[str, Any]]
    ) -> list[Figure]:
        """How the answers lie to the truth."""
        return pictures.of_answers(results.answers)

    # --- which pairs ---------------------------------------------------------------------------

    def _others(self) -> tuple[Pairs, Pairs | None, int]:
        """The pairs to fit; those to choose the penalty on, None: by folds; how many were left out.

        Raises:
          InputError: as of the class.
        """
        if self.fit == "folds":
            return self.pairs, None, 0
        judged = self.data.name.rpartition("/")[2]
        if self.fit == judged and not self.train:
            other = "folds" if self.fit == "train" else "folds or train"
            raise InputError(
                f"text_inference: fit={self.fit} would fit the head on {self.data.name}, which is "
                f"judged; expected fit={other}"
            )
        try:
            found = self._of_split(self.fit)
        except InputError as error:
            raise InputError(
                f"text_inference: no pairs to fit the head on: {error}; choose fit=val, fit=folds "
                'or train={"source": "mednli", "path": FOLDER}'
            ) from error
        checked = None
        if self.fit == "train" and (self.train or judged != "val"):
            try:
                checked = self._of_split("val")
            except InputError:
                checked = None  # the penalty is then chosen by folds, which the details state
        kept = without_those_of(found, self.pairs)
        left_out = len(found) - len(kept)
        if checked is not None:
            apart = without_those_of(checked, self.pairs)
            left_out += len(checked) - len(apart)
            checked = apart if len(apart) else None
        return kept, checked, left_out

    def _of_split(self, split: str) -> Pairs:
        """The pairs of another split.

        Raises:
          InputError: there are none.
        """
        if self.train:
            options = dict(self.train)
            chosen = str(options.pop("source", ""))
            source: Any = build.find("source", chosen)(split=split, **options)
            found = read_pairs(f"{chosen}/{split}", map(source.__getitem__, range(len(source))))
        else:
            other = self.data.split(split)
            found = read_pairs(other.name, map(other.record, range(len(other))))
        if not len(found):
            raise InputError(f"{found.name} holds no sentence pairs")
        return found

    def _chosen_on(self) -> str:
        if self.checked is None:
            return f"{self.folds} folds over premises of the fitted pairs"
        return f"{self.checked.name}, {len(self.checked)} pairs"

    # --- features ------------------------------------------------------------------------------

    def _encoded(self, state: Any) -> Callable[[Pairs], tuple[np.ndarray, np.ndarray]]:
        """Encodes every distinct text once; pairs -> premises f64[n, D], hypotheses f64[n, D].

        Raises:
          InputError, FloatingPointError: as of `run`.
        """
        used = [one for one in (self.pairs, self.fitted, self.checked) if one is not None]
        every = itertools.chain(*((*one.premises, *one.hypotheses) for one in used))
        texts, name = list(dict.fromkeys(every)), self.names["text"]
        rows = np.asarray(
            self.predict.encode(state, self.data.with_texts(texts), [name])[name], np.float64
        )
        if rows.ndim != 2:
            raise InputError(
                f"{name} has the shape {rows.shape}; text_inference needs one vector for each "
                "text, such as text.embedding or text.pooled"
            )
        finite = np.isfinite(rows).all(axis=1)
        if not finite.all():
            raise FloatingPointError(
                f"{name} is not finite, first of the text {texts[int(np.argmin(finite))]!r}"
            )
        place = {text: row for row, text in enumerate(texts)}

        def features(pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
            premises, hypotheses = (
                rows[[place[text] for text in column]]
                for column in (pairs.premises, pairs.hypotheses)
            )
            return premises, hypotheses

        return features

    @functools.cached_property
    def _bag_of_words(self) -> np.ndarray:
        """f64[n, 3] of the head on tf-idf weights; of the texts alone, so it is made once."""
        words = TfidfVectorizer(sublinear_tf=True)
        words.fit([*self.fitted.premises, *self.fitted.hypotheses])

        def features(pairs: Pairs) -> Any:
            return pair_features(words.transform(pairs.premises), words.transform(pairs.hypotheses))

        return self._fitted_head(features)[0](features(self.pairs))

    # --- heads ---------------------------------------------------------------------------------

    def _fitted_head(
        self, features: Callable[[Pairs], Any]
    ) -> tuple[Callable[[Any], np.ndarray], list[float]]:
        """A function from features of the judged pairs to f64[n, 3], and the chosen C of each head.

        Args:
          features: pairs -> [n, F].
        """
        if self.fit != "folds":
            fitted = features(self.fitted)
            checked = None
            if self.checked is not None:
                checked = (features(self.checked), self.checked.labels)
            chosen = self._strength(fitted, self.fitted.labels, self.fitted.units, checked)
            model = _fit(fitted, self.fitted.labels, chosen)
            return functools.partial(_probabilities, model), [chosen]
        x, y, units = features(self.pairs), self.pairs.labels, self.pairs.units
        parts, strengths = [], []
        for rest, own in self._folds(y, units):
            strengths.append(self._strength(x[rest], y[rest], units[rest], None))
            parts.append((own, _fit(x[rest], y[rest], strengths[-1])))

        def probabilities(x: Any) -> np.ndarray:
            found = np.empty((x.shape[0], len(LABELS)))
            for own, model in parts:
                found[own] = _probabilities(model, x[own])
            return found

        return probabilities, strengths

    def _strength(
        self, x: Any, y: np.ndarray, units: np.ndarray, checked: tuple[Any, np.ndarray] | None
    ) -> float:
        """The inverse strength with the least log loss on pairs that were not fitted."""
        if checked is not None:
            splits = [(x, y, *checked)]
        else:
            splits = [(x[a], y[a], x[b], y[b]) for a, b in self._folds(y, units)]
        losses = [
            sum(
                len(truth)
                * log_loss(truth, _probabilities(_fit(a, of_a, C), b), labels=range(len(LABELS)))
                for a, of_a, b, truth in splits
            )
            for C in STRENGTHS
        ]
        return STRENGTHS[int(np.argmin(losses))]  # of equal ones the strongest penalty

    def _folds(self, y: np.ndarray, units: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """(rows to fit, rows to judge) of every fold; no unit is divided.

        Raises:
          InputError: fewer units than folds.
        """
        count = len(np.unique(units))
        if count < self.folds:
            raise InputError(
                f"text_inference: {count} premises cannot be divided into {self.folds} folds"
            )
        state = int(statistics.generator(self.seed, "folds").integers(2**31))
        division = StratifiedGroupKFold(self.folds, shuffle=True, random_state=state)
        return list(division.split(y, y, units))


def _require_classes(fitted: Pairs) -> None:
    missing = [LABELS[c] for c in range(len(LABELS)) if not (fitted.labels == c).any()]
    if missing:
        raise InputError(
            f"text_inference: none of the {len(fitted)} pairs of {fitted.name} that fit the head "
            f"is {' or '.join(missing)}"
        )


def _fit(x: Any, y: np.ndarray, inverse_strength: float) -> Any:
    """A logistic regression; dense features are standardised."""
    model = LogisticRegression(C=inverse_strength, max_iter=2000)
    steps = [model] if sparse.issparse(x) else [StandardScaler(), model]
    return make_pipeline(*steps).fit(x, y)


def _probabilities(model: Any, x: Any) -> np.ndarray:
    """f64[n, 3]; 0 for classes that the model has not seen."""
    found = np.zeros((x.shape[0], len(LABELS)))
    found[:, model.classes_] = model.predict_proba(x)
    return found


def _ordered(values: Mapping[str, Estimate]) -> dict[str, Estimate]:
    """The accuracy and its rows first, then the other measures."""
    first = {name: one for name, one in values.items() if name.startswith("accuracy")}
    return first | dict(values)
