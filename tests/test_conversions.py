"""The framework of conversions: what is used, ignored, missing and wrong, whatever the family."""

import types

import numpy as np
import pytest
import safetensors.numpy

from mmrl.models.convert import base, entries
from mmrl.models.convert.entries import Entry
from mmrl.models.convert.source import Source
from mmrl.types import InputError

KERNEL, BIAS = "towers/image/encoder/norm/kernel", "towers/image/encoder/norm/bias"
TARGET = {KERNEL: (3, 2), BIAS: (2,)}
TENSORS = {
    "layer.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "layer.bias": np.ones(2, np.float16),
    "pooler.weight": np.zeros((2, 2), np.float32),
}
ENTRIES = tuple(entries.linear("towers/image/encoder/norm", "layer"))
IGNORED = {r"pooler\..*": "not of the encoder"}


@pytest.fixture
def source_of(tmp_path):
    def make(**changed):
        tensors = {name: x for name, x in (TENSORS | changed).items() if x is not None}
        safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
        return Source(tmp_path)

    return make


def build(source, given=ENTRIES, ignored=IGNORED, target=TARGET):
    return base.build(source, base.Conversion({"image": {}}, tuple(given), ignored), target)


def test_every_tensor_is_used_or_ignored(source_of):
    arrays, report = build(source_of())
    assert arrays.keys() == TARGET.keys()
    np.testing.assert_array_equal(arrays[KERNEL], [[0, 3], [1, 4], [2, 5]])
    assert {array.dtype.name for array in arrays.values()} == {"float32"}
    assert all(array.flags.c_contiguous for array in arrays.values())
    assert report.used == {"layer.weight": (KERNEL,), "layer.bias": (BIAS,)}
    assert report.ignored == {"pooler.weight": "not of the encoder"}


def test_one_tensor_may_fill_several_parameters_and_the_reverse(source_of):
    total = Entry(BIAS, ("layer.bias", "more"), lambda x, y: x + y)
    arrays, report = build(source_of(more=np.float32([1, 2])), [ENTRIES[0], total])
    assert arrays[BIAS].tolist() == [2, 3] and report.used["more"] == (BIAS,)
    arrays, report = build(
        source_of(),
        [*ENTRIES, Entry("objectives/x/scale", ("layer.bias",), np.sum)],
    )
    assert arrays["objectives/x/scale"] == 2
    assert report.used["layer.bias"] == (BIAS, "objectives/x/scale")


@pytest.mark.parametrize(
    ("changed", "given", "message"),
    [
        ({"layer.bias": None}, ENTRIES, r"1 tensors are missing: layer\.bias"),
        (
            {"a": np.zeros(1), "b": np.zeros(1)},
            ENTRIES,
            "2 tensors are neither used nor ignored: a, b",
        ),
        ({}, ENTRIES[:1], f"1 tensors are neither .*: layer.bias; .* {BIAS} has no source"),
        ({}, (*ENTRIES, ENTRIES[1]), f"{BIAS} is filled twice"),
        (
            {"layer.bias": np.zeros(3, np.float32)},
            ENTRIES,
            rf"{BIAS} is \[3\] from layer\.bias \[3\]; expected \[2\]",
        ),
        (
            {"layer.weight": np.zeros(6, np.float32)},
            [Entry(KERNEL, ("layer.weight",), lambda x: x.transpose(1, 0)), ENTRIES[1]],
            rf"{KERNEL} cannot be made of layer\.weight \[6\]",
        ),
        (
            {},
            (*ENTRIES, entries.same("towers/image/encoder/new", "layer.bias")),
            "towers/image/encoder/new does not exist here",
        ),
        ({"layer.bias": np.float32([0, np.nan])}, ENTRIES, r"'layer\.bias' holds values that are"),
        ({"layer.bias": np.float32([0, -np.inf])}, ENTRIES, r"'layer\.bias' holds values that are"),
    ],
)
def test_whatever_does_not_fit_is_listed(source_of, changed, given, message):
    with pytest.raises(InputError, match=message):
        build(source_of(**changed), given)


def test_all_faults_are_listed_at_once(source_of):
    source = source_of(**{"layer.bias": None, "new": np.zeros(1)})
    with pytest.raises(InputError) as raised:
        build(source, [*ENTRIES, entries.same("towers/image/encoder/new", "absent")])
    for part in (
        "2 tensors are missing: layer.bias, absent",
        "1 tensors are neither",
        "exist here",
    ):
        assert part in str(raised.value)


def test_patterns_mean_whole_names_and_never_hide_a_used_tensor(source_of):
    with pytest.raises(InputError, match=r"neither used nor ignored: pooler\.weight"):
        build(source_of(), ignored={"pooler": "a part of the name"})
    _, report = build(source_of(), ignored={".*": "all others"})
    assert report.ignored.keys() == {"pooler.weight"}


# --- the family of a source


