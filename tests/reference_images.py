"""Writes the small reference models of the image and pair families, and what they compute.

    python -m tests.reference_images [NAME ...]

Needs torch, torchvision, transformers, timm and open_clip, which mmrl does not: the folders are
kept in tests/golden/convert. Each holds a checkpoint in the layout of its library, its config, and
expected.npz: pixels u8[N, S, S, 3] and what the library makes of them. Parameters are random, as
unequal as those of trained models: no norm is the identity, no bias zero, and grids have an odd
number of patches. Features that a library computes in mmrl's sense only after a further layer, such
as the regions of CLIP before its last norm, are taken after that layer.
"""

import copy
import functools
import json
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import safetensors.torch
import timm
import tokenizers
import torch
import torchvision
import transformers
from open_clip.hf_model import HFTextEncoder
from open_clip.timm_model import TimmModel
from timm.layers import resample_patch_embed
from timm.models.vision_transformer import VisionTransformer
from torch import nn

FOLDER = Path(__file__).parent / "golden" / "convert"
MEAN, STD = (0.48, 0.45, 0.41), (0.27, 0.26, 0.28)
Arrays = dict[str, np.ndarray]


def randomised(model: nn.Module, seed: int = 0, half: bool = False, gain: float = 1.5) -> Any:
    """Gives all parameters and statistics trained-like random values; in evaluation mode.

    Kernels have the deviation gain / sqrt(fan-in). With `half`, float16 can hold all values.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(like: torch.Tensor) -> torch.Tensor:
        return torch.randn(like.shape, generator=generator)

    with torch.no_grad():
        for name, value in model.state_dict().items():
            last = name.rsplit(".", 1)[-1]
            if not value.is_floating_point() or last in ("logit_scale", "logit_bias"):
                continue
            if last == "running_var":
                value.copy_(0.5 + torch.rand(value.shape, generator=generator))
            elif last == "running_mean" or (value.ndim == 1 and last.endswith("bias")):
                value.copy_(0.2 * normal(value))
            elif value.ndim == 1 and last == "weight":
                value.copy_(1 + 0.3 * normal(value))
            elif value.ndim == 1:  # layer scales and class tokens
                value.copy_(0.4 + 0.2 * normal(value))
            elif "embedding" in name or "token" in name or "pos_embed" in name:
                value.copy_(0.3 * normal(value))
            else:
                fan_in = value[0].numel() if value.ndim > 1 else 1
                value.copy_(gain * normal(value) / fan_in**0.5)
            if half:
                value.copy_(value.half().float())
    return model.eval()


def pixels_of(size: int, seed: int = 1, grey: bool = False, count: int = 2) -> np.ndarray:
    """Random images u8[count, size, size, 3]; `grey`: of three equal channels."""
    generator = np.random.default_rng(seed)
    made = generator.integers(0, 256, (count, size, size, 1 if grey else 3), dtype=np.uint8)
    return np.repeat(made, 3, axis=-1) if grey else made


def normalised(pixels: np.ndarray, mean: Any = MEAN, std: Any = STD) -> torch.Tensor:
    """u8[N, S, S, 3] -> f32[N, 3, S, S]."""
    x = (pixels.astype(np.float32) / 255 - np.float32(mean)) / np.float32(std)
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


def unit(x: torch.Tensor) -> torch.Tensor:
    return nn.functional.normalize(x, dim=-1)


def rows(x: torch.Tensor) -> torch.Tensor:
    """A feature map [N, D, rows, columns] -> [N, R, D]."""
    return x.flatten(2).transpose(1, 2)


def write(
    name: str,
    tensors: Mapping[str, torch.Tensor],
    config: Mapping[str, Any] | None,
    expected: Mapping[str, Any],
    *,
    files: Mapping[str, Any] | None = None,
    wrap: Callable[[dict[str, torch.Tensor]], Any] | None = None,
    dtype: torch.dtype = torch.float32,
    config_name: str = "config.json",
    weights: str = "model.safetensors",
) -> None:
    """Writes one folder; `wrap` turns the tensors into what torch.save writes instead."""
    folder = FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    kept = {
        key: value.to(dtype).contiguous() if value.is_floating_point() else value
        for key, value in tensors.items()
    }
    if wrap is None:
        safetensors.torch.save_file(kept, folder / weights, metadata={"format": "pt"})
    else:
        torch.save(wrap(kept), folder / "weights.ckpt")
    texts = {**({} if config is None else {config_name: config}), **(files or {})}
    for file, content in texts.items():
        text = content if isinstance(content, str) else json.dumps(content, indent=1)
        (folder / file).write_text(text.rstrip() + "\n")
    arrays = {
        key: value.detach().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
        for key, value in expected.items()
    }
    np.savez_compressed(folder / "expected.npz", **arrays)
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{name}: {size / 1024:.0f} KiB, {', '.join(sorted(arrays))}")


def resized(
    label: str, size: int, compute: Callable[[np.ndarray], Mapping[str, Any]]
) -> dict[str, Any]:
    """Images of another size, and what is computed for them, as `label`_NAME."""
    pixels = pixels_of(size, seed=6)
    found = {"pixels": pixels, **compute(pixels)}
    return {f"{label}_{key}": value for key, value in found.items()}


def preprocessor(size: int, *, crop: bool = False) -> dict[str, Any]:
    """A preprocessor_config.json."""
    made: dict[str, Any] = {
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": MEAN,
        "image_std": STD,
        "rescale_factor": 1 / 255,
        "resample": 3,
    }
    if not crop:
        return made | {"size": {"height": size, "width": size}}
    square = {"height": size, "width": size}
    return made | {"do_center_crop": True, "crop_size": square, "size": {"shortest_edge": size}}


def saved(model: Any) -> dict[str, torch.Tensor]:
    """The tensors that save_pretrained writes, under the names that files of the hub have."""
    scratch = FOLDER / "scratch"
    model.save_pretrained(scratch)
    try:
        return safetensors.torch.load_file(scratch / "model.safetensors")
    finally:
        shutil.rmtree(scratch)


def config_of(model: Any) -> dict[str, Any]:
    return json.loads(model.config.to_json_string(use_diff=False))


# Hugging Face ViT and DINOv2.


def hf_vit() -> None:
    config = transformers.ViTConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40,
        image_size=15, patch_size=3, num_labels=4, layer_norm_eps=1e-3, pooler_output_size=24,
    )  # fmt: skip
    model = randomised(transformers.ViTForImageClassification(config))
    pixels = pixels_of(15)
    with torch.no_grad():
        hidden = model.vit(normalised(pixels)).last_hidden_state
        expected = {
            "pixels": pixels,
            "pooled": hidden[:, 0],
            "local": hidden[:, 1:],
            "logits": model(normalised(pixels)).logits,
            **resized("larger", 21, lambda x: _hidden(model.vit, x, interpolate_pos_encoding=True)),
        }
    files = {"preprocessor_config.json": preprocessor(15)}
    write("vit", saved(model), config_of(model), expected, files=files)
    base = transformers.ViTModel(config)
    base.load_state_dict(model.vit.state_dict(), strict=False)
    write("vit_model", saved(randomised(base, 3, half=True)), config_of(base), {
        "pixels": pixels, **_hidden(base, pixels),
    }, files=files, dtype=torch.float16)  # fmt: skip


def _hidden(
    model: Any, pixels: np.ndarray, skip: int = 1, **options: Any
) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        hidden = model(normalised(pixels), **options).last_hidden_state
    return {"pooled": hidden[:, 0], "local": hidden[:, skip:]}


def dinov2() -> None:
    sizes: dict[str, Any] = {
        "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "mlp_ratio": 2,
        "image_size": 12, "patch_size": 4,
    }  # fmt: skip
    files = {"preprocessor_config.json": preprocessor(12, crop=True)}
    pixels = pixels_of(12)
    for name, swiglu in (("dinov2", False), ("dinov2_giant", True)):
        model = randomised(transformers.Dinov2Model(
            transformers.Dinov2Config(**sizes, use_swiglu_ffn=swiglu)
        ))  # fmt: skip
        expected: dict[str, Any] = {"pixels": pixels, **_hidden(model, pixels)}
        if not swiglu:
            expected |= resized("smaller", 8, functools.partial(_hidden, model))
        write(name, saved(model), config_of(model), expected, files=files)
    model = randomised(transformers.Dinov2WithRegistersModel(
        transformers.Dinov2WithRegistersConfig(**sizes, num_register_tokens=2)
    ))  # fmt: skip
    expected = {"pixels": pixels, **_hidden(model, pixels, 3)}
    expected |= resized("smaller", 8, lambda x: _hidden(model, x, 3))
    write("dinov2_registers", saved(model), config_of(model), expected, files=files)


# CLIP and SigLIP of Hugging Face.


def word_tokenizer(size: int, begin: str, end: str, pad: str, length: int | None = None) -> str:
    """A tokenizer.json of `size` whole words with a begin and an end mark around a text."""
    marks = list(dict.fromkeys((pad, begin, end, "[UNK]")))
    words = [f"word{index}" for index in range(size - len(marks))]
    # The end mark is the last id, as in CLIP, whose pooled token is the one of the greatest id.
    names = [*(mark for mark in marks if mark != end), *words, end]
    vocabulary = {word: index for index, word in enumerate(names)}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens(marks)
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{begin} $A {end}" if begin else f"$A {end}",
        special_tokens=[(mark, vocabulary[mark]) for mark in dict.fromkeys((begin, end)) if mark],
    )
    made.enable_padding(pad_id=vocabulary[pad], pad_token=pad, length=length)
    return made.to_str(pretty=True)


def texts_of(tokenizer: str, length: int) -> Arrays:
    """Token ids i32[3, length] and masks of texts of several lengths, one of them full."""
    made = tokenizers.Tokenizer.from_str(tokenizer)
    made.enable_truncation(length)
    made.enable_padding(
        pad_id=made.padding["pad_id"], pad_token=made.padding["pad_token"], length=length
    )
    texts = ["word1 word2 word3", "word5", " ".join(f"word{index}" for index in range(length))]
    encoded = made.encode_batch(texts)
    return {
        "texts": np.array(texts),
        "tokens": np.array([one.ids for one in encoded], np.int32),
        "mask": np.array([one.attention_mask for one in encoded], bool),
    }


VISION: dict[str, Any] = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40,
    "image_size": 15, "patch_size": 5, "projection_dim": 10,
}  # fmt: skip
TEXT: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 28,
    "vocab_size": 30, "max_position_embeddings": 9,
}  # fmt: skip


def clip() -> None:
    files = {"preprocessor_config.json": preprocessor(15, crop=True)}
    pixels = pixels_of(15)

    def vision_of(model: Any, pixels: np.ndarray = pixels, **options: Any) -> dict[str, Any]:
        with torch.no_grad():
            out = model(pixel_values=normalised(pixels), **options)
            local = model.post_layernorm(out.last_hidden_state)[:, 1:]
        return {"pixels": pixels, "pooled": out.pooler_output, "local": local}

    config = transformers.CLIPVisionConfig(**VISION)
    bare = randomised(transformers.CLIPVisionModel(config), half=True)
    write("clip_vision_model", saved(bare), config_of(bare), vision_of(bare), files=files,
          dtype=torch.float16)  # fmt: skip
    model = randomised(transformers.CLIPVisionModelWithProjection(config))
    with torch.no_grad():
        embedding = unit(model(normalised(pixels)).image_embeds)
    write("clip_vision", saved(model), config_of(model), {
        **vision_of(model.vision_model), "embedding": embedding,
        **resized("larger", 25, lambda x: vision_of(
            model.vision_model, x, interpolate_pos_encoding=True
        )),
    }, files=files)  # fmt: skip

    tokenizer = word_tokenizer(30, "<|startoftext|>", "<|endoftext|>", "<|endoftext|>")
    ends = json.loads(tokenizer)["model"]["vocab"]
    text = {
        **TEXT, "eos_token_id": ends["<|endoftext|>"], "bos_token_id": ends["<|startoftext|>"],
        "pad_token_id": ends["<|endoftext|>"],
    }  # fmt: skip
    pair = randomised(transformers.CLIPModel(transformers.CLIPConfig(
        vision_config=VISION, text_config=text, projection_dim=10
    )))  # fmt: skip
    with torch.no_grad():
        pair.logit_scale.fill_(2.5)
    tokens = texts_of(tokenizer, 9)
    with torch.no_grad():
        out = pair(torch.from_numpy(tokens["tokens"]).long(), normalised(pixels),
                   torch.from_numpy(tokens["mask"]).long())  # fmt: skip
        texts = pair.text_model(torch.from_numpy(tokens["tokens"]).long())
        expected = vision_of(pair.vision_model) | {
            **tokens,
            "embedding": unit(out.image_embeds),
            "text_pooled": texts.pooler_output,
            "text_local": texts.last_hidden_state,
            "text_embedding": unit(out.text_embeds),
            "logits": out.logits_per_image,
        }
    write("clip_pair", saved(pair), config_of(pair), expected,
          files={**files, "tokenizer.json": tokenizer})  # fmt: skip


def siglip() -> None:
    files = {"preprocessor_config.json": preprocessor(15)}
    pixels = pixels_of(15)
    tokenizer = word_tokenizer(30, "", "</s>", "<pad>", 9)
    vision = {key: value for key, value in VISION.items() if key != "projection_dim"}
    model = randomised(transformers.SiglipModel(transformers.SiglipConfig(
        vision_config=vision | {"hidden_size": 18}, text_config=TEXT | {"projection_size": 18}
    )))  # fmt: skip
    with torch.no_grad():
        model.logit_scale.fill_(1.7)
        model.logit_bias.fill_(-3.0)
    tokens = texts_of(tokenizer, 9)
    with torch.no_grad():
        out = model(torch.from_numpy(tokens["tokens"]).long(), normalised(pixels))
        images, texts = out.vision_model_output, out.text_model_output
        expected = {
            "pixels": pixels, **tokens,
            "pooled": images.pooler_output,
            "local": images.last_hidden_state,
            "embedding": unit(images.pooler_output),
            "text_pooled": texts.last_hidden_state[:, -1],
            "text_local": texts.last_hidden_state,
            "text_embedding": unit(texts.pooler_output),
            "logits": out.logits_per_image,
        }  # fmt: skip
    write("siglip_pair", saved(model), config_of(model), expected,
          files={**files, "tokenizer.json": tokenizer})  # fmt: skip
    vision_model = transformers.SiglipVisionModel(model.config.vision_config)
    randomised(vision_model, 4, half=True)

    def vision_of(pixels: np.ndarray, **options: Any) -> dict[str, Any]:
        with torch.no_grad():
            out = vision_model(normalised(pixels), **options)
        return {"pooled": out.pooler_output, "local": out.last_hidden_state}

    write("siglip_vision", saved(vision_model), config_of(vision_model), {
        "pixels": pixels, **vision_of(pixels),
        **resized("larger", 25, lambda x: vision_of(x, interpolate_pos_encoding=True)),
    }, files=files, dtype=torch.float16)  # fmt: skip


# timm.


def timm_config(model: VisionTransformer, **args: Any) -> dict[str, Any]:
    """A config.json as timm pushes it to the hub."""
    size = model.patch_embed.img_size[0]
    return {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": model.num_classes,
        "num_features": model.num_features,
        "global_pool": model.global_pool,
        "model_args": args,
        "pretrained_cfg": {
            "input_size": [3, size, size], "mean": MEAN, "std": STD, "crop_pct": 1.0,
            "interpolation": "bicubic", "crop_mode": "center", "num_classes": model.num_classes,
        },
    }  # fmt: skip


def timm_features(model: VisionTransformer, pixels: np.ndarray) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        hidden = model.forward_features(normalised(pixels))
        pooled = model.forward_head(hidden, pre_logits=True)
    return {"pooled": pooled, "local": hidden[:, model.num_prefix_tokens :]}


TIMM: dict[str, Any] = {
    "img_size": 12, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3, "mlp_ratio": 1.5,
}  # fmt: skip


def timm_vit() -> None:
    pixels, grey = pixels_of(12), pixels_of(12, seed=5, grey=True)
    args = {**TIMM, "num_classes": 4}
    model = randomised(VisionTransformer(**args))
    config = timm_config(model, **args)
    expected: dict[str, Any] = {"pixels": pixels, **timm_features(model, pixels)}
    with torch.no_grad():
        expected["logits"] = model(normalised(pixels))
    expected["grey_pixels"] = grey
    expected |= {f"grey_{key}": value for key, value in timm_features(model, grey).items()}
    tensors = model.state_dict()
    # A finer grid, a coarser one, and another patch size with the grid as before.
    for label, size, patch in (("larger", 20, 4), ("smaller", 8, 4), ("patch", 18, 6)):
        other = VisionTransformer(**args)
        other.load_state_dict(tensors)
        other.eval()
        if label == "patch":
            other = VisionTransformer(**{**args, "img_size": size, "patch_size": patch}).eval()
            kernel = resample_patch_embed(tensors["patch_embed.proj.weight"], [patch, patch])
            other.load_state_dict(tensors | {"patch_embed.proj.weight": kernel})
        else:
            other.set_input_size(img_size=(size, size))
        images = pixels_of(size, seed=6)
        expected[f"{label}_pixels"] = images
        expected |= {f"{label}_{key}": value for key, value in timm_features(other, images).items()}
    write("timm_vit", tensors, config, expected)

    args = {**TIMM, "reg_tokens": 2, "init_values": 0.1, "no_embed_class": True, "num_classes": 0}
    model = randomised(VisionTransformer(**args), 7, half=True)
    write("timm_registers", model.state_dict(), timm_config(model, **args), {
        "pixels": pixels, **timm_features(model, pixels),
    }, dtype=torch.float16)  # fmt: skip
    args = {**TIMM, "reg_tokens": 2, "pre_norm": True, "num_classes": 0}
    model = randomised(VisionTransformer(**args), 8, half=True)
    write("timm_pre_norm", model.state_dict(), timm_config(model, **args), {
        "pixels": pixels, **timm_features(model, pixels),
    }, dtype=torch.float16)  # fmt: skip
    args = {**TIMM, "class_token": False, "global_pool": "map", "num_classes": 0}
    model = randomised(VisionTransformer(**args), 9, half=True)
    write("timm_attention_pool", model.state_dict(), timm_config(model, **args), {
        "pixels": pixels, **timm_features(model, pixels),
    }, dtype=torch.float16)  # fmt: skip


# Residual networks.


class Narrow(torchvision.models.ResNet):
    """A residual network of torchvision whose stem has `width` channels instead of 64."""

    def __init__(self, block: Any, layers: list[int], width: int, classes: int) -> None:
        self.__dict__["_stem"] = width
        super().__init__(block, layers, num_classes=classes)
        self.fc = nn.Linear(8 * width * block.expansion, classes)

    @property
    def inplanes(self) -> int:
        return self.__dict__["_inplanes"]

    @inplanes.setter
    def inplanes(self, value: int) -> None:
        # The first value is the 64 channels of the stem.
        self.__dict__["_inplanes"] = value if "_inplanes" in self.__dict__ else self._stem

    def _make_layer(self, block: Any, planes: int, *args: Any, **kwargs: Any) -> nn.Sequential:
        return super()._make_layer(block, planes * self._stem // 64, *args, **kwargs)

    def stages(self, x: torch.Tensor) -> list[torch.Tensor]:
        """The feature maps of the four stages."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        found = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            found.append(x)
        return found


