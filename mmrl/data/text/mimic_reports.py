"""Splits reports of MIMIC-CXR into sections without losing text.

A report is plain text, most of it indented by one blank:

                                     FINAL REPORT
     EXAMINATION:  CHEST (PA AND LAT)

     FINDINGS:

     The lungs are clear.

The official parser (MIT-LCP/mimic-cxr, txt/section_parser.py) requires a line break and exactly
one blank before a header. The rules here differ:
  * A header may begin the text or a line, indented or not, and contain digits and "___"
    ("CHEST 2 VIEWS:"). "FINDINGS:" followed by "IMPRESSION: ..." on the next line is two headers;
    the official parser adds the impression to the findings.
  * A known name is also a header without a colon on a line of its own, in lower case at the start
    of a line, and in capitals within a line.
  * The text of a repeated header is added to its section, after a line break; the official parser
    keeps only the last. Addenda and wet reads are sections of their own.
  * A header that names images ("PORTABLE CHEST:") begins the findings, and is added to the
    examination. A header that names a part of the body ("LUNGS:") stays in the text, and begins the
    findings unless it is within findings or impression. Other unknown headers stay in the text.
  * As in the official parser, a report with neither findings nor impression has a section
    "last_paragraph": the text after the first blank line of its last section, where notifications
    and the like do not count as last. A report without headers is the section "full".
"""

import difflib
import functools
import re
from collections.abc import Iterator

_SYNONYMS = {
    "findings": "finding; observations; findings and impression; findings/impression;"
    " findings / impression; impression and findings; findings & impression; report; description",
    "impression": "impressions; conclusion; conclusions; opinion; summary; assessment; imp;"
    " provisional findings impression; provisional findings impression (pfi);"
    " final impression; impression and plan; impression and recommendation",
    "indication": "indications; clinical indication; clinical indications; reason; reason for exam;"
    " reason for examination; reason for this exam; reason for this examination; reason for study;"
    " reason for the study; clinical question; symptoms",
    "history": "clinical history; clinical information; clinical data; medical history;"
    " past medical history; hx; clinical presentation; patient history; clinical context",
    "comparison": "comparisons; comparison study; comparison studies; comparison exam; prior study;"
    " prior studies; prior exams; comparison made; compared to; comparisons made",
    "technique": "techniques; technical factors; protocol; views; number of views",
    "examination": "exam; examinations; exams; study; procedure; type of exam; type of examination;"
    " exam type; procedures",
    "recommendation": "recommendations; recommendation(s)",
    "notification": "notifications; communication; notification(s); notified; wetread notification",
    "addendum": "addenda; final addendum; addendum begins; addendum impression",
    "wet read": "wetread; wet read version; preliminary read; wet reading",
    "preamble": "final report; preliminary report; interim report; provisional report",
}
_CANONICAL = {
    other: name
    for name, others in _SYNONYMS.items()
    for other in (name, *(part.strip() for part in others.split(";")))
}
_NOT_ALONE = frozenset({"preamble", "report", "description", "views", "imp", "reason"})
# Names that may be part of a longer header, by precedence.
_PARTS = (
    "impression", "findings", "history", "comparison", "addendum", "indication", "technique",
    "recommendation", "notification",
)  # fmt: skip
_IMAGES = re.compile(
    r"\b(?:CHEST|PORTABLE|(?:PA|AP|FRONTAL) AND LAT|LATERAL|VIEWS?|RADIOGRAPHS?|CXR|UPRIGHT|SUPINE"
    r"|FRONTAL|DECUBITUS|X-?RAY)\b|^(?:PA|AP)\b"
)
_ORGAN = re.compile(
    r"\b(?:LUNGS?|HEART|CARDIAC|CARDIOMEDIASTIN\w+|MEDIASTIN\w+|PLEURA\w*|HILA\w*|HILUM|BONES?"
    r"|OSSEOUS|SKELET\w+|AIRWAYS?|TRACHEA|DIAPHRAGMS?|LINES?|TUBES?|DEVICES?|HARDWARE|VESSELS"
    r"|VASCULAR\w*|AORTA|ABDOMEN|SOFT TISSUES?|CHEST WALL|RIBS|SPINE|THORAX|BREASTS?)\b"
)
# Sections whose last paragraph may hold the findings; all others come at the end of a report.
_CONTEXT = frozenset({"indication", "history", "comparison", "technique", "examination"})
_REPORTING = frozenset({"findings", "impression", "addendum", "wet read"})
# Least similarity of a misspelt header to a name: FINDIGNS and FINDINGS have 0.875, but COMPRESSION
# and IMPRESSION only 0.857.
_SIMILARITY = 0.87


def _known(names: list[str]) -> str:
    longest_first = sorted(names, key=len, reverse=True)
    return "|".join(re.escape(name).replace(r"\ ", r"[ \t]+") for name in longest_first)


