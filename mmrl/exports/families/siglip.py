"""SigLIP of transformers: the vision tower, the text tower, or both."""

from collections.abc import Mapping
from typing import Any

from mmrl.exports.families import clip, tables
from mmrl.exports.families.base import Layout, Options, Shapes

LIBRARY = "transformers"
_NAME = "SigLIP of transformers"


def layout(towers: Mapping[str, Options], resize: str) -> Layout:
    """See `base.Family`."""
    shapes: Shapes = {}
    configs: dict[str, dict[str, Any]] = {}
    files: dict[str, Any] = {}
    if "image" in towers:
        image = tables.only({"image": towers["image"]}, "image", "vit", _NAME)
        configs["vision"], more = _vision(image)
        shapes |= more
        files["preprocessor_config.json"] = tables.processor(image, resize, "SiglipImageProcessor")
    if "text" in towers:
        text = tables.only({"text": towers["text"]}, "text", "transformer", _NAME)
        configs["text"], more = _text(text)
        shapes |= more
    if len(configs) == 2:
        shapes |= {"logit_scale": (1,), "logit_bias": (1,)}
        config: dict[str, Any] = {
            "model_type": "siglip",
            "architectures": ["SiglipModel"],
            "vision_config": configs["vision"],
            "text_config": configs["text"],
        }
    else:
        ((kind, config),) = configs.items()
        config["architectures"] = [f"Siglip{kind.capitalize()}Model"]
    return Layout({"config.json": config, **files}, shapes)


def _vision(options: Options) -> tuple[dict[str, Any], Shapes]:
    width, hidden, start = options["width"], options["mlp_dim"], "vision_model"
    head = f"{start}.head"
    shapes = {
        f"{start}.embeddings.patch_embedding.weight": tables.kernel(options),
        f"{start}.embeddings.patch_embedding.bias": (width,),
        f"{start}.embeddings.position_embedding.weight": (tables.places(options), width),
        **clip.blocks(options, start),
        **tables.norm(f"{start}.post_layernorm", width),
        f"{head}.probe": (1, 1, width),
        f"{head}.attention.in_proj_weight": (3 * width, width),
        f"{head}.attention.in_proj_bias": (3 * width,),
        **tables.linear(f"{head}.attention.out_proj", width, width),
        **tables.norm(f"{head}.layernorm", width),
        **tables.linear(f"{head}.mlp.fc1", hidden, width),
        **tables.linear(f"{head}.mlp.fc2", width, hidden),
    }
    config = {
        "model_type": "siglip_vision_model",
        **tables.sizes(options),
        **tables.patches(options),
        "vision_use_head": True,
    }
    return config, shapes


def _text(options: Options) -> tuple[dict[str, Any], Shapes]:
    width, start = options["width"], "text_model"
    projection = tables.width_of_head(options, "embedding", "affine") or width
    shapes = {
        **clip.text_embeddings(options),
        **clip.blocks(options, start),
        **tables.norm(f"{start}.final_layer_norm", width),
        **tables.linear(f"{start}.head", projection, width),
    }
    config = {
        "model_type": "siglip_text_model",
        **tables.sizes(options),
        **clip.text_sizes(options),
        "projection_size": projection,
    }
    return config, shapes
