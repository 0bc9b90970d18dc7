"""Exported encoders loaded by the libraries whose names they have.

    python -m tests.reference_exports write FOLDER      with mmrl
    python -m tests.reference_exports check FOLDER      with torch, transformers, timm, open_clip

`write` exports every encoder of `tests/golden/convert`, and some that no library made, under the
names of each family that knows it, with what mmrl computes for some inputs. `check` loads each with
its library, compares what that computes, and writes `tests/golden/exports.json`: versions, the
files of JSON and the largest differences. Tests compare new exports with these files.

This is a script of developers; tests read only the file that it wrote.
"""

import importlib.metadata
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

GOLDEN = Path(__file__).parent / "golden"
FOUND = GOLDEN / "exports.json"
TOLERANCE = 1e-4
CONFIGS = ("config.json", "preprocessor_config.json", "open_clip_config.json")
# Inputs that the library of a case reads otherwise, or needs weights of its own.
_LEFT = ("minilm",)


# --- with mmrl


def sources(scratch: Path) -> Iterator[tuple[str, Path]]:
    """Name and folder of every encoder that is exported."""
    from mmrl import encoder_folder
    from mmrl.models.convert.source import Source
    from mmrl.training import convert

    for folder in sorted((GOLDEN / "convert").iterdir()):
        if folder.name in _LEFT:
            continue
        weights = folder / "weights.ckpt"
        with np.load(folder / "expected.npz") as stored:
            size = stored["pixels"].shape[1] if "pixels" in stored else None
        converted = convert.convert(
            Source(weights if weights.exists() else folder),
            tokenizer=folder,
            options=convert.Options(size=size),
        )
        converted.write(scratch / folder.name)
        yield folder.name, scratch / folder.name
    yield "resnet18_wide", _wide(scratch / "resnet18", scratch / "resnet18_wide")
    # A trained tower has a bias of the patches, for which CLIP has no place.
    arrays: dict[str, Any] = encoder_folder.read_weights(scratch / "clip_pair" / "weights.npz")
    bias = arrays["towers/image/encoder/patch/bias"]
    bias += np.random.default_rng(0).normal(size=bias.shape).astype(np.float32)
    biased = scratch / "clip_pair_biased"
    biased.mkdir()
    for file in (scratch / "clip_pair").iterdir():
        (biased / file.name).write_bytes(file.read_bytes())
    np.savez(biased / "weights.npz", **arrays)
    yield "clip_pair_biased", biased


def _wide(source: Path, out: Path) -> Path:
    """A ResNet-18 of the width that timm has, with numbers drawn by their paths."""
    from mmrl import encoder_folder
    from mmrl.training import convert

    stated = json.loads((source / "encoder.json").read_text())
    options = stated["towers"]["image"]
    options |= {"width": 64, "heads": {"embedding": {"width": 512, "kind": "identity"}}}
    arrays: dict[str, Any] = {}
    for path, shape in convert.expected(stated["towers"]).items():
        rng = np.random.default_rng([*path.encode()])
        drawn = rng.normal(size=shape) * max(np.prod(shape[:-1]), 1) ** -0.5
        arrays[path] = rng.uniform(0.5, 1.5, shape) if path.endswith(("scale", "var")) else drawn
    out.mkdir()
    encoder_folder.write(out, towers=stated["towers"], data=stated["data"], source={})
    np.savez(out / "weights.npz", **{p: one.astype(np.float32) for p, one in arrays.items()})
    return out


def exported(source: Path, out: Path) -> Iterator[tuple[str, Path]]:
    """Name of each family that knows an encoder, and the folder written under its names."""
    from mmrl.exports import folder, plan
    from mmrl.exports.families import base
    from mmrl.training import run
    from mmrl.types import InputError

    trained = run.read_encoder(source)
    for family in base.names():
        try:
            made = plan.make(trained, family)
        except InputError:
            continue
        if all(part.folder == "." for part in made.parts):
            folder.write(trained, made, out / family)
            yield family, out / family


