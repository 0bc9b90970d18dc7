"""The folder of an encoder that carries no run: encoder.json, its weights, and its tokenizers.

`python -m mmrl.convert` and `python -m mmrl.export encoder` write such folders. encoder.json:

    {"format": 1,
     "towers": {"image": {options as of config.towers}, "text": {..., "tokenizer": "FILE"}},
     "data": {"resize": how images become square,
              "antialias": how positions are interpolated,     may be absent: true
              "colour": as config.data.colour},                may be absent: see `colour_of`
     "inputs": {options as of config.inputs},                  may be absent
     "dtype": type of the computation,                         may be absent: float32
     "logit_scale": {...},                                     may be absent; not read here
     "weights": {"file": weights under our names,              may be absent: weights.npz
                 "libraries": [{"folder": NAME or ".",         may be absent
                                "family": NAME, "towers": {"image" or "text": NAME}}]},
     "source": {"family": NAME, "files": {NAME: SHA256}, "license": TEXT}}

`weights.npz`, or a file of safetensors, holds every parameter and batch statistic by path, as those
of a run. Where libraries are stated, it holds only what they have no place for: their folders hold
the encoders under their own names, see `mmrl.models.convert`.
"""

import dataclasses
import json
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from mmrl import build, files
from mmrl.types import DamageError, InputError

_DAMAGES = (
    *(EOFError, ValueError, KeyError),
    *(zipfile.BadZipFile, zlib.error, safetensors.SafetensorError),
)

FORMAT = 1
ENCODER, WEIGHTS = "encoder.json", "weights.npz"

_KEYS = ("format", "towers", "data", "inputs", "dtype", "logit_scale", "weights", "source")
_OF_DATA = ("resize", "antialias", "colour")


@dataclasses.dataclass(frozen=True)
class Library:
    """A part of the weights under the names of a library.

    Attributes:
      folder: that holds it. family: see `mmrl.models.convert`.
      towers: "image", "text" -> the tower here.
    """

    folder: Path
    family: str
    towers: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class EncoderFolder:
    """What encoder.json states.

    Attributes:
      path: of the folder.
      towers: name -> options, as those of config.towers; a tokenizer is the path of a file.
      data: options of config.data that belong to the encoder.
      inputs: as config.inputs. dtype: of the computation.
      source: where the encoder comes from, JSON-able.
      file: path of the weights under our names.
      libraries: the parts under the names of others.
    """

    path: Path
    towers: Mapping[str, Mapping[str, Any]]
    data: Mapping[str, Any]
    inputs: Mapping[str, Mapping[str, Any]]
    dtype: str
    source: Mapping[str, Any]
    file: Path
    libraries: tuple[Library, ...] = ()

    def weights(self) -> dict[str, np.ndarray]:
        """The arrays of `file` by path; InputError as of `read_weights`."""
        return read_weights(self.file)

    def array(self, name: str) -> np.ndarray | None:
        """One array, without reading the others; None if there is none of this name."""
        return read_weights(self.file, (name,)).get(name)


def is_encoder(folder: Path) -> bool:
    """Whether a folder holds an encoder that carries no run."""
    return (folder / ENCODER).is_file()


def read(folder: Path) -> EncoderFolder:
    """Reads encoder.json, and checks that the files that it needs are there.

    Raises:
      InputError: the folder or a file is missing; encoder.json is no such file, is of another
        format, or has unknown keys or values of another kind.
    """
    path = folder / ENCODER
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"{folder} holds no encoder ({ENCODER}: {error.strerror}); expected a folder of "
            "python -m mmrl.convert or of python -m mmrl.export --weights"
        ) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}") from None
    if not isinstance(stored, dict) or stored.get("format") != FORMAT:
        found = stored.get("format") if isinstance(stored, dict) else stored
        raise InputError(f"{path} has format {found!r}; this version of mmrl reads {FORMAT}")
    _check_keys(f"{path}", stored, _KEYS)
    parts = {key: _mapping(path, key, stored.get(key, {})) for key in _KEYS[1:4]}
    _check_keys(f"data of {path}", parts["data"], _OF_DATA)
    if not parts["towers"]:
        raise InputError(f"{path} has no towers; expected image, text, or both")
    for kind in ("towers", "inputs"):
        for name, given in parts[kind].items():
            _check_modules(path, f"{kind}.{name}", _mapping(path, f"{kind}.{name}", given))
    weights = _mapping(path, "weights", stored.get("weights", {}))
    _check_keys(f"weights of {path}", weights, ("file", "libraries"))
    file = folder / _inside(path, "weights.file", weights.get("file", WEIGHTS))
    if not file.is_file():
        raise InputError(f"{folder} has no {file.name}, the weights of its encoder")
    return EncoderFolder(
        folder,
        {name: _with_path(folder, name, given) for name, given in parts["towers"].items()},
        parts["data"],
        parts["inputs"],
        stored.get("dtype", "float32"),
        _mapping(path, "source", stored.get("source", {})),
        file,
        tuple(_library(path, given) for given in weights.get("libraries", ())),
    )


