"""What every page has to keep in a browser; `chromium` in conftest.py is the browser."""

from benchmarks.browser import DESK, PHONE, Visit, opened

__all__ = ["DESK", "PHONE", "Visit", "opened", "is_sound", "readable"]


def is_sound(visit: Visit) -> None:
    """No error in the console, no request to elsewhere, nothing wider than the window."""
    assert visit.errors == [] and visit.outside == []
    assert visit.overflow() == 0, widest(visit)


def widest(visit: Visit) -> list[str]:
    """The elements that stick out of the window, for the message of a failure."""
    return visit.page.evaluate(
        """() => [...document.querySelectorAll("body *")]
          .filter(e => e.getBoundingClientRect().right > document.documentElement.clientWidth)
          .map(e => e.outerHTML.slice(0, 80))"""
    )[:5]


def readable(visit: Visit) -> float:
    """The contrast of the text of the page to its ground, from 1 to 21; WCAG asks for 4.5."""
    colours = visit.page.evaluate(
        """() => [getComputedStyle(document.body).color,
                  getComputedStyle(document.body).backgroundColor]"""
    )
    light = sorted(map(_luminance, colours))
    return (light[1] + 0.05) / (light[0] + 0.05)


def _luminance(colour: str) -> float:
    """Relative luminance of "rgb(r, g, b)", as WCAG 2 defines it."""
    parts = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
