"""Reads the tensors of a file that `torch.save` wrote, without unpickling it.

Unpickling calls whatever a file names, so here a small interpreter walks the opcodes instead: it
builds plain values and calls nothing. A file that names anything but tensors, dictionaries and
numbers is refused.

There are two formats. Until 1.5, PyTorch wrote five pickles (a magic number, the protocol, facts of
the machine, the object, and the keys of the storages), then the numbers of each storage. Since 1.6
it writes a ZIP archive with one pickle, data.pkl, and a member data/KEY for each storage; members
are not compressed.

Sizes that a file states are compared with its own size before anything of that size is read.
"""

import contextlib
import functools
import io
import math
import mmap
import pickletools
import stat
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

import ml_dtypes
import numpy as np

from mmrl.types import InputError

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_DTYPES: dict[str, np.dtype[Any]] = {
    f"torch {name}Storage": np.dtype(kind)
    for name, kind in {
        "Float": "<f4",
        "Double": "<f8",
        "Half": "<f2",
        "BFloat16": ml_dtypes.bfloat16,
        "Long": "<i8",
        "Int": "<i4",
        "Short": "<i2",
        "Char": "i1",
        "Byte": "u1",
        "Bool": "?",
    }.items()
}
_REBUILD = "torch._utils _rebuild_tensor_v2"
_PARAMETER = "torch._utils _rebuild_parameter"
_DICT = "collections OrderedDict"
_MOST_PICKLE = 64 * 2**20  # bytes of data.pkl
_MOST_STEPS = 2**19  # opcodes of a pickle; a tensor takes about 40
_NESTED = ("state_dict", "model_state_dict", "model", "module", "net", "ema")
"""Keys under which training scripts keep the state dictionary beside other things."""
_PARALLEL = "module."  # before the names of a model in DataParallel
_ADVICE = "expected tensors that torch.save wrote (or save the state dictionary as safetensors)"


class Tensor(NamedTuple):
    """A tensor that is still in its file.

    Attributes:
      shape: its sides.
      read: returns its numbers as an array of its own; raises InputError if they are damaged.
    """

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


class _Global(NamedTuple):
    """A name that the file refers to; never looked up."""

    name: str


class _Storage(NamedTuple):
    dtype: np.dtype[Any]
    key: str
    length: int

    @property
    def size(self) -> int:
        """In bytes."""
        return self.length * self.dtype.itemsize


class _Place(NamedTuple):
    """Where the numbers of a tensor lie; offset and strides count numbers, not bytes."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


Numbers = Callable[[_Storage], np.ndarray]


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a state dictionary, by name.

    A dictionary that holds the state dictionary under a usual key, such as "state_dict", is read
    there; what stands beside it is left out. Where all names start with "module.", which
    DataParallel adds, they lose it.

    Raises:
      InputError: no such file, or it holds no dictionary of tensors in one of the two formats.
    """
    with _refused(path):
        with path.open("rb") as file:
            archived = file.read(4) == b"PK\x03\x04"
        value, numbers = _of_archive(path) if archived else _of_stream(path)
        places = _state(value)
        return {
            name: Tensor(place.shape, functools.partial(_array, path, place, numbers))
            for name, place in places.items()
        }


