"""What families of images share: how they prepare images, and the options of a tower."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mmrl.models.convert.source import Source
from mmrl.types import InputError

HALF = (0.5, 0.5, 0.5)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Of the images that OpenAI trained CLIP on.
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

# Names of transformers -> ours.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
}


class Preparation(NamedTuple):
    """How the source prepares an image.

    Attributes:
      size: side of the square in pixels; None: the source does not say.
      mean, std: of each channel.
      resize: "stretch", "pad" or "crop", see `mmrl.data.image.images.Preprocess`.
      notes: sentences about what differs here.
    """

    size: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: str
    notes: tuple[str, ...] = ()


def preparation(
    source: Source, mean: Sequence[float], std: Sequence[float], resize: str = "stretch"
) -> Preparation:
    """What the files beside the weights say of it.

    Reads preprocessor_config.json of transformers, open_clip_config.json, or the `pretrained_cfg`
    of timm in config.json.

    Args:
      mean, std, resize: what the library does where no file says it.

    Raises:
      InputError: values that have no counterpart here.
    """
    if found := source.json("preprocessor_config.json"):
        return _transformers(source, found, mean, std)
    if found := source.json("open_clip_config.json").get("preprocess_cfg", {}):
        return _open_clip(source, found, mean, std)
    if found := source.config.get("pretrained_cfg", {}):
        return _timm(source, found, mean, std)
    note = (
        f"no file says how images are prepared; resize {resize}, mean {_shown(mean)} and deviation "
        f"{_shown(std)} are those of the library"
    )
    return Preparation(None, tuple(mean), tuple(std), resize, (note,))


def _shown(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def _transformers(
    source: Source, given: Mapping[str, Any], mean: Sequence[float], std: Sequence[float]
) -> Preparation:
    notes: list[str] = []
    factor = given.get("rescale_factor", 1 / 255)
    if not given.get("do_rescale", True) or abs(factor * 255 - 1) > 1e-3:
        raise InputError(
            f"{source.folder}/preprocessor_config.json: do_rescale {given.get('do_rescale')}, "
            f"rescale_factor {factor}; expected pixels divided by 255"
        )
    if given.get("do_normalize", True):
        mean, std = given.get("image_mean", mean), given.get("image_std", std)
    else:
        mean, std = (0.0,) * len(mean), (1.0,) * len(std)
    size, resize = _side(given.get("size")), "stretch"
    shortest = isinstance(given.get("size"), Mapping) and "shortest_edge" in given["size"]
    if given.get("do_center_crop"):
        cut = _side(given.get("crop_size")) or size
        if size is not None and cut is not None and size > cut:
            notes.append(
                f"the source scales the shorter side to {size} pixels and cuts {cut}; here it is "
                f"scaled to {cut}, and more of the image is kept"
            )
        size, resize = cut, "crop"
    elif shortest:
        resize = "crop"
        notes.append("the source keeps images oblong; here their middle square is cut")
    return Preparation(size, tuple(mean), tuple(std), resize, tuple(notes))


def _side(given: Any) -> int | None:
    """Of a size of transformers: a number, or a mapping with equal sides."""
    sides = {*given.values()} if isinstance(given, Mapping) else {given}
    (side,) = sides if len(sides) == 1 else (None,)
    return side if isinstance(side, int) else None


_OPEN_CLIP_RESIZE = {"shortest": "crop", "longest": "pad", "squash": "stretch"}


def _open_clip(
    source: Source, given: Mapping[str, Any], mean: Sequence[float], std: Sequence[float]
) -> Preparation:
    mode = given.get("resize_mode", "shortest")
    if mode not in _OPEN_CLIP_RESIZE:
        raise InputError(
            f"{source.folder}/open_clip_config.json: resize_mode {mode!r}; expected one of: "
            f"{', '.join(_OPEN_CLIP_RESIZE)}"
        )
    mean, std = given.get("mean", mean), given.get("std", std)
    size = given.get("size")
    size = size[0] if isinstance(size, Sequence) and len({*size}) == 1 else size
    return Preparation(
        size if isinstance(size, int) else None, tuple(mean), tuple(std), _OPEN_CLIP_RESIZE[mode]
    )


_TIMM_RESIZE = {"center": "crop", "squash": "stretch", "border": "pad"}


def _timm(
    source: Source, given: Mapping[str, Any], mean: Sequence[float], std: Sequence[float]
) -> Preparation:
    mode = given.get("crop_mode") or "center"
    if mode not in _TIMM_RESIZE:
        raise InputError(
            f"{source.folder}/config.json: crop_mode {mode!r}; expected one of: "
            f"{', '.join(_TIMM_RESIZE)}"
        )
    resize = _TIMM_RESIZE[mode]
    share = given.get("crop_pct") or 1.0
    notes: tuple[str, ...] = ()
    if share != 1.0:
        notes = (
            f"the source cuts the middle {share:.3g} of the scaled image; here all of it is kept",
        )
    (_, *sides) = given.get("input_size") or (0, 0)
    size = sides[0] if len({*sides}) == 1 and sides[0] else None
    return Preparation(
        size, tuple(given.get("mean") or mean), tuple(given.get("std") or std), resize, notes
    )


def tower(
    source: Source,
    prepared: Preparation,
    *,
    size: int,
    channels: int,
    heads: Mapping[str, Any],
    **encoder: Any,
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Options of config.towers.image, and notes about what differs from the source.

    Raises:
      InputError: mean or deviation of other channels than the encoder has.
    """
    notes = prepared.notes
    if prepared.size not in (None, size):
        notes += (
            f"the source prepares images of {prepared.size} pixels for an encoder of {size}; "
            f"--size={prepared.size} fits the encoder to them",
        )
    mean, std = prepared.mean, prepared.std
    if channels == 1:
        mean, std = mean[:1], std[:1]
    if len(mean) != channels or len(std) != channels:
        raise InputError(
            f"{source.path}: mean {list(mean)} and deviation {list(std)} of images; the encoder "
            f"has {channels} channels"
        )
    options = {
        **encoder,
        "size": size,
        "channels": channels,
        "pixel_mean": list(mean),
        "pixel_std": list(std),
        "heads": dict(heads),
    }
    return options, notes


