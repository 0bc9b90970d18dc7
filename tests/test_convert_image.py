"""Image encoders and pairs of other libraries compute here what they compute there.

`tests/reference_images.py` wrote the checkpoints and what the libraries make of them.
"""

import functools
import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mmrl.models.convert import images
from mmrl.models.convert.source import Source
from mmrl.types import InputError
from tests import converted
from tests.converted import GOLDEN

SIZE = 65  # of the images of residual networks
FAMILIES = {
    "vit": "vit",
    "vit_model": "vit",
    "dinov2": "dinov2",
    "dinov2_giant": "dinov2",
    "dinov2_registers": "dinov2",
    "clip_vision_model": "clip",
    "clip_vision": "clip",
    "clip_pair": "clip",
    "siglip_vision": "siglip",
    "siglip_pair": "siglip",
    "timm_vit": "timm_vit",
    "timm_registers": "timm_vit",
    "timm_pre_norm": "timm_vit",
    "timm_attention_pool": "timm_vit",
    "resnet18": "resnet",
    "resnet50": "resnet",
    "gloria": "resnet",
    "biovil": "resnet",
    "mgca": "resnet",
    "open_clip": "open_clip",
    "open_clip_openai": "open_clip",
    "biomedclip": "open_clip",
}
# Of what others of the same family show.
FURTHER = ("vit_model", "dinov2", "clip_vision_model", "siglip_vision", "resnet18", "open_clip")
SYSTEMS = ("gloria", "biovil", "mgca")
PAIRS = {
    "clip_pair": "global_contrastive",
    "siglip_pair": "siglip",
    "open_clip": "global_contrastive",
    "open_clip_openai": "global_contrastive",
    "biomedclip": "global_contrastive",
}
CLOSE = {"rtol": 0, "atol": 1e-4}


def place(name):
    """The folder of a case, or its file where the file has a name of its own."""
    file = GOLDEN / name / "weights.ckpt"
    return file if file.is_file() else GOLDEN / name


@functools.cache
def case(name):
    # Checkpoints of systems do not hold the size of their images.
    return converted.read(place(name), **({"size": SIZE} if name in SYSTEMS else {}))


def features_of(found, pixels):
    """Pooled features, and those of the heads; regions without a head are those of the encoder."""
    options = found.towers["image"]
    own = {"width": options["width"], "kind": "identity"}
    tower = converted.tower(found, "image", heads={"regions": own, **options["heads"]})
    wanted = {"image": ("pooled", *tower.heads)}
    made = jax.jit(lambda x: tower({"image": {"pixels": x}}, wanted))(pixels)["image"]
    made = {name: np.asarray(x) for name, x in made.items()}
    identity = options["heads"].get("regions", own).get("kind") == "identity"
    return made | ({"local": made["regions"]} if identity else {})


@functools.cache
def own_features(name):
    """Features of the images of a case."""
    return features_of(case(name), converted.expected(name)["pixels"])


def compare(made, expected, names, start=""):
    for name in names:
        assert np.abs(expected[start + name]).max() > 0.1
        np.testing.assert_allclose(made[name], expected[start + name], **CLOSE, err_msg=name)


