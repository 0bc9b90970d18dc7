"""Files of torch.save in both formats and safetensors: read, never executed, or refused."""

import collections
import hashlib
import io
import json
import pickle
import stat
import struct
import sys
import time
import types
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from mmrl.models.convert import torch_file
from mmrl.models.convert.source import WEIGHTS, Source
from mmrl.types import InputError

KINDS = {
    "Float": "<f4", "Double": "<f8", "Half": "<f2", "BFloat16": ml_dtypes.bfloat16, "Long": "<i8",
    "Int": "<i4", "Short": "<i2", "Char": "i1", "Byte": "u1", "Bool": "?",
}  # fmt: skip


class Stored:
    """A storage, which torch pickles by reference."""

    def __init__(self, numbers, kind, key):
        self.numbers, self.kind, self.key = numbers, kind, key


class Tensor:
    """A tensor over a storage, which torch pickles as a call of _rebuild_tensor_v2."""

    def __init__(self, storage, offset, shape, strides):
        self.arguments = storage, offset, shape, strides, False, collections.OrderedDict()

    def __reduce__(self):
        return sys.modules["torch._utils"]._rebuild_tensor_v2, self.arguments


class Parameter:
    """A parameter, which torch pickles as a call of _rebuild_parameter."""

    def __init__(self, tensor):
        self.arguments = tensor, True, collections.OrderedDict()

    def __reduce__(self):
        return sys.modules["torch._utils"]._rebuild_parameter, self.arguments


