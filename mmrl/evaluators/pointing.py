"""The pointing game: does a word's attention peak inside the box of the finding it states?"""

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np

from mmrl.data.image.images import Geometry, Preprocess
from mmrl.data.text.grounding import Corners, Selected, select_examples
from mmrl.data.text.tokenizer import Tokenizer
from mmrl.evaluators import statistics
from mmrl.evaluators.base import Estimate, Evaluator, Figure, HeldOut, Predict, Results
from mmrl.types import InputError
from mmrl.wiring import parse

PROTOCOL = "pointing@1"
DRAWN = 6  # studies on the figure

READS = {"regions": "image.regions", "words": "text.words", "word_mask": "text.word_mask"}

# (words f32[W, D], word_mask bool[W], regions f32[R, D]) -> f32[W, R], rows that sum to 1.
Attention = Callable[[np.ndarray, np.ndarray, np.ndarray], Any]


class LocalPredict(Predict, Protocol):
    """Encoders with local features; `grids` holds (rows, columns) of each tower's regions."""

    grids: Mapping[str, tuple[int, int]]


class MappedHeldOut(HeldOut, Protocol):
    """Held-out examples that map words to tokens and original pixels to preprocessed ones."""

    tokenizer: Tokenizer
    preprocess: Preprocess


@dataclasses.dataclass(frozen=True)
class Pointed:
    """One study to evaluate.

    Attributes:
      patient: id. label: the finding, "" if there are no boxes.
      maps: f32[words, gh, gw], the attention of each word.
      boxes: corners in preprocessed pixels. size: height and width of the preprocessed image.
    """

    patient: str
    label: str
    maps: np.ndarray
    boxes: Sequence[Corners]
    size: tuple[int, int]


def word_region_attention(
    words: np.ndarray, word_mask: np.ndarray, regions: np.ndarray, *, temperature: float = 4.0
) -> np.ndarray:
    """Attention of each word over the regions of one image, computed on the host.

    A softmax over the valid *words* of regions @ words.T, multiplied by `temperature`, then a
    softmax over *regions* (GLoRIA, Huang et al. 2021, equations 4-5), as in the local loss.

    Args:
      words: f[W, D]. word_mask: bool[W]. regions: f[R, D].

    Returns:
      f32[W, R]; rows sum to 1. Rows of invalid words are uniform and have no meaning.
    """
    scores = np.asarray(words, np.float32) @ np.asarray(regions, np.float32).T
    if word_mask.any():
        scores = np.where(word_mask[:, None], scores, -np.inf)
    return _softmax(temperature * _softmax(scores, axis=0), axis=1)


def _softmax(scores: np.ndarray, axis: int) -> np.ndarray:
    powers = np.exp(scores - scores.max(axis=axis, keepdims=True))
    return powers / powers.sum(axis=axis, keepdims=True)


def word_maps(
    predict: Predict,
    state: Any,
    data: HeldOut,
    examples: Sequence[Selected],
    *,
    attention: Attention,
    grid: tuple[int, int],
    names: Mapping[str, str] = READS,
) -> list[np.ndarray]:
    """Attention maps f32[words, gh, gw] per example; a word has the mean map of its sub-words.

    Args:
      predict, state: the encoders, with local features.
      data: the held-out examples that `examples` index.
      grid: (rows, columns) of the regions, row by row.
      names: encodings of "regions", "words" and "word_mask".

    Raises:
      ValueError: the local features do not fit the tokens or the grid.
    """
    if not examples:
        return []
    subset = statistics.Subset(data, [example.index for example in examples])
    encoded = predict.encode(state, subset, list(names.values()))
    regions = statistics.require_present(encoded, names["regions"], subset)  # N R D
    words, word_mask = encoded[names["words"]], encoded[names["word_mask"]]
    length = subset.tokenize(subset.texts[:1])[0].shape[1]
    if words.shape[1] != length:
        raise ValueError(f"text.words has {words.shape[1]} places for {length} tokens")
    if regions.shape[1] != grid[0] * grid[1]:
        raise ValueError(f"image.regions has {regions.shape[1]} regions, the grid is {grid}")
    maps = []
    for row, example in enumerate(examples):
        weights = np.asarray(attention(words[row], word_mask[row], regions[row]), np.float32)
        of_words = [weights[list(positions)].mean(axis=0) for _, positions in example.words]
        maps.append(np.stack(of_words).reshape(-1, *grid))
    return maps


