"""The folder that a preparation fills: what it may hold, what is finished, what is under way.

    OUTPUT/train-00000.array_record     finished, as the manifest will list it
    OUTPUT/.work/plan.json              what is being prepared; another plan is refused
    OUTPUT/.work/chunk-0000017.msgpack  records encoded, and in no shard yet
    OUTPUT/.work/closed-000003.json     a shard that is finished, the last thing written of it
    OUTPUT/.work/rows-000003.msgpack    its rows of the index

Each file appears whole or not at all. So a run that was killed at any moment leaves nothing that
must be guessed at: chunks that are there are taken, a shard that is not closed is written again.
"""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import msgpack

from mmrl import files
from mmrl.data.reading import shards
from mmrl.data.reading.splits import SPLITS
from mmrl.preparation import lock
from mmrl.types import InputError

WORK = ".work"
_SHARD = re.compile(rf"(?:{'|'.join(SPLITS)})-\d{{5,}}\.array_record")
_FINAL = (shards.INDEX, shards.REJECTS, shards.MANIFEST)


class Workplace:
    """One output folder, locked while this process lives.

    Args:
      output: made if it is not there.
      plan: JSON values; what two runs must share to be the same preparation.

    Attributes:
      complete: the folder holds the finished result of this very plan.

    Raises:
      InputError: the folder holds something else, or another process works in it.
    """

    def __init__(self, output: Path, plan: dict[str, Any]) -> None:
        self.output, self.work = output, output / WORK
        self._plan = plan
        check(output, plan)
        self.complete = (output / shards.MANIFEST).exists()
        self._lock: IO[bytes] | None = None
        if self.complete:
            shards.check_files(output, shards.read_manifest(output))
            self.remove_work()
            return
        self.work.mkdir(parents=True, exist_ok=True)
        self._lock = lock.acquire(self.work / "run.lock")
        try:
            self._take()
        except BaseException:
            self.leave()
            raise

    @property
    def workers_lock(self) -> Path:
        """What every worker holds, shared, as long as it lives."""
        return self.work / "workers.lock"

    def chunk(self, number: int) -> Path:
        """Where a worker puts an encoded chunk."""
        return self.work / f"chunk-{number:07d}.msgpack"

    def closed(self) -> list[dict[str, Any]]:
        """What `close` was told of every shard, in order."""
        found: list[dict[str, Any]] = []
        while (path := self._closed(len(found))).exists():
            found.append(json.loads(path.read_text(encoding="utf-8")))
        return found

    def close(self, number: int, told: dict[str, Any], rows: list[dict[str, Any]]) -> None:
        """Notes that shard `number` is in its place, and lets its chunks go."""
        files.write(self.work / f"rows-{number:06d}.msgpack", msgpack.packb(rows))
        files.write(self._closed(number), _json(told))
        for chunk in range(told["first"], told["stop"]):
            self.chunk(chunk).unlink(missing_ok=True)

    def rows(self, number: int) -> list[dict[str, Any]]:
        """The rows of the index of a closed shard."""
        return msgpack.unpackb((self.work / f"rows-{number:06d}.msgpack").read_bytes())

    def publish(self, name: str, write: Callable[[Path], object]) -> Path:
        """Brings a file that `write` makes to its place in the output, whole."""
        fresh = self.work / f"{name}.tmp"  # here, so that a killed run leaves nothing in the output
        write(fresh)
        files.sync(fresh)
        files.place(fresh, self.output / name)
        return self.output / name

    def remove_work(self) -> None:
        """The last step: the output is complete without it."""
        shutil.rmtree(self.work, ignore_errors=True)
        if self._lock is not None:
            self._lock.close()

    def leave(self) -> None:
        """Lets another run go on here."""
        if self._lock is not None:
            self._lock.close()

    def _take(self) -> None:
        """Makes the folder ready, or that of an earlier run ready again."""
        # Workers of a run that was killed hold this one until they have noticed.
        lock.acquire(self.workers_lock).close()
        check(self.output, self._plan)  # again: another run may have ended meanwhile
        if not (self.work / "plan.json").exists():
            files.write(self.work / "plan.json", _json(self._plan))
        self._tidy()

    def _closed(self, number: int) -> Path:
        return self.work / f"closed-{number:06d}.json"

    def _tidy(self) -> None:
        """Removes what a killed run left half done: all that it may leave is known."""
        closed = self.closed()
        done = closed[-1]["stop"] if closed else 0
        for told in (told for told in closed if told["shard"]):
            path = self.output / told["shard"]
            if not path.is_file() or path.stat().st_size != told["bytes"]:
                raise InputError(
                    f"{path} is not as it was when it was closed; remove '{self.output}' and"
                    " prepare again"
                )
        finished = {told["shard"] for told in closed}
        for path in _shards(self.output):
            if path.name not in finished:  # in its place, but not yet closed
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
    """Refuses a folder that holds anything but this preparation.

    Raises:
      InputError: says what is there.
    """
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
            if not (p.name in ("run.lock", "workers.lock") or _is_unfinished(p, "plan.json"))
        ]
    strange = [name for name in strange if not _is_unfinished(output / name, shards.REJECTS)]
    if strange:
        listed = ", ".join(sorted(strange)[:3])
        raise InputError(
            f"--output={output} holds something else than this preparation ({listed}); choose"
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
