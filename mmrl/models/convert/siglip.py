"""SigLIP of transformers (Zhai et al. 2023): the vision tower, the text tower, or both."""

from collections.abc import Mapping
from typing import Any

from mmrl.models.convert import images
from mmrl.models.convert.base import Conversion
from mmrl.models.convert.clip import blocks, text_tower, towers_of
from mmrl.models.convert.entries import (
    Entries,
    Entry,
    linear,
    mlp,
    norm,
    patches,
    same,
    split_layers,
)
from mmrl.models.convert.source import Source
from mmrl.types import InputError

_TYPES = ("siglip", "siglip_vision_model", "siglip_text_model")


def recognises(source: Source) -> bool:
    """Whether the config is that of SigLIP or of one of its towers."""
    return source.config.get("model_type") in _TYPES


def convert(source: Source) -> Conversion:
    """Sizes come from the tensors; heads, epsilon and activation from config.json.

    Raises:
      InputError: as of `images`, or no attention pooling.
    """
    prepared = images.preparation(source, images.HALF, images.HALF)
    scale_and_bias = [
        same("objectives/siglip/logit_scale/log", "logit_scale", ()),
        same("objectives/siglip/logit_bias", "logit_bias", ()),
    ]
    return towers_of(source, "siglip", prepared, _vision, _text, of_pair=scale_and_bias)


def _vision(
    source: Source, config: Mapping[str, Any], prepared: images.Preparation
) -> tuple[dict[str, Any], tuple[str, ...], list[Entry]]:
    """Options, notes and entries of the vision tower."""
    heads, epsilon, act = images.stated(
        source, config, "num_attention_heads", "layer_norm_eps", "hidden_act"
    )
    start = "vision_model." if source.starts("vision_model.") else ""
    if not source.starts(f"{start}head."):
        raise InputError(
            f"{source.path}: SigLIP without its attention pooling; expected {start}head"
        )
    encoder, layers = "towers/image/encoder", f"{start}encoder.layers"
    projection = f"{start}embeddings.patch_embedding"
    table = f"{start}embeddings.position_embedding.weight"
    width, channels, patch_size = images.patch_shape(source, f"{projection}.weight")
    count = images.depth(source, f"{layers}.{{}}.")
    hidden = source.shape(f"{layers}.0.mlp.fc1.weight")[0]
    numbers = {"epsilon": epsilon, "activation": images.activation(source, act)}
    options, notes = images.tower(
        source,
        prepared,
        size=images.square(source, source.shape(table)[0], patch_size),
        channels=channels,
        heads=images.plain_heads(width),
        name="vit",
        patch_size=patch_size,
        width=width,
        depth=count,
        num_heads=heads,
        mlp_dim=hidden,
        pool={"name": "attention", "num_heads": heads, "mlp_dim": hidden, **numbers},
        block=numbers,
    )
    entries = [
        *patches(f"{encoder}/patch", projection),
        same(f"{encoder}/position", table),
        *blocks(encoder, layers, count, heads),
        *norm(f"{encoder}/norm", f"{start}post_layernorm"),
        *_pooler(f"{encoder}/pool", f"{start}head", width),
    ]
    return options, notes, entries


def _pooler(target: str, source: str, width: int) -> Entries:
    yield same(f"{target}/queries", f"{source}.probe", (1, width))
    yield from split_layers(
        [f"{target}/{name}" for name in ("query", "key", "value")],
        f"{source}.attention.in_proj_weight",
        f"{source}.attention.in_proj_bias",
    )
    yield from linear(f"{target}/out", f"{source}.attention.out_proj")
    yield from norm(f"{target}/norm", f"{source}.layernorm")
    yield from mlp(f"{target}/mlp", f"{source}.mlp.fc1", f"{source}.mlp.fc2")


def _text(source: Source, config: Mapping[str, Any]) -> tuple[dict[str, Any], list[Entry]]:
    """Options and entries of the text tower, which attends to padding and pools the last token."""
    start, options, entries = text_tower(source, config)
    heads = {"embedding": {"width": source.shape(f"{start}head.weight")[0], "kind": "affine"}}
    entries += linear("towers/text/heads/embedding/out", f"{start}head")
    return {**options, "begin_mark": False, "attend_padding": True, "heads": heads}, entries