def mapped_boxes(
    data: HeldOut,
    example: Selected,
    geometry: Callable[[int, int], Geometry],
    size: tuple[int, int],
) -> list[Corners]:
    """Boxes in preprocessed pixels, clipped to the image; boxes outside the image are dropped.

    Boxes are assumed to belong to the record's first image.

    Args:
      geometry: (height, width) of an original image -> its map to preprocessed pixels.
      size: (height, width) of the preprocessed image.
    """
    if not example.boxes:
        return []
    height, width = data.record(example.index).images[0].load().shape[:2]
    mapped = geometry(height, width).boxes(np.array(example.boxes))
    limits = [size[1], size[0], size[1], size[0]]
    inside = [np.clip(box, 0, limits).tolist() for box in mapped]
    return [(x0, y0, x1, y1) for x0, y0, x1, y1 in inside if x1 > x0 and y1 > y0]


def judge(
    studies: Sequence[Pointed],
    data: HeldOut,
    *,
    permutations: int = 5,
    bootstrap: int = 1000,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
) -> Results:
    """Computes how often attention peaks inside the boxes; see `Pointing`.

    Args:
      studies: with their attention maps and boxes.
      data: the held-out data, whose name and digest go into the results.
      permutations: of the boxes. bootstrap: draws for the intervals; 0 gives none.
      seed: of the permutations and the bootstrap.
      options: further options to state in the results.
    """
    excluded: Counter[str] = Counter()
    kept, inside = _countable(studies, excluded)
    asked = [len(study.maps) for study in kept]
    areas = [_box_share(study) for study in kept]
    return Results(
        protocol=PROTOCOL,
        values=_values(kept, inside, permutations, bootstrap, seed) if kept else {},
        n=len(kept),
        data={"name": data.name, "sha256": data.sha256},
        preprocessing=data.preprocessing,
        excluded=dict(excluded),
        details={
            "studies": len(kept),
            "words": sum(asked),
            "grid": list(studies[0].maps.shape[1:]) if studies else [],
            # Chance is computed from region centres; this is the share of pixels.
            "box_area_share": float(np.repeat(areas, asked).mean()) if kept else None,
            # With uniform attention all regions are tied, which counts as a miss.
            "constant_predictor": {"accuracy": 0.0},
            "ties": f"within a relative {statistics.TIE:g}; a miss unless all are inside",
            "options": {
                **(options or {}),
                "permutations": permutations,
                "bootstrap": bootstrap,
                "seed": seed,
            },
        },
    )


def _values(
    studies: Sequence[Pointed],
    inside: Sequence[np.ndarray],
    permutations: int,
    bootstrap: int,
    seed: int,
) -> dict[str, Estimate]:
    """The three values over all studies, then over those of each finding, by frequency."""
    labels = [study.label for study in studies]
    values: dict[str, Estimate] = {}
    for label in ("", *(name for name, _ in Counter(labels).most_common())):
        among = [i for i, of_study in enumerate(labels) if label in ("", of_study)]
        owners = [studies[i].patient for i in among]
        # Boxes are exchanged within a finding, because box sizes differ between findings.
        rng = statistics.generator(seed, "boxes", *([label] if label else []))
        foreign = [
            [among[i] for i in statistics.permutation_between_patients(owners, rng)]
            for _ in range(permutations if len(set(owners)) > 1 else 0)
        ]
        maps, places = [studies[i].maps for i in among], [inside[i] for i in among]
        exchanged = [[inside[i] for i in order] for order in foreign]
        for name, row, chance in _rows(maps, places, exchanged):
            values[f"finding/{label}/{name}" if label else name] = statistics.estimate(
                row,
                np.repeat(owners, [len(of_study) for of_study in maps]),
                chance=chance,
                samples=bootstrap,
                seed=seed,
            )
    return values


