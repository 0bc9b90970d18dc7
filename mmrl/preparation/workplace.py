"""The output folder of a preparation, from which a run that was killed can be resumed.

    OUTPUT/train-00000.array_record     a finished shard, as the manifest will list it
    OUTPUT/.work/plan.json              the plan; a run with another plan is refused
    OUTPUT/.work/chunk-0000017.msgpack  encoded records that are in no shard yet
    OUTPUT/.work/closed-000003.json     description of a finished shard, written after the shard
    OUTPUT/.work/rows-000003.msgpack    rows of the index of that shard

Files appear whole or not at all, see `mmrl.files`. A resumed run reads the chunks that exist, and
writes every shard again that has no description.
"""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack

from mmrl import files, locks
from mmrl.data.reading import shards
from mmrl.data.reading.splits import SPLITS
from mmrl.types import InputError

WORK = ".work"
_SHARD = re.compile(rf"(?:{'|'.join(SPLITS)})-\d{{5,}}\.array_record")
_FINAL = (shards.INDEX, shards.REJECTS, shards.MANIFEST)


class Workplace:
    """The output folder of one preparation, locked while this process lives.

    Args:
      output: created if it does not exist.
      plan: JSON values that are equal in all runs of one preparation.
      say: is told what the lock has to say, see `locks.Lock`.

    Attributes:
      complete: whether the folder holds the finished result of this plan.

    Raises:
      InputError: the folder holds something else.
      BusyError: another process prepares a corpus in it.
    """

    def __init__(
        self, output: Path, plan: dict[str, Any], say: Callable[[str], None] = lambda _: None
    ) -> None:
        self.output, self.work = output, output / WORK
        self._plan = plan
        check(output, plan)
        self.complete = (output / shards.MANIFEST).exists()
        self._lock: locks.Lock | None = None
        if self.complete:
            shards.check_files(output, shards.read_manifest(output))
            self.remove_work()
            return
        self.work.mkdir(parents=True, exist_ok=True)
        self._lock = locks.Lock(self.work / locks.NAME, f"the preparation in '{output}'", say)
        try:
            self._take()
        except BaseException:
            self.leave()
            raise

    @property
    def workers_lock(self) -> Path:
        """The file that every worker locks, shared, while it lives."""
        return self.work / "workers.lock"

    def chunk(self, number: int) -> Path:
        """The file of an encoded chunk."""
        return self.work / f"chunk-{number:07d}.msgpack"

    def closed(self) -> list[dict[str, Any]]:
        """The descriptions of all finished shards, in order."""
        found: list[dict[str, Any]] = []
        while (path := self._closed(len(found))).exists():
            found.append(json.loads(path.read_text(encoding="utf-8")))
        return found

    def close(self, number: int, shard: dict[str, Any], rows: list[dict[str, Any]]) -> None:
        """Writes the description of the finished shard `number`, and removes its chunks."""
        files.write(self.work / f"rows-{number:06d}.msgpack", msgpack.packb(rows))
        files.write(self._closed(number), _json(shard))
        for chunk in range(shard["first"], shard["stop"]):
            self.chunk(chunk).unlink(missing_ok=True)

    def rows(self, number: int) -> list[dict[str, Any]]:
        """The rows of the index of a finished shard."""
        return msgpack.unpackb((self.work / f"rows-{number:06d}.msgpack").read_bytes())

    def publish(self, name: str, write: Callable[[Path], object]) -> Path:
        """Writes a file with `write(path)` and moves it to the output."""
        fresh = self.work / f"{name}.tmp"  # a run that is killed leaves nothing in the output
        write(fresh)
        files.sync(fresh)
        files.place(fresh, self.output / name)
        return self.output / name

    def remove_work(self) -> None:
        """Removes the work folder, the last step of a preparation."""
        shutil.rmtree(self.work, ignore_errors=True)
        self.leave()

    def leave(self) -> None:
        """Releases the lock, so that another run can resume."""
        if self._lock is not None:
            self._lock.release()

    def _take(self) -> None:
        """Prepares the folder for a new or a resumed run."""
        # Workers of a run that was killed hold this lock until they exit.
        locks.await_free(self.workers_lock, f"'{self.output}'")
        check(self.output, self._plan)  # again, since another run may have ended meanwhile
        if not (self.work / "plan.json").exists():
            files.write(self.work / "plan.json", _json(self._plan))
        self._tidy()

    def _closed(self, number: int) -> Path:
        return self.work / f"closed-{number:06d}.json"

    def _tidy(self) -> None:
        """Removes the unfinished files of a run that was killed."""
        closed = self.closed()
        done = closed[-1]["stop"] if closed else 0
        for shard in (shard for shard in closed if shard["shard"]):
            path = self.output / shard["shard"]
            if not path.is_file() or path.stat().st_size != shard["bytes"]:
                raise InputError(
                    f"{path} has changed since it was finished; remove '{self.output}' and prepare"
                    " again"
                )
        finished = {shard["shard"] for shard in closed}
        for path in _shards(self.output):
            if path.name not in finished:
                path.unlink()
        for path in self.work.iterdir():
            if path.name.endswith(".tmp") or (
                path.name.startswith("chunk-") and path < self.chunk(done)
            ):
                path.unlink()
        for path in self.output.iterdir():
            if path.name in (shards.INDEX, shards.REJECTS) or _is_unfinished(path, shards.REJECTS):
                path.unlink()