@pytest.mark.default_cases(4)
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.exhaustive if name in FURTHER else ())
        for name in FAMILIES
    ],
)
def test_an_encoder_computes_what_its_library_computes(name):
    expected, made = converted.expected(name), own_features(name)
    assert case(name).family == FAMILIES[name]
    # Heads of systems are compared on their regions, all others on those of the encoder.
    stored = {"pooled", "embedding", "regions" if name in SYSTEMS else "local"}
    assert made.keys() == stored | {"regions"}
    if "embedding" not in expected:  # an encoder without heads
        unit = expected["pooled"] / np.linalg.norm(expected["pooled"], axis=1, keepdims=True)
        expected["embedding"] = unit
    compare(made, expected, stored)


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("name", PAIRS)
def test_a_pair_computes_the_texts_and_logits_of_its_library(name):
    found, expected = case(name), converted.expected(name)
    options = found.towers["text"]
    own = {"width": options["width"], "kind": "identity"}
    text = converted.tower(found, "text", heads={"words": own, **options["heads"]})
    tokens, mask = expected["tokens"], expected["mask"]
    assert len({*mask.sum(axis=1)}) == 3
    inputs = {"text": {"tokens": tokens, "mask": mask}}
    made = jax.jit(lambda x: text(x, {"text": ("pooled", "embedding", "words")}))(inputs)["text"]
    attended = np.ones_like(mask) if options.get("attend_padding") else mask
    np.testing.assert_allclose(made["pooled"], expected["text_pooled"], **CLOSE)
    np.testing.assert_allclose(made["embedding"], expected["text_embedding"], **CLOSE)
    np.testing.assert_allclose(
        np.asarray(made["words"])[attended], expected["text_local"][attended], **CLOSE
    )

    start = f"objectives/{PAIRS[name]}"
    scale = np.exp(found.arrays[f"{start}/logit_scale/log"])
    bias = found.arrays.get(f"{start}/logit_bias", np.float32(0))
    assert scale.shape == bias.shape == () and (bias != 0) == (name == "siglip_pair")
    logits = scale * own_features(name)["embedding"] @ np.asarray(made["embedding"]).T + bias
    np.testing.assert_allclose(logits, expected["logits"], rtol=0, atol=1e-3)


@pytest.mark.default_cases(2)
@pytest.mark.parametrize(
    ("name", "label", "options", "side"),
    [
        ("timm_vit", "larger", {"size": 20}, 5),
        ("timm_vit", "smaller", {"size": 8}, 2),
        ("timm_vit", "patch", {"size": 18, "patch_size": 6}, 3),
        ("vit", "larger", {"size": 21}, 7),
        ("dinov2", "smaller", {"size": 8}, 2),
        ("dinov2_registers", "smaller", {"size": 8}, 2),
        ("clip_vision", "larger", {"size": 25}, 5),
        ("siglip_vision", "larger", {"size": 25}, 5),
        ("open_clip", "larger", {"size": 25}, 5),
    ],
)
def test_other_sizes_are_those_of_the_library(name, label, options, side):
    found, expected = converted.read(place(name), **options), converted.expected(name)
    assert found.towers["image"].items() >= options.items() and len(found.notes) == 1
    made = features_of(found, expected[f"{label}_pixels"])
    assert made["local"].shape[1] == side**2
    compare(made, expected, ("pooled", "local"), f"{label}_")


def test_a_folded_encoder_gives_for_grey_what_three_channels_give():
    found, expected = converted.read(place("timm_vit"), fold="sum"), converted.expected("timm_vit")
    grey = expected["grey_pixels"]
    assert (grey == grey[..., :1]).all() and found.towers["image"]["channels"] == 1
    compare(features_of(found, grey[..., :1]), expected, ("pooled", "local"), "grey_")
    compare(features_of(case("timm_vit"), grey), expected, ("pooled", "local"), "grey_")
    mean = converted.read(place("timm_vit"), fold="mean")
    path = "towers/image/encoder/patch/kernel"
    np.testing.assert_allclose(3 * mean.arrays[path], found.arrays[path], rtol=1e-6)


@pytest.mark.exhaustive
def test_a_pair_folds_its_image_tower_alone():
    found, whole = converted.read(place("biomedclip"), fold="sum"), case("biomedclip")
    differing = {
        path
        for path, array in whole.arrays.items()
        if not np.array_equal(array, found.arrays[path])
    }
    start = "towers/image/encoder/patch"
    assert differing == {f"{start}/kernel", f"{start}/bias"}
    assert found.towers["text"] == whole.towers["text"]