def write(folder: Path) -> None:
    """Exports all and writes inputs.npz and outputs.npz beside each."""
    from mmrl.exports import programs
    from mmrl.training import run

    for name, source in sources(folder / "scratch"):
        with np.load(
            GOLDEN / "convert" / name.partition("_wide")[0].partition("_biased")[0] / "expected.npz"
        ) as stored:
            inputs = {key: stored[key] for key in ("pixels", "tokens", "mask") if key in stored}
        for family, out in exported(source, folder / name):
            made, arrays = programs.make(run.read_encoder(out))
            found = {}
            for program in made:
                if not program.projector:
                    given = {key: inputs[key] for key in program.inputs}
                    found[program.name] = np.asarray(program.call(arrays, given))
            np.savez(out / "inputs.npz", **inputs)
            np.savez(out / "outputs.npz", **found)
            print(name, family, *found)


# --- with the libraries


def check(folder: Path) -> None:
    """Compares all and writes `FOUND`."""
    found: dict[str, Any] = {"versions": {}, "cases": {}}
    for out in sorted(path.parent for path in folder.glob("*/*/outputs.npz")):
        name, family = out.parent.name, out.name
        with np.load(out / "inputs.npz") as stored:
            inputs = dict(stored)
        with np.load(out / "outputs.npz") as stored:
            ours = dict(stored)
        stated = json.loads((out / "encoder.json").read_text())
        theirs = _LOADERS[family](out, inputs, stated)
        shared = sorted(ours.keys() & theirs.keys())
        differences = {key: float(np.abs(ours[key] - theirs[key]).max()) for key in shared}
        print(name, family, differences, flush=True)
        assert shared and max(differences.values()) <= TOLERANCE, (name, family)
        found["cases"][f"{name}/{family}"] = {
            "files": {
                file: json.loads((out / file).read_text())
                for file in CONFIGS
                if (out / file).is_file()
            },
            "differences": {key: float(f"{value:.1e}") for key, value in differences.items()},
        }
    for package in ("torch", "transformers", "timm", "open_clip_torch"):
        found["versions"][package] = importlib.metadata.version(package)
    FOUND.write_text(json.dumps(found, indent=1) + "\n")


def _normalised(inputs: Mapping[str, Any], stated: Mapping[str, Any]) -> Any:
    """u8[N, S, S, C] -> f32[N, C, S, S]."""
    import torch

    (given,) = (one for one in stated["towers"].values() if "pixel_mean" in one)
    mean, std = np.float32(given["pixel_mean"]), np.float32(given["pixel_std"])
    x = (inputs["pixels"].astype(np.float32) / 255 - mean) / std
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


def _unit(x: Any) -> np.ndarray:
    return (x / x.norm(dim=-1, keepdim=True)).numpy()


def _whole(model: Any) -> Any:
    """The model of transformers in a folder, of which no tensor is missing but poolers."""
    made, report = model
    lost = [name for name in report["missing_keys"] if "pooler." not in name]
    assert not lost and not report["unexpected_keys"], report
    return made.eval()


def _transformers(out: Path, inputs: Mapping[str, Any], stated: Mapping[str, Any]) -> Any:
    import torch
    import transformers

    (kind,) = json.loads((out / "config.json").read_text())["architectures"]
    model = _whole(getattr(transformers, kind).from_pretrained(out, output_loading_info=True))
    given: dict[str, Any] = {}
    if "pixels" in inputs and "Text" not in kind:
        given["pixel_values"] = _normalised(inputs, stated)
    if "tokens" in inputs and "Vision" not in kind:
        given["input_ids"] = torch.from_numpy(inputs["tokens"]).long()
        # SigLIP attends to padding.
        if "Siglip" not in kind:
            given["attention_mask"] = torch.from_numpy(inputs["mask"]).long()
    with torch.no_grad():
        return _READERS[kind](model, given, stated)


def _pair(model: Any, given: Any, stated: Any) -> dict[str, np.ndarray]:
    found = model(**given)
    return {
        "image.embedding": _unit(found.image_embeds),
        "text.embedding": _unit(found.text_embeds),
    }


