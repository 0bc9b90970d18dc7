"""Relations between findings and anatomy, as a graph over names.

`built_in` are our own, in relations.csv: what a finding is a kind of, where it lies, and what it
suggests. `read` reads those of a user: a table with the columns head, relation and tail, or an
ontology in the OBO format (version 1.4 of its specification), of which names, is_a and relationship
are read.
"""

import csv
import functools
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from mmrl.types import InputError

_COLUMNS = ("head", "relation", "tail")
_FILE = pathlib.Path(__file__).with_name("relations.csv")


class Relation(NamedTuple):
    """`head` stands in `relation` to `tail`: ("effusion", "located_in", "pleura")."""

    head: str
    relation: str
    tail: str


@functools.cache
def built_in() -> tuple[Relation, ...]:
    """The relations that mmrl has; their names are those of `lexicon.CHOICES`."""
    return read(_FILE)


def read(path: str | os.PathLike[str]) -> tuple[Relation, ...]:
    """The relations of a file, .csv or .obo, in its order and without repetitions.

    Names are in lower case, with single blanks.

    Raises:
      InputError: another suffix, a file that cannot be read, missing columns, an empty name, or no
        relation.
    """
    path = pathlib.Path(path)
    readers = {".csv": _of_table, ".obo": _of_ontology}
    if path.suffix.lower() not in readers:
        raise InputError(f"relations {path}: expected a file that ends with .csv or .obo")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "no UTF-8 text"
        raise InputError(f"relations {path}: {reason}") from None
    found = tuple(dict.fromkeys(readers[path.suffix.lower()](lines, path)))
    if not found:
        raise InputError(f"relations {path}: expected at least one relation, got none")
    return found


def _of_table(lines: Sequence[str], path: pathlib.Path) -> Iterable[Relation]:
    table = csv.DictReader(lines)
    lacking = set(_COLUMNS) - set(table.fieldnames or ())
    if lacking:
        raise InputError(
            f"relations {path}: no column {', '.join(sorted(lacking))}; expected head,relation,tail"
        )
    for row in table:
        parts = [_plain(row[column] or "") for column in _COLUMNS]
        if not all(parts):
            raise InputError(f"relations {path}: line {table.line_num} has an empty cell")
        yield Relation(*parts)


def _of_ontology(lines: Sequence[str], path: pathlib.Path) -> Iterable[Relation]:
    """Names of terms that the file does not define are those of the comment, else their ids."""
    names: dict[str, str] = {}
    edges: list[tuple[str, str, str, str]] = []
    term, inside = "", False
    for line in lines:
        tag, _, value = (part.strip() for part in line.partition(":"))
        if line.startswith("["):
            term, inside = "", line.strip() == "[Term]"
        elif inside and tag == "id":
            term = value.split(" ! ")[0].strip()
        elif inside and tag == "name" and term:
            names[term] = _plain(value)
        elif inside and tag in ("is_a", "relationship") and term:
            target, _, comment = (part.strip() for part in value.partition("!"))
            kind, words = "is_a", target.split("{")[0].split()
            if tag == "relationship" and len(words) > 1:
                kind, *words = words
            if not words:
                raise InputError(f"relations {path}: {tag} of {term} names no term")
            edges.append((term, kind, words[0], _plain(comment)))
    for head, kind, tail, comment in edges:
        yield Relation(names.get(head, head), kind, names.get(tail) or comment or tail)


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def edges(
    names: Sequence[str], relations: Iterable[Relation], kinds: Sequence[str] = ()
) -> np.ndarray:
    """The relations among names, i32[n, 2]: pairs of indices, first the smaller one, ascending.

    Args:
      names: E distinct names.
      relations: those with another name, or of a name to itself, are left out.
      kinds: of the relations to keep; empty: all.
    """
    place = {name: index for index, name in enumerate(names)}
    found = {
        (min(pair), max(pair))
        for one in relations
        if one.head in place and one.tail in place and (not kinds or one.relation in kinds)
        for pair in [(place[one.head], place[one.tail])]
        if pair[0] != pair[1]
    }
    return np.array(sorted(found), np.int32).reshape(-1, 2)


def adjacency_matrix(count: int, pairs: np.ndarray) -> np.ndarray:
    """f32[count, count], symmetric: 1 where `edges` has the pair, 0 elsewhere."""
    matrix = np.zeros((count, count), np.float32)
    matrix[pairs[:, 0], pairs[:, 1]] = matrix[pairs[:, 1], pairs[:, 0]] = 1
    return matrix
