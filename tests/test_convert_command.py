"""`python -m mmrl.convert` as a user runs it: what it prints, writes and refuses."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from tests.commands import run_here

GOLDEN = Path(__file__).parent / "golden" / "convert"


def convert(capsys, *arguments):
    """Exit status, output and error of the command."""
    code = run_here("mmrl.convert", *map(str, arguments))
    out, err = capsys.readouterr()
    return code, out, err


def test_a_folder_becomes_an_encoder(capsys, tmp_path):
    out = tmp_path / "weights"
    code, said, _ = convert(capsys, GOLDEN / "bert", f"--out={out}")
    assert code == 0
    assert "text: transformer, width 24, depth 2, num_heads 4, length 18, vocab_size 35" in said
    assert "tensors of bert used, 2 ignored" in said and f"encoder: {out}" in said
    assert {path.name for path in out.iterdir()} == {
        *("encoder.json", "weights.npz", "tokenizer.json", "conversion.json"),
    }
    stated = json.loads((out / "encoder.json").read_text())
    assert stated["format"] == 1 and stated["source"]["family"] == "bert"
    assert len(stated["source"]["files"]["model.safetensors"]) == 64
    assert stated["towers"]["text"]["block"]["order"] == "post"
    report = json.loads((out / "conversion.json").read_text())
    given = safetensors.numpy.load_file(GOLDEN / "bert" / "model.safetensors")
    assert report["used"].keys() | report["ignored"].keys() == given.keys()
    assert not report["used"].keys() & report["ignored"].keys()
    with np.load(out / "weights.npz") as arrays:
        filled = {path for paths in report["used"].values() for path in paths}
        assert filled == set(arrays.files)
        assert {array.dtype.name for array in arrays.values()} == {"float32"}
    code, _, err = convert(capsys, GOLDEN / "bert", f"--out={out}")
    assert code == 2 and "is not empty; expected a new or empty folder" in err


def test_a_shorter_text_tower_keeps_the_first_positions(capsys, tmp_path):
    whole, short = tmp_path / "whole", tmp_path / "short"
    assert convert(capsys, GOLDEN / "bert", f"--out={whole}")[0] == 0
    code, said, _ = convert(capsys, GOLDEN / "bert", f"--out={short}", "--length=9")
    assert code == 0 and "note: text: 9 of 18 positions are kept" in said
    one, two = (np.load(x / "weights.npz")["towers/text/encoder/position"] for x in (whole, short))
    np.testing.assert_array_equal(one[:9], two)
    code, _, err = convert(capsys, GOLDEN / "bert", f"--out={tmp_path / 'long'}", "--length=40")
    assert code == 2 and "encoder/position is [18, 24]; expected [40, 24]" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected one folder or file to convert; given: none"),
        (["a", "b"], "expected one folder or file to convert; given: a b"),
        (["none"], "none: no such file or folder"),
        (["BERT", "--family=brt"], "unknown family 'brt'"),
        (["BERT", "--family=llama"], "is not of the family llama; its model_type is bert"),
        (["BERT", "--channels=1"], "--channels=1 and --fold=HOW belong together"),
        (["BERT", "--fold=sum"], "--channels=1 and --fold=HOW belong together"),
        (["BERT", "--channels=2", "--fold=sum"], "--channels=2; expected 1"),
        (["BERT", "--channels=1", "--fold=max"], "--fold=max; choices: sum, mean"),
        (["BERT", "--size=8"], "options of images given, but the source has no image tower"),
        (["BERT", "--tokenizer=none"], "no tokenizer in none; expected tokenizer.json"),
    ],
)
def test_wrong_inputs_are_named_in_one_line(capsys, tmp_path, arguments, message):
    given = [str(GOLDEN / "bert") if one == "BERT" else one for one in arguments]
    code, _, err = convert(capsys, *given, f"--out={tmp_path / 'out'}")
    assert code == 2 and message in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def changed(folder, change):
    """A copy of a source whose tensors are changed in place by a function."""
    shutil.copytree(GOLDEN / "bert", folder)
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    change(tensors)
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda x: x.pop("encoder.layer.1.output.dense.bias"),
            "1 tensors are missing: encoder.layer.1.output.dense.bias",
        ),
        (
            lambda x: x.update(extra=np.zeros(2, np.float32)),
            "1 tensors are neither used nor ignored: extra",
        ),
        (
            lambda x: x.update({"embeddings.LayerNorm.weight": np.zeros(5, np.float32)}),
            "towers/text/encoder/embedding_norm/scale is [5] from embeddings.LayerNorm.weight [5]; "
            "expected [24]",
        ),
        (
            lambda x: x["embeddings.LayerNorm.weight"].fill(np.inf),
            "'embeddings.LayerNorm.weight' holds values that are not finite",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_listed(capsys, tmp_path, change, message):
    source = changed(tmp_path / "source", change)
    code, _, err = convert(capsys, source, f"--out={tmp_path / 'out'}")
    assert code == 2 and message in err and not (tmp_path / "out").exists()


def test_a_tokenizer_of_another_vocabulary_is_refused(capsys, tmp_path):
    source = changed(tmp_path / "source", lambda x: None)
    with (source / "vocab.txt").open("a") as file:
        file.writelines(f"piece{number}\n" for number in range(40))
    code, _, err = convert(capsys, source, f"--out={tmp_path / 'out'}")
    assert code == 2 and "they do not belong together" in err


def test_a_folder_of_no_family_says_what_it_holds(capsys, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "resnext"}')
    numbers = {"x.weight": np.zeros(2, np.float32)}
    safetensors.numpy.save_file(numbers, tmp_path / "model.safetensors")
    code, _, err = convert(capsys, tmp_path, f"--out={tmp_path / 'out'}")
    assert code == 2 and "its model_type is resnext" in err and "families: bert," in err


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("config.json", {"layer_norm_eps": None}),
        ("config.json", {"num_attention_heads": 0}),
        ("config.json", {"num_attention_heads": "four"}),
        ("config.json", {"hidden_act": ["gelu"]}),
        ("sentence_bert_config.json", {"max_seq_length": 1.5}),
    ],
)
def test_values_of_a_config_that_mean_nothing_are_refused(capsys, tmp_path, file, change):
    source = changed(tmp_path / "source", lambda x: None)
    stated = json.loads((source / file).read_text()) if (source / file).exists() else {}
    (source / file).write_text(json.dumps(stated | change))
    code, _, err = convert(capsys, source, f"--out={tmp_path / 'out'}")
    assert code == 2 and str(source) in err and err.count("\n") == 1


def test_a_tensor_without_sides_is_refused(capsys, tmp_path):
    table = {"embeddings.word_embeddings.weight": np.zeros((), np.float32)}
    source = changed(tmp_path / "source", lambda x: x.update(table))
    code, _, err = convert(capsys, source, f"--out={tmp_path / 'out'}")
    assert code == 2 and "are not those of the family bert" in err


def test_a_folder_that_fails_leaves_nothing(capsys, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    code, _, err = convert(capsys, GOLDEN / "bert", f"--out={tmp_path / 'out'}")
    assert code == 2 and err.endswith(f"{tmp_path / 'out'}: No space left on device\n")
    assert not any(tmp_path.iterdir())


def test_an_empty_folder_is_filled(capsys, tmp_path):
    assert convert(capsys, GOLDEN / "bert", f"--out={tmp_path}")[0] == 0
    assert (tmp_path / "encoder.json").is_file()
