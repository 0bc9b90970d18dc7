"""Edits of a text: ranges of characters and what replaces them."""

import difflib
import functools
import re
from collections.abc import Iterable

Span = tuple[int, int]
"""(start, end) of a range of characters, end exclusive."""

Edit = tuple[int, int, str]
"""(start, end, replacement)."""

Edits = tuple[Edit, ...]
"""Edits that are applied together: ascending, without overlap."""

_ARTICLE = re.compile(r"(?<![\w-])(an?)(\s+)\Z", re.IGNORECASE)
_VOWEL = re.compile(r"[aeio]|u(?!ni)|8|1[18](?!\d)", re.IGNORECASE)
_TOKEN = re.compile(r"\w[\w/-]*|\s+|[^\w\s]")


def edited(text: str, edits: Iterable[Edit]) -> str:
    """The text after edits that ascend and do not overlap."""
    parts: list[str] = []
    copied = 0
    for start, end, new in edits:
        parts += [text[copied:start], new]
        copied = end
    return "".join((*parts, text[copied:]))


def shifted(edits: Edits, offset: int) -> Edits:
    """Edits of a sentence that begins at `offset` of a report, as edits of the report."""
    return tuple([(low + offset, high + offset, new) for low, high, new in edits])


@functools.lru_cache(1 << 14)
def word_edits(old: str, new: str) -> Edits:
    """The edits, of whole words, that turn `old` into `new`."""
    before, after = _TOKEN.findall(old), _TOKEN.findall(new)
    starts = [0]
    for token in before:
        starts.append(starts[-1] + len(token))
    matcher = difflib.SequenceMatcher(None, before, after, autojunk=False)
    return tuple(
        (starts[a], starts[b], "".join(after[c:d]))
        for tag, a, b, c, d in matcher.get_opcodes()
        if tag != "equal"
    )


def like(word: str, replacement: str) -> str:
    """`replacement` in the case of `word`: lower, Capitalised or UPPER."""
    if word.isupper() and len(word) > 1:
        return replacement.upper()
    return replacement[0].upper() + replacement[1:] if word[:1].isupper() else replacement


def with_article(text: str, edit: Edit) -> Edit:
    """The edit, extended over a preceding "a" or "an" that does not fit the replacement."""
    start, end, new = edit
    article = _ARTICLE.search(text, max(0, start - 4), start)
    fitting = "an" if _VOWEL.match(new) else "a"
    if article is None or article[1].lower() == fitting:
        return edit
    return article.start(1), end, like(article[1], fitting) + article[2] + new