def _clip_vision(model: Any, given: Any, stated: Any) -> dict[str, np.ndarray]:
    found = model(**given)
    inner = getattr(model, "vision_model", model)
    pooled = found.image_embeds if "image_embeds" in found else found.pooler_output
    tokens = inner.post_layernorm(found.last_hidden_state)[:, 1:]
    return {"image.embedding": _unit(pooled), "image.tokens": tokens.numpy()}


def _siglip_vision(model: Any, given: Any, stated: Any) -> dict[str, np.ndarray]:
    found = model(**given)
    return {
        "image.embedding": _unit(found.pooler_output),
        "image.tokens": found.last_hidden_state.numpy(),
    }


def _vision(model: Any, given: Any, stated: Any) -> dict[str, np.ndarray]:
    hidden = model(**given).last_hidden_state
    first = 1 + int(getattr(model.config, "num_register_tokens", 0))
    return {"image.embedding": _unit(hidden[:, 0]), "image.tokens": hidden[:, first:].numpy()}


def _text(model: Any, given: Any, stated: Any) -> dict[str, np.ndarray]:
    found = model(**given)
    (options,) = stated["towers"].values()
    hidden = found.last_hidden_state
    # Words of padding mean nothing.
    mask = given["attention_mask"].bool() if "attention_mask" in given else None
    if "text_embeds" in found:
        pooled = found.text_embeds
    elif type(model).__name__.startswith(("CLIP", "Siglip")):
        pooled = found.pooler_output
    elif options["pool"] == "cls":
        pooled = hidden[:, 0]
    elif options["pool"] == "mean":
        counted = mask[..., None]
        pooled = (hidden * counted).sum(1) / counted.sum(1)
    else:
        pooled = hidden[range(len(hidden)), (mask.sum(1) - 1).clamp(min=0)]
    if options["heads"]["embedding"].get("kind") == "mlp":  # a head that BERT does not have
        return {"text.words": hidden.numpy()}
    return {"text.embedding": _unit(pooled)}


_READERS = {
    "CLIPModel": _pair,
    "SiglipModel": _pair,
    "CLIPVisionModel": _clip_vision,
    "CLIPVisionModelWithProjection": _clip_vision,
    "SiglipVisionModel": _siglip_vision,
    **dict.fromkeys(("ViTModel", "Dinov2Model", "Dinov2WithRegistersModel"), _vision),
    **dict.fromkeys(
        (
            *("CLIPTextModel", "CLIPTextModelWithProjection", "SiglipTextModel"),
            *("BertModel", "LlamaModel", "Qwen2Model"),
        ),
        _text,
    ),
}


def _timm(out: Path, inputs: Mapping[str, Any], stated: Mapping[str, Any]) -> Any:
    import timm
    import torch

    model = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    with torch.no_grad():
        x = _normalised(inputs, stated)
        tokens = model.forward_features(x)
        found = {}
        if tokens.ndim == 4:  # of a ResNet
            found["image.tokens"] = tokens.flatten(2).transpose(1, 2).numpy()
        else:
            found["image.tokens"] = tokens[:, model.num_prefix_tokens :].numpy()
        (options,) = stated["towers"].values()
        plain = options["heads"].get("embedding", {})
        if isinstance(plain, dict) and plain.get("kind") == "identity":
            found["image.embedding"] = _unit(model(x))
    return found


def _open_clip(out: Path, inputs: Mapping[str, Any], stated: Mapping[str, Any]) -> Any:
    import open_clip
    import torch

    model, _ = open_clip.create_model_from_pretrained(f"local-dir:{out}")
    with torch.no_grad():
        return {
            "image.embedding": _unit(model.eval().encode_image(_normalised(inputs, stated))),
            "text.embedding": _unit(model.encode_text(torch.from_numpy(inputs["tokens"]).long())),
        }


_LOADERS: dict[str, Any] = {
    **dict.fromkeys(("clip", "siglip", "vit", "dinov2", "bert", "llama"), _transformers),
    **dict.fromkeys(("timm_vit", "resnet"), _timm),
    "open_clip": _open_clip,
}


if __name__ == "__main__":
    {"write": write, "check": check}[sys.argv[1]](Path(sys.argv[2]))