class Evil:
    """Unpickling it would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


class Pickler(pickle.Pickler):
    archive = False

    def persistent_id(self, value):
        if isinstance(value, Stored):
            found = "storage", value.kind, value.key, "cpu", len(value.numbers)
            return found if self.archive else (*found, None)
        return None


@pytest.fixture
def torch(monkeypatch):
    """Modules with the names that files of PyTorch refer to."""
    package, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")

    for name in ("_rebuild_tensor_v2", "_rebuild_parameter"):

        def rebuild(*arguments):
            raise AssertionError("a function that the file names was called")

        rebuild.__module__, rebuild.__qualname__ = "torch._utils", name
        setattr(utils, name, rebuild)
    for kind in (*KINDS, "Complex"):
        name = f"{kind}Storage"
        setattr(package, name, type(name, (), {"__module__": "torch", "__qualname__": name}))
    monkeypatch.setitem(sys.modules, "torch", package)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)
    return package


def dumped(value, protocol=2, *, archive=False):
    file = io.BytesIO()
    pickler = Pickler(file, protocol=protocol)
    pickler.archive = archive
    pickler.dump(value)
    return file.getvalue()


def archived(path, value, storages, *, order=b"little", protocol=2, changed=None, how=0):
    """A file of the second format; `changed` are members with other contents."""
    members = {"data.pkl": dumped(value, protocol, archive=True), "byteorder": order}
    members |= {f"data/{one.key}": one.numbers.tobytes() for one in storages}
    members |= changed or {}
    with zipfile.ZipFile(path, "w", how) as archive:
        for name, data in members.items():
            archive.writestr(name if name.startswith(("/", "..")) else f"archive/{name}", data)
    return path


def written(path, tensors, storages, *, little=True):
    parts = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": little, "type_sizes": {"int": 4}}]
    data = b"".join(map(dumped, [*parts, tensors, [one.key for one in storages]]))
    for one in storages:
        data += struct.pack("<q", len(one.numbers)) + one.numbers.tobytes()
    path.write_bytes(data)
    return path


def floats_of(torch, count=4, key="0"):
    return Stored(np.arange(count, dtype="<f4"), torch.FloatStorage, key)


def arrays(path):
    return {name: one.read() for name, one in torch_file.read(path).items()}


FORMATS = {"stream": written, "archive": archived}


@pytest.mark.parametrize("form", FORMATS)
def test_tensors_come_back_without_a_call(torch, tmp_path, form):
    floats = floats_of(torch, 20, "1")
    longs = Stored(np.array([7], "<i8"), torch.LongStorage, "2")
    tensors = collections.OrderedDict(
        a=Tensor(floats, 2, (2, 3), (3, 1)),
        b=Tensor(floats, 19, (), ()),
        n=Tensor(longs, 0, (1,), (1,)),
        t=Parameter(Tensor(floats, 1, (3, 2), (1, 4))),
        z=Tensor(floats, 0, (0, 4), (4, 1)),
    )
    tensors._metadata = collections.OrderedDict(version=1)
    found = arrays(FORMATS[form](tmp_path / "w.pth", tensors, [longs, floats]))
    assert list(found) == ["a", "b", "n", "t", "z"]
    np.testing.assert_array_equal(found["a"], np.arange(2, 8, dtype=np.float32).reshape(2, 3))
    assert found["b"] == 19 and found["b"].shape == () and found["n"].tolist() == [7]
    assert found["t"].tolist() == [[1, 5], [2, 6], [3, 7]] and found["z"].shape == (0, 4)
    assert found["a"].dtype == np.float32 and found["n"].dtype == np.int64


@pytest.mark.parametrize("protocol", [2, 4])
def test_every_kind_of_numbers_is_read(torch, tmp_path, protocol):
    storages = [
        Stored(np.array([1, 0, 1], np.dtype(kind)), getattr(torch, f"{name}Storage"), str(key))
        for key, (name, kind) in enumerate(KINDS.items())
    ]
    tensors = {f"t{one.key}": Tensor(one, 0, (3,), (1,)) for one in storages}
    path = archived(tmp_path / "w.pt", tensors, storages, protocol=protocol)
    for one in storages:
        found = arrays(path)[f"t{one.key}"]
        assert found.dtype == one.numbers.dtype and found.astype(int).tolist() == [1, 0, 1]


def test_a_state_dictionary_may_lie_beside_other_things(torch, tmp_path):
    floats = floats_of(torch)
    tensor = Tensor(floats, 0, (4,), (1,))
    state = {"module.a": tensor, "module.b.module": tensor}
    for whole in (
        {"epoch": 3, "loss": 0.5, "state_dict": state, "done": True, "name": "x"},
        {"model": {"state_dict": state, "step": None}},
    ):
        path = archived(tmp_path / "w.ckpt", whole, [floats])
        assert list(torch_file.read(path)) == ["a", "b.module"]


def test_other_files_are_refused_and_nothing_is_called(torch, tmp_path):
    path, trace = tmp_path / "w.pth", tmp_path / "trace"
    floats = floats_of(torch, key="1")
    other = Stored(np.arange(4, dtype="<f4"), torch.ComplexStorage, "1")
    good = {"a": Tensor(floats, 0, (4,), (1,))}
    whole = written(path, good, [floats]).read_bytes()
    packed = archived(path, good, [floats]).read_bytes()
    assert arrays(path)["a"].tolist() == [0, 1, 2, 3]
    for data in (b"", b"PK\x03\x04", whole[:-1], whole + b"x", whole[:40], dumped(Evil(trace))):
        path.write_bytes(data)
        with pytest.raises(InputError, match=r"expected tensors that torch\.save wrote"):
            torch_file.read(path)
    for cut in range(0, len(packed) - 1, 7):
        path.write_bytes(packed[:cut])
        with pytest.raises(InputError):
            torch_file.read(path)
    for tensors, storages, message in (
        ({"a": Evil(trace)}, [], "the name"),
        ({"a": 3}, [], "1 of its 1 values are something else: a; .* also lie under one of: state_"),
        ({}, [], "not a dictionary of tensors"),
        ([], [], "not a dictionary of tensors"),
        ({(): 3}, [], "keys are neither texts nor integers"),
        ({"a": Tensor(floats, 1, (4,), (1,))}, [floats], "beyond its storage"),
        ({"a": Tensor(floats, -1, (4,), (1,))}, [floats], "strides are not valid"),
        ({"a": Tensor(floats, 0, (2, 2), (1, 3))}, [floats], "beyond its storage"),
        ({"a": Tensor(floats, 0, (2**40, 2**40), (0, 0))}, [floats], "beyond its storage"),
        ({"a": Tensor(floats, 0, (2**64,), (1,))}, [floats], "strides are not valid"),
        ({"a": Tensor(floats, 0, (2, 2), (1,))}, [floats], "strides are not valid"),
        ({"a": Tensor(floats, 0, (1,) * 65, (1,) * 65)}, [floats], "strides are not valid"),
        ({"a": Tensor(floats, 0.5, (1,), (1,))}, [floats], "strides are not valid"),
        ({"a": Tensor(floats, 0, [4], (1,))}, [floats], "strides are not valid"),
        ({"a": Tensor(3, 0, (4,), (1,))}, [], "with other arguments than torch.save writes"),
        ({"a": Tensor(other, 0, (4,), (1,))}, [other], "the name 'torch ComplexStorage'"),
        ({"a": collections.Counter()}, [], "the name 'collections Counter'"),
        ({"state_dict": {"a": Evil(trace)}}, [], "the name"),
    ):
        for write in FORMATS.values():
            with pytest.raises(InputError, match=message):
                torch_file.read(write(path, tensors, storages))
    with pytest.raises(InputError, match="not little-endian"):
        torch_file.read(written(path, good, [floats], little=False))
    with pytest.raises(InputError, match="not little-endian"):
        torch_file.read(archived(path, good, [floats], order=b"big"))
    with pytest.raises(InputError, match="No such file"):
        torch_file.read(tmp_path / "none.pth")
    assert not trace.exists()


def test_archives_with_tricks_are_refused(torch, tmp_path):
    path, floats = tmp_path / "w.pth", floats_of(torch)
    good = {"a": Tensor(floats, 0, (4,), (1,))}
    for changed, message in (
        ({"../evil": b"x"}, "leads outside the archive"),
        ({"/evil": b"x"}, "leads outside the archive"),
        ({"data/0": b"x"}, "has 1 bytes; expected 16"),
        ({"more/data.pkl": b"x"}, r"2 members data\.pkl"),
        ({"data\\evil": b"x"}, "leads outside the archive"),
    ):
        with pytest.raises(InputError, match=message):
            torch_file.read(archived(path, good, [floats], changed=changed))
    with pytest.raises(InputError, match="is compressed"):
        torch_file.read(archived(path, good, [floats], how=zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(archived(path, good, [floats]), "a") as archive:
        link = zipfile.ZipInfo("archive/data/1")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/hostname")
    with pytest.raises(InputError, match="'archive/data/1' is a link"):
        torch_file.read(path)
    with (
        zipfile.ZipFile(archived(path, good, [floats]), "a") as archive,
        pytest.warns(UserWarning, match="Duplicate"),
    ):
        archive.writestr("archive/data.pkl", dumped({}, archive=True))
    with pytest.raises(InputError, match=r"two members 'archive/data\.pkl'"):
        torch_file.read(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", dumped(good, archive=True))
    with pytest.raises(InputError, match="'a/data/0' is missing; expected 16 bytes"):
        torch_file.read(path)


def test_sizes_that_a_file_states_are_compared_with_its_own(torch, tmp_path):
    huge = floats_of(torch)
    huge.numbers = range(2**40)  # as long as it says, without its memory
    tensors = {"a": Tensor(huge, 0, (2**40,), (1,))}
    path = tmp_path / "archive.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", dumped(tensors, archive=True))
        archive.writestr("a/data/0", b"")
    with pytest.raises(InputError, match=f"has 0 bytes; expected {2**42} bytes"):
        torch_file.read(path)
    # Both sizes in the directory of the archive are four bytes each, from byte 20 on.
    data = bytearray(path.read_bytes())
    at = data.rindex(b"PK\x01\x02")
    data[at + 20 : at + 28] = struct.pack("<II", 2**31, 2**31)
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"members of \d{10} bytes in a file of \d{3}\b"):
        torch_file.read(path)
    few = floats_of(torch)
    whole = written(tmp_path / "stream.pt", {"a": Tensor(few, 0, (4,), (1,))}, [few]).read_bytes()
    wrong = whole[:-24] + struct.pack("<q", 2**62) + whole[-16:]
    (tmp_path / "stream.pt").write_bytes(wrong)
    with pytest.raises(InputError, match=f"a storage of {2**62} numbers; expected 4"):
        torch_file.read(tmp_path / "stream.pt")
    (tmp_path / "stream.pt").write_bytes(whole[:-1])
    with pytest.raises(InputError, match="beyond the end of the file"):
        torch_file.read(tmp_path / "stream.pt")


def test_damaged_numbers_are_found_when_they_are_read(torch, tmp_path):
    floats = floats_of(torch)
    path = archived(tmp_path / "w.pt", {"a": Tensor(floats, 0, (4,), (1,))}, [floats])
    data = path.read_bytes()
    at = data.index(floats.numbers.tobytes())
    path.write_bytes(data[:at] + b"\x01" + data[at + 1 :])
    with pytest.raises(InputError, match=r"w\.pt: Bad CRC-32"):
        torch_file.read(path)["a"].read()


# Opcodes: PROTO 2; empty tuple, list and dictionary; a text; key 0 of the memo.
_BEGIN, _TUPLE, _LIST, _DICT = b"\x80\x02", b")", b"]", b"}"
_KEEP, _AGAIN, _PAIR, _ONE = b"q\x00", b"h\x00", b"\x86", b"\x85"


def text(content, stated=None):
    length = len(content) if stated is None else stated
    return b"X" + struct.pack("<I", length) + content


# A tuple of 2**60 values that takes 240 bytes: each step is a pair of the last one with itself.
_BOMB = _TUPLE + (_KEEP + _AGAIN + _PAIR) * 60
_STORAGE = b"(" + text(b"storage") + b"ctorch\nFloatStorage\n"
_FOUR = _STORAGE + text(b"0") + text(b"cpu") + b"K\x04tQ"
_REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(_LIST * 100_000 + b"a" * 99_999 + b".", id="deep list"),
        pytest.param(_TUPLE + b"".join(b"q%c\x85" % n for n in range(200)) + b".", id="memo"),
        pytest.param(text(b"", 2**32 - 1) + b".", id="claimed text"),
        pytest.param(_DICT + _KEEP + text(b"model") + _AGAIN + b"s.", id="holds itself"),
        pytest.param(_DICT + text(b"model") + _BOMB + b"s.", id="value"),
        pytest.param(_DICT + _BOMB + b"K\x01s.", id="key"),
        pytest.param(_DICT + _TUPLE + _ONE * 100_000 + b"K\x01s.", id="deep key"),
        pytest.param(_BOMB + _TUPLE + b"R.", id="function"),
        pytest.param(b"ccollections\nOrderedDict\n" + _BOMB + b"R.", id="arguments"),
        pytest.param(_BOMB + b"Q.", id="reference"),
        pytest.param(_STORAGE + _BOMB * 3 + b"tQ.", id="parts of a reference"),
        pytest.param(_REBUILD + b"(" + _FOUR + (_BOMB + _ONE) * 3 + b"tR.", id="strides"),
        pytest.param(b"cos\n" + b"x" * 2**22 + b"\n.", id="long name"),
        pytest.param(b"N" * 2**20 + b".", id="flood"),
    ],
)
def test_pickles_that_grow_are_refused_quickly(tmp_path, content):
    path, began = tmp_path / "w.pt", time.monotonic()
    path.write_bytes(_BEGIN + content)
    with pytest.raises(InputError) as stream:
        torch_file.read(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", _BEGIN + content)
    with pytest.raises(InputError) as packed:
        torch_file.read(path)
    assert time.monotonic() - began < 60  # with all else that runs; a bomb would take years
    assert max(len(str(one.value)) for one in (stream, packed)) < 1000


# --- files that PyTorch itself wrote, see tests/reference_torch_files.py

GOLDEN = Path(__file__).parent / "golden" / "torch"


@pytest.mark.parametrize("name", ["archive", "protocol_5", "stream"])
def test_every_layout_of_pytorch_is_read(name):
    found = arrays(GOLDEN / f"{name}.pt")
    ramp = np.arange(24, dtype=np.float32)
    kinds = ("float32", "float64", "float16", "int64", "int32", "int16", "int8", "uint8")
    expected = {kind: np.arange(3, dtype=kind) for kind in kinds} | {
        "bfloat16": np.arange(3).astype(ml_dtypes.bfloat16),
        "bool": np.array([True, False, True]),
        "whole": ramp.reshape(4, 6),
        "transposed": ramp.reshape(4, 6).T,
        "part": ramp[5:17].reshape(3, 4)[:, ::2],
        "permuted": ramp.reshape(2, 3, 4).transpose(2, 0, 1),
        "parameter": ramp[:2] / 2,
        "frozen": ramp[2:4],
        "expanded": np.arange(4)[None],
        "scalar": np.array(7),
        "empty": np.zeros((0, 5), np.float32),
    }
    assert found.keys() == expected.keys()
    for key, array in expected.items():
        assert found[key].dtype == array.dtype, key
        np.testing.assert_array_equal(found[key], array, strict=True)


@pytest.mark.parametrize("name", ["training", "training_stream"])
def test_a_checkpoint_of_training_holds_a_state_dictionary(name):
    found = arrays(GOLDEN / f"{name}.pt")
    shapes = {
        "0.weight": (2, 1, 3, 3), "0.bias": (2,), "1.weight": (2,), "1.bias": (2,),
        "1.running_mean": (2,), "1.running_var": (2,), "1.num_batches_tracked": (),
    }  # fmt: skip
    assert {key: array.shape for key, array in found.items()} == shapes
    assert [array.ravel()[0] for array in found.values()] == list(range(7))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("module", "the name 'torch.nn.modules.container Sequential'"),
        ("complex", "the name 'torch ComplexFloatStorage'"),
        ("sparse", "the name 'torch._utils _rebuild_sparse_tensor'"),
        ("unsigned", "the name 'torch._utils _rebuild_tensor_v3'"),
        ("numpy", "the name 'numpy._core.multiarray scalar'"),
        ("tensor", "not a dictionary of tensors"),
    ],
)
def test_other_objects_of_pytorch_are_refused(name, message):
    with pytest.raises(InputError, match=f"{name}.pt: {message}.*state dictionary as safetensors"):
        torch_file.read(GOLDEN / f"{name}.pt")


def with_pickle(content, change):
    """An archive whose data.pkl is changed, with right sums."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as given, zipfile.ZipFile(made, "w") as archive:
        for name in given.namelist():
            data = given.read(name)
            archive.writestr(name, change(data) if name.endswith("data.pkl") else data)
    return made.getvalue()


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("name", ["archive", "training", "stream"])
def test_changed_bytes_give_tensors_or_an_error_of_one_kind(tmp_path, name):
    content = (GOLDEN / f"{name}.pt").read_bytes()
    rng = np.random.default_rng(0)
    refused = 0

    def change(data):
        changed = bytearray(data)
        for at in rng.integers(len(data), size=2):
            changed[at] = rng.integers(256)
        return bytes(changed)

    for _ in range(300):
        data = change(content) if name == "stream" else with_pickle(content, change)
        (tmp_path / "w.pt").write_bytes(data)
        try:
            arrays(tmp_path / "w.pt")
        except InputError as error:
            refused += 1
            assert len(str(error)) < 1000
    assert 100 < refused < 300


