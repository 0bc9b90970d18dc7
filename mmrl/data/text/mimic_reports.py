"""Reports of MIMIC-CXR to sections; a parser of our own that loses no text.

A report is plain text, most of it indented by one blank:

                                     FINAL REPORT
     EXAMINATION:  CHEST (PA AND LAT)

     FINDINGS:

     The lungs are clear.

The parser that comes with the corpus (MIT-LCP/mimic-cxr, txt/section_parser.py) wants a line break
and exactly one blank before a header. Here, instead:
  * A header may open the text or its line, indented or not, and hold digits and "___"
    ("CHEST 2 VIEWS:"). "FINDINGS:" with "IMPRESSION: ..." on the next line is two headers, where
    the other parser takes the impression into the findings.
  * A known name also counts with its line to itself and no colon, in small letters at the start
    of its line, and in capitals within a line.
  * A header that comes again adds to its section, below a line break; the last does not replace
    the others. Addenda and wet reads have sections of their own.
  * Headers that name a view ("PORTABLE CHEST:") open the findings and are added to the
    examination. Headers that name a part of the body ("LUNGS:") stay in the text, and open the
    findings where no findings or impression are open. Others that are not known stay in the text
    of the section that they stand in.
  * As there, a report with neither findings nor impression gives what follows the first blank
    line of its last section as "last_paragraph"; notifications and the like at the end do not
    count as last. A report without headers is "full", and not cut.
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
# Part of a longer header, in this order of precedence.
_PARTS = (
    "impression", "findings", "history", "comparison", "addendum", "indication", "technique",
    "recommendation", "notification",
)  # fmt: skip
_VIEW = re.compile(
    r"\b(?:CHEST|PORTABLE|(?:PA|AP|FRONTAL) AND LAT|LATERAL|VIEWS?|RADIOGRAPHS?|CXR|UPRIGHT|SUPINE"
    r"|FRONTAL|DECUBITUS|X-?RAY)\b|^(?:PA|AP)\b"
)
_ORGAN = re.compile(
    r"\b(?:LUNGS?|HEART|CARDIAC|CARDIOMEDIASTIN\w+|MEDIASTIN\w+|PLEURA\w*|HILA\w*|HILUM|BONES?"
    r"|OSSEOUS|SKELET\w+|AIRWAYS?|TRACHEA|DIAPHRAGMS?|LINES?|TUBES?|DEVICES?|HARDWARE|VESSELS"
    r"|VASCULAR\w*|AORTA|ABDOMEN|SOFT TISSUES?|CHEST WALL|RIBS|SPINE|THORAX|BREASTS?)\b"
)
# Text in these may be what the report found; the others end a report.
_CONTEXT = frozenset({"indication", "history", "comparison", "technique", "examination"})
_TALKING = frozenset({"findings", "impression", "addendum", "wet read"})
_LIKENESS = 0.87  # of a misspelt header: FINDIGNS 0.875; COMPRESSION is 0.857 like IMPRESSION


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
    """Section name -> text, as it stands but for white space around it; empty ones are left out.

    Every word of the report is in one section, except headers that are known by name. Names are
    those of `mmrl.data.text.reports.KNOWN_SECTIONS`. See above for what counts as a header.

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
    """(section or "" when not known by name, the header itself, its start and end in the text)."""
    start = 0
    for line in text.split("\n"):
        end = start + len(line)
        if ":" in line or line.isupper():  # few lines are worth a search
            for match in _HEADER.finditer(text, start, end):
                kind = match.lastgroup or ""
                header = match[kind]
                if kind != "within" or _opens(
                    text[max(start, match.start() - 80) : match.start()], header
                ):
                    yield _name_of(header), header, match.start(), match.end()
        start = end + 1


def _opens(before: str, header: str) -> bool:
    """Whether a known name within a line is a header and not the end of a longer one."""
    if header in ("FINDINGS", "IMPRESSION"):
        return True
    return not re.fullmatch(r"[A-Z]{2,}", "".join(before.split()[-1:]))


@functools.lru_cache(maxsize=4096)
def _name_of(header: str) -> str:
    """The section of a header that is known, misspelt or contains a known name; else ""."""
    folded = " ".join(header.casefold().split())
    if folded in _CANONICAL:
        return _CANONICAL[folded]
    if header.isupper() and " " not in folded:
        for name in ("findings", "impression", "comparison", "indication", "technique"):
            if difflib.SequenceMatcher(None, folded, name).ratio() >= _LIKENESS:
                return name
    return next((part for part in _PARTS if re.search(rf"\b{part}", folded)), "")


def _section_of(name: str, header: str, current: str) -> tuple[str, bool]:
    """The section that a header opens, "" for none, and whether it stays in the text."""
    if name:
        return name, False
    if _ORGAN.search(header) and not re.search(r"\bVIEWS?\b|RADIOGRAPH", header):
        return ("", True) if current in _TALKING else ("findings", True)
    if _VIEW.search(header) and current not in _TALKING - {"wet read"}:
        return "findings", False
    return "", True


def _with_last_paragraph(pieces: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Cuts the last section that gives context at its first blank line."""
    last = max(at for at, (name, body) in enumerate(pieces) if name in _CONTEXT and body)
    name, body = pieces[last]
    blank = _BLANK_LINE.search(body)
    if not blank:
        return pieces
    cut = [(name, body[: blank.start()].strip()), ("last_paragraph", body[blank.end() :].strip())]
    return pieces[:last] + cut + pieces[last + 1 :]
