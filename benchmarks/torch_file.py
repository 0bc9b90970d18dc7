"""Reads the tensors of a PyTorch file in its first format, without unpickling it.

`torch.save` wrote until 1.5 five pickles (a magic number, the protocol, facts of the machine, the
object, and the keys of the storages), then the numbers of each storage. Unpickling calls whatever a
file names, so here a small interpreter walks the opcodes instead: it builds plain values and calls
nothing. A file with any other opcode or name than those of a dictionary of tensors is refused.
"""

import io
import pickletools
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmrl.types import InputError

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_DTYPES: dict[str, np.dtype[Any]] = {
    "torch FloatStorage": np.dtype("<f4"),
    "torch LongStorage": np.dtype("<i8"),
}
_REBUILD = "torch._utils _rebuild_tensor_v2"
_DICT = "collections OrderedDict"
_MOST_NUMBERS = 2**30  # of a storage


class _Global(NamedTuple):
    """A name that the file refers to; never looked up."""

    name: str


class _Storage(NamedTuple):
    dtype: np.dtype[Any]
    key: str
    length: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a state dictionary: name -> f32 or i64 [...].

    Raises:
      InputError: no such file, or it is no dictionary of tensors in the first format.
    """
    try:
        file = io.BytesIO(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    try:
        if (_value(file), _value(file)) != (_MAGIC, _PROTOCOL):
            raise ValueError("not a PyTorch file of the first format")
        if _value(file).get("little_endian") is not True:
            raise ValueError("not little-endian")
        tensors, keys = _value(file), _value(file)
        if not isinstance(tensors, dict) or not all(
            isinstance(name, str) and isinstance(one, _Tensor) for name, one in tensors.items()
        ):
            raise ValueError("not a dictionary of tensors")
        stored = {one.storage.key: one.storage for one in tensors.values()}
        numbers = {key: _numbers(file, stored[key]) for key in keys}
        if file.read(1):
            raise ValueError("bytes after the last storage")
        return {name: _array(one, numbers[one.storage.key]) for name, one in tensors.items()}
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, struct.error) as error:
        raise InputError(f"{path}: {error}; expected tensors that torch.save wrote") from error


def _numbers(file: io.BytesIO, storage: _Storage) -> np.ndarray:
    """The next storage of the file: its length, then its numbers."""
    (length,) = struct.unpack("<q", file.read(8))
    if length != storage.length or not 0 <= length <= _MOST_NUMBERS:
        raise ValueError(f"a storage of {length} numbers; expected {storage.length}")
    return np.frombuffer(file.read(length * storage.dtype.itemsize), storage.dtype, length)


def _array(tensor: _Tensor, numbers: np.ndarray) -> np.ndarray:
    """The tensor as an array of its own."""
    size = int(np.prod(tensor.shape, dtype=np.int64))
    contiguous = tuple(
        int(np.prod(tensor.shape[axis + 1 :], dtype=np.int64)) for axis in range(len(tensor.shape))
    )
    if tensor.strides != contiguous or min((tensor.offset, *tensor.shape)) < 0:
        raise ValueError(f"a tensor of strides {tensor.strides}; expected {contiguous}")
    return numbers[tensor.offset : tensor.offset + size].reshape(tensor.shape).copy()


def _call(function: Any, arguments: tuple[Any, ...]) -> Any:
    """What the two known functions return; nothing is called."""
    if function == _Global(_DICT) and arguments == ():
        return {}
    if function == _Global(_REBUILD):
        storage, offset, shape, strides, _, _ = arguments
        if isinstance(storage, _Storage):
            return _Tensor(storage, offset, shape, strides)
    raise ValueError(f"a call of {function}")


def _persistent(reference: tuple[Any, ...]) -> _Storage:
    kind, storage, key, _, length, view = reference
    if kind != "storage" or view is not None or storage.name not in _DTYPES:
        raise ValueError(f"a reference to {reference}")
    return _Storage(_DTYPES[storage.name], key, length)


def _value(file: io.BytesIO) -> Any:
    """The next pickled value, of the few kinds that such files hold.

    Raises:
      ValueError: anything else.
    """
    machine = _Machine()
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name == "STOP":
            (value,) = machine.stack
            return value
        if opcode.name not in machine.steps:
            raise ValueError(f"the opcode {opcode.name}")
        machine.steps[opcode.name](argument)
    raise ValueError("no end of a value")


class _Machine:
    """The stack of a pickle, and what each known opcode does to it.

    Attributes:
      stack: values, the latest last.
      steps: opcode -> function of its argument.
    """

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[Any, Any] = {}
        push = self.stack.append
        self.steps: dict[str, Callable[[Any], Any]] = {
            "PROTO": lambda _: None,
            **dict.fromkeys(("LONG1", "BININT", "BININT1", "BININT2", "BINUNICODE"), push),
            **dict.fromkeys(("BINPUT", "LONG_BINPUT"), self._keep),
            **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda at: push(self._memo[at])),
            "NONE": lambda _: push(None),
            "NEWTRUE": lambda _: push(True),
            "NEWFALSE": lambda _: push(False),
            "EMPTY_DICT": lambda _: push({}),
            "EMPTY_LIST": lambda _: push([]),
            "EMPTY_TUPLE": lambda _: push(()),
            "TUPLE1": lambda _: push(tuple(self._taken(1))),
            "TUPLE2": lambda _: push(tuple(self._taken(2))),
            "TUPLE3": lambda _: push(tuple(self._taken(3))),
            "MARK": lambda _: self._marks.append(len(self.stack)),
            "TUPLE": lambda _: push(tuple(self._marked())),
            "APPEND": lambda _: self._extend(self._taken(1)),
            "APPENDS": lambda _: self._extend(self._marked()),
            "SETITEM": lambda _: self._update(self._taken(2)),
            "SETITEMS": lambda _: self._update(self._marked()),
            "GLOBAL": lambda name: push(_named(name)),
            "REDUCE": lambda _: push(_call(*self._taken(2))),
            "BINPERSID": lambda _: push(_persistent(*self._taken(1))),
            # Attributes of the dictionary, such as versions of its modules.
            "BUILD": lambda _: self._taken(1),
        }

    def _keep(self, place: Any) -> None:
        self._memo[place] = self.stack[-1]

    def _taken(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise ValueError("a value is missing")
        taken = self.stack[-count:]
        del self.stack[-count:]
        return taken

    def _marked(self) -> list[Any]:
        start = self._marks.pop()
        taken = self.stack[start:]
        del self.stack[start:]
        return taken

    def _extend(self, values: list[Any]) -> None:
        self.stack[-1].extend(values)

    def _update(self, pairs: list[Any]) -> None:
        self.stack[-1].update(zip(pairs[::2], pairs[1::2], strict=True))


def _named(name: str) -> _Global:
    if name not in (_DICT, _REBUILD, *_DTYPES):
        raise ValueError(f"the name {name!r}")
    return _Global(name)