BASIC = torchvision.models.resnet.BasicBlock
BOTTLENECK = torchvision.models.resnet.Bottleneck
RESNET_SIZE = 65  # 17 x 17 places after the stem, 5 x 5 of stage 3, 3 x 3 of the last one


def resnet() -> None:
    for name, block, layers, width in (
        ("resnet18", BASIC, [2, 2, 2, 2], 3),
        ("resnet50", BOTTLENECK, [3, 4, 6, 3], 2),
    ):
        pixels = pixels_of(RESNET_SIZE)
        model = randomised(Narrow(block, layers, width, 5), half=True, gain=0.7)
        with torch.no_grad():
            last = model.stages(normalised(pixels))[-1]
            expected = {
                "pixels": pixels,
                "pooled": last.mean(dim=(2, 3)),
                "local": rows(last),
                "logits": model(normalised(pixels)),
            }
        write(name, model.state_dict(), {
            "architecture": name, "num_classes": 5,
            "pretrained_cfg": {"input_size": [3, RESNET_SIZE, RESNET_SIZE], "mean": MEAN,
                               "std": STD, "crop_pct": 1.0, "crop_mode": "center"},
        }, expected, dtype=torch.float16)  # fmt: skip


def _sequence(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*layers)


def gloria() -> None:
    """The names of GLoRIA's ImageEncoder: embedders on the pooled feature and on stage 3."""
    encoder = nn.Module()
    encoder.model = Narrow(BASIC, [2, 2, 2, 2], 2, 5)
    encoder.model.fc = nn.Identity()
    encoder.global_embedder = nn.Linear(16, 12)
    encoder.local_embedder = nn.Conv2d(8, 12, 1, bias=False)
    whole = nn.ModuleDict({"gloria": nn.ModuleDict({
        "img_encoder": encoder, "text_encoder": nn.Linear(3, 3),
    })})  # fmt: skip
    randomised(whole, half=True, gain=0.8)
    pixels = pixels_of(RESNET_SIZE)
    with torch.no_grad():
        stages = encoder.model.stages(normalised(pixels, (0.5,) * 3, (0.5,) * 3))
        pooled = stages[-1].mean(dim=(2, 3))
        expected = {
            "pixels": pixels, "pooled": pooled, "local": rows(stages[2]),
            "embedding": unit(encoder.global_embedder(pooled)),
            "regions": rows(encoder.local_embedder(stages[2])),
        }  # fmt: skip
    write("gloria", whole.state_dict(), None, expected, dtype=torch.float16,
          wrap=lambda kept: {"state_dict": kept, "epoch": 3})  # fmt: skip


