"""Checkpoints: one directory per step, written atomically. The only file that imports orbax.

A checkpoint holds the train state, the position in the data, and `meta`: config, tokenizer,
preprocessing, corpus digest and package versions. Evaluation, export and resuming need nothing
else of the run, and work on any number of devices. Checksums of all files are part of a step
before it appears, and are compared before anything of it is read.
"""

import asyncio
import base64
import contextlib
import errno
import hashlib
import importlib.metadata
import json
import logging
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import orbax.checkpoint as ocp

from mmrl import files
from mmrl.devices import distributed, gather
from mmrl.training import checksums
from mmrl.types import DamageError, InputError, MachineError, first_line
from mmrl.version import __version__

_PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "sentencepiece",
    "tokenizers",
)


# Seconds that orbax waits for a write. It measures them by the time of day, which may jump.
_PATIENCE = 30 * 86400

BEST = "best"
_UNFINISHED = ".orbax-checkpoint-tmp"  # in the name of a step that is being written
_METADATA = "_CHECKPOINT_METADATA"  # which orbax reads with every part of a step
_COMMITTED = "commit_success.txt"  # in steps of earlier versions, which have no checksums

Step = int | Literal["best"]
"""A checkpoint: its step, or the best one by config.best."""


def parse_step(where: str, text: str | None) -> Step | None:
    """A step as a user writes it: "1200" or "best"; None for none.

    Args:
      where: the flag or key, for the message.

    Raises:
      InputError: another text.
    """
    if not text:
        return None
    if text == BEST:
        return "best"
    if not text.isdecimal():
        raise InputError(f"{where}={text}; expected the number of a step, or {BEST}")
    return int(text)


def versions() -> dict[str, str]:
    """Versions of the packages that a result depends on, mmrl first."""
    return {"mmrl": __version__, **{name: importlib.metadata.version(name) for name in _PACKAGES}}


class _Manager(ocp.CheckpointManager):
    """Disables orbax's own handling of preemption; the trainer handles it.

    jax agrees on the step to save by counting the calls of each process to
    `reached_preemption_sync_point`. Calls by orbax, with other numbers, could make processes miss
    that step.
    """

    def reached_preemption(self, step: int) -> bool:
        return False


class _Sealed(ocp.path.atomicity.AtomicRenameTemporaryPath):
    """Writes checksums of a step, when all processes have written it, before it is renamed.

    `commit_success.txt`, which the base class adds after that, then has nothing to tell.
    """

    _checkpoint_metadata_store: Any

    async def finalize(self) -> None:
        if not self.get_final().name.isdecimal():
            await super().finalize()  # a part of a step, renamed within it
            return
        if self._checkpoint_metadata_store is not None:
            await asyncio.to_thread(self._checkpoint_metadata_store.wait_until_finished)
        await asyncio.to_thread(self._seal, Path(self.get()), Path(self.get_final()))

    @staticmethod
    def _seal(fresh: Path, target: Path) -> None:
        checksums.write(fresh)
        files.place(fresh, target)


class _Kept(ocp.checkpoint_managers.PreservationPolicy):
    """Keeps one step, however old it is."""

    step: int | None = None

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        return [checkpoint.step == self.step for checkpoint in checkpoints]