_CAPITALS = r"[A-Z][A-Z0-9_ \t()/,&'#-]*[A-Z0-9_)]"
_ANY = _known(list(_CANONICAL))
_HEADER = re.compile(
    rf"^[ \t]*(?:(?P<line>{_CAPITALS}|(?i:{_ANY}))[ \t]*:(?=\s|\Z)"
    rf"|(?P<alone>{_known([name.upper() for name in _CANONICAL if name not in _NOT_ALONE])})"
    r"[ \t]*$)"
    rf"|(?<=\s)(?P<within>{_known([n.upper() for n in _CANONICAL if n not in _NOT_ALONE])})"
    r"[ \t]*:(?=\s|\Z)",
    re.MULTILINE,
)
_BLANK_LINE = re.compile(r"\n[ \t]*\n")


def parse_report(text: str) -> dict[str, str]:
    """Section name -> stripped text; empty sections are omitted.

    Names are those of `reports.KNOWN_SECTIONS`. Every word of the report is in one section, except
    for headers that are known names. The module describes what a header is.

    >>> parse_report("FINDINGS:\\n IMPRESSION: No change.")
    {'impression': 'No change.'}
    """
    pieces = _pieces(text.replace("\r\n", "\n"))
    names = {name for name, body in pieces if body}
    if not names & {"findings", "impression"}:
        if not names & _CONTEXT:
            pieces = [("full" if name == "preamble" else name, body) for name, body in pieces]
        else:
            pieces = _with_last_paragraph(pieces)
    sections: dict[str, str] = {}
    for name, body in pieces:
        if body:
            sections[name] = f"{sections[name]}\n{body}" if name in sections else body
    return sections


def _pieces(text: str) -> list[tuple[str, str]]:
    """(section, text) pairs in reading order."""
    pieces: list[tuple[str, str]] = []
    current, start = "preamble", 0
    for name, header, begin, end in _headers(text):
        section, keeps_header = _section_of(name, header, current)
        if not section:
            continue  # the header stays in the text
        pieces.append((current, text[start:begin].strip()))
        if section == "findings" and not keeps_header and not name:
            pieces.append(("examination", " ".join(header.split())))
        current, start = section, begin if keeps_header else end
    pieces.append((current, text[start:].strip()))
    return pieces


def _headers(text: str) -> Iterator[tuple[str, str, int, int]]:
    """(section or "" if the name is unknown, header, its start and end) of every header."""
    start = 0
    for line in text.split("\n"):
        end = start + len(line)
        if ":" in line or line.isupper():  # no other line has a header; saves most searches
            for match in _HEADER.finditer(text, start, end):
                kind = match.lastgroup or ""
                header = match[kind]
                if kind != "within" or _opens(
                    text[max(start, match.start() - 80) : match.start()], header
                ):
                    yield _name_of(header), header, match.start(), match.end()
        start = end + 1


def _opens(before: str, header: str) -> bool:
    """Whether a known name within a line is a header, not the end of a longer one."""
    if header in ("FINDINGS", "IMPRESSION"):
        return True
    return not re.fullmatch(r"[A-Z]{2,}", "".join(before.split()[-1:]))


@functools.lru_cache(maxsize=4096)
def _name_of(header: str) -> str:
    """The section of a header that is a known name, misspelt or not, or contains one; else ""."""
    folded = " ".join(header.casefold().split())
    if folded in _CANONICAL:
        return _CANONICAL[folded]
    if header.isupper() and " " not in folded:
        for name in ("findings", "impression", "comparison", "indication", "technique"):
            if difflib.SequenceMatcher(None, folded, name).ratio() >= _SIMILARITY:
                return name
    return next((part for part in _PARTS if re.search(rf"\b{part}", folded)), "")


def _section_of(name: str, header: str, current: str) -> tuple[str, bool]:
    """The section that a header begins, "" for none, and whether the header stays in the text."""
    if name:
        return name, False
    if _ORGAN.search(header) and not re.search(r"\bVIEWS?\b|RADIOGRAPH", header):
        return ("", True) if current in _REPORTING else ("findings", True)
    if _IMAGES.search(header) and current not in _REPORTING - {"wet read"}:
        return "findings", False
    return "", True


def _with_last_paragraph(pieces: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Splits the last section of `_CONTEXT` at its first blank line."""
    last = max(at for at, (name, body) in enumerate(pieces) if name in _CONTEXT and body)
    name, body = pieces[last]
    blank = _BLANK_LINE.search(body)
    if not blank:
        return pieces
    cut = [(name, body[: blank.start()].strip()), ("last_paragraph", body[blank.end() :].strip())]
    return pieces[:last] + cut + pieces[last + 1 :]
