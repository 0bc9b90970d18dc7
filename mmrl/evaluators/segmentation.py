"""Segmentation: what a light decoder, trained on frozen regions, finds of the masks of findings."""

import dataclasses
import functools
import hashlib
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from mmrl import build, sequences, streams
from mmrl.data.image.images import Geometry, Preprocess
from mmrl.evaluators import statistics
from mmrl.evaluators.base import Estimate, Evaluator, HeldOut, Predict, Results, identity
from mmrl.evaluators.subgroups import subgroups
from mmrl.masks import dice_loss, focal_loss
from mmrl.models.decoder import KINDS, Decoder
from mmrl.types import InputError
from mmrl.wiring import parse

PROTOCOL = "segmentation@1"
METRICS = ("dice", "dice_not_empty", "iou")
# Shares of its maximum at which the mean training mask of a label is cut.
_SHARES = tuple(n / 20 for n in range(1, 20))
_BLOCK = 64  # images whose constant masks are judged at once; bounds memory


class RegionPredict(Predict, Protocol):
    """Encoders with local features; `grids` holds (rows, columns) of each tower's regions."""

    grids: Mapping[str, tuple[int, int]]


class MaskedHeldOut(HeldOut, Protocol):
    """Held-out examples with other splits, and a map from original to preprocessed pixels."""

    preprocess: Preprocess

    def split(self, name: str) -> Any:
        """The examples of another split; raises InputError if there is none."""


class Truth(NamedTuple):
    """The masks of N examples at the size at which they are judged.

    Attributes:
      rows: positions of the examples in the held-out data.
      masks: bool[N, S, S, C], of C labels.
      valid: bool[N, S, S], pixels that show the image and not its padding.
      others: number of masks of further labels.
    """

    rows: list[int]
    masks: np.ndarray
    valid: np.ndarray
    others: int


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a decoder is trained; options as of `Segmentation`."""

    kind: str
    width: int
    size: int
    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    focal_weight: float
    patience: int
    seed: int


class Trained(NamedTuple):
    """A trained decoder.

    Attributes:
      logits: (features f32[N, R, D]) -> f32[N, S, S, C].
      epochs: that were run. best: the epoch, counted from 1, whose weights are used.
      loss: of that epoch on the validation split, None without one.
    """

    logits: Callable[[np.ndarray], np.ndarray]
    epochs: int
    best: int
    loss: float | None


def resampled(mask: np.ndarray, geometry: Geometry, side: int, size: int) -> np.ndarray:
    """A mask of the original image at the place and scale of the preprocessed one.

    Args:
      mask: bool[H, W], in original pixels.
      geometry: maps original pixels to the preprocessed square.
      side: of that square, in its pixels. size: of the result, which covers the square.

    Returns:
      bool[size, size]: the original pixel under the centre of each pixel; False in the padding.
    """
    (rows, inside_y), (columns, inside_x) = _sources(mask.shape, geometry, side, size)
    return mask[rows[:, None], columns] & inside_y[:, None] & inside_x


def visible(height: int, width: int, geometry: Geometry, side: int, size: int) -> np.ndarray:
    """bool[size, size]: which pixels show an image of `height` x `width`, as in `resampled`."""
    (_, inside_y), (_, inside_x) = _sources((height, width), geometry, side, size)
    return inside_y[:, None] & inside_x


def _sources(
    shape: Sequence[int], geometry: Geometry, side: int, size: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Along each axis, the original pixel of each pixel, and whether there is one."""
    found = []
    for count, scale, offset in (
        (shape[0], geometry.scale_y, geometry.offset_y),
        (shape[1], geometry.scale_x, geometry.offset_x),
    ):
        place = ((np.arange(size) + 0.5) * side / size - offset) / scale
        inside = (place >= 0) & (place < count)
        found.append((np.clip(place, 0, count - 1).astype(np.int64), inside))
    return found


