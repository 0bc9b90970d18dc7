"""A preparation that is cut off at any moment ends in the bytes of one that was not."""

import dataclasses
import functools
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmrl import files as mmrl_files
from mmrl import locks
from mmrl.data.reading import shards
from mmrl.preparation import inventory, job, workers, workplace
from mmrl.preparation.storage import Storage
from mmrl.types import BusyError, ImageRef, InputError
from tests.conftest import ROOT

OPTIONS = {"length": 40, "render_size": 32}
SETTINGS: dict[str, Any] = {
    "storage": Storage(size=32),
    "chunk_records": 4,
    "shard_bytes": 16_000,  # three or four chunks
}


def run(output: Path, **changes: Any) -> list[str]:
    """Prepares 40 phantoms; returns what was said."""
    told: list[str] = []
    settings = job.Settings(**{**SETTINGS, **changes})
    job.prepare("phantom", OPTIONS, output, settings, say=told.append)
    return told


def files(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    run(output)
    found = files(output)
    assert sum(name.startswith("train") for name in found) >= 3
    return found


class Killed(BaseException):
    """What no handler of the program catches."""


def killer(monkeypatch: pytest.MonkeyPatch, moment: int, *, after: bool) -> Callable[[], int]:
    """Ends the run before or after the `moment`th step that changes the disk; counts the steps."""
    steps = 0

    def wrap(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def step(*given: Any, **named: Any) -> Any:
            nonlocal steps
            steps += 1
            if steps == moment and not after:
                raise Killed
            result = real(*given, **named)
            if steps == moment:
                raise Killed
            return result

        monkeypatch.setattr(owner, name, step)

    wrap(mmrl_files, "place")  # every file gets its place by this
    wrap(Path, "unlink")
    wrap(workplace.shutil, "rmtree")
    return lambda: steps


def test_any_step_may_be_the_last(
    undisturbed: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        count = killer(patch, 0, after=False)
        run(tmp_path / "count")
        steps = count()
    assert steps > 30
    for moment in range(1, steps + 1, 7):
        output = tmp_path / str(moment)
        with monkeypatch.context() as patch:
            killer(patch, moment, after=bool(moment % 2))
            with pytest.raises(Killed):
                run(output)
        run(output)
        assert files(output) == undisturbed, moment


def test_what_was_done_is_not_done_again(
    undisturbed: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    real = workers.encode_to

    def encode_to(path: str, *given: Any) -> None:
        if len(made) == 7:
            raise Killed
        real(path, *given)
        made.append(path)

    monkeypatch.setattr(workers, "encode_to", encode_to)
    with pytest.raises(Killed):
        run(tmp_path / "out")
    first = list(made)
    monkeypatch.setattr(
        workers, "encode_to", lambda path, *given: (made.append(path), real(path, *given))
    )
    told = run(tmp_path / "out")
    assert len(made) == len(set(made)) and first == made[:7]
    assert any(line.startswith("resuming after ") for line in told)
    assert files(tmp_path / "out") == undisturbed


@pytest.mark.default_cases(1)
@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 3])
def test_workers_change_no_byte(undisturbed: dict[str, str], tmp_path: Path, count: int) -> None:
    run(tmp_path, workers=count)
    assert files(tmp_path) == undisturbed


@pytest.mark.slow
def test_a_worker_that_dies_ends_the_run_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = inventory.Part.records

    def deadly(part: inventory.Part, start: int, stop: int) -> list[Any]:
        image = ImageRef("x", functools.partial(os._exit, 9))
        records = real(part, start, stop)
        return [dataclasses.replace(record, images=(image,)) for record in records]

    monkeypatch.setattr(job, "estimate", lambda found, storage: 1000)
    monkeypatch.setattr(inventory.Part, "records", deadly)
    with pytest.raises(InputError, match="a worker process died: out of memory, or a decoder"):
        run(tmp_path / "out", workers=1)


_CHILD = """
from pathlib import Path
from tests.test_prepare_resume import run
if __name__ == "__main__":
    run(Path({output!r}), workers={workers})
"""


@pytest.mark.exhaustive
@pytest.mark.slow
def test_sigkill_at_several_moments(undisturbed: dict[str, str], tmp_path: Path) -> None:
    output = tmp_path / "out"
    script = tmp_path / "child.py"
    script.write_text(_CHILD.format(output=str(output), workers=2))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    killed = 0
    for chunks in (1, 8):
        child = subprocess.Popen([sys.executable, str(script)], env=environment, cwd=ROOT)
        while child.poll() is None and _progress(output) < chunks:
            time.sleep(0.002)
        if child.poll() is None:
            child.send_signal(signal.SIGKILL)
            killed += 1
        child.wait()
        assert not (output / shards.MANIFEST).exists()
    assert killed == 2
    run(output)
    assert files(output) == undisturbed


def _progress(output: Path) -> int:
    """Chunks there or in a closed shard already."""
    work = output / workplace.WORK
    try:
        names = os.listdir(work)
    except FileNotFoundError:
        return 0
    return max(
        (int(n[6:13]) + 1 for n in names if n.startswith("chunk-") and n.endswith(".msgpack")),
        default=0,
    )


def begun(output: Path, monkeypatch: pytest.MonkeyPatch, moment: int = 12) -> None:
    with monkeypatch.context() as patch:
        killer(patch, moment, after=True)
        with pytest.raises(Killed):
            run(output)


def test_other_options_are_refused_not_mixed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun(tmp_path / "out", monkeypatch)
    for changes, names in (
        ({"storage": Storage(size=16)}, "image"),
        ({"shard_bytes": 10_000}, "shards"),
        ({"storage": Storage(size=32, format="png"), "chunk_records": 5}, "image, shards"),
    ):
        with pytest.raises(InputError) as caught:
            run(tmp_path / "out", **changes)
        assert str(caught.value) == (
            f"--output={tmp_path / 'out'} holds another preparation; it differs in: {names}."
            " Choose another folder"
        )
    with pytest.raises(InputError, match=r"differs in: input, options\. Choose"):
        job.prepare("phantom", {**OPTIONS, "seed": 1}, tmp_path / "out", job.Settings(**SETTINGS))


def test_a_finished_folder_is_said_to_be_complete(tmp_path: Path) -> None:
    run(tmp_path / "out")
    before = files(tmp_path / "out")
    told = run(tmp_path / "out", max_reject_fraction=0.5, workers=3)
    assert told[-1] == (
        f"{tmp_path / 'out'} is complete: 40 records, every file of its stated size"
    )
    assert files(tmp_path / "out") == before
    with pytest.raises(InputError, match="holds another preparation; it differs in: image"):
        run(tmp_path / "out", storage=Storage(size=16))
    (tmp_path / "out" / "val-00000.array_record").unlink()
    with pytest.raises(InputError, match=r"val-00000\.array_record of the manifest is missing"):
        run(tmp_path / "out")


def test_a_run_killed_as_it_wrote_its_first_files_is_taken_up(
    undisturbed: dict[str, str], tmp_path: Path
) -> None:
    work = tmp_path / "out" / workplace.WORK
    work.mkdir(parents=True)
    for path in (work / "plan.json", tmp_path / "out" / shards.REJECTS):
        with pytest.raises(Killed), mmrl_files.whole(path) as fresh:
            raise Killed
        fresh.write_text("half")  # a process that is killed does not remove it
    run(tmp_path / "out")
    assert files(tmp_path / "out") == undisturbed


def test_a_folder_with_anything_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    with pytest.raises(
        InputError, match=r"holds other files than those of this preparation \(mine.txt\)"
    ):
        run(tmp_path / "notes")
    (tmp_path / "planted" / ".work").mkdir(parents=True)
    (tmp_path / "planted" / ".work" / "chunk-0000000.msgpack").write_bytes(b"x")
    with pytest.raises(InputError, match=r"\(\.work/chunk-0000000\.msgpack\)"):
        run(tmp_path / "planted")
    begun(tmp_path / "out", monkeypatch)
    (tmp_path / "out" / "train-x.array_record").write_bytes(b"")
    with pytest.raises(InputError, match=r"\(train-x\.array_record\)"):
        run(tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file; expected a folder"):
        run(tmp_path / "file")


def test_a_planted_or_damaged_chunk_is_made_again(
    undisturbed: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun(tmp_path / "out", monkeypatch)
    work = tmp_path / "out" / workplace.WORK
    for number in range(4, 12):
        (work / f"chunk-{number:07d}.msgpack").write_bytes(b"\0" * 100)
    (work / "chunk-0000011.msgpack.99.tmp").write_bytes(b"half")
    (tmp_path / "out" / "train-00007.array_record").write_bytes(b"in its place, not closed")
    run(tmp_path / "out")
    assert files(tmp_path / "out") == undisturbed


def test_an_altered_closed_shard_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun(tmp_path / "out", monkeypatch)
    shard = tmp_path / "out" / "train-00000.array_record"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(InputError, match="has changed since it was finished; remove"):
        run(tmp_path / "out")


def test_two_runs_do_not_share_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun(tmp_path / "out", monkeypatch)
    held = locks.Lock(tmp_path / "out" / workplace.WORK / locks.NAME, "the preparation")
    monkeypatch.setattr(locks, "PATIENCE", 0.1)
    with pytest.raises(BusyError, match="is used by process "):
        run(tmp_path / "out")
    held.release()
    run(tmp_path / "out")


def test_processes_are_started_where_they_pay() -> None:
    cores = len(os.sched_getaffinity(0))
    assert [job._workers(None, n) for n in (1, 1999, 2000)] == [0, 0, cores]
    assert [job._workers(n, 10**6) for n in (0, 5)] == [0, 5]
