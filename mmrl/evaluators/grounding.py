"""Phrase grounding: is a phrase more similar to the regions inside its boxes than to the others?"""

import dataclasses
import functools
import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
from scipy import ndimage

from mmrl.data.image.images import Geometry, Preprocess
from mmrl.data.text.grounding import Corners
from mmrl.evaluators import metrics, statistics
from mmrl.evaluators.base import Evaluator, Figure, HeldOut, Predict, Results, identity
from mmrl.evaluators.subgroups import subgroups
from mmrl.types import InputError
from mmrl.wiring import parse

PROTOCOL = "grounding@1"
METRICS = ("cnr", "miou", "pointing")
DRAWN = 6  # phrases on the figure


class RegionPredict(Predict, Protocol):
    """Encoders with local features; `grids` holds (rows, columns) of each tower's regions."""

    grids: Mapping[str, tuple[int, int]]

    def stream(
        self, state: Any, data: Any, names: Sequence[str]
    ) -> Iterator[dict[str, np.ndarray]]:
        """As `encode`, one block of rows after the other; keeps nothing."""


class PlacedHeldOut(HeldOut, Protocol):
    """Held-out examples that map original pixels to preprocessed ones."""

    preprocess: Preprocess


@dataclasses.dataclass(frozen=True)
class Phrase:
    """A phrase of an image, with all its boxes.

    Attributes:
      index: position of the image in the held-out data.
      text: what is encoded.
      labels: names of the findings of its boxes, sorted.
      boxes: corners in pixels of the original image.
      stated: whether `text` is a sentence of the record; else it stands for a label.
    """

    index: int
    text: str
    labels: tuple[str, ...]
    boxes: tuple[Corners, ...]
    stated: bool


class Frame(NamedTuple):
    """The pixels of an original image in each region of the encoder.

    A region is a cell of an even grid over the preprocessed square. The arrays are [gh, gw].

    Attributes:
      inside, outside: i64, number of pixels inside and outside the boxes of a phrase.
      centre: bool, whether the centre of the region lies inside a box.
    """

    inside: np.ndarray
    outside: np.ndarray
    centre: np.ndarray


