"""Precision at K by class: the share of the best candidates that have the class of the query."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from mmrl import sequences
from mmrl.evaluators import scoring, statistics
from mmrl.evaluators.base import Estimate, Evaluator, HeldOut, Predict, Results, identity
from mmrl.evaluators.subgroups import subgroups
from mmrl.evaluators.truth import exclusive, know
from mmrl.types import InputError

PROTOCOL = "precision_at_k@1"


def precisions(
    queries: np.ndarray,
    candidates: np.ndarray,
    classes: np.ndarray,
    ks: Sequence[int],
    *,
    query_classes: np.ndarray | None = None,
    owners: np.ndarray | None = None,
    chunk: int = 256,
) -> np.ndarray:
    """The share of the K best candidates that have the class of the query.

    Ties are pessimistic: of candidates whose scores are within `statistics.TIE` of the K-th best,
    those of another class come first. At most chunk x N scores are held at once.

    Args:
      queries: f32[M, D]. candidates: f32[N, D]. Both L2-normalised.
      classes: i[N], of the candidates.
      ks: values of K, at least 1. Where a query has fewer candidates, K is their number.
      query_classes: i[M]; by default `classes`, of which query i is item i.
      owners: i[N], for queries that are candidates themselves: candidates of the owner of a query,
        itself included, are left out. None: all candidates count.
      chunk: queries at once; it bounds the memory and changes no result.

    Returns:
      f64[M, len(ks)]; NaN for a query without candidates.
    """
    wanted = classes if query_classes is None else query_classes
    found = np.empty((len(queries), len(ks)))
    for start in range(0, len(queries), chunk):
        scores = queries[start : start + chunk] @ candidates.T  # m N
        allowed = np.ones(scores.shape, bool)
        if owners is not None:
            allowed = owners[start : start + chunk, None] != owners
            scores[~allowed] = -np.inf
        alike = (wanted[start : start + chunk, None] == classes) & allowed
        counts = allowed.sum(axis=1)
        for column, k in enumerate(ks):
            taken = np.minimum(k, counts)
            found[start : start + chunk, column] = _precision(scores, alike, allowed, taken)
    return found


def _precision(
    scores: np.ndarray, alike: np.ndarray, allowed: np.ndarray, taken: np.ndarray
) -> np.ndarray:
    """f64[m]: the share of matches among the `taken` i[m] best of each row."""
    last = np.empty(len(scores), scores.dtype)
    for count in np.unique(taken).tolist():
        rows = taken == count
        # Without candidates any threshold will do: the share is undefined.
        place = scores.shape[1] - max(count, 1)
        last[rows] = np.partition(scores[rows], place, axis=1)[:, place]
    ahead = scores > last[:, None] + statistics.TIE
    tied = (scores >= last[:, None] - statistics.TIE) & ~ahead & allowed
    free = taken - ahead.sum(axis=1)
    others = (tied & ~alike).sum(axis=1)
    hits = (ahead & alike).sum(axis=1) + np.clip(free - others, 0, None)
    return np.divide(hits, taken, out=np.full(len(hits), np.nan), where=taken > 0)


class PrecisionAtK(Evaluator):
    """Ranks candidates for each image and counts those of its class among the best K.

    Queries are images. Candidates are the reports, or images with
    `reads.candidates=image.embedding`; then those of the patient of the query are left out. All are
    ranked over the full set. Query and candidates are studies for which exactly one of the classes
    is present and all others are absent, as in CheXpert 5x200 (GLoRIA, Huang et al. 2021, section
    4.2). `P@{k}_images_permuted` gives each query an image of another patient,
    `P@{k}_constant` is what equal embeddings reach. Chance is the expected share in a random order.
    Protocol "precision_at_k@1".

    Args:
      predict, data: as for every evaluator.
      classes: at least two names of findings or labels, of which a study has exactly one.
      ks: the values of K.
      chunk: queries at once; it bounds the memory and changes no result.
      permutations: how often the images are permuted between patients.
      bootstrap: resamples of the patients for the intervals; 0: no intervals.
      seed: seed of the permutations and the resamples.

    Raises:
      InputError: fewer than two classes or an unknown one, studies of fewer than two classes,
        options out of range.
    """

    reads: ClassVar[Mapping[str, str]] = {
        "queries": "image.embedding",
        "candidates": "text.embedding",
    }
    headline: ClassVar[Mapping[str, str]] = {
        "P@10": "share of the best 10 with the class asked for"
    }

    def __init__(
        self,
        predict: Predict,
        data: HeldOut,
        *,
        classes: Sequence[str] = (),
        ks: Sequence[int] = (5, 10, 100),
        chunk: int = 256,
        permutations: int = 5,
        bootstrap: int = 1000,
        seed: int = 0,
        reads: Mapping[str, str] | None = None,
    ) -> None:
        statistics.at_least(1, ks=min(ks, default=0), chunk=chunk, permutations=permutations)
        statistics.at_least(0, bootstrap=bootstrap, seed=seed)
        classes = sequences.of(classes, "precision_at_k.classes")
        if len(set(classes)) < 2:
            raise InputError(
                f"precision_at_k.classes is {tuple(classes)}, expected at least two names of "
                "findings or labels"
            )
        known = know(data, purpose="precision_at_k", language=None)
        classed = exclusive(known, tuple(classes), where="classes of precision_at_k")
        super().__init__(predict, statistics.Subset(data, classed.rows.tolist()), reads=reads)
        self.classes, self.truth, self.excluded = tuple(classes), classed.truth, classed.excluded
        self.groups = subgroups(self.data)
        self.ks = tuple(sorted(set(ks)))
        self.chunk, self.permutations = chunk, permutations
        self.bootstrap, self.seed = bootstrap, seed

    def run(self, state: Any) -> Results:
        """Evaluates `state`; values are "P@{k}" and rows of it, then those of subgroups.

        Raises:
          InputError: no query has candidates.
          FloatingPointError: an embedding is not finite.
        """
        data, names = self.data, list(self.names.values())
        encoded = self.predict.encode(state, data, names)
        present = encoded["present"]
        if not present.any():
            raise InputError(f"no example of {data.name} has every input of {', '.join(names)}")
        ids = [name for name, kept in zip(data.ids, present, strict=True) if kept]
        queries, candidates = (
            statistics.unit_rows(encoded[name][present], name, ids) for name in names
        )
        truth, patients = self.truth[present], np.asarray(data.patients)[present]
        # Between images, those of one patient are too easy to find.
        owners = np.unique(patients, return_inverse=True)[1] if len(set(names)) == 1 else None
        if owners is not None and not owners.any():
            raise InputError(f"{data.name} has images of one patient only; expected several")
        own = precisions(queries, candidates, truth, self.ks, owners=owners, chunk=self.chunk)
        rng = statistics.generator(self.seed, "images")
        orders = statistics.permutations_between_patients(patients, rng, self.permutations)
        blind = [self._blind(queries, candidates, truth, owners, order) for order in orders]
        shares = _shares(truth, owners)
        same = np.ones((len(truth), 1), np.float32)
        equal = precisions(same, same, truth, self.ks, owners=owners, chunk=self.chunk)
        values: dict[str, Estimate] = {}
        rows = {"": own}
        if blind:
            rows["_images_permuted"] = np.mean(blind, axis=0)
        rows["_constant"] = equal
        for column, k in enumerate(self.ks):
            values |= {
                f"P@{k}{row}": self._mean(found[:, column], patients, shares)
                for row, found in rows.items()
            }
            if blind:
                values[f"P@{k}_gain_over_images_permuted"] = scoring.difference(
                    values[f"P@{k}"], values[f"P@{k}_images_permuted"]
                )
        parts = {f"class/{name}": truth == place for place, name in enumerate(self.classes)}
        parts |= {f"subgroup/{name}": inside[present] for name, inside in self.groups.items()}
        for name, inside in parts.items():
            for k, found in zip(self.ks, own.T, strict=True):
                if inside.any():
                    part = self._mean(found[inside], patients[inside], shares[inside])
                    values[f"{name}/P@{k}"] = part
        excluded = {**self.excluded, "an input is missing": int((~present).sum())}
        counts = np.bincount(truth, minlength=len(self.classes)).tolist()
        return Results(
            protocol=PROTOCOL,
            values=values,
            n=len(truth),
            data=identity(data),
            preprocessing=data.preprocessing,
            excluded={reason: count for reason, count in excluded.items() if count},
            details={
                "prevalence": dict(zip(self.classes, counts, strict=True)),
                "queries": names[0],
                "candidates": names[1],
                "left_out_of_candidates": "none" if owners is None else "the patient of the query",
                "ties": f"pessimistic, within {statistics.TIE:g}",
                "options": {
                    "permutations": self.permutations,
                    "bootstrap": self.bootstrap,
                    "seed": self.seed,
                },
            },
        )

    def _blind(
        self,
        queries: np.ndarray,
        candidates: np.ndarray,
        truth: np.ndarray,
        owners: np.ndarray | None,
        rows: np.ndarray,
    ) -> np.ndarray:
        """f64[N, K]: the precisions when item i is asked with image `rows[i]`."""
        found = np.empty((len(truth), len(self.ks)))
        # In the order of the images, so that each leaves out its own patient.
        found[np.argsort(rows)] = precisions(
            queries,
            candidates,
            truth,
            self.ks,
            query_classes=truth[np.argsort(rows)],
            owners=owners,
            chunk=self.chunk,
        )
        return found

    def _mean(self, found: np.ndarray, patients: np.ndarray, shares: np.ndarray) -> Estimate:
        return scoring.item_mean(
            found,
            patients,
            chance=float(shares.mean()),
            samples=self.bootstrap,
            seed=self.seed,
        )


def _shares(truth: np.ndarray, owners: np.ndarray | None) -> np.ndarray:
    """f64[N]: the share of the candidates of each query that have its class."""
    counts = np.bincount(truth)
    if owners is None:
        return counts[truth] / len(truth)
    own = np.bincount(owners)[owners]
    cells, inverse = np.unique(owners * len(counts) + truth, return_inverse=True)
    alike = np.bincount(inverse, minlength=len(cells))[inverse]
    return np.divide(
        counts[truth] - alike, len(truth) - own, out=np.zeros(len(truth)), where=len(truth) > own
    )
