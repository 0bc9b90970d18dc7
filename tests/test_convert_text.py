"""Text encoders of other libraries compute here what they compute there.

`tests/reference_encoders.py` wrote the checkpoints and what the libraries make of them.
"""

import functools
import json
import os
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mmrl.data.text.tokenizer import Tokenizer
from mmrl.types import InputError
from tests import converted
from tests.converted import GOLDEN

FAMILIES = {
    "bert": "bert",
    "bert_masked_language": "bert",
    "sentence_bert": "bert",
    "cxr_bert": "bert",
    "clip_text": "clip",
    "clip_text_projected": "clip",
    "llama": "llama",
    "llama_language": "llama",
    "qwen2": "llama",
    "latent_attention": "llama",
}
PACKED = ("bert", "clip_text_projected", "qwen2", "latent_attention")
CLOSE = {"rtol": 0, "atol": 1e-4}


@functools.cache
def case(name):
    return converted.read(GOLDEN / name)


@pytest.mark.default_cases(2)
@pytest.mark.parametrize("name", FAMILIES)
def test_an_encoder_computes_what_its_library_computes(name):
    found, expected = case(name), converted.expected(name)
    assert found.family == FAMILIES[name]
    tokens, mask = expected["tokens"], expected["mask"]
    assert len({*mask.sum(axis=1)}) > 3

    tokenizer = Tokenizer.from_bytes(found.tokenizer[1])
    encoded = tokenizer.encode_batch(expected["texts"].tolist(), tokens.shape[1])
    np.testing.assert_array_equal(encoded.tokens, tokens)
    np.testing.assert_array_equal(encoded.mask, mask)

    text = converted.tower(found, "text")
    made = _computed(text, {"text": ("embedding", "pooled", "words")}, expected)["text"]
    np.testing.assert_allclose(made["pooled"], expected["pooled"], **CLOSE)
    np.testing.assert_allclose(made["embedding"], expected["embedding"], **CLOSE)
    np.testing.assert_allclose(made["words"][mask], expected["words"][mask], **CLOSE)


@pytest.mark.default_cases(1)
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in PACKED else pytest.mark.exhaustive)
        for name in FAMILIES
    ],
)
def test_packed_scanned_and_padded_texts_get_the_same_features(name):
    found, expected = case(name), converted.expected(name)
    mask, reports = expected["mask"], len(expected["mask"])
    text = converted.tower(
        found, "text", packing=0.6, packing_group=reports, scan_layers=True, remat="full"
    )
    # A foreign id at padded positions must change nothing.
    strange = expected | {"tokens": np.where(mask, expected["tokens"], 5)}
    wanted = {"text": ("pooled", "words"), "perturbed": ("embedding",)}
    made = _computed(text, wanted, strange, train=True)
    np.testing.assert_allclose(made["text"]["pooled"], expected["pooled"], **CLOSE)
    np.testing.assert_allclose(made["text"]["words"][mask], expected["words"][mask], **CLOSE)
    for copy in (0, 1):
        np.testing.assert_allclose(
            made["perturbed"]["embedding"][:, copy],
            np.roll(expected["embedding"], copy + 1, axis=0),
            **CLOSE,
        )


def _computed(text, wanted, expected, **options):
    """Features of the texts, and of an input "perturbed" whose copies are the next rows."""
    arrays = {name: expected[name] for name in ("tokens", "mask")}
    copies = {k: np.stack([np.roll(x, i, axis=0) for i in (1, 2)], 1) for k, x in arrays.items()}
    inputs = {"text": arrays, "perturbed": copies}
    return jax.tree.map(np.asarray, jax.jit(lambda x: text(x, wanted, **options))(inputs))


def test_every_tensor_is_used_or_ignored_for_a_reason():
    for name in FAMILIES:
        found = case(name)
        assert {*found.report.used, *found.report.ignored} == {*found.source.names}
    plain = case("bert").report.ignored
    assert plain.keys() == {"pooler.dense.weight", "pooler.dense.bias"}
    ignored = case("cxr_bert").report.ignored
    assert "cls.predictions.decoder.weight" in ignored
    assert ignored["bert.embeddings.position_ids"] == "numbers from 0 on"
    assert case("llama_language").report.ignored.keys() == {"lm_head.weight"}
    assert not case("latent_attention").report.ignored


def changed(name, folder, **tensors):
    """A copy of a case with other tensors; None removes one."""
    shutil.copytree(GOLDEN / name, folder)
    kept = load_file(folder / "model.safetensors") | tensors
    kept = {key: value for key, value in kept.items() if value is not None}
    save_file(kept, folder / "model.safetensors")
    return folder


@pytest.mark.default_cases(1)
@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("bert", "encoder.layer.1.attention.self.key.bias"),
        ("clip_text_projected", "text_model.final_layer_norm.weight"),
        ("llama", "layers.1.mlp.gate_proj.weight"),
        ("latent_attention", "latent_attention_model.cross_attend_blocks.0.norm_context.bias"),
    ],
)
def test_wrong_missing_and_other_tensors_are_named(name, tensor, tmp_path):
    missing = changed(name, tmp_path / "missing", **{tensor: None})
    with pytest.raises(InputError, match=rf"1 tensors are missing: {tensor}$"):
        converted.read(missing)
    extra = changed(name, tmp_path / "extra", stranger=np.zeros(3, np.float32))
    with pytest.raises(InputError, match=r"1 tensors are neither used nor ignored: stranger$"):
        converted.read(extra)
    wrong = changed(name, tmp_path / "wrong", **{tensor: np.zeros((3, 5), np.float32)})
    with pytest.raises(InputError, match=rf"1 parameters do not fit: .*{tensor} \[3, 5\]"):
        converted.read(wrong)


