"""Damaged corpora: each is read right or refused with a reason; no crash, no hang, no escape.

`tests/corpora.py` writes a valid corpus of every source, `tests/damage.py` damages it, and a
process of its own (`tests/fuzz_child.py`) reads it within bounds of time and memory. The cases are
the same ones every time.
"""

import json
import os
import select
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tests.corpora_chest  # entered below, by being imported
import tests.damage_binary  # noqa: F401
from mmrl import build
from tests.conftest import ROOT
from tests.corpora import CORPORA
from tests.corpus_files import write_image
from tests.damage import OPERATIONS, SECRET, Damage, apply

CASES = 500
ALL_CASES = 1500  # marked exhaustive
PREPARED = 100  # cases more, that are prepared too
PATIENCE = 60.0  # seconds after which a case counts as hanging, on a machine that others use
MEMORY = 2**30  # bytes, beside what the imports took
SECONDS = 3.0  # of processor time, at most, for a case
PREPARE_SECONDS = 15.0

NUMBERS = st.integers(0, 9_999)
DAMAGES = st.lists(
    st.builds(Damage, st.sampled_from(sorted(OPERATIONS)), NUMBERS, NUMBERS, NUMBERS, NUMBERS),
    min_size=1,
    max_size=3,
)
CHOICES = st.fixed_dictionaries(
    {
        "split": st.sampled_from(["all", "train"]),
        "verify": st.sampled_from(["header", "decode", "exists"]),
        "allow_missing_images": st.booleans(),
        "official_split": st.booleans(),
        "follow_links": st.booleans(),
        "encoding": st.sampled_from([None] * 8 + ["cp1252", "utf-16"]),
        "delimiter": st.sampled_from([None] * 8 + [";", ","]),
    }
)


class Reader:
    """The process that reads; a new one when it has died.

    `scratch` is where it works, `memory` the address space it may take, see `fuzz_child`.
    """

    def __init__(self, scratch: Path, memory: int) -> None:
        self.scratch, self._memory = scratch, memory
        self._process: subprocess.Popen[str] | None = None

    def ask(self, case: dict[str, Any], warm: dict[str, Any]) -> dict[str, Any]:
        """Has a case read; `warm` is the whole corpus, which a new process reads first."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.fuzz_child", str(self._memory)],
                cwd=self.scratch,
                env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(self.scratch)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            self._send(warm)
        return self._send(case)

    def _send(self, case: dict[str, Any]) -> dict[str, Any]:
        assert self._process and self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(case) + "\n")
        self._process.stdin.flush()
        if not select.select([self._process.stdout], [], [], PATIENCE)[0]:
            self.close()
            return {"outcome": "broken", "detail": f"no answer after {PATIENCE} s"}
        if line := self._process.stdout.readline():
            return json.loads(line)
        status = self.close()
        return {"outcome": "broken", "detail": f"the process ended with status {status}"}

    def close(self) -> int:
        """Ends the process, if there is one; returns its status."""
        if self._process is None:
            return 0
        assert self._process.stdin and self._process.stdout
        self._process.kill()
        status = self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()
        self._process = None
        return status


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    reader = Reader(tmp_path_factory.mktemp("scratch"), MEMORY)
    yield reader
    reader.close()


@pytest.fixture(scope="module")
def preparer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """Without limit: the writer of shards reserves far more addresses than it uses."""
    preparer = Reader(tmp_path_factory.mktemp("scratch"), 0)
    yield preparer
    preparer.close()


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder beside that of the corpus, which nothing may be read from.

    Links may lead into another one, `blobs`, if the options say so.
    """
    folder = tmp_path / "outside"
    for suffix in (".png", ".jpg"):
        write_image(folder / f"secret{suffix}", np.full((6, 8), 251, np.uint8))
    (folder / "secret.txt").write_text(SECRET)
    write_image(tmp_path / "blobs/open.png")
    (tmp_path / "blobs/to_secret.png").symlink_to(folder / "secret.png")
    return folder


