"""Image-report retrieval in both directions, with exact handling of duplicates and ties."""

import collections
import functools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from mmrl import sequences
from mmrl.data.text import reports
from mmrl.evaluators import pictures, statistics
from mmrl.evaluators.base import (
    Estimate,
    Evaluator,
    Figure,
    HeldOut,
    Neighbours,
    Predict,
    Results,
    identity,
)
from mmrl.types import InputError

PROTOCOL = "retrieval@1"


def best_match_ranks(
    queries: np.ndarray, candidates: np.ndarray, groups: np.ndarray, *, chunk: int = 1024
) -> np.ndarray:
    """Rank of each query's best match among all candidates; 1 is first.

    Candidate j matches query i if groups[i] == groups[j]. Ties are pessimistic: the rank is 1 plus
    the number of non-matching candidates whose score is at least that of the best match, within
    `statistics.TIE`. At most chunk x chunk scores are held at once.

    Args:
      queries, candidates: f32[N, D], L2-normalised; row i of both is pair i.
      groups: i[N].
      chunk: rows and columns of one block of scores.

    Returns:
      i64[N], each from 1 to N.
    """
    size = len(groups)
    # After sorting by group, the matches of a block of queries are contiguous candidates, so the
    # best match needs little more than the diagonal blocks.
    order = np.argsort(groups, kind="stable")
    queries, candidates, groups = queries[order], candidates[order], groups[order]
    ranks = np.empty(size, np.int64)
    for start in range(0, size, chunk):
        stop = min(start + chunk, size)
        block, own = queries[start:stop], groups[start:stop, None]
        first = int(np.searchsorted(groups, own[0, 0], "left"))
        last = int(np.searchsorted(groups, own[-1, 0], "right"))
        best = np.full((stop - start, 1), -np.inf, np.float32)
        for low in range(first, last, chunk):
            high = min(low + chunk, last)
            scores = block @ candidates[low:high].T
            scores[groups[low:high] != own] = -np.inf
            best = np.maximum(best, scores.max(axis=1, keepdims=True))
        ahead = np.zeros(stop - start, np.int64)
        for low in range(0, size, chunk):
            scores = block @ candidates[low : low + chunk].T
            other = groups[low : low + chunk] != own
            ahead += ((scores >= best - statistics.TIE) & other).sum(axis=1)
        ranks[order[start:stop]] = 1 + ahead
    return ranks


def matches_per_item(groups: np.ndarray) -> np.ndarray:
    """i64[N]: how many items, itself included, match each item."""
    _, inverse, counts = np.unique(groups, return_inverse=True, return_counts=True)
    return counts[inverse]


def identical_share(texts: Sequence[str]) -> float:
    """The share of examples whose text is that of another one, but for case and white space.

    Examples without a text count as not identical.
    """
    canonical = [reports.canonical(text) for text in sequences.each(texts, "texts")]
    counts = collections.Counter(text for text in canonical if text)
    return sum(count for count in counts.values() if count > 1) / max(len(texts), 1)


def recall_chance(groups: np.ndarray, k: int) -> float:
    """Expected R@k of a random order of all candidates.

    With g matches among N candidates, the first k contain no match with the hypergeometric
    probability C(N - g, k) / C(N, k). The result is the mean over queries. A random encoder scores
    identical texts equally and so reaches slightly less than this.

    Args:
      groups: i[N].
      k: number of first candidates.
    """
    size = len(groups)
    sizes, times = np.unique(matches_per_item(groups), return_counts=True)
    place = np.arange(min(k, size))
    missed = np.clip((size - sizes[:, None] - place) / (size - place), 0, None).prod(axis=1)
    return float(((1 - missed) * times).sum() / size)