def _rows(
    maps: Sequence[np.ndarray],
    inside: Sequence[np.ndarray],
    exchanged: Sequence[Sequence[np.ndarray]],
) -> list[tuple[str, np.ndarray, float]]:
    """(name, f64[words], chance) for the true boxes and, if there are any, exchanged boxes."""
    margin = 1 - statistics.TIE
    peaks = [weights >= margin * weights.max(axis=(1, 2), keepdims=True) for weights in maps]
    asked = [len(peak) for peak in peaks]
    true = _hits(peaks, inside).astype(float)
    rows = [("accuracy", true, _chance(inside, asked))]
    if exchanged:
        blind = np.mean([_hits(peaks, places) for places in exchanged], axis=0)
        by_chance = float(np.mean([_chance(places, asked) for places in exchanged]))
        rows.append(("accuracy_boxes_permuted", blind, by_chance))
        rows.append(("grounded_gain", true - blind, 0.0))
    return rows


def _chance(inside: Sequence[np.ndarray], asked: Sequence[int]) -> float:
    """Chance of a uniformly random region: share of centres in the boxes, mean over words."""
    return float(np.repeat([centres.mean() for centres in inside], asked).mean())


def _countable(
    studies: Sequence[Pointed], excluded: Counter[str]
) -> tuple[list[Pointed], list[np.ndarray]]:
    """The studies that can be evaluated, each with bool[gh, gw]: region centres in its boxes.

    Counts the others in `excluded` by reason.
    """
    kept, inside = [], []
    for study in studies:
        if not study.boxes:
            excluded["no boxes"] += 1
            continue
        centres = _centres_inside(study)
        if not centres.any():
            excluded["no region centre inside the boxes"] += 1
            continue
        kept.append(study)
        inside.append(centres)
    return kept, inside


def _hits(peaks: Sequence[np.ndarray], inside: Sequence[np.ndarray]) -> np.ndarray:
    """bool[words of all studies]: whether all peaks bool[words, gh, gw] lie inside."""
    return np.concatenate(
        [(within | ~peak).all(axis=(1, 2)) for peak, within in zip(peaks, inside, strict=True)]
    )


def _centres_inside(study: Pointed) -> np.ndarray:
    """bool[gh, gw]: which regions have their centre inside a box."""
    return _covered(study, *study.maps.shape[1:])


def _box_share(study: Pointed) -> float:
    """Share of the pixels of the image whose centre lies inside a box."""
    return float(_covered(study, *study.size).mean())


def _covered(study: Pointed, rows: int, columns: int) -> np.ndarray:
    """bool[rows, columns]: which cells of an even grid have their centre inside a box."""
    y = (np.arange(rows)[:, None] + 0.5) * study.size[0] / rows
    x = (np.arange(columns)[None] + 0.5) * study.size[1] / columns
    inside = np.zeros((rows, columns), bool)
    for x0, y0, x1, y1 in study.boxes:
        inside |= (x0 <= x) & (x < x1) & (y0 <= y) & (y < y1)
    return inside


