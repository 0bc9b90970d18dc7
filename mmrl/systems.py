"""Lists the published systems that mmrl expresses or serves, and those that it does not yet.

The status of a system is one of these:

preset: a short file in configs/ expresses it. command: a command serves it. block: the system is
outside what mmrl is for; the module named shares its idea. open: not expressed; what is missing is
stated.

Presets and commands are checked on phantoms; docs/systems.md states how, and with which figures.

    python -m mmrl.systems
    python -m mmrl.systems --status=preset
    python -m mmrl.systems --coverage
"""

import csv
import dataclasses
import functools
import itertools
import json
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from absl import flags
from rich.table import Table
from rich.text import Text

from mmrl import build, cli
from mmrl.types import InputError

PRESET, COMMAND, BLOCK, OPEN = STATUSES = ("preset", "command", "block", "open")
DOMAINS = ("radiology", "pathology", "other")
# The first eight are those of Zhao et al. 2023, "CLIP in medical imaging: a comprehensive survey":
# three ways to refine the pretraining, and five uses.
TOPICS = (
    "multi-scale contrast",
    "data efficiency",
    "knowledge",
    "classification",
    "dense prediction",
    "questions",
    "retrieval",
    "generation",
    "global contrast",
    "masked modelling",
    "self-distillation",
    "sets",
    "time",
    "third modality",
    "data",
)

_FILE = Path(__file__).with_suffix(".csv")
_WIDTH = 100
_FLAGS = cli.new_flags()
_COVERAGE = flags.DEFINE_bool(
    "coverage",
    False,
    "Prints for each topic and domain which presets and commands there are, and which gaps.",
    flag_values=_FLAGS,
)
_STATUS = flags.DEFINE_string(
    "status", "", f"STATUS: Only systems with it: {', '.join(STATUSES)}.", flag_values=_FLAGS
)
_JSON = flags.DEFINE_bool("json", False, "Prints a JSON list instead.", flag_values=_FLAGS)


@dataclasses.dataclass(frozen=True)
class System:
    """A published system.

    Attributes:
      number: by which docs/systems.md refers to it.
      kind: pretraining, self-supervision, data, benchmark, adaptation or generation.
      domain: of DOMAINS. topics: of TOPICS.
      status: of STATUSES.
      how: the preset below configs/ without suffix; the command; the module below mmrl/; or what is
        missing.
    """

    number: int
    system: str
    year: int
    kind: str
    domain: str
    topics: tuple[str, ...]
    status: str
    how: str

    @property
    def title(self) -> str:
        """Number and name, and whether it is outside what mmrl is for."""
        return f"#{self.number} {self.system}" + " (out of scope)" * (self.status == BLOCK)

    @property
    def place(self) -> str:
        """`how`, and of a preset its file."""
        return f"configs/{self.how}.py" if self.status == PRESET else self.how


@functools.cache
def read() -> tuple[System, ...]:
    """All systems, by number."""
    with _FILE.open(encoding="utf-8", newline="") as lines:
        return tuple(
            System(
                int(row["number"]),
                row["system"],
                int(row["year"]),
                row["kind"],
                row["domain"],
                tuple(row["topics"].split(";")),
                row["status"],
                row["how"],
            )
            for row in csv.DictReader(lines)
        )


class Cell(NamedTuple):
    """What mmrl has in a domain for a topic.

    Attributes:
      has: presets and commands. gaps: the titles of systems that are not expressed.
    """

    has: tuple[str, ...]
    gaps: tuple[str, ...]


def coverage(systems: Iterable[System]) -> dict[tuple[str, str], Cell]:
    """(topic, domain) -> what mmrl has there; only where systems are listed."""
    found: dict[tuple[str, str], Cell] = {}
    listed = tuple(systems)
    for topic, domain in itertools.product(TOPICS, DOMAINS):
        here = [one for one in listed if topic in one.topics and one.domain == domain]
        if here:
            found[topic, domain] = Cell(
                tuple(one.place for one in here if one.status in (PRESET, COMMAND)),
                tuple(one.title for one in here if one.status in (BLOCK, OPEN)),
            )
    return found


def _listed(systems: Sequence[System]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("#", "system", "year", "status", "how"):
        table.add_column(name, overflow="fold", justify="right" if name == "#" else "left")
    for one in systems:
        cells = (str(one.number), one.system, str(one.year), one.status, one.place)
        table.add_row(*map(Text, cells))
    return table


def _covered(systems: Sequence[System]) -> Iterator[str]:
    """For each topic its domains, with what there is and what is missing."""
    yield "has: presets and commands; gaps: published systems that are not expressed"
    for topic, cells in itertools.groupby(coverage(systems).items(), lambda one: one[0][0]):
        yield topic
        for (_, domain), cell in cells:
            for head, names in (("has", cell.has), ("gaps", cell.gaps)):
                start = f"  {domain if head == 'has' else '':<10} {head:<5} "
                yield from textwrap.wrap(
                    ", ".join(names) or "none",
                    _WIDTH,
                    initial_indent=start,
                    subsequent_indent=" " * len(start),
                    break_on_hyphens=False,
                )


def main() -> None:
    """Prints the list, or the table of what is covered."""
    status = _STATUS.value
    if status and status not in STATUSES:
        raise InputError(build.unknown("value of --status", status, STATUSES))
    systems = [one for one in read() if not status or one.status == status]
    if _JSON.value:
        print(json.dumps([dataclasses.asdict(one) for one in systems], indent=2))
        return
    if _COVERAGE.value:
        print(*_covered(systems), sep="\n")
        return
    console = cli.console()
    console.print(_listed(systems), markup=False)
    if not status:
        counts = (f"{sum(s.status == one for s in systems)} {one}" for one in STATUSES)
        console.print(f"{len(systems)} systems: {', '.join(counts)}", markup=False)
        console.print(
            "block: outside what mmrl is for, a module shares its idea; open: not expressed",
            markup=False,
        )


if __name__ == "__main__":
    cli.run(main, _FLAGS, __doc__)