# --- safetensors, and folders


def test_half_precision_is_widened_exactly(tmp_path):
    values = np.array([1.5, -2.25, 2**-14], np.float16)
    numbers = {"half": values, "single": np.float32([3]), "long": np.int64([7])}
    safetensors.numpy.save_file(numbers, tmp_path / "model.safetensors")
    source = Source(tmp_path)
    assert source.names == ("half", "long", "single") and source.shape("half") == (3,)
    assert source.tensor("half").dtype == np.float32
    np.testing.assert_array_equal(source.tensor("half"), values.astype(np.float32))
    assert source.tensor("long").tolist() == [7]
    narrow = np.array([1.5, -3.0], ml_dtypes.bfloat16)
    write_raw(tmp_path / "model.safetensors", {"b": ("BF16", [2], narrow.tobytes())})
    assert Source(tmp_path).tensor("b").tolist() == [1.5, -3.0]


def write_raw(path, tensors, *, header=None, size=None):
    """A file of safetensors, byte by byte."""
    stated, data = {}, b""
    for name, (kind, shape, content) in tensors.items():
        offsets = [len(data), len(data) + len(content)]
        stated[name] = {"dtype": kind, "shape": shape, "data_offsets": offsets}
        data += content
    text = json.dumps(stated | (header or {})).encode()
    path.write_bytes(struct.pack("<Q", len(text) if size is None else size) + text + data)
    return path


