"""Where words look: held-out examples, their word-to-region maps, and how often maps point right.

`select_examples`, then `attend`, then `figures.attention_grid` and `pointing`.
"""

import dataclasses
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from mmrl.data.images import Geometry
from mmrl.data.reports import normalise
from mmrl.evaluators import statistics
from mmrl.evaluators.base import HeldOut, Predict, Results
from mmrl.types import Record

PROTOCOL = "pointing@1"

# tokens i32[L] -> (word, its token positions), in reading order.
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


@dataclasses.dataclass(frozen=True)
class Selected:
    """One study to look at: the words to ask for and the boxes of the finding they state.

    Attributes:
      index: position in the held-out data.
      label: the boxed finding, "" without boxes.
      words: (word, positions of its tokens) pairs, most telling first.
      boxes: (x0, y0, x1, y1) in pixels of the original image.
    """

    index: int
    label: str
    words: tuple[Word, ...]
    boxes: tuple[Corners, ...]


@dataclasses.dataclass(frozen=True)
class AttentionExample:
    """One study with its maps, ready to draw.

    Attributes:
      image: u8[H, W], preprocessed.
      id, patient, text: of the example.
      words: (word, attention f32[gh, gw] that sums to 1) pairs.
      boxes: (label, (x0, y0, x1, y1) in preprocessed pixels, clipped to the image) pairs.
    """

    image: np.ndarray
    id: str
    patient: str
    text: str
    words: list[tuple[str, np.ndarray]]
    boxes: list[tuple[str, Corners]]


def select_examples(
    data: HeldOut,
    words_of: WordsOf,
    *,
    count: int = 6,
    words_per_example: int = 2,
    scan: int = 2000,
) -> list[Selected]:
    """Chooses studies with boxed findings, spread over findings and patients.

    A study qualifies when the sentence that states the boxed finding is found, whole, in the
    tokenised text; its words are taken in the order finding, side, zone, rarest. A box without
    a sentence needs a word of its label in the text, and only such words are taken. Findings
    take turns, the commonest first; a patient returns only when no other is left. When no study
    has a usable box, studies without boxes are chosen and their rarest words that are not unique.

    Args:
      data: the held-out examples.
      words_of: maps tokens to words, such as `Tokenizer.words`.
      count: of studies, at most.
      words_per_example: of words per study, at most.
      scan: how many examples to look through, the first by the hash of their ids.

    Returns:
      At most `count` choices; the same for the same data.
    """
    order = sorted(range(len(data)), key=lambda i: hashlib.sha256(data.ids[i].encode()).digest())
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
            Selected(index, "", tuple(rare[:words_per_example]), ())
            for index in order
            if (rare := _rarest(words[index], frequency))
        ]
    return _take_turns(data.patients, by_label, count)


def _take_turns(
    patients: Sequence[str], by_label: Mapping[str, list[Selected]], count: int
) -> list[Selected]:
    """Labels take turns, the commonest first, with new patients while there are any."""
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
    """One choice per boxed finding whose words are found in the text."""
    findings: dict[tuple[str, int], list[Corners]] = {}
    for box in record.boxes:
        findings.setdefault((box.label, box.sentence), []).append(box.xyxy)
    for (label, sentence), boxes in findings.items():
        parts = re.findall(r"[a-z0-9]+", label.casefold())
        if 0 <= sentence < len(record.sentences):
            stated = _find(record.sentences[sentence][1], words)
            ordered = _most_telling(stated, parts, frequency)
        else:
            ordered = [word for word in _rarest(words, frequency) if _names(word[0], parts)]
        if ordered:
            yield Selected(index, label, tuple(ordered), tuple(boxes))


def _find(sentence: str, words: Sequence[Word]) -> Sequence[Word]:
    """The run of `words` that spells `sentence`, empty when there is none.

    Letters are compared, not words: the tokenizer need not cut words where the sentence does.
    """
    wanted = _letters(sentence)
    spelled = [_letters(word) for word, _ in words]
    starts = {start: i for i, start in enumerate(accumulate(map(len, spelled), initial=0))}
    found = "".join(spelled).find(wanted) if wanted else -1
    first, last = starts.get(found), starts.get(found + len(wanted))
    return () if first is None or last is None else words[first:last]