class Pointing(Evaluator):
    """How often a word's attention peaks inside the boxes of the finding it states.

    The items are words, up to two per study, of the sentence that states the finding; words for
    its name, side and zone come first. A word is a hit if the centre of the region with the
    greatest attention lies inside a box. If several regions share the maximum, all must. Chance is
    the share of region centres inside the boxes. Findings have typical locations, so accuracy is
    also measured with the boxes exchanged between patients; `grounded_gain` is the paired
    difference. Studies whose boxes contain no region centre are excluded and counted. Intervals
    are from a bootstrap over patients.

    Protocol "pointing@1"; values "accuracy", "accuracy_boxes_permuted", "grounded_gain", and
    "finding/{name}/..." for each finding. The latter exchange boxes among studies of the finding,
    so that knowing its typical location gives no gain.

    Args:
      predict, data: as for every evaluator; the encoders must have local features.
      temperature: inverse temperature of the attention over regions; 4.0 is the default of the
        local loss.
      count: maximum number of studies, taken from the findings in turn to include rare ones.
      optional: accepts data without boxes and encoders without local features: there are then
        no values, and the summary page gives the reason.
      permutations: how often the boxes are permuted between studies.
      bootstrap: resamples of the patients for the intervals; 0: no intervals.
      seed: seed of the permutations and the resamples.

    Raises:
      InputError: no local features or no study with a stated and boxed finding, unless `optional`;
        options out of range.
    """

    reads: ClassVar[Mapping[str, str]] = READS
    headline: ClassVar[Mapping[str, str]] = {
        "accuracy": "attention of a word peaks inside the box of its finding",
        "grounded_gain": "accuracy minus accuracy with boxes of other patients",
    }

    def __init__(
        self,
        predict: LocalPredict,
        data: MappedHeldOut,
        *,
        temperature: float = 4.0,
        count: int = 400,
        optional: bool = False,
        permutations: int = 5,
        bootstrap: int = 1000,
        seed: int = 0,
        reads: Mapping[str, str] | None = None,
    ) -> None:
        statistics.at_least(1, count=count, permutations=permutations)
        statistics.at_least(0, bootstrap=bootstrap, seed=seed)
        if not temperature > 0:
            raise InputError(f"temperature is {temperature}, expected a number above 0")
        super().__init__(predict, data, reads=reads)
        needed = set(self.names.values())
        self.has_local_features = needed <= set(predict.provides)
        if not (self.has_local_features or optional):
            raise InputError(
                f"pointing needs {', '.join(sorted(needed))}, the encoders provide "
                f"{', '.join(predict.provides)}; give the towers heads regions and words"
            )
        self.data: MappedHeldOut = data
        self.predict: LocalPredict = predict
        self.preprocess = data.preprocess
        self.temperature, self.permutations = temperature, permutations
        self.bootstrap, self.seed = bootstrap, seed
        self.chosen: list[Selected] = []
        if self.has_local_features:
            self.chosen = select_examples(data, data.tokenizer.words, count=count)
        if not (optional or any(choice.boxes for choice in self.chosen)):
            raise InputError(
                f"no report of {data.name} states a finding that has a box ({len(data)} examples); "
                "pointing needs a source with boxes"
            )

    @functools.cached_property
    def _boxes(self) -> dict[int, list[Corners]]:
        """Boxes by index of the study. Cached, because they need the size of every image."""
        size = (self.preprocess.size, self.preprocess.size)
        geometry = self.preprocess.geometry
        return {
            choice.index: mapped_boxes(self.data, choice, geometry, size) for choice in self.chosen
        }

    def _maps(self, state: Any, chosen: Sequence[Selected]) -> list[np.ndarray]:
        attention = functools.partial(word_region_attention, temperature=self.temperature)
        return word_maps(
            self.predict,
            state,
            self.data,
            chosen,
            attention=attention,
            grid=self.predict.grids[parse(self.names["regions"]).tower],
            names=self.names,
        )

    def run(self, state: Any) -> Results:
        """Evaluates `state`; values as in the class.

        Raises:
          FloatingPointError: an attention map is not finite.
        """
        chosen = [choice for choice in self.chosen if choice.boxes]
        boxes = [self._boxes[choice.index] for choice in chosen]
        studies = []
        for choice, of_words, placed in zip(chosen, self._maps(state, chosen), boxes, strict=True):
            if not np.isfinite(of_words).all():
                raise FloatingPointError(
                    f"attention is not finite, first {self.data.ids[choice.index]}"
                )
            patient, side = self.data.patients[choice.index], self.preprocess.size
            studies.append(Pointed(patient, choice.label, of_words, placed, (side, side)))
        results = judge(
            studies,
            self.data,
            permutations=self.permutations,
            bootstrap=self.bootstrap,
            seed=self.seed,
            options={"temperature": self.temperature},
        )
        if without := len(self.chosen) - len(chosen):
            excluded = {**results.excluded, "no boxes": without}
            results = dataclasses.replace(results, excluded=excluded)
        return results

    def figures(
        self, state: Any, results: Results, history: Sequence[Mapping[str, Any]]
    ) -> list[Figure]:
        """Attention maps of some studies."""
        title = "Attention of words over regions"
        if not self.has_local_features:
            why = f"The towers do not provide {', '.join(self.names.values())}."
            return [Figure("attention", title, why)]
        shown = self.chosen[:DRAWN]
        if not shown:
            return [Figure("attention", title, "No held-out report has a word to show.")]
        from mmrl.reporting import attention

        examples = [
            attention.AttentionExample(
                image=self.data.image(choice.index)[..., 0],
                id=self.data.ids[choice.index],
                text=self.data.texts[choice.index],
                words=[(word, m) for (word, _), m in zip(choice.words, of_words, strict=True)],
                boxes=[(choice.label, box) for box in self._boxes[choice.index]],
            )
            for choice, of_words in zip(shown, self._maps(state, shown), strict=True)
        ]
        caption = "Held-out studies. The frame is the annotated box of the finding, if any."
        draw = functools.partial(attention.attention_grid, examples)
        return [Figure("attention", title, caption, draw)]