@contextlib.contextmanager
def _refused(path: Path) -> Iterator[None]:
    """Whatever goes wrong within is an InputError of one line."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    except (
        *(ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError),
        *(EOFError, MemoryError, struct.error, zipfile.BadZipFile),
    ) as error:
        reason = _shown(str(error), 300) or type(error).__name__
        raise InputError(f"{path}: {reason}; {_ADVICE}") from error


def _shown(text: Any, most: int = 80) -> str:
    """A text that a file states, short enough for a message."""
    if not isinstance(text, str):
        return f"a value of {type(text).__name__}"
    return text if len(text) <= most else f"{text[:most]}..."


def _of_stream(path: Path) -> tuple[Any, Numbers]:
    """The object of a file in the first format, and its storages."""
    with path.open("rb") as opened:
        file = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    if _value(file) != _MAGIC or _value(file) != _PROTOCOL:
        raise ValueError("not a file of PyTorch")
    facts = _value(file)
    if not isinstance(facts, dict) or facts.get("little_endian") is not True:
        raise ValueError("not little-endian")
    seen: dict[str, _Storage] = {}
    value, keys = _value(file, seen), _value(file)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise ValueError("no list of storages")
    if sorted(keys) != sorted(seen):
        raise ValueError(f"{len(keys)} storages follow; expected {len(seen)}")
    starts = {}
    for key in keys:
        storage = seen[key]
        (length,) = struct.unpack("<q", file.read(8))
        if length != storage.length:
            raise ValueError(f"a storage of {length} numbers; expected {storage.length}")
        starts[key] = file.tell()
        if starts[key] + storage.size > len(file):
            raise ValueError(f"a storage of {length} numbers beyond the end of the file")
        file.seek(storage.size, io.SEEK_CUR)
    if file.tell() != len(file):
        raise ValueError("bytes after the last storage")
    return value, lambda one: np.frombuffer(file, one.dtype, one.length, starts[one.key])


def _of_archive(path: Path) -> tuple[Any, Numbers]:
    """The object of an archive, and its storages."""
    archive = zipfile.ZipFile(path)  # closed when the last tensor is gone
    members = _members(archive, path.stat().st_size)
    pickles = [name for name in members if PurePosixPath(name).name == "data.pkl"]
    if len(pickles) != 1 or len(PurePosixPath(pickles[0]).parts) > 2:
        raise ValueError(f"{len(pickles)} members data.pkl; expected one")
    if members[pickles[0]] > _MOST_PICKLE:
        raise ValueError(f"data.pkl has more than {_MOST_PICKLE} bytes")
    start = pickles[0].removesuffix("data.pkl")
    order = f"{start}byteorder"
    if order in members and (members[order] > 6 or archive.read(order) != b"little"):
        raise ValueError("not little-endian")
    seen: dict[str, _Storage] = {}
    value = _value(io.BytesIO(archive.read(pickles[0])), seen)
    for storage in seen.values():
        name = f"{start}data/{storage.key}"
        if members.get(name) != storage.size:
            has = f"has {members[name]} bytes" if name in members else "is missing"
            raise ValueError(f"the member {_shown(name)!r} {has}; expected {storage.size} bytes")

    @functools.lru_cache(maxsize=1)  # because the tensors of a storage tend to be neighbours
    def numbers(storage: _Storage) -> np.ndarray:
        content = archive.read(f"{start}data/{storage.key}")  # checks the sum of the member
        return np.frombuffer(content, storage.dtype)

    return value, numbers


def _members(archive: zipfile.ZipFile, size: int) -> dict[str, int]:
    """Name -> size in bytes of each member of an archive, which itself has `size` bytes."""
    found: dict[str, int] = {}
    for info in archive.infolist():
        name, shown = info.filename, repr(_shown(info.filename))
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts or "\\" in name:
            raise ValueError(f"the member {shown} leads outside the archive")
        if stat.S_ISLNK(info.external_attr >> 16):
            raise ValueError(f"the member {shown} is a link")
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise ValueError(f"the member {shown} is compressed, which torch.save never does")
        if info.flag_bits & 1:
            raise ValueError(f"the member {shown} is encrypted")
        if name in found:
            raise ValueError(f"two members {shown}")
        found[name] = info.file_size
    if sum(found.values()) > size:
        raise ValueError(f"members of {sum(found.values())} bytes in a file of {size}")
    return found


def _state(value: Any) -> dict[str, _Place]:
    """The dictionary of tensors in what a file holds."""
    for _ in range(len(_NESTED)):
        if not isinstance(value, dict) or _is_state(value):
            break
        nested = [value[key] for key in _NESTED if isinstance(value.get(key), dict)]
        if not nested:
            break
        value = nested[0]
    if not isinstance(value, dict) or not value:
        raise ValueError("not a dictionary of tensors")
    if not _is_state(value):
        others = [str(name) for name, one in value.items() if not isinstance(one, _Place)]
        raise ValueError(
            f"not a dictionary of tensors, because {len(others)} of its {len(value)} values are "
            f"something else: {', '.join(map(_shown, others[:3]))}; a dictionary of tensors may "
            f"also lie under one of: {', '.join(_NESTED)}"
        )
    cut = len(_PARALLEL) if all(name.startswith(_PARALLEL) for name in value) else 0
    return {name[cut:]: one for name, one in value.items()}


def _is_state(value: Mapping[Any, Any]) -> bool:
    return all(isinstance(name, str) and isinstance(one, _Place) for name, one in value.items())


def _array(path: Path, place: _Place, numbers: Numbers) -> np.ndarray:
    """The tensor as an array of its own."""
    with _refused(path):
        stored = numbers(place.storage)
        if not math.prod(place.shape):
            return np.zeros(place.shape, stored.dtype)
        strides = tuple(step * stored.dtype.itemsize for step in place.strides)
        return np.lib.stride_tricks.as_strided(
            stored[place.offset :], place.shape, strides, writeable=False
        ).copy()


def _call(function: Any, arguments: Any) -> Any:
    """What the known functions return; nothing is called."""
    if not isinstance(function, _Global) or not isinstance(arguments, tuple):
        raise ValueError("a call of something that is no function")
    if function.name == _DICT and not arguments:
        return {}
    if function.name == _PARAMETER and arguments and isinstance(arguments[0], _Place):
        return arguments[0]
    if function.name == _REBUILD and len(arguments) >= 4 and isinstance(arguments[0], _Storage):
        return _place(*arguments[:4])
    raise ValueError(f"a call of {function.name!r} with other arguments than torch.save writes")


def _place(storage: _Storage, offset: Any, shape: Any, strides: Any) -> _Place:
    """The place of a tensor, which must lie in its storage."""
    valid = _counts((offset,)) and _counts(shape) and _counts(strides)
    if not valid or len(shape) != len(strides):
        raise ValueError("a tensor whose offset, shape or strides are not valid")
    reach = sum((side - 1) * step for side, step in zip(shape, strides, strict=True))
    count = math.prod(shape)
    if count and (offset + reach >= storage.length or count > storage.length):
        raise ValueError(
            f"a tensor of shape {shape}, strides {strides} and offset {offset} beyond its storage "
            f"of {storage.length} numbers"
        )
    return _Place(storage, offset, shape, strides)


def _counts(values: Any) -> bool:
    """Whether these are numbers from 0 to 2**63 - 1, as many as a tensor has sides at most."""
    return (
        isinstance(values, tuple)
        and len(values) <= 64
        and all(type(one) is int and 0 <= one < 2**63 for one in values)
    )


def _persistent(reference: Any) -> _Storage:
    """The storage that a reference names: its kind, key, device and length, perhaps a view."""
    if not isinstance(reference, tuple) or len(reference) not in (5, 6):
        raise ValueError("a reference to something that is no storage")
    kind, storage, key, _, length, *view = reference
    if kind != "storage" or not isinstance(storage, _Global) or storage.name not in _DTYPES:
        raise ValueError("a reference to something that is no storage")
    if not isinstance(key, str) or not _counts((length,)) or view not in ([], [None]):
        raise ValueError("a storage whose key, length or view is not valid")
    return _Storage(_DTYPES[storage.name], key, length)


def _value(file: IO[bytes] | mmap.mmap, seen: dict[str, _Storage] | None = None) -> Any:
    """The next pickled value, of the few kinds that such files hold.

    Args:
      seen: takes the storages that the value refers to, by key.

    Raises:
      ValueError: anything else.
    """
    machine = _Machine({} if seen is None else seen)
    for step, (opcode, argument, _) in enumerate(pickletools.genops(file)):  # type: ignore[arg-type]
        if opcode.name == "STOP":
            (value,) = machine.stack
            return value
        if opcode.name not in machine.steps:
            raise ValueError(f"the opcode {opcode.name}")
        if step > _MOST_STEPS:
            raise ValueError(f"a pickle of more than {_MOST_STEPS} opcodes")
        machine.steps[opcode.name](argument)
    raise ValueError("no end of a value")


_VALUES = (
    *("LONG1", "BININT", "BININT1", "BININT2", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "SHORT_BINSTRING", "BINSTRING"),
)


class _Machine:
    """The stack of a pickle, and what each known opcode does to it.

    Values may hold themselves, or each other so often that a walk through them has no end. So
    nothing here compares, hashes or prints a value before it knows its type.

    Attributes:
      stack: values, the latest last.
      steps: opcode -> function of its argument.
    """

    def __init__(self, seen: dict[str, _Storage]) -> None:
        self.stack: list[Any] = []
        self._seen = seen
        self._marks: list[int] = []
        self._memo: dict[Any, Any] = {}
        push = self.stack.append
        self.steps: dict[str, Callable[[Any], Any]] = {
            **dict.fromkeys(("PROTO", "FRAME"), lambda _: None),
            **dict.fromkeys(_VALUES, push),
            **dict.fromkeys(("BINPUT", "LONG_BINPUT"), self._keep),
            "MEMOIZE": lambda _: self._keep(len(self._memo)),
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
            "STACK_GLOBAL": lambda _: push(_named(" ".join(self._taken(2)))),
            "REDUCE": lambda _: push(_call(*self._taken(2))),
            "BINPERSID": lambda _: push(self._storage(*self._taken(1))),
            # Attributes of the dictionary, such as versions of its modules.
            "BUILD": lambda _: self._taken(1),
        }

    def _storage(self, reference: Any) -> _Storage:
        found = _persistent(reference)
        if self._seen.setdefault(found.key, found) != found:
            raise ValueError(f"two storages {_shown(found.key)!r}")
        return found

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
        if not all(type(key) in (str, int) for key in pairs[::2]):
            raise ValueError("a dictionary whose keys are neither texts nor integers")
        self.stack[-1].update(zip(pairs[::2], pairs[1::2], strict=True))


def _named(name: str) -> _Global:
    if name not in (_DICT, _REBUILD, _PARAMETER, *_DTYPES):
        raise ValueError(f"the name {_shown(name)!r}")
    return _Global(name)
