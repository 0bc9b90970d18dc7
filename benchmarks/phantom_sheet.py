"""Draws 24 phantoms with their findings, for a visual check of the corpus.

python -m benchmarks.phantom_sheet --out=docs/phantoms.png
"""

import argparse
import textwrap
from pathlib import Path

from matplotlib.figure import Figure

from mmrl.data.phantom import study as phantom

COLUMNS, ROWS, SIZE = 6, 4, 224


def caption(study: phantom.Study) -> str:
    """The findings of a study, shortened to about three lines."""
    parts = [" ".join(f"{f.severity} {f.side} {f.zone} {f.name}".split()) for f in study.findings]
    return textwrap.shorten(textwrap.fill("; ".join(parts) or "normal", 34), 104, placeholder=" …")


def draw(path: Path, seed: int, start: int) -> None:
    """Writes a PNG of the studies start, start + 1, ..."""
    figure = Figure(figsize=(COLUMNS * 2.4, ROWS * 2.75), layout="constrained", dpi=80)
    axes = figure.subplots(ROWS, COLUMNS)
    for offset, axis in enumerate(axes.flat):
        study = phantom.study(seed, start + offset)
        axis.imshow(phantom.render(study, SIZE), cmap="gray", vmin=0, vmax=255)
        axis.set_title(textwrap.fill(caption(study), 36), fontsize=7)
        axis.axis("off")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})


def main() -> None:
    """Draws the phantoms."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/phantoms.png"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=int, default=24)
    args = parser.parse_args()
    draw(args.out, args.seed, args.start)
    print(f"{COLUMNS * ROWS} phantoms: {args.out}")


if __name__ == "__main__":
    main()