def rank_chance(groups: np.ndarray) -> tuple[float, float]:
    """(mean, median) of the best match's rank under a random order, pooled over queries.

    The mean rank of the first of g matches among N is (N + 1) / (g + 1). The median is that of the
    pooled distribution; if two ranks qualify, it is their midpoint.

    Args:
      groups: i[N].
    """
    size = len(groups)
    sizes, times = np.unique(matches_per_item(groups), return_counts=True)
    share = times / size
    mean = float((share * (size + 1) / (sizes + 1)).sum())
    place = np.arange(size)
    later = np.zeros(size)  # Probability that the rank is greater than 1, 2, ... N.
    for matches, weight in zip(sizes.tolist(), share.tolist(), strict=True):
        later += weight * np.cumprod(np.clip((size - matches - place) / (size - place), 0, None))
    low = 1 + int(np.argmax(later <= 0.5 + 1e-9))
    high = 1 + int(np.argmax(later < 0.5 - 1e-9))
    return mean, (low + high) / 2


class Retrieval(Evaluator):
    """Ranks all reports for each image, and all images for each report.

    A query's rank is the rank of its best match. All examples of its duplicate group match,
    because identical reports cannot be distinguished and every image and report of a study belong
    together. Values depend on the number of pairs N and are comparable only at equal N. Intervals
    are from a bootstrap over patients; they ignore the correlation between patients with the same
    report text. `R@{k}_images_permuted` gives every example an image of another patient. Protocol
    "retrieval@1".

    Args:
      predict, data: as for every evaluator.
      max_pairs: size of a random subset of pairs, the same for every checkpoint; None: all pairs.
      ks: the values of k for which R@k is computed.
      chunk: rows and columns of one block of scores; it bounds the memory and changes no result.
      bootstrap: resamples of the patients for the intervals; 0: no intervals.
      seed: seed of the subset, the permutation and the resamples.

    Raises:
      InputError: there are no examples, or an option is out of range.
    """

    reads: ClassVar[Mapping[str, str]] = {"image": "image.embedding", "text": "text.embedding"}
    protocol: ClassVar[str] = PROTOCOL
    headline: ClassVar[Mapping[str, str]] = {
        "image_to_text/R@1": "image finds its report",
        "text_to_image/R@1": "report finds its image",
    }

    def __init__(
        self,
        predict: Predict,
        data: HeldOut,
        *,
        max_pairs: int | None = None,
        ks: Sequence[int] = (1, 5, 10),
        chunk: int = 1024,
        bootstrap: int = 1000,
        seed: int = 0,
        reads: Mapping[str, str] | None = None,
    ) -> None:
        statistics.at_least(1, max_pairs=max_pairs, chunk=chunk, ks=min(ks, default=0))
        statistics.at_least(0, bootstrap=bootstrap, seed=seed)
        if not len(data):
            raise InputError(f"{data.name} holds no examples, retrieval needs at least one")
        super().__init__(predict, statistics.fixed_subset(data, max_pairs, seed), reads=reads)
        self.ks = tuple(sorted(set(ks)))
        self.chunk, self.bootstrap, self.seed = chunk, bootstrap, seed
        self.not_drawn = len(data) - len(self.data)

    def run(self, state: Any) -> Results:
        """Evaluates `state`; values are "{direction}/R@{k}", "/median_rank" and "/mean_rank".

        Raises:
          FloatingPointError: an embedding is not finite.
        """
        data = self.data
        rows, *embeddings = self._embeddings(state)
        groups = np.asarray(data.groups)[rows]
        patients = np.asarray(data.patients)[rows]
        values = self._values(self._ranks(groups, *embeddings), groups, patients)
        for row, others in self._compared(patients, *embeddings).items():
            values |= self._recalls(self._ranks(groups, *others), groups, patients, f"_{row}")
        matches = matches_per_item(groups)
        excluded = {
            "not drawn (max_pairs)": self.not_drawn,
            "an input is missing": len(data) - len(rows),
        }
        return Results(
            protocol=self.protocol,
            values=values,
            n=len(groups),
            data=identity(data),
            preprocessing=data.preprocessing,
            excluded={reason: count for reason, count in excluded.items() if count},
            details={
                "duplicates": int((matches > 1).sum()),
                "duplicate_share": float((matches > 1).mean()),
                "groups": len(np.unique(groups)),
                "identical_report_share": identical_share(
                    [data.texts[row] for row in rows.tolist()]
                ),
                # All candidates are tied, so all non-matching ones rank ahead.
                "constant_predictor": {
                    f"R@{k}": float((len(groups) - matches + 1 <= k).mean()) for k in self.ks
                },
                "ties": f"pessimistic, within {statistics.TIE:g}",
                "options": {"seed": self.seed, "bootstrap": self.bootstrap},
            },
        )

    def figures(
        self, state: Any, results: Results, history: Sequence[Mapping[str, Any]]
    ) -> list[Figure | Neighbours]:
        """Recall over training, neighbours of some queries, and a map of the images."""
        data = self.data
        rows, images, texts = self._embeddings(state)
        groups = np.asarray(data.groups)[rows]
        of_image = self.names["image"]
        return [
            *self._over_time(results, history),
            *pictures.neighbours(data, rows, images, texts, groups, pixels=of_image),
            *pictures.embedding_map(data, rows, images, of=of_image, seed=self.seed),
        ]

    def _ranks(self, groups: np.ndarray, *embeddings: np.ndarray) -> dict[str, np.ndarray]:
        """Direction -> ranks i64[n], of embeddings f32[n, D]."""
        images, texts = embeddings
        return {
            "image_to_text": best_match_ranks(images, texts, groups, chunk=self.chunk),
            "text_to_image": best_match_ranks(texts, images, groups, chunk=self.chunk),
        }

    def _compared(
        self, patients: np.ndarray, *embeddings: np.ndarray
    ) -> dict[str, tuple[np.ndarray, ...]]:
        """Row of comparison -> the embeddings that it has in place of these."""
        images, *others = embeddings
        rng = statistics.generator(self.seed, "images")
        found = {}
        for order in statistics.permutations_between_patients(patients, rng, 1):
            found["images_permuted"] = (images[order], *others)
        return found

    def _embeddings(self, state: Any) -> tuple[np.ndarray, ...]:
        """Rows i64[n] that have every input, and what is read of them, f32[n, D] normalised."""
        data = self.data
        names = list(self.names.values())
        encoded = self.predict.encode(state, data, names)
        rows = np.flatnonzero(encoded["present"])
        if not len(rows):
            raise InputError(f"no example of {data.name} has every input of {', '.join(names)}")
        ids = [data.ids[row] for row in rows.tolist()]
        return rows, *(statistics.unit_rows(encoded[name][rows], name, ids) for name in names)

    def _over_time(
        self, results: Results, history: Sequence[Mapping[str, Any]]
    ) -> list[Figure | Neighbours]:
        from mmrl.reporting import figures

        if not history:
            return []
        ks = ", ".join(map(str, self.ks))
        caption = f"Held-out recall at {ks} in both directions, with 95 % intervals and chance."
        draw = functools.partial(figures.retrieval_over_time, history, results=results.to_dict())
        return [Figure("retrieval", "Retrieval over time", caption, draw)]

    def _recalls(
        self,
        ranks: Mapping[str, np.ndarray],
        groups: np.ndarray,
        patients: np.ndarray,
        row: str = "",
    ) -> dict[str, Estimate]:
        return {
            f"{direction}/R@{k}{row}": statistics.estimate(
                rank <= k,
                patients,
                chance=recall_chance(groups, k),
                samples=self.bootstrap,
                seed=self.seed,
            )
            for direction, rank in ranks.items()
            for k in self.ks
        }

    def _values(
        self, ranks: dict[str, np.ndarray], groups: np.ndarray, patients: np.ndarray
    ) -> dict[str, Estimate]:
        mean_chance, median_chance = rank_chance(groups)
        options: dict[str, Any] = {"samples": self.bootstrap, "seed": self.seed}
        values = self._recalls(ranks, groups, patients)
        for direction, rank in ranks.items():
            values[f"{direction}/median_rank"] = statistics.estimate(
                rank, patients, chance=median_chance, statistic="median", **options
            )
        for direction, rank in ranks.items():
            values[f"{direction}/mean_rank"] = statistics.estimate(
                rank, patients, chance=mean_chance, **options
            )
        return values