def biovil() -> None:
    """The names of BioViL's ImageModel: a projector of 1 x 1 convolutions on every place."""
    model = nn.Module()
    model.encoder = nn.Module()
    model.encoder.encoder = Narrow(BASIC, [2, 2, 2, 2], 2, 5)
    model.projector = nn.Module()
    model.projector.model = _sequence(
        nn.Conv2d(16, 14, 1, bias=False), nn.BatchNorm2d(14), nn.ReLU(), nn.Conv2d(14, 10, 1)
    )
    randomised(model, half=True, gain=0.8)
    pixels = pixels_of(RESNET_SIZE, grey=True)
    with torch.no_grad():
        last = model.encoder.encoder.stages(normalised(pixels, (0,) * 3, (1,) * 3))[-1]
        projected = model.projector.model(last)
        expected = {
            "pixels": pixels, "pooled": last.mean(dim=(2, 3)), "local": rows(last),
            "embedding": unit(projected.mean(dim=(2, 3))), "regions": rows(projected),
        }  # fmt: skip
    write("biovil", model.state_dict(), None, expected, dtype=torch.float16,
          wrap=lambda kept: kept)  # fmt: skip


def mgca() -> None:
    """The names of MGCA's ImageEncoder: heads with batch norm, the last of them without scale."""

    def head(layer: Any, inside: int) -> nn.Module:
        made = nn.Module()
        made.head = _sequence(
            layer(inside, 14), nn.BatchNorm1d(14), nn.ReLU(),
            layer(14, 10), nn.BatchNorm1d(10, affine=False),
        )  # fmt: skip
        return made

    encoder = nn.Module()
    encoder.model = Narrow(BASIC, [2, 2, 2, 2], 2, 5)
    encoder.model.fc = nn.Identity()
    encoder.global_embed = head(nn.Linear, 16)
    encoder.local_embed = head(lambda one, two: nn.Conv1d(one, two, 1), 8)
    whole = nn.ModuleDict({
        "img_encoder_q": encoder, "text_encoder_q": nn.Linear(3, 3),
        "prototype_layer": nn.Linear(3, 2, bias=False),
    })  # fmt: skip
    randomised(whole, half=True, gain=0.8)
    pixels = pixels_of(RESNET_SIZE)
    with torch.no_grad():
        stages = encoder.model.stages(normalised(pixels, (0.5,) * 3, (0.5,) * 3))
        pooled = stages[-1].mean(dim=(2, 3))
        regions = rows(stages[2])
        local = encoder.local_embed.head(regions.transpose(1, 2)).transpose(1, 2)
        expected = {
            "pixels": pixels, "pooled": pooled, "local": regions,
            "embedding": unit(encoder.global_embed.head(pooled)), "regions": local,
        }  # fmt: skip
    write("mgca", whole.state_dict(), None, expected, dtype=torch.float16,
          wrap=lambda kept: {"state_dict": kept, "hyper_parameters": {"emb_dim": 10}})  # fmt: skip


