"""Texts with the places of their entities, for concept alignment and masking."""

import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from mmrl.data.entities.extract import extract
from mmrl.data.entities.lexicon import CHOICES
from mmrl.data.inputs.base import Place, Reader, Rows, Shapes
from mmrl.data.inputs.entities import entity_names
from mmrl.data.inputs.text import Text, Texts
from mmrl.data.text import spans
from mmrl.data.text.tokenizer import Tokenizer
from mmrl.types import InputError

ALL = tuple(dict.fromkeys(sum(CHOICES.values(), ())))


class Concepts(Text):
    """The arrays of Text, with spans i32[n, C, 2], entity i32[n, C] and affirmed bool[n, C].

    A span is the first token of an entity and the token after its last one, -1 and -1 for padding;
    `objectives.concept_alignment` takes the means of such spans. `entity` is its position in
    `entities`, -1 for padding. Entities that the report neither denies nor guesses are `affirmed`.
    Of more than C entities the first ones are kept; those that the text tower does not read to
    their end are left out. Texts that are not English have none.

    As config.inputs.text = {"name": "concepts"} it takes the place of the text itself, so that the
    encodings `text.words` and the arrays `text.spans` are of the same tokens.

    Args: as of Text. `entities` lists the names to look for, by default all findings, devices and
      anatomy; `num_entities` is C.

    Raises:
      InputError: a name that the lexicon does not have, or C below 1.
    """

    options: ClassVar[tuple[str, ...]] = (*Text.options, "entities", "num_entities")

    def __init__(self, name: str, tower: Mapping[str, Any], data: Mapping[str, Any]) -> None:
        super().__init__(name, tower, data)
        self.entities = entity_names(name, data, ALL)
        self.count = int(data.get("num_entities", 16))
        if self.count < 1:
            raise InputError(f"config.inputs.{name}.num_entities={self.count} must be at least 1")

    def shapes(self) -> Shapes:
        """See Input."""
        count = self.count
        return {
            **super().shapes(),
            "spans": ((count, 2), np.int32),
            "entity": ((count,), np.int32),
            "affirmed": ((count,), np.bool_),
        }

    def names(self) -> Mapping[str, Mapping[str, int]]:
        """See Input."""
        return {"entity": {"": -1} | {name: i for i, name in enumerate(self.entities)}}

    def open(self, place: Place) -> Reader:
        """See Input."""
        return _Concepts(self, place)


@functools.lru_cache(1 << 14)
def token_spans(
    tokenizer: Tokenizer, length: int, text: str
) -> tuple[tuple[int, int, str, bool], ...]:
    """(first token, token after the last, name, affirmed) of the entities of a text.

    Args:
      length: L, tokens of a row; entities that the row does not hold to their end are left out.
    """
    tokens, _, truncated = tokenizer.encode(text, length)
    words = tokenizer.words(tokens)
    places = spans.locate(text, [word for word, _ in words])
    end = places[-1][1] if truncated and places else len(text)
    found = []
    for one in extract(text):
        inside = [
            position
            for (low, high), (_, positions) in zip(places, words, strict=True)
            if low < one.end and one.start < high
            for position in positions
        ]
        if one.kind in CHOICES and inside and one.end <= end:
            affirmed = not (one.negated or one.uncertain)
            found.append((min(inside), max(inside) + 1, one.name, affirmed))
    return tuple(dict.fromkeys(found))


class _Concepts(Texts):
    """Reads and tokenises texts, and finds their entities."""

    def __init__(self, own: Concepts, place: Place) -> None:
        super().__init__(own, place)
        self._places, self._foreign = own, place.corpus.foreign
        self._numbers = {name: number for number, name in enumerate(own.entities)}

    def __call__(self, rows: Rows, made: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The arrays of the rows."""
        own, count = self._places, len(rows.indices)
        arrays = super().__call__(rows, made)
        arrays |= {
            "spans": np.full((count, own.count, 2), -1, np.int32),
            "entity": np.full((count, own.count), -1, np.int32),
            "affirmed": np.zeros((count, own.count), bool),
        }
        texts, _ = self.read(rows)
        for row, (index, text) in enumerate(zip(rows.indices, texts, strict=True)):
            found = () if index in self._foreign else self._found(text)
            for column, (start, end, name, affirmed) in enumerate(found[: own.count]):
                arrays["spans"][row, column] = start, end
                arrays["entity"][row, column] = self._numbers[name]
                arrays["affirmed"][row, column] = affirmed
        return arrays

    def _found(self, text: str) -> list[tuple[int, int, str, bool]]:
        assert self._place.tokenizer is not None
        found = token_spans(self._place.tokenizer, self._own.length, text)
        return [one for one in found if one[2] in self._numbers]
