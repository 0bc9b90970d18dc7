"""Exported encoders: folders of the hub, programs, what is uploaded, and what is refused."""

import dataclasses
import functools
import json
import subprocess
import sys
import types
from pathlib import Path

import jax
import numpy as np
import pytest

import mmrl
from mmrl import encoder_folder
from mmrl.data.text.tokenizer import Tokenizer
from mmrl.exports import (
    card,
    folder,
    load_programs,
    onnx,
    plan,
    probes,
    programs,
    stablehlo,
    upload,
)
from mmrl.training import convert, run
from mmrl.types import InputError
from tests import commands

IMAGES = [np.random.default_rng(seed).integers(0, 256, (20, 30), np.uint8) for seed in range(3)]
TEXTS = ["Small left effusion.", "No acute findings."]
BLOCK = {"width": 16, "depth": 2, "num_heads": 2}
# As the default preset has them: no library has this text tower, and timm pools otherwise.
TOWERS = {
    "image": {
        **BLOCK,
        "name": "vit",
        "size": 16,
        "patch_size": 8,
        "pool": {"name": "zones", "size": 2},
        "region_layer": 1,
        "scan_layers": True,
        "heads": {"embedding": 8, "regions": 6},
    },
    "text": {
        **BLOCK,
        "name": "transformer",
        "length": 24,
        "convolution": 3,
        "pool": "mean",
        "heads": {"embedding": 8, "sentence": 6, "words": 6},
    },
}