def test_exactly_one_family_must_fit(source_of, monkeypatch):
    known = {
        name: types.SimpleNamespace(recognises=lambda _, fits=fits: fits, convert=None)
        for name, fits in (("first", True), ("second", False), ("third", True))
    }
    monkeypatch.setattr(base, "names", lambda: tuple(known))
    monkeypatch.setattr(
        base.importlib, "import_module", lambda name: known[name.rsplit(".", 1)[-1]]
    )
    source = source_of()
    assert base.find(source, "first") == ("first", known["first"])
    with pytest.raises(InputError, match=r"fits several families: first, third; choose one by --f"):
        base.find(source)
    with pytest.raises(InputError, match=r"is not of the family second; its model_type is not"):
        base.find(source, "second")
    with pytest.raises(InputError, match=r"unknown family 'fist'"):
        base.find(source, "fist")
    del known["third"]
    assert base.find(source)[0] == "first"
    del known["first"]
    with pytest.raises(InputError, match=r"3 tensors begin with layer.bias, .*; families: second"):
        base.find(source)


def test_files_of_the_folder_are_families_or_listed_as_shared():
    for name in base.names():
        module = base.importlib.import_module(f"mmrl.models.convert.{name}")
        assert callable(module.recognises) and callable(module.convert), name
    assert not set(base.names()) & set(base._SHARED)


# --- helpers of name maps: what a layer of the source computes, ours computes


def made(given, **tensors):
    """Target -> array of entries."""
    return {entry.target: entry.make(*(tensors[name] for name in entry.sources)) for entry in given}


def test_layers_compute_the_same():
    rng = np.random.default_rng(0)
    x, weight, bias = rng.normal(size=(5, 3)), rng.normal(size=(4, 3)), rng.normal(size=4)
    found = made(entries.linear("l", "s"), **{"s.weight": weight, "s.bias": bias})
    np.testing.assert_allclose(x @ found["l/kernel"] + found["l/bias"], x @ weight.T + bias)
    found = made(entries.linear("l", "s", bias=False), **{"s.weight": weight[:, :, None, None]})
    assert found.keys() == {"l/kernel"}
    np.testing.assert_array_equal(found["l/kernel"], weight.T)

    kernel, patch = rng.normal(size=(4, 3, 2, 2)), rng.normal(size=(3, 2, 2))
    moved = patch.transpose(1, 2, 0)
    expected = np.einsum("oixy,ixy->o", kernel, patch)
    found = made(entries.convolution("c", "s"), **{"s.weight": kernel})["c/kernel"]
    np.testing.assert_allclose(np.einsum("xyio,xyi->o", found, moved), expected)
    found = made(entries.patches("p", "s", bias=False), **{"s.weight": kernel})
    np.testing.assert_allclose(moved.reshape(-1) @ found["p/kernel"], expected)
    assert found["p/bias"].tolist() == [0] * 4


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_attention_keeps_each_head(kv_heads):
    rng = np.random.default_rng(1)
    width, heads, size = 12, 4, 3
    counts = {"q": heads, "k": kv_heads, "v": kv_heads}
    tensors = {"o.weight": rng.normal(size=(width, width)), "o.bias": rng.normal(size=width)}
    for name, count in counts.items():
        tensors[f"{name}.weight"] = rng.normal(size=(count * size, width))
        tensors[f"{name}.bias"] = rng.normal(size=count * size)
    given = entries.attention("a", "q", "k", "v", "o", heads=heads, kv_heads=kv_heads)
    found, x = made(given, **tensors), rng.normal(size=width)

    def of_source(name):
        rows = tensors[f"{name}.weight"] @ x + tensors[f"{name}.bias"]
        return rows.reshape(counts[name], size)

    def ours(path):
        return np.einsum("w,w...->...", x, found[f"{path}/kernel"]) + found[f"{path}/bias"]

    results = ours("a/qkv") if kv_heads == heads else [ours("a/query"), *ours("a/kv")]
    for name, result in zip(counts, results, strict=True):
        np.testing.assert_allclose(result, of_source(name))
    mixed = rng.normal(size=(heads, size))
    np.testing.assert_allclose(
        np.einsum("hd,hdw->w", mixed, found["a/out/kernel"]) + found["a/out/bias"],
        tensors["o.weight"] @ mixed.reshape(-1) + tensors["o.bias"],
    )


def test_fused_attention_is_that_of_three_layers():
    rng = np.random.default_rng(2)
    thirds = {f"{name}.weight": rng.normal(size=(8, 8)) for name in "qkv"}
    thirds |= {f"{name}.bias": rng.normal(size=8) for name in "qkv"}
    out = {"o.weight": rng.normal(size=(8, 8)), "o.bias": rng.normal(size=8)}
    fused = {
        part: np.concatenate([thirds[f"{name}.{part}"] for name in "qkv"])
        for part in ("weight", "bias")
    }
    one = made(entries.attention("a", "q", "k", "v", "o", heads=2), **thirds, **out)
    two = made(entries.fused_attention("a", "weight", "bias", "o", heads=2), **fused, **out)
    assert one.keys() == two.keys()
    for path in one:
        np.testing.assert_array_equal(one[path], two[path])


def test_the_position_of_the_class_token_is_in_its_value():
    rng = np.random.default_rng(3)
    token, table = rng.normal(size=(1, 1, 4)), rng.normal(size=(1, 6, 4))
    found = made(entries.class_positions("e", "cls", "rows"), cls=token, rows=table)
    np.testing.assert_array_equal(found["e/cls"], token[0, 0] + table[0, 0])
    np.testing.assert_array_equal(found["e/position"], table[0, 1:])
    bare = made(entries.class_positions("e", "cls", "rows"), cls=token[0, 0], rows=table[0])
    np.testing.assert_array_equal(bare["e/cls"], found["e/cls"])