def judged(predicted: np.ndarray, truth: np.ndarray, valid: np.ndarray) -> dict[str, np.ndarray]:
    """Dice coefficient and intersection over union of each image and label.

    An empty mask with an empty prediction scores 1, and with any other prediction 0 (as in MGCA,
    Wang et al. 2022, on SIIM-ACR).

    Args:
      predicted, truth: bool[N, S, S, C]. valid: bool[N, S, S]; other pixels are left out.

    Returns:
      "dice", "dice_not_empty" (NaN where the mask is empty) and "iou", f64[N, C].
    """
    predicted, truth = predicted & valid[..., None], truth & valid[..., None]
    shared = (predicted & truth).sum(axis=(1, 2))
    both = predicted.sum(axis=(1, 2)) + truth.sum(axis=(1, 2))
    dice = np.where(both == 0, 1.0, 2 * shared / np.maximum(both, 1))
    return {
        "dice": dice,
        "dice_not_empty": np.where(truth.any(axis=(1, 2)), dice, np.nan),
        "iou": np.where(both == 0, 1.0, shared / np.maximum(both - shared, 1)),
    }


def image_losses(
    logits: jax.Array, masks: jax.Array, valid: jax.Array, focal_weight: float
) -> jax.Array:
    """Dice loss plus `focal_weight` times the focal loss of each image, over valid pixels.

    Args:
      logits: f32[B, S, S, C]. masks: bool[B, S, S, C]. valid: bool[B, S, S], at least one pixel.

    Returns:
      f32[B].
    """
    # A logit of -1e4 for a pixel without a mask adds nothing to any sum.
    logits = jnp.where(valid[..., None], logits, -1e4)
    masks = masks & valid[..., None]
    whole = valid[0].size / valid.sum(axis=(1, 2)).astype(jnp.float32)
    dice = jax.vmap(lambda x, y: dice_loss(x[None], y[None]))(logits, masks)
    focal = jax.vmap(lambda x, y: focal_loss(x[None], y[None], alpha=-1.0))(logits, masks)
    return dice + focal_weight * whole * focal


def train_decoder(
    recipe: Recipe,
    grid: tuple[int, int],
    train: tuple[np.ndarray, Truth],
    validation: tuple[np.ndarray, Truth] | None,
) -> Trained:
    """Trains a decoder with AdamW on frozen features.

    Features are standardised by their mean and deviation over the training regions. Each epoch is
    a random order of the examples, filled up with its first ones to whole batches. With a
    validation split, training stops after `patience` epochs without a lower loss on it, and the
    weights of the best epoch are used; without one, those of the last epoch.

    Args:
      train, validation: features f32[N, R, D] and their truth.

    Raises:
      FloatingPointError: the loss is not finite.
    """
    features, truth = train
    count, batch = len(features), min(recipe.batch_size, len(features))
    mean, scale = features.mean(axis=(0, 1)), features.std(axis=(0, 1))
    scale = np.where(scale > 1e-6, scale, 1.0).astype(np.float32)
    rngs = nnx.Rngs(params=streams.key(recipe.seed, "segmentation/decoder"))
    module = Decoder(
        features.shape[2],
        truth.masks.shape[3],
        grid=grid,
        size=(recipe.size, recipe.size),
        kind=recipe.kind,
        width=recipe.width,
        rngs=rngs,
    )
    graph, weights = nnx.split(module)
    optimizer = optax.adamw(recipe.learning_rate, weight_decay=recipe.weight_decay)

    def losses(weights: Any, x: jax.Array, masks: jax.Array, valid: jax.Array) -> jax.Array:
        logits = nnx.merge(graph, weights)((x - mean) / scale)
        return image_losses(logits, masks, valid, recipe.focal_weight)

    @jax.jit
    def step(weights: Any, moments: Any, *arrays: jax.Array) -> Any:
        loss, slope = jax.value_and_grad(lambda w: losses(w, *arrays).mean())(weights)
        change, moments = optimizer.update(slope, moments, weights)
        return optax.apply_updates(weights, change), moments, loss

    judge = jax.jit(losses)
    logits_of = jax.jit(lambda weights, x: nnx.merge(graph, weights)((x - mean) / scale))
    rng = statistics.generator(recipe.seed, "segmentation", "order")
    best, best_loss, best_epoch, epoch = weights, math.inf, 0, 0
    with jax.numpy_dtype_promotion("standard"):  # optax relies on it
        moments = optimizer.init(weights)
        for epoch in range(1, recipe.epochs + 1):
            order = rng.permutation(count)
            order = np.concatenate([order, order[: -count % batch]])
            for rows in order.reshape(-1, batch):
                arrays = (features[rows], truth.masks[rows], truth.valid[rows])
                weights, moments, loss = step(weights, moments, *arrays)
            if not np.isfinite(loss):
                raise FloatingPointError(f"the loss of the decoder is {loss} in epoch {epoch}")
            if validation is None:
                best, best_epoch = weights, epoch
                continue
            of_rows = _in_blocks(
                functools.partial(judge, weights),
                (validation[0], validation[1].masks, validation[1].valid),
                batch,
            )
            held_out = float(of_rows.mean())
            if held_out < best_loss:
                best, best_loss, best_epoch = weights, held_out, epoch
            elif epoch - best_epoch >= recipe.patience:
                break

    def logits(given: np.ndarray) -> np.ndarray:
        with jax.numpy_dtype_promotion("standard"):
            return _in_blocks(functools.partial(logits_of, best), (given,), batch)

    return Trained(logits, epoch, best_epoch, None if validation is None else best_loss)


