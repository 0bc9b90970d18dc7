"""How parameters of ours become the tensors of another library.

A family of `mmrl.models.convert` says which parameter each tensor becomes. Here it runs backwards:

1. A file in this folder states what the library calls a tower of given options: its config and the
   shapes of its tensors, a `Layout`.
2. The family converts a checkpoint of this layout. Where the towers that it finds are not the given
   ones, the library has no such encoder, and the difference is the reason.
3. Each entry of the conversion moves numbers from places of tensors to places of a parameter.
   Converting the places themselves tells where every number belongs.

So whatever is written is read back bit for bit by `python -m mmrl.convert`.
"""

import dataclasses
import importlib
import pkgutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

import mmrl.exports.families as families
from mmrl import build as modules
from mmrl import starts, wiring
from mmrl.models.convert import base as conversions
from mmrl.models.convert.entries import Entry
from mmrl.models.convert.source import Source
from mmrl.models.convert.torch_file import Tensor
from mmrl.models.layers import BlockOptions, resolve_size
from mmrl.models.pool import base as pools
from mmrl.types import InputError

Shapes = dict[str, tuple[int, ...]]
Options = Mapping[str, Any]

_SHARED = ("base", "tables")  # files that are no family


@dataclasses.dataclass(frozen=True)
class Layout:
    """What a library calls an encoder.

    Attributes:
      files: name -> JSON content of a file beside the weights; config.json is that of the model.
      shapes: tensor -> shape.
      weights: name of the file of weights.
      constants: tensor -> its numbers, where no parameter of ours stands for it.
      pools: whether the library pools the features of patches; where it gives only these, mmrl
        pools them as it does here.
      notes: sentences about what the library does otherwise.
    """

    files: Mapping[str, Any]
    shapes: Shapes
    weights: str = "model.safetensors"
    constants: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    pools: bool = True
    notes: tuple[str, ...] = ()


class Family(Protocol):
    """A file in this folder; `LIBRARY` is the library that loads its folders."""

    LIBRARY: str

    def layout(self, towers: Mapping[str, Options], resize: str) -> Layout:
        """The layout of towers.

        Args:
          towers: "image", "text" or both -> complete options, see `complete`; `marks` of a text
            tower are the ids that transformers wants to know: bos_token_id and so on.
          resize: how images become square.

        Raises:
          InputError: the library has no such towers.
        """


@dataclasses.dataclass(frozen=True)
class Written:
    """Towers under the names of a library.

    Attributes:
      family, library: as above. kinds: of the towers.
      files: as of Layout.
      weights: name of the file of weights. tensors: name -> f32 array.
      heads: paths of parameters that the library has no place for.
      notes: sentences about what was changed without changing what is computed.
    """

    family: str
    library: str
    kinds: tuple[str, ...]
    files: Mapping[str, Any]
    weights: str
    tensors: Mapping[str, np.ndarray]
    heads: tuple[str, ...]
    notes: tuple[str, ...]


def names() -> tuple[str, ...]:
    """Names of all families that can be written."""
    found = (one.name for one in pkgutil.iter_modules(families.__path__))
    return tuple(sorted(name for name in found if name not in _SHARED))


def write(
    name: str, towers: Mapping[str, Options], arrays: Mapping[str, np.ndarray], resize: str
) -> Written:
    """Towers under the names of a family.

    Args:
      name: of the family.
      towers: "image", "text" or both -> options, as those of config.towers.
      arrays: path -> f32 array, of every parameter and statistic of these towers, and of
        objectives where a pair has some.
      resize: how images become square.

    Raises:
      InputError: the library has no such towers; the message names what differs.
    """
    family: Any = importlib.import_module(f"{families.__name__}.{name}")
    given = {kind: complete(kind, options) for kind, options in towers.items()}
    layout = family.layout(given, resize)
    blank = _Blank(layout)
    found, reader = conversions.find(blank, name if name in conversions.names() else "")
    with conversions.fitting(blank, found):
        conversion = reader.convert(blank)
    for kind, options in given.items():
        free = _OF_REGIONS if layout.pools else (*_OF_REGIONS, "pool")
        theirs = complete(kind, conversion.towers[kind])
        _check_alike(kind, options, theirs, family.LIBRARY, free)
    own, notes = _without_bias(conversion.entries, dict(arrays))
    notes += layout.notes
    if not layout.pools:
        notes.append(
            f"{family.LIBRARY} gives the features of patches, without the pooling of this tower"
        )
    if conversion.resize != resize and "image" in given:
        notes.append(f"{family.LIBRARY} does not {resize} images to squares; do so beforehand")
    entries = [entry for entry in conversion.entries if _is_needed(entry, own)]
    tensors = {**inverse(entries, layout.shapes, own), **layout.constants}
    written = {entry.target for entry in entries}
    return Written(
        found,
        family.LIBRARY,
        tuple(given),
        layout.files,
        layout.weights,
        tensors,
        tuple(sorted(path for path in own if path not in written)),
        tuple(notes),
    )


