"""Retrieval with queries of an image and a text together."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from mmrl.evaluators import statistics
from mmrl.evaluators.base import Figure, Neighbours, Results
from mmrl.evaluators.retrieval import Retrieval, best_match_ranks


class ComposedRetrieval(Retrieval):
    """Ranks the targets of all examples for the image and the text of each, taken together.

    A query is the L2-normalised sum of the embeddings of an image and of a text, as in composed
    retrieval (Vo et al. 2019; Zhang et al. 2025, MLLM4PUE). `R@{k}_image_only` and `_text_only` are
    those of either part alone, and `_images_permuted` those of queries with the image of another
    patient. Targets may be images or texts of the same joint space. All else is as in `Retrieval`.
    Protocol "composed_retrieval@1".

    Args: as of Retrieval.
    """

    protocol: ClassVar[str] = "composed_retrieval@1"
    reads: ClassVar[Mapping[str, str]] = {
        "image": "image.embedding",
        "text": "text.embedding",
        "target": "image@second.embedding",
    }
    headline: ClassVar[Mapping[str, str]] = {
        "query_to_target/R@1": "image and text together find their target"
    }

    def figures(
        self, state: Any, results: Results, history: Sequence[Mapping[str, Any]]
    ) -> list[Figure | Neighbours]:
        """None."""
        return []

    def _ranks(self, groups: np.ndarray, *embeddings: np.ndarray) -> dict[str, np.ndarray]:
        *parts, targets = embeddings
        queries = statistics.unit_rows(np.sum(parts, axis=0), "query", self.data.ids)
        return {"query_to_target": best_match_ranks(queries, targets, groups, chunk=self.chunk)}

    def _compared(
        self, patients: np.ndarray, *embeddings: np.ndarray
    ) -> dict[str, tuple[np.ndarray, ...]]:
        image, text, target = embeddings
        alone = {"image_only": (image, target), "text_only": (text, target)}
        return alone | super()._compared(patients, *embeddings)
