"""Where words lie in a text whose tokenizer has changed case, accents and layout."""

import re
import unicodedata
from collections.abc import Sequence

Span = tuple[int, int]


def locate(text: str, words: Sequence[str]) -> list[Span]:
    """Character spans of words, in the order in which they were read from `text`.

    Words are compared without case, accents and compatibility forms. Words that are not found, such
    as the mark of an unknown word, take the chunks between white space that lie between their
    neighbours; where there are fewer chunks than such words, they share what lies there.

    Args:
      text: as it was given to the tokenizer.
      words: of the beginning of the text, which may have been cut.

    Returns:
      (start, end) of each word, in characters of `text`; equal numbers if nothing is left for it.
    """
    folded = [_fold(character) for character in text]
    places = [index for index, part in enumerate(folded) for _ in part]
    whole, cursor = "".join(folded), 0
    found: list[Span | None] = []
    for word in words:
        wanted = _fold(word)
        at = whole.find(wanted, cursor) if wanted else -1
        if at < 0:
            found.append(None)
            continue
        cursor = at + len(wanted)
        end = places[cursor - 1] + 1
        while end < len(text) and not folded[end] and not text[end].isspace():
            end += 1  # marks that belong to the last letter
        found.append((places[at], end))
    return _filled(text, found)


def _filled(text: str, found: Sequence[Span | None]) -> list[Span]:
    """The spans, with those of words that were not found."""
    spans: list[Span] = []
    for index, span in enumerate(found):
        if span is not None:
            spans.append(span)
            continue
        if index and found[index - 1] is None:
            continue  # filled with the first of its neighbours
        after = next((i for i in range(index, len(found)) if found[i] is not None), len(found))
        end = known[0] if after < len(found) and (known := found[after]) else len(text)
        spans += _shared(text, spans[-1][1] if spans else 0, end, after - index)
    return spans


def _shared(text: str, start: int, end: int, count: int) -> list[Span]:
    """Spans of `count` words between two places."""
    chunks = [match.span() for match in re.compile(r"\S+").finditer(text, start, end)]
    if len(chunks) >= count:
        return chunks[:count]
    return [(chunks[0][0], chunks[-1][1]) if chunks else (start, start)] * count


def _fold(text: str) -> str:
    """Compatibility forms and case folded; without accents, invisible characters and white space.

    Of a text it is the fold of its characters, one after the other.
    """
    apart = unicodedata.normalize("NFKD", text).casefold()
    apart = unicodedata.normalize("NFKD", apart)
    return "".join(c for c in apart if unicodedata.category(c)[0] not in "MC" and not c.isspace())