def inverse(
    entries: Iterable[Entry], shapes: Mapping[str, tuple[int, ...]], arrays: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """The tensors from which entries make these parameters.

    Where an entry adds tensors, the first one holds the sum. Numbers of tensors that no parameter
    comes from are -0, which changes no number that it is added to.

    Args:
      shapes: tensor -> shape. arrays: path -> array.

    Returns:
      Tensor -> f32 array.

    Raises:
      InputError: an entry that computes more than places and sums, or whose parameter has numbers
        that no tensor holds.
    """
    made = {name: np.full(shape, -0.0, np.float32) for name, shape in shapes.items()}
    for entry in entries:
        array = np.asarray(arrays[entry.target], np.float32)
        left = np.ones(array.shape, bool)
        for number, name in enumerate(entry.sources):
            places = _places(entry, number, shapes)
            held = left & (places > 0) if places.shape == array.shape else left[:0]
            if places.shape != array.shape or np.unique(places[held]).size != held.sum():
                raise InputError(
                    f"{entry.target} {list(array.shape)} cannot be written as {name} "
                    f"{list(shapes[name])}"
                )
            made[name].reshape(-1)[places[held] - 1] = array[held]
            left &= ~held
        if array[left].any():
            raise InputError(f"{entry.target} is not 0, and no tensor of the library holds it")
    return made


def _places(entry: Entry, number: int, shapes: Mapping[str, tuple[int, ...]]) -> np.ndarray:
    """Where in a tensor of an entry, from 1 on, each number of its parameter is; 0: elsewhere.

    Raises:
      InputError: the entry computes more than places and sums.
    """
    given = [np.zeros(shapes[name]) for name in entry.sources]
    size = given[number].size
    given[number] = np.arange(1, size + 1, dtype=np.float64).reshape(given[number].shape)
    places = np.asarray(entry.make(*given))
    if not np.array_equal(places, np.clip(np.rint(places), 0, size)):
        raise InputError(f"{entry.target} is computed from {entry.sources[number]}, not taken")
    return places.astype(np.int64)


class _Blank(Source):
    """A checkpoint of a layout whose tensors have no numbers yet."""

    def __init__(self, layout: Layout) -> None:
        self.path = self.folder = Path("export")
        self.files, self._read = [], []
        self._contents = layout.files
        self._tensors = {name: Tensor(shape, _no_numbers) for name, shape in layout.shapes.items()}
        self.names = tuple(sorted(self._tensors))

    def _beside(self, name: str, absent: Any) -> Any:
        return self._contents.get(name, absent)


def _no_numbers() -> np.ndarray:
    raise NotImplementedError


def _is_needed(entry: Entry, arrays: Mapping[str, Any]) -> bool:
    """Whether a parameter is to be written: all but heads and objectives that are not there."""
    return entry.target in arrays or "/encoder/" in entry.target


_PATCH, _POSITION = "towers/image/encoder/patch/bias", "towers/image/encoder/position"


def _without_bias(
    entries: Iterable[Entry], arrays: dict[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Arrays in which positions hold the bias of the patches, where the library has none."""
    biased = any(entry.target == _PATCH and entry.sources[0].endswith("bias") for entry in entries)
    if biased or _PATCH not in arrays or not arrays[_PATCH].any():
        return arrays, []
    arrays[_POSITION] = arrays[_POSITION] + arrays[_PATCH]
    arrays[_PATCH] = np.zeros_like(arrays[_PATCH])
    return arrays, ["the bias of the patches is added to their positions"]


# What changes how fast or how a tower trains, and not what it computes in evaluation of images of
# its size.
_FREE = (
    "dropout", "attention", "scan_layers", "remat", "packing", "packing_group", "variant",
    "antialias",
)  # fmt: skip
_OF_TOKENIZER = (
    "tokenizer",
    "tokenizer_model",
    "begin_mark",
    "end_mark",
    "mask_token",
    "special_tokens",
)


def complete(kind: str, given: Options) -> dict[str, Any]:
    """The options that say what a tower computes, with their defaults; heads in full form.

    `block` holds all options of `BlockOptions`, of which layer_scale becomes whether there is one;
    `pool` is a mapping with a name, of images.
    """
    offered = modules.options(modules.find("encoder", given["name"]))
    defaults = {name: one.default for name, one in offered.items() if not one.required}
    own = {k: one for k, one in given.items() if k not in wiring.TOWER_KEYS or k == "name"}
    found = {**defaults, **_DEFAULTS[kind], **own, "heads": starts.head_specs(given)}
    if found["name"] in ("vit", "transformer"):
        size = resolve_size(
            found["name"], *(found.get(k) for k in ("variant", "width", "depth", "num_heads"))
        )
        found |= {"width": size.width, "depth": size.depth, "num_heads": size.num_heads}
        found["mlp_dim"] = found.get("mlp_dim") or 4 * size.width
        block = dataclasses.asdict(BlockOptions.of(found["name"], found.get("block")))
        del block["drop_path"]
        block["layer_scale"] = bool(block["layer_scale"])
        block["kv_heads"] = block["kv_heads"] or size.num_heads
        block["head_dim"] = block["head_dim"] or size.width // size.num_heads
        found["block"] = block
    if kind == "image":
        found["pool"] = _pool(found)
        if found.get("region_layer") == found.get("depth"):
            found["region_layer"] = None
        for key in ("pixel_mean", "pixel_std"):
            shape = (int(found.get("channels") or 1),)
            found[key] = np.broadcast_to(np.asarray(found[key], np.float64), shape).tolist()
    return {key: one for key, one in found.items() if key not in (*_FREE, *_OF_TOKENIZER, "head")}


_DEFAULTS: dict[str, dict[str, Any]] = {
    "image": {"channels": 1, "pixel_mean": 0.5, "pixel_std": 0.25},
    "text": {"attend_padding": False},
}


def _pool(given: Options) -> dict[str, Any]:
    """The pooler of an image encoder with all its options."""
    name, options = pools.chosen(given["pool"], own=("cls",))
    if name == "cls":
        return {"name": name}
    offered = modules.options(modules.find("pooler", name))
    defaults = {key: one.default for key, one in offered.items() if not one.required}
    found = {**defaults, **options, "name": name}
    if name == "attention":
        width = given["width"]
        found["mlp_dim"] = found["mlp_dim"] or 4 * width
        found["num_heads"] = found["num_heads"] or next(
            n for n in range(max(width // 64, 1), 0, -1) if width % n == 0
        )
    return found


# Which features of a tower are local; a library has no name for them.
_OF_REGIONS = ("heads", "region_layer", "region_stage", "marks")


def _check_alike(
    kind: str, ours: Options, theirs: Options, library: str, free: tuple[str, ...]
) -> None:
    """Refuses towers that differ in what they compute before their heads.

    Args:
      free: options that may differ.
    """
    kept = ({k: one[k] for k in one if k not in free} for one in (ours, theirs))
    for key, own, other in _different(*kept):
        raise InputError(f"{kind}.{key} is {own}; in {library} it is {other}")


def _different(ours: Options, theirs: Options) -> Iterator[tuple[str, Any, Any]]:
    for key in sorted(ours.keys() | theirs.keys()):
        own, other = ours.get(key), theirs.get(key)
        if isinstance(own, Mapping) and isinstance(other, Mapping):
            for inner, one, two in _different(own, other):
                yield f"{key}.{inner}", one, two
        elif own != other:
            yield key, own, other
