"""Pairs of open_clip: CLIP in OpenAI's layout, and BiomedCLIP's of a timm ViT and BERT.

Radford et al. 2021; Ilharco et al. 2021 (open_clip); Zhang et al. 2023 (BiomedCLIP).
"""

from collections.abc import Mapping
from typing import Any

from mmrl.models.convert import bert, images, timm_vit
from mmrl.models.convert.base import Conversion
from mmrl.models.convert.clip import LOGIT_SCALE
from mmrl.models.convert.entries import (
    Entries,
    Entry,
    block_path,
    class_positions,
    fused_attention,
    linear,
    mlp,
    norm,
    patches,
    same,
)
from mmrl.models.convert.source import Source
from mmrl.types import InputError

_EPSILON = 1e-5
_HEAD_WIDTH = 64
# Numbers beside the weights that OpenAI published.
_OPENAI = ("input_resolution", "context_length", "vocab_size")
_ENCODERS = {"image": "towers/image/encoder", "text": "towers/text/encoder"}
_HEADS = {"image": "towers/image/heads/embedding", "text": "towers/text/heads/embedding"}


def recognises(source: Source) -> bool:
    """Whether tensors have the names of a pair of open_clip, under the prefix `module.` or none."""
    return any(
        source.has(f"{start}logit_scale", f"{start}{name}")
        for start in ("", "module.")
        for name in ("visual.conv1.weight", "visual.trunk.patch_embed.proj.weight")
    )


def convert(source: Source) -> Conversion:
    """Sizes come from the tensors; heads and activation from open_clip_config.json.

    Raises:
      InputError: no config and not OpenAI's weights, or a variant that has no counterpart here.
    """
    start = "" if source.has("logit_scale") else "module."
    config = source.json("open_clip_config.json").get("model_cfg", {})
    prepared = images.preparation(source, images.CLIP_MEAN, images.CLIP_STD, "crop")
    if source.has(f"{start}visual.conv1.weight"):
        towers, notes, entries = _openai(source, start, config, prepared)
    else:
        towers, notes, entries = _biomedclip(source, start, config, prepared)
    entries.append(same(LOGIT_SCALE, f"{start}logit_scale", ()))
    plain = start.replace(".", r"\.")
    ignored = {
        plain + "|".join(_OPENAI).join("()"): "a number that the shapes of other tensors give",
        rf"{plain}text\.transformer\.embeddings\.position_ids": "the numbers from 0 on",
        rf"{plain}text\.transformer\.pooler\..*": "a layer of its pretraining",
    }
    return Conversion(towers, tuple(entries), ignored, prepared.resize, notes)


Towers = dict[str, dict[str, Any]]