def colour_of(data: Mapping[str, Any], towers: Mapping[str, Mapping[str, Any]]) -> str:
    """config.data.colour of a folder.

    Where it is not stated, a tower of three channels also reads grey images.
    """
    reads_colour = any(given.get("channels") == 3 for given in towers.values())
    return str(data.get("colour") or ("rgb" if reads_colour else "as_stored"))


def write(
    folder: Path,
    *,
    towers: Mapping[str, Mapping[str, Any]],
    data: Mapping[str, Any],
    source: Mapping[str, Any],
    **more: Any,
) -> None:
    """Writes encoder.json, which is the last file of a folder; `read` states the keys."""
    content = {"format": FORMAT, "towers": towers, "data": data, **more, "source": source}
    files.write_json(folder / ENCODER, content)


def read_weights(path: Path, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """The arrays of a file of .npz or .safetensors by name. Nothing in it is unpickled.

    Args:
      names: those to read, where they are there; None: all.

    Raises:
      InputError: no such file, or one that cannot be read.
      DamageError: it is no such archive, holds objects, or is not as it was written.
    """
    try:
        if path.suffix == ".safetensors":
            with safetensors.safe_open(path, "numpy") as stored:
                return {name: stored.get_tensor(name) for name in _chosen(stored.keys(), names)}
        with path.open("rb") as file, zipfile.ZipFile(file):
            pass  # np.load would take a file of another kind for a pickle
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in _chosen(stored.files, names)}
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    except _DAMAGES as error:
        raise DamageError(f"cannot read {path}: {error}") from None


def _chosen(offered: Iterable[str], names: Sequence[str] | None) -> list[str]:
    return [name for name in offered if names is None or name in names]


def _with_path(folder: Path, tower: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a tower with the path of its tokenizer.

    Raises:
      InputError: the tokenizer is no file in the folder.
    """
    name = given.get("tokenizer", "")
    if not name:
        return dict(given)
    if not isinstance(name, str) or Path(name).name != name or not (folder / name).is_file():
        raise InputError(
            f"{folder / ENCODER}: towers.{tower}.tokenizer={name!r} is no file of that folder"
        )
    return {**given, "tokenizer": str(folder / name)}


def _library(path: Path, given: Any) -> Library:
    stated = _mapping(path, "weights.libraries", given)
    _check_keys(f"weights.libraries of {path}", stated, ("folder", "family", "towers"))
    name = stated.get("folder", ".")
    folder = path.parent / _inside(path, "weights.libraries.folder", name)
    towers = _mapping(path, "weights.libraries.towers", stated.get("towers"))
    return Library(folder, str(stated.get("family", "")), towers)


def _inside(path: Path, key: str, name: Any) -> str:
    """The name of a file or folder beside encoder.json.

    Raises:
      InputError: it leads elsewhere.
    """
    plain = isinstance(name, str) and Path(name).name == name and "\\" not in name
    if name != "." and (not plain or name == ".."):
        raise InputError(f"{path}: {key}={name!r} is no name of something in that folder")
    return name


def _check_modules(path: Path, key: str, given: Mapping[str, Any]) -> None:
    """Refuses modules of other packages: a folder must not decide what code is imported."""
    for option, value in given.items():
        if isinstance(value, Mapping):
            _check_modules(path, f"{key}.{option}", value)
        elif option in ("name", "kind", "pool") and isinstance(value, str) and "." in value:
            raise InputError(
                f"{path}: {key}.{option}={value!r} is a module of another package; expected one "
                "of mmrl"
            )


def _mapping(path: Path, key: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{path}: {key}={value!r}; expected a mapping")
    return value


def _check_keys(where: str, given: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for key in given:
        if key not in known:
            raise InputError(build.unknown(f"key in {where}", key, known))
