"""CLIP of transformers: the vision tower, the text tower, or both."""

from collections.abc import Mapping
from typing import Any

from mmrl.exports.families import tables
from mmrl.exports.families.base import Layout, Options, Shapes
from mmrl.types import InputError

LIBRARY = "transformers"


def layout(towers: Mapping[str, Options], resize: str) -> Layout:
    """See `base.Family`; a head that is one linear layer without bias is the projection."""
    shapes: Shapes = {}
    configs: dict[str, dict[str, Any]] = {}
    files: dict[str, Any] = {}
    if "image" in towers:
        image = tables.only({"image": towers["image"]}, "image", "vit", "CLIP of transformers")
        configs["vision"], more = _vision(image)
        shapes |= more
        files["preprocessor_config.json"] = tables.processor(image, resize, "CLIPImageProcessor")
    if "text" in towers:
        text = tables.only({"text": towers["text"]}, "text", "transformer", "CLIP of transformers")
        configs["text"], more = _text(text)
        shapes |= more
    if len(configs) == 2:
        widths = [one["projection_dim"] for one in configs.values()]
        if widths[0] != widths[1] or not widths[0]:
            raise InputError(
                "heads.embedding of both towers; in CLIP of transformers they are linear and of "
                "one width"
            )
        shapes["logit_scale"] = ()
        config: dict[str, Any] = {
            "model_type": "clip",
            "architectures": ["CLIPModel"],
            "projection_dim": configs["vision"]["projection_dim"],
            "vision_config": configs["vision"],
            "text_config": configs["text"],
        }
    else:
        ((kind, config),) = configs.items()
        projected = "WithProjection" if config["projection_dim"] else ""
        config["architectures"] = [f"CLIP{kind.capitalize()}Model{projected}"]
    return Layout({"config.json": config, **files}, shapes)


def _vision(options: Options) -> tuple[dict[str, Any], Shapes]:
    width, start = options["width"], "vision_model"
    projection = tables.width_of_head(options, "embedding", "linear")
    shapes = {
        f"{start}.embeddings.class_embedding": (width,),
        f"{start}.embeddings.patch_embedding.weight": tables.kernel(options),
        f"{start}.embeddings.position_embedding.weight": (tables.places(options) + 1, width),
        **tables.norm(f"{start}.pre_layrnorm", width),
        **blocks(options, start),
        **tables.norm(f"{start}.post_layernorm", width),
    }
    if projection:
        shapes["visual_projection.weight"] = (projection, width)
    config = {
        "model_type": "clip_vision_model",
        **tables.sizes(options),
        **tables.patches(options),
        "projection_dim": projection,
    }
    return config, shapes


def _text(options: Options) -> tuple[dict[str, Any], Shapes]:
    width, start = options["width"], "text_model"
    projection = tables.width_of_head(options, "embedding", "linear")
    shapes = {
        **text_embeddings(options),
        **blocks(options, start),
        **tables.norm(f"{start}.final_layer_norm", width),
    }
    if projection:
        shapes["text_projection.weight"] = (projection, width)
    config = {
        "model_type": "clip_text_model",
        **tables.sizes(options),
        **text_sizes(options),
        "projection_dim": projection,
    }
    return config, shapes


def text_embeddings(options: Options) -> Shapes:
    """The tables of tokens and positions of a text tower of CLIP or SigLIP."""
    width, start = options["width"], "text_model.embeddings"
    return {
        f"{start}.token_embedding.weight": (options["vocab_size"], width),
        f"{start}.position_embedding.weight": (options["length"], width),
    }


def text_sizes(options: Options) -> dict[str, Any]:
    """The sizes of these tables in config.json."""
    return {
        "vocab_size": options["vocab_size"],
        "max_position_embeddings": options["length"],
        **options.get("marks", {}),
    }


def blocks(options: Options, start: str) -> Shapes:
    """The blocks of a tower of CLIP or SigLIP."""
    return tables.encoder(
        options["width"],
        options["mlp_dim"],
        options["depth"],
        f"{start}.encoder.layers.{{}}",
        tables.CLIP_BLOCK,
    )