def test_norms_in_the_names_of_tensorflow(tmp_path):
    kept = load_file(GOLDEN / "bert" / "model.safetensors")
    renamed = {
        key.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): value
        for key, value in kept.items()
    }
    assert renamed.keys() != kept.keys()
    folder = changed("bert", tmp_path / "bert", **(dict.fromkeys(kept) | renamed))
    one, other = case("bert").arrays, converted.read(folder).arrays
    assert one.keys() == other.keys()
    for path, array in one.items():
        np.testing.assert_array_equal(array, other[path])


def edited(name, folder, file, edit):
    """A copy of a case with another JSON file."""
    shutil.copytree(GOLDEN / name, folder)
    content = json.loads((folder / file).read_text())
    edit(content)
    (folder / file).write_text(json.dumps(content))
    return folder


def test_files_of_sentence_transformers(tmp_path):
    found = case("sentence_bert")
    assert (found.towers["text"]["pool"], found.towers["text"]["length"]) == ("mean", 14)
    assert found.arrays["towers/text/encoder/position"].shape == (14, 24)
    assert any("14 tokens" in note for note in found.notes)
    pooling, name = "1_Pooling/config.json", "sentence_bert"

    def last(content):
        content |= {"pooling_mode_mean_tokens": False, "pooling_mode_lasttoken": True}

    folder = edited(name, tmp_path / "last", pooling, last)
    assert converted.read(folder).towers["text"]["pool"] == "eos"
    folder = edited(
        name, tmp_path / "two", pooling, lambda x: x.update(pooling_mode_max_tokens=True)
    )
    with pytest.raises(InputError, match=r"chooses mean_tokens, max_tokens; expected one of"):
        converted.read(folder)
    dense = {"type": "sentence_transformers.models.Dense", "path": "2_Dense"}
    folder = edited(name, tmp_path / "dense", "modules.json", lambda x: x.append(dense))
    with pytest.raises(InputError, match=r"the module Dense in '2_Dense'; expected Transformer"):
        converted.read(folder)
    outside = {"type": "sentence_transformers.models.Pooling", "path": "../elsewhere"}
    folder = edited(name, tmp_path / "outside", "modules.json", lambda x: x.append(outside))
    with pytest.raises(InputError, match=r"Pooling in '\.\./elsewhere'"):
        converted.read(folder)


def test_marks_follow_the_tokenizer():
    marks = {}
    for name in ("bert", "llama", "qwen2"):
        options = case(name).towers["text"]
        marks[name] = options.get("begin_mark", True), options.get("end_mark", True)
    assert marks == {"bert": (True, True), "llama": (True, False), "qwen2": (False, False)}


def test_decoders_read_what_their_config_states(tmp_path):
    llama = case("llama").towers["text"]
    assert llama["causal"] and llama["block"]["kv_heads"] == 2
    assert llama["block"]["rope_scaling"] == {
        "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position": 32
    }  # fmt: skip
    assert not case("latent_attention").towers["text"]["causal"]
    folder = edited("llama", tmp_path / "both", "config.json", lambda x: x.update(is_causal=False))
    assert not converted.read(folder).towers["text"]["causal"]
    assert converted.read(GOLDEN / "llama", length=20).towers["text"]["length"] == 20

    def older(content):  # as of transformers before version 5
        content["rope_scaling"] = content.pop("rope_parameters")
        content["rope_theta"] = content["rope_scaling"].pop("rope_theta")

    folder = edited("llama", tmp_path / "older", "config.json", older)
    assert converted.read(folder).towers["text"]["block"] == llama["block"]
    for key, value, message in (
        ("rope_parameters", {"rope_type": "yarn", "factor": 2.0}, "the type 'yarn'"),
        ("sliding_window", 8, "sliding_window 8; expected attention to the whole of a text of 64"),
        ("hidden_act", "tanh", "activation 'tanh'"),
    ):
        content = {key: value}
        folder = edited("llama", tmp_path / key, "config.json", lambda x, c=content: x.update(c))
        with pytest.raises(InputError, match=message):
            converted.read(folder)


def test_an_older_config_without_model_type(tmp_path):
    folder = edited("bert", tmp_path / "old", "config.json", lambda x: x.pop("model_type"))
    assert converted.read(folder).family == "bert"


def test_other_kinds_of_bert_are_refused(tmp_path):
    for key, value in (("is_decoder", True), ("position_embedding_type", "relative_key")):
        content = {key: value}
        folder = edited("bert", tmp_path / key, "config.json", lambda x, c=content: x.update(c))
        with pytest.raises(InputError, match="expected absolute positions and no decoder"):
            converted.read(folder)


@pytest.mark.skipif("MMRL_MINILM" not in os.environ, reason="MMRL_MINILM names no folder")
def test_the_real_minilm():
    found, expected = converted.read(Path(os.environ["MMRL_MINILM"])), converted.expected("minilm")
    assert len(expected["mask"]) == 32 and len({*expected["mask"].sum(axis=1)}) > 10
    tokenizer = Tokenizer.from_bytes(found.tokenizer[1])
    encoded = tokenizer.encode_batch(expected["texts"].tolist(), expected["tokens"].shape[1])
    np.testing.assert_array_equal(encoded.tokens, expected["tokens"])
    text = converted.tower(found, "text")
    made = _computed(text, {"text": ("pooled", "words")}, expected)["text"]
    np.testing.assert_allclose(made["pooled"], expected["pooled"], **CLOSE)
    few, first = expected["words"].shape[:2]
    inside = expected["mask"][:few, :first]
    np.testing.assert_allclose(
        made["words"][:few, :first][inside], expected["words"][inside], **CLOSE
    )
