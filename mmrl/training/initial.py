"""Initial values taken from another run or the folder of an encoder: config.init.

    config.init = ({"from": "runs/stage1", "match": "towers/image/.*"},)
    config.init = ({"from": "runs/stage1", "match": "towers/image/(.*)", "to": r"towers/cnn/\\1"},)
    config.init = ({"from": "runs/stage1", "match": "towers/image/.*", "step": "best"},)
    config.towers.image.init = "runs/stage1"      # the encoder, and the heads that are alike there

`match` is a regular expression for the whole path of a parameter, or of another variable such as a
batch statistic, in the source. `to` is its path here; by default the same. `step` is that of a
checkpoint of a run, or "best"; by default the latest. The first entry that fills a path counts.
The short form takes the tower of the same kind, and those heads whose options are the same in both
places. Positions and kernels of patches are fitted to another size of the images, patches or texts.
Folders are read once, at the start of a run: a resumed run keeps what its checkpoint holds.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from mmrl import build, encoder_folder, starts, wiring
from mmrl import config as configs
from mmrl.encoder_folder import WEIGHTS
from mmrl.models import fit
from mmrl.training import checkpoint, lora, stored
from mmrl.training.optim import path_of
from mmrl.types import InputError

_KEYS = ("from", "match", "to", "step")


class Copied(NamedTuple):
    """What one folder gives.

    Attributes:
      folder, step: as in the config. sha256: of the arrays read.
      arrays: path here -> its value.
      unused: paths of the source that no entry matches.
      notes: what was fitted to other sizes, and the heads that are not taken, in sentences.
    """

    folder: str
    sha256: str
    arrays: dict[str, np.ndarray]
    unused: tuple[str, ...]
    step: str = ""
    notes: tuple[str, ...] = ()

    def source(self) -> dict[str, str]:
        """Folder and step as JSON."""
        return {"from": self.folder, **({"step": self.step} if self.step else {})}


def entries(config: Mapping[str, Any]) -> list[dict[str, str]]:
    """config.init, after the short forms of towers.

    Raises:
      InputError: an entry with unknown keys, without "from" or "match", or with a broken pattern or
        step; or an address.
    """
    for name, tower in _starting(config):
        starts.check_is_no_address(f"config.towers.{name}.init", tower["init"])
    found = [_short(name, tower)[0] for name, tower in _starting(config)]
    for number, entry in enumerate(config["init"]):
        where = f"config.init[{number}]"
        for key in entry:
            if key not in _KEYS:
                raise InputError(build.unknown(f"key in {where}", key, _KEYS))
        if not (entry.get("from") and entry.get("match")):
            raise InputError(f"{where}={dict(entry)}; expected from and match")
        starts.check_is_no_address(f"{where}.from", entry["from"])
        checkpoint.parse_step(f"{where}.step", entry.get("step"))
        try:
            re.compile(entry["match"])
        except re.error as error:
            raise InputError(f"{where}.match={entry['match']!r}: {error}") from None
        found.append(dict(entry))
    return found


def _starting(config: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """The towers with the short form."""
    return [(name, tower) for name, tower in config["towers"].items() if tower.get("init")]


def _short(name: str, tower: Mapping[str, Any]) -> tuple[dict[str, str], str]:
    """The entry that the short form of a tower means, and a sentence about heads; "" for none."""
    folder, heads = tower["init"], list(tower.get("heads", ()))
    there, fresh = name, []
    if starts.is_described(folder):
        where = f"config.towers.{name}.init"
        described = starts.read(where, folder)
        there, options = described.tower(where, name, wiring.kind_of(name, tower))
        own, others = starts.head_specs(tower), starts.head_specs(options)
        heads = [head for head in own if own[head] == others.get(head)]
        fresh = [head for head in own if head in others and own[head] != others[head]]
    entry = {
        "from": folder,
        "match": rf"towers/{there}/((?:encoder|heads/(?:{'|'.join(heads)}))/.*)",
        "to": rf"towers/{name}/\1",
    }
    listed = ", ".join(f"{head} ({others[head]} there)" for head in fresh) if fresh else ""
    return entry, f"towers.{name} starts with random values in: {listed}" if fresh else ""


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
        described = None
        if starts.is_described(folder):
            described = starts.read("config.init", folder)
        found: dict[str, np.ndarray] = {}
        chosen: dict[str, np.ndarray] = {}
        notes = [_short(*one)[1] for one in _starting(config) if one[1]["init"] == folder]
        used: set[str] = set()
        for entry in (one for one in chosen_entries if _source(one) == (folder, step)):
            for path, here in _matched(entry, arrays, folder):
                used.add(path)
                if here in filled:
                    continue
                if here not in target:
                    wrong.append(f"{here} does not exist here")
                    continue
                shape = tuple(target[here].shape)
                value, note = _fitted(path, arrays[path], here, shape, described, config["towers"])
                if value is None:
                    shapes = f"{list(arrays[path].shape)} there, {list(shape)} here"
                    wrong.append(f"{here} is {shapes}")
                    continue
                filled.add(here)
                found[here], chosen[here] = arrays[path], value
                notes.append(note)
        unused = tuple(sorted(set(arrays) - used))
        sha256 = checkpoint.digest(found)
        copied.append(Copied(folder, sha256, chosen, unused, step, tuple(filter(None, notes))))
    if wrong:
        raise InputError(f"config.init: {len(wrong)} arrays do not fit: {'; '.join(wrong)}")
    return copied


def _matched(
    entry: Mapping[str, str], arrays: Mapping[str, Any], folder: str
) -> list[tuple[str, str]]:
    """The paths of a source that an entry matches, each with its path here."""
    matched = [m for path in arrays if (m := re.fullmatch(entry["match"], path))]
    if not matched:
        raise InputError(
            f"config.init: {entry['match']!r} matches no path of {folder}; it has: "
            f"{', '.join(_heads(arrays))}"
        )
    return [(match.string, _renamed(match, entry)) for match in matched]


def _fitted(
    path: str,
    array: np.ndarray,
    here: str,
    shape: tuple[int, ...],
    described: starts.Start | None,
    towers: Mapping[str, Any],
) -> tuple[np.ndarray | None, str]:
    """A value of the shape that it has here, and what was done to it; None where that cannot be."""
    if array.shape == shape:
        return array, ""
    there, _, inner = path.removeprefix("towers/").partition("/")
    name, _, inner_here = here.removeprefix("towers/").partition("/")
    if described is None or inner != inner_here or not {there} <= described.towers.keys():
        return None, ""
    given, wanted = (_complete(one) for one in (described.towers[there], towers[name]))
    made = fit.fitted(inner, array, given, wanted, antialias=described.antialias)
    rows = shape[0] if shape else 0
    if inner == "encoder/token/embedding" and given.get("tokenizer") == wanted.get("tokenizer"):
        # A table may have more rows than its tokenizer has ids; no text reads them.
        made = array[:rows], f"{rows} of {len(array)} rows are kept, one for each id"
    if made is None or made[0].shape != shape:
        return None, ""
    return made[0].astype(array.dtype), f"{here}: {made[1]}"


def _complete(tower: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a tower, with the defaults of those that its encoder has."""
    known = build.options(build.find("encoder", tower["name"]))
    defaults = {key: one.default for key, one in known.items() if not one.required}
    return {**defaults, **tower}


