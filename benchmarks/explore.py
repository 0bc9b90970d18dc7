"""Times the page of explore in an installed Chromium, and takes the pictures that the docs show.

    python -m benchmarks.explore --workdir=runs/pretrain --out=docs/screenshots

Starts `python -m mmrl.explore` and uses its page as a reader does: it searches, opens images,
clicks words and changes reports. Prints the median time of each, until the answer is on the page.
Further arguments go to mmrl.explore, such as --index=embeddings.
"""

import argparse
import contextlib
import io
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks import browser
from mmrl import files

TIMES = 20
QUERIES = ("Large left pleural effusion.", "Small right effusion.", "No acute findings.")
WINDOW = (980, 500)


@contextlib.contextmanager
def exploring(arguments: list[str]) -> Iterator[str]:
    """Runs the command; yields the address of its page, with the token."""
    command = [sys.executable, "-m", "mmrl.explore", "--port=0", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                print(line, end="")
                if line.startswith("open "):
                    yield line.split()[1]
                    break
        finally:
            process.terminate()


class Reader:
    """Uses the page, and notes how long each answer takes.

    Attributes:
      taken: what was asked -> milliseconds.
    """

    def __init__(self, page: Any) -> None:
        self._page, self.taken = page, dict[str, list[float]]()

    @contextlib.contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        self.taken.setdefault(what, []).append(1000 * (time.perf_counter() - begun))

    def search(self, text: str) -> None:
        """Searches for images."""
        self._page.fill("#query", text)
        self._page.evaluate("document.querySelector('#found').textContent = ''")
        with self._timed("search by a sentence"):
            self._page.press("#query", "Enter")
            self._page.locator("#found", has_text="nearest").wait_for()

    def open(self, number: int) -> None:
        """Opens an image: its report, where its words look, its nearest reports."""
        self._page.evaluate("document.querySelector('#other output').textContent = ''")
        with self._timed("open an image"):
            self._page.locator("#hits button").nth(number).click()
            self._page.locator("#other output", has_text="%").wait_for()

    def click(self, word: str) -> None:
        """Clicks a word of the report."""
        with self._timed("click a word"):
            self._page.locator(".word", has_text=word).first.click()
            self._page.locator("#caption", has_text="orange").wait_for()

    def change(self) -> None:
        """Swaps the sides in the report."""
        self._page.evaluate("document.querySelector('#other output').textContent = ''")
        with self._timed("change a report"):
            self._page.click("#sides")
            self._page.locator("#other output", has_text="%").wait_for()


def main() -> None:
    """Uses the page, prints times and writes pictures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/screenshots"), help="for pictures")
    arguments, others = parser.parse_known_args()
    if reason := browser.missing():
        parser.error(reason)
    with exploring(others) as address, browser.started() as running:
        origin = address.partition("?")[0]
        for name, size in (("explore", WINDOW), ("explore-phone", browser.PHONE)):
            with browser.opened(running, address, size=size, origin=origin) as visit:
                reader = Reader(visit.page)
                for number in range(TIMES):
                    reader.search(QUERIES[number % len(QUERIES)])
                    reader.open(number % 12)
                    reader.click("the")
                    reader.change()
                reader.search(QUERIES[0])
                reader.open(1)
                reader.click("effusion")
                visit.page.locator("#study").evaluate("pane => pane.scrollTo(0, 0)")
                image = Image.open(io.BytesIO(visit.page.screenshot()))
                if visit.errors or visit.outside:
                    sys.exit(f"the page is not sound: {visit.errors or visit.outside}")
            small = io.BytesIO()
            image.convert("RGB").quantize(140).save(small, "PNG", optimize=True)
            files.write(arguments.out / f"{name}.png", small.getvalue())
            for what, taken in reader.taken.items():
                print(f"{name}: {what}: median {statistics.median(taken):.0f} ms")


if __name__ == "__main__":
    main()
