"""Bags of features that were computed elsewhere: a file with an array [S, F] for each study.

S are the parts of the study, such as the patches of a slide; F is the width of their features.
Nothing is unpickled.
"""

import importlib.util
import os
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from mmrl import extras
from mmrl.types import InputError, first_line

_NAME = "features"  # of the array, in a file that holds several
_DAMAGE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, safetensors.SafetensorError)


def load(root: str, relative: str) -> np.ndarray:
    """Reads the bag of a file, f16, f32 or f64 [S, F]; with functools.partial, a `Record.bag`.

    A file of several arrays must have one that is called "features".

    Raises:
      InputError: no such file, a file of another kind, or one that holds no bag; names the file.
    """
    path = Path(root, relative)
    read = _reader(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        return checked(read(path))
    except _DAMAGE as error:
        what = (
            str(error)
            if isinstance(error, InputError)
            else f"it cannot be read: {first_line(error)}"
        )
        raise InputError(f"{path}: {what}") from None


def checked(bag: Any) -> np.ndarray:
    """The bag itself.

    Raises:
      InputError: no array of floating-point numbers [S, F], or values that are not finite.
    """
    array = np.asarray(bag)
    if array.ndim != 2 or not array.size or array.dtype not in (np.float16, np.float32, np.float64):
        raise InputError(
            f"features {array.dtype}{list(array.shape)}; expected float16 or float32 [S, F]"
        )
    if not np.isfinite(array).all():
        raise InputError(f"features {list(array.shape)} with values that are not finite")
    return array


def check_readable(paths: Iterable[str]) -> None:
    """Raises InputError for a path of .h5, if the package that reads such files is absent."""
    first = next((path for path in paths if path.lower().endswith(".h5")), "")
    if first and importlib.util.find_spec("h5py") is None:
        raise InputError(f"{first}: reading it needs h5py: {extras.command('hdf5')}")


def fault(root: str, verify: str, relative: str) -> tuple[str, str] | None:
    """The reason and detail for which a bag is refused, or None; None for a blank path.

    Args:
      verify: "decode" reads the bag; otherwise only its name is checked, and that it is there.
    """
    if not relative:
        return None
    if not os.path.isfile(os.path.join(root, relative)):
        return "missing_bag", f"no file '{relative}'"
    try:
        if verify == "decode":
            load(root, relative)
        _reader(Path(relative))
    except InputError as error:
        return "bad_bag", str(error)
    return None


def _chosen(names: Any) -> str:
    """The name of the array to read."""
    found = sorted(names)
    if len(found) == 1:
        return found[0]
    if _NAME in found:
        return _NAME
    raise InputError(f"arrays {', '.join(found) or 'none'}; expected one, or one called {_NAME!r}")


def _numpy(path: Path) -> np.ndarray:
    with path.open("rb") as file:  # np.load leaves a damaged .npz open
        stored = np.load(file, allow_pickle=False)
        return stored if isinstance(stored, np.ndarray) else stored[_chosen(stored.files)]


def _safetensors(path: Path) -> np.ndarray:
    with safetensors.safe_open(path, "numpy") as stored:
        return stored.get_tensor(_chosen(stored.keys()))


def _h5(path: Path) -> np.ndarray:
    check_readable([path.name])
    import h5py

    with h5py.File(path, "r") as stored:
        return stored[_chosen(stored)][()]


def _reader(path: Path) -> Callable[[Path], np.ndarray]:
    found = _READERS.get(path.suffix.lower())
    if found is None:
        what = path.suffix or "a file without suffix"
        raise InputError(f"{path}: a bag of features as {what}; choices: {', '.join(_READERS)}")
    return found


_READERS: dict[str, Callable[[Path], np.ndarray]] = {
    ".npy": _numpy,
    ".npz": _numpy,
    ".safetensors": _safetensors,
    ".h5": _h5,
}