def _openai(
    source: Source, start: str, config: Mapping[str, Any], prepared: images.Preparation
) -> tuple[Towers, tuple[str, ...], list[Entry]]:
    block = {"epsilon": _EPSILON, "activation": _activation(source, start, config)}
    visual, kernel = f"{start}visual", f"{start}visual.conv1.weight"
    vision_cfg, text_cfg = config.get("vision_cfg", {}), config.get("text_cfg", {})
    width, channels, patch_size = images.patch_shape(source, kernel)
    image_layers, text_layers = f"{visual}.transformer.resblocks", f"{start}transformer.resblocks"
    depth = {
        "image": images.depth(source, f"{image_layers}.{{}}."),
        "text": images.depth(source, f"{text_layers}.{{}}."),
    }
    vocab_size, text_width = source.shape(f"{start}token_embedding.weight")
    heads = {
        "image": width // vision_cfg.get("head_width", _HEAD_WIDTH),
        "text": text_cfg.get("heads", text_width // _HEAD_WIDTH),
    }
    image, notes = images.tower(
        source,
        prepared,
        size=images.square(
            source, source.shape(f"{visual}.positional_embedding")[0] - 1, patch_size
        ),
        channels=channels,
        heads={"embedding": {"width": source.shape(f"{visual}.proj")[1]}},
        name="vit",
        patch_size=patch_size,
        width=width,
        depth=depth["image"],
        num_heads=heads["image"],
        mlp_dim=source.shape(f"{image_layers}.0.mlp.c_fc.weight")[0],
        pool="cls",
        embedding_norm=True,
        block=block,
    )
    text = {
        "name": "transformer",
        "vocab_size": vocab_size,
        "length": source.shape(f"{start}positional_embedding")[0],
        "width": text_width,
        "depth": depth["text"],
        "num_heads": heads["text"],
        "mlp_dim": source.shape(f"{text_layers}.0.mlp.c_fc.weight")[0],
        "pool": "eos",
        "causal": True,
        "block": block,
        "heads": {"embedding": {"width": source.shape(f"{start}text_projection")[1]}},
    }
    entries = [
        *patches(f"{_ENCODERS['image']}/patch", f"{visual}.conv1", bias=False),
        *class_positions(
            _ENCODERS["image"], f"{visual}.class_embedding", f"{visual}.positional_embedding"
        ),
        *norm(f"{_ENCODERS['image']}/embedding_norm", f"{visual}.ln_pre"),
        *_blocks(_ENCODERS["image"], image_layers, depth["image"], heads["image"]),
        *norm(f"{_ENCODERS['image']}/norm", f"{visual}.ln_post"),
        # Both projections are [in, out], as ours are.
        same(f"{_HEADS['image']}/out/kernel", f"{visual}.proj"),
        same(f"{_ENCODERS['text']}/token/embedding", f"{start}token_embedding.weight"),
        same(f"{_ENCODERS['text']}/position", f"{start}positional_embedding"),
        *_blocks(_ENCODERS["text"], text_layers, depth["text"], heads["text"]),
        *norm(f"{_ENCODERS['text']}/norm", f"{start}ln_final"),
        same(f"{_HEADS['text']}/out/kernel", f"{start}text_projection"),
    ]
    return {"image": image, "text": text}, notes, entries


def _activation(source: Source, start: str, config: Mapping[str, Any]) -> str:
    """QuickGELU where the config or the numbers beside OpenAI's weights say so."""
    if not config and not source.has(*(f"{start}{name}" for name in _OPENAI)):
        raise InputError(
            f"{source.path}: no open_clip_config.json beside the weights; expected it, because no "
            "tensor tells the activation"
        )
    return "quick_gelu" if config.get("quick_gelu", not config) else "gelu"


def _blocks(target: str, source: str, count: int, heads: int) -> Entries:
    for index in range(count):
        path, name = f"{target}/{block_path(index)}", f"{source}.{index}"
        own = f"{name}.attn"
        yield from norm(f"{path}/attention_norm", f"{name}.ln_1")
        yield from fused_attention(
            f"{path}/attention",
            f"{own}.in_proj_weight",
            f"{own}.in_proj_bias",
            f"{own}.out_proj",
            heads=heads,
        )
        yield from norm(f"{path}/mlp_norm", f"{name}.ln_2")
        yield from mlp(f"{path}/mlp", f"{name}.mlp.c_fc", f"{name}.mlp.c_proj")


_POOLS = {"cls_last_hidden_state_pooler": "cls", "mean_pooler": "mean"}


def _biomedclip(
    source: Source, start: str, config: Mapping[str, Any], prepared: images.Preparation
) -> tuple[Towers, tuple[str, ...], list[Entry]]:
    """Heads of both towers follow from their widths, or from config.json where it states them."""
    if not config:
        raise InputError(
            f"{source.path}: no open_clip_config.json beside the weights; expected it, because no "
            "tensor tells how texts are pooled"
        )
    vision_cfg, text_cfg = config.get("vision_cfg", {}), config.get("text_cfg", {})
    stated = text_cfg.get("hf_pooler_type", "mean_pooler")
    text = f"{start}text.transformer."
    if stated not in _POOLS or not source.starts(f"{text}embeddings."):
        raise InputError(
            f"{source.path}: hf_pooler_type {stated!r} with tensors such as "
            f"{next((n for n in source.names if n.startswith(f'{start}text.')), 'none')}; expected "
            f"a BERT with one of: {', '.join(_POOLS)}"
        )
    image, notes, entries = timm_vit.vision(
        source,
        f"{start}visual.trunk.",
        prepared,
        source.config.get("model_args") or {},
        pool=vision_cfg.get("timm_pool"),
    )
    projection = f"{start}visual.head.proj"
    biased = source.has(f"{projection}.bias")
    width = source.shape(f"{projection}.weight")[0]
    head = {"width": width, "kind": "affine" if biased else "linear"}
    image = {**image, "heads": {"embedding": head}}
    entries += linear(f"{_HEADS['image']}/out", projection, bias=biased)
    text_width = source.shape(f"{text}embeddings.word_embeddings.weight")[1]
    more, encoder = bert.bert(
        source,
        text,
        heads=source.config.get("num_attention_heads", text_width // _HEAD_WIDTH),
        epsilon=source.config.get("layer_norm_eps", 1e-12),
        activation="gelu",
        length=text_cfg.get("context_length"),
    )
    head, projected = _text_head(source, f"{start}text.proj")
    options = {**encoder, "pool": _POOLS[stated], "heads": {"embedding": head}}
    return {"image": image, "text": options}, notes, [*entries, *more, *projected]


def _text_head(source: Source, name: str) -> tuple[dict[str, Any], Entries]:
    """One linear layer, or two with GELU between them, without biases."""
    target = _HEADS["text"]
    if source.has(f"{name}.weight"):
        width = source.shape(f"{name}.weight")[0]
        return {"width": width}, linear(f"{target}/out", name, bias=False)
    hidden = source.shape(f"{name}.0.weight")[0]
    head: dict[str, Any] = {
        "width": source.shape(f"{name}.2.weight")[0],
        "kind": "mlp",
        "hidden": hidden,
        "bias": False,
    }
    return head, mlp(target, f"{name}.0", f"{name}.2", bias=False)
