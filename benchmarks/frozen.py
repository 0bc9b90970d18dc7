"""Judges a frozen MobileNetV2 (`benchmarks.mobilenet`) by the probes of a preset of real sets.

    python -m benchmarks.frozen --weights=mobilenet_v2-b0353104.pth --workdir=runs/pretrain \\
        --config=configs/judge.py:busi --out=judged/busi

The same rows, code and options as those of `python -m mmrl.evaluate`, on other features. Images are
read in colour. The run says how images are prepared for the row of raw pixels; nothing of its
encoders is used.
"""

import argparse
import functools
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import mobilenet
from mmrl import config, presets, wiring
from mmrl.evaluators import stored
from mmrl.training import run
from mmrl.types import InputError

FEATURES = "image.pooled"


class Frozen:
    """Features that were computed before, as a `Predict` of evaluators.

    Args:
      features: id of an example -> f32[D].
    """

    provides = (FEATURES,)

    def __init__(self, features: Mapping[str, np.ndarray]) -> None:
        self._features = features

    def encode(self, state: Any, data: Any, names: Sequence[str]) -> dict[str, np.ndarray]:
        """The features of all examples, and "present", which is true of all.

        Raises:
          InputError: other features than `FEATURES`.
        """
        others = sorted(set(names) - {FEATURES})
        if others:
            raise InputError(f"{', '.join(others)}: frozen features are {FEATURES} alone")
        rows = np.stack([self._features[name] for name in data.ids])
        return {FEATURES: rows, "present": np.ones(len(rows), bool)}

    def stream(
        self, state: Any, data: Any, names: Sequence[str]
    ) -> Iterator[dict[str, np.ndarray]]:
        """As `encode`, in one block."""
        yield self.encode(state, data, names)


def probes(evaluators: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The probes among the evaluators of a config, by name."""
    return {
        name: given
        for name, given in evaluators.items()
        if wiring.chosen_module(name, given) == "probe"
    }


def judge(weights: Path, workdir: Path, preset: str, out: Path) -> None:
    """Judges the features on the test split of a preset and writes results.json and draws.npz.

    Raises:
      InputError: the weights, the run or the preset cannot be read, or the preset has no probe.
    """
    trained = run.restore(workdir)
    chosen = config.with_data(trained.config, presets.load(preset))
    asked = probes(chosen.evaluators)
    if not asked:
        raise InputError(f"{preset} has no probe, which is all that frozen features can do")
    chosen.evaluators = asked
    needed = wiring.evaluated(chosen)
    load = functools.partial(run.load_corpus, chosen, encodings=needed, allow_empty=True)
    corpora = {split: load(split=split) for split in ("train", "val", "test")}
    root = Path(chosen.data.get("root") or os.path.dirname(chosen.data.path))
    found: dict[str, np.ndarray] = {}
    for corpus in corpora.values():
        images = [
            mobilenet.read_colour(root / corpus.record(row).images[0].key)
            for row in range(len(corpus))
        ]
        rows = mobilenet.features(images, weights)
        found |= dict(zip(corpus.ids, rows, strict=True))
    examples = trained.examples(corpora["test"], corpora.__getitem__)
    predict: Any = Frozen(found)
    evaluators = run.make_evaluators(asked, predict, examples)
    content = {
        "step": None,
        "image": f"{mobilenet.SIZE}, in colour",
        "weights_sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "leaks": {"training": "ImageNet", "not_compared": ["patients and images of ImageNet"]},
        "warnings": corpora["test"].warnings,
        "headline": {name: dict(one.headline) for name, one in evaluators.items()},
    }
    stored.write(out, content, run.evaluate_all(evaluators, None))


def main() -> None:
    """Judges the features on one set."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, required=True, help="the file of the weights")
    parser.add_argument("--workdir", type=Path, required=True, help="a run, for its preparation")
    parser.add_argument("--config", required=True, help="FILE:VARIANT, the preset of the set")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    args = parser.parse_args()
    try:
        judge(args.weights, args.workdir, args.config, args.out)
    except InputError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
