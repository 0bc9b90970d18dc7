"""Vision transformers of timm, with a class token, the mean or attention over patches."""

from collections.abc import Mapping
from typing import Any

from mmrl.exports.families import tables
from mmrl.exports.families.base import Layout, Options, Shapes

LIBRARY = "timm"
CROP_MODES = {"crop": "center", "stretch": "squash", "pad": "border"}
_POOLS = {"cls": "token", "mean": "avg", "attention": "map"}
_ACTIVATIONS = {"gelu_tanh": "gelu_tanh", "quick_gelu": "quick_gelu", "silu": "silu"}


def layout(towers: Mapping[str, Options], resize: str) -> Layout:
    """See `base.Family`; positions belong to patches alone (no_embed_class) beside registers."""
    options = tables.only(towers, "image", "vit", "timm")
    width, hidden, depth = options["width"], options["mlp_dim"], options["depth"]
    registers, pool, block = options["registers"], options["pool"]["name"], options["block"]
    token, pre_norm = pool == "cls", options["embedding_norm"]
    before = int(token) if not registers else 0
    shapes: Shapes = {
        "patch_embed.proj.weight": tables.kernel(options),
        "pos_embed": (1, tables.places(options) + before, width),
        **({"cls_token": (1, 1, width)} if token else {}),
        **({"reg_token": (1, registers, width)} if registers else {}),
        **(tables.norm("norm_pre", width) if pre_norm else {"patch_embed.proj.bias": (width,)}),
        **tables.norm("norm", width),
    }
    for index in range(depth):
        shapes |= _block(f"blocks.{index}", width, hidden, block["layer_scale"])
    if pool == "attention":
        shapes |= _attention(width, options["pool"]["mlp_dim"])
    return Layout(
        {"config.json": {
            "architecture": "vit_tiny_patch16_224",  # all of its sizes are given
            "num_classes": 0,
            "num_features": width,
            "global_pool": _POOLS.get(pool, ""),
            "model_args": _arguments(options, token),
            "pretrained_cfg": prepared(options, resize),
        }},
        shapes,
        pools=pool in _POOLS,
    )  # fmt: skip


def _arguments(options: Options, token: bool) -> dict[str, Any]:
    """Arguments of the constructor in timm."""
    block, pool = options["block"], options["pool"]["name"]
    activation = _ACTIVATIONS.get(block["activation"])
    return {
        "img_size": options["size"],
        "patch_size": options["patch_size"],
        "in_chans": options["channels"],
        "embed_dim": options["width"],
        "depth": options["depth"],
        "num_heads": options["num_heads"],
        "mlp_ratio": options["mlp_dim"] / options["width"],
        "class_token": token,
        "global_pool": _POOLS.get(pool, ""),
        "fc_norm": False,
        "num_classes": 0,
        **({"init_values": 1.0} if block["layer_scale"] else {}),
        **({"pre_norm": True} if options["embedding_norm"] else {}),
        **({"reg_tokens": options["registers"]} if options["registers"] else {}),
        **({"no_embed_class": True} if options["registers"] else {}),
        **({"act_layer": activation} if activation else {}),
    }


def prepared(options: Options, resize: str) -> dict[str, Any]:
    """How images are prepared, the `pretrained_cfg` of timm."""
    size = options["size"]
    return {
        "input_size": [options["channels"], size, size],
        "mean": options["pixel_mean"],
        "std": options["pixel_std"],
        "crop_pct": 1.0,
        "crop_mode": CROP_MODES[resize],
        "interpolation": "bicubic",
        "num_classes": 0,
    }


def _block(start: str, width: int, hidden: int, scaled: bool) -> Shapes:
    scales = {f"{start}.ls{part}.gamma": (width,) for part in (1, 2)}
    return {
        **tables.norm(f"{start}.norm1", width),
        **tables.linear(f"{start}.attn.qkv", 3 * width, width),
        **tables.linear(f"{start}.attn.proj", width, width),
        **tables.norm(f"{start}.norm2", width),
        **tables.linear(f"{start}.mlp.fc1", hidden, width),
        **tables.linear(f"{start}.mlp.fc2", width, hidden),
        **(scales if scaled else {}),
    }


def _attention(width: int, hidden: int) -> Shapes:
    return {
        "attn_pool.latent": (1, 1, width),
        **tables.linear("attn_pool.q", width, width),
        **tables.linear("attn_pool.kv", 2 * width, width),
        **tables.linear("attn_pool.proj", width, width),
        **tables.norm("attn_pool.norm", width),
        **tables.linear("attn_pool.mlp.fc1", hidden, width),
        **tables.linear("attn_pool.mlp.fc2", width, hidden),
    }
