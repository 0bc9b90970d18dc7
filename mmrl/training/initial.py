"""Initial values taken from another run or an exported folder: config.init.

    config.init = ({"from": "runs/stage1", "match": "towers/image/.*"},)
    config.init = ({"from": "runs/stage1", "match": "towers/image/(.*)", "to": r"towers/cnn/\\1"},)
    config.init = ({"from": "runs/stage1", "match": "towers/image/.*", "step": "best"},)
    config.towers.image.init = "runs/stage1"      # the encoder, and heads of the names it has here

`match` is a regular expression for the whole path of a parameter, or of another variable such as a
batch statistic, in the source. `to` is its path here; by default the same. `step` is that of a
checkpoint of a run, or "best"; by default the latest. The first entry that fills a path counts.
Folders are read once, at the start of a run: a resumed run keeps what its checkpoint holds.
"""

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from mmrl import build
from mmrl.training import checkpoint
from mmrl.training.optim import path_of
from mmrl.types import InputError

WEIGHTS = "weights.npz"
"""The file of an exported folder that holds all arrays by path."""

_KEYS = ("from", "match", "to", "step")


class Copied(NamedTuple):
    """What one folder gives.

    Attributes:
      folder, step: as in the config. sha256: of the arrays read.
      arrays: path here -> its value.
      unused: paths of the source that no entry matches.
    """

    folder: str
    sha256: str
    arrays: dict[str, np.ndarray]
    unused: tuple[str, ...]
    step: str = ""

    def source(self) -> dict[str, str]:
        """Folder and step as JSON."""
        return {"from": self.folder, **({"step": self.step} if self.step else {})}


def entries(config: Mapping[str, Any]) -> list[dict[str, str]]:
    """config.init, after the short forms of towers.

    Raises:
      InputError: an entry with unknown keys, without "from" or "match", or with a broken pattern or
        step.
    """
    found = [
        {
            "from": tower["init"],
            "match": rf"towers/{name}/(?:encoder|heads/(?:{'|'.join(tower.get('heads', ()))}))/.*",
        }
        for name, tower in config["towers"].items()
        if tower.get("init")
    ]
    for number, entry in enumerate(config["init"]):
        where = f"config.init[{number}]"
        for key in entry:
            if key not in _KEYS:
                raise InputError(build.unknown(f"key in {where}", key, _KEYS))
        if not (entry.get("from") and entry.get("match")):
            raise InputError(f"{where}={dict(entry)}; expected from and match")
        checkpoint.parse_step(f"{where}.step", entry.get("step"))
        try:
            re.compile(entry["match"])
        except re.error as error:
            raise InputError(f"{where}.match={entry['match']!r}: {error}") from None
        found.append(dict(entry))
    return found


def read(config: Mapping[str, Any], layout: Any) -> list[Copied]:
    """Reads the values that config.init names.

    Args:
      config: a whole config.
      layout: of the learner, with its `params` and `variables`.

    Raises:
      InputError: a folder without weights; an entry that matches nothing; paths that do not exist
        here, or whose shapes differ, all listed.
    """
    target = {**by_path(layout.params), **by_path(layout.variables)}
    filled: set[str] = set()
    copied: list[Copied] = []
    wrong: list[str] = []
    chosen_entries = entries(config)
    for folder, step in dict.fromkeys(map(_source, chosen_entries)):
        arrays = _arrays_of(Path(folder), checkpoint.parse_step("step", step))
        chosen: dict[str, np.ndarray] = {}
        used: set[str] = set()
        for entry in (one for one in chosen_entries if _source(one) == (folder, step)):
            matched = [m for path in arrays if (m := re.fullmatch(entry["match"], path))]
            if not matched:
                raise InputError(
                    f"config.init: {entry['match']!r} matches no path of {folder}; it has: "
                    f"{', '.join(_heads(arrays))}"
                )
            for match in matched:
                path, here = match.string, _renamed(match, entry)
                used.add(path)
                if here in filled:
                    continue
                if here not in target:
                    wrong.append(f"{here} does not exist here")
                elif tuple(target[here].shape) != arrays[path].shape:
                    shapes = f"{list(arrays[path].shape)} there, {list(target[here].shape)} here"
                    wrong.append(f"{here} is {shapes}")
                else:
                    filled.add(here)
                    chosen[here] = arrays[path]
        unused = tuple(sorted(set(arrays) - used))
        copied.append(Copied(folder, checkpoint.digest(chosen), chosen, unused, step))
    if wrong:
        raise InputError(f"config.init: {len(wrong)} arrays do not fit: {'; '.join(wrong)}")
    return copied


def apply(state: dict[str, Any], copied: list[Copied]) -> dict[str, Any]:
    """A fresh state with the values that were read; each keeps its dtype and its place."""
    values = {path: array for one in copied for path, array in one.arrays.items()}

    def take(keys: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        value = values.get(path_of(keys))
        if value is None:
            return leaf
        cast = value.astype(leaf.dtype)
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: cast[index])

    parts = {name for name in ("params", "variables", "ema") if name in state}
    return state | {name: jax.tree_util.tree_map_with_path(take, state[name]) for name in parts}


def by_path(tree: Any) -> dict[str, Any]:
    """Leaves of nested dicts by path, such as "towers/image/encoder/norm/scale"."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_of(keys): leaf for keys, leaf in leaves}


def _renamed(match: re.Match[str], entry: Mapping[str, str]) -> str:
    """The path here of a path of the source that matches the entry."""
    to = entry.get("to", r"\g<0>")
    try:
        return match.expand(to)
    except (re.error, IndexError) as error:
        raise InputError(
            f"config.init: to={to!r} does not fit match={entry['match']!r}: {error}"
        ) from None


def _source(entry: Mapping[str, str]) -> tuple[str, str]:
    """Folder and step of an entry."""
    return entry["from"], entry.get("step", "")


def _arrays_of(folder: Path, step: checkpoint.Step | None) -> dict[str, np.ndarray]:
    """All arrays of a checkpoint of a run, the averaged ones if kept, or of an export."""
    if (folder / WEIGHTS).is_file():
        if step is not None:
            raise InputError(
                f"config.init: {folder} holds exported weights, which have no step; given: {step}"
            )
        try:
            with np.load(folder / WEIGHTS, allow_pickle=False) as stored:
                return {name: stored[name] for name in stored.files}
        except (ValueError, OSError, zipfile.BadZipFile) as error:
            raise InputError(f"config.init: cannot read {folder / WEIGHTS}: {error}") from None
    if not (folder / "checkpoints").is_dir():
        raise InputError(
            f"config.init: {folder} holds neither a run (checkpoints/) nor exported weights "
            f"({WEIGHTS})"
        )
    saved = checkpoint.Checkpoints(folder, read_only=True)
    try:
        state = saved.read_arrays(("params", "variables", "ema"), step)
    finally:
        saved.close()
    params = state.get("ema", state["params"])
    found = {**by_path(params), **by_path(state["variables"])}
    return {path: np.asarray(leaf) for path, leaf in found.items()}


def _heads(arrays: Mapping[str, Any]) -> list[str]:
    """The first two parts of all paths, once each."""
    return sorted({"/".join(path.split("/")[:2]) + "/..." for path in arrays})
