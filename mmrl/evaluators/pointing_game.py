"""The pointing game: does a map over the regions of an image peak inside the box of a finding?"""

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np

from mmrl.data.image.images import Geometry, Preprocess
from mmrl.data.text.grounding import Corners, Selected, select_examples
from mmrl.data.text.language import NOT_ENGLISH
from mmrl.data.text.tokenizer import Tokenizer
from mmrl.evaluators import statistics
from mmrl.evaluators.base import Estimate, Evaluator, Figure, HeldOut, Predict, Results, identity
from mmrl.types import InputError
from mmrl.wiring import parse

DRAWN = 6  # studies on the figure


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
      maps: f32[maps, gh, gw], one for each word or sentence; each sums to 1.
      boxes: corners in preprocessed pixels. size: height and width of the preprocessed image.
    """

    patient: str
    label: str
    maps: np.ndarray
    boxes: Sequence[Corners]
    size: tuple[int, int]


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
    protocol: str,
    permutations: int = 5,
    bootstrap: int = 1000,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
) -> Results:
    """Computes how often maps peak inside the boxes; see `Game`.

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
        protocol=protocol,
        values=_values(kept, inside, permutations, bootstrap, seed) if kept else {},
        n=len(kept),
        data=identity(data),
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
    """The values over all studies, then over those of each finding, by frequency."""
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
        rows = _rows(maps, places, exchanged)
        if not label:
            rows.append(("attention_entropy", attention_entropy(maps), None))
        for name, row, chance in rows:
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
) -> list[tuple[str, np.ndarray, float | None]]:
    """(name, f64[maps], chance) for the true boxes and, if there are any, exchanged boxes."""
    margin = 1 - statistics.TIE
    peaks = [weights >= margin * weights.max(axis=(1, 2), keepdims=True) for weights in maps]
    asked = [len(peak) for peak in peaks]
    true = _hits(peaks, inside).astype(float)
    rows: list[tuple[str, np.ndarray, float | None]] = [("accuracy", true, _chance(inside, asked))]
    if exchanged:
        blind = np.mean([_hits(peaks, places) for places in exchanged], axis=0)
        by_chance = float(np.mean([_chance(places, asked) for places in exchanged]))
        rows.append(("accuracy_boxes_permuted", blind, by_chance))
        rows.append(("grounded_gain", true - blind, 0.0))
    return rows


def softmax(scores: np.ndarray, axis: int) -> np.ndarray:
    """Softmax along an axis, computed on the host."""
    powers = np.exp(scores - scores.max(axis=axis, keepdims=True))
    return powers / powers.sum(axis=axis, keepdims=True)


def attention_entropy(maps: Sequence[np.ndarray]) -> np.ndarray:
    """f64[maps of all studies]: entropy of each map, as a share of that of a uniform one."""
    flat = np.concatenate([of_study.reshape(len(of_study), -1) for of_study in maps])
    weights = flat.astype(np.float64) / flat.sum(axis=1, keepdims=True)
    logs = np.log(np.where(weights > 0, weights, 1.0))
    return -(weights * logs).sum(axis=1) / np.log(max(flat.shape[1], 2))


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