def check(output: Path, plan: dict[str, Any]) -> None:
    """Raises InputError if the output folder holds anything but this preparation."""
    if not output.exists():
        return
    if not output.is_dir():
        raise InputError(f"--output={output} is a file; expected a folder")
    if (output / shards.MANIFEST).exists():
        manifest = shards.read_manifest(output)
        _compare(output, {key: manifest.get(key) for key in plan}, plan)
        return
    path = output / WORK / "plan.json"
    if path.exists():
        try:
            earlier = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            earlier = None
        _compare(output, earlier, plan)
        known = {WORK, *_FINAL}
        strange = [p.name for p in output.iterdir() if not (p.name in known or _is_shard(p))]
    else:
        # A run that was refused for its data leaves only the list of rejects. A run that was killed
        # at once leaves a plan that is not yet in its place.
        strange = [p.name for p in output.iterdir() if p.name not in (WORK, shards.REJECTS)]
        begun = (output / WORK).iterdir() if (output / WORK).is_dir() else iter(())
        strange += [
            f"{WORK}/{p.name}"
            for p in begun
            if not (p.name in (locks.NAME, "workers.lock") or _is_unfinished(p, "plan.json"))
        ]
    strange = [name for name in strange if not _is_unfinished(output / name, shards.REJECTS)]
    if strange:
        listed = ", ".join(sorted(strange)[:3])
        raise InputError(
            f"--output={output} holds other files than those of this preparation ({listed}); choose"
            " another folder"
        )


def _compare(output: Path, earlier: Any, plan: dict[str, Any]) -> None:
    if earlier == json.loads(_json(plan)):
        return
    given = earlier if isinstance(earlier, dict) else {}
    differing = sorted(key for key in {*plan, *given} if plan.get(key) != given.get(key))
    raise InputError(
        f"--output={output} holds another preparation; it differs in: {', '.join(differing)}."
        " Choose another folder"
    )


def _is_shard(path: Path) -> bool:
    return bool(_SHARD.fullmatch(path.name))


def _is_unfinished(path: Path, name: str) -> bool:
    """Whether a killed run was writing `name` to this file, see `files.whole`."""
    return path.name.startswith(f".{name}.") and path.name.endswith(".tmp")


def _shards(output: Path) -> Iterator[Path]:
    return (path for path in sorted(output.iterdir()) if _is_shard(path))


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()
