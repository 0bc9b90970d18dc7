"""What layouts of several families share: shapes of layers, and files about images and texts."""

from collections.abc import Iterable, Mapping
from typing import Any

from mmrl.exports.families.base import Options, Shapes
from mmrl.models.convert.images import ACTIVATIONS
from mmrl.types import InputError

# Our names -> those of transformers; the first of several that mean the same.
_THEIRS = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}


def linear(name: str, out: int, into: int, *, bias: bool = True) -> Shapes:
    """A linear layer."""
    return {f"{name}.weight": (out, into), **({f"{name}.bias": (out,)} if bias else {})}


def norm(name: str, width: int) -> Shapes:
    """A norm with scale and shift."""
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def joined(parts: Iterable[Shapes]) -> Shapes:
    """Several layers as one table."""
    return {name: shape for part in parts for name, shape in part.items()}


def encoder(width: int, hidden: int, depth: int, start: str, names: Mapping[str, str]) -> Shapes:
    """The blocks of a pre-norm or post-norm transformer with separate query, key and value.

    Args:
      start: of the names of a block, with {} for its number.
      names: q, k, v, out, one, two (the norms), wide, narrow -> name within a block.
    """
    of = {key: f"{start}.{name}" for key, name in names.items()}
    block = joined(
        (
            *(linear(of[key], width, width) for key in ("q", "k", "v", "out")),
            *(norm(of[key], width) for key in ("one", "two")),
            linear(of["wide"], hidden, width),
            linear(of["narrow"], width, hidden),
        )
    )
    return {name.format(i): shape for i in range(depth) for name, shape in block.items()}


POOLER = "pooler_output of transformers comes from a layer that this encoder does not have"

CLIP_BLOCK = {
    **{key: f"self_attn.{name}_proj" for key, name in zip("qkv", "qkv", strict=True)},
    "out": "self_attn.out_proj",
    "one": "layer_norm1",
    "two": "layer_norm2",
    "wide": "mlp.fc1",
    "narrow": "mlp.fc2",
}


def activation(options: Options) -> str:
    """The name that transformers has for the activation of the blocks."""
    return _THEIRS[options["block"]["activation"]]


def processor(options: Options, resize: str, kind: str) -> dict[str, Any]:
    """preprocessor_config.json of transformers.

    Args:
      options: of an image tower.
      resize: how images become square. Padding has no counterpart there, and images are stretched.
      kind: class of the processor.
    """
    size, channels = options["size"], options["channels"]
    sides = {"height": size, "width": size}
    crop = {"do_center_crop": True, "crop_size": sides, "size": {"shortest_edge": size}}
    return {
        "image_processor_type": kind,
        "do_resize": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "do_convert_rgb": channels == 3,
        "image_mean": options["pixel_mean"],
        "image_std": options["pixel_std"],
        "resample": 3,
        **(crop if resize == "crop" else {"do_center_crop": False, "size": sides}),
    }


def sizes(options: Options) -> dict[str, Any]:
    """The sizes of a transformer in config.json of transformers."""
    return {
        "hidden_size": options["width"],
        "intermediate_size": options["mlp_dim"],
        "num_hidden_layers": options["depth"],
        "num_attention_heads": options["num_heads"],
        "hidden_act": activation(options),
        "layer_norm_eps": options["block"]["epsilon"],
    }


def patches(options: Options) -> dict[str, Any]:
    """How an image becomes patches, in config.json of transformers."""
    return {
        "image_size": options["size"],
        "patch_size": options["patch_size"],
        "num_channels": options["channels"],
    }


def kernel(options: Options) -> tuple[int, ...]:
    """The shape of the kernel of the patches."""
    return (options["width"], options["channels"], options["patch_size"], options["patch_size"])


def places(options: Options) -> int:
    """How many patches an image has."""
    return (options["size"] // options["patch_size"]) ** 2


def only(towers: Mapping[str, Options], kind: str, module: str, library: str) -> Options:
    """The options of the one tower of a kind.

    Raises:
      InputError: other towers, or one of another module.
    """
    if set(towers) != {kind}:
        raise InputError(f"{library} has one {kind} tower here; given: {' and '.join(towers)}")
    if towers[kind]["name"] != module:
        raise InputError(f"{kind}.name is {towers[kind]['name']}; in {library} it is {module}")
    return towers[kind]


def width_of_head(options: Options, name: str, kind: str) -> int:
    """The features of a head of a kind; 0 where the tower has none."""
    head = options["heads"].get(name, {})
    stated = {key for key in head if key not in ("kind", "width")}
    return int(head["width"]) if head.get("kind") == kind and not stated else 0