class Checkpoints:
    """Saves and restores the steps of one run.

    Args:
      workdir: the run directory; checkpoints live in its `checkpoints/`.
      keep: number of latest steps to keep, beside the best one.
      read_only: create and delete nothing; for evaluation and export.
      fall_back: take the last intact step for the latest one. Without `read_only`, later ones are
        moved to `damaged/` of the run directory.
      say: is told, in one line each, of damaged steps that were passed over, and of steps that an
        earlier version wrote without checksums.

    Raises:
      DamageError: with `fall_back`, there are steps and none is intact.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        keep: int = 2,
        read_only: bool = False,
        fall_back: bool = False,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        logging.getLogger("absl").setLevel(logging.ERROR)  # orbax logs every file and mode
        _silence_what_is_raised()
        self.folder = workdir.resolve() / "checkpoints"
        self._say, self._checked = say, set[tuple[int, str]]()
        self._last: int | None = None
        if fall_back:
            self._last = distributed.by_first(lambda: self._fall_back(move=not read_only))
        policies = ocp.checkpoint_managers
        self._kept = _Kept()
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(
                [policies.LatestN(keep), self._kept]
            ),
            temporary_path_class=_Sealed,
            async_options=ocp.AsyncOptions(timeout_secs=_PATIENCE),
            cleanup_tmp_directories=not read_only,
            create=not read_only,
            read_only=read_only,
            lightweight_initialize=True,  # reads no metadata of steps, which may be damaged
        )
        self._manager = _Manager(self.folder, options=options)

    def latest(self) -> int | None:
        """The last complete step, or None."""
        return max(self.steps(), default=None)

    def steps(self) -> list[int]:
        """All complete steps, ascending; those that were passed over as damaged are left out."""
        return [
            step
            for step in sorted(self._manager.all_steps())
            if self._last is None or step <= self._last
        ]

    def keep_best(self, step: int | None) -> None:
        """Keeps a step, in place of the one kept before, until another takes its place."""
        self._kept.step = step

    def best(self) -> int:
        """The best step, as the last complete checkpoint states it.

        Raises:
          InputError: there is no checkpoint, or the run chose none.
        """
        latest = self._existing(None)
        step = (self._position(latest).get(BEST) or {}).get("step")
        if step is None:
            raise InputError(
                f"the run of {self.folder} chose no best checkpoint up to step {latest}; "
                f"config.best.metric says by which value it does; steps: {self.steps()}"
            )
        return step

    def _position(self, step: int) -> dict[str, Any]:
        args = ocp.args.Composite(data=ocp.args.JsonRestore())
        with self._reading(step, "data"):
            return self._manager.restore(step, args=args)["data"]

    def save(self, step: int, state: Any, data: dict[str, Any], meta: dict[str, Any]) -> None:
        """Writes a step in the background. Readers see it only once it is complete.

        Raises:
          OSError: this step, or the one before it, cannot be written.
        """
        with self._writing():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    data=ocp.args.JsonSave(data),
                    meta=ocp.args.JsonSave(meta),
                ),
                force=True,
            )
        self._last = None  # what is saved from here on is the latest

    def meta(self, step: Step | None = None) -> dict[str, Any]:
        """Reads `meta` without reading the arrays.

        Raises:
          InputError: there is no such step.
          DamageError: it is not as it was written.
        """
        step = self._existing(step)
        args = ocp.args.Composite(meta=ocp.args.JsonRestore())
        with self._reading(step, "meta"):
            return self._manager.restore(step, args=args)["meta"]

    def restore(self, target: Any, step: Step | None = None) -> tuple[Any, dict[str, Any]]:
        """Returns (state laid out like `target`, data position).

        Args:
          target: tree of ShapeDtypeStruct with shardings, for any number of devices.

        Raises:
          InputError: there is no such step.
          DamageError: it is not as it was written.
        """
        step = self._existing(step)
        args = ocp.args.Composite(
            state=ocp.args.StandardRestore(target), data=ocp.args.JsonRestore()
        )
        with self._reading(step, "state", "data"):
            restored = self._manager.restore(step, args=args)
        return restored["state"], restored["data"]

    def restore_partial(self, target: Any, step: Step | None = None) -> Any:
        """Restores only the parts of the state that `target` names, for evaluation and export.

        Raises:
          InputError: there is no such step, or it lacks some of these parts.
          DamageError: it is not as it was written.
        """
        step = self._existing(step)
        arguments = ocp.args.PyTreeRestore(
            item=target,
            restore_args=ocp.checkpoint_utils.construct_restore_args(target),
            partial_restore=True,
        )
        with self._reading(step, "state"), self._arrays() as manager:
            state = manager.restore(step, args=ocp.args.Composite(state=arguments))["state"]
        absent = [
            jax.tree_util.keystr(path)
            for path, leaf in jax.tree_util.tree_leaves_with_path(state)
            if not isinstance(leaf, jax.Array)
        ]
        if absent:  # orbax returns the template's leaf where it found no array
            raise InputError(f"checkpoint {step} in {self.folder} lacks {', '.join(absent)}")
        return state

    def read_arrays(self, parts: Sequence[str], step: Step | None = None) -> dict[str, Any]:
        """Some parts of a state as it was saved, on the first device; absent ones are left out.

        Raises:
          InputError: there is no such step.
          DamageError: it is not as it was written.
        """
        step = self._existing(step)
        with self._reading(step, "state"), self._arrays() as manager:
            stored = manager.item_metadata(step)["state"].tree
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        target = {
            part: jax.tree.map(
                lambda one: jax.ShapeDtypeStruct(one.shape, one.dtype, sharding=here), stored[part]
            )
            for part in parts
            if part in stored
        }
        return self.restore_partial(target, step)

    def _arrays(self) -> ocp.CheckpointManager:
        """A reader of single arrays, which the trainer's manager is not."""
        return ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(read_only=True, lightweight_initialize=True),
            item_handlers={"state": ocp.PyTreeCheckpointHandler()},
        )

    def wait(self) -> None:
        """Blocks until the last save is on disk; OSError as of `save`."""
        with self._writing():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Finishes pending saves; OSError as of `save`."""
        with self._writing():
            self._manager.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Turns errors of the disk, in whatever words, into OSError, and frees what they left."""
        try:
            yield
        except Exception as error:
            # What orbax did not begin after the error, it warns of when it is collected.
            warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
            if jax.process_index() == 0:
                for path in self.folder.glob(f"*{_UNFINISHED}*"):
                    shutil.rmtree(path, ignore_errors=True)
                with contextlib.suppress(OSError):  # made anew, if the run directory was removed
                    self.folder.rmdir()
                    self.folder.parent.rmdir()
            found = files.cause(error)
            if found is None:
                raise
            where = found.filename or str(self.folder)
            raise OSError(found.errno, found.strerror, where) from error

    @contextlib.contextmanager
    def _reading(self, step: int, *parts: str) -> Iterator[None]:
        """Compares parts of a step with their checksums, before the block reads them.

        Raises:
          DamageError: they differ, or there are no checksums and the block fails.
        """
        distributed.by_first(lambda: self._check(step, parts))
        try:
            yield
        except (InputError, MachineError):
            raise
        except Exception as error:
            found = files.cause(error)
            if found is not None and found.errno != errno.ENOENT:
                raise files.outside(found, f"cannot read checkpoint {step}") from error
            if _is_sealed(self.folder / str(step)):
                raise  # the files are as they were written
            why = f"{type(error).__name__}: {first_line(error)}"
            raise DamageError(self._damage(step, why)) from error

    def _check(self, step: int, parts: Sequence[str]) -> None:
        wanted = {part for part in parts if (step, part) not in self._checked}
        if not wanted:
            return
        folder = self.folder / str(step)
        if _is_sealed(folder):
            try:
                checksums.check(folder, {*wanted, _METADATA})
            except DamageError as error:
                raise DamageError(self._damage(step, str(error))) from None
            except OSError as error:
                raise files.outside(error, f"cannot read checkpoint {step}") from error
        elif not any(checked == step for checked, _ in self._checked):
            self._say(
                f"checkpoint {step} has no checksums, as earlier versions of mmrl wrote it: damage "
                "to its files may go unnoticed"
            )
        self._checked |= {(step, part) for part in wanted}

    def _damage(self, step: int, why: str) -> str:
        """One line about a damaged step, with what can be done."""
        earlier = [other for other in _complete(self.folder) if other < step]
        last = next((other for other in reversed(earlier) if not _fault(self.folder, other)), None)
        advice = (
            "no earlier checkpoint is intact"
            if last is None
            else f"the last intact checkpoint is step {last}, which --fall-back takes"
        )
        return f"checkpoint {step} in {self.folder} is damaged: {why}; {advice}"

    def _fall_back(self, *, move: bool) -> int | None:
        """The last intact step; None if there are no steps. Moves away those after it."""
        damaged: list[tuple[int, str]] = []
        steps = _complete(self.folder)
        for step in reversed(steps):
            why = _fault(self.folder, step)
            if not why:
                break
            damaged.append((step, why))
        if len(damaged) == len(steps):
            if damaged:
                raise DamageError(self._damage(*damaged[-1]))
            return None
        for number, why in damaged:
            where = ""
            if move:
                where = f"; moved to '{_set_aside(self.folder, number)}'"
            self._say(f"checkpoint {number} is damaged: {why}{where}")
        if damaged:
            self._say(f"falls back to the last intact checkpoint, step {step}")
        return step

    def _existing(self, step: Step | None) -> int:
        steps = self.steps()
        if not steps:
            raise InputError(f"no checkpoint in {self.folder}; train with this --workdir first")
        if step is None:
            return steps[-1]
        if step == BEST:
            step = self.best()
        if step not in steps:
            raise InputError(f"no checkpoint of step {step} in {self.folder}; steps: {steps}")
        return step


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a line of a log is about anything but a checkpoint that cannot be written or read."""
    error = record.exc_info[1] if record.exc_info else None
    return error is None or (files.cause(error) is None and _UNFINISHED not in str(error))


class _UnraisableHook:
    """A hook of errors that nobody can catch, without those of an event loop that was closed."""

    def __init__(self, before: Callable[[Any], Any]) -> None:
        self._before = before

    def __call__(self, found: Any) -> None:
        if found.object is not None or str(found.exc_value) != "Event loop is closed":
            self._before(found)


def _silence_what_is_raised() -> None:
    """Drops the traces that threads of a failed save or read print, whose error is raised as well.

    Every thread logs that the disk is full, every unread future does, and tensorstore tells its
    results to an event loop that orbax closed at the first error.
    """
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_is_news)
    if not isinstance(sys.unraisablehook, _UnraisableHook):  # others set and restore it, too
        sys.unraisablehook = _UnraisableHook(sys.unraisablehook)


def latest(workdir: Path) -> int | None:
    """The last complete step of a run; None without one."""
    return max(_complete(workdir / "checkpoints"), default=None)


def size(state: Any) -> int:
    """Bytes of a checkpoint of a state of arrays or ShapeDtypeStruct, but for what is small."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


