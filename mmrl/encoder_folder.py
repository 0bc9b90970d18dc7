"""The folder of an encoder that carries no run: encoder.json, weights.npz, and its tokenizers.

`python -m mmrl.convert` and `python -m mmrl.export --weights` write such folders. encoder.json:

    {"format": 1,
     "towers": {"image": {options as of config.towers}, "text": {..., "tokenizer": "FILE"}},
     "data": {"resize": how images become square,
              "antialias": how positions are interpolated},    may be absent: true
     "inputs": {options as of config.inputs},                  may be absent
     "dtype": type of the computation,                         may be absent: float32
     "logit_scale": {...},                                     may be absent; not read here
     "source": {"family": NAME, "files": {NAME: SHA256}, "license": TEXT}}

`weights.npz` holds every parameter and batch statistic by path, as those of a run.
"""

import dataclasses
import json
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmrl import build, files
from mmrl.types import InputError

FORMAT = 1
ENCODER, WEIGHTS = "encoder.json", "weights.npz"

_KEYS = ("format", "towers", "data", "inputs", "dtype", "logit_scale", "source")
_OF_DATA = ("resize", "antialias")


@dataclasses.dataclass(frozen=True)
class EncoderFolder:
    """What encoder.json states.

    Attributes:
      path: of the folder.
      towers: name -> options, as those of config.towers; a tokenizer is the path of a file.
      data: options of config.data that belong to the encoder.
      inputs: as config.inputs. dtype: of the computation.
      source: where the encoder comes from, JSON-able.
    """

    path: Path
    towers: Mapping[str, Mapping[str, Any]]
    data: Mapping[str, Any]
    inputs: Mapping[str, Mapping[str, Any]]
    dtype: str
    source: Mapping[str, Any]

    def weights(self) -> dict[str, np.ndarray]:
        """All arrays by path; InputError as of `read_weights`."""
        return read_weights(self.path / WEIGHTS)


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
    if not (folder / WEIGHTS).is_file():
        raise InputError(f"{folder} has no {WEIGHTS}, the weights of its encoder")
    return EncoderFolder(
        folder,
        {name: _with_path(folder, name, given) for name, given in parts["towers"].items()},
        parts["data"],
        parts["inputs"],
        stored.get("dtype", "float32"),
        _mapping(path, "source", stored.get("source", {})),
    )


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


def read_weights(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a .npz file by name. Nothing in it is unpickled.

    Raises:
      InputError: it is damaged, no such file, or holds objects.
    """
    try:
        with path.open("rb") as file, zipfile.ZipFile(file):
            pass  # np.load would take a file of another kind for a pickle
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"cannot read {path}: {error}") from None


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