def request(source: str, folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """The message that has a corpus read, with the options that its source takes."""
    source = options.get("source", source)
    taken = build.options(build.find("source", source))
    known = {name: value for name, value in options.items() if name in taken}
    if "split" in known and source == "table":
        known["split"] = "train"
    for name in ("path", "images", "boxes"):
        if name in known:
            known[name] = os.path.normpath(folder / options[name])
    if "follow_links" in known:  # never to `outside`
        known["follow_links"] = [str(folder.parent / "blobs")] if known["follow_links"] else []
    return {"source": source, "options": known}


def contents(folder: Path) -> list[tuple[str, int, int]]:
    """Every entry below a folder, with size and time of its last change."""
    entries = ((path, path.lstat()) for path in sorted(folder.rglob("*")))
    return [(str(path), state.st_size, state.st_mtime_ns) for path, state in entries]


class Bench:
    """Where a corpus is damaged and read, again and again."""

    def __init__(self, folder: Path, reader: Reader, outside: Path, source: str) -> None:
        self.folder, self.reader, self.outside, self.source = folder, reader, outside, source
        (folder / "whole").mkdir()
        self.options = CORPORA[source](folder / "whole")
        given = {**self.options, "split": "all", "verify": "decode"}
        self.warm = request(source, folder / "whole", given)
        assert reader.ask(self.warm, self.warm)["outcome"] == "records"
        self.outcomes: Counter[str] = Counter()
        self.cases = 0

    def read(self, damages: list[Damage], choices: dict[str, Any], *, prepare: bool) -> None:
        """Damages the corpus and has it read, or prepared into a folder beside it."""
        self.cases += 1  # readers keep shards open by name, so no two cases share an output
        output = f"output{self.cases}" if prepare else ""
        damaged = self.folder / "damaged"
        shutil.rmtree(damaged, ignore_errors=True)
        shutil.copytree(self.folder / "whole", damaged)
        for damage in damages:
            apply(damaged, self.outside, damage)
        case = request(self.source, damaged, {**self.options, **choices})
        if output:
            case["output"] = str(self.folder / output)
        before = contents(self.folder)
        answer = self.reader.ask(case, self.warm)
        inside = f"{self.folder / output}" if output else "\0"  # nothing is called so
        after = [entry for entry in contents(self.folder) if not entry[0].startswith(inside)]
        if output:
            shutil.rmtree(inside, ignore_errors=True)
        assert answer["outcome"] in ("records", "refused"), answer["detail"]
        assert answer["seconds"] < (PREPARE_SECONDS if prepare else SECONDS)
        assert after == before  # and nothing appeared in the folder that the process works in
        assert not any(self.reader.scratch.iterdir())
        self.outcomes[answer["outcome"]] += 1


OUTCOMES: Counter[str] = Counter()  # of all corpora


def cases(number: int) -> settings:
    """So many cases, the same ones every time."""
    return settings(max_examples=number, derandomize=True, deadline=None, database=None)


@pytest.mark.default_cases(4)
@pytest.mark.parametrize("source", sorted(CORPORA))
@pytest.mark.parametrize(
    "number", [CASES, pytest.param(ALL_CASES, marks=pytest.mark.exhaustive)], ids=["few", "all"]
)
def test_damaged_corpora_are_read_or_refused(number, source, reader, outside, tmp_path):
    bench = Bench(tmp_path, reader, outside, source)

    @cases(-(-number // len(CORPORA)))
    @given(DAMAGES, CHOICES)
    def check(damages, choices):
        bench.read(damages, choices, prepare=False)

    check()
    OUTCOMES.update(bench.outcomes)


def test_damage_is_neither_always_refused_nor_never():
    """It would show little otherwise; which cases are drawn depends on what else is imported."""
    if not OUTCOMES:
        pytest.skip("the tests above did not run")
    assert min(OUTCOMES["records"], OUTCOMES["refused"]) > sum(OUTCOMES.values()) / 10, OUTCOMES


@pytest.mark.default_cases(4)
@pytest.mark.parametrize("source", sorted(CORPORA))
def test_preparing_a_damaged_corpus_writes_nothing_elsewhere(source, preparer, outside, tmp_path):
    bench = Bench(tmp_path, preparer, outside, source)

    @cases(-(-PREPARED // len(CORPORA)))
    @given(DAMAGES, CHOICES)
    def check(damages, choices):
        bench.read(damages, choices, prepare=True)

    check()
    assert bench.outcomes["records"] > 0, bench.outcomes
