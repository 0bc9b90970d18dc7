"""Decoders of transformers: LlamaModel, and Qwen2Model where only its attention has biases."""

from collections.abc import Mapping
from typing import Any

from mmrl.exports.families import tables
from mmrl.exports.families.base import Layout, Options, Shapes

LIBRARY = "transformers"


def layout(towers: Mapping[str, Options], resize: str) -> Layout:
    """See `base.Family`."""
    del resize
    options = tables.only(towers, "text", "transformer", "Llama of transformers")
    width, block, depth = options["width"], options["block"], options["depth"]
    qwen = block["qkv_bias"] and not block["out_bias"]
    sizes = tables.sizes(options)
    sizes["rms_norm_eps"] = sizes.pop("layer_norm_eps")
    config = {
        "model_type": "qwen2" if qwen else "llama",
        "architectures": ["Qwen2Model" if qwen else "LlamaModel"],
        **sizes,
        "num_key_value_heads": block["kv_heads"],
        "head_dim": block["head_dim"],
        "vocab_size": options["vocab_size"],
        "max_position_embeddings": options["length"],
        "rope_parameters": _rope(block),
        "is_causal": options["causal"],
        "use_cache": False,
        **options.get("marks", {}),
        **({} if qwen else {"attention_bias": block["qkv_bias"], "mlp_bias": block["mlp_bias"]}),
        **({"use_sliding_window": False} if qwen else {}),
    }
    shapes: Shapes = {
        "embed_tokens.weight": (options["vocab_size"], width),
        "norm.weight": (width,),
    }
    for index in range(depth):
        shapes |= _block(f"layers.{index}", options)
    return Layout({"config.json": config}, shapes)


def _rope(block: Mapping[str, Any]) -> dict[str, Any]:
    scaling = block["rope_scaling"]
    if not scaling:
        return {"rope_theta": block["rope_theta"], "rope_type": "default"}
    kept = {k: v for k, v in scaling.items() if k != "original_max_position"}
    return {
        "rope_theta": block["rope_theta"],
        "rope_type": "llama3",
        **kept,
        "original_max_position_embeddings": int(scaling["original_max_position"]),
    }


def _block(start: str, options: Options) -> Shapes:
    width, hidden, block = options["width"], options["mlp_dim"], options["block"]
    query, others = (block["head_dim"] * n for n in (options["num_heads"], block["kv_heads"]))
    sizes = {"q": query, "k": others, "v": others}
    mlp = block["mlp_bias"]
    return {
        **tables.joined(
            tables.linear(f"{start}.self_attn.{key}_proj", out, width, bias=block["qkv_bias"])
            for key, out in sizes.items()
        ),
        **tables.linear(f"{start}.self_attn.o_proj", width, query, bias=block["out_bias"]),
        **tables.linear(f"{start}.mlp.up_proj", hidden, width, bias=mlp),
        **tables.linear(f"{start}.mlp.gate_proj", hidden, width, bias=mlp),
        **tables.linear(f"{start}.mlp.down_proj", width, hidden, bias=mlp),
        f"{start}.input_layernorm.weight": (width,),
        f"{start}.post_attention_layernorm.weight": (width,),
    }