def _complete(folder: Path) -> list[int]:
    """The steps in a folder of checkpoints, ascending, whether they are intact or not."""
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(int(path.name) for path in found if path.name.isdecimal())


def _is_sealed(step: Path) -> bool:
    """Whether a step was written with checksums, even if they are gone."""
    return (step / checksums.NAME).exists() or not (step / _COMMITTED).exists()


def _fault(folder: Path, step: int) -> str:
    """What is wrong with a step; "" if nothing is known to be."""
    try:
        if _is_sealed(folder / str(step)):
            checksums.check(folder / str(step))
        else:  # of an earlier version: what is small must be readable
            for name in ("data/metadata", "meta/metadata", "state/_METADATA"):
                json.loads((folder / str(step) / name).read_bytes())
    except (DamageError, OSError, ValueError) as error:
        return str(error)
    return ""


def _set_aside(folder: Path, step: int) -> Path:
    """Moves a step out of the folder of checkpoints; returns its new place."""
    damaged = folder.parent / "damaged"
    damaged.mkdir(exist_ok=True)
    names = (f"{step}{suffix}" for suffix in ("", *(f".{n}" for n in range(1, 1000))))
    target = next(damaged / name for name in names if not (damaged / name).exists())
    files.place(folder / str(step), target)
    return target


def digest(tree: Any) -> str:
    """Identifies a set of weights: sha256 over paths, dtypes, shapes and bytes of all arrays."""
    sha = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = gather.whole(leaf) if isinstance(leaf, jax.Array) else np.asarray(leaf)
        sha.update(f"{jax.tree_util.keystr(path)}{array.dtype}{array.shape}".encode())
        sha.update(array.tobytes())
    return sha.hexdigest()


def to_text(data: bytes) -> str:
    """Encodes bytes as base64 text, for JSON."""
    return base64.b64encode(data).decode("ascii")


def from_text(text: str) -> bytes:
    """The inverse of `to_text`."""
    return base64.b64decode(text.encode("ascii"), validate=True)
