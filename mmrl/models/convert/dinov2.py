"""DINOv2 of transformers (Oquab et al. 2023), with and without registers (Darcet et al. 2024)."""

from mmrl.models.convert import images
from mmrl.models.convert.base import Conversion
from mmrl.models.convert.entries import (
    Entries,
    attention,
    block_path,
    class_positions,
    linear,
    mlp,
    norm,
    patches,
    same,
    split_layers,
)
from mmrl.models.convert.source import Source

_ENCODER = "towers/image/encoder"
_TYPES = ("dinov2", "dinov2_with_registers")
_IGNORED = {
    r".*embeddings\.mask_token": "the token of masked patches",
    r"classifier\..*": "the classifier of its labels",
}


def recognises(source: Source) -> bool:
    """Whether the config is that of DINOv2."""
    return source.config.get("model_type") in _TYPES


def convert(source: Source) -> Conversion:
    """Sizes come from the tensors; heads, epsilon and activation from config.json."""
    config = source.config
    start = next((f"{x}." for x in _TYPES if source.starts(f"{x}.")), "")
    heads, epsilon, act = images.stated(
        source, config, "num_attention_heads", "layer_norm_eps", "hidden_act"
    )
    embeddings, layers = f"{start}embeddings", f"{start}encoder.layer"
    projection = f"{embeddings}.patch_embeddings.projection"
    width, channels, patch_size = images.patch_shape(source, f"{projection}.weight")
    positions = source.shape(f"{embeddings}.position_embeddings")[1] - 1
    depth = images.depth(source, f"{layers}.{{}}.")
    registers = f"{embeddings}.register_tokens"
    count = source.shape(registers)[1] if source.has(registers) else 0
    gated = bool(config.get("use_swiglu_ffn", False))
    if gated:
        hidden = source.shape(f"{layers}.0.mlp.weights_out.weight")[1]
    else:
        hidden = source.shape(f"{layers}.0.mlp.fc1.weight")[0]
    bias = config.get("qkv_bias", True)
    block = {
        "epsilon": epsilon,
        "activation": "silu" if gated else images.activation(source, act),
        "layer_scale": float(config.get("layerscale_value", 1.0)),
        **({"gated": True} if gated else {}),
        **({} if bias else {"qkv_bias": False}),
    }
    options, notes = images.tower(
        source,
        prepared := images.preparation(source, images.IMAGENET_MEAN, images.IMAGENET_STD, "crop"),
        size=images.square(source, positions, patch_size),
        channels=channels,
        heads=images.plain_heads(width),
        name="vit",
        patch_size=patch_size,
        width=width,
        depth=depth,
        num_heads=heads,
        mlp_dim=hidden,
        pool="cls",
        block=block,
        **({"registers": count} if count else {}),
    )
    entries = [
        *patches(f"{_ENCODER}/patch", projection),
        *class_positions(_ENCODER, f"{embeddings}.cls_token", f"{embeddings}.position_embeddings"),
        *norm(f"{_ENCODER}/norm", f"{start}layernorm"),
    ]
    if count:
        entries.append(same(f"{_ENCODER}/registers", registers, (count, width)))
    for index in range(depth):
        path = f"{_ENCODER}/{block_path(index)}"
        entries += _block(path, f"{layers}.{index}", heads, bias, gated)
    return Conversion(
        {"image": options},
        tuple(entries),
        _IGNORED,
        prepared.resize,
        notes,
        # Its positions are interpolated without antialiasing, those beside registers with it.
        antialias=config["model_type"] == "dinov2_with_registers",
    )


def _block(target: str, source: str, heads: int, bias: bool, gated: bool) -> Entries:
    own = f"{source}.attention"
    query, key, value = (f"{own}.attention.{name}" for name in ("query", "key", "value"))
    yield from norm(f"{target}/attention_norm", f"{source}.norm1")
    yield from attention(
        f"{target}/attention", query, key, value, f"{own}.output.dense", heads=heads, bias=bias
    )
    yield same(f"{target}/attention_scale", f"{source}.layer_scale1.lambda1")
    yield from norm(f"{target}/mlp_norm", f"{source}.norm2")
    if gated:
        # The first half of the fused layer goes through the activation.
        both, own = (f"{target}/mlp/gate", f"{target}/mlp/wide"), f"{source}.mlp.weights_in"
        yield from split_layers(both, f"{own}.weight", f"{own}.bias")
        yield from linear(f"{target}/mlp/out", f"{source}.mlp.weights_out")
    else:
        yield from mlp(f"{target}/mlp", f"{source}.mlp.fc1", f"{source}.mlp.fc2")
    yield same(f"{target}/mlp_scale", f"{source}.layer_scale2.lambda1")
