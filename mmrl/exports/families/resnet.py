"""Residual networks of timm, under the names of torchvision."""

from collections.abc import Mapping

import numpy as np

from mmrl.exports.families import tables, timm_vit
from mmrl.exports.families.base import Layout, Options, Shapes
from mmrl.models.image.resnet import DEPTHS
from mmrl.types import InputError

LIBRARY = "timm"


def layout(towers: Mapping[str, Options], resize: str) -> Layout:
    """See `base.Family`."""
    options = tables.only(towers, "image", "resnet", "timm")
    width, (counts, thin) = options["width"], DEPTHS[options["depth"]]
    if width != _WIDTH:
        raise InputError(f"image.width is {width}; in timm it is {_WIDTH}")
    grown = 4 if thin else 1
    shapes = _normed("conv1", "bn1", width, options["channels"], 7)
    into = width
    for stage, count in enumerate(counts, start=1):
        inner = width * 2 ** (stage - 1)
        out = inner * grown
        for index in range(count):
            shapes |= _block(f"layer{stage}.{index}", into, inner, out, thin, stage, index)
            into = out
    counted = {name: shape for name, shape in shapes.items() if name.endswith(_COUNT)}
    config = {
        "architecture": f"resnet{options['depth']}",
        "num_classes": 0,
        "num_features": into,
        "global_pool": "avg",
        "model_args": {
            "in_chans": options["channels"],
            "num_classes": 0,
        },
        "pretrained_cfg": timm_vit.prepared(options, resize),
    }
    zero = {name: np.zeros((), np.int64) for name in counted}
    return Layout({"config.json": config}, shapes, constants=zero)


_WIDTH = 64
_COUNT = ".num_batches_tracked"


def _normed(convolution: str, norm: str, out: int, into: int, side: int) -> Shapes:
    return {
        f"{convolution}.weight": (out, into, side, side),
        **tables.norm(norm, out),
        f"{norm}.running_mean": (out,),
        f"{norm}.running_var": (out,),
        f"{norm}{_COUNT}": (),
    }


def _block(
    start: str, into: int, inner: int, out: int, thin: bool, stage: int, index: int
) -> Shapes:
    sides = ((inner, into, 1), (inner, inner, 3), (out, inner, 1)) if thin else (
        (inner, into, 3), (out, inner, 3)
    )  # fmt: skip
    shapes: Shapes = {}
    for part, (made, given, side) in enumerate(sides, start=1):
        shapes |= _normed(f"{start}.conv{part}", f"{start}.bn{part}", made, given, side)
    if index == 0 and (stage > 1 or into != out):
        shapes |= _normed(f"{start}.downsample.0", f"{start}.downsample.1", out, into, 1)
    return shapes
