"""A Markdown table of the corpora that mmrl reads as their owners distribute them."""

from mmrl import build
from mmrl.data.overlap.fingerprints import source_facts
from mmrl.data.reading.listing import Listing


def catalogue() -> list[str]:
    """The lines of the table, one per source that is a public corpus."""
    lines = [
        "| source | corpus | licence | access | expected records | part of |",
        "|---|---|---|---|---|---|",
    ]
    for name in build.choices("source"):
        if not issubclass(build.find("source", name), Listing):
            continue
        facts = source_facts(name)
        title = f"[{facts.title}]({facts.url})" if facts.url else facts.title
        records = facts.expected.get("records")
        cells = [
            f"`{name}`",
            title,
            facts.license or "by record",
            facts.access,
            f"{records:,}" if records else "by release",
            ", ".join(facts.within),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines
