"""The files of an encoder that another library wrote: its config, its tensors and their digests.

Nothing that a file holds is executed: safetensors are read by the library of that name, files of
`torch.save` by `torch_file`.
"""

import functools
import json
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import ml_dtypes  # noqa: F401  so that numpy knows bfloat16
import numpy as np
import safetensors

from mmrl import files
from mmrl.models.convert import torch_file
from mmrl.models.convert.torch_file import Tensor
from mmrl.types import InputError

WEIGHTS = (
    "model.safetensors",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "open_clip_pytorch_model.bin",
)
"""Names of files of weights that a folder may hold, in the order in which they are preferred."""

_INDEX = ".index.json"  # of weights in several files
_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
_MOST_JSON = 64 * 2**20  # bytes
_KINDS = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL")


class Source:
    """The tensors of a folder or a file, and the JSON files beside them.

    Args:
      path: a folder that holds one of `WEIGHTS`, or a file of weights.

    Attributes:
      path, folder: the path, and the folder of the JSON files.
      files: paths of the files of weights.
      names: names of all tensors, sorted.

    Raises:
      InputError: nothing there that can be read; the message names the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.folder = path if path.is_dir() else path.parent
        self.files, listed = _files(path)
        self._read = list(self.files)
        self._tensors: dict[str, Tensor] = {}
        for file in self.files:
            for name, tensor in _tensors(file).items():
                if name in self._tensors:
                    raise InputError(f"{file}: the tensor {name!r} is also in another file")
                self._tensors[name] = tensor
        if absent := sorted(listed - self._tensors.keys()):
            raise InputError(f"{path}: no file holds what the index lists: {', '.join(absent)}")
        self.names = tuple(sorted(self._tensors))

    def json(self, name: str) -> dict[str, Any]:
        """The content of a JSON file beside the weights; empty if there is none.

        Raises:
          InputError: it is not JSON, or holds no mapping.
        """
        found = self._beside(name, {})
        if not isinstance(found, dict):
            raise InputError(f"{self.folder / name}: expected a mapping")
        return found

    def json_list(self, name: str) -> list[dict[str, Any]]:
        """The content of a JSON file that holds a list of mappings; empty if there is none.

        Raises:
          InputError: it is not JSON, or holds anything else.
        """
        found = self._beside(name, [])
        if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
            raise InputError(f"{self.folder / name}: expected a list of mappings")
        return found

    def _beside(self, name: str, absent: Any) -> Any:
        path = self.folder / name
        if not path.is_file():
            return absent
        if path not in self._read:
            self._read.append(path)
        return _parsed(path)

    @property
    def config(self) -> dict[str, Any]:
        """The content of config.json."""
        return self.json("config.json")

    @property
    def license(self) -> str:
        """What config.json or the head of README.md states; empty if they do not."""
        readme = self.folder / "README.md"
        text = readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else ""
        head = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
        line = re.search(r"^license:[ \t]*(.+)$", head[1], re.MULTILINE) if head else None
        return str(self.config.get("license") or (line[1].strip() if line else ""))

    def has(self, *names: str) -> bool:
        """Whether all these tensors are there."""
        return all(name in self._tensors for name in names)

    def starts(self, prefix: str) -> bool:
        """Whether any tensor has a name that starts so."""
        return any(name.startswith(prefix) for name in self.names)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor.

        Raises:
          InputError: it is not there.
        """
        return self._tensor(name).shape

    def tensor(self, name: str) -> np.ndarray:
        """A tensor; floating-point numbers as f32, which holds each of f16 and bf16 exactly.

        Raises:
          InputError: it is not there, or not finite.
        """
        value = self._tensor(name).read()
        if value.dtype.kind in "fV":  # V is bfloat16
            with np.errstate(over="ignore"):
                value = value.astype(np.float32)
            if not np.isfinite(value).all():
                raise InputError(
                    f"{self.path}: the tensor {name!r} holds values that are not finite"
                )
        return value

    def sha256(self) -> dict[str, str]:
        """Name of each file that was read -> digest of its content."""
        return {str(file.relative_to(self.folder)): files.sha256(file) for file in self._read}

    def _tensor(self, name: str) -> Tensor:
        if name not in self._tensors:
            raise InputError(f"{self.path}: no tensor {name!r}")
        return self._tensors[name]


def _files(path: Path) -> tuple[list[Path], set[str]]:
    """The files of weights, and the names of the tensors that an index lists."""
    if path.is_file():
        if path.suffix not in _SUFFIXES:
            raise InputError(f"{path}: expected a file of weights: {', '.join(_SUFFIXES)}")
        return [path], set()
    if not path.is_dir():
        raise InputError(f"{path}: no such file or folder")
    for name in WEIGHTS:
        if (path / name).is_file():
            return [path / name], set()
        if (path / f"{name}{_INDEX}").is_file():
            return _parts(path, path / f"{name}{_INDEX}")
    raise InputError(f"{path} holds no weights; expected one of: {', '.join(WEIGHTS)}")


def _parts(folder: Path, index: Path) -> tuple[list[Path], set[str]]:
    """The files that an index names, all in its folder, and their tensors."""
    content = _parsed(index)
    names = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(names, Mapping) or not all(isinstance(n, str) for n in names.values()):
        raise InputError(f"{index}: no weight_map from tensors to files")
    found = []
    for name in sorted(set(names.values())):
        pure = PurePosixPath(name)
        if len(pure.parts) != 1 or pure.is_absolute() or name in (".", "..") or "\\" in name:
            raise InputError(f"{index}: {name!r} leads outside its folder; expected a plain name")
        if not (folder / name).is_file():
            raise InputError(f"{index}: the file {name!r} is missing")
        found.append(folder / name)
    return found, set(names)


def _tensors(path: Path) -> dict[str, Tensor]:
    return _of_safetensors(path) if path.suffix == ".safetensors" else torch_file.read(path)


def _of_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        # The library checks sizes, offsets and overlaps, and maps the file into memory.
        opened = safetensors.safe_open(str(path), framework="numpy")
        found = {}
        for name in opened.keys():  # noqa: SIM118
            stated = opened.get_slice(name)
            if stated.get_dtype() not in _KINDS:
                raise ValueError(
                    f"the tensor {name!r} is of {stated.get_dtype()}; expected one of: "
                    f"{', '.join(_KINDS)}"
                )
            read = functools.partial(opened.get_tensor, name)
            found[name] = Tensor(tuple(stated.get_shape()), read)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path}: no safetensors that can be read: {error}") from None
    return found


def _parsed(path: Path) -> Any:
    try:
        if path.stat().st_size > _MOST_JSON:
            raise ValueError(f"more than {_MOST_JSON} bytes")
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: {error}") from None
