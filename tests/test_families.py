"""Encoders under the names of other libraries, without these libraries.

`tests/golden/exports.json` holds the configs that `tests.reference_exports` loaded with them.
"""

import functools
import json

import numpy as np
import pytest
import safetensors.numpy

from mmrl.data.text import tokenizer_files
from mmrl.exports.families import base
from mmrl.models.convert import base as conversions
from mmrl.models.convert.entries import Entry, linear, same
from mmrl.models.convert.source import Source
from mmrl.types import InputError
from tests.reference_exports import CONFIGS, FOUND, GOLDEN, TOLERANCE

REFERENCE = json.loads(FOUND.read_text())["cases"]
# Their weights are not those of a case of tests/golden/convert.
CHANGED = ("clip_pair_biased", "resnet18_wide")
CASES = sorted(case for case in REFERENCE if case.partition("/")[0] not in CHANGED)


@functools.cache
def converted(name):
    """Towers, arrays and preparation of a case of tests/golden/convert."""
    folder = GOLDEN / "convert" / name
    weights = folder / "weights.ckpt"
    source = Source(weights if weights.exists() else folder)
    conversion, arrays = arrays_of(source)
    towers = {kind: dict(given) for kind, given in conversion.towers.items()}
    if "text" in towers:
        own = tokenizer_files.read(folder).tokenizer
        towers["text"]["marks"] = {
            "bos_token_id": own.begin,
            "eos_token_id": own.end,
            "pad_token_id": own.pad,
        }
    return towers, arrays, conversion.resize


def arrays_of(source):
    _, family = conversions.find(source)
    conversion = family.convert(source)
    made = {one.target: one.make(*map(source.tensor, one.sources)) for one in conversion.entries}
    return conversion, {path: np.asarray(one, np.float32) for path, one in made.items()}


def saved(written, folder):
    for name, content in written.files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    arrays = {name: np.ascontiguousarray(one) for name, one in written.tensors.items()}
    safetensors.numpy.save_file(arrays, folder / written.weights)
    return folder


@pytest.mark.parametrize("case", CASES)
def test_what_is_written_converts_back_bit_for_bit(case, tmp_path):
    name, _, family = case.partition("/")
    towers, arrays, resize = converted(name)
    written = base.write(family, towers, arrays, resize)
    conversion, again = arrays_of(Source(saved(written, tmp_path)))
    assert conversion.resize == resize and conversion.towers.keys() == towers.keys()
    assert {*again} | {*written.heads} == {*arrays} and not {*again} & {*written.heads}
    for path, array in again.items():
        assert array.tobytes() == arrays[path].tobytes(), path


@pytest.mark.parametrize("case", CASES)
def test_configs_are_those_that_the_library_loaded(case):
    name, _, family = case.partition("/")
    written = base.write(family, *converted(name))
    loaded = REFERENCE[case]["files"]
    files = {name: one for name, one in written.files.items() if name in CONFIGS}
    assert files and json.loads(json.dumps(files)) == {name: loaded[name] for name in files}
    assert max(REFERENCE[case]["differences"].values()) <= TOLERANCE


def test_every_family_that_is_converted_is_written_or_says_why():
    assert set(base.names()) == set(conversions.names())
    known = {case.partition("/")[2] for case in REFERENCE}
    assert known == set(base.names())


@pytest.mark.parametrize(
    ("name", "family", "reason"),
    [
        ("latent_attention", "llama", "text.pool is {'name': 'latent_attention'"),
        ("biomedclip", "open_clip", "heads.embedding of both towers"),
        ("resnet18", "resnet", "image.width is 3; in timm it is 64"),
        ("clip_pair", "siglip", "differ|is .*; in transformers"),
        ("bert", "dinov2", "has one image tower here; given: text"),
        ("dinov2", "bert", "has one text tower here; given: image"),
        ("resnet50", "timm_vit", "image.name is resnet; in timm it is vit"),
        ("siglip_pair", "open_clip", "heads.embedding of both towers"),
        ("dinov2_giant", "timm_vit", "image.block.(gated|activation)"),
    ],
)
def test_a_library_without_such_an_encoder_is_refused_with_the_difference(name, family, reason):
    with pytest.raises(InputError, match=reason):
        base.write(family, *converted(name))


