"""Checkpoints: one directory per step, written atomically. The only file that imports orbax.

A checkpoint holds the train state, the position in the data, and `meta`: config, tokenizer,
preprocessing, corpus digest and package versions. Evaluation, export and resuming need nothing
else of the run, and work on any number of devices.
"""

import base64
import hashlib
import importlib.metadata
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import orbax.checkpoint as ocp

from mmrl.devices import gather
from mmrl.types import InputError
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


BEST = "best"

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
    """

    def __init__(self, workdir: Path, *, keep: int = 2, read_only: bool = False) -> None:
        logging.getLogger("absl").setLevel(logging.ERROR)  # orbax logs every file and mode
        policies = ocp.checkpoint_managers
        self._kept = _Kept()
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(
                [policies.LatestN(keep), self._kept]
            ),
            cleanup_tmp_directories=not read_only,
            create=not read_only,
            read_only=read_only,
        )
        self.folder = workdir.resolve() / "checkpoints"
        self._manager = _Manager(self.folder, options=options)

    def latest(self) -> int | None:
        """The last complete step, or None."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """All complete steps, ascending."""
        return sorted(self._manager.all_steps())

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
        return self._manager.restore(step, args=args)["data"]

    def save(self, step: int, state: Any, data: dict[str, Any], meta: dict[str, Any]) -> None:
        """Writes a step in the background. Readers see it only once it is complete."""
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                data=ocp.args.JsonSave(data),
                meta=ocp.args.JsonSave(meta),
            ),
            force=True,
        )

    def meta(self, step: Step | None = None) -> dict[str, Any]:
        """Reads `meta` without reading the arrays.

        Raises:
          InputError: there is no such step.
        """
        step = self._existing(step)
        return self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))[
            "meta"
        ]

    def restore(self, target: Any, step: Step | None = None) -> tuple[Any, dict[str, Any]]:
        """Returns (state laid out like `target`, data position).

        Args:
          target: tree of ShapeDtypeStruct with shardings, for any number of devices.
        """
        step = self._existing(step)
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(target), data=ocp.args.JsonRestore()
            ),
        )
        return restored["state"], restored["data"]

    def restore_partial(self, target: Any, step: Step | None = None) -> Any:
        """Restores only the parts of the state that `target` names, for evaluation and export.

        Raises:
          InputError: there is no such step, or it lacks some of these parts.
        """
        step = self._existing(step)
        arguments = ocp.args.PyTreeRestore(
            item=target,
            restore_args=ocp.checkpoint_utils.construct_restore_args(target),
            partial_restore=True,
        )
        with ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(read_only=True),
            item_handlers={"state": ocp.PyTreeCheckpointHandler()},
        ) as manager:
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
        """
        step = self._existing(step)
        with ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(read_only=True),
            item_handlers={"state": ocp.PyTreeCheckpointHandler()},
        ) as manager:
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

    def wait(self) -> None:
        """Blocks until the last save is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Finishes pending saves."""
        self._manager.close()

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