def _letters(text: str) -> str:
    return re.sub(r"[\W_]", "", normalise(text).casefold())


def _most_telling(
    words: Sequence[Word], parts: Sequence[str], frequency: Counter[str]
) -> list[Word]:
    """The finding's own word, a side, a zone, then the rest of its words, rarest first."""
    rarest = _rarest(words, frequency)
    ordered: list[Word] = []
    # English puts the noun last: of "pleural effusion", effusion.
    named = [word for part in reversed(parts) for word in rarest if _names(word[0], [part])]
    sides = [word for word in rarest if word[0] in _SIDES]
    zones = [word for word in rarest if word[0] in _ZONES]
    for fitting in (named, sides, zones):
        ordered += [word for word in fitting if word not in ordered][:1]
    return ordered + [word for word in rarest if word not in ordered]


def _rarest(words: Sequence[Word], frequency: Counter[str]) -> list[Word]:
    """First occurrences of content words; rarest first, but those of one report only last."""
    first: dict[str, Word] = {}
    for word in words:
        if len(word[0]) > 2 and word[0].isalpha() and word[0] not in _FUNCTION_WORDS:
            first.setdefault(word[0], word)
    return sorted(first.values(), key=lambda w: (frequency[w[0]] < 2, frequency[w[0]], w[1]))


def _names(word: str, parts: Sequence[str]) -> bool:
    """Whether a word is one of a label's parts but for its ending: nodule, nodules, nodular."""
    shared = [max(4, min(len(word), len(part)) - 1) for part in parts]
    return any(
        len(word) >= n and word[:n] == part[:n] for n, part in zip(shared, parts, strict=True)
    )


def attend(
    predict: Predict,
    state: Any,
    data: HeldOut,
    examples: Sequence[Selected],
    *,
    attention: Callable[[np.ndarray, np.ndarray, np.ndarray], Any],
    grid: tuple[int, int],
    geometry: Callable[[int, int], Geometry],
) -> list[AttentionExample]:
    """Attention maps of the selected words; a word of several sub-words gets their mean.

    Boxes are taken to belong to the record's first image, the one trained on by default.

    Args:
      predict, state: the encoders; they must offer local features.
      data: the held-out examples that `examples` index.
      examples: from `select_examples`.
      attention: (words f32[W, D], word_mask bool[W], regions f32[R, D]) -> f32[W, R], rows
        that sum to 1.
      grid: (rows, columns) of the regions, row by row.
      geometry: (height, width) of an original image -> its map to preprocessed pixels.

    Raises:
      ValueError: local features that do not fit the tokens or the grid.
    """
    if not examples:
        return []
    subset = statistics.Subset(data, [example.index for example in examples])
    regions = predict.images(state, subset, local=True)["image.regions"]  # N R D
    encoded = predict.texts(state, subset, subset.texts, local=True)
    words, word_mask = encoded["text.words"], encoded["text.word_mask"]
    length = subset.tokenize(subset.texts)[0].shape[1]
    if words.shape[1] != length:
        raise ValueError(f"text.words has {words.shape[1]} places for {length} tokens")
    if regions.shape[1] != grid[0] * grid[1]:
        raise ValueError(f"image.regions has {regions.shape[1]} regions, the grid is {grid}")
    attended = []
    for row, example in enumerate(examples):
        weights = np.asarray(attention(words[row], word_mask[row], regions[row]), np.float32)
        image = subset.image(row)[..., 0]
        attended.append(
            AttentionExample(
                image=image,
                id=subset.ids[row],
                patient=subset.patients[row],
                text=subset.texts[row],
                words=[
                    (word, weights[list(positions)].mean(axis=0).reshape(grid))
                    for word, positions in example.words
                ],
                boxes=_mapped_boxes(example, subset.record(row), image.shape, geometry),
            )
        )
    return attended


def _mapped_boxes(
    example: Selected,
    record: Record,
    shape: tuple[int, ...],
    geometry: Callable[[int, int], Geometry],
) -> list[tuple[str, Corners]]:
    """The boxes in preprocessed pixels; those wholly outside the image are left out."""
    if not example.boxes:
        return []
    height, width = record.images[0].load().shape[:2]
    mapped = geometry(height, width).boxes(np.array(example.boxes))
    limits = [shape[1], shape[0], shape[1], shape[0]]
    inside = [np.clip(box, 0, limits).tolist() for box in mapped]
    return [(example.label, (x0, y0, x1, y1)) for x0, y0, x1, y1 in inside if x1 > x0 and y1 > y0]


