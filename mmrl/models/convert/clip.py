"""CLIP of transformers (Radford et al. 2021): the vision tower, the text tower, or both."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mmrl.models.convert import images
from mmrl.models.convert.base import Conversion
from mmrl.models.convert.entries import (
    Entries,
    Entry,
    attention,
    block_path,
    class_positions,
    linear,
    mlp,
    norm,
    patches,
    same,
)
from mmrl.models.convert.source import Source

_TYPES = ("clip", "clip_vision_model", "clip_text_model")
IGNORED = {r".*embeddings\.position_ids": "the numbers from 0 on"}
LOGIT_SCALE = "objectives/global_contrastive/logit_scale/log"


def recognises(source: Source) -> bool:
    """Whether the config is that of CLIP or of one of its towers."""
    return source.config.get("model_type") in _TYPES


def convert(source: Source) -> Conversion:
    """Sizes come from the tensors; heads, epsilon and activation from config.json."""
    prepared = images.preparation(source, images.CLIP_MEAN, images.CLIP_STD, "crop")
    scale = [same(LOGIT_SCALE, "logit_scale", ())]
    return towers_of(source, "clip", prepared, _vision, _text, of_pair=scale)


def towers_of(
    source: Source,
    family: str,
    prepared: images.Preparation,
    vision: Callable[..., tuple[dict[str, Any], tuple[str, ...], list[Entry]]],
    text: Callable[..., tuple[dict[str, Any], list[Entry]]],
    *,
    of_pair: Sequence[Entry],
) -> Conversion:
    """The vision tower, the text tower, or both, as the model_type of a config says.

    Args:
      family: "clip" or "siglip", the model_type of a pair.
      vision: (source, config, prepared) -> options, notes and entries.
      text: (source, config) -> options and entries.
      of_pair: entries that only a pair has.
    """
    kind = source.config["model_type"]
    towers: dict[str, dict[str, Any]] = {}
    entries: list[Entry] = []
    notes: tuple[str, ...] = ()
    if kind != f"{family}_text_model":
        config = source.config["vision_config"] if kind == family else source.config
        towers["image"], notes, more = vision(source, config, prepared)
        entries += more
    if kind != f"{family}_vision_model":
        config = source.config["text_config"] if kind == family else source.config
        towers["text"], more = text(source, config)
        entries += more
    if kind == family:
        entries += of_pair
    return Conversion(towers, tuple(entries), IGNORED, prepared.resize, notes, antialias=False)


def _vision(
    source: Source, config: Mapping[str, Any], prepared: images.Preparation
) -> tuple[dict[str, Any], tuple[str, ...], list[Entry]]:
    """Options, notes and entries of the vision tower.

    Pooled and local features are those after the last norm, which transformers applies to the class
    token alone.
    """
    heads, epsilon, act = images.stated(
        source, config, "num_attention_heads", "layer_norm_eps", "hidden_act"
    )
    start = "vision_model." if source.starts("vision_model.") else ""
    encoder, layers = "towers/image/encoder", f"{start}encoder.layers"
    embeddings = f"{start}embeddings"
    table = f"{embeddings}.position_embedding.weight"
    width, channels, patch_size = images.patch_shape(source, f"{embeddings}.patch_embedding.weight")
    count = images.depth(source, f"{layers}.{{}}.")
    made = images.plain_heads(width)
    entries = [
        *patches(f"{encoder}/patch", f"{embeddings}.patch_embedding", bias=False),
        *class_positions(encoder, f"{embeddings}.class_embedding", table),
        # The name of the first norm is misspelt there.
        *norm(f"{encoder}/embedding_norm", f"{start}pre_layrnorm"),
        *blocks(encoder, layers, count, heads),
        *norm(f"{encoder}/norm", f"{start}post_layernorm"),
    ]
    if source.has("visual_projection.weight"):
        made = {"embedding": {"width": source.shape("visual_projection.weight")[0]}}
        entries += linear("towers/image/heads/embedding/out", "visual_projection", bias=False)
    options, notes = images.tower(
        source,
        prepared,
        size=images.square(source, source.shape(table)[0] - 1, patch_size),
        channels=channels,
        heads=made,
        name="vit",
        patch_size=patch_size,
        width=width,
        depth=count,
        num_heads=heads,
        mlp_dim=source.shape(f"{layers}.0.mlp.fc1.weight")[0],
        pool="cls",
        embedding_norm=True,
        block={"epsilon": epsilon, "activation": images.activation(source, act)},
    )
    return options, notes, entries


def _text(source: Source, config: Mapping[str, Any]) -> tuple[dict[str, Any], list[Entry]]:
    """Options and entries of the text tower, whose pooled feature is that of the end mark."""
    _, options, entries = text_tower(source, config)
    width, as_is = options["width"], {"kind": "identity"}
    embedding: dict[str, Any] = {"width": width, **as_is}
    if source.has("text_projection.weight"):
        embedding = {"width": source.shape("text_projection.weight")[0]}
        entries += linear("towers/text/heads/embedding/out", "text_projection", bias=False)
    heads = {"embedding": embedding, "words": {"width": width, **as_is}}
    return {**options, "causal": True, "heads": heads}, entries


def text_tower(
    source: Source, config: Mapping[str, Any]
) -> tuple[str, dict[str, Any], list[Entry]]:
    """What the text towers of CLIP and SigLIP share: start of their names, options, entries."""
    heads, epsilon, act = images.stated(
        source, config, "num_attention_heads", "layer_norm_eps", "hidden_act"
    )
    start = "text_model." if source.starts("text_model.") else ""
    layers = f"{start}encoder.layers"
    vocab_size, width = source.shape(f"{start}embeddings.token_embedding.weight")
    count = images.depth(source, f"{layers}.{{}}.")
    options = {
        "name": "transformer",
        "vocab_size": vocab_size,
        "length": source.shape(f"{start}embeddings.position_embedding.weight")[0],
        "width": width,
        "depth": count,
        "num_heads": heads,
        "mlp_dim": source.shape(f"{layers}.0.mlp.fc1.weight")[0],
        "pool": "eos",
        "block": {"epsilon": epsilon, "activation": images.activation(source, act)},
    }
    return start, options, [*text("towers/text/encoder", start, layers, count, heads)]


def text(target: str, source: str, layers: str, count: int, heads: int) -> Entries:
    """The parameters of a text tower of CLIP or SigLIP."""
    yield same(f"{target}/token/embedding", f"{source}embeddings.token_embedding.weight")
    yield same(f"{target}/position", f"{source}embeddings.position_embedding.weight")
    yield from blocks(target, layers, count, heads)
    yield from norm(f"{target}/norm", f"{source}final_layer_norm")


def blocks(target: str, source: str, count: int, heads: int) -> Entries:
    """The blocks of a tower of CLIP or SigLIP."""
    for index in range(count):
        path, name = f"{target}/{block_path(index)}", f"{source}.{index}"
        layers = (f"{name}.self_attn.{x}_proj" for x in ("q", "k", "v", "out"))
        yield from norm(f"{path}/attention_norm", f"{name}.layer_norm1")
        yield from attention(f"{path}/attention", *layers, heads=heads)
        yield from norm(f"{path}/mlp_norm", f"{name}.layer_norm2")
        yield from mlp(f"{path}/mlp", f"{name}.mlp.fc1", f"{name}.mlp.fc2")
