"""Report text: normal forms, words, sentences and sections.

The input is raw text as in the corpora: de-identified ("XXXX", "___"), numbered ("1. No effusion.
2. ..."), hard-wrapped, with missing or doubled full stops. All functions are fixed rules.
"""

import re
import unicodedata
from collections.abc import Mapping

from mmrl.data.text import blanks

# --- words ---------------------------------------------------------------------------------------


def _combining_marks() -> str:
    """Combining marks as ranges of a regular expression; they are not part of Python's \\w."""
    ranges: list[list[int]] = []
    for code in range(0x300, 0x20000):
        if unicodedata.category(chr(code)) in ("Mn", "Mc", "Me"):
            if ranges and ranges[-1][1] == code - 1:
                ranges[-1][1] = code
            else:
                ranges.append([code, code])
    return "".join(f"{chr(low)}-{chr(high)}" for low, high in ranges)


# Their full stop belongs to the word and does not end a sentence.
_ABBREVIATIONS = frozenset(
    ("dr", "drs", "mr", "mrs", "ms", "prof", "st", "vs", "cf", "approx", "incl", "al", "e.g", "i.e")
)
# Likewise, but only before a number: "Fig. 3", "No. 2", "max. 4 cm".
_BEFORE_NUMBER = frozenset(("no", "nos", "fig", "figs", "vol", "max", "min", "ca"))

_MARK = f"[{_combining_marks()}]"  # separate from \w: a joint class would match more slowly
_TITLES = "|".join(sorted(word for word in _ABBREVIATIONS if "." not in word))
# "1." or "2)" at the start of a list item: not a word, like punctuation.
_ITEM = r"(?=\d)(?:\A|(?<=\n)|(?<=[.?!:;]\s)|(?<=[.?!:;]\s\s))\d{1,2}[.)](?:\s|(?=[A-Z]))"
_JOINT = r"(?:['’/‐‑–-]|(?<=\d)[.,:](?=\d))"  # noqa: RUF001
WORD = re.compile(
    rf"(?<!\w)(?!{_ITEM})(?:[A-Za-z]\.(?:[A-Za-z]\.)*[A-Za-z]\.(?!\w)"
    rf"|(?=[A-Za-z]{{2,6}}\.)(?i:{_TITLES})\.(?!\w)"
    rf"|\w+(?:(?!\s)(?:{_JOINT}\w+|{_MARK}+\w*))*)"
)
"""One word: "well-expanded", "x-XXXX", "C7-T1", "2.5", "p.m.", "Dr.", "effusion/pneumothorax".

There is always at least one other character between two words.
"""

# --- normal forms --------------------------------------------------------------------------------

_INVISIBLE = dict.fromkeys((*range(9), *range(14, 28), 127, 0xAD, 0x200B, 0xFEFF))
_NOT_WORD = re.compile(rf"(?:(?!{_MARK})[\W_])+")
_NOT_WORD_ASCII = re.compile(r"[\W_]+", re.ASCII)  # for text without marks; much faster


def normalise(text: str) -> str:
    """Unicode NFKC, invisible characters removed, every run of white space one blank, stripped.

    Idempotent. Keeps case and punctuation.
    """
    if not (text.isascii() and text.isprintable()):  # such text is in normal form already
        text = unicodedata.normalize("NFKC", text.translate(_INVISIBLE))
    return " ".join(text.split())


def canonical(text: str) -> str:
    """A key that is equal for texts that differ only in case, punctuation and layout.

    "No  Effusion." and "no effusion" have equal keys, "2.5" and "25" have not. Near-duplicate
    search and duplicate groups use it.
    """
    folded = normalise(normalise(text).casefold())
    apart = _NOT_WORD_ASCII if folded.isascii() else _NOT_WORD
    return apart.sub(" ", folded).strip()


# --- sentences -----------------------------------------------------------------------------------

_BOUNDARY = re.compile(
    r"(?P<blank>\n\s*\n|\n(?=[ \t]*(?:[-*•]\s|\d{1,2}[.)]\s)))"
    r"|(?P<stop>[.?!…]+)[\"'”’)\]]*"  # noqa: RUF001
)
_DOTTED = re.compile(r"(?:[a-z]\.)+[a-z]")
_INITIAL = re.compile(r"[^\W\d_]")
_MASKED = re.compile(r"X{2,}|_+")
_HAS_WORD = re.compile(r"\w")
_NEXT = re.compile(r"\s*(\S*)")