def apply(state: dict[str, Any], copied: list[Copied]) -> dict[str, Any]:
    """A fresh state with the values that were read; each keeps its dtype and its place."""
    values = {path: array for one in copied for path, array in one.arrays.items()}

    def take(keys: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        value = values.get(path_of(keys))
        if value is None:
            return leaf
        cast = value.astype(leaf.dtype)
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: cast[index])

    parts = {name for name in ("params", "variables", "average") if name in state}
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
    described = encoder_folder.is_encoder(folder)
    if described or (folder / WEIGHTS).is_file():
        if step is not None:
            raise InputError(
                f"config.init: {folder} holds exported weights, which have no step; given: {step}"
            )
        try:
            if described:
                return stored.arrays(encoder_folder.read(folder))
            return encoder_folder.read_weights(folder / WEIGHTS)
        except InputError as error:
            raise InputError(f"config.init: {error}") from None
    if not (folder / "checkpoints").is_dir():
        raise InputError(
            f"config.init: {folder} holds neither a run (checkpoints/) nor exported weights "
            f"({WEIGHTS})"
        )
    saved = checkpoint.Checkpoints(folder, read_only=True)
    try:
        state = saved.read_arrays(("params", "variables", "average"), step)
        settings = configs.from_plain(saved.meta(step)["config"])
    finally:
        saved.close()
    params = state["average"] if settings.average.evaluate else state["params"]
    params = lora.merged(params, lora.scales(settings.towers))
    params.pop("lora", None)
    found = {**by_path(params), **by_path(state["variables"])}
    return {path: np.asarray(leaf) for path, leaf in found.items()}


def _heads(arrays: Mapping[str, Any]) -> list[str]:
    """The first two parts of all paths, once each."""
    return sorted({"/".join(path.split("/")[:2]) + "/..." for path in arrays})