def cells(
    height: int, width: int, geometry: Geometry, size: int, grid: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """The row of regions of each pixel row, and the column of regions of each pixel column.

    A pixel belongs to the region that holds its centre, which is how the nearest region is found.

    Args:
      height, width: of the original image. geometry: maps its pixels to the square.
      size: side of the square. grid: rows and columns of regions.

    Returns:
      (i64[height], i64[width]); -1 outside the square.
    """
    found = []
    for count, scale, offset, regions in (
        (height, geometry.scale_y, geometry.offset_y, grid[0]),
        (width, geometry.scale_x, geometry.offset_x, grid[1]),
    ):
        place = (np.arange(count) + 0.5) * scale + offset
        within = (place >= 0) & (place < size)
        found.append(np.where(within, np.floor(place * regions / size), -1).astype(np.int64))
    return found[0], found[1]


def heat_map(
    regions: np.ndarray, height: int, width: int, geometry: Geometry, size: int
) -> np.ndarray:
    """A map over regions in the pixels of the original image, the nearest region for each pixel.

    Args:
      regions: f[gh, gw]. others: as of `cells`.

    Returns:
      f64[height, width]; NaN for pixels that the encoder did not see.
    """
    gh, gw = regions.shape
    rows, columns = cells(height, width, geometry, size, (gh, gw))
    heat = np.asarray(regions, np.float64)[rows[:, None], columns]
    heat[rows < 0] = np.nan
    heat[:, columns < 0] = np.nan
    return heat


def box_mask(boxes: Sequence[Corners], height: int, width: int) -> np.ndarray:
    """bool[height, width]: the union of the boxes; each holds the pixels whose centre is in it."""
    y, x = np.arange(height)[:, None] + 0.5, np.arange(width) + 0.5
    inside = np.zeros((height, width), bool)
    for x0, y0, x1, y1 in boxes:
        inside |= (x0 <= x) & (x < x1) & (y0 <= y) & (y < y1)
    return inside


def frame(
    boxes: Sequence[Corners],
    height: int,
    width: int,
    geometry: Geometry,
    size: int,
    grid: tuple[int, int],
) -> Frame:
    """Counts the pixels of an image by region and by whether a box holds them."""
    rows, columns = cells(height, width, geometry, size, grid)
    mask = box_mask(boxes, height, width)
    # Sums over the rows of each region, then over its columns.
    by_row = np.zeros((grid[0], width), np.int64)
    np.add.at(by_row, rows[rows >= 0], mask[rows >= 0])
    inside = np.zeros((grid[1], grid[0]), np.int64)
    np.add.at(inside, columns[columns >= 0], by_row.T[columns >= 0])
    pixels = np.outer(
        np.bincount(rows[rows >= 0], minlength=grid[0]),
        np.bincount(columns[columns >= 0], minlength=grid[1]),
    )
    y = ((np.arange(grid[0]) + 0.5) * size / grid[0] - geometry.offset_y) / geometry.scale_y
    x = ((np.arange(grid[1]) + 0.5) * size / grid[1] - geometry.offset_x) / geometry.scale_x
    centre = np.zeros(grid, bool)
    for x0, y0, x1, y1 in boxes:
        centre |= np.outer((y0 <= y) & (y < y1), (x0 <= x) & (x < x1))
    return Frame(inside.T, pixels - inside.T, centre)


def judged(maps: np.ndarray, frames: Frame, thresholds: Sequence[float]) -> dict[str, np.ndarray]:
    """The metrics of maps, from the pixels that they hold.

    A map whose values differ by at most `statistics.TIE` is constant. A map points into the boxes
    if the centres of all regions with its greatest value lie in them; only regions that hold pixels
    of the image count.

    Args:
      maps: f[N, gh, gw]. frames: arrays [N, gh, gw]. thresholds: of the IoU.

    Returns:
      "cnr", "miou" and "pointing" of each map, f64[N]. NaN where the contrast is infinite.
    """
    count = len(maps)
    values = np.asarray(maps, np.float64).reshape(count, -1)
    inside, outside, centre = (part.reshape(count, -1) for part in frames)
    seen = inside + outside > 0
    greatest = np.where(seen, values, -np.inf).max(axis=1, keepdims=True)
    least = np.where(seen, values, np.inf).min(axis=1, keepdims=True)
    values = np.where(greatest - least <= statistics.TIE, greatest, values)
    contrast = metrics.cell_contrast(values, inside, outside)
    peaks = seen & (values >= greatest - statistics.TIE)
    return {
        "cnr": np.where(np.isfinite(contrast), contrast, np.nan),
        "miou": metrics.cell_iou(values, inside, outside, thresholds=thresholds),
        "pointing": (centre | ~peaks).all(axis=1).astype(float),
    }


class Grounding(Evaluator):
    """How well the similarity of a phrase to the regions of an image finds the boxes of the phrase.

    The map of a phrase is its cosine with every region, smoothed by a Gaussian, and the nearest
    region for each pixel of the original image; pixels that the encoder did not see are left out
    (BioViL, Boecking et al. 2022, section 4.2). The phrase is the sentence that states a box, or
    else words for its label. Boxes with the same image and phrase are merged, and their phrase
    counts in the class of each of their labels. A value is the mean over classes of the mean over
    the phrases of each class. Intervals are from a bootstrap over patients. Protocol "grounding@1".

    Values: "cnr" (contrast-to-noise ratio, signed), "miou" (mean intersection over union of the
    thresholded map) and "pointing" (share of maps whose greatest value is in the boxes). Each is
    followed by rows that do not see the image: "NAME_images_permuted" with the image of another
    patient, "NAME_boxes_permuted" with the boxes of another patient of the same class,
    "NAME_constant_map" with a map of 1 everywhere, and "NAME_prior_map" with the mean place of the
    boxes of the class in other patients. "NAME_gain" is the paired difference to the permuted
    images, and "NAME_gain_over_prior" that to the prior map. "class/LABEL/NAME" and
    "subgroup/GROUP/NAME" follow.

    Args:
      predict, data: as for every evaluator; records need boxes.
      prompts: label -> phrase, for boxes without a sentence; by default the words of the label.
      sentences: whether sentences that state a box are its phrase; False: labels only.
      sigma: standard deviation of the Gaussian, in regions; 0: none.
      thresholds: of the cosine, over which the intersection over union is averaged.
      count: maximum number of images, the first by the hash of their ids.
      permutations: how often images and boxes are permuted between patients.
      bootstrap: resamples of the patients for the intervals; 0: no intervals.
      seed: seed of the permutations and the resamples.

    Raises:
      InputError: no box, features that the encoders lack, or options out of range.
    """

    reads: ClassVar[Mapping[str, str]] = {"regions": "image.regions", "phrases": "text.sentence"}
    prompted: ClassVar[tuple[str, ...]] = ("phrases",)
    headline: ClassVar[Mapping[str, str]] = {
        "cnr": "contrast between the boxes of a phrase and the rest of the image",
        "miou": "overlap of the map of a phrase with its boxes",
        "pointing": "the map of a phrase is greatest inside its boxes",
    }

    def __init__(
        self,
        predict: RegionPredict,
        data: PlacedHeldOut,
        *,
        prompts: Mapping[str, str] | None = None,
        sentences: bool = True,
        sigma: float = 1.5,
        thresholds: Sequence[float] = (0.1, 0.2, 0.3, 0.4, 0.5),
        count: int = 2000,
        permutations: int = 5,
        bootstrap: int = 1000,
        seed: int = 0,
        reads: Mapping[str, str] | None = None,
    ) -> None:
        statistics.at_least(1, count=count, permutations=permutations)
        statistics.at_least(0, bootstrap=bootstrap, seed=seed)
        if not 0 <= sigma < math.inf:
            raise InputError(f"sigma is {sigma}, expected a number from 0 up")
        if not thresholds or not all(0 <= one < 1 for one in thresholds):
            raise InputError(f"thresholds are {thresholds}, expected numbers from 0 to below 1")
        super().__init__(predict, data, reads=reads)
        lacking = sorted(set(self.names.values()) - set(predict.provides))
        if lacking:
            raise InputError(
                f"grounding needs {', '.join(lacking)}, the encoders provide "
                f"{', '.join(predict.provides)}; give the towers these heads, or redirect reads"
            )
        self.predict: RegionPredict = predict
        self.data: PlacedHeldOut = data
        self.prompts, self.sentences = dict(prompts or {}), sentences
        self.sigma, self.thresholds = float(sigma), tuple(map(float, thresholds))
        self.permutations, self.bootstrap, self.seed = permutations, bootstrap, seed
        self.excluded: Counter[str] = Counter()
        self.phrases = self._phrases(count)
        if not self.phrases:
            raise InputError(
                f"no record of {data.name} has a box ({len(data)} examples); grounding needs a "
                "source with boxes"
            )

    def _phrases(self, count: int) -> list[Phrase]:
        """The phrases of at most `count` images, in the order of the held-out data."""
        data = self.data
        images: dict[tuple[str, str], int] = {}
        merged: dict[tuple[int, str], tuple[set[str], list[Corners], bool]] = {}
        order = sorted(
            range(len(data)), key=lambda i: hashlib.sha256(data.ids[i].encode()).digest()
        )
        for index in order:
            record = data.record(index)
            if not record.boxes:
                continue
            # Some corpora have a record for each phrase of an image.
            place = (data.patients[index], record.images[0].key)
            if place not in images and len(images) == count:
                continue
            first = images.setdefault(place, index)
            for box in record.boxes:
                if box.image:
                    self.excluded["boxes on an image that is not evaluated"] += 1
                    continue
                stated = self.sentences and 0 <= box.sentence < len(record.sentences)
                words = " ".join(box.label.replace("_", " ").split()).lower()
                text = (
                    record.sentences[box.sentence][1]
                    if stated
                    else self.prompts.get(box.label, words)
                )
                labels, boxes, _ = merged.setdefault((first, text), (set(), [], stated))
                labels.add(box.label)
                boxes.append(box.xyxy)
        return [
            Phrase(index, text, tuple(sorted(labels)), tuple(boxes), stated)
            for (index, text), (labels, boxes, stated) in sorted(merged.items())
        ]

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the regions."""
        return self.predict.grids[parse(self.names["regions"]).tower]

    @functools.cached_property
    def _kept(self) -> tuple[list[Phrase], Frame]:
        """The phrases that can be judged, and their frames [N, gh, gw].

        Cached, because the frames need the size of every image.
        """
        preprocess = self.data.preprocess
        sizes: dict[int, tuple[int, int]] = {}
        kept: list[Phrase] = []
        frames: list[Frame] = []
        for phrase in self.phrases:
            if phrase.index not in sizes:
                image = self.data.record(phrase.index).images[0].load()
                sizes[phrase.index] = image.shape[:2]
            height, width = sizes[phrase.index]
            geometry = preprocess.geometry(height, width)
            one = frame(phrase.boxes, height, width, geometry, preprocess.size, self.grid)
            if not one.inside.any():
                self.excluded["no pixel of the boxes is in the image that the encoder sees"] += 1
            elif not one.outside.any():
                self.excluded["the boxes fill the image"] += 1
            else:
                kept.append(phrase)
                frames.append(one)
        if not kept:
            reasons = ", ".join(f"{n} times {reason}" for reason, n in self.excluded.items())
            raise InputError(f"no box of {self.data.name} can be judged: {reasons}")
        return kept, Frame(*(np.stack(part) for part in zip(*frames, strict=True)))

    def run(self, state: Any) -> Results:
        """Evaluates `state`; values as in the class.

        Raises:
          InputError: regions and phrases of different shapes, or an image without regions.
          FloatingPointError: a feature is not finite.
        """
        data = self.data
        phrases, frames = self._kept
        patients = [data.patients[phrase.index] for phrase in phrases]
        classes = sorted({label for phrase in phrases for label in phrase.labels})
        members = np.array([[label in phrase.labels for label in classes] for phrase in phrases])
        others = self._other_images(patients)
        maps = self.maps(state, phrases, [[p.index for p in phrases], *others])
        columns = self._columns(maps, frames, members, patients)
        options = {"samples": self.bootstrap, "seed": self.seed}
        values = statistics.class_means(columns, members, patients, **options)
        values = {name: values[name] for name in _order(values)}
        for column, label in enumerate(classes):
            rows = members[:, column]
            values |= self._part(f"class/{label}", columns, rows, rows[:, None], patients)
        for name, chosen in subgroups(data).items():
            rows = chosen[[phrase.index for phrase in phrases]]
            values |= self._part(f"subgroup/{name}", columns, rows, members, patients)
        return Results(
            protocol=PROTOCOL,
            values=values,
            n=len(phrases),
            data=identity(data),
            preprocessing=data.preprocessing,
            excluded=dict(self.excluded),
            details={
                "images": len({phrase.index for phrase in phrases}),
                "phrases": {
                    "sentences": sum(phrase.stated for phrase in phrases),
                    "labels": sum(not phrase.stated for phrase in phrases),
                },
                "grid": list(self.grid),
                "classes": {
                    label: self._class(phrases, frames, members[:, column])
                    for column, label in enumerate(classes)
                },
                "without_a_region_centre_in_the_boxes": int((~frames.centre.any((1, 2))).sum()),
                "infinite_contrast": int(np.isnan(columns["cnr"][0]).sum()),
                "pixels": "original; the nearest region by pixel centres",
                "ties": f"within {statistics.TIE:g}; a miss unless all are inside",
                "options": {
                    "reads": dict(self.names),
                    "prompts": self.prompts,
                    "sentences": self.sentences,
                    "sigma": self.sigma,
                    "thresholds": list(self.thresholds),
                    "permutations": self.permutations,
                    "bootstrap": self.bootstrap,
                    "seed": self.seed,
                },
            },
        )

    def maps(
        self, state: Any, phrases: Sequence[Phrase], images: Sequence[Sequence[int]]
    ) -> np.ndarray:
        """Smoothed cosines of phrases with the regions of images, which are encoded in blocks.

        Args:
          phrases: N phrases.
          images: M lists of N positions in the held-out data; phrase n meets image `images[m][n]`.

        Returns:
          f32[M, N, gh, gw].

        Raises:
          InputError, FloatingPointError: as of `run`.
        """
        texts = list(dict.fromkeys(phrase.text for phrase in phrases))
        name = self.names["phrases"]
        encoded = self.predict.encode(state, self.data.with_texts(texts), [name])[name]
        if encoded.ndim != 2:
            raise InputError(f"{name} has the shape {encoded.shape}, expected a vector per phrase")
        vectors = statistics.unit_rows(encoded, name, texts)
        of_text = {text: row for row, text in enumerate(texts)}
        wanted: dict[int, list[tuple[int, int]]] = {}
        for m, of_phrases in enumerate(images):
            for n, index in enumerate(of_phrases):
                wanted.setdefault(index, []).append((m, n))
        found = np.empty((len(images), len(phrases), *self.grid), np.float32)
        for index, regions in self._regions(state, sorted(wanted)):
            if regions.shape != (math.prod(self.grid), vectors.shape[1]):
                raise InputError(
                    f"{self.names['regions']} has {regions.shape[0]} regions of width "
                    f"{regions.shape[1]}; expected {math.prod(self.grid)} of the width of {name}, "
                    f"{vectors.shape[1]}"
                )
            rows = [of_text[phrases[n].text] for _, n in wanted[index]]
            cosines = (vectors[rows] @ regions.T).reshape(-1, *self.grid)
            for (m, n), one in zip(wanted[index], cosines, strict=True):
                found[m, n] = self._smoothed(one)
        return found

    def _smoothed(self, cosines: np.ndarray) -> np.ndarray:
        """One map f[gh, gw] after the Gaussian, which reflects at the border."""
        return ndimage.gaussian_filter(cosines, self.sigma) if self.sigma else cosines

    def _regions(self, state: Any, indices: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
        """(index, L2-normalised regions f32[R, D]) of each image."""
        name = self.names["regions"]
        subset = statistics.Subset(self.data, indices)
        start = 0
        for block in self.predict.stream(state, subset, [name]):
            ids = subset.ids[start : start + len(block["present"])]
            if not block["present"].all():
                first = ids[int(np.argmin(block["present"]))]
                raise InputError(f"{first} of {self.data.name} has boxes and no {name}")
            yield from zip(
                indices[start : start + len(ids)],
                statistics.unit_rows(block[name], name, ids),
                strict=True,
            )
            start += len(ids)

    def _other_images(self, patients: Sequence[str]) -> list[list[int]]:
        """Per permutation, an image of another patient for every phrase; [] for one patient."""
        rng = statistics.generator(self.seed, "images")
        phrases, _ = self._kept
        orders = statistics.permutations_between_patients(patients, rng, self.permutations)
        return [[phrases[n].index for n in order] for order in orders]

    def _columns(
        self, maps: np.ndarray, frames: Frame, members: np.ndarray, patients: Sequence[str]
    ) -> dict[str, tuple[np.ndarray, float | None]]:
        """Name -> (values of every phrase f64[N], chance)."""
        chance = {
            "cnr": 0.0,
            "miou": None,
            "pointing": statistics.class_means(
                {"": (_by_chance(frames), None)}, members, patients, samples=0
            )[""].value,
        }
        rows = {
            "": judged(maps[0], frames, self.thresholds),
            "_images_permuted": _averaged(
                [judged(one, frames, self.thresholds) for one in maps[1:]], len(patients)
            ),
            "_boxes_permuted": self._other_boxes(maps[0], frames, members, patients),
            "_constant_map": judged(np.ones_like(maps[0]), frames, self.thresholds),
            "_prior_map": self._prior(frames, members, patients),
        }
        columns: dict[str, tuple[np.ndarray, float | None]] = {}
        for metric in METRICS:
            for row, found in rows.items():
                columns[metric + row] = found[metric], chance[metric]
            for row, other in (("_gain", "_images_permuted"), ("_gain_over_prior", "_prior_map")):
                difference = columns[metric][0] - columns[metric + other][0]
                columns[metric + row] = difference, 0.0
        return columns

    def _other_boxes(
        self, maps: np.ndarray, frames: Frame, members: np.ndarray, patients: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """The metrics with boxes of other patients; NaN for a class of one patient.

        Boxes are exchanged within a class, so that knowing its habitual place gives no gain.
        """
        first = members.argmax(axis=1)
        found = []
        for number in range(self.permutations):
            order = np.full(len(maps), -1)
            for column in np.unique(first):
                among = np.flatnonzero(first == column)
                owners = [patients[row] for row in among.tolist()]
                rng = statistics.generator(self.seed, "boxes", str(column), str(number))
                if len(set(owners)) > 1:
                    order[among] = among[statistics.permutation_between_patients(owners, rng)]
            rows = judged(maps, Frame(*(part[order] for part in frames)), self.thresholds)
            found.append({k: np.where(order < 0, np.nan, row) for k, row in rows.items()})
        return _averaged(found, len(maps))

    def _prior(
        self, frames: Frame, members: np.ndarray, patients: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """The metrics of the mean boxes of the class in other patients; NaN without any.

        For a phrase of several classes they are those of all its classes together.
        """
        pixels = frames.inside + frames.outside
        shares = frames.inside / np.maximum(pixels, 1)
        owner = np.unique(np.asarray(patients), return_inverse=True)[1]
        totals, sums = np.zeros(len(shares)), np.zeros(shares.shape)
        # All phrases of these classes, minus those of the own patient; N x N pairs would be many.
        for classes in np.unique(members, axis=0):
            rows, related = (members == classes).all(axis=1), (members & classes).any(axis=1)
            counts = np.bincount(owner[related], minlength=owner.max() + 1)
            of_owner = np.zeros((len(counts), *shares.shape[1:]))
            np.add.at(of_owner, owner[related], shares[related])
            totals[rows] = counts.sum() - counts[owner[rows]]
            sums[rows] = of_owner.sum(axis=0) - of_owner[owner[rows]]
        # Rounded, so that errors of the sums lift no share above a threshold that it equals.
        maps = np.round(sums / np.maximum(totals, 1)[:, None, None], 9)
        found = judged(maps, frames, self.thresholds)
        return {name: np.where(totals > 0, row, np.nan) for name, row in found.items()}

    def _part(
        self,
        name: str,
        columns: Mapping[str, tuple[np.ndarray, float | None]],
        rows: np.ndarray,
        members: np.ndarray,
        patients: Sequence[str],
    ) -> dict[str, Any]:
        """The values of some phrases, with the row of permuted images."""
        if not rows.any():
            return {}
        owners = np.asarray(patients)[rows]
        by_chance = {"": (_by_chance(self._kept[1])[rows], None)}
        pointing = statistics.class_means(by_chance, members[rows], owners, samples=0)[""].value
        some = {
            metric + row: (
                columns[metric + row][0][rows],
                pointing if metric == "pointing" else columns[metric][1],
            )
            for metric in METRICS
            for row in ("", "_images_permuted")
        }
        found = statistics.class_means(
            some, members[rows], owners, samples=self.bootstrap, seed=self.seed
        )
        return {f"{name}/{key}": estimate for key, estimate in found.items()}

    def _class(self, phrases: Sequence[Phrase], frames: Frame, rows: np.ndarray) -> dict[str, Any]:
        """Counts of one class, and the share of pixels inside its boxes."""
        chosen = [phrase for phrase, kept in zip(phrases, rows, strict=True) if kept]
        inside, outside = frames.inside[rows].sum((1, 2)), frames.outside[rows].sum((1, 2))
        return {
            "phrases": len(chosen),
            "patients": len({self.data.patients[phrase.index] for phrase in chosen}),
            "box_area_share": float((inside / (inside + outside)).mean()),
            "pointing_by_chance": float(_by_chance(frames)[rows].mean()),
        }

    def figures(
        self, state: Any, results: Results, history: Sequence[Mapping[str, Any]]
    ) -> list[Figure]:
        """Maps of some phrases, those of each class in turn."""
        from mmrl.reporting import attention

        phrases, _ = self._kept
        turns: Counter[tuple[str, ...]] = Counter()
        order = []
        for phrase in phrases:
            turns[phrase.labels] += 1
            order.append((turns[phrase.labels], phrase.labels, phrase.index, phrase))
        shown = [phrase for *_, phrase in sorted(order, key=lambda one: one[:3])[:DRAWN]]
        examples = []
        for phrase, one in zip(
            shown, self.maps(state, shown, [[phrase.index for phrase in shown]])[0], strict=True
        ):
            positive = np.maximum(one, 0)
            total = positive.sum()
            weights = positive / total if total > 0 else np.full_like(one, 1 / one.size)
            size = self.data.record(phrase.index).images[0].load().shape[:2]
            placed = self.data.preprocess.geometry(*size).boxes(phrase.boxes)
            clipped = np.clip(placed, 0, self.data.preprocess.size).tolist()
            examples.append(
                attention.AttentionExample(
                    image=self.data.image(phrase.index),
                    id=self.data.ids[phrase.index],
                    text=self.data.texts[phrase.index],
                    words=[(phrase.text, weights)],
                    boxes=[(phrase.labels[0], (x0, y0, x1, y1)) for x0, y0, x1, y1 in clipped],
                )
            )
        caption = "Cosines of phrases with regions, without negative ones; frames are their boxes."
        title = "Cosines of phrases with image regions"
        draw = functools.partial(attention.attention_grid, examples, title=title)
        return [Figure("grounding", "Maps of phrases", caption, draw)]


def _by_chance(frames: Frame) -> np.ndarray:
    """f64[N]: share of the regions of each image whose centre lies inside the boxes."""
    seen = frames.inside + frames.outside > 0
    return (frames.centre & seen).sum((1, 2)) / seen.sum((1, 2))


def _averaged(found: Sequence[Mapping[str, np.ndarray]], count: int) -> dict[str, np.ndarray]:
    """The mean of every metric f64[N] over permutations; NaN without any."""
    if not found:
        return {metric: np.full(count, np.nan) for metric in METRICS}
    return {metric: np.mean([one[metric] for one in found], axis=0) for metric in METRICS}


def _order(values: Mapping[str, Any]) -> list[str]:
    """The metrics themselves first, then their other rows."""
    return [name for name in METRICS if name in values] + [n for n in values if n not in METRICS]