def _in_blocks(
    use: Callable[..., jax.Array], arrays: Sequence[np.ndarray], size: int
) -> np.ndarray:
    """Applies a function to `size` rows at a time, the last block filled up with its last row."""
    found = []
    for start in range(0, len(arrays[0]), size):
        block = [array[start : start + size] for array in arrays]
        rows = len(block[0])
        filled = [np.concatenate([a, np.repeat(a[-1:], size - rows, axis=0)]) for a in block]
        found.append(np.asarray(use(*filled))[:rows])
    return np.concatenate(found)


class Segmentation(Evaluator):
    """Dice and intersection over union of masks, from a decoder trained on frozen regions.

    The decoder is trained on the training split of the same corpus, with Dice and focal loss
    (MGCA, Wang et al. 2022, section 4.2, which adds 10 times the focal loss). If the test split is
    evaluated, the validation split stops the training early and chooses the epoch; if the
    validation split is evaluated, nothing is chosen and all epochs are run. Masks follow the image
    to the preprocessed square, by the nearest pixel, and padding is left out. An empty mask with an
    empty prediction scores 1, with any other prediction 0. A value is the mean over labels of the
    mean over images. Intervals are from a bootstrap over patients. Protocol "segmentation@1".

    Values: "dice", "dice_not_empty" (over masks that are not empty) and "iou", each with the rows
    "NAME_images_permuted" (features of another patient's image), "NAME_raw_pixels" (the same
    decoder on the pixels of each region), "NAME_background", "NAME_foreground" and "NAME_mean_mask"
    (predictors that ignore the image; the last is where the mean training mask is at least a share
    of its maximum, the share with the best Dice over training masks that are not empty).
    "NAME_gain" and "NAME_gain_over_raw_pixels" are paired differences. "label/LABEL/NAME" and
    "subgroup/GROUP/NAME" follow.

    Args:
      predict, data: as for every evaluator; records need masks.
      labels: findings whose masks are judged; by default all that occur in the training split.
      decoder: "convolutional", or "linear" for a linear classifier of every region.
      width: features of the convolutional decoder.
      size: side of the masks that are judged; by default that of the preprocessed image.
      epochs: passes over the training images, at most.
      batch_size: images of a training step.
      learning_rate: learning rate of AdamW, which is constant.
      weight_decay: weight decay of AdamW.
      focal_weight: factor of the focal loss beside the Dice loss.
      patience: epochs without a lower validation loss after which training stops.
      max_train: maximum number of training images, the first by the hash of their ids; None: all.
      permutations: how often the images are permuted between patients.
      bootstrap: resamples of the patients for the intervals; 0: no intervals.
      seed: seed of the decoder, the permutations and the resamples.

    Raises:
      InputError: no masks, no training split, the training split is evaluated, features that the
        encoders lack, or options out of range.
    """

    reads: ClassVar[Mapping[str, str]] = {"regions": "image.regions"}
    headline: ClassVar[Mapping[str, str]] = {
        "dice": "Dice of masks from a decoder of frozen regions",
        "dice_gain_over_raw_pixels": "Dice minus that of the same decoder on raw pixels",
    }

    def __init__(
        self,
        predict: RegionPredict,
        data: MaskedHeldOut,
        *,
        labels: Sequence[str] = (),
        decoder: str = "convolutional",
        width: int = 64,
        size: int | None = None,
        epochs: int = 30,
        batch_size: int = 16,
        learning_rate: float = 5e-4,
        weight_decay: float = 0.05,
        focal_weight: float = 10.0,
        patience: int = 5,
        max_train: int | None = None,
        permutations: int = 5,
        bootstrap: int = 1000,
        seed: int = 0,
        reads: Mapping[str, str] | None = None,
    ) -> None:
        statistics.at_least(
            1,
            width=width,
            size=size,
            epochs=epochs,
            batch_size=batch_size,
            patience=patience,
            max_train=max_train,
            permutations=permutations,
        )
        statistics.at_least(0, bootstrap=bootstrap, seed=seed)
        if decoder not in KINDS:
            raise InputError(f"decoder is {decoder!r}; choices: {', '.join(KINDS)}")
        if not (learning_rate > 0 and weight_decay >= 0 and focal_weight >= 0):
            raise InputError(
                f"learning_rate {learning_rate}, weight_decay {weight_decay}, focal_weight "
                f"{focal_weight}; expected above 0, at least 0 and at least 0"
            )
        super().__init__(predict, data, reads=reads)
        name = self.names["regions"]
        if name not in predict.provides or parse(name).tower not in predict.grids:
            raise InputError(
                f"segmentation needs {name} of an image tower, the encoders provide "
                f"{', '.join(predict.provides)}; give the tower this head, or redirect reads"
            )
        self.predict: RegionPredict = predict
        self.data: MaskedHeldOut = data
        self.recipe = Recipe(
            decoder,
            width,
            size or data.preprocess.size,
            epochs,
            batch_size,
            learning_rate,
            weight_decay,
            focal_weight,
            patience,
            seed,
        )
        build.check_distinct("labels of segmentation", labels)
        self.labels_given = tuple(sequences.each(labels, "segmentation.labels"))
        self.max_train = max_train
        self.permutations, self.bootstrap, self.seed = permutations, bootstrap, seed
        self.train = data.split("train")
        if self.train.name == data.name:
            raise InputError(
                f"segmentation trains its decoder on the training split, so it cannot evaluate "
                f"{data.name}; choose val or test"
            )
        validation = data.split("val")
        self.validation = None if validation.name == data.name else validation
        for one in (data, self.train):
            if not _with_masks(one):
                raise InputError(
                    f"no record of {one.name} has masks ({len(one)} examples); segmentation needs "
                    "a source with masks"
                )

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the regions."""
        return self.predict.grids[parse(self.names["regions"]).tower]

    @functools.cached_property
    def _training_rows(self) -> list[int]:
        """The training examples that are used."""
        rows, ids = _with_masks(self.train), self.train.ids
        rows.sort(key=lambda row: hashlib.sha256(ids[row].encode()).digest())
        return sorted(rows[: self.max_train])

    @functools.cached_property
    def _drawn(self) -> tuple[list[dict[str, np.ndarray]], np.ndarray]:
        """The masks of the training examples, see `drawn_masks`."""
        return drawn_masks(self.train, self._training_rows, self.recipe.size)

    @functools.cached_property
    def labels(self) -> tuple[str, ...]:
        """The labels whose masks are judged.

        Raises:
          InputError: a given label without a mask in the training split; no label at all.
        """
        found = sorted({label for masks in self._drawn[0] for label in masks})
        lacking = [label for label in self.labels_given if label not in found]
        if lacking or not found:
            raise InputError(
                f"no training mask of {', '.join(lacking) or 'any label'} in {self.train.name}; "
                f"labels with masks: {', '.join(found) or 'none'}"
            )
        return self.labels_given or tuple(found)

    @functools.cached_property
    def _truths(self) -> dict[str, Truth]:
        """The truth of the training, the evaluated and, if there is one, the validation split."""
        found = {"train": self._truth(self._training_rows, *self._drawn)}
        for name, data in (("own", self.data), ("validation", self.validation)):
            if data is not None and (rows := _with_masks(data)):
                found[name] = self._truth(rows, *drawn_masks(data, rows, self.recipe.size))
        return found

    def _truth(
        self, rows: list[int], drawn: Sequence[Mapping[str, np.ndarray]], valid: np.ndarray
    ) -> Truth:
        """The masks of the labels that are judged."""
        masks = np.zeros((*valid.shape, len(self.labels)), bool)
        for of_image, found in zip(masks, drawn, strict=True):
            for column, label in enumerate(self.labels):
                if label in found:
                    of_image[..., column] = found[label]
        others = sum(label not in self.labels for found in drawn for label in found)
        return Truth(rows, masks, valid, others)

    def _features(self, state: Any, data: HeldOut, truth: Truth) -> np.ndarray:
        """The regions f32[N, R, D] of the examples of `truth`.

        Raises:
          InputError: another number of regions than the grid has; an example lacks an input.
          FloatingPointError: a feature is not finite.
        """
        name, subset = self.names["regions"], statistics.Subset(data, truth.rows)
        encoded = self.predict.encode(state, subset, [name])
        regions = np.asarray(statistics.require_present(encoded, name, subset), np.float32)
        if regions.ndim != 3 or regions.shape[1] != math.prod(self.grid):
            raise InputError(
                f"{name} has the shape {regions.shape}; expected {math.prod(self.grid)} regions"
            )
        finite = np.isfinite(regions).all(axis=(1, 2))
        if not finite.all():
            raise FloatingPointError(
                f"{name} is not finite, first {subset.ids[int(np.argmin(finite))]}"
            )
        return regions

    def _pixels(self, data: HeldOut, truth: Truth) -> np.ndarray:
        """The pixels of each region as its features, f32[N, R, D].

        An image that the grid does not divide is first enlarged to the next multiple.
        """
        found = []
        for row in truth.rows:
            image = data.image(row).astype(np.float32) / 255
            sides = [-(-n // g) * g for n, g in zip(image.shape, self.grid, strict=False)]
            resized = cv2.resize(image, sides[::-1], interpolation=cv2.INTER_LINEAR)
            (height, width), (gh, gw) = sides, self.grid
            cells = resized.reshape(gh, height // gh, gw, width // gw, -1)
            found.append(cells.transpose(0, 2, 1, 3, 4).reshape(gh * gw, -1))
        return np.stack(found)

    def _predicted(
        self, features: Callable[[HeldOut, Truth], np.ndarray]
    ) -> tuple[np.ndarray, Trained]:
        """The masks bool[N, S, S, C] of a decoder trained on some features, and the decoder."""
        truths = self._truths
        validation = None
        if self.validation is not None and "validation" in truths:
            own = truths["validation"]
            validation = (features(self.validation, own), own)
        train = (features(self.train, truths["train"]), truths["train"])
        trained = train_decoder(self.recipe, self.grid, train, validation)
        return trained.logits(features(self.data, truths["own"])) > 0, trained

    @functools.cached_property
    def _of_pixels(self) -> tuple[np.ndarray, Trained]:
        """As `_predicted`, from raw pixels; cached, because it depends on no encoder."""
        return self._predicted(self._pixels)

    def _mean_masks(self) -> tuple[np.ndarray, dict[str, float]]:
        """The best constant mask bool[S, S, C] of the training split, and the share of each label.

        It is where the mean mask, over the images that show the pixel, is at least a share of its
        maximum: the share with the best Dice over masks that are not empty.
        """
        truth = self._truths["train"]
        shown = np.maximum(truth.valid.sum(axis=0), 1)[..., None]
        share = (truth.masks & truth.valid[..., None]).sum(axis=0) / shown
        share /= np.maximum(share.max(axis=(0, 1)), np.finfo(float).tiny)
        scores = np.zeros((len(_SHARES), len(self.labels)))
        for start in range(0, len(truth.masks), _BLOCK):
            masks, valid = (part[start : start + _BLOCK] for part in (truth.masks, truth.valid))
            for n, least in enumerate(_SHARES):
                constant = np.broadcast_to(share >= least, masks.shape)
                found = judged(constant, masks, valid)["dice_not_empty"]
                scores[n] += np.nansum(found, axis=0)
        best = np.array(_SHARES)[np.argmax(scores, axis=0)]
        return share >= best, dict(zip(self.labels, best.tolist(), strict=True))

    def run(self, state: Any) -> Results:
        """Evaluates `state`; values as in the class.

        Raises:
          InputError, FloatingPointError: as of the class, of features and of training.
        """
        data, truth = self.data, self._truths["own"]
        masks, valid = truth.masks, truth.valid
        predicted, trained = self._predicted(functools.partial(self._features, state))
        of_pixels, pixels_trained = self._of_pixels
        constant, shares = self._mean_masks()
        patients = [data.patients[row] for row in truth.rows]
        rng = statistics.generator(self.seed, "images")
        permuted = [
            judged(predicted[order], masks, valid)
            for order in statistics.permutations_between_patients(patients, rng, self.permutations)
        ]
        rows = {
            "": judged(predicted, masks, valid),
            "_images_permuted": {
                metric: np.mean([one[metric] for one in permuted], axis=0)
                if permuted
                else np.full((len(masks), len(self.labels)), np.nan)
                for metric in METRICS
            },
            "_raw_pixels": judged(of_pixels, masks, valid),
            "_background": judged(np.zeros_like(masks), masks, valid),
            "_foreground": judged(np.ones_like(masks), masks, valid),
            "_mean_mask": judged(np.broadcast_to(constant, masks.shape), masks, valid),
        }
        empty = ~(masks & valid[..., None]).any(axis=(1, 2))  # N C
        table = _table(rows)
        everyone = np.ones(len(masks), bool)
        values = self._values("", table, everyone, range(len(self.labels)), patients)
        for column, label in enumerate(self.labels):
            values |= self._values(f"label/{label}/", table, everyone, [column], patients)
        for name, chosen in subgroups(data).items():
            some = chosen[truth.rows]
            columns = range(len(self.labels))
            values |= self._values(f"subgroup/{name}/", table, some, columns, patients)
        return Results(
            protocol=PROTOCOL,
            values=values,
            n=len(masks),
            data=identity(data),
            preprocessing=data.preprocessing,
            excluded=self._excluded(),
            details={
                "labels": {
                    label: {
                        "empty_masks": float(empty[:, column].mean()),
                        "pixels": float((masks[..., column] & valid).sum() / valid.sum()),
                        "mean_mask_share": shares[label],
                    }
                    for column, label in enumerate(self.labels)
                },
                "empty_mask_rule": "1 if the prediction is empty, too, else 0",
                "training": {
                    "images": len(self._truths["train"].rows),
                    "sha256": self.train.sha256,
                    "epochs_run": {"regions": trained.epochs, "raw_pixels": pixels_trained.epochs},
                    "epoch_used": {"regions": trained.best, "raw_pixels": pixels_trained.best},
                    "chosen_on": "nothing; the last epoch is used"
                    if trained.loss is None
                    else f"the loss on {getattr(self.validation, 'name', '')}",
                },
                "size": self.recipe.size,
                "grid": list(self.grid),
                "options": {
                    **dataclasses.asdict(self.recipe),
                    "reads": dict(self.names),
                    "max_train": self.max_train,
                    "permutations": self.permutations,
                    "bootstrap": self.bootstrap,
                },
            },
        )

    def _excluded(self) -> dict[str, int]:
        """Examples and labels that are left out, by reason."""
        found: Counter[str] = Counter()
        found["no masks"] = len(self.data) - len(self._truths["own"].rows)
        found["training images without masks"] = len(self.train) - len(_with_masks(self.train))
        found["training images above max_train"] = len(_with_masks(self.train)) - len(
            self._truths["train"].rows
        )
        found["masks of other labels"] = self._truths["own"].others
        return {reason: count for reason, count in found.items() if count}

    def _values(
        self,
        start: str,
        table: Mapping[str, tuple[np.ndarray, float | None]],
        some: np.ndarray,
        columns: Sequence[int],
        patients: Sequence[str],
    ) -> dict[str, Estimate]:
        """The rows of a table f64[N, C] over some images and labels."""
        images = np.flatnonzero(some)
        if not len(images):
            return {}
        chosen = images[:, None], np.array(columns)
        flat = {name: (values[chosen].ravel(), chance) for name, (values, chance) in table.items()}
        members = np.tile(np.eye(len(columns), dtype=bool), (len(images), 1))
        owners = np.repeat(np.asarray(patients)[images], len(columns))
        found = statistics.class_means(
            flat, members, owners, samples=self.bootstrap, seed=self.seed
        )
        return {start + name: estimate for name, estimate in found.items()}


def _table(
    rows: Mapping[str, Mapping[str, np.ndarray]],
) -> dict[str, tuple[np.ndarray, float | None]]:
    """Name -> (values f64[N, C], chance), the metrics themselves first; see `Segmentation`."""
    table: dict[str, tuple[np.ndarray, float | None]] = {}
    for metric in METRICS:
        table[metric] = rows[""][metric], None
    for metric in METRICS:
        for row, found in rows.items():
            table[metric + row] = found[metric], None
        for row, other in (("_gain", "_images_permuted"), ("_gain_over_raw_pixels", "_raw_pixels")):
            table[metric + row] = rows[""][metric] - rows[other][metric], 0.0
    return table


def drawn_masks(
    data: MaskedHeldOut, rows: Sequence[int], size: int
) -> tuple[list[dict[str, np.ndarray]], np.ndarray]:
    """The masks of examples at the place and scale of their preprocessed image.

    Args:
      rows: N examples with masks.

    Returns:
      For each example label -> bool[size, size], without masks that are empty in the original; and
      the pixels that show the image, bool[N, size, size].

    Raises:
      InputError: a mask whose size is not that of its image.
    """
    found, valid = [], np.zeros((len(rows), size, size), bool)
    for n, row in enumerate(rows):
        record = data.record(row)
        height, width = record.images[0].load().shape[:2]
        place = data.preprocess.geometry(height, width), data.preprocess.size, size
        valid[n] = visible(height, width, *place)
        masks = record.masks() if record.masks is not None else {}
        for label, mask in masks.items():
            if mask.shape != (height, width):
                raise InputError(
                    f"{data.ids[row]}: the mask of {label!r} has {mask.shape[1]} x "
                    f"{mask.shape[0]} pixels, its image {width} x {height}"
                )
        found.append({name: resampled(m, *place) for name, m in masks.items() if m.any()})
    return found, valid


def _with_masks(data: HeldOut) -> list[int]:
    """Positions of the examples whose record states masks, empty ones included."""
    return [row for row in range(len(data)) if data.record(row).masks is not None]
