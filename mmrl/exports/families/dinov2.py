"""DINOv2 of transformers, with and without registers."""

from collections.abc import Mapping

from mmrl.exports.families import tables, vit
from mmrl.exports.families.base import Layout, Options, Shapes
from mmrl.types import InputError

LIBRARY = "transformers"
_NAMES = {"one": "norm1", "two": "norm2", "wide": "mlp.fc1", "narrow": "mlp.fc2"}


def layout(towers: Mapping[str, Options], resize: str) -> Layout:
    """See `base.Family`; MLPs are gated where those of the tower are.

    Raises:
      InputError: also hidden features that do not follow from a whole ratio.
    """
    options = tables.only(towers, "image", "vit", "DINOv2 of transformers")
    width, hidden, depth = options["width"], options["mlp_dim"], options["depth"]
    registers, block = options["registers"], options["block"]
    config = {
        "model_type": "dinov2_with_registers" if registers else "dinov2",
        "architectures": ["Dinov2WithRegistersModel" if registers else "Dinov2Model"],
        **tables.sizes(options),
        **tables.patches(options),
        "mlp_ratio": _ratio(width, hidden, block["gated"]),
        "qkv_bias": block["qkv_bias"],
        "layerscale_value": 1.0,
        "use_swiglu_ffn": block["gated"],
        **({"num_register_tokens": registers} if registers else {"use_mask_token": True}),
    }
    del config["intermediate_size"]
    if block["gated"]:
        config["hidden_act"] = "gelu"  # not used there
    shapes = {
        **vit.embeddings(options),
        "embeddings.mask_token": (1, width),
        **tables.encoder(width, hidden, depth, "encoder.layer.{}", {**vit.BLOCK, **_NAMES}),
        **tables.norm("layernorm", width),
    }
    if registers:
        shapes["embeddings.register_tokens"] = (1, registers, width)
    if not block["qkv_bias"]:
        shapes = vit.without_qkv_bias(shapes)
    for index in range(depth):
        shapes |= _more(f"encoder.layer.{index}", width)
        if block["gated"]:
            shapes = _gated(shapes, f"encoder.layer.{index}.mlp", width, hidden)
    processor = tables.processor(options, resize, "BitImageProcessor")
    return Layout({"config.json": config, "preprocessor_config.json": processor}, shapes)


def _more(start: str, width: int) -> Shapes:
    return {f"{start}.layer_scale{part}.lambda1": (width,) for part in (1, 2)}


def _gated(shapes: Shapes, start: str, width: int, hidden: int) -> Shapes:
    kept = {name: shape for name, shape in shapes.items() if not name.startswith(f"{start}.")}
    both = tables.linear(f"{start}.weights_in", 2 * hidden, width)
    return {**kept, **both, **tables.linear(f"{start}.weights_out", width, hidden)}


def _ratio(width: int, hidden: int, gated: bool) -> int:
    """Hidden features over width; of gated MLPs the library takes two thirds, to a multiple of 8.

    Raises:
      InputError: no whole number gives these hidden features.
    """
    for ratio in range(1, 65):
        made = ratio * width
        if gated:
            made = (int(made * 2 / 3) + 7) // 8 * 8
        if made == hidden:
            return ratio
    raise InputError(
        f"image.mlp_dim is {hidden}; in DINOv2 of transformers it is a whole multiple of the width "
        f"{width}, or two thirds of it where MLPs are gated"
    )
