"""Fingerprints: digests that identify the records of a split, without texts or ids.

Training stores the fingerprint of its training split in the run directory. A checkpoint can thus be
checked for leaks (`mmrl.data.overlap.leaks`) where the training data are not available.
"""

import array
import collections
import dataclasses
import functools
import hashlib
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmrl import build, files
from mmrl.data.overlap import signatures
from mmrl.types import DamageError, InputError, Record

KEYED = (
    "patient",
    "study",
    "leakage_unit",
    "image",
)  # compared for equality


@dataclasses.dataclass(frozen=True)
class Fingerprint:
    """Digests of the records of one split.

    Attributes:
      name: "source/split".
      records: number of records.
      sources: source -> number of its records.
      covered: "source>namespace" -> number of records of the source whose leakage unit has a name
        in the namespace.
      templated: whether every source makes its reports by a grammar.
      keys: kind of `KEYED` -> u64[M], digests.
      rows: kind -> i32[M], the record of each digest.
      hashes: u64[P], perceptual hashes of images.
      hash_rows: i32[P], the record of each hash.
      texts: u8[N, 128], signatures of the reports, see `mmrl.data.overlap.signatures`.
      long_enough: bool[N], whether the report is long enough to be compared.
      ids: of the records, for examples in messages; () when read from a file.
    """

    name: str
    records: int
    sources: Mapping[str, int]
    covered: Mapping[str, int]
    templated: bool
    keys: Mapping[str, np.ndarray]
    rows: Mapping[str, np.ndarray]
    hashes: np.ndarray
    hash_rows: np.ndarray
    texts: np.ndarray
    long_enough: np.ndarray
    ids: tuple[str, ...] = ()

    def save(self, path: Path) -> None:
        """Writes all but the ids."""
        pairs = [*self.sources.items(), *self.covered.items()]
        arrays: dict[str, Any] = {
            "name": np.array(self.name),
            "records": np.array(self.records),
            "templated": np.array(self.templated),
            "names": np.array([name for name, _ in pairs], str),
            "counts": np.array([count for _, count in pairs], np.int64),
            "hashes": self.hashes,
            "hash_rows": self.hash_rows,
            "texts": self.texts,
            "long_enough": self.long_enough,
        }
        arrays |= {f"key_{kind}": self.keys[kind] for kind in KEYED}
        arrays |= {f"row_{kind}": self.rows[kind] for kind in KEYED}
        with files.whole(path) as fresh, fresh.open("wb") as file:
            np.savez_compressed(file, **arrays)

    @classmethod
    def load(cls, path: Path) -> "Fingerprint":
        """Reads a file that `save` wrote.

        Raises:
          InputError: no such file.
          DamageError: no fingerprint, or not as it was written.
        """
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                counts = dict(zip(stored["names"].tolist(), stored["counts"].tolist(), strict=True))
                return cls(
                    name=str(stored["name"]),
                    records=int(stored["records"]),
                    sources={name: n for name, n in counts.items() if ">" not in name},
                    covered={name: n for name, n in counts.items() if ">" in name},
                    templated=bool(stored["templated"]),
                    keys={kind: stored[f"key_{kind}"] for kind in KEYED},
                    rows={kind: stored[f"row_{kind}"] for kind in KEYED},
                    hashes=stored["hashes"],
                    hash_rows=stored["hash_rows"],
                    texts=stored["texts"],
                    long_enough=stored["long_enough"],
                )
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}") from None
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise DamageError(
                f"{path} is damaged, or no fingerprint of a training split: {error}"
            ) from None


class Collector:
    """Collects the records of a split; `finish` returns their fingerprint."""

    def __init__(self, name: str) -> None:
        self._name = name
        # A list of Python integers takes four times the memory of an array.
        self._keys = {kind: array.array("Q") for kind in KEYED}
        self._rows = {kind: array.array("i") for kind in KEYED}
        self._hashes, self._hash_rows = array.array("Q"), array.array("i")
        self._sources: collections.Counter[str] = collections.Counter()
        self._covered: collections.Counter[str] = collections.Counter()
        self._ids: list[str] = []

    def add(self, record: Record) -> None:
        """Adds the digests of the next record."""
        row, source = len(self._ids), record.source
        self._ids.append(record.id)
        self._sources[source] += 1
        space = namespace(source)
        units = [f"{space}:{record.leakage_unit}", *record.aliases]
        if record.leakage_unit_known:
            self._covered[f"{source}>{space}"] += 1
        for other in {alias.partition(":")[0] for alias in record.aliases}:
            self._covered[f"{source}>{other}"] += 1
        self._put("patient", row, [f"{source}:{record.patient_id}"])
        self._put("study", row, [f"{source}:{record.study_id}"])
        self._put("leakage_unit", row, units)
        self._put("image", row, [image.sha256 for image in record.images if image.sha256])
        for image in record.images:
            if image.phash is not None:
                self._hashes.append(image.phash)
                self._hash_rows.append(row)

    def finish(self, texts: Sequence[str]) -> Fingerprint:
        """The fingerprint; `texts` are the reports of the added records, in order."""
        signed, long_enough = signatures.signatures(texts)
        facts = [source_facts(name) for name in self._sources]
        return Fingerprint(
            name=self._name,
            records=len(self._ids),
            sources=dict(self._sources),
            covered=dict(self._covered),
            templated=bool(facts) and all(fact is not None and fact.templated for fact in facts),
            keys={kind: np.array(self._keys[kind], np.uint64) for kind in KEYED},
            rows={kind: np.array(self._rows[kind], np.int32) for kind in KEYED},
            hashes=np.array(self._hashes, np.uint64),
            hash_rows=np.array(self._hash_rows, np.int32),
            texts=signed,
            long_enough=long_enough,
            ids=tuple(self._ids),
        )

    def _put(self, kind: str, row: int, keys: Iterable[str]) -> None:
        for key in keys:
            digest = hashlib.blake2b(key.encode(errors="replace"), digest_size=8).digest()
            self._keys[kind].append(int.from_bytes(digest, "big"))
            self._rows[kind].append(row)


@functools.cache
def source_facts(name: str) -> Any:
    """The `Facts` of a source; None where it has none, or the name is that of no source."""
    if name not in build.choices("source"):
        return None
    return getattr(build.find("source", name), "facts", None)


def namespace(source: str) -> str:
    """The namespace of a source's leakage units."""
    facts = source_facts(source)
    return (facts.namespace if facts else "") or source