class Game(Evaluator):
    """How often a map over the regions peaks inside the boxes of the finding that it is of.

    Subclasses say what the maps are of. A map is a hit if the centre of the region with its
    greatest value lies inside a box. If several regions share the maximum, all must. Chance is the
    share of region centres inside the boxes. Findings have typical locations, so accuracy is also
    measured with the boxes exchanged between patients; `grounded_gain` is the paired difference.
    Studies whose boxes contain no region centre, and those whose text is not English, are excluded
    and counted. Intervals are from a
    bootstrap over patients.

    Values "accuracy", "accuracy_boxes_permuted", "grounded_gain", "attention_entropy" (mean entropy
    of the maps, 1 for uniform ones), and "finding/{name}/..." for each finding. The latter exchange
    boxes among studies of the finding, so that knowing its typical location gives no gain.

    Args:
      predict, data: as for every evaluator; the encoders must have local features.
      count: maximum number of studies, taken from the findings in turn to include rare ones.
      optional: accepts data without boxes and encoders without local features: there are then
        no values, and the summary page gives the reason.
      permutations: how often the boxes are permuted between studies.
      bootstrap: resamples of the patients for the intervals; 0: no intervals.
      seed: seed of the permutations and the resamples.

    Attributes:
      protocol, title: of the results and of the figure.

    Raises:
      InputError: no local features or no study with a stated and boxed finding, unless `optional`;
        options out of range.
    """

    protocol: ClassVar[str]
    title: ClassVar[str]

    def __init__(
        self,
        predict: LocalPredict,
        data: MappedHeldOut,
        *,
        count: int = 400,
        optional: bool = False,
        permutations: int = 5,
        bootstrap: int = 1000,
        seed: int = 0,
        reads: Mapping[str, str] | None = None,
    ) -> None:
        statistics.at_least(1, count=count, permutations=permutations)
        statistics.at_least(0, bootstrap=bootstrap, seed=seed)
        super().__init__(predict, data, reads=reads)
        own = self.protocol.partition("@")[0]
        needed = set(self.names.values())
        self.has_local_features = needed <= set(predict.provides)
        if not (self.has_local_features or optional):
            heads = " and ".join(sorted(parse(name).feature for name in needed))
            raise InputError(
                f"{own} needs {', '.join(sorted(needed))}, the encoders provide "
                f"{', '.join(predict.provides)}; give the towers heads {heads}"
            )
        self.data: MappedHeldOut = data
        self.predict: LocalPredict = predict
        self.preprocess = data.preprocess
        self.permutations, self.bootstrap, self.seed = permutations, bootstrap, seed
        self.chosen: list[Selected] = []
        if self.has_local_features:
            self.chosen = select_examples(
                data, data.tokenizer.words, count=count, skip=data.foreign
            )
        if not (optional or any(choice.boxes for choice in self.chosen)):
            raise InputError(
                f"no report of {data.name} states a finding that has a box ({len(data)} examples); "
                f"{own} needs a source with boxes"
            )

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the regions."""
        return self.predict.grids[parse(self.names["regions"]).tower]

    def options(self) -> dict[str, Any]:
        """Options of the maps, to state in the results."""
        raise NotImplementedError

    def maps(self, state: Any, chosen: Sequence[Selected]) -> list[np.ndarray]:
        """Maps f32[maps, gh, gw] of each study; every map sums to 1."""
        raise NotImplementedError

    def labels(self, choice: Selected) -> list[str]:
        """What the maps of a study are of, for the figure."""
        raise NotImplementedError

    @functools.cached_property
    def _boxes(self) -> dict[int, list[Corners]]:
        """Boxes by index of the study. Cached, because they need the size of every image."""
        size = (self.preprocess.size, self.preprocess.size)
        geometry = self.preprocess.geometry
        return {
            choice.index: mapped_boxes(self.data, choice, geometry, size) for choice in self.chosen
        }

    def run(self, state: Any) -> Results:
        """Evaluates `state`; values as in the class.

        Raises:
          FloatingPointError: a map is not finite.
        """
        chosen = [choice for choice in self.chosen if choice.boxes]
        boxes = [self._boxes[choice.index] for choice in chosen]
        studies = []
        maps = self.maps(state, chosen) if chosen else []
        for choice, of_study, placed in zip(chosen, maps, boxes, strict=True):
            if not np.isfinite(of_study).all():
                raise FloatingPointError(
                    f"attention is not finite, first {self.data.ids[choice.index]}"
                )
            patient, side = self.data.patients[choice.index], self.preprocess.size
            studies.append(Pointed(patient, choice.label, of_study, placed, (side, side)))
        results = judge(
            studies,
            self.data,
            protocol=self.protocol,
            permutations=self.permutations,
            bootstrap=self.bootstrap,
            seed=self.seed,
            options=self.options(),
        )
        more = {"no boxes": len(self.chosen) - len(chosen), NOT_ENGLISH: len(self.data.foreign)}
        excluded = {**results.excluded, **{why: count for why, count in more.items() if count}}
        return dataclasses.replace(results, excluded=excluded)

    def figures(
        self, state: Any, results: Results, history: Sequence[Mapping[str, Any]]
    ) -> list[Figure]:
        """Maps of some studies."""
        file = self.protocol.partition("@")[0].replace("pointing", "attention")
        if not self.has_local_features:
            why = f"The towers do not provide {', '.join(self.names.values())}."
            return [Figure(file, self.title, why)]
        shown = self.chosen[:DRAWN]
        if not shown:
            return [Figure(file, self.title, "No held-out report has a word to show.")]
        from mmrl.reporting import attention

        examples = [
            attention.AttentionExample(
                image=self.data.image(choice.index),
                id=self.data.ids[choice.index],
                text=self.data.texts[choice.index],
                words=list(zip(self.labels(choice), of_study, strict=True)),
                boxes=[(choice.label, box) for box in self._boxes[choice.index]],
            )
            for choice, of_study in zip(shown, self.maps(state, shown), strict=True)
        ]
        caption = "Held-out studies. The frame is the annotated box of the finding, if any."
        draw = functools.partial(attention.attention_grid, examples)
        return [Figure(file, self.title, caption, draw)]