def _dot_ends(text: str, start: int, dot: int, following: str) -> bool:
    """Whether the full stop at `dot` ends the sentence that begins at `start`.

    `following` is the text after it, from its first character that is not white space.
    """
    before = text[start:dot].split()
    if not before or text[dot - 1].isspace():
        return True
    word = before[-1].lstrip("([\"'").casefold()
    if word in _ABBREVIATIONS:
        return False
    if len(before) == 1 and word.isdecimal() and len(word) <= 2:
        return False  # the mark of a list item
    if word in _BEFORE_NUMBER and following[:1].isdigit():
        return False
    if _INITIAL.fullmatch(word):  # "E. coli", "Dr. J. Smith", but "hepatitis B. No ..."
        named = len(before) == 1 or before[-2].casefold().endswith(".")
        return not named and not following[:1].islower()
    if _DOTTED.fullmatch(word):  # "at 3 p.m. XXXX" is ambiguous; a capital letter is not
        return following[:1].isupper() and not _MASKED.match(following)
    return True


def _is_end(text: str, start: int, match: re.Match[str]) -> bool:
    """Whether the punctuation `match` ends the sentence that begins at `start`."""
    stop, begin, end = match["stop"], match.start(), match.end()
    if end < len(text) and not text[end].isspace():
        # "left lung apex.There are": the blank is missing.
        capital = text[end].isupper() and text[end + 1 : end + 2].islower()
        return capital and (stop[0] != "." or _dot_ends(text, start, begin, text[end:]))
    following = _NEXT.match(text, end)
    after = following[1] if following else ""
    if not after:
        return True
    if stop[0] == "?" and begin > start and text[begin - 1].isspace():
        return False  # "cough, ? pneumonia"
    if stop[0] == "…" or len(stop) > 2:
        return not after[0].islower()
    return stop[0] != "." or _dot_ends(text, start, begin, after)


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """Character spans of the sentences, in order, without overlap.

    Every character outside the spans is white space. Boundaries are full stops, question and
    exclamation marks, blank lines, and list items on a line of their own. A stray full stop belongs
    to the sentence before it. A line break alone is no boundary, because reports are hard-wrapped.
    """
    cuts: list[tuple[int, int]] = []
    start = 0
    for match in _BOUNDARY.finditer(text):
        if match["blank"] is not None:
            cuts.append((start, match.start()))
            start = match.start()
        elif _is_end(text, start, match):
            cuts.append((start, match.end()))
            start = match.end()
    cuts.append((start, len(text)))
    spans: list[tuple[int, int]] = []
    wordless = -1  # start of a piece without words at the beginning of the text
    for low, high in cuts:
        piece = text[low:high]
        if not piece.strip():
            continue
        low += len(piece) - len(piece.lstrip())
        high = low + len(piece.strip())
        if not _HAS_WORD.search(piece):
            if spans:
                spans[-1] = (spans[-1][0], high)
            elif wordless < 0:
                wordless = low
            continue
        if wordless >= 0:
            low, wordless = wordless, -1
        spans.append((low, high))
    if wordless >= 0:
        spans.append((wordless, len(text.rstrip())))
    return spans


def split_sentences(text: str) -> list[str]:
    """The sentences of a report, with every run of white space as one blank.

    >>> split_sentences("1. No effusion. 2. A 2.5 cm mass, e.g. granuloma..")
    ['1. No effusion.', '2. A 2.5 cm mass, e.g. granuloma..']
    """
    return [" ".join(text[low:high].split()) for low, high in sentence_spans(text)]


# --- sections ------------------------------------------------------------------------------------

# Canonical name -> other headers for it. A header that names findings and impression together is
# "findings", because its text begins with them.
_SYNONYMS: dict[str, tuple[str, ...]] = {
    "findings": (
        "finding", "observations", "description", "findings and impression",
        "findings/impression", "findings / impression", "impression and findings",
    ),
    "impression": (
        "impressions", "conclusion", "conclusions", "opinion", "summary", "assessment",
    ),
    "indication": (
        "indications", "clinical indication", "clinical indications", "reason for exam",
        "reason for examination", "reason for this exam", "reason for this examination",
        "reason for study", "reason for the study", "reason",
    ),
    "comparison": (
        "comparisons", "comparison study", "comparison studies", "comparison exam",
        "prior study", "prior studies", "prior exams",
    ),
    "history": ("clinical history", "clinical information", "clinical data", "medical history"),
    "technique": ("techniques", "technical factors", "protocol"),
    "examination": ("exam", "examinations", "study", "procedure"),
    "recommendation": ("recommendations", "recommendation(s)"),
    "addendum": ("addenda",),
    "notification": ("notifications",),
    "wet read": ("wetread",),
}  # fmt: skip