@pytest.fixture
def refusal(capsys):
    return functools.partial(commands.refusal, capsys)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A folder of encoders with random weights, and the scale of their contrast."""
    out = tmp_path_factory.mktemp("encoder") / "ours"
    out.mkdir()
    texts = [f"{text} {number}" for text in (*TEXTS, *probes.TEXTS) for number in range(20)]
    tokenizer = Tokenizer.train(texts, vocab_size=300, model_type="bpe")
    tokenizer.save(out / "tokenizer.model")
    text = {"vocab_size": tokenizer.vocab_size, "tokenizer": "tokenizer.model"}
    towers = {**TOWERS, "text": {**TOWERS["text"], **text}}
    without = {**towers, "text": {k: v for k, v in towers["text"].items() if k != "tokenizer"}}
    rng = np.random.default_rng(0)
    arrays = {
        path: rng.normal(0.0, 0.3, shape).astype(np.float32)
        for path, shape in convert.expected(without).items()
    }
    arrays["objectives/global_contrastive/logit_scale/log"] = np.float32(2.5)
    np.savez(out / "weights.npz", **arrays)
    source = {"family": "hospital", "license": "cc-by-4.0"}
    encoder_folder.write(out, towers=towers, data={"resize": "pad"}, source=source)
    return out


@pytest.fixture(scope="module")
def hub(encoder, tmp_path_factory):
    """Its folder in the form of the hub."""
    out = tmp_path_factory.mktemp("hub") / "out"
    command = ("mmrl.export", "encoder", f"--encoder={encoder}", f"--out={out}")
    assert commands.run_here(*command) == 0
    return out


def embedded(path):
    loaded = mmrl.load(path)
    return loaded.embed_images(IMAGES), loaded.embed_texts(TEXTS)


@pytest.mark.exhaustive
def test_a_folder_of_the_hub_gives_the_same_embeddings(encoder, hub):
    for one, two in zip(embedded(encoder), embedded(hub), strict=True):
        np.testing.assert_allclose(one, two, atol=probes.TOLERANCE)
    names = {str(path.relative_to(hub)) for path in hub.rglob("*") if path.is_file()}
    assert names == {
        *("README.md", "config.json", "encoder.json", "model.safetensors", "tokenizer.model"),
        *("image/config.json", "image/model.safetensors"),
    }
    stated = json.loads((hub / "config.json").read_text())
    assert stated["model_type"] == "mmrl" and stated["towers"]["text"]["convolution"] == 3
    own = encoder_folder.read(hub).weights()
    assert own["objectives/global_contrastive/logit_scale/log"] == np.float32(2.5)
    # Blocks that were scanned have parameters of their own, and the library holds the trunk.
    assert not any("stack/blocks" in path for path in own)
    assert {path for path in own if path.startswith("towers/image/encoder")} == {
        "towers/image/encoder/region_norm/scale",
        "towers/image/encoder/region_norm/bias",
    }


@pytest.mark.exhaustive
def test_an_exported_folder_is_exported_again_alike(hub, tmp_path):
    made = plan.make(run.read_encoder(hub))
    for part in made.parts:
        with_names = encoder_folder.read_weights(hub / part.folder / part.written.weights)
        assert with_names.keys() == part.written.tensors.keys()
        for name, tensor in part.written.tensors.items():
            np.testing.assert_array_equal(with_names[name], tensor)


def test_the_card_states_use_limits_forms_and_licences(hub):
    text = (hub / "README.md").read_text()
    head = dict(line.split(": ", 1) for line in text.split("---")[1].strip().splitlines())
    assert json.loads(head["license"]) == "cc-by-4.0"
    assert json.loads(head["library_name"]) == "mmrl"
    for expected in (
        "no medical device",
        'timm.create_model("local-dir:FOLDER/image", pretrained=True)',
        "text.block.order is pre; in transformers it is post",
        "unknown to mmrl; leaks cannot be excluded",
        "| family | hospital |",
    ):
        assert expected in text


def test_the_card_of_a_run_has_its_figures_with_intervals_and_its_data(encoder, tmp_path):
    read = run.read_encoder(encoder)
    value = {"value": 0.5, "low": 0.25, "high": 0.75, "n": 32, "chance": 0.125}
    result = {
        "protocol": "retrieval@1",
        "values": {"image_to_text/R@1": value, "subgroup/sex=F/R@1": value},
        "data": {"name": "phantom/test", "sha256": "a" * 64},
    }
    content = {"results": {"retrieval": result}, "warnings": ["patients | are not known"]}
    for step, where in ((7, "evaluations/test-00000007"), (6, "evaluations/test-00000006")):
        (tmp_path / where).mkdir(parents=True)
        stated = {**content, "step": step}
        (tmp_path / where / "results.json").write_text(json.dumps(stated))
    trained = dataclasses.replace(read, folder=tmp_path, step=7, meta={"versions": {}})
    made = plan.Plan({}, (), {}, {})
    text = card.text(trained, made, {"source": {"family": "mmrl", "step": 7}})
    assert "### retrieval: retrieval@1 on phantom/test" in text
    assert "| image_to_text/R@1 | 0.500 | 0.250 to 0.750 | 0.125 | 32 |" in text
    assert text.count("retrieval@1") == 1 and "subgroup" not in text
    assert "- patients | are not known" in text
    assert "| licence of the data | CC0-1.0 (procedural) |" in text


def test_programs_run_without_flax_and_mmrl(encoder, tmp_path):
    out = tmp_path / "programs"
    command = ("mmrl.export", "encoder", f"--encoder={encoder}", f"--out={out}")
    assert commands.run_here(*command, "--form=stablehlo") == 0
    loaded = mmrl.load(encoder)
    pixels = np.random.default_rng(1).integers(0, 256, (5, 16, 16, 1), np.uint8)
    read = run.read_encoder(encoder)
    tokens, mask, _ = read.tokenizers["text"].encode_batch(TEXTS, 24)
    np.savez(tmp_path / "inputs.npz", pixels=pixels, tokens=tokens, mask=mask)
    script = tmp_path / "script.py"
    script.write_text(WITHOUT)
    ran = subprocess.run(
        [sys.executable, "-S", script, out, tmp_path, *sys.path],
        env={"JAX_PLATFORMS": "cpu", "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    with np.load(tmp_path / "outputs.npz") as found:
        images = loaded.embed_images([one[..., 0] for one in pixels])
        np.testing.assert_allclose(found["images"], images, atol=probes.TOLERANCE)
        texts = loaded.embed_texts(TEXTS)
        np.testing.assert_allclose(found["texts"], texts, atol=probes.TOLERANCE)
        assert found["tokens"].shape == (5, 4, 16)
        expected = found["tokens"] @ np.ones((16, 3), np.float32) + 1
        np.testing.assert_allclose(found["linear"], expected, rtol=1e-4, atol=1e-4)
        assert found["mlp"].shape == (5, 4, 7)
    stated = json.loads((out / "programs.json").read_text())
    assert stated["platforms"] == ["cpu", "cuda", "tpu"] and stated["grids"] == {"image": [2, 2]}
    given = stated["programs"]["image.tokens.mlp"]["inputs"]
    assert given["pixels"] == {"dtype": "uint8", "shape": ["b", "16", "16", "1"]}
    assert given["wide/kernel"]["shape"] == ["16", "m"]


WITHOUT = """
import sys

folder, work, *path = sys.argv[1:]
sys.path[:] = [folder, *path]


class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("mmrl", "flax", "orbax", "optax", "grain"):
            raise ImportError(f"{name} is blocked")


sys.meta_path.insert(0, Blocked())
import load_programs
import numpy as np

