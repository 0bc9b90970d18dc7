"""Draws 24 phantoms with their findings, for a visual check of the corpus.

python -m benchmarks.phantom_sheet --out=docs/phantoms.png
python -m benchmarks.phantom_sheet --lateral --out=pairs.png
"""

import argparse
import textwrap
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from mmrl.data.phantom import lateral
from mmrl.data.phantom import study as phantom

COLUMNS, ROWS, SIZE = 6, 4, 224
PAIR_COLUMNS, PAIR_ROWS = 4, 6


def caption(study: phantom.Study) -> str:
    """The findings of a study, shortened to about three lines."""
    parts = [" ".join(f"{f.severity} {f.side} {f.zone} {f.name}".split()) for f in study.findings]
    return textwrap.shorten(textwrap.fill("; ".join(parts) or "normal", 34), 104, placeholder=" …")


def pair(study: phantom.Study) -> np.ndarray:
    """The frontal and the lateral image side by side."""
    return np.concatenate([phantom.render(study, SIZE), lateral.render(study, SIZE)], axis=1)


def draw(path: Path, seed: int, start: int, *, pairs: bool = False) -> None:
    """Writes a PNG of the studies start, start + 1, ..., with lateral images if `pairs`."""
    rows, columns = (PAIR_ROWS, PAIR_COLUMNS) if pairs else (ROWS, COLUMNS)
    width = 4.8 if pairs else 2.4
    figure = Figure(figsize=(columns * width, rows * 2.75), layout="constrained", dpi=80)
    axes = figure.subplots(rows, columns)
    for offset, axis in enumerate(axes.flat):
        study = phantom.study(seed, start + offset)
        picture = pair(study) if pairs else phantom.render(study, SIZE)
        axis.imshow(picture, cmap="gray", vmin=0, vmax=255)
        axis.set_title(textwrap.fill(caption(study), 72 if pairs else 36), fontsize=7)
        axis.axis("off")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})


def main() -> None:
    """Draws the phantoms."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/phantoms.png"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=int, default=24)
    parser.add_argument("--lateral", action="store_true", help="Draws lateral images, too.")
    args = parser.parse_args()
    draw(args.out, args.seed, args.start, pairs=args.lateral)
    print(f"{COLUMNS * ROWS} phantoms: {args.out}")


if __name__ == "__main__":
    main()
