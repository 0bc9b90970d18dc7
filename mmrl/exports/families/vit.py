"""Vision transformers of transformers: ViTModel."""

from collections.abc import Mapping

from mmrl.exports.families import tables
from mmrl.exports.families.base import Layout, Options, Shapes

LIBRARY = "transformers"
BLOCK = {
    "q": "attention.attention.query",
    "k": "attention.attention.key",
    "v": "attention.attention.value",
    "out": "attention.output.dense",
    "one": "layernorm_before",
    "two": "layernorm_after",
    "wide": "intermediate.dense",
    "narrow": "output.dense",
}


def layout(towers: Mapping[str, Options], resize: str) -> Layout:
    """See `base.Family`."""
    options = tables.only(towers, "image", "vit", "ViT of transformers")
    width = options["width"]
    config = {
        "model_type": "vit",
        "architectures": ["ViTModel"],
        **tables.sizes(options),
        **tables.patches(options),
        "qkv_bias": options["block"]["qkv_bias"],
    }
    shapes = {
        **embeddings(options),
        **tables.encoder(width, options["mlp_dim"], options["depth"], "encoder.layer.{}", BLOCK),
        **tables.norm("layernorm", width),
    }
    if not config["qkv_bias"]:
        shapes = without_qkv_bias(shapes)
    processor = tables.processor(options, resize, "ViTImageProcessor")
    files = {"config.json": config, "preprocessor_config.json": processor}
    return Layout(files, shapes, notes=(tables.POOLER,))


def embeddings(options: Options) -> Shapes:
    """What comes before the blocks of a ViT or DINOv2."""
    width, start = options["width"], "embeddings"
    return {
        f"{start}.cls_token": (1, 1, width),
        f"{start}.position_embeddings": (1, tables.places(options) + 1, width),
        f"{start}.patch_embeddings.projection.weight": tables.kernel(options),
        f"{start}.patch_embeddings.projection.bias": (width,),
    }


def without_qkv_bias(shapes: Shapes) -> Shapes:
    """The same without the biases of query, key and value."""
    ends = tuple(f"{BLOCK[key]}.bias" for key in "qkv")
    return {name: shape for name, shape in shapes.items() if not name.endswith(ends)}
