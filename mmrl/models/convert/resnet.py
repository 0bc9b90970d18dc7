"""Residual networks of torchvision and timm, also inside GLoRIA, BioViL and MGCA (He et al. 2016).

GLoRIA (Huang et al. 2021), BioViL (Boecking et al. 2022) and MGCA (Wang et al. 2022) put a network
of torchvision under a prefix and heads beside it. Batch norm inside a head is folded into its
linear layers. Their text encoders are files of their own, or are left out.
"""

from typing import Any, NamedTuple

import numpy as np

from mmrl.models.convert import images
from mmrl.models.convert.base import Conversion
from mmrl.models.convert.entries import (
    Entries,
    Entry,
    batch_norm,
    convolution,
    linear,
)
from mmrl.models.convert.source import Source
from mmrl.models.image.resnet import DEPTHS
from mmrl.types import InputError

_ENCODER, _HEADS = "towers/image/encoder", "towers/image/heads"
_EPSILON = 1e-5  # of batch norm
_STAGES = (1, 2, 3, 4)


class _System(NamedTuple):
    """Where a system keeps its network, and how it prepares images.

    Attributes:
      start: of the names of the network.
      size: side of its images in pixels; 224 is that of ImageNet.
      region_stage: whose places its local head reads.
      mean, std: of each channel.
      ignored: pattern of names -> why they are not used.
    """

    start: str
    size: int
    region_stage: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    ignored: dict[str, str]


_TEXT = "the text encoder; only the image encoder is converted"
_SYSTEMS = {
    # Both scale their images of 224 pixels to 299 inside the encoder.
    "gloria": _System(
        "gloria.img_encoder.model.", 299, 3, images.HALF, images.HALF,
        {r"gloria\.text_encoder\..*": _TEXT},
    ),
    "mgca": _System(
        "img_encoder_q.model.", 299, 3, images.HALF, images.HALF,
        {r"text_encoder_q\..*": _TEXT, r"prototype_layer\..*": "prototypes of its loss"},
    ),
    # 512 pixels are scaled to, 480 are cut; pixels stay between 0 and 1.
    "biovil": _System("encoder.encoder.", 480, 4, (0.0,) * 3, (1.0,) * 3, {}),
    "plain": _System("", 224, 4, images.IMAGENET_MEAN, images.IMAGENET_STD, {}),
}  # fmt: skip


def recognises(source: Source) -> bool:
    """Whether tensors have the names of a ResNet of torchvision, under a known prefix or none."""
    return any(_has(source, system) for system in _SYSTEMS.values())


def _has(source: Source, system: _System) -> bool:
    return source.has(f"{system.start}conv1.weight", f"{system.start}layer4.0.conv1.weight")


def convert(source: Source) -> Conversion:
    """Sizes come from the tensors, those of images from the files beside them or the system.

    Raises:
      InputError: blocks of no known depth, or a head of another form.
    """
    name, system = next((n, s) for n, s in _SYSTEMS.items() if _has(source, s))
    start = system.start
    prepared = images.preparation(source, system.mean, system.std, "crop")
    if prepared.size is None:
        prepared = prepared._replace(
            notes=(*prepared.notes, f"the library trains it on images of {system.size} pixels")
        )
    depth, blocks = _depth(source, start)
    width, channels = source.shape(f"{start}conv1.weight")[:2]
    entries: list[Entry] = [
        *convolution(f"{_ENCODER}/stem", f"{start}conv1"),
        *batch_norm(f"{_ENCODER}/stem_norm", f"{start}bn1"),
    ]
    for stage in _STAGES:
        for index in range(blocks[stage - 1]):
            entries += _block(source, stage, index, start, DEPTHS[depth][1])
    heads, more = _HEAD_MAPS[name](source)
    entries += more
    stage = system.region_stage
    options, notes = images.tower(
        source,
        prepared,
        size=prepared.size or system.size,
        channels=channels,
        heads=heads or images.plain_heads(_width(source, start, 4), _width(source, start, stage)),
        name="resnet",
        depth=depth,
        width=width,
        region_stage=stage,
        pool="mean",
    )
    ignored = {
        r".*\.num_batches_tracked": "a count of steps",
        rf"{start.replace('.', chr(92) + '.')}fc\..*": "the classifier of its labels",
        r"classifier\..*": "the classifier of its labels",
        **system.ignored,
    }
    return Conversion({"image": options}, tuple(entries), ignored, prepared.resize, notes)


def _depth(source: Source, start: str) -> tuple[int, tuple[int, ...]]:
    """Depth and blocks of each stage."""
    blocks = tuple(images.depth(source, f"{start}layer{stage}.{{}}.") for stage in _STAGES)
    bottleneck = source.has(f"{start}layer1.0.conv3.weight")
    for depth, (known, thin) in DEPTHS.items():
        if (blocks, bottleneck) == (known, thin):
            return depth, blocks
    raise InputError(
        f"{source.path}: a ResNet of {blocks} {'bottlenecks' if bottleneck else 'blocks'}; "
        f"expected one of depth {', '.join(map(str, DEPTHS))}"
    )


