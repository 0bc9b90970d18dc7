"""Selects the studies and words of grounding: words that state a finding whose boxes are known."""

import dataclasses
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Protocol

import numpy as np

from mmrl.data.text.reports import normalise, split_sentences
from mmrl.types import Record

# tokens i32[L] -> (word, positions of its tokens), in reading order.
WordsOf = Callable[[np.ndarray], Sequence[tuple[str, Sequence[int]]]]
Word = tuple[str, tuple[int, ...]]
Corners = tuple[float, float, float, float]

_SIDES = frozenset(re.findall(r"\w+", "left right bilateral bilaterally both"))
_ZONES = frozenset(
    re.findall(
        r"\w+",
        "upper mid middle lower apical apex apices basal basilar bibasilar base bases lobe lingula "
        "retrocardiac hilar perihilar costophrenic",
    )
)
_FUNCTION_WORDS = frozenset(
    re.findall(
        r"\w+",
        "about above also and are been below but for from has have into its may not otherwise over "
        "seen since some than that the their there these this those through under was were which "
        "while with within without",
    )
)


class Reports(Protocol):
    """The part of `evaluators.base.HeldOut` that is needed here."""

    ids: Sequence[str]
    texts: Sequence[str]
    patients: Sequence[str]

    def __len__(self) -> int: ...
    def record(self, index: int) -> Record:
        """The record of example `index`."""

    def tokenize(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """texts -> tokens i32[N, L], mask bool[N, L] exactly as in training."""


@dataclasses.dataclass(frozen=True)
class Selected:
    """A study, the words to look up in its image, and the boxes of the finding that they state.

    Attributes:
      index: position in the held-out data.
      label: the boxed finding, "" without boxes.
      words: (word, positions of its tokens) pairs, most specific first.
      boxes: (x0, y0, x1, y1) in pixels of the original image.
      sentence: the sentence that states the finding, or the words of its label where none does;
        without boxes the one with the first of the words.
    """

    index: int
    label: str
    words: tuple[Word, ...]
    boxes: tuple[Corners, ...]
    sentence: str = ""


def select_examples(
    data: Reports,
    words_of: WordsOf,
    *,
    count: int = 6,
    words_per_example: int = 2,
    scan: int = 2000,
    skip: Container[int] = frozenset(),
) -> list[Selected]:
    """Selects studies with boxed findings, spread over findings and patients.

    A study qualifies if the whole sentence that states the boxed finding is in the tokenised text.
    Words of that sentence are taken in the order finding, side, zone, then by rarity. For a box
    without a sentence, only words of its label that are in the text are taken. Findings take turns,
    the most frequent first; a second study of a patient is selected only when no other patient is
    left. If no study has a usable box, studies without boxes are selected, with their rarest words
    that occur in more than one report.

    Args:
      data: the held-out examples.
      words_of: maps tokens to words, such as `Tokenizer.words`.
      count: of studies, at most.
      words_per_example: of words per study, at most.
      scan: number of examples to search, the first by the hash of their ids.
      skip: positions of examples that are not selected.

    Returns:
      At most `count` studies, a function of the data alone.
    """
    among = [index for index in range(len(data)) if index not in skip]
    order = sorted(among, key=lambda i: hashlib.sha256(data.ids[i].encode()).digest())
    order = order[:scan]
    if not order:
        return []
    tokens, _ = data.tokenize([data.texts[i] for i in order])
    words = {
        index: [(word.casefold(), tuple(positions)) for word, positions in words_of(row)]
        for index, row in zip(order, tokens, strict=True)
    }
    frequency = Counter(name for found in words.values() for name in {word for word, _ in found})
    by_label: dict[str, list[Selected]] = {}
    for index in order:
        for choice in _boxed(index, data.record(index), words[index], frequency):
            by_label.setdefault(choice.label, []).append(
                dataclasses.replace(choice, words=choice.words[:words_per_example])
            )
    if not by_label:
        by_label[""] = [
            Selected(
                index,
                "",
                tuple(rare[:words_per_example]),
                (),
                _sentence_with(rare[0][0], data.texts[index]),
            )
            for index in order
            if (rare := _rarest(words[index], frequency))
        ]
    return _take_turns(data.patients, by_label, count)


def _take_turns(
    patients: Sequence[str], by_label: Mapping[str, list[Selected]], count: int
) -> list[Selected]:
    """Takes from all labels in turn, the most frequent first; new patients before others."""
    chosen: list[Selected] = []
    studies: set[int] = set()
    seen: set[str] = set()
    for new_patients_only in (True, False):
        queues = [
            iter(by_label[label])
            for label in sorted(by_label, key=lambda k: (-len(by_label[k]), k))
        ]
        while queues and len(chosen) < count:
            queue = queues.pop(0)
            for choice in queue:
                patient = patients[choice.index]
                if choice.index in studies or (new_patients_only and patient in seen):
                    continue
                chosen.append(choice)
                studies.add(choice.index)
                seen.add(patient)
                queues.append(queue)
                break
    return chosen


def _boxed(
    index: int, record: Record, words: Sequence[Word], frequency: Counter[str]
) -> Iterator[Selected]:
    """One selection for each boxed finding whose words are in the text."""
    findings: dict[tuple[str, int], list[Corners]] = {}
    for box in record.boxes:
        findings.setdefault((box.label, box.sentence), []).append(box.xyxy)
    for (label, sentence), boxes in findings.items():
        parts = re.findall(r"[a-z0-9]+", label.casefold())
        if 0 <= sentence < len(record.sentences):
            text = record.sentences[sentence][1]
            ordered = _most_specific(_find(text, words), parts, frequency)
        else:
            text = " ".join(parts)
            ordered = [word for word in _rarest(words, frequency) if _names(word[0], parts)]
        if ordered:
            yield Selected(index, label, tuple(ordered), tuple(boxes), text)


def _find(sentence: str, words: Sequence[Word]) -> Sequence[Word]:
    """The consecutive `words` that spell `sentence`, () if there are none.

    Letters are compared instead of words, because the tokenizer may split the words differently.
    """
    wanted = _letters(sentence)
    spelled = [_letters(word) for word, _ in words]
    starts = {start: i for i, start in enumerate(accumulate(map(len, spelled), initial=0))}
    found = "".join(spelled).find(wanted) if wanted else -1
    first, last = starts.get(found), starts.get(found + len(wanted))
    return () if first is None or last is None else words[first:last]


def _sentence_with(word: str, text: str) -> str:
    """The first sentence that holds a word; the whole text if the tokenizer split the word off."""
    wanted = re.compile(rf"\b{re.escape(word)}\b")
    sentences = (normalise(sentence) for sentence in split_sentences(text))
    return next((s for s in sentences if wanted.search(s.casefold())), normalise(text))


def _letters(text: str) -> str:
    return re.sub(r"[\W_]", "", normalise(text).casefold())


def _most_specific(
    words: Sequence[Word], parts: Sequence[str], frequency: Counter[str]
) -> list[Word]:
    """A word of the label, a side, a zone, then all other words, rarest first."""
    rarest = _rarest(words, frequency)
    ordered: list[Word] = []
    # The noun of a label is its last word: "effusion" in "pleural effusion".
    named = [word for part in reversed(parts) for word in rarest if _names(word[0], [part])]
    sides = [word for word in rarest if word[0] in _SIDES]
    zones = [word for word in rarest if word[0] in _ZONES]
    for fitting in (named, sides, zones):
        ordered += [word for word in fitting if word not in ordered][:1]
    return ordered + [word for word in rarest if word not in ordered]


def _rarest(words: Sequence[Word], frequency: Counter[str]) -> list[Word]:
    """First occurrences of content words, rarest first; words of a single report come last."""
    first: dict[str, Word] = {}
    for word in words:
        if len(word[0]) > 2 and word[0].isalpha() and word[0] not in _FUNCTION_WORDS:
            first.setdefault(word[0], word)
    return sorted(first.values(), key=lambda w: (frequency[w[0]] < 2, frequency[w[0]], w[1]))


def _names(word: str, parts: Sequence[str]) -> bool:
    """Whether a word equals a part of a label up to its ending: nodule, nodules, nodular."""
    shared = [max(4, min(len(word), len(part)) - 1) for part in parts]
    return any(
        len(word) >= n and word[:n] == part[:n] for n, part in zip(shared, parts, strict=True)
    )