# Another value of each option of an image encoder of DINOv2, and of its blocks.
OTHERS = {
    "width": None,  # sizes, which the shapes of arrays fix
    "depth": None,
    "variant": None,
    "mlp_dim": None,
    "patch_size": None,
    "channels": None,
    "registers": None,
    "num_heads": 4,
    "posemb": "sincos2d",
    "antialias": False,
    "mask_token": True,
    "embedding_norm": True,
    "pool": "mean",
    "stem": "convolution",
    "dropout": 0.5,
    "attention": "cudnn",
    "scan_layers": None,  # undone before, see `folder.unscanned`
    "remat": "full",
    "region_layer": 1,
    "block": None,  # each of its own below
}
OF_BLOCK = {
    "norm": "rms",
    "order": "post",
    "epsilon": 1e-3,
    "activation": "quick_gelu",
    "gated": True,
    "layer_scale": 0.0,
    "kv_heads": 1,
    "head_dim": 4,
    "qkv_bias": False,
    "out_bias": False,
    "mlp_bias": False,
    "rope_theta": 10.0,
    "rope_scaling": None,  # a mapping, of text encoders
    "drop_path": 0.5,
}
FREE = {"antialias", "mask_token", "dropout", "attention", "remat", "region_layer"}


def test_every_option_of_an_encoder_is_known_to_this_test():
    from mmrl import build
    from mmrl.models.layers import BlockOptions

    offered = set(build.options(build.find("encoder", "vit"))) - {
        *("rngs", "dtype", "param_dtype", "image_size")
    }
    assert offered == set(OTHERS)
    assert set(BlockOptions.__dataclass_fields__) == set(OF_BLOCK)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *((key, value) for key, value in OTHERS.items() if value is not None),
        *((f"block.{key}", value) for key, value in OF_BLOCK.items() if value is not None),
    ],
)
def test_an_option_is_kept_or_refused_by_name(option, value, tmp_path):
    """No option that changes what is computed is lost on the way."""
    towers, arrays, resize = converted("dinov2")
    key, _, inner = option.partition(".")
    given = dict(towers["image"])
    given[key] = {**given["block"], inner: value} if inner else value
    try:
        written = base.write("dinov2", {"image": given}, arrays, resize)
    except InputError as error:
        named = f"image.{option}" in str(error) or "cannot be written as" in str(error)
        assert named or option == "block.gated"  # which changes the activation as well
        return
    back = conversions.find(source := Source(saved(written, tmp_path)))[1].convert(source)
    found, expected = (base.complete("image", one) for one in (back.towers["image"], given))
    differing = {key for key in found if found[key] != expected[key]}
    assert differing <= FREE and (option in FREE or found[key] == expected[key])


def test_patches_without_bias_move_theirs_to_the_positions():
    """Of every family whose patches have none."""
    for name, family in (("clip_vision", "clip"), ("timm_pre_norm", "timm_vit")):
        towers, arrays, resize = converted(name)
        path = "towers/image/encoder/{}".format
        bias = np.linspace(-1, 1, arrays[path("patch/bias")].size, dtype=np.float32)
        written = base.write(family, towers, {**arrays, path("patch/bias"): bias}, resize)
        plain = base.write(family, towers, arrays, resize)
        assert written.notes[0] == "the bias of the patches is added to their positions"
        changed = [
            key for key in plain.tensors if (plain.tensors[key] != written.tensors[key]).any()
        ]
        (table,) = changed
        moved = written.tensors[table] - plain.tensors[table]
        rows = moved.reshape(-1, bias.size)[-arrays[path("position")].shape[0] :]
        np.testing.assert_allclose(rows, np.broadcast_to(bias, rows.shape), atol=1e-6)


def test_the_inverse_of_entries_restores_tensors():
    rng = np.random.default_rng(0)
    tensors = {
        "a.weight": rng.normal(size=(3, 2)).astype(np.float32),
        "a.bias": np.array([1.0, -0.0, 0.0], np.float32),
    }
    entries = [*linear("x", "a")]
    arrays = {one.target: one.make(*(tensors[name] for name in one.sources)) for one in entries}
    shapes = {name: one.shape for name, one in tensors.items()}
    found = base.inverse(entries, shapes, arrays)
    assert {name: one.tobytes() for name, one in found.items()} == {
        name: one.tobytes() for name, one in tensors.items()
    }


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (Entry("x", ("a",), lambda a: a * 2), "is computed from a, not taken"),
        (Entry("x", ("a",), lambda a: a - a.mean()), "is computed from a, not taken"),
        (Entry("x", ("a",), lambda a: np.repeat(a[:1], 4)), "cannot be written as a"),
        (same("x", "a", (2, 2)), "cannot be written as a"),
        (Entry("x", ("a",), np.zeros_like), "is not 0, and no tensor"),
    ],
)
def test_what_is_more_than_places_has_no_inverse(entry, reason):
    with pytest.raises(InputError, match=reason):
        base.inverse([entry], {"a": (4,)}, {"x": np.ones(4, np.float32)})