def pointing(
    examples: Sequence[AttentionExample],
    data: HeldOut,
    *,
    permutations: int = 5,
    bootstrap: int = 1000,
    seed: int = 0,
) -> Results:
    """How often a word's attention peaks inside the boxes of the finding it states.

    Counted over words. A hit needs the centre of the region with the greatest attention to lie
    inside a box; when several regions share the maximum, all of them must. Chance is the share
    of region centres inside the boxes, what looking anywhere would reach. Since findings have
    habitual places, the boxes are also exchanged between patients; the paired difference is
    `grounded_gain`. Studies whose boxes are missing, or slip between the region centres, are
    excluded and counted; without any other study, there are no values.

    Args:
      examples: from `attend`.
      data: the held-out data, to name it in the results.
      permutations: of the boxes.
      bootstrap: draws for the intervals; 0 gives none.
      seed: of the permutations and the bootstrap.
    """
    excluded: Counter[str] = Counter()
    peaks, inside, owners = _countable(examples, excluded)
    values = {}
    if peaks:
        rng = statistics.generator(seed, "boxes")
        foreign = [
            _hits(peaks, [inside[i] for i in statistics.permutation_between_patients(owners, rng)])
            for _ in range(permutations)
        ]
        asked = [len(peak) for peak in peaks]
        chance = float(np.repeat([centres.mean() for centres in inside], asked).mean())
        true, blind = _hits(peaks, inside).astype(float), np.mean(foreign, axis=0)
        rows = {
            "accuracy": (true, chance),
            "accuracy_boxes_permuted": (blind, chance),
            "grounded_gain": (true - blind, 0.0),
        }
        patients = np.repeat(owners, asked)
        values = {
            name: statistics.estimate(row, patients, chance=by_chance, samples=bootstrap, seed=seed)
            for name, (row, by_chance) in rows.items()
        }
    return Results(
        protocol=PROTOCOL,
        values=values,
        n=len(peaks),
        data={"name": data.name, "sha256": data.sha256},
        preprocessing=data.preprocessing,
        excluded=dict(excluded),
        details={
            "studies": len(peaks),
            "words": sum(len(peak) for peak in peaks),
            "grid": list(examples[0].words[0][1].shape) if examples else [],
            "options": {"permutations": permutations, "bootstrap": bootstrap, "seed": seed},
        },
    )


def _countable(
    examples: Sequence[AttentionExample], excluded: Counter[str]
) -> tuple[list[np.ndarray], list[np.ndarray], list[str]]:
    """Peaks bool[words, gh, gw], region centres in boxes bool[gh, gw] and patients, per study.

    Studies that cannot be judged are counted in `excluded` by their reason.
    """
    peaks, inside, owners = [], [], []
    for example in examples:
        if not example.boxes:
            excluded["no boxes"] += 1
            continue
        centres = _centres_inside(example)
        if not centres.any():
            excluded["no region centre inside the boxes"] += 1
            continue
        maps = np.stack([weights for _, weights in example.words])
        peaks.append(maps >= maps.max(axis=(1, 2), keepdims=True))
        inside.append(centres)
        owners.append(example.patient)
    return peaks, inside, owners


def _hits(peaks: Sequence[np.ndarray], inside: Sequence[np.ndarray]) -> np.ndarray:
    """bool[words of all studies]: whether all peaks bool[words, gh, gw] lie inside."""
    return np.concatenate(
        [(within | ~peak).all(axis=(1, 2)) for peak, within in zip(peaks, inside, strict=True)]
    )


def _centres_inside(example: AttentionExample) -> np.ndarray:
    """bool[gh, gw]: which regions have their centre inside a box."""
    rows, columns = example.words[0][1].shape
    y = (np.arange(rows)[:, None] + 0.5) * example.image.shape[0] / rows
    x = (np.arange(columns)[None] + 0.5) * example.image.shape[1] / columns
    inside = np.zeros((rows, columns), bool)
    for _, (x0, y0, x1, y1) in example.boxes:
        inside |= (x0 <= x) & (x < x1) & (y0 <= y) & (y < y1)
    return inside
