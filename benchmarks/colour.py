"""Towers of three channels against towers of one, on real images in colour.

    python -m benchmarks.colour --workdir=runs/colour --out=docs/results

Trains configs/real_colour.py in colour and in grey with several seeds, and judges features
by a linear probe. Beside the towers stand probes of histograms and of small images, in colour and
in grey, which learn nothing else. MMRL_REAL_DATA names the folder of the sets. Completed runs are
not repeated. Writes colour.md.
"""

import functools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import ml_collections
import numpy as np

from benchmarks import runs
from configs import real_colour
from mmrl.data.batches.pipeline import Examples
from mmrl.evaluators import linear, scoring, statistics
from mmrl.evaluators.base import Estimate
from mmrl.evaluators.scoring import Answers
from mmrl.training import run

COMMAND = "python -m benchmarks.colour"
MEASURES = {"macro_auroc": "AUROC", "balanced_accuracy": "balanced accuracy"}
TITLES = {
    "ham10000": "Skin lesions (HAM10000): 7 classes",
    "roco": "Colour figures (ROCO): CT, MRI, X-ray or ultrasound",
}
COLOURS = {"colour": "", "grey": ",grey"}
_SAMPLES = 1000  # of the bootstrap over patients
_FOLDS = 5


def main() -> None:
    """Trains what is missing, judges everything and writes the page."""
    parser = runs.arguments(__doc__, "runs/colour")
    args = parser.parse_args()
    for name in real_colour.SETS:
        path = real_colour.get_config(name).data.path
        if not Path(path).is_file():
            parser.error(f"no {path}; set MMRL_REAL_DATA to the folder of the real sets")
    began = time.monotonic()
    missing = {
        f"{name}-{colour}-{seed}": [
            f"--config=configs/real_colour.py:{name}{variant}",
            f"--config.seed={seed}",
        ]
        for name in real_colour.SETS
        for colour, variant in COLOURS.items()
        for seed in args.seeds
        if not (args.workdir / f"{name}-{colour}-{seed}" / "results").is_dir()
    }
    runs.train_all(missing, args.workdir, args.at_once)
    found = {name: judged(name, args.workdir, args.seeds) for name in real_colour.SETS}
    runs.write(args.out / "colour.md", page(found, len(args.seeds), runs.stamp(COMMAND, began)))


def judged(name: str, workdir: Path, seeds: Sequence[int]) -> dict[str, dict[str, Any]]:
    """Row -> "colour" and "grey" -> measure -> estimate; for towers the mean over the seeds."""
    found: dict[str, dict[str, Any]] = {"tower": {}, "small image": {}, "histogram": {}}
    for colour, variant in COLOURS.items():
        config = real_colour.get_config(f"{name}{variant}")
        train, test = (_Split(config, split) for split in ("train", "val"))
        each = [_tower(workdir / f"{name}-{colour}-{seed}", train, test) for seed in seeds]
        found["tower"][colour] = {
            measure: scoring.average([one[measure] for one in each]) for measure in MEASURES
        }
        found["tower"][f"{colour} by seed"] = [one["macro_auroc"].value for one in each]
        for row, make in (("small image", _small), ("histogram", _histogram)):
            found[row][colour] = fitted(make(train), train, make(test), test)
    found["size"] = {"train": len(train), "test": len(test)}
    return found


class _Split:
    """The examples of a split whose class is known."""

    def __init__(self, config: ml_collections.ConfigDict, split: str) -> None:
        self.data = Examples(config, run.load_corpus(config, split), {})
        names, values, _ = self.data.labels()
        self.names, known = names, (values == 1).sum(axis=1) == 1
        self.rows = np.flatnonzero(known)
        self.truth = (values[known] == 1).argmax(axis=1)
        self.patients = np.asarray(self.data.patients)[known]

    def __len__(self) -> int:
        return len(self.rows)

    @functools.cached_property
    def pixels(self) -> np.ndarray:
        """u8[n, S, S, C], as the tower gets them."""
        found = self.data.pixels("image.pooled", self.rows.tolist())
        assert found is not None
        return found