assert load_programs.__file__.startswith(folder)
made = load_programs.Programs(folder)
given = dict(np.load(f"{work}/inputs.npz"))
pixels = given["pixels"]
ones = lambda *shape: np.ones(shape, np.float32)
np.savez(
    f"{work}/outputs.npz",
    images=made("image.embedding", pixels=pixels),
    texts=made("text.embedding", tokens=given["tokens"], mask=given["mask"]),
    tokens=made("image.tokens", pixels=pixels),
    linear=made("image.tokens.linear", pixels=pixels, kernel=ones(16, 3), bias=ones(3)),
    mlp=made("image.tokens.mlp", pixels=pixels, **{
        "wide/kernel": ones(16, 5), "wide/bias": ones(5), "out/kernel": ones(5, 7),
        "out/bias": ones(7),
    }),
)
"""


@pytest.mark.exhaustive
def test_projectors_are_those_of_their_formula(encoder):
    made, arrays = programs.make(run.read_encoder(encoder))
    of = {program.name: program for program in made}
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (2, 16, 16, 1), np.uint8)
    tokens = np.asarray(of["image.tokens"].call(arrays, {"pixels": pixels}))
    program = of["image.tokens.mlp"]
    shapes = programs.projector_shapes(program, {"m": 5, "h": 7})
    given = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    found = program.call(arrays, {"pixels": pixels, **given})
    hidden = tokens @ given["wide/kernel"] + given["wide/bias"]
    hidden = np.asarray(jax.nn.gelu(hidden, approximate=False))
    expected = hidden @ given["out/kernel"] + given["out/bias"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def _other(name):
    """A reading of an array that is not what was written."""

    def change(arrays):
        return {
            path: array + 0.5 if path.endswith(name) else array for path, array in arrays.items()
        }

    return change


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("where", ["own", "library"])
def test_a_folder_with_other_encodings_is_not_kept(encoder, tmp_path, monkeypatch, where):
    read = run.read_encoder(encoder)
    made = plan.make(read)
    if where == "own":
        made = dataclasses.replace(made, own=_other("embedding/out/kernel")(made.own))
    else:
        (part,) = made.parts
        tensors = _other("blocks.1.mlp.fc1.weight")(part.written.tensors)
        written = dataclasses.replace(part.written, tensors=tensors)
        made = dataclasses.replace(made, parts=(dataclasses.replace(part, written=written),))
    out = tmp_path / "out"
    with pytest.raises(InputError, match=r"the written folder gives another (image|text)\.\w+"):
        folder.write(read, made, out)
    assert not list(tmp_path.iterdir())


def test_programs_with_other_encodings_are_not_kept(encoder, tmp_path, monkeypatch):
    class Other(load_programs.Programs):
        def __call__(self, name, **inputs):
            return super().__call__(name, **inputs) + 0.5

    monkeypatch.setattr(load_programs, "Programs", Other)
    made, arrays = programs.make(run.read_encoder(encoder))
    monkeypatch.setattr(programs, "make", lambda _: (made[:1], arrays))
    with pytest.raises(InputError, match=r"the program gives another image\.embedding"):
        stablehlo.write(run.read_encoder(encoder), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_flags_and_words_that_do_not_go_together_are_refused(refusal, encoder, tmp_path):
    source, out = f"--encoder={encoder}", f"--out={tmp_path / 'out'}"
    full = tmp_path / "full"
    full.mkdir()
    (full / "file").touch()
    for arguments, text in (
        (("weights", source, out), "unknown export 'weights'; choices: embeddings, encoder"),
        (("encoder", "embeddings", source, out), "unknown export 'encoder embeddings'"),
        (("encoder", source), "missing --out"),
        (("encoder", out), "expected --workdir=FOLDER or --encoder=FOLDER; given: neither"),
        (("encoder", source, out, "--form=tf"), "--form 'tf'; choices: hub, stablehlo, onnx"),
        (("encoder", source, out, "--split=val"), "--split belongs to mmrl.export embeddings"),
        (("encoder", source, out, "--names=a"), "--names belongs to mmrl.export embeddings"),
        (
            ("encoder", source, out, "--config=configs/pretrain.py"),
            "--config belongs to mmrl.export embeddings",
        ),
        (("embeddings", source, out, "--form=hub"), "--form belongs to mmrl.export encoder"),
        ((source, out, "--push=a/b"), "--push belongs to mmrl.export encoder; given: embeddings"),
        (
            ("encoder", source, out, "--form=onnx", "--family=clip"),
            "--family belongs to --form=hub; given: --form=onnx",
        ),
        (("encoder", source, out, "--family=vgg"), "unknown --family 'vgg'; choices: bert, clip"),
        (("encoder", source, out, "--family=bert"), "--family=bert: "),
        (("encoder", source, out, "--push=name"), "--push=name; expected OWNER/NAME"),
        (("encoder", source, out, "--step=2"), "--step=2: an encoder that was not trained here"),
        (("encoder", source, f"--out={full}"), "is not empty; expected a new or empty folder"),
    ):
        assert text in refusal("mmrl.export", *arguments), arguments
    assert not (tmp_path / "out").exists()


def test_onnx_says_what_is_missing(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx, "missing", lambda: ("jax2onnx", "onnxruntime"))
    with pytest.raises(InputError, match=r"needs jax2onnx, onnxruntime; .*requirements-onnx\.txt"):
        onnx.write(run.read_encoder(encoder), tmp_path / "out")


@pytest.mark.skipif(bool(onnx.missing()), reason="needs the packages of requirements-onnx.txt")
def test_onnx_gives_the_same_embeddings(encoder, tmp_path):
    names, difference = onnx.write(run.read_encoder(encoder), tmp_path / "out")
    assert "image.embedding" in names and "text.embedding" in names
    assert difference <= onnx.TOLERANCE


class Hub:
    """A stand-in for huggingface_hub.HfApi, which remembers what it is asked for."""

    asked: list

    def create_repo(self, name, **options):
        Hub.asked.append(("create", name, options))

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        names = sorted(path.name for path in Path(folder_path).iterdir())
        Hub.asked.append(("upload", repo_id, names))
        if repo_id == "down/model":
            raise OSError("no connection\nto the hub")
        return f"https://hub/{repo_id}/commit/1"


def test_nothing_is_uploaded_unless_asked_for(encoder, tmp_path, monkeypatch, capsys, refusal):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    Hub.asked = []
    source = ("mmrl.export", "encoder", f"--encoder={encoder}")
    assert commands.run_here(*source, f"--out={tmp_path / 'one'}", "--family=mmrl") == 0
    assert Hub.asked == []
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "encoder.json").touch()
    address = upload.push(tmp_path / "two", "hospital/model")
    assert address == "https://hub/hospital/model/commit/1"
    assert Hub.asked == [
        ("create", "hospital/model", {"private": True, "exist_ok": True}),
        ("upload", "hospital/model", ["encoder.json"]),
    ]
    with pytest.raises(InputError, match=r"--push=down/model failed: no connection; .*is complete"):
        upload.push(tmp_path / "two", "down/model")
    assert {path.name for path in (tmp_path / "one").iterdir()} == {
        *("README.md", "config.json", "encoder.json", "model.safetensors", "tokenizer.model")
    }
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match="needs huggingface_hub: pip install"):
        upload.check("hospital/model")


@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        ({"file": "../weights.npz"}, r"weights\.file='\.\./weights\.npz' is no name"),
        ({"file": "/etc/passwd"}, r"weights\.file='/etc/passwd' is no name"),
        ({"file": "absent.npz"}, "has no absent.npz, the weights"),
        ({"files": "weights.npz"}, "unknown key in weights of .*'files'"),
        ({"libraries": [{"folder": "..", "towers": {}}]}, r"libraries\.folder='\.\.' is no name"),
        ({"libraries": ["clip"]}, "weights.libraries='clip'; expected a mapping"),
        ({"libraries": [{"folder": "image", "family": "clip"}]}, "libraries.towers=None; expected"),
    ],
)
def test_a_folder_names_weights_inside_itself(tmp_path, weights, reason):
    content = {"format": 1, "towers": {"image": TOWERS["image"]}, "weights": weights}
    (tmp_path / "encoder.json").write_text(json.dumps(content))
    np.savez(tmp_path / "weights.npz")
    with pytest.raises(InputError, match=reason):
        encoder_folder.read(tmp_path)


def test_a_library_folder_that_is_gone_or_damaged_is_refused(hub, tmp_path):
    import shutil

    for change, reason in (
        (lambda image: shutil.rmtree(image), "no such file or folder"),
        (lambda image: (image / "model.safetensors").write_bytes(b"no"), "no safetensors"),
        (lambda image: (image / "config.json").write_text("{"), "config.json"),
    ):
        copy = tmp_path / "copy"
        shutil.copytree(hub, copy)
        change(copy / "image")
        with pytest.raises(InputError, match=reason):
            run.read_encoder(copy)
        shutil.rmtree(copy)


def test_probes_name_the_encoding_that_differs():
    ours = {"image.embedding": np.ones((2, 3), np.float32)}
    assert probes.check("x", ours, ours) == 0.0
    for theirs, reason in (
        ({}, r"x gives no image\.embedding of shape \[2, 3\]"),
        ({"image.embedding": np.ones((2, 4))}, r"x gives no image\.embedding of shape"),
        (
            {"image.embedding": np.full((2, 3), 1.1)},
            r"another image\.embedding: it differs by 0\.1",
        ),
        ({"image.embedding": np.full((2, 3), np.nan)}, r"another image\.embedding"),
    ):
        with pytest.raises(InputError, match=reason):
            probes.check("x", ours, theirs)


def test_ids_and_padding_reach_the_files_of_transformers():
    own = types.SimpleNamespace(begin=1, end=None, pad=0)
    trained = types.SimpleNamespace(tokenizers={"text": own})
    assert plan._marks(trained, "text") == {
        "marks": {"bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0}
    }
    assert plan._marks(trained, "image") == {}
