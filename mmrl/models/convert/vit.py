"""Vision transformers of transformers: ViTModel, ViTForImageClassification (Dosovitskiy 2021)."""

from mmrl.models.convert import images
from mmrl.models.convert.base import Conversion
from mmrl.models.convert.entries import (
    Entries,
    attention,
    block_path,
    class_positions,
    mlp,
    norm,
    patches,
)
from mmrl.models.convert.source import Source

_ENCODER = "towers/image/encoder"
_IGNORED = {
    r"(vit\.)?pooler\..*": "a layer of its pretraining; the pooled feature is the class token",
    r"classifier\..*|(cls|distillation)_classifier\..*": "the classifier of its labels",
    r"(vit\.)?embeddings\.mask_token": "the token of masked patches",
    r"decoder\..*": "the decoder of masked patches",
}


def recognises(source: Source) -> bool:
    """Whether the config is that of a ViT."""
    return source.config.get("model_type") == "vit"


def convert(source: Source) -> Conversion:
    """Sizes come from the tensors; heads, epsilon and activation from config.json."""
    start = "vit." if source.starts("vit.") else ""
    config = source.config
    heads, epsilon, act = images.stated(
        source, config, "num_attention_heads", "layer_norm_eps", "hidden_act"
    )
    embeddings = f"{start}embeddings"
    projection = f"{embeddings}.patch_embeddings.projection"
    width, channels, patch_size = images.patch_shape(source, f"{projection}.weight")
    positions = source.shape(f"{embeddings}.position_embeddings")[1] - 1
    layers = f"{start}encoder.layer"
    depth = images.depth(source, f"{layers}.{{}}.")
    bias = config.get("qkv_bias", True)
    options, notes = images.tower(
        source,
        prepared := images.preparation(source, images.HALF, images.HALF),
        size=images.square(source, positions, patch_size),
        channels=channels,
        heads=images.plain_heads(width),
        name="vit",
        patch_size=patch_size,
        width=width,
        depth=depth,
        num_heads=heads,
        mlp_dim=source.shape(f"{layers}.0.intermediate.dense.weight")[0],
        pool="cls",
        block={
            "epsilon": epsilon,
            "activation": images.activation(source, act),
            **({} if bias else {"qkv_bias": False}),
        },
    )
    entries = (
        *patches(f"{_ENCODER}/patch", projection),
        *class_positions(_ENCODER, f"{embeddings}.cls_token", f"{embeddings}.position_embeddings"),
        *(
            entry
            for index in range(depth)
            for entry in _block(f"{_ENCODER}/{block_path(index)}", f"{layers}.{index}", heads, bias)
        ),
        *norm(f"{_ENCODER}/norm", f"{start}layernorm"),
    )
    return Conversion(
        {"image": options}, entries, _IGNORED, prepared.resize, notes, antialias=False
    )


def _block(target: str, source: str, heads: int, bias: bool) -> Entries:
    own = f"{source}.attention"
    query, key, value = (f"{own}.attention.{name}" for name in ("query", "key", "value"))
    yield from norm(f"{target}/attention_norm", f"{source}.layernorm_before")
    yield from attention(
        f"{target}/attention", query, key, value, f"{own}.output.dense", heads=heads, bias=bias
    )
    yield from norm(f"{target}/mlp_norm", f"{source}.layernorm_after")
    yield from mlp(f"{target}/mlp", f"{source}.intermediate.dense", f"{source}.output.dense")
