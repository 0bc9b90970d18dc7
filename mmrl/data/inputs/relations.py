"""Pairs of names that a graph of knowledge links, and names that it does not, as texts."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from mmrl.data import counter
from mmrl.data.entities import graph
from mmrl.data.inputs.base import Input, Place, Reader, Rows, Shapes
from mmrl.data.inputs.text import Text, text_length
from mmrl.data.text.tokenizer import Tokenizer
from mmrl.types import InputError


class Relations(Input):
    """tokens i32[n, 3, L'] and mask bool[n, 3, L'] of three names: a head, a tail, another one.

    Head and tail are linked by the graph, in either direction; the other name is not linked to the
    head. Rows draw the three names anew at each step, whatever their record is. L' is `max_tokens`,
    by default the length of the tower.

    Args: as of Input. `relations` is a file of relations, .csv or .obo, see
      `mmrl.data.entities.graph`; "": those that mmrl has. `kinds` are those to keep; (): all.

    Raises:
      InputError: a file that holds no relations, or kinds that it does not have; a graph in which a
        name is linked to all others.
    """

    kind: ClassVar[str] = "text"
    tower_options: ClassVar[tuple[str, ...]] = Text.tower_options
    options: ClassVar[tuple[str, ...]] = ("relations", "kinds", "max_tokens")

    def __init__(self, name: str, tower: Mapping[str, Any], data: Mapping[str, Any]) -> None:
        super().__init__(name, tower, data)
        self.length = text_length(name, tower, data)
        given, kinds = str(data.get("relations", "")), tuple(data.get("kinds", ()))
        where = f"config.inputs.{name}"
        relations = graph.read(given) if given else graph.built_in()
        self.names_of_graph = tuple(dict.fromkeys(n for one in relations for n in (one[0], one[2])))
        self.pairs = graph.edges(self.names_of_graph, relations, kinds)
        linked = graph.adjacency_matrix(len(self.names_of_graph), self.pairs) > 0
        self.unlinked = ~linked & ~np.eye(len(linked), dtype=bool)
        if not len(self.pairs):
            raise InputError(f"{where}.kinds={kinds}: no relation of {given or 'mmrl'} is of these")
        if not self.unlinked[self.pairs[:, 0]].any(axis=1).all():
            raise InputError(f"{where}.relations={given}: a name is linked to all others")

    def shapes(self) -> Shapes:
        """See Input."""
        shape = (3, self.length)
        return {"tokens": (shape, np.int32), "mask": (shape, np.bool_)}

    def open(self, place: Place) -> Reader:
        """See Input."""
        assert place.tokenizer is not None
        return _Relations(self, place.tokenizer)


class _Relations:
    """Draws names, which are tokenised once."""

    def __init__(self, own: Relations, tokenizer: Tokenizer) -> None:
        self._name, self._pairs = own.name, own.pairs
        self._others = [np.flatnonzero(row) for row in own.unlinked]
        self._tokens, self._mask, _ = tokenizer.encode_batch(own.names_of_graph, own.length)

    def __call__(self, rows: Rows, made: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The arrays of the rows."""
        seeds = rows.stream(f"{self._name}/pairs")
        first, second = (counter.bits(seeds, number) for number in (0, 1))
        pairs = self._pairs[first % len(self._pairs)]
        other = [
            self._others[head][int(draw) % len(self._others[head])]
            for head, draw in zip(pairs[:, 0], second, strict=True)
        ]
        names = np.column_stack([pairs, other])
        return {"tokens": self._tokens[names], "mask": self._mask[names]}