def test_hostile_safetensors_are_refused(tmp_path):
    path, four = tmp_path / "model.safetensors", np.zeros(4, "<f4").tobytes()

    def entry(first, last, shape=(4,), kind="F32"):
        return {"x": {"dtype": kind, "shape": list(shape), "data_offsets": [first, last]}}

    for given in (
        {"tensors": {"a": ("F32", [4], four)}, "size": 2**60},
        {"tensors": {"a": ("F32", [4], four)}, "size": 2**63},
        {"tensors": {"a": ("F32", [4], four)}, "header": entry(0, 16)},
        {"tensors": {"a": ("F32", [4], four)}, "header": entry(16, 2**40, (2**38,))},
        {"tensors": {"a": ("F32", [4], four)}, "header": entry(-16, 0)},
        {"tensors": {"a": ("F32", [5], four)}},
        {"tensors": {"a": ("F32", [2**40, 2**40], four)}},
        {"tensors": {"a": ("X9", [4], four)}},
    ):
        write_raw(path, **given)
        with pytest.raises(InputError, match=r"model\.safetensors"):
            Source(tmp_path)
    for content in (b"", b"\x08", b"\x02" + b"\0" * 7 + b"{}x", b"[" * 2000):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"model\.safetensors"):
            Source(tmp_path)
    write_raw(path, {"a": ("F32", [1], np.float32([np.nan]).tobytes())})
    with pytest.raises(InputError, match="'a' holds values that are not finite"):
        Source(tmp_path).tensor("a")