KNOWN_SECTIONS: tuple[str, ...] = (*_SYNONYMS, "caption", "last_paragraph", "preamble", "full")
"""The section names of records; "full" is a report without headers."""

# Marks of de-identification in brackets; names and dates of patients stood there.
_REPLACED = re.compile(r"\[(?:\*\*[^\]]*\*\*|[A-Z][A-Z _-]*)\]|<[A-Z][A-Z _-]*>")
# The first character of a word that is no mark such as "XXXX".
_CONTENT = re.compile(r"(?<![^\W_])(?!X{4,}(?![^\W_]))[^\W_]")
_LOWER = re.compile("[a-z]")
# Lines that say nothing: the title of a report, and a heading in capitals with nothing after it.
_TITLE = re.compile(r"^[ \t]*(?:FINAL|WET|PRELIMINARY) (?:REPORT|READ):?[ \t]*$", re.MULTILINE)
_OPEN_TITLE = re.compile(r"^[ \t]*[A-Z][A-Z /()&,-]{2,}:[ \t]*$", re.MULTILINE)

_CANONICAL = {header: name for name, headers in _SYNONYMS.items() for header in (name, *headers)}
_ANY_HEADER = "|".join(
    re.escape(header).replace(r"\ ", r"\s+") for header in sorted(_CANONICAL, key=len, reverse=True)
)
_HEADER = re.compile(rf"(?<!\S)(?P<name>(?i:{_ANY_HEADER}))\s*:")


def _opens(before: str) -> bool:
    """Whether the text `before` ends where a line or a sentence begins."""
    line = before.rpartition("\n")[2].rstrip()
    return not line or line.rstrip("\"')]")[-1:] in tuple(".?!:;")


def _headers(text: str) -> list[tuple[int, int, str]]:
    """(start, end, canonical name) of every section header of the text."""
    found: list[tuple[int, int, str]] = []
    if ":" not in text:
        return found
    for match in _HEADER.finditer(text):
        name = match["name"]
        if name.isupper() or (name[0].isupper() and _opens(text[: match.start()])):
            key = " ".join(name.casefold().split())
            found.append((match.start(), match.end(), _CANONICAL[key]))
    return found


def parse_sections(text: str) -> dict[str, str]:
    """Splits a free-text report at its headers, "FINDINGS:" or "Clinical history:".

    A header is a known name and a colon. It begins with a capital letter at the start of a line or
    sentence, or is in capitals anywhere. Unknown headers ("LUNGS:") stay in the text of their
    section.

    Returns:
      Canonical name (conclusion -> impression) -> stripped text, "" for a header without text. The
      texts of a repeated header are joined by a line break. Text before the first header is
      "preamble". A report without headers is {"full": text}.
    """
    headers = _headers(text)
    if not headers:
        return {"full": text}
    sections: dict[str, str] = {}
    preamble = text[: headers[0][0]].strip()
    if preamble:
        sections["preamble"] = preamble
    ends = [start for start, _, _ in headers[1:]] + [len(text)]
    for (_, begin, name), end in zip(headers, ends, strict=True):
        body = text[begin:end].strip()
        earlier = sections.get(name, "")
        sections[name] = f"{earlier}\n{body}" if earlier and body else earlier or body
    return sections


def is_blank(text: str) -> bool:
    """Whether a section says nothing.

    It is a blank cell (see `blanks`), also with a full stop after it, or holds no letter or digit
    beside headings ("FINDINGS:") and marks of de-identification ("___", "XXXX", "[**Name**]").
    """
    if _says(text.rpartition(":")[2]):  # no heading of a section is without a colon
        return False
    return not any(map(_says, parse_sections(text).values()))


def _says(text: str) -> bool:
    """Whether a text without known headings has a word that is no mark."""
    if "[**" not in text and _LOWER.search(text):  # headings and other marks are in capitals
        return not blanks.is_blank(text.rstrip(". \n"))
    for pattern in (_REPLACED, _TITLE, _OPEN_TITLE):
        text = pattern.sub("", text)
    return bool(_CONTENT.search(text)) and not blanks.is_blank(text.rstrip(". \n"))


def compose(sections: Mapping[str, str], wanted: tuple[str, ...]) -> str:
    """The wanted sections, in that order, as one text; missing and blank ones are skipped.

    Each section is stripped, and a full stop is added if it does not end like a sentence. They are
    joined by one blank. Returns "" if no section is left.
    """
    parts = []
    for name in wanted:
        text = sections.get(name, "").strip()
        if is_blank(text):
            continue
        parts.append(text if text.rstrip("\"'”’)]")[-1:] in tuple(".?!…:") else text + ".")  # noqa: RUF001
    return " ".join(parts)
