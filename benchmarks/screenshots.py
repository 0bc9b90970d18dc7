"""Takes the pictures of pages that the docs show, in an installed Chromium.

    python -m benchmarks.screenshots --workdir=runs/pretrain --compared=runs/compared \\
        --out=docs/screenshots

--workdir is a run or an evaluation with its report.html, --compared the output of
`python -m mmrl.compare`. Without an installed browser, nothing is written.
"""

import argparse
import dataclasses
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks import browser
from mmrl import files
from mmrl.types import InputError

COLOURS = 256  # of a PNG: as many as one byte for each pixel names
MOST = 150_000
"""Bytes of a picture at most, so that a clone stays small."""


@dataclasses.dataclass(frozen=True)
class Shot:
    """A picture to take.

    Attributes:
      name: of the PNG. page: a file, or an address of a server.
      heading: of the page, that stands at the top of the window; "": the page itself does.
      size, dark, origin: as of `browser.opened`.
    """

    name: str
    page: Path | str
    heading: str = ""
    size: tuple[int, int] = (1000, 700)
    dark: bool = False
    origin: str = ""


def shots(workdir: Path, compared: Path) -> Iterator[Shot]:
    """The pictures of the summary page and of the page of a comparison."""
    report, comparison = workdir / "report.html", compared / "comparison.html"
    yield Shot("report-phone", report, size=browser.PHONE)
    yield Shot("report-neighbours", report, "Images nearest to a report")
    yield Shot("report-map", report, "Map of image.embedding", dark=True)
    yield Shot("comparison", comparison)


def take(running: Any, shot: Shot, folder: Path) -> Path:
    """Takes one picture with a running browser, as a PNG of few colours.

    Raises:
      InputError: no page or no such heading, or a picture that is too large.
    """
    if isinstance(shot.page, Path) and not shot.page.is_file():
        raise InputError(f"{shot.page} is missing; expected the page that {shot.name} shows")
    page = browser.opened(running, shot.page, size=shot.size, dark=shot.dark, origin=shot.origin)
    with page as visit:
        if shot.heading:
            heading = visit.page.locator("h2, h3").filter(has_text=shot.heading)
            if not heading.count():
                raise InputError(f"{shot.page} has no heading {shot.heading!r}")
            heading.first.evaluate("heading => heading.scrollIntoView()")
        image = Image.open(io.BytesIO(visit.page.screenshot()))
    small = io.BytesIO()
    image.convert("RGB").quantize(COLOURS).save(small, "PNG", optimize=True)
    if len(small.getvalue()) > MOST:
        raise InputError(
            f"{shot.name} has {len(small.getvalue()):,} bytes; expected at most {MOST:,}"
        )
    path = folder / f"{shot.name}.png"
    files.write(path, small.getvalue())
    return path


def main() -> None:
    """Takes all pictures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workdir", type=Path, default=Path("runs/pretrain"))
    parser.add_argument("--compared", type=Path, default=Path("runs/compared"))
    parser.add_argument("--out", type=Path, default=Path("docs/screenshots"))
    args = parser.parse_args()
    if reason := browser.missing():
        parser.error(f"no picture can be taken: {reason}")
    args.out.mkdir(parents=True, exist_ok=True)
    with browser.started() as running:
        for shot in shots(args.workdir, args.compared):
            try:
                path = take(running, shot, args.out)
            except InputError as error:
                parser.error(str(error))
            print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