def plain_heads(width: int, local_width: int | None = None) -> dict[str, Any]:
    """Heads of an encoder without any of its own: the normalised pooled feature, the regions."""
    return {
        "embedding": {"width": width, "kind": "identity"},
        "regions": {"width": local_width or width, "kind": "identity"},
    }


def activation(source: Source, name: Any) -> str:
    """Our name of an activation of transformers.

    Raises:
      InputError: one that has no counterpart here.
    """
    if name not in ACTIVATIONS:
        raise InputError(
            f"{source.path}: activation {name!r}; expected one of: {', '.join(ACTIVATIONS)}"
        )
    return ACTIVATIONS[name]


def square(source: Source, positions: int, patch_size: int) -> int:
    """Side in pixels of the square image whose patches have these positions.

    Raises:
      InputError: patches that make no square.
    """
    side = math.isqrt(positions)
    if side**2 != positions:
        raise InputError(
            f"{source.path}: {positions} positions of patches; expected those of a square image"
        )
    return side * patch_size


def patch_shape(source: Source, name: str) -> tuple[int, int, int]:
    """Width, channels and side of the kernel of a patch embedding.

    Raises:
      InputError: no kernel of square patches.
    """
    shape = source.shape(name)
    if len(shape) != 4 or shape[2] != shape[3]:
        raise InputError(
            f"{source.path}: {name} is {list(shape)}; expected [width, channels, n, n]"
        )
    return shape[0], shape[1], shape[2]


def depth(source: Source, pattern: str) -> int:
    """Number of blocks; `pattern` is the start of their names, with {} for the number."""
    count = 0
    while source.starts(pattern.format(count)):
        count += 1
    return count


def stated(source: Source, config: Mapping[str, Any], *names: str) -> list[Any]:
    """Values of a config.

    Raises:
      InputError: one is missing.
    """
    missing = [name for name in names if name not in config]
    if missing:
        raise InputError(f"{source.folder}/config.json does not state {', '.join(missing)}")
    return [config[name] for name in names]
