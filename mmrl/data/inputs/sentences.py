"""Single sentences of each report."""

import functools
import re
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from mmrl.data import counter, stall
from mmrl.data.inputs.base import Input, Place, Reader, Rows, Shapes
from mmrl.data.inputs.text import Text, text_length
from mmrl.data.perturb.statements import affirms, entailed
from mmrl.data.text import reports
from mmrl.data.text.excerpts import text_group

KNOWN = 32  # keys of a report


class Sentences(Input):
    """tokens i32[n, S, L'], mask bool[n, S, L'], valid, affirmed bool[n, S], key i32[n, S], known.

    S is `num_sentences` and L' is `max_tokens`, by default those of the tower. A report with fewer
    sentences has empty texts in the remaining places, where `valid` is False. A report with more
    has S of them, drawn anew at each step, in the order of the report; evaluation takes the first
    ones. Sentences have equal keys if their canonical texts are equal, whatever reports they are
    from. Those that state something that the image shows are `affirmed`, see `statements.affirms`;
    the others deny it or call it normal.

    `known` i32[n, E] holds the keys of all sentences of the report and of all phrases that they
    entail, drawn or not, at most E of them, so that a loss can tell which texts of other reports
    hold for this one, too.

    Prompts are shorter than sentences. To train on such texts, too, `sentence_terms` is the share
    of sentences that are replaced by a phrase that they entail, see `statements.entailed`. Such a
    phrase is never `affirmed`, as it says less of where its finding is.

    What a sentence states, denies and entails is read by rules for English. Sentences of other
    reports are never `affirmed` and entail nothing.

    Args: as of Input. Unless `required`, records without a report have `present` False.
    """

    kind: ClassVar[str] = "text"
    tower_options: ClassVar[tuple[str, ...]] = Text.tower_options
    options: ClassVar[tuple[str, ...]] = (
        "sections",
        "num_sentences",
        "sentence_terms",
        "max_tokens",
        "required",
    )
    required: ClassVar[bool] = True

    def __init__(self, name: str, tower: Mapping[str, Any], data: Mapping[str, Any]) -> None:
        super().__init__(name, tower, data)
        self.count = int(data["num_sentences"])
        self.length = text_length(name, tower, data)
        self.terms = float(data["sentence_terms"])
        self.optional = not data.get("required", True)

    def shapes(self) -> Shapes:
        """See Input."""
        count, length = self.count, self.length
        shapes: dict[str, Any] = {
            "tokens": ((count, length), np.int32),
            "mask": ((count, length), np.bool_),
            "valid": ((count,), np.bool_),
            "affirmed": ((count,), np.bool_),
            "key": ((count,), np.int32),
            "known": ((KNOWN,), np.int32),
        }
        return shapes | ({"present": ((), np.bool_)} if self.optional else {})

    def open(self, place: Place) -> Reader:
        """See Input."""
        return _Sentences(self, place)


@functools.lru_cache(1 << 14)
def phrases(report: str) -> tuple[str, ...]:
    """The sentences of a report, cut at semicolons, too: impressions list findings with them."""
    parts = (part.strip() for text in reports.split_sentences(report) for part in text.split(";"))
    return tuple(part for part in parts if re.search(r"\w", part))


def _whole(sentence: str, english: bool) -> tuple[str, bool]:
    return sentence, english and affirms(sentence)


@functools.lru_cache(1 << 14)
def _known(report: str, english: bool) -> tuple[int, ...]:
    """KNOWN keys; the first one fills the places that are left."""
    found = phrases(report)
    texts = found
    if english:
        texts = (*found, *(short for text in found for short in entailed(text)))
    keys = list(dict.fromkeys(map(text_group, texts or ("",))))[:KNOWN]
    return (*keys, *keys[:1] * (KNOWN - len(keys)))


class _Sentences:
    """Reads, draws and tokenises sentences."""

    def __init__(self, own: Sentences, place: Place) -> None:
        self._own, self._place = own, place
        self._texts, _ = place.corpus.texts_of(tuple(own.data["sections"]))

    def _of(self, index: int, seed: int) -> list[tuple[str, bool]]:
        """The texts of one report that a row holds, and which are whole sentences that affirm."""
        own, found = self._own, phrases(self._texts[index])
        english = self._english(index)
        if not self._place.train:
            return [_whole(sentence, english) for sentence in found[: own.count]]
        draws = counter.bits(np.uint64(seed), np.arange(3 * len(found)).reshape(3, -1))
        chosen = counter.subset(np.uint64(seed), len(found), own.count).tolist()
        return [self._draw(found[i], english, int(draws[1, i]), int(draws[2, i])) for i in chosen]

    def _draw(self, sentence: str, english: bool, first: int, second: int) -> tuple[str, bool]:
        """The sentence, or a phrase that it entails; the draws are of 64 bits."""
        short = entailed(sentence) if english and first < self._own.terms * 2**64 else ()
        return (short[second % len(short)], False) if short else _whole(sentence, english)

    def _english(self, index: int) -> bool:
        return index not in self._place.corpus.foreign

    def __call__(self, rows: Rows, made: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        own = self._own
        assert self._place.tokenizer is not None
        seeds = rows.stream(f"{own.name}/choice").tolist()
        flat: list[tuple[str, bool]] = []
        for index, seed in zip(rows.indices, seeds, strict=True):
            chosen = self._of(index, seed)
            flat += [*chosen, *[("", False)] * (own.count - len(chosen))]
        texts, affirmed = zip(*flat, strict=True)
        self._place.mark(stall.TOKENISE, rows.indices[0])
        tokens, mask, _ = self._place.tokenizer.encode_batch(list(texts), own.length)
        shape = (len(rows.indices), own.count)
        arrays = {
            "tokens": tokens.reshape(*shape, own.length),
            "mask": mask.reshape(*shape, own.length),
            "valid": np.array([bool(text) for text in texts]).reshape(shape),
            "affirmed": np.array(affirmed).reshape(shape),
            "key": np.array([text_group(text) for text in texts], np.int32).reshape(shape),
            "known": np.array(
                [_known(self._texts[index], self._english(index)) for index in rows.indices],
                np.int32,
            ),
        }
        if own.optional:
            arrays["present"] = np.array([bool(phrases(self._texts[i])) for i in rows.indices])
        return arrays
