"""Opens pages in an installed Chromium, driven by Playwright; nothing is downloaded."""

import contextlib
import dataclasses
import importlib.util
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
PHONE, DESK = (360, 740), (1200, 900)
"""Widths and heights of windows, in CSS pixels."""

# Neither the sandbox of a container's root user nor its small /dev/shm can be relied on.
_ARGUMENTS = ("--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--hide-scrollbars")


@dataclasses.dataclass
class Visit:
    """An open page.

    Attributes:
      page: of Playwright.
      errors: of the console, and exceptions that no script caught.
      outside: addresses that the page asked for and did not get, because they are not its own.
    """

    page: Any
    errors: list[str] = dataclasses.field(default_factory=list)
    outside: list[str] = dataclasses.field(default_factory=list)

    def overflow(self) -> int:
        """How many pixels the page is wider than its window; 0 if it fits."""
        wider = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        return int(self.page.evaluate(wider))

    def save(self, path: str | os.PathLike[str], selector: str = "", whole: bool = False) -> None:
        """Writes a PNG: of the window, of the first element that matches, or of the whole page."""
        if selector:
            self.page.locator(selector).first.screenshot(path=path)
        else:
            self.page.screenshot(path=path, full_page=whole)


def missing() -> str:
    """Why no page can be opened here; "" where one can."""
    if importlib.util.find_spec("playwright") is None:
        return "Playwright is not installed; requirements-dev.txt has it"
    if _program() is None:
        return f"no browser is installed; expected one of {', '.join(NAMES)}"
    return ""


def _program() -> str | None:
    return next(filter(None, map(shutil.which, NAMES)), None)


@contextlib.contextmanager
def started() -> Iterator[Any]:
    """Starts a browser and stops it; while it runs, `asyncio.run` fails in this thread."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=_program(), args=list(_ARGUMENTS))
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def opened(
    browser: Any,
    address: str | os.PathLike[str],
    *,
    size: tuple[int, int] = PHONE,
    dark: bool = False,
    origin: str = "",
    scale: float = 1,
) -> Iterator[Visit]:
    """Opens one page with neither cookies nor a cache of earlier ones.

    Args:
      browser: of `started`.
      address: a file, or an address of a server.
      size: of the window. dark: whether the reader prefers dark pages.
      origin: start of the addresses that the page may ask for beside its own, such as
        "http://127.0.0.1:8000/". Requests to all others are refused and listed.
      scale: pixels of a screenshot per CSS pixel.
    """
    own = str(address)
    if "://" not in own:
        own = pathlib.Path(address).resolve().as_uri()
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]},
        color_scheme="dark" if dark else "light",
        device_scale_factor=scale,
    )
    try:
        visit = Visit(context.new_page())

        def answer(route: Any) -> None:
            asked = route.request.url
            if asked == own or asked.startswith("data:") or (origin and asked.startswith(origin)):
                route.continue_()
            else:
                visit.outside.append(asked)
                route.abort()

        def said(message: Any) -> None:
            if message.type == "error":
                visit.errors.append(message.text)

        context.route("**/*", answer)
        visit.page.on("console", said)
        visit.page.on("pageerror", lambda error: visit.errors.append(str(error)))
        visit.page.goto(own)
        yield visit
    finally:
        context.close()