def _width(source: Source, start: str, stage: int) -> int:
    """Channels of a stage."""
    last = 3 if source.has(f"{start}layer1.0.conv3.weight") else 2
    return source.shape(f"{start}layer{stage}.0.conv{last}.weight")[0]


def _block(source: Source, stage: int, index: int, start: str, bottleneck: bool) -> Entries:
    target = f"{_ENCODER}/stage_{stage}_block_{index:02d}"
    name = f"{start}layer{stage}.{index}"
    for part in range(3 if bottleneck else 2):
        yield from convolution(f"{target}/conv_{part}", f"{name}.conv{part + 1}")
        yield from batch_norm(f"{target}/norm_{part}", f"{name}.bn{part + 1}")
    if source.has(f"{name}.downsample.0.weight"):
        yield from convolution(f"{target}/shortcut", f"{name}.downsample.0")
        yield from batch_norm(f"{target}/shortcut_norm", f"{name}.downsample.1")


Heads = tuple[dict[str, Any], list[Entry]]


def _plain(source: Source) -> Heads:
    return {}, []


def _gloria(source: Source) -> Heads:
    start = "gloria.img_encoder."
    heads = {
        "embedding": {
            "width": source.shape(f"{start}global_embedder.weight")[0],
            "kind": "affine",
        },
        "regions": {"width": source.shape(f"{start}local_embedder.weight")[0]},
    }
    return heads, [
        *linear(f"{_HEADS}/embedding/out", f"{start}global_embedder"),
        *linear(f"{_HEADS}/regions/out", f"{start}local_embedder", bias=False),
    ]


def _biovil(source: Source) -> Heads:
    """One projector, of which the embedding is the mean over places."""
    name = "projector.model"
    mlp = _mlp(source, f"{name}.0", f"{name}.3")
    entries = [
        entry
        for head in ("embedding", "regions")
        for entry in _normed_mlp(source, f"{_HEADS}/{head}", f"{name}.0", f"{name}.1", f"{name}.3")
    ]
    return {"embedding": {**mlp, "of": "local"}, "regions": mlp}, entries


def _mgca(source: Source) -> Heads:
    heads: dict[str, Any] = {}
    entries: list[Entry] = []
    for head, name in (("embedding", "global_embed"), ("regions", "local_embed")):
        layers = [f"img_encoder_q.{name}.head.{index}" for index in (0, 1, 3, 4)]
        heads[head] = _mlp(source, layers[0], layers[2])
        entries += _normed_mlp(source, f"{_HEADS}/{head}", *layers)
    return heads, entries


_HEAD_MAPS = {"gloria": _gloria, "biovil": _biovil, "mgca": _mgca, "plain": _plain}


def _mlp(source: Source, wide: str, out: str) -> dict[str, Any]:
    return {
        "width": source.shape(f"{out}.weight")[0],
        "kind": "mlp",
        "hidden": source.shape(f"{wide}.weight")[0],
        "activation": "relu",
    }


def _normed_mlp(
    source: Source, target: str, wide: str, normed: str, out: str, last: str | None = None
) -> Entries:
    """Linear, batch norm, ReLU, linear, and with `last` batch norm without scale and shift."""
    yield from _folded(source, f"{target}/wide", wide, normed, scaled=True)
    if last is None:
        yield from linear(f"{target}/out", out)
    else:
        yield from _folded(source, f"{target}/out", out, last, scaled=False)


def _folded(source: Source, target: str, layer: str, normed: str, *, scaled: bool) -> Entries:
    """A linear layer and the batch norm after it, which is (x - mean) * factor + shift."""
    gain = (f"{normed}.weight",) if scaled else ()
    shift = (f"{normed}.bias",) if scaled else ()
    bias = (f"{layer}.bias",) if source.has(f"{layer}.bias") else ()

    def factor(variance: np.ndarray, *gains: np.ndarray) -> np.ndarray:
        return np.prod([1 / np.sqrt(variance + np.float32(_EPSILON)), *gains], axis=0)

    def kernel(weight: np.ndarray, *of_factor: np.ndarray) -> np.ndarray:
        return weight.reshape(weight.shape[:2]).T * factor(*of_factor)

    def constant(mean: np.ndarray, variance: np.ndarray, *others: np.ndarray) -> np.ndarray:
        rest = list(others)
        own = factor(variance, *([rest.pop(0)] if scaled else []))
        added = rest.pop(0) if scaled else np.zeros_like(mean)
        return ((rest[0] if bias else 0) - mean) * own + added

    statistics = (f"{normed}.running_mean", f"{normed}.running_var")
    yield Entry(f"{target}/kernel", (f"{layer}.weight", statistics[1], *gain), kernel)
    yield Entry(f"{target}/bias", (*statistics, *gain, *shift, *bias), constant)
