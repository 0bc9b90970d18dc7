"""Which library holds which towers of an export, and under which names."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mmrl import build, wiring
from mmrl.exports import weights
from mmrl.exports.families import base
from mmrl.training import run
from mmrl.types import InputError

OWN, REST = "model.safetensors", "heads.safetensors"

# In the order in which they are tried; the first that knows the towers is taken.
_FAMILIES = {
    ("image", "text"): ("clip", "siglip", "open_clip"),
    ("image",): ("dinov2", "vit", "timm_vit", "resnet", "clip", "siglip"),
    ("text",): ("bert", "llama", "clip", "siglip"),
}


@dataclasses.dataclass(frozen=True)
class Part:
    """Towers in one place of the folder.

    Attributes:
      folder: "." or a name. towers: kind -> tower here. written: their tensors.
    """

    folder: str
    towers: Mapping[str, str]
    written: base.Written


@dataclasses.dataclass(frozen=True)
class Plan:
    """What becomes of each tower.

    Attributes:
      towers: name -> options. parts: those that libraries load.
      reasons: tower, or towers joined by " and " -> family -> why it does not hold them.
      own: path -> array, what has our names.
    """

    towers: Mapping[str, Mapping[str, Any]]
    parts: Sequence[Part]
    reasons: Mapping[str, Mapping[str, str]]
    own: Mapping[str, np.ndarray]

    @property
    def file(self) -> str:
        """Name of the file with our names."""
        return REST if any(part.folder == "." for part in self.parts) else OWN

    def lines(self) -> Iterator[str]:
        """What was decided, line by line."""
        for part in self.parts:
            towers = " and ".join(part.towers.values())
            place = "" if part.folder == "." else f" in {part.folder}/"
            yield f"{towers}: {part.written.family} of {part.written.library}{place}"
            yield from (f"note: {note}" for note in part.written.notes)
            if part.written.heads:
                yield f"{towers}: {len(part.written.heads)} arrays have our names, in {self.file}"
        held = {tower for part in self.parts for tower in part.towers.values()}
        for towers, families in self.reasons.items():
            if not held & set(towers.split(" and ")):
                yield f"{towers}: our names, because no library has such a tower"
                yield from (f"  not as {family}: {reason}" for family, reason in families.items())


def make(trained: run.Trained, family: str = "") -> Plan:
    """Decides which library holds which towers.

    Args:
      family: "": the first that knows them; "mmrl": none.

    Raises:
      InputError: an unknown family, or one that knows no tower here; says why.
    """
    offered = (*base.names(), "mmrl")
    if family and family not in offered:
        raise InputError(build.unknown("--family", family, offered))
    arrays, towers = unscanned(weights.arrays(trained), weights.options(trained))
    stated = {name: {**given, **_marks(trained, name)} for name, given in towers.items()}
    resize = str(weights.data_of(trained)["resize"])
    kinds = {name: wiring.kind_of(name, given) for name, given in towers.items()}
    parts: list[Part] = []
    reasons: dict[str, dict[str, str]] = {}
    left = dict(kinds)
    if sorted(kinds.values()) == ["image", "text"]:
        _try(left, arrays, stated, resize, ".", family, parts, reasons)
    for name, kind in dict(left).items():
        folder = "." if len(towers) == 1 else name
        _try({name: kind}, arrays, stated, resize, folder, family, parts, reasons)
    if family not in ("", "mmrl") and not parts:
        found = "; ".join(one[family] for one in reasons.values() if family in one)
        raise InputError(f"--family={family}: {found or 'no tower of this kind'}")
    held = {path for part in parts for path in _paths(part, arrays)}
    own = {path: array for path, array in arrays.items() if path not in held}
    return Plan(towers, tuple(parts), reasons, own)


def _try(
    towers: dict[str, str],
    arrays: Mapping[str, np.ndarray],
    options: Mapping[str, Mapping[str, Any]],
    resize: str,
    folder: str,
    family: str,
    parts: list[Part],
    reasons: dict[str, dict[str, str]],
) -> None:
    """Adds the part of the first family that knows these towers, which then leaves `towers`."""
    kinds = tuple(sorted(towers.values()))
    named = {kind: name for name, kind in towers.items()}
    tried = _FAMILIES.get(kinds, ()) if not family else (family,)
    own = _renamed(arrays, {name: kind for kind, name in named.items()})
    failed = reasons.setdefault(" and ".join(towers), {})
    for one in tried if family != "mmrl" else ():
        try:
            written = base.write(one, {k: options[n] for k, n in named.items()}, own, resize)
        except InputError as error:
            failed[one] = str(error)
            continue
        parts.append(Part(folder, named, written))
        towers.clear()
        return


def _marks(trained: run.Trained, tower: str) -> dict[str, Any]:
    """The option `marks` of a text tower, see `base.Family`; empty for others."""
    if tower not in trained.tokenizers:
        return {}
    own = trained.tokenizers[tower]
    return {"marks": {"bos_token_id": own.begin, "eos_token_id": own.end, "pad_token_id": own.pad}}


def _renamed(arrays: Mapping[str, np.ndarray], names: Mapping[str, str]) -> dict[str, np.ndarray]:
    """The arrays of some towers, with these names in their paths, and those of objectives."""
    found = {}
    for path, array in arrays.items():
        part, name, inner = (*path.split("/", 2), "")[:3]
        if part == "objectives":
            found[path] = array
        elif part == "towers" and name in names:
            found[f"towers/{names[name]}/{inner}"] = array
    return found


def _paths(part: Part, arrays: Mapping[str, np.ndarray]) -> set[str]:
    """The paths here of what a part holds; what objectives have is held under our names, too."""
    there = _renamed(dict.fromkeys(arrays, np.zeros(0)), {n: k for k, n in part.towers.items()})
    held = {path for path in there if path not in part.written.heads}
    back = _renamed(dict.fromkeys(held, np.zeros(0)), part.towers)
    return {path for path in back if not path.startswith("objectives/")}


def unscanned(
    arrays: Mapping[str, np.ndarray], towers: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, np.ndarray], dict[str, dict[str, Any]]]:
    """Arrays and options in which every block of a stack has parameters of its own."""
    found: dict[str, np.ndarray] = {}
    for path, array in arrays.items():
        before, scanned, after = path.partition("/stack/blocks/")
        if not scanned:
            found[path] = array
            continue
        for index, one in enumerate(array):
            found[f"{before}/stack/block_{index:02d}/{after}"] = one
    options = {name: {**given} for name, given in towers.items()}
    for given in options.values():
        if given.get("scan_layers"):
            given["scan_layers"] = False
    return found, options