def test_weights_in_several_files_stay_in_their_folder(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for number in (1, 2):
        numbers = {f"t{number}": np.full(2, number, np.float32)}
        safetensors.numpy.save_file(numbers, folder / f"part-{number}.safetensors")
    (tmp_path / "part-3.safetensors").write_bytes((folder / "part-1.safetensors").read_bytes())
    index = folder / "model.safetensors.index.json"

    def state(names):
        index.write_text(json.dumps({"weight_map": names}))

    state({"t1": "part-1.safetensors", "t2": "part-2.safetensors"})
    source = Source(folder)
    assert source.names == ("t1", "t2") and source.tensor("t2").tolist() == [2, 2]
    assert set(source.sha256()) == {"part-1.safetensors", "part-2.safetensors"}
    for name in ("../part-3.safetensors", str(tmp_path / "part-3.safetensors"), "..", "a/b"):
        state({"t1": name})
        with pytest.raises(InputError, match="leads outside its folder"):
            Source(folder)
    state({"t1": "part-1.safetensors", "t3": "part-1.safetensors", "t2": "part-2.safetensors"})
    with pytest.raises(InputError, match="no file holds what the index lists: t3"):
        Source(folder)
    (folder / "part-4.safetensors").write_bytes((folder / "part-1.safetensors").read_bytes())
    state({"t1": "part-1.safetensors", "t2": "part-4.safetensors"})
    with pytest.raises(InputError, match="the tensor 't1' is also in another file"):
        Source(folder)
    state({"t1": "none.safetensors"})
    with pytest.raises(InputError, match=r"'none\.safetensors' is missing"):
        Source(folder)
    for text in ("[]", "{", "{}", '{"weight_map": 3}', "[" * 100_000):
        index.write_text(text)
        with pytest.raises(InputError, match=r"index\.json"):
            Source(folder)


def test_paths_without_weights_are_refused(tmp_path):
    with pytest.raises(InputError, match="no such file or folder"):
        Source(tmp_path / "none")
    with pytest.raises(InputError, match="holds no weights; expected one of"):
        Source(tmp_path)
    (tmp_path / "w.npz").write_bytes(b"x")
    with pytest.raises(InputError, match=r"expected a file of weights: \.safetensors"):
        Source(tmp_path / "w.npz")


def test_pickled_parts_and_single_files_are_sources_too(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "part-1.bin").write_bytes((GOLDEN / "archive.pt").read_bytes())
    index = {"weight_map": {"bfloat16": "part-1.bin"}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    source, single = Source(folder), Source(GOLDEN / "stream.pt")
    assert source.names == single.names and source.shape("transposed") == (6, 4)
    assert source.tensor("bfloat16").dtype == source.tensor("float64").dtype == np.float32
    assert source.tensor("int16").dtype == np.int16
    for name in source.names:
        np.testing.assert_array_equal(source.tensor(name), single.tensor(name))


def test_numbers_beyond_single_precision_are_not_finite(tmp_path):
    safetensors.numpy.save_file({"a": np.array([1e300])}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="'a' holds values that are not finite"):
        Source(tmp_path).tensor("a")


def test_a_source_knows_its_files_and_its_licence(tmp_path):
    safetensors.numpy.save_file({"a": np.zeros(1)}, tmp_path / "model.safetensors")
    source = Source(tmp_path)
    assert source.license == "" and source.config == {} and set(source.sha256()) == {WEIGHTS[0]}
    (tmp_path / "README.md").write_text("---\nlanguage: en\nlicense: mit\ntags:\n- x\n---\nText\n")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    source = Source(tmp_path)
    assert source.license == "mit" and source.config == {"model_type": "bert"}
    digest = hashlib.sha256(b'{"model_type": "bert"}').hexdigest()
    assert source.sha256()["config.json"] == digest
    (tmp_path / "README.md").write_text("The license: mit\n\nlicense: none\n")
    assert source.license == ""
    (tmp_path / "config.json").write_text('{"license": "apache-2.0"}')
    assert source.license == "apache-2.0"