# open_clip.


def open_clip_config(size: int, model: dict[str, Any]) -> dict[str, Any]:
    return {
        "model_cfg": model,
        "preprocess_cfg": {"mean": MEAN, "std": STD, "interpolation": "bicubic",
                           "resize_mode": "shortest", "size": size},
    }  # fmt: skip


def openai() -> None:
    """OpenAI's layout, with QuickGELU and the prefix of a model trained on several devices."""
    pixels = pixels_of(15)
    for name, quick, prefix, seed in (
        ("open_clip", False, "", 0), ("open_clip_openai", True, "module.", 1)
    ):  # fmt: skip
        tokenizer = word_tokenizer(30, "<start_of_text>", "<end_of_text>", "<pad>")
        model_config = {
            "embed_dim": 10,
            "vision_cfg": {"image_size": 15, "layers": 2, "width": 24, "head_width": 8,
                           "patch_size": 5, "mlp_ratio": 1.5},
            "text_cfg": {"context_length": 9, "vocab_size": 30, "width": 16, "heads": 2,
                         "layers": 2, "mlp_ratio": 2.0},
        } | ({"quick_gelu": True} if quick else {})  # fmt: skip
        model = randomised(open_clip.model.CLIP(**model_config), seed, half=quick)
        with torch.no_grad():
            model.logit_scale.fill_(2.25)
        tokens = texts_of(tokenizer, 9)
        expected = pair_features(model, pixels, tokens)
        if not quick:
            larger = {
                **model_config,
                "vision_cfg": {**model_config["vision_cfg"], "image_size": 25},
            }
            other = open_clip.model.CLIP(**larger).eval()
            kept = copy.deepcopy(model.state_dict())
            open_clip.model.resize_pos_embed(kept, other)
            other.load_state_dict(kept)
            compute = functools.partial(pair_features, other, tokens=tokens)
            found = resized("larger", 25, compute)
            names = ("pixels", "pooled", "local", "embedding")
            expected |= {f"larger_{name}": found[f"larger_{name}"] for name in names}
        tensors = {prefix + key: value for key, value in model.state_dict().items()}
        config = open_clip_config(15, model_config)
        files = {"open_clip_config.json": config, "tokenizer.json": tokenizer}
        if quick:
            write(name, tensors, None, expected, files=files, dtype=torch.float16,
                  wrap=lambda kept: {"state_dict": kept, "name": "ours", "epoch": 32})  # fmt: skip
        else:
            write(name, tensors, None, expected, files=files,
                  weights="open_clip_model.safetensors")  # fmt: skip