def _tower(folder: Path, train: _Split, test: _Split) -> dict[str, Estimate]:
    """The probe of the features of a trained tower."""
    trained = run.restore(folder)
    features = [
        trained.predict.encode(trained.state, part.data, ["image.pooled"])["image.pooled"][
            part.rows
        ]
        for part in (train, test)
    ]
    return fitted(features[0], train, features[1], test)


def _small(part: _Split) -> np.ndarray:
    """f32[n, 16 * 16 * C] from 0 to 1."""
    small = [cv2.resize(one, (16, 16), interpolation=cv2.INTER_AREA) for one in part.pixels]
    return np.stack(small).reshape(len(part), -1).astype(np.float32) / 255


def _histogram(part: _Split) -> np.ndarray:
    """f32[n, 64]: shares of the pixels by colour, 4 x 4 x 4 cells, or by 64 levels of grey."""
    cells = []
    for image in part.pixels:
        if image.shape[-1] == 3:
            place = (image // 64).astype(int) @ [16, 4, 1]
        else:
            place = (image[..., 0] // 4).astype(int)
        cells.append(np.bincount(place.ravel(), minlength=64) / place.size)
    return np.stack(cells).astype(np.float32)


def fitted(x: np.ndarray, train: _Split, held_out: np.ndarray, test: _Split) -> dict[str, Estimate]:
    """Logistic regression on some features, whose strength folds of the patients choose.

    Args:
      x, held_out: f32[n, D], features of the examples of both splits.
    """
    one_hot = np.eye(len(train.names), dtype=np.float32)[train.truth]

    def items(rows: np.ndarray) -> linear.Items:
        known = np.ones((int(rows.sum()), len(train.names)), bool)
        return linear.Items(x[rows], linear.Targets("classes", one_hot[rows], known))

    owner = np.unique(train.patients, return_inverse=True)[1]
    rng = statistics.generator(0, "colour", "folds")
    fold = (rng.permutation(owner.max() + 1) % _FOLDS)[owner]
    folds = [(items(fold != one), items(fold == one)) for one in range(_FOLDS)]
    chosen = linear.choose(linear.logistic, folds, items(np.ones(len(x), bool)), patience=2)
    scores = linear.probabilities("classes", chosen.model(held_out))
    answers = Answers("classes", scores, test.truth, test.patients, test.names)
    return scoring.estimates(answers, samples=_SAMPLES, only=tuple(MEASURES))


def page(found: dict[str, dict[str, Any]], seeds: int, stamp: str) -> str:
    """The page as Markdown; `stamp` as of `runs.stamp`."""
    lines = [
        "# Colour against grey",
        "",
        stamp,
        "",
        "Small towers learn the classes of real images from random values, with three channels or "
        "with one, which sees the luma of the same images. A logistic regression on their pooled "
        "features is judged on patients (ROCO: articles) that nothing was learned from. Small "
        "images are 16 x 16 pixels; histograms have 64 cells of colour or of grey. Of towers, "
        f"figures are means over {seeds} seeds. Brackets are 95 % intervals of a bootstrap over "
        "patients; the gain is the paired difference of colour and grey.",
    ]
    for name, rows in found.items():
        size = rows["size"]
        lines += ["", f"## {TITLES[name]}", ""]
        lines += [f"{size['train']:,} images to learn from, {size['test']:,} to judge on."]
        for measure, title in MEASURES.items():
            lines += ["", f"| {title} | colour | grey | gain of colour |", "|---|---|---|---|"]
            for row in ("tower", "small image", "histogram"):
                pair = [rows[row][colour][measure] for colour in COLOURS]
                gain = scoring.difference(*pair)
                shown = " | ".join(map(_shown, pair))
                lines.append(f"| {row} | {shown} | {_shown(gain, signed=True)} |")
        by_seed = (
            f"{colour} {', '.join(f'{one:.3f}' for one in rows['tower'][f'{colour} by seed'])}"
            for colour in COLOURS
        )
        lines += ["", f"AUROC of towers by seed: {'; '.join(by_seed)}."]
    return "\n".join(lines) + "\n"


def _shown(one: Estimate, *, signed: bool = False) -> str:
    form = "+.3f" if signed else ".3f"
    return f"{one.value:{form}} [{one.low:{form}}, {one.high:{form}}]"


if __name__ == "__main__":
    main()