@pytest.mark.exhaustive
def test_every_tensor_is_used_or_ignored_for_a_reason():
    for name in FAMILIES:
        found = case(name)
        assert {*found.report.used, *found.report.ignored} == {*found.source.names}
    reason = "the classifier of its labels"
    assert case("vit").report.ignored == {f"classifier.{x}": reason for x in ("bias", "weight")}
    assert case("vit_model").report.ignored.keys() == {"pooler.dense.weight", "pooler.dense.bias"}
    assert case("dinov2").report.ignored.keys() == {"embeddings.mask_token"}
    assert case("timm_vit").report.ignored.keys() == {"head.weight", "head.bias"}
    assert case("gloria").report.ignored["gloria.text_encoder.weight"].startswith("the text enc")
    assert case("clip_pair").report.ignored == {}
    counts = [n for n in case("resnet50").source.names if n.endswith("num_batches_tracked")]
    assert {*case("resnet50").report.ignored} == {*counts, "fc.weight", "fc.bias"}
    used = case("biovil").report.used["projector.model.0.weight"]
    assert used == tuple(f"towers/image/heads/{x}/wide/kernel" for x in ("embedding", "regions"))


def changed(name, folder, config=None, drop=(), **tensors):
    """A copy of a case without tensors, with others, and with another config.json."""
    made = folder / "changed"
    shutil.copytree(GOLDEN / name, made)
    (file,) = made.glob("*.safetensors")
    kept = {key: x for key, x in load_file(file).items() if key not in drop}
    save_file(kept | {key: np.asarray(x, np.float32) for key, x in tensors.items()}, file)
    if config is not None:
        path = made / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | config), "utf-8")
    return made


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("name", ["vit", "siglip_pair", "resnet18", "open_clip", "biomedclip"])
def test_missing_wrong_and_extra_tensors_are_named(name, tmp_path):
    used = [key for key in case(name).report.used if key.endswith("bias") and key != "logit_bias"]
    missing, wrong = used[len(used) // 2], used[-1]
    made = changed(name, tmp_path, drop=(missing,), **{wrong: np.zeros(3), "extra.weight": [1.0]})
    with pytest.raises(InputError) as caught:
        converted.read(made)
    message = str(caught.value)
    assert f"tensors are missing: {missing}" in message
    assert "1 tensors are neither used nor ignored: extra.weight" in message
    assert f"{wrong} [3]" in message


ONES = np.ones((1, 1, 24))


@pytest.mark.parametrize(
    ("name", "config", "tensors", "said"),
    [
        ("timm_vit", None, {"dist_token": ONES}, "with a distillation token"),
        ("timm_vit", None, {"fc_norm.weight": ONES}, r"a norm after the mean over patches"),
        ("timm_vit", {"model_args": {}}, {}, "heads of a ViT of width 24 are not known"),
        (
            "timm_vit",
            {"model_args": {"num_heads": 3, "global_pool": "avg"}},
            {},
            "global_pool 'avg' and a class token; expected token",
        ),
        ("timm_vit", None, {"pos_embed": np.zeros((1, 8, 24))}, "8 positions of patches"),
        ("vit", {"hidden_act": "mish"}, {}, "activation 'mish'; expected one of: gelu"),
        ("resnet18", None, {"layer1.2.conv1.weight": ONES}, r"a ResNet of \(3, 2, 2, 2\) blocks"),
    ],
)
def test_variants_without_a_counterpart_are_refused(name, config, tensors, said, tmp_path):
    with pytest.raises(InputError, match=said):
        converted.read(changed(name, tmp_path, config, **tensors))


def test_values_that_a_config_lacks_are_named(tmp_path):
    made = changed("vit", tmp_path)
    (made / "config.json").write_text('{"model_type": "vit", "hidden_act": "gelu"}', "utf-8")
    with pytest.raises(InputError, match="does not state num_attention_heads, layer_norm_eps"):
        converted.read(made)


def test_a_vit_of_timm_without_class_token_pools_the_mean(tmp_path):
    drop = ("cls_token", "pos_embed")
    positions = load_file(GOLDEN / "timm_vit" / "model.safetensors")["pos_embed"][:, 1:]
    config = {"global_pool": "avg", "model_args": {"num_heads": 3}}
    found = converted.read(changed("timm_vit", tmp_path, config, drop, pos_embed=positions))
    made = features_of(found, converted.expected("timm_vit")["pixels"])
    np.testing.assert_allclose(made["pooled"], made["local"].mean(axis=1), rtol=0, atol=1e-6)


def test_pairs_without_a_config_need_the_numbers_of_openai(tmp_path):
    made = changed("open_clip", tmp_path)
    (made / "open_clip_config.json").unlink()
    with pytest.raises(InputError, match=r"no open_clip_config\.json beside the weights"):
        converted.read(made)
    shutil.rmtree(made)
    numbers = {"input_resolution": 15.0, "context_length": 9.0, "vocab_size": 30.0}
    # OpenAI's heads have 64 features, which these widths do not allow.
    with pytest.raises(InputError, match="num_heads 0"):
        made = changed("open_clip", tmp_path, **numbers)
        (made / "open_clip_config.json").unlink()
        converted.read(made)


def test_quick_gelu_comes_from_the_config():
    assert case("open_clip").towers["image"]["block"]["activation"] == "gelu"
    for kind in ("image", "text"):
        assert case("open_clip_openai").towers[kind]["block"]["activation"] == "quick_gelu"


@pytest.mark.parametrize(
    ("file", "content", "size", "resize", "notes"),
    [
        ("preprocessor_config.json", {"size": 224}, 224, "stretch", 0),
        ("preprocessor_config.json", {"size": {"height": 224, "width": 224}}, 224, "stretch", 0),
        (
            "preprocessor_config.json",
            {"size": {"shortest_edge": 256}, "crop_size": 224, "do_center_crop": True},
            224,
            "crop",
            1,
        ),
        ("preprocessor_config.json", {"size": {"shortest_edge": 224}}, 224, "crop", 1),
        (
            "open_clip_config.json",
            {"preprocess_cfg": {"size": 224, "resize_mode": "longest"}},
            224,
            "pad",
            0,
        ),
        (
            "config.json",
            {"pretrained_cfg": {"input_size": [3, 96, 96], "crop_pct": 0.9, "crop_mode": "squash"}},
            96,
            "stretch",
            1,
        ),
        ("config.json", {}, None, "pad", 1),
    ],
)
def test_preparation_of_images_is_read(file, content, size, resize, notes, tmp_path):
    save_file({"x": np.zeros(1, np.float32)}, tmp_path / "model.safetensors")
    (tmp_path / file).write_text(json.dumps(content), "utf-8")
    source = Source(tmp_path)
    found = images.preparation(source, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "pad")
    assert (found.size, found.resize, len(found.notes)) == (size, resize, notes)
    assert (found.mean, found.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("preprocessor_config.json", {"rescale_factor": 1.0}, "expected pixels divided by 255"),
        ("preprocessor_config.json", {"do_rescale": False}, "expected pixels divided by 255"),
        (
            "open_clip_config.json",
            {"preprocess_cfg": {"resize_mode": "fit"}},
            "resize_mode 'fit'; expected one of: shortest, longest, squash",
        ),
        (
            "config.json",
            {"pretrained_cfg": {"crop_mode": "fit"}},
            "crop_mode 'fit'; expected one of: center, squash, border",
        ),
    ],
)
def test_preparations_without_a_counterpart_are_refused(file, content, said, tmp_path):
    save_file({"x": np.zeros(1, np.float32)}, tmp_path / "model.safetensors")
    (tmp_path / file).write_text(json.dumps(content), "utf-8")
    with pytest.raises(InputError, match=said):
        images.preparation(Source(tmp_path), images.HALF, images.HALF)


def test_means_and_deviations_reach_the_tower():
    options = case("dinov2").towers["image"]
    assert options["pixel_mean"] == [0.48, 0.45, 0.41] and options["pixel_std"] == [
        0.27,
        0.26,
        0.28,
    ]
    assert case("dinov2").conversion.resize == "crop"
    assert case("vit").conversion.resize == "stretch"
    gloria = converted.read(place("gloria"))
    assert gloria.towers["image"]["size"] == 299 and len(gloria.notes) == 2
