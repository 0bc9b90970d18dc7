"""The public corpora that mmrl reads as their owners distribute them."""

import textwrap
from collections.abc import Iterator

from mmrl import build
from mmrl.data.overlap.fingerprints import source_facts
from mmrl.data.reading.drafts import Facts
from mmrl.data.reading.listing import Listing

_INDENT = " " * 6
_ACCESS = {
    "open": "open to download",
    "click": "free, once terms are accepted on the page of the owner",
    "credentialed": "for credentialed users, who complete a training and sign an agreement",
}


def lines() -> Iterator[str]:
    """For a terminal: what each corpus is, its terms, and its size."""
    for name, facts in _corpora():
        told = [facts.title, facts.url, f"licence: {_licence(facts)}"]
        told.append(f"access: {_ACCESS[facts.access]}")
        if records := facts.expected.get("records"):
            told.append(f"records: {records:,}")
        if facts.within:
            told.append(f"drawn from: {', '.join(facts.within)}")
        yield f"  {name}"
        for line in filter(None, told):
            yield from textwrap.wrap(line, 90, initial_indent=_INDENT, subsequent_indent=_INDENT)
    yield ""
    yield "Nothing is downloaded: obtain a corpus from its owner, under the owner's terms."
    yield "`python -m mmrl.prepare SOURCE --help` shows the folder layout and options of a source."


def markdown() -> Iterator[str]:
    """The table of docs/data.md."""
    yield "| source | corpus | licence | access | records | drawn from |"
    yield "|---|---|---|---|---|---|"
    for name, facts in _corpora():
        title = f"[{facts.title}]({facts.url})" if facts.url else facts.title
        records = facts.expected.get("records")
        size, within = f"{records:,}" if records else "", ", ".join(facts.within)
        cells = (f"`{name}`", title, _licence(facts), facts.access, size, within)
        yield f"| {' | '.join(cells)} |"


def _corpora() -> Iterator[tuple[str, Facts]]:
    for name in build.choices("source"):
        if issubclass(build.find("source", name), Listing):
            yield name, source_facts(name)


def _licence(facts: Facts) -> str:
    return facts.license or "each record has its own"