def pair_features(model: Any, pixels: np.ndarray, tokens: Arrays) -> dict[str, Any]:
    """What CLIP of open_clip makes of images and texts."""
    ids = torch.from_numpy(tokens["tokens"]).long()
    with torch.no_grad():
        visual = model.visual
        x = visual.transformer(visual._embeds(normalised(pixels)))
        x = visual.ln_post(x)
        image = model.encode_image(normalised(pixels))
        y = model.token_embedding(ids) + model.positional_embedding
        y = model.ln_final(model.transformer(y, attn_mask=model.attn_mask))
        text = model.encode_text(ids)
        scale = model.logit_scale.exp()
    return {
        "pixels": pixels, **tokens,
        "pooled": x[:, 0], "local": x[:, 1:], "embedding": unit(image),
        "text_pooled": y[torch.arange(len(ids)), ids.argmax(-1)], "text_local": y,
        "text_embedding": unit(text), "logits": scale * unit(image) @ unit(text).T,
    }  # fmt: skip


def biomedclip() -> None:
    """BiomedCLIP's layout: a ViT of timm, BERT, and its two-layer projection."""
    args = {**TIMM, "img_size": 12, "num_classes": 4}

    @timm.models.register_model
    def vit_reference(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
        made = VisionTransformer(**args)
        made.default_cfg = {"pool_size": None}
        return made

    marks = {"pad": "[PAD]", "begin": "[CLS]", "end": "[SEP]"}
    tokenizer = word_tokenizer(30, marks["begin"], marks["end"], marks["pad"])
    bert = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=28,
        vocab_size=30, max_position_embeddings=12, pad_token_id=0,
    )  # fmt: skip
    model = nn.Module()
    model.visual = TimmModel("vit_reference", 10, image_size=12, pool="", proj="linear")
    # The module makes BERT with its pooler only where a config is given; the published file has
    # none, because its pooled token is [CLS] itself.
    model.text = HFTextEncoder(
        "", 10, config=bert, pooler_type="cls_last_hidden_state_pooler", proj_type="mlp"
    )
    model.text.transformer.pooler = None
    model.logit_scale = nn.Parameter(torch.tensor(2.0))
    randomised(model)
    pixels, tokens = pixels_of(12), texts_of(tokenizer, 9)
    ids, mask = (torch.from_numpy(tokens[name]).long() for name in ("tokens", "mask"))
    with torch.no_grad():
        image, text = model.visual(normalised(pixels)), model.text(ids)
        hidden = model.text.transformer(input_ids=ids, attention_mask=mask).last_hidden_state
        expected = {
            "pixels": pixels, **tokens, **timm_features(model.visual.trunk, pixels),
            "embedding": unit(image), "text_pooled": hidden[:, 0], "text_local": hidden,
            "text_embedding": unit(text),
            "logits": model.logit_scale.exp() * unit(image) @ unit(text).T,
        }  # fmt: skip
    tensors = dict(model.state_dict())
    # The published file was written when position ids were still stored.
    tensors["text.transformer.embeddings.position_ids"] = torch.arange(12)[None]
    config = open_clip_config(12, {
        "embed_dim": 10,
        "vision_cfg": {"timm_model_name": "vit_base_patch16_224", "timm_model_pretrained": False,
                       "timm_pool": "", "timm_proj": "linear", "image_size": 12},
        "text_cfg": {"hf_model_name": "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract",
                     "hf_tokenizer_name": "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract",
                     "hf_proj_type": "mlp", "hf_pooler_type": "cls_last_hidden_state_pooler",
                     "context_length": 9},
    })  # fmt: skip
    # The files of BiomedCLIP leave out heads, which follow from the widths of base models.
    heads = {"num_attention_heads": 2, "model_args": {"num_heads": TIMM["num_heads"]}}
    write("biomedclip", tensors, heads, expected, weights="open_clip_model.safetensors",
          files={"open_clip_config.json": config, "tokenizer.json": tokenizer})  # fmt: skip


MAKERS: dict[str, Callable[[], None]] = {
    made.__name__: made
    for made in (
        hf_vit,
        dinov2,
        clip,
        siglip,
        timm_vit,
        resnet,
        gloria,
        biovil,
        mgca,
        openai,
        biomedclip,
    )
}


def main() -> None:
    torch.set_num_threads(1)
    for name in sys.argv[1:] or MAKERS:
        MAKERS[name]()


if __name__ == "__main__":
    main()
