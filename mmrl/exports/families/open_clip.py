"""Pairs of open_clip in OpenAI's layout."""

from collections.abc import Mapping
from typing import Any

from mmrl.exports.families import tables
from mmrl.exports.families.base import Layout, Options, Shapes
from mmrl.types import InputError

LIBRARY = "open_clip"
_RESIZE = {"crop": "shortest", "pad": "longest", "stretch": "squash"}


def layout(towers: Mapping[str, Options], resize: str) -> Layout:
    """See `base.Family`; both heads are one linear layer without bias.

    Raises:
      InputError: also one tower alone, or heads of another kind.
    """
    if set(towers) != {"image", "text"}:
        raise InputError(f"open_clip has pairs; given: {' and '.join(towers)}")
    image = tables.only({"image": towers["image"]}, "image", "vit", LIBRARY)
    text = tables.only({"text": towers["text"]}, "text", "transformer", LIBRARY)
    joint = {tables.width_of_head(one, "embedding", "linear") for one in (image, text)}
    if len(joint) != 1 or joint == {0}:
        raise InputError(
            "heads.embedding of both towers; in open_clip they are linear and of one width"
        )
    (width,) = joint
    quick = {one["block"]["activation"] == "quick_gelu" for one in (image, text)}
    model = {
        "embed_dim": width,
        "quick_gelu": quick == {True},
        "vision_cfg": {
            **_sizes(image),
            "image_size": image["size"],
            "patch_size": image["patch_size"],
            "head_width": image["width"] // image["num_heads"],
        },
        "text_cfg": {
            **_sizes(text),
            "heads": text["num_heads"],
            "context_length": text["length"],
            "vocab_size": text["vocab_size"],
        },
    }
    shapes: Shapes = {
        "logit_scale": (),
        "visual.class_embedding": (image["width"],),
        "visual.conv1.weight": tables.kernel(image),
        "visual.positional_embedding": (tables.places(image) + 1, image["width"]),
        **tables.norm("visual.ln_pre", image["width"]),
        **tables.norm("visual.ln_post", image["width"]),
        "visual.proj": (image["width"], width),
        "token_embedding.weight": (text["vocab_size"], text["width"]),
        "positional_embedding": (text["length"], text["width"]),
        **tables.norm("ln_final", text["width"]),
        "text_projection": (text["width"], width),
        **_blocks(image, "visual.transformer.resblocks"),
        **_blocks(text, "transformer.resblocks"),
    }
    preprocess = {
        "size": image["size"],
        "mean": image["pixel_mean"],
        "std": image["pixel_std"],
        "interpolation": "bicubic",
        "resize_mode": _RESIZE[resize],
    }
    files = {"open_clip_config.json": {"model_cfg": model, "preprocess_cfg": preprocess}}
    return Layout(files, shapes, weights="open_clip_model.safetensors")


def _sizes(options: Options) -> dict[str, Any]:
    return {
        "layers": options["depth"],
        "width": options["width"],
        "mlp_ratio": options["mlp_dim"] / options["width"],
    }


def _blocks(options: Options, start: str) -> Shapes:
    width, hidden = options["width"], options["mlp_dim"]
    return tables.joined(
        {
            **tables.norm(f"{start}.{index}.ln_1", width),
            f"{start}.{index}.attn.in_proj_weight": (3 * width, width),
            f"{start}.{index}.attn.in_proj_bias": (3 * width,),
            **tables.linear(f"{start}.{index}.attn.out_proj", width, width),
            **tables.norm(f"{start}.{index}.ln_2", width),
            **tables.linear(f"{start}.{index}.mlp.c_fc", hidden, width),
            **tables.linear(f"{start}.{index}.mlp.c_proj", width, hidden),
        }
        for index in range(options["depth"])
    )
